"""The server side of POP3: octets in, events out, answers in, octets out.

Owns      framing, the order of commands, SASL framing, the marks of deletion, the queue of responses
Flow      receive_data() → next_event() until None; each event is answered once, by the method its line names;
          data_to_send() gives the responses of the whole batch, long listings in slices of OUT_OCTETS
Events    tuples (kind, a, b); see the constants.  What breaks the protocol is answered here and never surfaces,
          except as a count in `errors`
Limits    command and SASL line length, errors, unread input: from Settings; a listing is never in memory whole
Errors    LocalProtocolError when the caller breaks the contract; nothing the peer sends raises
Security  octets that follow STLS in the same read are refused, not buffered (CVE-2011-0411); passwords only where
          Settings allow them; messages are removed by QUIT alone (RFC 1939 §6)
Standards RFC 1939, RFC 2449 (CAPA, response codes, PIPELINING), RFC 2595 (STLS), RFC 3206, RFC 5034 (AUTH),
          RFC 6856 (UTF8, LANG)
"""

from __future__ import annotations

from array import array
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress

from gateway._native import DataEncoder, find_line
from gateway.protocol.smtp_server import LocalProtocolError

# Event kinds, and the methods that answer them; every one may be answered by refuse() instead.
LOGIN = 0  # a: user, b: password: logged_in()
APOP = 1  # a: user, b: digest as sent: logged_in()
AUTH = 2  # a: mechanism, b: initial response or None: challenge() or logged_in()
AUTH_RESPONSE = 3  # a: response: challenge() or logged_in()
AUTH_CANCELLED = 4  # answered here: the exchange is to be forgotten
STLS = 5  # accept_tls(), and tls_started() after the handshake
TABLE = 6  # what is in the maildrop: table()
RETRIEVE = 7  # a: index, b: lines of the body (TOP) or None (RETR): begin_content(), content()…, end_content()
UPDATE = 8  # a: indices of the deleted messages, ascending: updated()
QUIT = 9  # answered here: the caller only closes

Event = tuple[int, object, object]

_AUTHORIZATION, _SASL, _TRANSACTION, _STOPPED = range(4)

OUT_OCTETS = 65_536  # of a listing at once
_LISTING_LINES = 1024  # rendered at once

Buffer = bytes | memoryview


class Settings:
    """What one listener lets its clients do; shared by all its sessions, the CAPA replies are rendered once."""

    __slots__ = (
        "_capa",
        "errors_max",
        "hostname",
        "implementation",
        "line_octets",
        "login_delay_s",
        "sasl_octets",
        "stls",
    )

    def __init__(
        self,
        *,
        hostname: str,
        implementation: str,
        stls: bool = False,
        login_delay_s: int = 0,
        line_octets: int = 512,
        sasl_octets: int = 12_288,
        errors_max: int = 20,
    ) -> None:
        self.hostname = hostname
        self.implementation = implementation
        self.stls = stls
        self.login_delay_s = login_delay_s
        self.line_octets = line_octets  # RFC 2449 §4 asks for 255; names and passwords in UTF-8 are longer
        self.sasl_octets = sasl_octets  # RFC 5034 §4
        self.errors_max = errors_max
        self._capa: dict[tuple[bool, bool, tuple[str, ...], bool], bytes] = {}

    def capabilities(
        self, tls: bool, passwords: bool, mechanisms: tuple[str, ...], authenticated: bool
    ) -> bytes:
        """The whole reply to CAPA (RFC 2449 §5); SASL and STLS only while they can be used."""
        key = (tls, passwords, mechanisms, authenticated)
        rendered = self._capa.get(key)
        if rendered is None:
            lines = ["+OK Capability list follows", "TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING"]
            # RFC 6856 §2.2: USER behind UTF8 says that names and passwords may be UTF-8
            lines += ["USER", "UTF8 USER"] if passwords else ["UTF8"]
            lines += ["LANG", "EXPIRE NEVER"]  # RFC 2449 §6.7: nothing goes unless the client deletes it
            if self.login_delay_s:
                lines.append(f"LOGIN-DELAY {self.login_delay_s}")
            if mechanisms:
                lines.append("SASL " + " ".join(mechanisms))
            if self.stls and not tls:
                lines.append("STLS")
            if authenticated:  # RFC 2449 §6.9: not before, lest it helps somebody choose an attack
                lines.append("IMPLEMENTATION " + self.implementation)
            rendered = self._capa[key] = ("\r\n".join(lines) + "\r\n.\r\n").encode()
        return rendered


