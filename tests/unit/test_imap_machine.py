"""The IMAP machine on octets alone: one command at a time, literals, exchanges, compression, cuts at every octet."""

from __future__ import annotations

import re
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway._native import ImapCommand, ImapSyntaxError
from gateway.protocol.imap import machine as imap
from gateway.protocol.imap.compress import PIECE_OCTETS
from gateway.protocol.imap.response import in_progress, mailbox_octets, tagged
from gateway.protocol.smtp_server import LocalProtocolError


class Target:
    def __init__(self) -> None:
        self.octets = b""

    def write(self, octets: bytes | memoryview) -> None:
        self.octets += octets


class Server:
    """The smallest IMAP server: APPEND keeps messages of at most 10,000 octets."""

    def __init__(self, *, login: bool = True, **options: object) -> None:
        self.settings = imap.Settings(**options)  # type: ignore[arg-type]
        self.machine = imap.ImapServerMachine(self.settings)
        self.machine.authenticated = login
        self.out = b""
        self.events: list[int] = []
        self.names: list[bytes] = []
        self.accepted: dict[int, list[Target]] = {}
        self.messages: list[bytes] = []
        self.inflate = zlib.decompressobj(-15)

    def feed(self, octets: bytes) -> None:
        machine = self.machine
        machine.receive_data(octets)
        while (event := machine.next_event()) is not None:
            self.events.append(event[0])
            self.answer(*event)
        for piece in machine.data_to_send():
            self.out += piece

    def answer(self, kind: int, a: object, b: object) -> None:
        machine = self.machine
        if kind == imap.COMMAND:
            assert isinstance(a, ImapCommand)
            assert machine.next_event() is None
            self.names.append(a.name)
            self.command(a)
        elif kind == imap.LITERAL:
            if b > 10_000:  # type: ignore[operator]
                self.accepted.pop(id(a), None)
                machine.refuse_literal(b"NO", b"TOOBIG", "Too large")
            else:
                target = Target()
                self.accepted.setdefault(id(a), []).append(target)
                machine.accept_literal(target)
        elif kind == imap.ABANDONED:
            del self.accepted[id(a)]
        elif kind == imap.AUTH_RESPONSE:
            if a == b"more":
                machine.challenge(b"go on")
            else:
                machine.authenticated = True
                machine.complete(b"OK", "In")
        elif kind == imap.IDLE_DONE:
            machine.complete(b"OK", "Done")

    def command(self, command: ImapCommand) -> None:
        machine = self.machine
        name = command.name
        try:
            if name == b"AUTHENTICATE":
                machine.challenge(b"")
            elif name == b"IDLE":
                machine.begin_idle()
                machine.untagged(b"5 EXISTS")
            elif name == b"APPEND":
                command.space()
                command.mailbox()
                while not command.at_end():
                    command.space()
                    message = command.literal()
                    self.messages.append(message.octets if isinstance(message, Target) else message)
                self.accepted.pop(id(command), None)
                machine.complete(b"OK", "Kept", b"APPENDUID 1 1")
            elif name == b"COMPRESS":
                machine.complete(b"OK", "DEFLATE active")
                machine.compress()
            else:
                machine.complete(b"OK", "Completed")
        except ImapSyntaxError as error:
            machine.complete(b"BAD", str(error))


def test_commands_in_their_order() -> None:
    server = Server()
    server.feed(b"a NOOP\r\nb noop \nc UID fetch 1 FLAGS\r\n")
    assert server.out == b"a OK Completed\r\nb OK Completed\r\nc OK Completed\r\n"
    assert server.names == [b"NOOP", b"NOOP", b"UID FETCH"]


