"""The server side of POP2: octets in, events out, answers in, octets out.

Owns      framing, the order of commands, the position in the folder, the marks of deletion, the queue of responses
Flow      receive_data() → next_event() until None; each event is answered once, by the method its line names;
          data_to_send() gives the responses of the whole batch
Events    tuples (kind, a, b); see the constants.  RFC 937 closes the connection on every error: so does this
Limits    line length and unread input from Settings
Errors    LocalProtocolError when the caller breaks the contract; nothing the peer sends raises
Security  the protocol knows neither TLS upgrade nor SASL: the password travels as the connection does.  Messages are
          removed when the folder is left by FOLD or QUIT, not when the connection breaks
Standards RFC 937
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gateway._native import find_line
from gateway.protocol.smtp_server import LocalProtocolError

# Event kinds, and the methods that answer them; every one may be answered by refuse() instead, which ends the session.
LOGIN = 0  # a: user, b: password: opened()
FOLD = 1  # a: name of the mailbox; leave it with the marks of `deleted` first: opened()
RETRIEVE = 2  # a: index: content() with exactly the octets announced
LEAVE = 3  # QUIT with marks in `deleted`: left()
QUIT = 4  # answered here: the caller only closes

Event = tuple[int, object, object]
Buffer = bytes | memoryview

_AUTHORIZATION, _NUMBER, _SIZE, _TRANSFER, _STOPPED = range(5)  # RFC 937 names: CALL, NMBR, SIZE, XFER


class Pop2ServerMachine:
    """One session's protocol state.  Never touches a socket; never waits."""

    __slots__ = (
        "_data",
        "_mode",
        "_out",
        "_pending",
        "_pos",
        "closing",
        "deleted",
        "errors",
        "hostname",
        "index",
        "line_octets",
        "queued_octets",
        "sizes",
    )

    def __init__(self, hostname: str, *, line_octets: int = 512) -> None:
        self.hostname = hostname
        self.line_octets = line_octets
        self.errors = 0
        self.closing = False  # the connection ends as soon as data_to_send() is out
        self.queued_octets = 0
        self.sizes: Sequence[int] = ()  # octets of each message in the open folder
        self.index = 0  # the current message
        self.deleted: set[int] = set()  # indices acknowledged by ACKD
        self._data = b""
        self._pos = 0
        self._mode = _AUTHORIZATION
        self._pending = -1
        self._out: list[Buffer] = []

    # -- octets ------------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        if self._pos < len(self._data):
            data = self._data[self._pos :] + data
        self._data = data
        self._pos = 0

    @property
    def unread_octets(self) -> int:
        return len(self._data) - self._pos

    @property
    def authenticated(self) -> bool:
        return self._mode in (_NUMBER, _SIZE, _TRANSFER)

    @property
    def listing(self) -> bool:
        return False  # there are none in this protocol

    def data_to_send(self) -> list[Buffer]:
        out, self._out = self._out, []
        self.queued_octets = 0
        return out

    # -- events ------------------------------------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        """The next thing to decide, or None when more octets are needed."""
        if self._pending >= 0:
            raise LocalProtocolError(f"event {self._pending} has no answer yet")
        while self._mode != _STOPPED:
            end = find_line(self._data, self._pos, self.line_octets)
            if end == -1:
                break
            if end == -2:
                self._fail("Line too long")
                break
            line = self._data[self._pos : end - 1].removesuffix(b"\r")
            self._pos = end
            try:
                keyword, _, argument = line.decode().strip().partition(" ")
            except UnicodeDecodeError:
                self._fail("Not UTF-8")
                break
            event = _HANDLERS.get(keyword.upper(), Pop2ServerMachine._on_unknown)(self, argument.strip())
            if event is not None:
                return event
        return None

    # -- answers -----------------------------------------------------------------------------------------------------

    def greet(self, refusal: str = "") -> None:
        if refusal:
            self.stop(f"- {refusal}\r\n".encode())
        else:
            self._say(f"+ POP2 {self.hostname} server ready\r\n".encode())

    def opened(self, sizes: Sequence[int]) -> None:
        """Answer LOGIN or FOLD: the folder's messages; an unknown folder is an empty one (RFC 937)."""
        self._take(LOGIN, FOLD)
        self.sizes = sizes
        self.index = 0
        self.deleted = set()
        self._mode = _NUMBER
        self._say(b"#%d messages\r\n" % len(sizes))

    def content(self, slices: Iterable[Buffer]) -> None:
        """The next octets of the message that RETRIEVE asked for, as they are: RFC 937 counts instead of marking."""
        if self._pending != RETRIEVE:
            raise LocalProtocolError("content() outside RETRIEVE")
        for piece in slices:
            self._out.append(piece)
            self.queued_octets += len(piece)

    def end_content(self) -> None:
        """All octets announced were given."""
        self._take(RETRIEVE)
        self._mode = _TRANSFER

    def left(self) -> None:
        """Answer LEAVE: the marked messages are gone."""
        self._take(LEAVE)
        self.stop(b"+ Bye\r\n")

    def refuse(self, text: str) -> None:
        """An error to the event that waits; it ends the session."""
        if self._pending < 0:
            raise LocalProtocolError("refuse() without an event")
        self._fail(text)

    def stop(self, last: bytes = b"") -> None:
        """Say a last line, read nothing more; close once what is queued is sent."""
        if last:
            self._say(last)
        self.closing = True
        self._mode = _STOPPED
        self._pending = -1
        self._pos = len(self._data)

    # -- commands ----------------------------------------------------------------------------------------------------

    def _on_helo(self, argument: str) -> Event | None:
        user, _, password = argument.partition(" ")
        if self._mode != _AUTHORIZATION:
            self._fail("HELO comes first and once")
        elif not user or not password:
            self._fail("HELO needs a user and a password")
        else:
            return self._wait(LOGIN, user, password)
        return None

    def _on_fold(self, argument: str) -> Event | None:
        if self._mode not in (_NUMBER, _SIZE):
            self._fail("FOLD comes behind HELO, READ or an acknowledgement")
        elif not argument:
            self._fail("FOLD needs a mailbox")
        else:
            return self._wait(FOLD, argument)
        return None

    def _on_read(self, argument: str) -> None:
        if self._mode not in (_NUMBER, _SIZE):
            self._fail("READ comes behind HELO, FOLD, READ or an acknowledgement")
        elif argument and not (argument.isascii() and argument.isdigit() and 0 < len(argument) < 11):
            self._fail("READ takes a message number")
        else:
            if argument:
                self.index = int(argument) - 1
            self._say_size()

    def _on_retr(self, _argument: str) -> Event | None:
        if self._mode != _SIZE:
            self._fail("RETR comes behind READ or an acknowledgement")
        elif not self._size():
            self._fail("There is no such message")
        else:
            return self._wait(RETRIEVE, self.index)
        return None

    def _on_acks(self, _argument: str) -> None:
        self._acknowledge(keep=True, step=1)

    def _on_ackd(self, _argument: str) -> None:
        self._acknowledge(keep=False, step=1)

    def _on_nack(self, _argument: str) -> None:
        self._acknowledge(keep=True, step=0)

    def _acknowledge(self, *, keep: bool, step: int) -> None:
        if self._mode != _TRANSFER:
            self._fail("An acknowledgement comes behind RETR")
            return
        if not keep:
            self.deleted.add(self.index)
        self.index += step
        self._say_size()

    def _on_quit(self, _argument: str) -> Event:
        if self.deleted and self._mode in (_NUMBER, _SIZE, _TRANSFER):
            return self._wait(LEAVE)
        self.stop(b"+ Bye\r\n")
        return (QUIT, None, None)

    def _on_unknown(self, _argument: str) -> None:
        self._fail("Unknown command")

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _size(self) -> int:
        """Octets of the current message; 0: there is none, or it is deleted."""
        if not 0 <= self.index < len(self.sizes) or self.index in self.deleted:
            return 0
        return self.sizes[self.index]

    def _say_size(self) -> None:
        self._mode = _SIZE
        self._say(b"=%d octets\r\n" % self._size())

    def _say(self, octets: bytes) -> None:
        self._out.append(octets)
        self.queued_octets += len(octets)

    def _fail(self, text: str) -> None:
        self.errors += 1
        self.stop(f"- {text}\r\n".encode())

    def _wait(self, kind: int, a: object = None, b: object = None) -> Event:
        self._pending = kind
        return (kind, a, b)

    def _take(self, *kinds: int) -> None:
        if self._pending not in kinds:
            raise LocalProtocolError(f"event {self._pending} is not answered like this")
        self._pending = -1


_HANDLERS: dict[str, Callable[[Pop2ServerMachine, str], Event | None]] = {
    "HELO": Pop2ServerMachine._on_helo,
    "FOLD": Pop2ServerMachine._on_fold,
    "READ": Pop2ServerMachine._on_read,
    "RETR": Pop2ServerMachine._on_retr,
    "ACKS": Pop2ServerMachine._on_acks,
    "ACKD": Pop2ServerMachine._on_ackd,
    "NACK": Pop2ServerMachine._on_nack,
    "QUIT": Pop2ServerMachine._on_quit,
}
