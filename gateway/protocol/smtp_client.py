"""The client side of SMTP, ESMTP and LMTP: replies in, commands and content out, one verdict per recipient.

    Owns      the order of commands, the transactions in flight and which reply belongs to which of them
    Flow      receive_data() → events; begin() lines a transaction up; data_to_send() gives the buffers to write at once
    Events    (kind, value); see the constants.  Verdicts are (kind, code, enhanced status, text)
    Limits    `depth` transactions in flight; content goes unasked (BDAT before MAIL is answered) up to `blind_octets`
    Errors    nothing the peer sends raises: what is not understood is transient and ends the connection; a 503 to a
              command that was in order is transient where commands were pipelined
    Security  what arrives between the 220 to STARTTLS and the handshake ends the connection (RFC 3207 §6)
    Standards RFC 5321 §4, RFC 1047, RFC 2033, RFC 2920, RFC 3030, RFC 3207, RFC 9422; XCLIENT of Postfix
    Bugs      a transaction is rendered before XCLIENT, should the peer offer less after it
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from gateway._native import ReplyParser
from gateway.protocol.esmtp_client import NO_CAPABILITIES, parse_capabilities

# Events
READY = 0  # begin() may be called; `capabilities` is known
START_TLS = 1  # start the handshake, then tls_started()
CONTENT = 2  # value: Transaction whose content is to be streamed, then content_sent()
DONE = 3  # value: Transaction; its verdicts are complete
RETURNED = 4  # value: Transaction the peer never looked at; another connection may take it
FAILED = 5  # value: verdict; there will be no READY
CLOSE = 6  # value: None; close the connection, nothing more will be said
OUT_OF_STEP = 7  # value: the reply's text; the peer offers PIPELINING but does not keep up with it

# Kinds of verdict
ACCEPTED = 0
TRANSIENT = 1
PERMANENT = 2

Verdict = tuple[int, int, str, str]
Buffers = list[bytes | memoryview]
Event = tuple[int, Any]
_Reply = tuple[int, str, str]

# What is waited for, the index into the caller's table of timeouts.
(
    WAIT_GREETING, WAIT_HELLO, WAIT_MAIL, WAIT_RCPT, WAIT_DATA, WAIT_FINAL, WAIT_QUIT, WAIT_TLS, WAIT_NOTHING,
) = range(9)  # fmt: skip

_GREETING, _EHLO, _HELO, _STARTTLS, _TLS, _XCLIENT, _READY, _QUIT, _CLOSED = range(9)
_WAITING = (
    WAIT_GREETING, WAIT_HELLO, WAIT_HELLO, WAIT_TLS, WAIT_TLS, WAIT_HELLO, WAIT_NOTHING, WAIT_QUIT,
    WAIT_NOTHING,
)  # fmt: skip

# Which reply a transaction waits for.
_RESET, _MAIL, _RCPT, _DATA, _FINAL = range(5)
_STAGE_WAITING = (WAIT_MAIL, WAIT_MAIL, WAIT_RCPT, WAIT_DATA, WAIT_FINAL)
_STAGE_NAMES = ("RSET", "MAIL", "RCPT", "DATA", "end of data")

MAYBE_TWICE = "; it had all of the message, which may therefore arrive twice"  # RFC 1047


def verdict_of(reply: _Reply) -> Verdict:
    """What the reply means for a recipient: only 2yz accepts, only 5yz is permanent, all else is transient."""
    code, enhanced, text = reply
    if "\n" in text:
        text = text.replace("\n", " ")
    if 200 <= code <= 299:
        return (ACCEPTED, code, enhanced or "2.0.0", text)
    if 500 <= code <= 599:
        return (PERMANENT, code, enhanced or "5.0.0", text)
    if 400 <= code <= 499:
        return (TRANSIENT, code, enhanced or "4.0.0", text)
    return (TRANSIENT, code, "4.5.0", f"unexpected reply {code} {text}")


class Transaction:
    """One message on its way: rendered commands, content, and what was said about each recipient."""

    __slots__ = (
        "accepted", "bdat", "content", "index", "mail", "mail_accepted", "rcpts", "refusal", "sent", "size",
        "stage", "tag", "verdicts", "xclient",
    )  # fmt: skip

    def __init__(
        self,
        tag: Any,
        mail: bytes,
        rcpts: list[bytes],
        content: Sequence[bytes | memoryview] | None,
        size: int,
        *,
        bdat: bool = False,
        xclient: bytes = b"",
    ) -> None:
        self.tag = tag  # the caller's
        self.mail = mail  # command lines with CRLF
        self.rcpts = rcpts
        self.content = content  # as it goes out (for DATA: stuffed, with the final dot); None: streamed by the caller
        self.size = size  # octets of content for BDAT
        self.bdat = bdat
        self.xclient = xclient  # command line that must have been accepted before; b"" = none
        self.stage = _MAIL
        self.index = 0  # of the recipient whose reply is next
        self.mail_accepted = False
        self.refusal: Verdict | None = None  # of the transaction as a whole
        self.accepted: list[int] = []  # indices of recipients whose RCPT was accepted
        self.verdicts: list[Verdict | None] = [None] * len(rcpts)
        self.sent = False  # all of the content, final dot included, was handed over

    def settle(self, verdict: Verdict) -> None:
        """The verdict for all that have none."""
        self.verdicts = [known or verdict for known in self.verdicts]


class SmtpClientMachine:
    """One connection's protocol state.  Never touches a socket; never waits."""

    __slots__ = (
        "_dirty", "_draining", "_events", "_flight", "_held", "_hostname", "_out", "_parser", "_pipelining", "_state",
        "_tls_mode", "_xclient", "begun", "blind_octets", "capabilities", "depth", "finished", "heard", "lmtp",
        "tls", "transactions_max",
    )  # fmt: skip

    def __init__(
        self,
        hostname: str,
        *,
        lmtp: bool = False,
        tls_mode: str = "off",
        tls: bool = False,
        pipelining: bool = True,
        depth: int = 2,
        blind_octets: int = 262_144,
        transactions_max: int = 0,
    ) -> None:
        self._hostname = hostname
        self._pipelining = pipelining  # False: not even when it is offered
        self._tls_mode = tls_mode  # off | opportunistic | required | verify
        self._parser = ReplyParser()
        self._state = _GREETING
        self._flight: deque[Transaction] = deque()
        self._held: Transaction | None = None  # waits for XCLIENT
        self._xclient = b""  # the XCLIENT line in force
        self._out: Buffers = []
        self._events: list[Event] = []
        self._dirty = False  # the peer may still be in the middle of a transaction that failed
        self._draining = False
        self.lmtp = lmtp
        self.tls = tls
        self.depth = depth
        self.blind_octets = blind_octets
        self.transactions_max = transactions_max  # on this connection; 0 = no limit
        self.begun = 0
        self.heard = 0  # replies that came, whole
        self.finished = 0  # transactions that got all their replies
        self.capabilities = NO_CAPABILITIES

    # -- what the caller asks -----------------------------------------------------------------------------------------

    @property
    def can_begin(self) -> bool:
        """True when begin() takes a transaction now."""
        if self._state != _READY or self._draining or self._held is not None:
            return False
        if self.transactions_max and self.begun >= self.transactions_max:
            return False
        flight = self._flight
        if not flight:
            return True
        # RFC 2920 §3.1: the content may be followed by the next MAIL in one group; DATA must end a group.
        return self.capabilities.pipelining and len(flight) < self.depth and flight[-1].sent

    @property
    def in_flight(self) -> int:
        return len(self._flight) + (self._held is not None)

    @property
    def is_idle(self) -> bool:
        return self._state == _READY and not self._flight and self._held is None

    @property
    def is_ready(self) -> bool:
        """The opening is done, and nobody has said good-bye yet."""
        return self._state in (_READY, _XCLIENT)

    @property
    def is_closed(self) -> bool:
        return self._state == _CLOSED

    @property
    def is_quitting(self) -> bool:
        return self._state == _QUIT

    @property
    def is_starting_tls(self) -> bool:
        """STARTTLS was said, and nothing the peer said under TLS has arrived yet."""
        state = self._state
        return state in (_STARTTLS, _TLS) or (state == _EHLO and self.tls and self._tls_mode != "off")

    @property
    def is_spent(self) -> bool:
        """No further transaction may begin, now or later: QUIT is due when those in flight are done."""
        return self._draining or 0 < self.transactions_max <= self.begun

    @property
    def waiting_for(self) -> int:
        """WAIT_…, the index of the timeout that applies (RFC 5321 §4.5.3.2)."""
        if self._state == _READY and self._flight:
            return _STAGE_WAITING[self._flight[0].stage]
        return _WAITING[self._state]

    @property
    def waiting_name(self) -> str:
        """What is waited for, for people."""
        if self._state == _READY and self._flight:
            return _STAGE_NAMES[self._flight[0].stage]
        return ("greeting", "EHLO", "HELO", "STARTTLS", "TLS handshake", "XCLIENT", "", "QUIT", "")[self._state]

    def data_to_send(self) -> Buffers:
        """Everything that may go out now, in one write; the list is the caller's."""
        out = self._out
        if out:
            self._out = []
        return out

    # -- what the caller tells ----------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> list[Event]:
        """Take the octets that arrived; what follows from them."""
        state = self._state
        if state >= _TLS:
            if state == _CLOSED:
                return []
            if state == _TLS:  # RFC 3207 §6: not from the peer we are about to authenticate
                return self.abandon("4.7.0", "data before the TLS handshake")
        try:
            replies = self._parser.feed(data)
        except ValueError as error:
            return self.abandon("4.5.0", f"not an SMTP reply: {error}")
        self.heard += len(replies)
        for reply in replies:
            state = self._state
            if state == _READY:
                self._on_transaction_reply(reply)
            elif state == _TLS:
                return self.abandon("4.7.0", "data before the TLS handshake")
            elif state != _CLOSED:
                _HANDLERS[state](self, reply)
        if self._state == _TLS and len(data) and not data.endswith(b"\n"):
            return self.abandon("4.7.0", "data before the TLS handshake")
        if self._parser.broken and self._state != _CLOSED:
            return self.abandon("4.5.0", "not an SMTP reply")
        events = self._events
        if events:
            self._events = []
        return events

    def tls_started(self) -> None:
        """The handshake is done: forget what was said in the clear (RFC 3207 §4.2)."""
        self.tls = True
        self._parser = ReplyParser()
        self.capabilities = NO_CAPABILITIES
        self._say_hello()

    def begin(self, transaction: Transaction) -> None:
        """Line the transaction up; can_begin must be true."""
        if not self.can_begin:
            raise RuntimeError("begin() while can_begin is false")
        self.begun += 1
        if transaction.xclient != self._xclient and transaction.xclient:
            self._held = transaction
            if not self._flight:
                self._send_xclient()
            return
        self._start(transaction)

    def content_sent(self, transaction: Transaction) -> None:
        """All of a streamed content was handed to the connection, final dot included."""
        transaction.sent = True
        transaction.content = None

    def drain(self) -> None:
        """QUIT as soon as nothing is in flight."""
        self._draining = True
        if self.is_idle:
            self._quit()

    def abandon(self, enhanced: str, text: str) -> list[Event]:
        """The connection is lost or of no use any more: settle what is in flight.  Ends in CLOSE."""
        self._abandon((TRANSIENT, 0, enhanced, text))
        events = self._events
        self._events = []
        return events

    # -- opening ------------------------------------------------------------------------------------------------------

    def _emit(self, kind: int, value: Any = None) -> None:
        self._events.append((kind, value))

    def _say_hello(self) -> None:
        verb = "LHLO" if self.lmtp else "EHLO"  # RFC 2033 §4.1
        self._out.append(f"{verb} {self._hostname}\r\n".encode())
        self._state = _EHLO

    def _refused(self, reply: _Reply) -> None:
        """The peer does not want to talk to us at all, or not like this."""
        verdict = verdict_of(reply)
        if verdict[0] == ACCEPTED:
            verdict = (TRANSIENT, reply[0], "4.5.0", f"unexpected reply {reply[0]} {reply[2]}")
        self._abandon(verdict)

    def _on_greeting(self, reply: _Reply) -> None:
        if reply[0] == 220:
            self._say_hello()
        else:
            self._refused(reply)

    def _on_ehlo(self, reply: _Reply) -> None:
        code = reply[0]
        if 200 <= code <= 299:
            self.capabilities = parse_capabilities(reply[2], pipelining=self._pipelining)
            limit = self.capabilities.transactions_max
            if limit and (not self.transactions_max or limit < self.transactions_max):
                self.transactions_max = limit  # RFC 9422 §4.1
            self._secure_or_ready()
        elif 500 <= code <= 599 and not self.lmtp:  # RFC 5321 §3.2: a server without EHLO
            self._out.append(f"HELO {self._hostname}\r\n".encode())
            self._state = _HELO
        else:
            self._refused(reply)

    def _on_helo(self, reply: _Reply) -> None:
        if 200 <= reply[0] <= 299:
            self.capabilities = NO_CAPABILITIES
            self._secure_or_ready()
        else:
            self._refused(reply)

    def _secure_or_ready(self) -> None:
        if not self.tls and self._tls_mode != "off":
            if self.capabilities.starttls:
                self._out.append(b"STARTTLS\r\n")
                self._state = _STARTTLS
                return
            if self._tls_mode != "opportunistic":
                self._abandon((TRANSIENT, 0, "4.7.4", "TLS is required, but the peer does not offer STARTTLS"))
                return
        self._state = _READY
        held = self._held
        if held is not None:  # XCLIENT went through
            self._held = None
            self._start(held)
        else:
            self._emit(READY)

    def _on_starttls(self, reply: _Reply) -> None:
        if reply[0] == 220:
            self._state = _TLS
            self._emit(START_TLS)
        elif self._tls_mode == "opportunistic" and reply[0] != 421:
            self._state = _READY
            self._emit(READY)
        else:
            self._refused(reply)

    def _send_xclient(self) -> None:
        assert self._held is not None
        self._xclient = self._held.xclient
        self._out.append(self._xclient)
        self._state = _XCLIENT

    def _on_xclient(self, reply: _Reply) -> None:
        if reply[0] == 220:  # the session begins anew, with a greeting
            self._say_hello()
        else:
            self._refused(reply)

    def _quit(self) -> None:
        self._out.append(b"QUIT\r\n")
        self._state = _QUIT

    def _on_quit(self, reply: _Reply) -> None:
        self._state = _CLOSED
        self._out.clear()
        self._emit(CLOSE)

    # -- transactions -------------------------------------------------------------------------------------------------

    def _start(self, t: Transaction) -> None:
        flight = self._flight
        lines = []
        # RFC 3030 §2 does not say that a peer forgets a transaction whose BDAT failed.  Whoever rides behind one would
        # add its recipients to it, and have its content sent to theirs.
        if self._dirty or (flight and flight[-1].bdat):
            self._dirty = False
            t.stage = _RESET
            lines.append(b"RSET\r\n")
        flight.append(t)
        if not self.capabilities.pipelining:
            self._out.append(lines[0] if lines else t.mail)
            return
        lines.append(t.mail)
        lines += t.rcpts
        if not t.bdat:
            lines.append(b"DATA\r\n")
        elif t.content is not None and t.size <= self.blind_octets:
            lines.append(b"BDAT %d LAST\r\n" % t.size)
            self._out.append(b"".join(lines))
            self._out.extend(t.content)
            t.sent = True
            return
        self._out.append(b"".join(lines))

    def _on_transaction_reply(self, reply: _Reply) -> None:
        flight = self._flight
        code = reply[0]
        if not flight:
            # Nothing was asked: good-bye (RFC 5321 §3.8), or we are out of step.
            self._state = _CLOSED
            self._out.clear()
            self._emit(CLOSE)
            return
        t = flight[0]
        if code == 421:  # RFC 5321 §3.8: the peer closes; it has not taken what it answers, nor will it look behind it
            t.sent = False
            self._abandon(verdict_of(reply))
            return
        stage = t.stage
        if stage == _RCPT:
            self._on_rcpt_reply(t, reply)
        elif stage == _FINAL:
            self._on_final_reply(t, reply)
        elif stage == _MAIL:
            self._on_mail_reply(t, reply)
        elif stage == _DATA:
            self._on_data_reply(t, reply)
        elif 200 <= code <= 299:
            t.stage = _MAIL
            if not self.capabilities.pipelining:
                self._out.append(t.mail)
        elif t.sent:  # the content went along, and the peer may take it: only the replies to come can tell
            self._stop_pipelining(reply)
            t.stage = _MAIL
        else:  # no way to know what the peer would do with our content
            self._abandon((TRANSIENT, code, "4.5.0", f"RSET was refused: {code} {reply[2]}"))

    def _stop_pipelining(self, reply: _Reply) -> None:
        """The peer lost count: finish what is in flight, and begin nothing more on this connection."""
        self._draining = True
        if self._pipelining:
            self._pipelining = False
            self._emit(OUT_OF_STEP, verdict_of(reply)[3])

    def _judge(self, reply: _Reply) -> Verdict:
        """The verdict of a reply to a command that followed from those accepted before it."""
        if reply[0] == 503 and self.capabilities.pipelining:
            # RFC 5321 §4.2.2: "bad sequence of commands".  It was not: the peer's PIPELINING is broken, not the mail.
            self._stop_pipelining(reply)
            return (TRANSIENT, 503, "4.5.1", verdict_of(reply)[3])
        return verdict_of(reply)

    def _on_mail_reply(self, t: Transaction, reply: _Reply) -> None:
        t.stage = _RCPT
        if 200 <= reply[0] <= 299:
            t.mail_accepted = True
        else:
            t.refusal = self._judge(reply)
        if not self.capabilities.pipelining:
            if t.mail_accepted:
                self._out.append(t.rcpts[0])
            else:
                self._finish(t)

    def _on_rcpt_reply(self, t: Transaction, reply: _Reply) -> None:
        index = t.index
        if 200 <= reply[0] <= 299:
            if t.mail_accepted:
                t.accepted.append(index)
        elif t.mail_accepted:
            verdict = self._judge(reply)
            if reply[0] == 552:  # RFC 5321 §4.5.3.1.10: an old way to say 452, too many recipients
                verdict = (TRANSIENT, 552, "4.5.3", reply[2])
            t.verdicts[index] = verdict
        t.index = index = index + 1
        if index < len(t.rcpts):
            if not self.capabilities.pipelining:
                self._out.append(t.rcpts[index])
            return
        if t.sent:  # BDAT went along
            t.stage = _FINAL
        elif self.capabilities.pipelining and not t.bdat:  # DATA went along
            t.stage = _DATA
        elif not t.accepted:
            self._finish(t)
        elif t.bdat:
            t.stage = _FINAL
            self._out.append(b"BDAT %d LAST\r\n" % t.size)
            self._send_content(t)
        else:
            t.stage = _DATA
            self._out.append(b"DATA\r\n")

    def _on_data_reply(self, t: Transaction, reply: _Reply) -> None:
        if not 300 <= reply[0] <= 399:
            t.refusal = t.refusal or (self._judge(reply) if t.accepted else verdict_of(reply))
            if t.refusal[0] == ACCEPTED:
                t.refusal = (TRANSIENT, reply[0], "4.5.0", f"unexpected reply {reply[0]} {reply[2]}")
            self._finish(t)
            return
        t.stage = _FINAL
        if t.accepted:
            self._send_content(t)
        elif self.lmtp or not t.mail_accepted:
            # RFC 2033 §4.2 has no reply for this; and a peer that takes DATA without MAIL is in some other transaction.
            self._finish(t)
            self._abandon((TRANSIENT, 0, "4.5.0", "DATA accepted without MAIL or RCPT"))
        else:  # RFC 2920 §3.1: nothing but the final dot
            self._out.append(b".\r\n")
            t.sent = True

    def _send_content(self, t: Transaction) -> None:
        if t.content is None:
            self._emit(CONTENT, t)
        else:
            self._out.extend(t.content)
            t.sent = True

    def _on_final_reply(self, t: Transaction, reply: _Reply) -> None:
        accepted = t.accepted
        verdict = self._judge(reply) if accepted else verdict_of(reply)
        if not t.sent:
            # The rest of the content cannot be taken back, and a final dot would make a message of what was sent.
            if verdict[0] == ACCEPTED:
                verdict = (TRANSIENT, reply[0], "4.5.0", f"replied before the end of data: {reply[0]} {reply[2]}")
            t.refusal = verdict
            self._finish(t)
            self._abandon(verdict)
            return
        if t.bdat and verdict[0] != ACCEPTED:
            self._dirty = True
        elif t.refusal is not None:  # MAIL was refused, and still the peer took the content, for whomever
            t.refusal = (*t.refusal[:3], t.refusal[3] + MAYBE_TWICE)
        if not self.lmtp or not accepted:
            for index in accepted:
                t.verdicts[index] = verdict
            self._finish(t, ended=True)
            return
        index = t.index - len(t.rcpts)  # RFC 2033 §4.2: one reply for each accepted RCPT, in their order
        t.verdicts[accepted[index]] = verdict
        t.index += 1
        if index + 1 == len(accepted):
            self._finish(t, ended=True)

    def _finish(self, t: Transaction, *, ended: bool = False) -> None:
        """All that will be said about t was said; `ended`: the peer, too, is done with it (RFC 5321 §4.1.1.4)."""
        if not ended and t.mail_accepted:
            self._dirty = True
        self._report(t, t.refusal or (TRANSIENT, 0, "4.5.0", "no verdict"))
        flight = self._flight
        flight.popleft()
        self.finished += 1
        if not flight:
            if self._held is not None:
                self._send_xclient()
            elif self._draining or 0 < self.transactions_max <= self.begun:
                self._quit()

    def _report(self, t: Transaction, verdict: Verdict) -> None:
        if None in t.verdicts:
            t.settle(verdict)
        t.content = None
        self._emit(DONE, t)

    # -- endings ------------------------------------------------------------------------------------------------------

    def _abandon(self, verdict: Verdict) -> None:
        if self._state == _CLOSED:
            return
        state = self._state
        self._state = _CLOSED
        # What would have followed from earlier replies of the same read is of no use now.
        self._events = [event for event in self._events if event[0] in (DONE, RETURNED, OUT_OF_STEP)]
        front = True
        for t in self._flight:
            if t.stage <= _MAIL and (not front or self.finished):
                self._emit(RETURNED, t)
            elif t.sent:
                self._report(t, (*verdict[:3], verdict[3] + MAYBE_TWICE))
            else:
                self._report(t, t.refusal or verdict)
            front = False
        self._flight.clear()
        held = self._held
        if held is not None:
            self._held = None
            if state == _READY:
                self._emit(RETURNED, held)
            else:  # XCLIENT or the EHLO behind it was refused: no word about this message
                self._report(held, (TRANSIENT, verdict[1], "4" + verdict[2][1:], verdict[3]))
        elif state < _READY:
            self._emit(FAILED, verdict)
        self._out.clear()
        self._emit(CLOSE)


_HANDLERS = (
    SmtpClientMachine._on_greeting,
    SmtpClientMachine._on_ehlo,
    SmtpClientMachine._on_helo,
    SmtpClientMachine._on_starttls,
    SmtpClientMachine._refused,
    SmtpClientMachine._on_xclient,
    SmtpClientMachine._on_transaction_reply,
    SmtpClientMachine._on_quit,
)