def test_one_command_at_a_time() -> None:
    machine = imap.ImapServerMachine(imap.Settings())
    machine.receive_data(b"a NOOP\r\nb NOOP\r\n")
    event = machine.next_event()
    assert event is not None and event[1].tag == b"a"
    assert machine.next_event() is None
    assert machine.unread_octets == len(b"b NOOP\r\n")
    machine.untagged(b"1 EXISTS")
    machine.send(b"* ", memoryview(b"2 EXISTS\r\n"))
    machine.complete(b"NO", "Not now\r\nx OK ä", b"UNAVAILABLE")
    assert b"".join(machine.data_to_send()) == (
        b"* 1 EXISTS\r\n* 2 EXISTS\r\na NO [UNAVAILABLE] Not now??x OK ?\r\n"
    )
    event = machine.next_event()
    assert event is not None and event[1].tag == b"b"


def test_what_is_no_command() -> None:
    server = Server(errors_max=3)
    server.feed(b"\r\na\r\n+ NOOP\r\nb \x01\r\nc NOOP\r\n")
    assert server.out == b"* BAD Command expected\r\n" * 3 + (
        b"b BAD Command expected\r\n* BYE [UNAVAILABLE] Too many errors\r\n"
    )
    assert server.machine.closing
    server.feed(b"a NOOP\r\n")
    assert server.machine.next_event() is None


TOO_LONG = b"a NO [TOOBIG] Literal too long: 4000 octets at most here\r\nb OK Completed\r\n"
LITERALS = [
    (b"a LOGIN {1}\r\nx {1+}\r\ny\r\n", b"+ OK\r\na OK Completed\r\n", [b"LOGIN"]),
    (b"a X {4001}\r\nb NOOP\r\n", TOO_LONG, None),
    (b"a X {4001+}\r\n" + b"z" * 4001 + b" {2+}\r\n\r\n\r\nb NOOP\r\n",
     TOO_LONG, None),
    (b"a X {9}\r\n123456789 {9}\r\nb NOOP\r\n", None, None),
    (b"a X " + b"{1}\r\nz " * 5 + b"{1}\r\n" + b"b NOOP\r\n",
     b"+ OK\r\n" * 5 + b"a BAD Too many literals: 5 at most\r\nb OK Completed\r\n", None),
    (b"a X " + b"{3000+}\r\n" + b"z" * 3000 + b"{3000}\r\nb NOOP\r\n",
     b"a NO [TOOBIG] Too long: a command has 5000 octets at most with its literals\r\nb OK Completed\r\n", None),
    (b"a X {99999999999999999999}\r\nb NOOP\r\n",
     TOO_LONG, None),
    (b"a {1}\r\nb NOOP\r\n", b"a BAD Command expected\r\nb OK Completed\r\n", None),
    (b"{1+}\r\n\nb\r\nb NOOP\r\n", b"* BAD Command expected\r\nb OK Completed\r\n", None),
    (b"a X " + b"y" * 1000 + b"{3+}\r\n\r\n\n\r\nb NOOP\r\n",
     b"a BAD Too long: a command has 1000 octets at most\r\nb OK Completed\r\n", None),
    (b"a APPEND x {20000}\r\nb NOOP\r\n", b"a NO [TOOBIG] Too large\r\nb OK Completed\r\n", None),
    (b"a APPEND x {20000+}\r\n" + b"\n" * 20000 + b" {1}\r\nb NOOP\r\n",
     b"a NO [TOOBIG] Too large\r\nb OK Completed\r\n", None),
    (b"a APPEND x {5000}\r\n" + b"m" * 5000 + b" ~{3+}\r\nx\0y\r\nb NOOP\r\n",
     b"+ OK\r\na OK [APPENDUID 1 1] Kept\r\nb OK Completed\r\n", None),
    (b"a APPEND x {5000+}\r\n" + b"m" * 5000 + b" {20000+}\r\n" + b"m" * 20000 + b"\r\nb NOOP\r\n",
     b"a NO [TOOBIG] Too large\r\nb OK Completed\r\n", None),
    (b"a APPEND x {5000+}\r\n" + b"m" * 5000 + b" " + b"y" * 1000 + b"\r\nb NOOP\r\n",
     b"a BAD Too long: a command has 1000 octets at most\r\nb OK Completed\r\n", None),
    (b"a APPEND x {5000+}\r\n" + b"m" * 5000 + b" {1+}\r\nx" * 5 + b"\r\nb NOOP\r\n",
     b"a BAD Too many literals: 5 at most\r\nb OK Completed\r\n", None),
]  # fmt: skip
TIGHT: dict[str, object] = {
    "line_octets": 1000, "literal_octets": 4000, "command_octets": 5000, "literals_max": 5, "login_octets": 1000,
}  # fmt: skip