class Pop3ServerMachine:
    """One session's protocol state.  Never touches a socket; never waits."""

    __slots__ = (
        "_content",
        "_data",
        "_deleted",
        "_encoder",
        "_listing",
        "_mode",
        "_out",
        "_pending",
        "_pos",
        "_resume",
        "_sizes",
        "_skipping",
        "_unique_id",
        "_user",
        "closing",
        "deleted_count",
        "deleted_octets",
        "errors",
        "maildrop_messages",
        "maildrop_octets",
        "mechanisms",
        "passwords",
        "queued_octets",
        "settings",
        "timestamp",
        "tls",
        "utf8",
    )

    def __init__(self, settings: Settings, *, tls: bool = False, timestamp: str = "") -> None:
        """timestamp: the msg-id of the greeting that APOP's digest covers (RFC 1939 §7), "" without APOP."""
        self.settings = settings
        self.tls = tls
        self.timestamp = timestamp
        self.passwords = False  # USER and PASS may be sent; the caller sets it, again after tls_started()
        self.mechanisms: tuple[str, ...] = ()  # of SASL, likewise
        self.utf8 = False  # the client takes internationalized headers (RFC 6856 §2.1)
        self.errors = 0
        self.closing = False  # the connection ends as soon as data_to_send() is out
        self.maildrop_messages = self.maildrop_octets = 0
        self.deleted_count = self.deleted_octets = 0
        self.queued_octets = 0
        self._data = b""
        self._pos = 0
        self._skipping = False  # the rest of a line that was too long
        self._mode = _AUTHORIZATION
        self._pending = -1  # the event that waits for its answer, -1: none
        self._out: list[Buffer] = []
        self._listing: Iterator[bytes] | None = None
        self._user: str | None = None
        self._sizes: Sequence[int] | None = None  # None: not asked for yet
        self._unique_id: Callable[[int], bytes] = _no_id
        self._deleted = bytearray()
        self._resume: tuple[str, list[str]] | None = None  # the command that needed the table
        self._encoder: DataEncoder | None = None  # while content is being sent

    # -- octets ------------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        if self._pos < len(self._data):
            data = self._data[self._pos :] + data
        self._data = data
        self._pos = 0

    @property
    def unread_octets(self) -> int:
        """Input that no event has covered yet: the caller pauses reading when this grows while a decision waits."""
        return len(self._data) - self._pos

    @property
    def authenticated(self) -> bool:
        return self._mode == _TRANSACTION

    @property
    def listing(self) -> bool:
        """A listing goes on: data_to_send() has more, and no event comes before its end."""
        return self._listing is not None

    def data_to_send(self) -> list[Buffer]:
        """Responses since the last call, for writelines(); of a listing the next slice."""
        out, self._out = self._out, []
        self.queued_octets = 0
        if self._listing is not None:
            octets = 0
            for piece in self._listing:
                out.append(piece)
                octets += len(piece)
                if octets >= OUT_OCTETS:
                    return out
            self._listing = None
        return out

    # -- events ------------------------------------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        """The next thing to decide; None when more octets are needed or a listing has to go out first."""
        if self._pending >= 0:
            raise LocalProtocolError(f"event {self._pending} has no answer yet")
        while self._listing is None and self._mode != _STOPPED:
            if self.errors > self.settings.errors_max:
                self.stop(b"-ERR Too many errors\r\n")
                break
            line = self._next_line()
            if line is None:
                break
            event = self._on_sasl(line) if self._mode == _SASL else self._on_command(line)
            if event is not None:
                return event
        return None

    def _next_line(self) -> bytes | None:
        """The next line without its end; _TOO_LONG for one over the limit, whose rest is skipped."""
        limit = self.settings.sasl_octets if self._mode == _SASL else self.settings.line_octets
        while self._pos < len(self._data):
            if self._skipping:
                end = self._data.find(b"\n", self._pos) + 1
                self._pos = end or len(self._data)
                self._skipping = not end
                continue
            end = find_line(self._data, self._pos, limit)
            if end == -1:
                return None
            if end == -2:
                self._skipping = True
                return _TOO_LONG
            line = self._data[self._pos : end - 1]
            self._pos = end
            # RFC 1939 §3 has CRLF; a bare LF is what people type, and means the same here: no line is content.
            return line[:-1] if line.endswith(b"\r") else line
        return None

    def _on_command(self, line: bytes) -> Event | None:
        if line is _TOO_LONG:
            self._err("Line too long")
            return None
        try:
            text = line.decode()
        except UnicodeDecodeError:
            self._err("Not UTF-8")
            return None
        keyword, _, argument = text.partition(" ")
        keyword = keyword.upper()
        state = _IN_TRANSACTION if self._mode == _TRANSACTION else _IN_AUTHORIZATION
        handler = state.get(keyword)
        if handler is None:
            known = keyword in _IN_TRANSACTION or keyword in _IN_AUTHORIZATION
            self._err("Not now" if known else "Unknown command")
            return None
        return handler(self, argument)

    # -- answers -----------------------------------------------------------------------------------------------------

    def greet(self, refusal: str = "") -> None:
        """The line that opens the session; refusal: the one that ends it at once, its response code included."""
        if refusal:
            self.stop(f"-ERR {refusal}\r\n".encode())
            return
        stamp = f" {self.timestamp}" if self.timestamp else ""
        self._say(f"+OK {self.settings.hostname} POP3 server ready{stamp}\r\n".encode())

    def refuse(self, text: str, *, error: bool = True) -> None:
        """-ERR to the event that waits; text may begin with a response code (RFC 2449 §8, RFC 3206).

        error: counts against the session's errors.  After it the session is where it was before the command.
        """
        self._take(self._pending)
        if self._mode == _SASL:
            self._mode = _AUTHORIZATION
        self._resume = None
        self.errors += error
        self._say(f"-ERR {text}\r\n".encode())

    def challenge(self, octets: bytes) -> None:
        """Answer AUTH or AUTH_RESPONSE: the exchange goes on (RFC 5034 §4)."""
        self._take(AUTH, AUTH_RESPONSE)
        self._mode = _SASL
        self._say(b"+ " + b2a_base64(octets, newline=False) + b"\r\n")

    def logged_in(self, messages: int, octets: int) -> None:
        """Answer LOGIN, APOP, AUTH or AUTH_RESPONSE: the maildrop is locked and the session's (RFC 1939 §4)."""
        self._take(LOGIN, APOP, AUTH, AUTH_RESPONSE)
        self._mode = _TRANSACTION
        self._user = None
        self.maildrop_messages, self.maildrop_octets = messages, octets
        self._say(b"+OK %d messages (%d octets)\r\n" % (messages, octets))

    def accept_tls(self) -> None:
        self._take(STLS)
        self._mode = _STOPPED
        self._say(b"+OK Begin TLS negotiation\r\n")

    def tls_started(self) -> None:
        """Forget what the client said in the clear (RFC 2595 §4)."""
        self.tls = True
        self._mode = _AUTHORIZATION
        self._user = None
        self.utf8 = False
        self._data = b""
        self._pos = 0

    def table(self, sizes: Sequence[int], unique_id: Callable[[int], bytes]) -> Event | None:
        """Answer TABLE and go on with the command that asked.

        sizes: octets of each message with CRLF line ends, in the order of message numbers; unique_id: of an index,
        1 to 70 printable octets (RFC 1939 §7).  Returns the event that the command leads to, if any.
        """
        self._take(TABLE)
        if self._resume is None:
            raise LocalProtocolError("table() without a command that asked")
        self._sizes = sizes
        self._unique_id = unique_id
        self._deleted = bytearray(len(sizes))
        self.maildrop_messages, self.maildrop_octets = len(sizes), sum(sizes)
        (keyword, arguments), self._resume = self._resume, None
        return self._with_table(keyword, arguments)

    def begin_content(self, octets: int) -> None:
        """Answer RETRIEVE: content() follows; octets as in the table, for a TOP those of the whole message."""
        self._take(RETRIEVE)
        self._pending = RETRIEVE
        self._encoder = DataEncoder(repair=False)
        self._say(b"+OK %d octets\r\n" % octets)

    def content(self, slices: Iterable[Buffer]) -> None:
        """The next octets of the message, dots not stuffed yet.  The buffers live until they are sent."""
        if self._encoder is None:
            raise LocalProtocolError("content() without begin_content()")
        for piece in self._encoder.encode(slices):
            self._out.append(piece)
            self.queued_octets += len(piece)

    def end_content(self) -> None:
        """The message is complete: the next command may come."""
        if self._encoder is None:
            raise LocalProtocolError("end_content() without begin_content()")
        self._say(self._encoder.finish())
        self._encoder = None
        self._pending = -1

    def updated(self, text: str) -> None:
        """Answer UPDATE: the deleted messages are gone (RFC 1939 §6)."""
        self._take(UPDATE)
        self.stop(f"+OK {text}\r\n".encode())

    def update_failed(self, text: str) -> None:
        """Answer UPDATE: some are still there; the session ends all the same."""
        self._take(UPDATE)
        self.stop(f"-ERR {text}\r\n".encode())

    def stop(self, last: bytes = b"") -> None:
        """Say a last line, read nothing more; close once what is queued is sent."""
        if last:
            self._say(last)
        self.closing = True
        self._mode = _STOPPED
        self._pending = -1
        self._pos = len(self._data)

    # -- AUTHORIZATION (RFC 1939 §4, §7) -----------------------------------------------------------------------------

    def _on_user(self, argument: str) -> None:
        if not self.passwords:
            self._err("[AUTH] Not without TLS: STLS first")
        elif not argument:
            self._err("USER needs a name")
        elif not (argument.isascii() or self.utf8):
            self._err("UTF8 first")  # RFC 6856 §2.2
        else:
            # RFC 1939 §7 lets us say yes to whoever comes: who exists is told by nobody.
            self._user = argument
            self._say(b"+OK Send PASS\r\n")

    def _on_pass(self, argument: str) -> Event | None:
        if self._user is None:
            self._err("USER first")
            return None
        user, self._user = self._user, None
        if not argument:
            self._err("PASS needs a password")
            return None
        return self._wait(LOGIN, user, argument)  # RFC 1939 §7: blanks belong to the password

    def _on_apop(self, argument: str) -> Event | None:
        name, _, digest = argument.rpartition(" ")
        if not self.timestamp:
            self._err("APOP is not offered")
        elif not name or len(digest) != 32 or set(digest) - _HEX:
            self._err("APOP needs a name and an MD5 digest")
        else:
            return self._wait(APOP, name, digest)
        return None

    def _on_auth(self, argument: str) -> Event | None:
        words = argument.split(" ")
        if not argument:  # what clients older than CAPA send to learn the mechanisms
            lines = ["+OK", *self.mechanisms, "."]
            self._say(("\r\n".join(lines) + "\r\n").encode())
        elif words[0].upper() not in self.mechanisms:
            self._err("[AUTH] Mechanism not available" + ("" if self.tls else " here: STLS first"))
        elif len(words) > 2:
            self._err("AUTH takes a mechanism and one response")
        else:
            initial = None
            if len(words) == 2:
                initial = b"" if words[1] == "=" else _decode(words[1].encode())  # RFC 5034 §4
                if initial is None:
                    self._err("[AUTH] Not base64")
                    return None
            return self._wait(AUTH, words[0].upper(), initial)
        return None

    def _on_sasl(self, line: bytes) -> Event:
        response = _decode(line)
        if response is not None:
            return self._wait(AUTH_RESPONSE, response)
        self._mode = _AUTHORIZATION
        if line is _TOO_LONG:
            self._err("[AUTH] Response too long")
        else:  # RFC 5034 §4: "*" cancels
            self._err("[AUTH] Cancelled" if line == b"*" else "[AUTH] Not base64")
        return (AUTH_CANCELLED, None, None)

    def _on_stls(self, argument: str) -> Event | None:
        if not self.settings.stls or self.tls:
            self._err("TLS is active" if self.tls else "STLS is not offered")
        elif argument:
            self._err("STLS takes no argument")
        elif self._pos < len(self._data):
            self._pos = len(self._data)
            self._err("STLS is the last command before the handshake")
        else:
            return self._wait(STLS)
        return None

    def _on_quit_early(self, _argument: str) -> Event:
        self.stop(b"+OK Bye\r\n")
        return (QUIT, None, None)

    # -- in both states ----------------------------------------------------------------------------------------------

    def _on_capa(self, _argument: str) -> None:
        self._say(
            self.settings.capabilities(
                self.tls, self.passwords, self.mechanisms, self._mode == _TRANSACTION
            )
        )

    def _on_utf8(self, argument: str) -> None:
        if argument:
            self._err("UTF8 takes no argument")
        else:
            self.utf8 = True
            self._say(b"+OK UTF8 enabled\r\n")

    def _on_lang(self, argument: str) -> None:
        if not argument:  # RFC 6856 §3.2: the list
            self._say(b"+OK Language listing follows:\r\nen English\r\ni-default English\r\n.\r\n")
        elif argument.lower() in ("*", "en", "i-default"):
            self._say(b"+OK en Language is English\r\n")
        else:
            self._err("Only en is spoken here")

    # -- TRANSACTION (RFC 1939 §5) -----------------------------------------------------------------------------------

    def _on_stat(self, _argument: str) -> None:
        self._say(
            b"+OK %d %d\r\n"
            % (self.maildrop_messages - self.deleted_count, self.maildrop_octets - self.deleted_octets)
        )

    def _on_noop(self, _argument: str) -> None:
        self._say(b"+OK\r\n")

    def _on_rset(self, _argument: str) -> None:
        self._deleted = bytearray(len(self._deleted))
        self.deleted_count = self.deleted_octets = 0
        self._say(b"+OK %d messages (%d octets)\r\n" % (self.maildrop_messages, self.maildrop_octets))

    def _on_last(self, _argument: str) -> None:
        self._err("LAST went with RFC 1460; use UIDL")

    def _on_list(self, argument: str) -> Event | None:
        return self._ask("LIST", argument, 0, 1)

    def _on_uidl(self, argument: str) -> Event | None:
        return self._ask("UIDL", argument, 0, 1)

    def _on_retr(self, argument: str) -> Event | None:
        return self._ask("RETR", argument, 1, 1)

    def _on_dele(self, argument: str) -> Event | None:
        return self._ask("DELE", argument, 1, 1)

    def _on_top(self, argument: str) -> Event | None:
        return self._ask("TOP", argument, 2, 2)

    def _on_quit(self, _argument: str) -> Event:
        deleted = self._deleted
        indices = array("I", compress(range(len(deleted)), deleted) if self.deleted_count else ())
        return self._wait(UPDATE, indices)

    def _ask(self, keyword: str, argument: str, least: int, most: int) -> Event | None:
        """A command about messages: its arguments are numbers, and it needs the table."""
        words = argument.split()
        if not least <= len(words) <= most:
            self._err(f"{keyword} takes {'a message number' if most == 1 else 'a message number and a count of lines'}")
            return None
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) < 11):
                self._err("Not a number")
                return None
        if self._sizes is None:
            self._resume = (keyword, words)
            return self._wait(TABLE)
        return self._with_table(keyword, words)

    def _with_table(self, keyword: str, words: list[str]) -> Event | None:
        sizes = self._sizes
        assert sizes is not None
        if not words:
            self._say(
                b"+OK %d messages (%d octets)\r\n"
                % (len(sizes) - self.deleted_count, self.maildrop_octets - self.deleted_octets)
            )
            self._listing = self._list_sizes(sizes) if keyword == "LIST" else self._list_unique_ids()
            return None
        index = int(words[0]) - 1
        if not 0 <= index < len(sizes):
            self._err(f"No such message: there are {len(sizes)}")
        elif self._deleted[index]:
            self._err("That message is deleted")
        elif keyword == "LIST":
            self._say(b"+OK %d %d\r\n" % (index + 1, sizes[index]))
        elif keyword == "UIDL":
            self._say(b"+OK %d %b\r\n" % (index + 1, self._unique_id(index)))
        elif keyword == "DELE":
            self._deleted[index] = 1
            self.deleted_count += 1
            self.deleted_octets += sizes[index]
            self._say(b"+OK Deleted\r\n")
        else:
            return self._wait(RETRIEVE, index, int(words[1]) if keyword == "TOP" else None)
        return None

    def _list_sizes(self, sizes: Sequence[int]) -> Iterator[bytes]:
        return self._list(lambda start, end: [
            b"%d %d\r\n" % (i + 1, sizes[i]) for i in range(start, end) if not self._deleted[i]
        ])

    def _list_unique_ids(self) -> Iterator[bytes]:
        return self._list(lambda start, end: [
            b"%d %b\r\n" % (i + 1, self._unique_id(i)) for i in range(start, end) if not self._deleted[i]
        ])

    def _list(self, render: Callable[[int, int], list[bytes]]) -> Iterator[bytes]:
        count = len(self._deleted)
        for start in range(0, count, _LISTING_LINES):
            yield b"".join(render(start, min(start + _LISTING_LINES, count)))
        yield b".\r\n"

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _say(self, octets: bytes) -> None:
        self._out.append(octets)
        self.queued_octets += len(octets)

    def _err(self, text: str) -> None:
        self.errors += 1
        self._say(f"-ERR {text}\r\n".encode())

    def _wait(self, kind: int, a: object = None, b: object = None) -> Event:
        self._pending = kind
        return (kind, a, b)

    def _take(self, *kinds: int) -> None:
        if self._pending not in kinds or self._pending < 0 or self._encoder is not None:
            raise LocalProtocolError(f"event {self._pending} is not answered like this")
        self._pending = -1


