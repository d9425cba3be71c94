"""IMAP's state machine: one tagged response a command, in step and however it is cut, in every state.

A second reading of the same octets (model_imap.py, and what the server of this file answers) says which responses a
client must get; literals that were accepted are used or abandoned, never forgotten.
"""

from __future__ import annotations

import re
import zlib

from gateway._native import ImapCommand, ImapSyntaxError
from gateway.protocol.imap import machine as imap
from tests.fuzz.octets import WHOLE, cut, options

MAX_OCTETS = 1500
RUNS = 3000
WORDS = (
    b"a NOOP\r\n",
    b"LOGIN a b\r\n",
    b"AUTHENTICATE PLAIN\r\n",
    b"AGEAYg==\r\n",
    b"=\r\n",
    b"*\r\n",
    b"IDLE\r\n",
    b"DONE\r\n",
    b"STARTTLS\r\n",
    b"COMPRESS DEFLATE\r\n",
    b"ENABLE\r\n",
    b"LOGOUT\r\n",
    b"APPEND x ",
    b"REPLACE 1 x ",
    b"UID REPLACE 1 x ",
    b"{5000+}\r\n",
    b"{100+}\r\n",
    b"{3}\r\nabc",
    b"~{3+}\r\n\0bc",
    b"{4+}\r\nabcd",
    b"{99999999999999999999+}\r\n",
    b"\r\n",
)
LOGGED_IN, TIGHT, REFUSE, MINUS, BIG = 1, 2, 4, 8, 16
LINE = re.compile(rb"(?:\+ [ -~]*|(\*|[!-~]+) (OK|NO|BAD|BYE)(?: \[[ -~]+?\])? [ -~]+|\* 5 EXISTS)\r\n")


def seeds() -> list[bytes]:
    dialogues = (
        b"a NOOP\r\nb LOGIN a b\r\nc APPEND x (\\Seen) {3+}\r\nabc ~{3}\r\n\0bc\r\nd LOGOUT\r\n",
        b"a AUTHENTICATE PLAIN\r\nAGEAYg==\r\nb IDLE\r\nDONE\r\nc IDLE\r\nx\r\nd ENABLE\r\ne SELECT x\r\n",
        b"a AUTHENTICATE PLAIN\r\n*\r\nb AUTHENTICATE PLAIN =\r\nc STARTTLS\r\nd NOOP\r\n",
        b"a REPLACE 1 x {100}\r\n" + b"m" * 100 + b" {100+}\r\n" + b"m" * 100 + b"\r\nb X {900+}\r\n" + b"n" * 900,
        b"a NOOP " + b"x" * 300 + b"{3+}\r\n\r\n\n\r\nb NOOP\r\n\r\n",
        b"a COMPRESS DEFLATE\r\nb NOOP\r\nc APPEND x {100+}\r\n" + b"m" * 100 + b"\r\n",
    )
    return [bytes([flags, how]) + d for d in dialogues for flags, how in ((0, 0), (LOGGED_IN, 1), (31, 7))]


class Target:
    def __init__(self) -> None:
        self.octets = 0

    def write(self, octets: bytes | memoryview) -> None:
        assert len(octets) > 0
        self.octets += len(octets)