@pytest.mark.parametrize("case", LITERALS, ids=range(len(LITERALS)))
def test_literals(case: tuple[bytes, bytes | None, list[bytes] | None]) -> None:
    octets, expected, names = case
    whole = Server(**TIGHT)
    whole.feed(octets)
    if expected is not None:
        assert whole.out == expected
    if names is not None:
        assert whole.names == names
    assert whole.accepted == {}  # every target was used or abandoned
    steps = {1, 7, 4096}
    for step in steps:
        cut = Server(**TIGHT)
        for at in range(0, len(octets), step):
            cut.feed(octets[at : at + step])
        assert (cut.out, cut.names, cut.messages) == (whole.out, whole.names, whole.messages)
        assert cut.accepted == {} and cut.machine.unread_octets == 0


def test_many_small_messages_in_one_command_are_not_held() -> None:
    server = Server(login=True)
    server.feed(b"a APPEND x" + b" {1000+}\r\n%b" % (b"m" * 1000) * 300 + b"\r\n")
    assert server.out == b"a OK [APPENDUID 1 1] Kept\r\n"
    assert server.messages == [b"m" * 1000] * 300
    assert server.events.count(imap.LITERAL) > 200  # once 64 KiB are held, each goes where it belongs


def test_before_the_login_everything_is_short() -> None:
    server = Server(login=False, **TIGHT)
    server.feed(b"a LOGIN x {995}\r\nb LOGIN {10}\r\n0123456789 x\r\nc APPEND x {5000+}\r\n" + b"x" * 5000)
    assert server.out == b"a BAD [TOOBIG] Literal too long: log in first\r\n+ OK\r\nb OK Completed\r\n"
    server.feed(b"\r\n")
    assert server.out.endswith(b"c BAD [TOOBIG] Literal too long: log in first\r\n")
    assert imap.LITERAL not in server.events


def test_literal_minus() -> None:
    server = Server(literal_minus=True)
    server.feed(b"a X {4096+}\r\n" + b"x" * 4096 + b"\r\nb X {4097+}\r\n" + b"x" * 4097 + b"\r\nc X {4097}\r\n")
    assert server.out == (
        b"a OK Completed\r\nb BAD [TOOBIG] {n+} has 4096 octets at most here\r\n+ OK\r\n"
    )


def test_a_literal_waits_for_its_answer() -> None:
    machine = imap.ImapServerMachine(imap.Settings())
    machine.authenticated = True
    machine.receive_data(b"a APPEND x {5000+}\r\n" + b"m" * 5000 + b"\r\nb NOOP\r\n")
    kind, command, size = machine.next_event() or (None, None, None)
    assert (kind, command.name, size) == (imap.LITERAL, b"APPEND", 5000)
    assert machine.next_event() is None and machine.unread_octets > 5000
    with pytest.raises(LocalProtocolError):
        machine.complete(b"OK", "x")
    target = Target()
    machine.accept_literal(target)
    event = machine.next_event()
    assert event is not None and event[0] == imap.COMMAND and event[1] is command
    assert len(target.octets) == 5000
    for wrong in (lambda: machine.accept_literal(target), lambda: machine.refuse_literal(b"NO", b"", "x")):
        with pytest.raises(LocalProtocolError):
            wrong()


# -- exchanges -------------------------------------------------------------------------------------------------------


def test_authenticate() -> None:
    server = Server(login=False, sasl_octets=100)
    server.feed(b"a AUTHENTICATE PLAIN\r\nbW9yZQ==\r\nAGEAYg==\r\nb NOOP\r\n")
    assert server.out == b"+ \r\n+ Z28gb24=\r\na OK In\r\nb OK Completed\r\n"
    assert server.events == [imap.COMMAND, imap.AUTH_RESPONSE, imap.AUTH_RESPONSE, imap.COMMAND]