def _no_id(_index: int) -> bytes:
    return b""


def _decode(octets: bytes) -> bytes | None:
    try:
        return a2b_base64(octets, strict_mode=True)
    except (Base64Error, ValueError):
        return None


_TOO_LONG = b"\n"  # no line has one
_HEX = frozenset("0123456789abcdefABCDEF")

_Handler = Callable[[Pop3ServerMachine, str], "Event | None"]
_IN_BOTH: dict[str, _Handler] = {
    "CAPA": Pop3ServerMachine._on_capa,
    "LANG": Pop3ServerMachine._on_lang,
}
_IN_AUTHORIZATION: dict[str, _Handler] = _IN_BOTH | {
    "USER": Pop3ServerMachine._on_user,
    "PASS": Pop3ServerMachine._on_pass,
    "APOP": Pop3ServerMachine._on_apop,
    "AUTH": Pop3ServerMachine._on_auth,
    "STLS": Pop3ServerMachine._on_stls,
    "UTF8": Pop3ServerMachine._on_utf8,  # RFC 6856 §2: in this state only
    "QUIT": Pop3ServerMachine._on_quit_early,
}
_IN_TRANSACTION: dict[str, _Handler] = _IN_BOTH | {
    "STAT": Pop3ServerMachine._on_stat,
    "LIST": Pop3ServerMachine._on_list,
    "UIDL": Pop3ServerMachine._on_uidl,
    "RETR": Pop3ServerMachine._on_retr,
    "TOP": Pop3ServerMachine._on_top,
    "DELE": Pop3ServerMachine._on_dele,
    "RSET": Pop3ServerMachine._on_rset,
    "NOOP": Pop3ServerMachine._on_noop,
    "LAST": Pop3ServerMachine._on_last,
    "QUIT": Pop3ServerMachine._on_quit,
}
