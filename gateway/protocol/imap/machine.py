"""The server side of IMAP: octets in, commands out, responses in, octets out.

Owns      framing, literals, the exchanges of AUTHENTICATE and IDLE, compression, the queue of responses
Flow      receive_data() → next_event() until None; a COMMAND is answered by untagged(), send() and one complete(), and
          no other comes before that; data_to_send() gives the responses of the whole batch
Events    tuples (kind, a, b); see the constants.  What breaks the protocol is answered here and never surfaces, except
          as a count in `errors`
Limits    text of a command, literals, their number, depth, items, lines of SASL, errors: from Settings; a literal of
          APPEND and its kin is handed on as it comes
Errors    LocalProtocolError when the caller breaks the contract; nothing the peer sends raises
Security  octets behind STARTTLS are for the caller to refuse (unread_octets) and are forgotten after the handshake;
          before the login all bounds are those of a login; what the client compressed is inflated piece by piece
Standards RFC 9051 §2.2, §4.3, §5.5, §7.6; RFC 3501; RFC 7888 (LITERAL+, LITERAL-); RFC 4959 (SASL-IR); RFC 2177 (IDLE);
          RFC 4978 (COMPRESS=DEFLATE); RFC 4469 §5 (TOOBIG)
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import Any

from gateway import _native
from gateway._native import ImapCommand, ImapReader
from gateway.protocol.imap.compress import Deflate
from gateway.protocol.imap.response import tagged
from gateway.protocol.smtp_server import LocalProtocolError

# Event kinds.
COMMAND = 0  # a: ImapCommand: complete()
LITERAL = 1  # a: the command as far as it came, b: octets: accept_literal() or refuse_literal()
AUTH_RESPONSE = 2  # a: octets: challenge() or complete()
AUTH_CANCELLED = 3  # answered here: the exchange is to be forgotten
IDLE_DONE = 4  # complete()
ABANDONED = 5  # a: a command whose literals were accepted, and which was refused here then: they are to be forgotten

Event = tuple[int, Any, Any]
Buffer = bytes | memoryview

_COMMANDS, _SASL, _IDLE, _STOPPED = range(4)

# Literals of these go elsewhere as they come; what is not larger than INLINE_OCTETS is kept with the command, which
# is cheaper, until the command has HELD_OCTETS (many small messages in one command, RFC 3502).
_STREAMED = frozenset((b"APPEND", b"REPLACE", b"UID REPLACE"))
INLINE_OCTETS = 4096
HELD_OCTETS = 65_536


class Settings:
    """What one listener lets its clients do; shared by all its sessions."""

    __slots__ = (
        "command_octets",
        "compress_level",
        "depth_max",
        "errors_max",
        "items_max",
        "line_octets",
        "literal_minus",
        "literal_octets",
        "literals_max",
        "login_octets",
        "sasl_octets",
    )

    def __init__(
        self,
        *,
        line_octets: int = 262_144,
        literal_octets: int = 131_072,
        command_octets: int = 1_048_576,
        literals_max: int = 10_000,
        items_max: int = 10_000,
        depth_max: int = 32,
        login_octets: int = 20_480,
        sasl_octets: int = 16_400,
        errors_max: int = 20,
        literal_minus: bool = False,
        compress_level: int = 6,
    ) -> None:
        self.line_octets = line_octets  # text of a command, its literals not counted
        self.literal_octets = literal_octets  # of a literal that is kept with its command
        self.command_octets = command_octets  # of text and such literals together
        self.literals_max = literals_max  # in one command
        self.items_max = items_max
        self.depth_max = depth_max
        self.login_octets = login_octets  # of a command before the login, literals included: as much as SASL-IR needs
        self.sasl_octets = sasl_octets  # of a line in an exchange of AUTHENTICATE: sasl.RESPONSE_OCTETS_MAX in base64
        self.errors_max = errors_max
        self.literal_minus = literal_minus  # LITERAL- is announced, not LITERAL+ (RFC 7888 §5)
        self.compress_level = compress_level


class ImapServerMachine:
    """One session's protocol state.  Never touches a socket; never waits."""

    __slots__ = (
        "_authenticated",
        "_clear",
        "_command",
        "_deflate",
        "_inflated",
        "_literals",
        "_mode",
        "_out",
        "_pending",
        "_reader",
        "_refusal",
        "_streams",
        "closing",
        "errors",
        "queued_octets",
        "settings",
    )

    listing = False  # responses are queued whole

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.errors = 0
        self.closing = False  # the connection ends as soon as data_to_send() is out
        self.queued_octets = 0
        self._reader = ImapReader(settings.login_octets, settings.items_max, settings.depth_max)
        self._mode = _COMMANDS
        self._command: ImapCommand | None = None  # that waits for complete()
        self._pending = False  # a LITERAL waits for its answer
        self._authenticated = False
        self._literals = 0  # of the command being read
        self._streams = 0  # of these, accepted by accept_literal()
        self._refusal: bytes | None = None  # the tagged response to the command being passed over
        self._out: list[Buffer] = []
        self._deflate: Deflate | None = None
        self._clear: list[Buffer] = []  # what was said before compression began
        self._inflated = False  # a piece of what the client compressed, since go_on()

    # -- octets ------------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        if self._deflate is not None:
            self._deflate.feed(data)
        else:
            self._reader.feed(data)

    @property
    def interrupted(self) -> bool:
        """next_event() gave none, but there is more: go_on() when others had their turn.

        What comes compressed may be a thousand times what was read.
        """
        return self._inflated and self._deflate is not None and self._deflate.unread_octets > 0

    def go_on(self) -> None:
        """The next piece of compressed input may be taken."""
        self._inflated = False

    @property
    def unread_octets(self) -> int:
        """Input that no event has covered yet: the caller pauses reading when this grows while a decision waits."""
        unread = self._reader.unread_octets
        return unread if self._deflate is None else unread + self._deflate.unread_octets

    @property
    def authenticated(self) -> bool:
        """Set by the caller at login: the larger bounds hold from then on."""
        return self._authenticated

    @authenticated.setter
    def authenticated(self, value: bool) -> None:
        self._authenticated = value
        self._reader.text_octets_max = (
            self.settings.line_octets if value else self.settings.login_octets
        )

    @property
    def utf8(self) -> bool:
        """Names of mailboxes are UTF-8 from the next command on: set by the caller (RFC 6855 §3, RFC 9051 §5.1)."""
        return self._reader.utf8

    @utf8.setter
    def utf8(self, value: bool) -> None:
        self._reader.utf8 = value

    def data_to_send(self) -> list[Buffer]:
        """Responses since the last call, for writelines()."""
        out = self._out
        if out or self._clear:
            self._out = []
            self.queued_octets = 0
            if self._deflate is not None:
                out = self._clear + (self._deflate.compress(out) if out else [])
                self._clear = []
        return out

    # -- events ------------------------------------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        """The next thing to decide; None when more octets are needed or a command waits for complete()."""
        errors_max = self.settings.errors_max
        while not self._pending and not self.closing:
            if self.errors > errors_max:
                self.stop(b"* BYE [UNAVAILABLE] Too many errors\r\n")
                return None
            if self._mode != _COMMANDS:
                event = self._next_line()
            elif self._command is not None:
                return None
            else:
                event = self._next_command()
            if event is not None:
                return event
            if self.errors <= errors_max and (self._deflate is None or not self._inflate()):
                return None
        return None

    def _inflate(self) -> bool:
        """The next piece of what the client compressed is there to be read."""
        assert self._deflate is not None
        if self.interrupted:
            return False
        piece = self._deflate.next_piece()
        if piece is None:
            self.stop(b"* BYE [UNAVAILABLE] Not DEFLATE\r\n")
            return False
        self._reader.feed(piece)
        self._inflated = bool(piece)
        return self._inflated

    def _next_command(self) -> Event | None:
        reader = self._reader
        while True:
            found = reader.read()
            if found == _native.NEED_MORE:
                return None
            command = reader.command
            if found == _native.COMMAND:
                self._literals = self._streams = 0
                if command.name:
                    self._command = command
                    return (COMMAND, command, None)
                self._bad(command, "Command expected")
            elif found == _native.LITERAL:
                event = self._on_literal(command)
                if event is not None:
                    return event
            elif found == _native.COMMAND_TOO_LONG:
                self._refusal = tagged(
                    command.tag, b"BAD", f"Too long: a command has {reader.text_octets_max} octets at most"
                )
            else:
                event = self._refused(command)
                if event is not None:
                    return event
            if self.errors > self.settings.errors_max:
                return None

    def _on_literal(self, command: ImapCommand) -> Event | None:
        """A literal was announced: take it, hand it on, or refuse it."""
        settings, reader = self.settings, self._reader
        size = reader.literal_size
        self._literals += 1
        minus = settings.literal_minus and not reader.literal_synchronizing
        if not command.name:
            return self._refuse(b"BAD", b"", "Command expected")
        if self._literals > settings.literals_max:
            return self._refuse(b"BAD", b"", f"Too many literals: {settings.literals_max} at most")
        if minus and size > INLINE_OCTETS:  # RFC 7888 §5
            return self._refuse(b"BAD", b"TOOBIG", f"{{n+}} has {INLINE_OCTETS} octets at most here")
        held = command.held_octets + size
        if not self._authenticated:
            if held > settings.login_octets:
                return self._refuse(b"BAD", b"TOOBIG", "Literal too long: log in first")
        elif command.name in _STREAMED and (size > INLINE_OCTETS or held > HELD_OCTETS):
            self._pending = True
            return (LITERAL, command, size)
        elif size > settings.literal_octets:
            return self._refuse(b"NO", b"TOOBIG", f"Literal too long: {settings.literal_octets} octets at most here")
        elif held > settings.command_octets:
            return self._refuse(
                b"NO", b"TOOBIG", f"Too long: a command has {settings.command_octets} octets at most with its literals"
            )
        reader.accept_inline()
        if reader.literal_synchronizing:
            self.send(_GO_AHEAD)
        return None

    def _refuse(self, status: bytes, code: bytes, text: str) -> Event | None:
        """The literal is not taken, nor is its command: its octets and the rest are passed over first."""
        command = self._reader.command
        self._refusal = tagged(command.tag, status, text, code)
        self.errors += status == b"BAD"
        return self._refused(command) if self._reader.refuse() else None

    def _refused(self, command: ImapCommand) -> Event | None:
        """The end of a command that was refused has come."""
        assert self._refusal is not None
        self.send(self._refusal)
        self._refusal = None
        streams, self._streams, self._literals = self._streams, 0, 0
        return (ABANDONED, command, None) if streams else None

    def _bad(self, command: ImapCommand, text: str) -> None:
        self.errors += 1
        self.send(tagged(command.tag, b"BAD", text))

    def _next_line(self) -> Event | None:
        line = self._reader.read_line(self.settings.sasl_octets)
        if line is None:
            return None
        mode, self._mode = self._mode, _COMMANDS
        if mode == _IDLE:
            if not isinstance(line, bytes) or line.upper() != b"DONE":
                self._refusal = b"DONE expected"
            return (IDLE_DONE, None, None)
        if isinstance(line, bytes) and line != b"*":
            try:
                return (AUTH_RESPONSE, a2b_base64(line, strict_mode=True), None)
            except (Base64Error, ValueError):
                text = "Not base64"
        else:  # RFC 9051 §6.2.2: "*" cancels
            text = "Cancelled" if line == b"*" else "Response too long"
        self.complete(b"BAD", text)
        return (AUTH_CANCELLED, None, None)

    # -- answers -----------------------------------------------------------------------------------------------------

    def send(self, *octets: Buffer) -> None:
        """Whole responses, or pieces of one in their order.  The buffers live until they are sent."""
        for piece in octets:
            self._out.append(piece)
            self.queued_octets += len(piece)

    def untagged(self, line: bytes) -> None:
        """ "* ", line, CRLF."""
        self._out.append(b"* %b\r\n" % line)
        self.queued_octets += len(line) + 4

    def complete(self, status: bytes, text: str, code: bytes = b"") -> None:
        """The tagged response to the command: OK, NO or BAD; code: a response code without its brackets."""
        command = self._command
        if command is None:
            raise LocalProtocolError("complete() without a command")
        self._command = None
        self._mode = _COMMANDS
        if self._refusal is not None:  # IDLE was not ended as it should have been
            status, text, code = b"BAD", self._refusal.decode(), b""
            self._refusal = None
        if status == b"BAD":
            self.errors += 1
        self.send(tagged(command.tag, status, text, code))

    def completed(self) -> None:
        """complete(b"OK", "Completed"), which nearly all commands end with."""
        command = self._command
        if command is None or self._refusal is not None:
            self.complete(b"OK", "Completed")
            return
        self._command = None
        self._mode = _COMMANDS
        line = (command.tag or b"*") + _COMPLETED
        self._out.append(line)
        self.queued_octets += len(line)

    def accept_literal(self, target: Any) -> None:
        """Answer LITERAL: its octets go to target.write(octets), which must not raise."""
        self._take_literal()
        self._streams += 1
        synchronizing = self._reader.literal_synchronizing
        self._reader.accept_target(target)
        if synchronizing:
            self.send(_GO_AHEAD)

    def refuse_literal(self, status: bytes, code: bytes, text: str) -> None:
        """Answer LITERAL: that is the tagged response to the command, sent as soon as the client waits for it.

        What was accepted for the same command before is the caller's to forget.
        """
        self._take_literal()
        self._streams = 0
        self._refuse(status, code, text)

    def _take_literal(self) -> None:
        if not self._pending:
            raise LocalProtocolError("there is no literal to answer")
        self._pending = False

    def challenge(self, octets: bytes) -> None:
        """Answer AUTHENTICATE or AUTH_RESPONSE: the exchange goes on."""
        if self._command is None:
            raise LocalProtocolError("challenge() without a command")
        self._mode = _SASL
        self.send(b"+ " + b2a_base64(octets, newline=False) + b"\r\n")

    def begin_idle(self) -> None:
        """Answer IDLE: untagged() at any time until IDLE_DONE."""
        if self._command is None:
            raise LocalProtocolError("begin_idle() without a command")
        self._mode = _IDLE
        self.send(b"+ idling\r\n")

    def compress(self) -> None:
        """After complete(): from here on both directions are compressed (RFC 4978 §3)."""
        if self._deflate is not None:
            raise LocalProtocolError("compression is active")
        self._deflate = Deflate(self.settings.compress_level)
        self._clear, self._out = self._out, []
        self._deflate.feed(self._reader.take_rest())

    def uncompress(self) -> None:
        """After complete(): what is queued is the last that goes out compressed, and comes in so (RFC 8437 §4.1)."""
        if self._deflate is None:
            raise LocalProtocolError("compression is not active")
        self._out = self.data_to_send()
        self._reader.feed(self._deflate.take_rest())
        self._deflate = None
        self.queued_octets = sum(map(len, self._out))

    @property
    def compressed(self) -> bool:
        return self._deflate is not None

    def tls_started(self) -> None:
        """Forget what the client said in the clear (RFC 9051 §6.2.1)."""
        self._reader.clear()
        self._mode = _COMMANDS
        self._command = None

    def stop(self, last: bytes = b"") -> None:
        """Say a last line, read nothing more; close once what is queued is sent."""
        if last:
            self.send(last)
        self.closing = True
        self._mode = _STOPPED
        self._pending = False
        self._command = None
        self._reader.clear()


_GO_AHEAD = b"+ OK\r\n"
_COMPLETED = b" OK Completed\r\n"