@pytest.mark.parametrize(
    ("response", "text"),
    [(b"*", b"Cancelled"), (b"=", b"Not base64"), (b"a b", b"Not base64"), (b"x" * 101, b"Response too long")],
)
def test_an_exchange_that_ends_early(response: bytes, text: bytes) -> None:
    octets = b"a AUTHENTICATE PLAIN\r\n" + response + b"\r\nb NOOP\r\n"
    for step in (1, len(octets)):
        server = Server(login=False, sasl_octets=100)
        for at in range(0, len(octets), step):
            server.feed(octets[at : at + step])
        assert server.out == b"+ \r\na BAD " + text + b"\r\nb OK Completed\r\n"
        assert server.events == [imap.COMMAND, imap.AUTH_CANCELLED, imap.COMMAND]
        assert server.machine.errors == 1


def test_idle() -> None:
    server = Server()
    server.feed(b"a IDLE\r\n")
    server.machine.untagged(b"6 EXISTS")
    server.feed(b"done\r\nb IDLE\r\nNOOP\r\nc NOOP\r\n")
    assert server.out == (
        b"+ idling\r\n* 5 EXISTS\r\n* 6 EXISTS\r\na OK Done\r\n"
        b"+ idling\r\n* 5 EXISTS\r\nb BAD DONE expected\r\nc OK Completed\r\n"
    )


def test_tls_begins_anew() -> None:
    machine = imap.ImapServerMachine(imap.Settings())
    machine.receive_data(b"a STARTTLS\r\nb LOGIN x y\r\n")
    event = machine.next_event()
    assert event is not None and event[1].name == b"STARTTLS"
    assert machine.unread_octets > 0  # CVE-2011-0411: for the session to refuse
    machine.complete(b"OK", "Begin")
    machine.tls_started()
    assert machine.unread_octets == 0
    machine.receive_data(b"c NOOP\r\n")
    event = machine.next_event()
    assert event is not None and event[1].tag == b"c"


def test_answers_that_nobody_asked_for() -> None:
    machine = imap.ImapServerMachine(imap.Settings())
    for wrong in (
        lambda: machine.complete(b"OK", "x"),
        lambda: machine.challenge(b""),
        machine.begin_idle,
        lambda: machine.accept_literal(None),
    ):
        with pytest.raises(LocalProtocolError):
            wrong()
    machine.compress()
    with pytest.raises(LocalProtocolError):
        machine.compress()


def test_the_last_line() -> None:
    server = Server()
    server.feed(b"a IDLE\r\n")
    server.machine.stop(b"* BYE Shutting down\r\n")
    server.feed(b"DONE\r\nb NOOP\r\n")
    assert server.out.endswith(b"* BYE Shutting down\r\n") and server.machine.closing


# -- compression -----------------------------------------------------------------------------------------------------


def inflated(server: Server, clear: bytes) -> bytes:
    assert server.out.startswith(clear)
    return server.inflate.decompress(server.out[len(clear) :])


@pytest.mark.parametrize("step", [1, 3, 10_000])
def test_compression_of_both_directions(step: int) -> None:
    server = Server()
    client = zlib.compressobj(wbits=-15)
    server.feed(b"a COMPRESS DEFLATE\r\n")
    sent = b"b NOOP\r\nc APPEND x {5000}\r\n" + b"m" * 5000 + b"\r\nd IDLE\r\nDONE\r\n"
    octets = client.compress(sent) + client.flush(zlib.Z_SYNC_FLUSH)
    for at in range(0, len(octets), step):
        server.feed(octets[at : at + step])
    assert inflated(server, b"a OK DEFLATE active\r\n") == (
        b"b OK Completed\r\n+ OK\r\nc OK [APPENDUID 1 1] Kept\r\n+ idling\r\n* 5 EXISTS\r\nd OK Done\r\n"
    )
    assert server.messages == [b"m" * 5000]
    assert server.machine.compressed


