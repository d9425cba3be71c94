"""The server side of SMTP, ESMTP and LMTP: octets in, events out, replies in, octets out.

Owns      framing, the order of commands, ESMTP parameters, the position in DATA and BDAT; the reply queue
Flow      receive_data() → next_event() until None; for each event exactly one reply()/refuse(), or, for CONTENT,
          none; data_to_send() gives the replies of the whole batch at once (RFC 2920 §3.2)
Events    tuples (kind, a, b); see the constants.  What breaks the protocol is answered here and never surfaces,
          except as a count in `errors`
Limits    line length, parameters, recipients, message size, unread input: all from Settings
Errors    LocalProtocolError when the caller breaks the contract; nothing the peer sends raises
Security  octets that follow STARTTLS in the same read are refused, not buffered (RFC 3207 §6, CVE-2011-0411)
Standards RFC 5321, RFC 1870, RFC 2033, RFC 2034, RFC 2920, RFC 3030, RFC 3207, RFC 3461, RFC 4954,
          RFC 6152, RFC 6531, RFC 9422
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from typing import Any

from gateway import _native as smtp
from gateway._native import DataDecoder
from gateway.mail import envelope as env
from gateway.mail import replies
from gateway.mail.reply import Reply
from gateway.protocol.esmtp import (
    XCLIENT_ATTRIBUTES,
    MailParameters,
    parse_mail_parameters,
    parse_rcpt_parameters,
    parse_xclient,
)

# Event kinds.  Each must be answered with reply() unless stated otherwise.
HELLO = 0  # a: verb as written in the log ("EHLO"), b: argument
MAIL = 1  # a: reverse-path, b: MailParameters
RCPT = 2  # a: env.Recipient
DATA = 3  # answer with start_data() or reply(refusal)
CONTENT = 4  # a: Chunk of a message that is still arriving; no reply
END_OF_DATA = 5  # the content is complete: decoder.take(all=True), decoder.facts()
VRFY = 6  # a: argument, b: "VRFY" | "EXPN"
STARTTLS = 7  # reply(220) and then tls_started(), or reply(454)
QUIT = 8  # answered here; the caller only closes
XCLIENT = 9  # a: dict of attributes; reply(220) resets the session (the greeting is sent again)
RESET = 10  # a transaction was dropped (RSET, EHLO within one); answered here: no reply

AUTH = 11  # a: mechanism, b: initial response or None: challenge(), or reply(235) or a refusal
AUTH_RESPONSE = 12  # a: the client's response; the same answers
AUTH_CANCELLED = 13  # answered here: the exchange is to be forgotten; no reply

_COMMAND, _DATA, _BDAT, _SKIP_LINE, _SKIP_BDAT, _STOPPED, _AUTH = range(7)

AUTH_LINE_OCTETS = 12_288 + 2  # RFC 4954 §4: the most a mechanism needs, and CRLF

NO_MAIL_PARAMETERS = MailParameters()
NO_RECIPIENT = env.Recipient("")


class LocalProtocolError(RuntimeError):
    """The caller used the machine against its contract: a bug of ours."""


class Settings:
    """What one listener lets its clients do.  Shared by all its sessions; the EHLO replies are rendered once."""

    __slots__ = (
        "_ehlo",
        "auth",
        "chunk_octets",
        "dsn",
        "errors_max",
        "hostname",
        "junk_commands_max",
        "line_octets",
        "lmtp",
        "max_message_octets",
        "normalize",
        "recipients_max",
        "starttls",
        "transactions_max",
        "utf8",
        "xclient",
    )

    def __init__(
        self,
        *,
        hostname: str,
        lmtp: bool = False,
        starttls: bool = False,
        xclient: bool = False,
        dsn: bool = True,
        auth: bool = False,
        max_message_octets: int = 50 << 20,
        line_octets: int = 2048,
        recipients_max: int = 1000,
        transactions_max: int = 0,
        junk_commands_max: int = 100,
        errors_max: int = 20,
        normalize: bool = True,
        chunk_octets: int = 262_144,
    ) -> None:
        self.hostname = hostname
        self.lmtp = lmtp
        self.starttls = starttls
        self.xclient = xclient
        self.dsn = dsn  # False: nobody here sends reports (what a client asks for is passed on all the same)
        self.auth = auth  # a submission service: mail is taken after AUTH alone (RFC 6409 §4.3)
        self.max_message_octets = max_message_octets
        self.line_octets = line_octets
        self.recipients_max = recipients_max
        self.transactions_max = transactions_max
        self.junk_commands_max = junk_commands_max
        self.errors_max = errors_max
        self.normalize = normalize
        self.chunk_octets = chunk_octets
        self._ehlo: dict[tuple[bool, bool, tuple[str, ...]], bytes] = {}

    def ehlo_reply(self, tls: bool, xclient: bool, mechanisms: tuple[str, ...] = ()) -> bytes:
        """The whole reply to EHLO/LHLO; `tls`: already encrypted, so STARTTLS is not offered again (RFC 3207 §4.2)."""
        rendered = self._ehlo.get((tls, xclient, mechanisms))
        if rendered is None:
            lines = [self.hostname, "PIPELINING", f"SIZE {self.max_message_octets}"]
            if self.starttls and not tls:
                lines.append("STARTTLS")
            limits = f"LIMITS RCPTMAX={self.recipients_max}"  # RFC 9422 §4
            if self.transactions_max:
                limits += f" MAILMAX={self.transactions_max}"
            lines += ["ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", limits]
            if self.dsn:
                lines.append("DSN")
            if mechanisms:
                lines.append("AUTH " + " ".join(mechanisms))  # RFC 4954 §3
            if xclient:
                lines.append("XCLIENT " + " ".join(XCLIENT_ATTRIBUTES))
            last = len(lines) - 1
            rendered = "".join(
                f"250{' ' if i == last else '-'}{x}\r\n" for i, x in enumerate(lines)
            ).encode()
            self._ehlo[tls, xclient, mechanisms] = rendered
        return rendered


class SmtpServerMachine:
    """One session's protocol state.  Never touches a socket; never waits."""

    __slots__ = (
        "_bdat_last",
        "_bdat_left",
        "_bdat_refusal",
        "_data",
        "_excuses",
        "_mode",
        "_out",
        "_pending",
        "_pos",
        "_put_off",
        "_recipient",
        "_sender",
        "authenticated",
        "closing",
        "decoder",
        "errors",
        "esmtp",
        "greeted",
        "junk",
        "mail",
        "mechanisms",
        "recipients",
        "reverse_path",
        "settings",
        "tls",
        "transactions",
        "xclient_allowed",
    )

    def __init__(
        self, settings: Settings, *, tls: bool = False, xclient_allowed: bool = False
    ) -> None:
        self.settings = settings
        self.tls = tls
        self.xclient_allowed = xclient_allowed and settings.xclient
        self.errors = 0  # commands answered 4xx/5xx for what they are, not for policy
        self.junk = 0  # commands that move nothing (NOOP, VRFY …) since the last message
        self.transactions = 0
        self.decoder: Any = None  # a DataDecoder while content is expected
        self._data = b""
        self._pos = 0
        self._out: list[bytes] = []
        self._mode = _COMMAND
        self._pending = -1  # the event that waits for reply(), -1: none
        self.closing = False  # the connection ends as soon as data_to_send() is out
        self._sender = ""
        self._recipient = NO_RECIPIENT
        self.greeted = ""  # the argument of EHLO, HELO or LHLO
        self.mechanisms: tuple[str, ...] = ()  # of SASL, what this client may use now: the session says
        self.authenticated = False
        self.esmtp = False
        self.reverse_path: str | None = None  # None: no transaction
        self.recipients: list[env.Recipient] = []
        self._put_off = False  # MAIL or RCPT was refused for reasons of our own that pass
        self._excuses = 0  # commands behind it that are no errors
        self._drop_transaction()

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
    def in_data(self) -> bool:
        """True while content is expected (the sender's data rate matters, not its commands)."""
        return self._mode in (_DATA, _BDAT, _SKIP_BDAT)

    @property
    def buffered_octets(self) -> int:
        """Content that was decoded and not taken yet."""
        return self.decoder.pending_octets if self.decoder is not None else 0

    @property
    def in_transaction(self) -> bool:
        return self.reverse_path is not None

    def data_to_send(self) -> bytes:
        """All replies since the last call, as one piece."""
        out = self._out
        if not out:
            return b""
        joined = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return joined

    # -- events ------------------------------------------------------------------------------------------------------

    def next_event(self) -> tuple[int, object, object] | None:
        """The next thing to decide, or None when more octets are needed."""
        if self._pending >= 0:
            raise LocalProtocolError(f"event {self._pending} has no reply yet")
        while True:
            if self.errors > self.settings.errors_max and not self.closing:
                self.say(replies.TOO_MANY_ERRORS)
            mode = self._mode
            if mode == _COMMAND:
                command = smtp.parse_command(self._data, self._pos, self.settings.line_octets)
                if command is None:
                    return None
                self._pos, verb, a, b = command
                event = _HANDLERS[verb](self, a, b)
                if event is not None:
                    return event
            elif mode == _DATA:
                decoder = self.decoder
                if not decoder.finished:
                    if self._pos >= len(self._data):
                        return None
                    self._pos = decoder.feed(self._data, self._pos)
                # The last chunk, full or not, is left for END_OF_DATA.
                if decoder.pending_octets > self.settings.chunk_octets:
                    return (CONTENT, decoder.take(), None)
                if decoder.finished:
                    self._mode = _COMMAND
                    self._pending = END_OF_DATA
                    return _END_OF_DATA_EVENT
            elif mode == _BDAT:
                event = self._read_bdat()
                if event is not None or self._mode == _BDAT:
                    return event
            elif mode == _SKIP_BDAT:
                take = min(self._bdat_left, len(self._data) - self._pos)
                self._pos += take
                self._bdat_left -= take
                if self._bdat_left:
                    return None
                self._mode = _COMMAND
                self._refuse_out_of_turn(self._bdat_refusal)
            elif mode == _SKIP_LINE:
                end = smtp.skip_line(self._data, self._pos)
                if end < 0:
                    self._pos = len(self._data)
                    return None
                self._pos = end
                self._mode = _COMMAND
            elif mode == _AUTH:
                event = self._read_auth()
                if event is not None or self._mode == _AUTH:
                    return event
            else:
                self._pos = len(self._data)
                return None

    # -- answers -----------------------------------------------------------------------------------------------------

    def greet(self, reply: Reply) -> None:
        """The 220, 421 or 554 that opens the session (RFC 5321 §3.1)."""
        self._out.append(reply.encoded)
        if reply.close or reply.code != 220:
            self.stop()

    def reply(self, reply: Reply) -> None:
        """Answer the event that waits, and take its consequence for the state."""
        pending = self._pending
        if pending < 0:
            raise LocalProtocolError("reply() without an event")
        self._pending = -1
        self._out.append(reply.encoded)
        accepted = reply.code < 400
        if pending == END_OF_DATA:
            self._end_transaction()
        elif pending == RCPT:
            if accepted:
                self.recipients.append(self._recipient)
            else:
                self._put_off = self._put_off or reply.code < 500
                self._blame()
        elif pending == MAIL:
            if accepted:
                self.reverse_path = self._sender
            self._put_off = 400 <= reply.code < 500
            self._excuses = self.settings.recipients_max + 2
        elif accepted and pending == STARTTLS:
            self._mode = _STOPPED  # until tls_started()
        elif accepted and pending == XCLIENT:
            self.greeted = ""
            self.esmtp = False
            self.authenticated = False
        elif pending in (AUTH, AUTH_RESPONSE):
            self._mode = _COMMAND
            self.authenticated = accepted
            self.errors += not accepted
        if reply.close:
            self.stop()

    def accept_content(self, encoded: bytes) -> None:
        """Answer END_OF_DATA with a positive reply that is rendered already (it names the queue id)."""
        if self._pending != END_OF_DATA:
            raise LocalProtocolError("accept_content() outside END_OF_DATA")
        self._pending = -1
        self._out.append(encoded * len(self.recipients) if self.settings.lmtp else encoded)
        self._end_transaction()

    def reply_each(self, answers: list[Reply]) -> None:
        """LMTP: one reply for each accepted recipient after the content (RFC 2033 §4.2)."""
        if self._pending != END_OF_DATA:
            raise LocalProtocolError("reply_each() outside END_OF_DATA")
        self._pending = -1
        self._out.extend([answer.encoded for answer in answers])
        self._end_transaction()
        if any(answer.close for answer in answers):
            self.stop()

    def refuse(self, reply: Reply) -> None:
        """A reply of the machine's own to a command that broke the protocol."""
        self.errors += 1
        self._out.append(reply.encoded)
        if reply.close:
            self.stop()

    def _refuse_out_of_turn(self, reply: Reply) -> None:
        """A command that only makes sense behind one we refused."""
        self._blame()
        self._out.append(reply.encoded)

    def _blame(self) -> None:
        """RFC 2920 §3.1: what a client sent behind a command that we put off is no error of its."""
        if self._put_off and self._excuses > 0:
            self._excuses -= 1
        else:
            self.errors += 1

    def start_data(self) -> None:
        """Answer DATA with 354 and read content from here on."""
        if self._pending != DATA:
            raise LocalProtocolError("start_data() outside DATA")
        self._pending = -1
        self._out.append(replies.START_MAIL_INPUT.encoded)
        self._new_decoder()
        self._mode = _DATA

    def say(self, reply: Reply) -> None:
        """An unasked reply: 421 before the server closes (RFC 5321 §3.8)."""
        self._out.append(reply.encoded)
        if reply.close:
            self.stop()

    def stop(self) -> None:
        """Read nothing more; close once what is queued is sent."""
        self.closing = True
        self._mode = _STOPPED
        self._pending = -1

    def tls_started(self) -> None:
        """Forget everything the client said in the clear (RFC 3207 §4.2)."""
        self.tls = True
        self.greeted = ""
        self.esmtp = False
        self.authenticated = False
        self._mode = _COMMAND
        self._data = b""
        self._pos = 0
        self._drop_transaction()

    # -- the transaction ---------------------------------------------------------------------------------------------

    def _drop_transaction(self) -> None:
        self.reverse_path = None
        self.mail = NO_MAIL_PARAMETERS
        self.recipients = []
        self.decoder = None
        self._bdat_left = 0
        self._bdat_last = False
        self._bdat_refusal = replies.OUT_OF_SEQUENCE

    def _end_transaction(self) -> None:
        self.transactions += 1
        self.junk = 0
        self._drop_transaction()

    def _new_decoder(self) -> None:
        settings = self.settings
        self.decoder = DataDecoder(
            settings.max_message_octets, settings.normalize, settings.chunk_octets
        )

    def _wait(self, kind: int, a: object = None, b: object = None) -> tuple[int, object, object]:
        self._pending = kind
        return (kind, a, b)

    def _spend_junk(self) -> None:
        self.junk += 1
        if self.junk > self.settings.junk_commands_max:
            self.errors += 1

    # -- commands (RFC 5321 §4.1.1) ----------------------------------------------------------------------------------

    def _on_hello(self, verb: str, argument: str) -> tuple[int, object, object] | None:
        # RFC 2033 §4.1: LHLO in LMTP, and HELO and EHLO there are refused; the other way round in SMTP.
        if (verb == "LHLO") != self.settings.lmtp:
            self.refuse(replies.USE_LHLO if self.settings.lmtp else replies.COMMAND_UNKNOWN)
            return None
        if not argument:
            self.refuse(replies.HELLO_NEEDS_DOMAIN)
            return None
        self._drop_transaction()  # RFC 5321 §4.1.4: EHLO resets like RSET
        self._pending = HELLO
        return (HELLO, verb, argument)

    def _on_ehlo(self, a: str, _b: object) -> tuple[int, object, object] | None:
        return self._on_hello("EHLO", a)

    def _on_helo(self, a: str, _b: object) -> tuple[int, object, object] | None:
        return self._on_hello("HELO", a)

    def _on_lhlo(self, a: str, _b: object) -> tuple[int, object, object] | None:
        return self._on_hello("LHLO", a)

    def accept_hello(self, verb: str, argument: str) -> None:
        """Answer HELLO: the capabilities to EHLO and LHLO, one line to HELO."""
        if self._pending != HELLO:
            raise LocalProtocolError("accept_hello() outside HELLO")
        self._pending = -1
        self.greeted = argument
        self.esmtp = verb != "HELO"
        if self.esmtp:
            mechanisms = () if self.authenticated else self.mechanisms
            self._out.append(self.settings.ehlo_reply(self.tls, self.xclient_allowed, mechanisms))
        else:
            self._out.append(f"250 {self.settings.hostname}\r\n".encode())

    def _on_mail(
        self, reverse_path: str, params: tuple[tuple[str, str | None], ...]
    ) -> tuple[int, object, object] | None:
        if not self.greeted:
            self.refuse(replies.HELLO_FIRST)
            return None
        if self.reverse_path is not None:
            self.refuse(replies.NESTED_MAIL)
            return None
        settings = self.settings
        if settings.auth and not self.authenticated:
            self.refuse(replies.AUTH_REQUIRED)
            return None
        if settings.transactions_max and self.transactions >= settings.transactions_max:
            self.refuse(replies.TOO_MANY_TRANSACTIONS)
            return None
        if params:
            mail = parse_mail_parameters(params, settings.max_message_octets, auth=settings.auth)
            if isinstance(mail, Reply):
                self.refuse(mail)
                return None
        else:
            mail = NO_MAIL_PARAMETERS
        if not mail.smtputf8 and not reverse_path.isascii():
            self.refuse(replies.NEEDS_SMTPUTF8_SENDER)  # RFC 6531 §3.5
            return None
        self.mail = mail
        self._pending = MAIL
        self._sender = reverse_path
        return (MAIL, reverse_path, mail)

    def _on_rcpt(
        self, forward_path: str, params: tuple[tuple[str, str | None], ...]
    ) -> tuple[int, object, object] | None:
        if self.reverse_path is None:
            self._refuse_out_of_turn(replies.MAIL_FIRST)
            return None
        if self.decoder is not None:
            self.refuse(replies.RCPT_AFTER_BDAT)
            return None
        if len(self.recipients) >= self.settings.recipients_max:
            self.refuse(replies.TOO_MANY_RECIPIENTS)
            return None
        if params:
            recipient = parse_rcpt_parameters(forward_path, params)
            if isinstance(recipient, Reply):
                self.refuse(recipient)
                return None
        else:
            recipient = env.Recipient(forward_path)
        if not self.mail.smtputf8 and not forward_path.isascii():
            self.refuse(replies.NEEDS_SMTPUTF8_RECIPIENT)
            return None
        self._pending = RCPT
        self._recipient = recipient
        return (RCPT, recipient, None)

    def _on_data(self, _a: object, _b: object) -> tuple[int, object, object] | None:
        if self.reverse_path is None:
            self._refuse_out_of_turn(replies.MAIL_FIRST)
        elif self.decoder is not None:
            self.refuse(replies.DATA_AFTER_BDAT)  # RFC 3030 §3
        elif not self.recipients:
            self._refuse_out_of_turn(replies.NO_VALID_RECIPIENTS)
        elif self.mail.body == env.BODY_BINARYMIME:
            self.refuse(replies.BINARYMIME_NEEDS_BDAT)  # RFC 3030 §3
        else:
            self._pending = DATA
            return _DATA_EVENT
        return None

    def _on_bdat(self, size: int, last: bool) -> tuple[int, object, object] | None:
        refusal = None
        if self.reverse_path is None:
            refusal = replies.MAIL_FIRST
        elif not self.recipients:
            refusal = replies.NO_VALID_RECIPIENTS
        if refusal is not None:
            # RFC 3030 §2: the octets of the chunk follow whatever we answer, so they are consumed first.
            self._bdat_left = size
            self._bdat_refusal = refusal
            self._mode = _SKIP_BDAT
            return None
        if self.decoder is None:
            self._new_decoder()
        self._bdat_left = size
        self._bdat_last = last
        self._mode = _BDAT
        return None

    def _read_bdat(self) -> tuple[int, object, object] | None:
        """Content of a chunk; None with mode _BDAT: more octets needed, None with another mode: go on."""
        decoder = self.decoder
        if self._bdat_left:
            before = self._pos
            self._pos = decoder.feed_chunk(self._data, before, self._bdat_left)
            self._bdat_left -= self._pos - before
        if decoder.pending_octets > self.settings.chunk_octets:
            return (CONTENT, decoder.take(), None)
        if self._bdat_left:
            return None
        self._mode = _COMMAND
        if self._bdat_last:
            decoder.finish_chunks()
            self._pending = END_OF_DATA
            return _END_OF_DATA_EVENT
        if decoder.overflow:
            # RFC 3030 §2: a refused chunk ends the transaction; the client must RSET or start again.
            self.refuse(replies.MESSAGE_TOO_BIG)
            self._drop_transaction()
            return (RESET, None, None)
        self._out.append(replies.CHUNK_OK.encoded)
        return None

    def _on_rset(self, _a: object, _b: object) -> tuple[int, object, object] | None:
        if self._put_off:
            self._put_off = False  # who clears up behind a transaction that we put off spends nothing
        else:
            self._spend_junk()
        self._out.append(replies.RESET_OK.encoded)
        if self.reverse_path is None:
            return None
        self._drop_transaction()
        return (RESET, None, None)

    def _on_noop(self, _a: object, _b: object) -> None:
        self._spend_junk()
        self._out.append(replies.NOOP_OK.encoded)

    def _on_help(self, _a: object, _b: object) -> None:
        self._spend_junk()
        self._out.append(replies.HELP.encoded)

    def _on_vrfy(self, a: str, _b: object) -> tuple[int, object, object] | None:
        self._spend_junk()
        if not a:
            self.refuse(replies.ARGUMENT_NEEDED)
            return None
        return self._wait(VRFY, a, "VRFY")

    def _on_expn(self, a: str, _b: object) -> tuple[int, object, object] | None:
        self._spend_junk()
        if not a:
            self.refuse(replies.ARGUMENT_NEEDED)
            return None
        return self._wait(VRFY, a, "EXPN")

    def _on_quit(self, _a: object, _b: object) -> tuple[int, object, object]:
        self._out.append(replies.CLOSING.encoded)
        self.stop()
        return (QUIT, None, None)

    def _on_starttls(self, argument: str | None, _b: object) -> tuple[int, object, object] | None:
        if not self.settings.starttls:
            self.refuse(replies.COMMAND_UNKNOWN)
        elif self.tls:
            self.refuse(replies.TLS_ACTIVE)
        elif argument:
            self.refuse(replies.NO_ARGUMENT_ALLOWED)  # RFC 3207 §4
        elif self._pos < len(self._data):
            # What came in the clear behind STARTTLS would otherwise run inside the session (CVE-2011-0411).
            self._pos = len(self._data)
            self.refuse(replies.DATA_AFTER_STARTTLS)
        else:
            return self._wait(STARTTLS)
        return None

    def _on_auth(self, argument: str, _b: object) -> tuple[int, object, object] | None:
        """RFC 4954 §4."""
        if not self.settings.auth:
            self.refuse(replies.COMMAND_UNKNOWN)
        elif not self.greeted:
            self.refuse(replies.HELLO_FIRST)
        elif self.authenticated:
            self.refuse(replies.AUTH_TWICE)
        elif self.reverse_path is not None:
            self.refuse(replies.AUTH_IN_TRANSACTION)
        else:
            mechanism, _, initial = argument.partition(" ")
            if not mechanism:
                self.refuse(replies.ARGUMENT_NEEDED)
                return None
            # "=" is an initial response that is empty, which is not the same as none.
            response = _base64("" if initial == "=" else initial)
            if response is None:
                self.refuse(replies.AUTH_MALFORMED)
                return None
            return self._wait(AUTH, mechanism, response if initial else None)
        return None

    def challenge(self, octets: bytes) -> None:
        """Answer AUTH or AUTH_RESPONSE: the exchange goes on with a line of the client."""
        if self._pending not in (AUTH, AUTH_RESPONSE):
            raise LocalProtocolError("challenge() outside AUTH")
        self._pending = -1
        self._out.append(b"334 " + b2a_base64(octets, newline=False) + b"\r\n")
        self._mode = _AUTH

    def _read_auth(self) -> tuple[int, object, object] | None:
        """The client's answer to a challenge; None with mode _AUTH: more octets needed."""
        end = smtp.find_line(self._data, self._pos, AUTH_LINE_OCTETS)
        if end == -1:
            return None
        if end == -2:
            self._mode = _SKIP_LINE
            self.refuse(replies.AUTH_LINE_TOO_LONG)
            return (AUTH_CANCELLED, None, None)
        line = self._data[self._pos : end].rstrip(b"\r\n")
        self._pos = end
        response = None if line == b"*" else _base64(line.decode("latin-1"))
        if response is None:
            self._mode = _COMMAND
            self.refuse(replies.AUTH_CANCELLED if line == b"*" else replies.AUTH_MALFORMED)
            return (AUTH_CANCELLED, None, None)
        return self._wait(AUTH_RESPONSE, response)

    def _on_xclient(self, argument: str, _b: object) -> tuple[int, object, object] | None:
        if not self.xclient_allowed:
            self.refuse(
                replies.COMMAND_UNKNOWN if not self.settings.xclient else replies.XCLIENT_DENIED
            )
            return None
        if self.reverse_path is not None:
            self.refuse(replies.OUT_OF_SEQUENCE)
            return None
        attributes = parse_xclient(argument)
        if isinstance(attributes, Reply):
            self.refuse(attributes)
            return None
        return self._wait(XCLIENT, attributes)

    def _on_unknown(self, _a: object, _b: object) -> None:
        self.refuse(replies.COMMAND_UNKNOWN)

    def _on_error(self, reason: int, verb: int) -> None:
        if reason == smtp.LINE_TOO_LONG and verb < 0:
            self._mode = _SKIP_LINE
        self.refuse(_SYNTAX_REPLIES.get(reason, replies.SYNTAX_ERROR))