class Server:
    """Lets everybody in; messages go to targets."""

    def __init__(self, flags: int) -> None:
        tight = bool(flags & TIGHT)
        self.settings = imap.Settings(
            line_octets=200 if tight else 100_000,
            literal_octets=150 if tight else 3000,
            command_octets=400 if tight else 6000,
            literals_max=4 if tight else 100,
            login_octets=150 if tight else 20_000,
            sasl_octets=60 if tight else 16_400,
            errors_max=3 if tight else 10_000,
            literal_minus=bool(flags & MINUS),
        )
        self.machine = imap.ImapServerMachine(self.settings)
        self.machine.authenticated = bool(flags & LOGGED_IN)
        self.refuses = bool(flags & REFUSE)
        self.big = 50 if flags & BIG else 6000
        self.sent = b""
        self.events: list[tuple[int, bytes, object]] = []
        self.tags: list[bytes] = []  # of commands that have to be answered here
        self.targets: dict[int, list[tuple[Target, int]]] = {}
        self.messages: list[int] = []
        self.deflate = zlib.compressobj(wbits=-15)
        self.inflate = zlib.decompressobj(-15)

    def feed(self, octets: bytes) -> None:
        machine = self.machine
        if machine.compressed:
            octets = self.deflate.compress(octets) + self.deflate.flush(zlib.Z_SYNC_FLUSH)
        clear = not machine.compressed  # COMPRESS is the last command of its read, if it is to be heard
        machine.receive_data(octets)
        while (event := machine.next_event()) is not None or machine.interrupted:
            machine.go_on()
            if event is not None:
                self.answer(*event)
            assert not machine._pending  # every LITERAL was answered
        assert machine.closing or machine.unread_octets <= self.settings.sasl_octets + 1
        said = b"".join(map(bytes, machine.data_to_send()))
        assert machine.queued_octets == 0
        self.sent += said if clear else self.inflate.decompress(said)

    def answer(self, kind: int, a: object, b: object) -> None:
        machine = self.machine
        self.events.append((kind, a.name if isinstance(a, ImapCommand) else b"", b))
        if kind == imap.COMMAND:
            assert isinstance(a, ImapCommand) and machine.next_event() is None
            self.tags.append(a.tag)
            self.command(a)
        elif kind == imap.LITERAL:
            assert machine.authenticated and isinstance(a, ImapCommand) and isinstance(b, int)
            assert a.name in (b"APPEND", b"REPLACE", b"UID REPLACE")
            if b > self.big:
                self.targets.pop(id(a), None)
                machine.refuse_literal(b"NO", b"TOOBIG", "Too large")
            else:
                target = Target()
                self.targets.setdefault(id(a), []).append((target, b))
                machine.accept_literal(target)
        elif kind == imap.ABANDONED:
            del self.targets[id(a)]
        elif kind == imap.AUTH_RESPONSE:
            if len(a) % 3 == 2:  # type: ignore[arg-type]
                machine.challenge(b"more")
            else:
                self.finish()
                machine.authenticated = True
        elif kind == imap.IDLE_DONE:
            self.finish()

    def finish(self) -> None:
        if self.refuses and len(self.events) % 3 == 0:
            self.machine.complete(b"NO", "Not now", b"UNAVAILABLE")
        else:
            self.machine.complete(b"OK", "Completed")

    def command(self, command: ImapCommand) -> None:
        machine = self.machine
        name = command.name
        if name == b"AUTHENTICATE" and not machine.authenticated:
            machine.challenge(b"")
        elif name == b"IDLE" and machine.authenticated:
            machine.begin_idle()
            machine.untagged(b"5 EXISTS")
        elif name == b"LOGOUT":
            self.finish()
            machine.stop(b"* BYE Bye then\r\n")
        elif name == b"STARTTLS":
            self.finish()
            machine.tls_started()
        elif name == b"COMPRESS" and not machine.compressed and not machine.unread_octets:
            self.finish()
            machine.compress()
        else:
            if name == b"LOGIN":
                machine.authenticated = True
            if name == b"ENABLE":
                machine.utf8 = True
            targets = self.targets.pop(id(command), [])
            assert all(target.octets == size for target, size in targets)
            try:
                self.read(command, [target for target, _ in targets])
            except ImapSyntaxError as error:
                assert str(error).isascii() and str(error).isprintable()
                machine.complete(b"BAD", str(error))
                return
            self.finish()

    def read(self, command: ImapCommand, targets: list[Target]) -> None:
        """The arguments as APPEND has them, whatever the command is called."""
        while not command.at_end():
            command.space()
            octet = command.peek()
            if octet == 40:
                command.flag_list()
            elif octet in b"{~":
                literal = command.literal()
                if isinstance(literal, Target):
                    assert literal is targets.pop(0)
                    self.messages.append(literal.octets)
            else:
                command.mailbox()


def check(data: bytes) -> None:
    (flags, how), octets = options(data, 2)
    server = Server(flags)
    for piece in cut(octets, how):
        server.feed(piece)
    tagged = []
    for line in server.sent.splitlines(keepends=True):
        found = LINE.fullmatch(line)
        assert found, line
        if found[1] and found[1] != b"*":
            tagged.append(found[1])
    answered = iter(tagged)
    assert all(tag in answered for tag in server.tags[:-1])  # in their order, one each
    if server.machine.closing:
        assert server.machine.next_event() is None
    if how == WHOLE or b"STARTTLS" in octets.upper() or b"COMPRESS" in octets.upper():
        return  # it is about what arrives together
    whole = Server(flags)
    whole.feed(octets)
    assert (whole.sent, whole.events, whole.messages) == (server.sent, server.events, server.messages)
    assert len(whole.targets) == len(server.targets)