def test_octets_behind_compress_are_compressed() -> None:
    client = zlib.compressobj(wbits=-15)
    server = Server()
    server.feed(b"a COMPRESS DEFLATE\r\n" + client.compress(b"b NOOP\r\n") + client.flush())
    assert inflated(server, b"a OK DEFLATE active\r\n") == b"b OK Completed\r\n"
    # the stream of a client that ends it has nothing behind it
    server.feed(b"x")
    assert server.machine.closing


def test_a_bomb_takes_no_memory() -> None:
    client = zlib.compressobj(level=9, wbits=-15)
    bomb = b"".join(client.compress(b"x" * 1_000_000) for _ in range(50)) + client.flush(zlib.Z_SYNC_FLUSH)
    machine = imap.ImapServerMachine(imap.Settings())
    machine.compress()
    tracemalloc.start()
    machine.receive_data(bomb + b"")
    assert machine.unread_octets == len(bomb)
    turns = 1
    while machine.next_event() is None and machine.interrupted:  # a piece, and others have their turn
        machine.go_on()
        turns += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert machine.unread_octets == 0  # fifty million octets were read, a piece at a time
    assert turns >= 50_000_000 // PIECE_OCTETS
    assert peak < 4 * len(bomb) + 1_000_000


def test_what_is_not_deflate_ends_the_session() -> None:
    server = Server()
    server.feed(b"a COMPRESS DEFLATE\r\n")
    server.feed(b"b NOOP\r\n")
    assert server.machine.closing
    assert b"Not DEFLATE" in inflated(server, b"a OK DEFLATE active\r\n")


# -- however it is cut -----------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        b"a NOOP\r\n", b"b IDLE\r\n", b"DONE\r\n", b"c AUTHENTICATE X\r\n", b"bW9yZQ==\r\n", b"AGEAYg==\r\n", b"*\r\n",
        b"d APPEND x ", b"e LOGIN ", b"{3+}\r\nabc", b"{3}\r\nabc", b"{5000+}\r\n" + b"m" * 5000, b"{5000}\r\n",
        b"{20000+}\r\n" + b"m" * 20000, b"{20000}\r\n", b" ", b"\r\n", b"x" * 900, b"\xff", b'"',
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=12).map(b"".join), st.booleans(), st.integers(1, 3000))
def test_a_dialogue_however_it_is_cut(octets: bytes, login: bool, step: int) -> None:
    whole, cut = Server(login=login, **TIGHT), Server(login=login, **TIGHT)
    whole.feed(octets)
    for at in range(0, len(octets), step):
        cut.feed(octets[at : at + step])
    assert (cut.out, cut.events, cut.messages) == (whole.out, whole.events, whole.messages)
    assert cut.machine.errors == whole.machine.errors
    for line in whole.out.splitlines(keepends=True):
        assert re.fullmatch(rb"\+ [!-~ ]*\r\n|(\*|[!-~]+) (OK|NO|BAD|BYE|[0-9]+ EXISTS)( [!-~ ]+)?\r\n", line)


# -- pieces of responses ---------------------------------------------------------------------------------------------


def test_pieces_of_responses() -> None:
    assert tagged(b"", b"BAD", "x") == b"* BAD x\r\n"
    assert mailbox_octets("INBOX", False) == b'"INBOX"'
    assert mailbox_octets('ä"b', False) == b'"&AOQ-\\"b"'
    assert mailbox_octets('ä"b\\', True) == '"ä\\"b\\\\"'.encode()
    assert mailbox_octets("a&b", True) == b'"a&b"'
    assert mailbox_octets("a&b", False) == b'"a&-b"'


@pytest.mark.parametrize(
    ("done", "goal", "told"), [(0, 0, b"NIL NIL"), (7, 0, b"NIL NIL"), (0, 9, b"0 9"), (8, 9, b"8 9"), (9, 9, b"8 9")]
)
def test_in_progress(done: int, goal: int, told: bytes) -> None:
    assert in_progress(b"a1", done, goal) == b'INPROGRESS ("a1" %b)' % told