def _base64(text: str) -> bytes | None:
    try:
        return a2b_base64(text, strict_mode=True) if text else b""
    except ValueError:
        return None


_END_OF_DATA_EVENT = (END_OF_DATA, None, None)
_DATA_EVENT = (DATA, None, None)

# What each reason of parse_command() is answered with (RFC 5321 §4.3.2; RFC 3463 §3.6).
_SYNTAX_REPLIES = {
    smtp.LINE_TOO_LONG: replies.LINE_TOO_LONG,
    smtp.BAD_PATH: replies.BAD_PATH,
    smtp.PATH_TOO_LONG: replies.PATH_TOO_LONG,
    smtp.BAD_PARAM: replies.BAD_PARAMETER,
    smtp.BARE_LF: replies.BARE_LF_IN_COMMAND,
    smtp.NUL: replies.NUL_IN_COMMAND,
    smtp.EIGHT_BIT: replies.EIGHT_BIT_IN_COMMAND,
}

_Handler = Callable[[SmtpServerMachine, Any, Any], "tuple[int, object, object] | None"]
_BY_VERB: dict[int, _Handler] = {
    smtp.EHLO: SmtpServerMachine._on_ehlo,
    smtp.HELO: SmtpServerMachine._on_helo,
    smtp.LHLO: SmtpServerMachine._on_lhlo,
    smtp.MAIL: SmtpServerMachine._on_mail,
    smtp.RCPT: SmtpServerMachine._on_rcpt,
    smtp.DATA: SmtpServerMachine._on_data,
    smtp.BDAT: SmtpServerMachine._on_bdat,
    smtp.RSET: SmtpServerMachine._on_rset,
    smtp.NOOP: SmtpServerMachine._on_noop,
    smtp.VRFY: SmtpServerMachine._on_vrfy,
    smtp.EXPN: SmtpServerMachine._on_expn,
    smtp.HELP: SmtpServerMachine._on_help,
    smtp.QUIT: SmtpServerMachine._on_quit,
    smtp.STARTTLS: SmtpServerMachine._on_starttls,
    smtp.AUTH: SmtpServerMachine._on_auth,
    smtp.XCLIENT: SmtpServerMachine._on_xclient,
    smtp.ERROR: SmtpServerMachine._on_error,
}
_HANDLERS: list[_Handler] = [
    _BY_VERB.get(verb, SmtpServerMachine._on_unknown)
    for verb in range(max(smtp.ERROR, smtp.UNKNOWN, *_BY_VERB) + 1)
]
