"""One connection: set-up, then message after message, then QUIT.

Owns      Session
Flow      reply → _on_reply → the next command; Supply says what is next, Tally what happened
Limits    the source's sweep ends it when a reply takes longer than plan.timeout_s
Errors    garbage ends the connection; a message begun is then "broken", one that was not goes back to the source
Standards RFC 5321, RFC 2033 (LMTP), RFC 2920 (PIPELINING), RFC 3030 (CHUNKING), RFC 3207 (STARTTLS), RFC 4954 (AUTH)

A stage lasts from the write that carried its command to its reply; with PIPELINING several share a write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from time import monotonic_ns
from typing import TYPE_CHECKING

from gateway._native import ReplyParser
from smtp_blaster import sasl
from smtp_blaster.speaker import NOTHING, Speaker
from smtp_blaster.supply import LATE_NS, Message
from smtp_blaster.tally import (
    ACCEPTED,
    AUTH,
    BROKEN,
    DATA,
    DOT,
    GREETING,
    HELLO,
    MAIL,
    NAMES,
    QUIT,
    RCPT,
    REFUSED,
    RSET,
    STARTTLS,
)  # fmt: skip

if TYPE_CHECKING:
    from smtp_blaster.source import Source
    from smtp_blaster.wire import Leg

LF, SPACE = 10, 32
INITIAL_RESPONSE_MAX = 500  # RFC 4954 §4: a command line that is too long goes without


class Session(Speaker):
    """A Speaker of SMTP or LMTP that sends."""

    __slots__ = (
        "_asked", "_behind", "_chunking", "_content_sent", "_dots", "_eight_bit", "_exchange", "_following",
        "_is_closing", "_is_plain", "_is_whole", "_ledger", "_leg", "_lmtp", "_mail_code", "_parser", "_pipelining",
        "_recipients", "_refused", "_taken", "_transient",
    )  # fmt: skip

    def __init__(self, source: Source, first: Message) -> None:
        Speaker.__init__(self, source, first)
        plan = source.plan
        self._ledger = source.ledger
        self._parser = ReplyParser()
        self._lmtp = plan.protocol == "lmtp"
        self._chunking = plan.chunking
        self._pipelining = self._eight_bit = False
        self._behind: deque[int] = deque()  # what the replies behind it answer: time << 4 | stage
        self._leg: Leg | None = None  # speaks for this session while all goes well
        self._is_plain = False
        self._is_whole = True  # the parser keeps no part of a reply
        self._exchange: Generator[bytes | None, bytes, None] | None = None
        self._following: Message | None = None  # its MAIL rides behind the content of that one
        self._content_sent = False
        self._asked = 0  # replies to RCPT
        self._mail_code = 0  # of a MAIL that was refused in a group
        self._dots = 0  # replies to the content (LMTP: one a recipient)
        # By index, the recipients of the message that is being answered:
        self._recipients: list[int] = []  # those RCPT took
        self._taken: list[int] = []  # those the content was taken for
        self._refused: list[int] = []
        self._transient: list[int] = []  # of the refused
        self._is_closing = False

    # -- asyncio -----------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        now = monotonic_ns()
        self._is_closing = True
        if self._leg is not None:
            self._leg.end()  # the transport closes the socket next: its number may soon be another's
        if self._message is not None:
            self._break(now)
        if self._following is not None:
            following, self._following = self._following, None
            self._set(following)
            self._break(now)
        self._exchange = None
        Speaker.connection_lost(self, exc)

    def data_received(self, data: bytes) -> None:
        size = len(data)
        last = data.rfind(b"\n", 0, size - 1) + 1  # the last line begins there, if it begins in data
        ends = size > last + 4 and data[size - 1] == LF and data[last + 3] == SPACE
        if ends and last == 0 and self._is_whole and data[0] in b"23" and MAIL <= self._stage <= DOT:
            # One whole positive reply and nothing else: nearly all of them are.
            self._on_positive(data)
            return
        try:
            replies = self._parser.feed(data)
        except ValueError as error:
            self._source.trouble(f"no SMTP reply: {error}")
            self.transport.abort()
            return
        self._is_whole = ends and (last > 0 or self._is_whole)
        for code, enhanced, text in replies:
            self._on_reply(code, enhanced, text)

    # -- what the source asks ----------------------------------------------------------------------

    def hello(self) -> None:
        self._send(HELLO, b"LHLO blaster.example.test\r\n" if self._lmtp else b"EHLO blaster.example.test\r\n")

    def is_overdue(self, now_ns: int, timeout_ns: int, quit_ns: int) -> bool:
        """The reply that is due next takes too long; so does the one to QUIT."""
        if self._leg is not None:
            if not self._leg.sent_ns or now_ns - self._leg.sent_ns <= timeout_ns:
                return False
            self._source.trouble(f"no answer in {timeout_ns / 1e9:g} s")
            return True
        return Speaker.is_overdue(self, now_ns, timeout_ns, quit_ns)

    def begin(self, message: Message) -> None:
        """Send it.  The session is idle."""
        now = monotonic_ns()
        self._count(message, now)
        self._set(message)
        if self._leg is None and self._is_plain and self._is_whole:
            self._leg = self._source.join(self)
        leg = self._leg
        if leg is not None:
            self._begin_leg(leg, message)
        elif self._pipelining:
            self.transport.writelines(self._transaction(message, now))
        else:
            self._expect(MAIL, now)
            self.transport.write(self._mail(message))

    def _begin_leg(self, leg: Leg, message: Message) -> None:
        commands = [self._mail(message), *message.rcpts]
        if self._chunking:
            content = message.content.chunk(self._head(message))
        else:
            commands.append(b"DATA\r\n")
            content = message.content.data(self._head(message))
        leg.begin(commands, content, self._chunking)

    def on_taken(self, line: bytes, now: int) -> None:
        """The leg's transaction came to its final reply, and all replies were positive."""
        message = self._message
        assert message is not None
        self._asked = len(message.rcpts)
        self._recipients = list(range(self._asked))
        self._content_sent = True
        self._count_dot(line)
        self._on_dot(250, now)

    def take_over(self, index: int, sent_ns: int, rest: list[bytes], data: bytes) -> None:
        """The leg goes no further: the reply to its index-th command, or to its content, is awaited (-1: none).

        rest: of the content, still to be sent; data: octets that came, with the reply or a part of it.
        """
        self._leg = None
        self._source.leave(self)
        message = self._message
        if index >= 0 and message is not None:
            count = len(message.rcpts)
            self._asked = min(max(index - 1, 0), count)
            self._recipients = list(range(self._asked))
            self._sent_ns = sent_ns
            if index == 0:
                self._stage = MAIL
            elif index <= count:
                self._stage = RCPT
            elif index == count + 1 and not self._chunking:
                self._stage = DATA
            else:
                self._stage = DOT
                self._content_sent = True
        if rest and not self.transport.is_closing():
            self.transport.writelines(rest)
        if data:
            self.data_received(data)

    def abort(self) -> None:
        """Now; connection_lost() comes later."""
        if self._leg is not None:
            self._leg.end()
        self.transport.abort()

    def quit(self) -> None:
        if self._leg is not None:
            self._leg.end()
        self._send(QUIT, b"QUIT\r\n")

    # -- replies -----------------------------------------------------------------------------------

    def _expect(self, stage: int, now: int) -> None:
        if self._stage == NOTHING:
            self._stage = stage
            self._sent_ns = now
        else:
            self._behind.append(now << 4 | stage)

    def _answered(self) -> None:
        """The first that was awaited has come."""
        if self._behind:
            head = self._behind.popleft()
            self._stage = head & 15
            self._sent_ns = head >> 4
        else:
            self._stage = NOTHING

    def _on_positive(self, data: bytes) -> None:
        stage = self._stage
        code = (data[0] - 48) * 100 + (data[1] - 48) * 10 + data[2] - 48
        now = monotonic_ns()
        self._tally.record(stage, now - self._sent_ns)
        if stage == DOT:
            self._count_dot(data)
            self._on_dot(code, now)
            return
        self._answered()
        if stage == MAIL:
            self._on_mail(code)
        elif stage == RCPT:
            self._on_rcpt(code)
        else:
            self._on_data(code)

    def _count_dot(self, line: bytes) -> None:
        """The positive reply to content, one line."""
        if not self._tally.reply_again(line):
            for code, enhanced, text in ReplyParser().feed(line):
                self._tally.reply(DOT, code, enhanced, text)
                self._tally.remember(code, enhanced, line)

    def _on_reply(self, code: int, enhanced: str, text: str) -> None:
        stage = self._stage
        if code == 421 or stage == NOTHING:  # RFC 5321 §3.8: 421 may come at any time
            self._on_shutdown(code, enhanced, text)
            return
        now = monotonic_ns()
        sent = self._sent_ns
        if stage <= QUIT and (stage != AUTH or code != 334):
            self._tally.record(stage, now - sent)
        if code >= 400 or stage == DOT:
            self._tally.reply(stage, code, enhanced, text)
        if stage == DOT:
            self._on_dot(code, now)
            return
        self._answered()
        if stage == MAIL:
            self._on_mail(code)
        elif stage == RCPT:
            self._on_rcpt(code)
        elif stage == DATA:
            self._on_data(code)
        elif stage == RSET:
            self._end(now)
        elif stage == QUIT:
            self.transport.close()
        else:
            self._on_set_up(stage, code, text, sent)

    def _on_shutdown(self, code: int, enhanced: str, text: str) -> None:
        """The server takes its leave: what it did not answer it did not take."""
        stage = QUIT if self._stage == NOTHING else self._stage
        self._tally.reply(stage, code, enhanced, text)
        if self._message is None and self._stage != NOTHING:
            self._source.trouble(f"{NAMES[stage]}: {code} {text}")
        self._stage = NOTHING
        self._behind.clear()
        self._is_closing = True
        while code == 421 and self._message is not None:
            self._refuse_open(code)
            self._end(monotonic_ns())
        self.transport.abort()

    # -- the set-up --------------------------------------------------------------------------------

    def _on_set_up(self, stage: int, code: int, text: str, sent: int) -> None:
        if code >= 400:
            self._source.trouble(f"{NAMES[stage]}: {code} {text}")
            self.quit()
        elif stage == GREETING:
            self.hello()
        elif stage == STARTTLS:
            self._source.start_tls(self, sent)
        elif stage == AUTH:
            self._on_auth(code, text, sent)
        else:
            self._on_hello(text)

    def _on_hello(self, text: str) -> None:
        plan = self._source.plan
        if plan.tls == "starttls" and not self.is_secure:
            self._send(STARTTLS, b"STARTTLS\r\n")
            return
        offered = {}
        for line in text.split("\n")[1:]:
            keyword, _, parameters = line.partition(" ")
            offered[keyword.upper()] = parameters
        if plan.chunking and "CHUNKING" not in offered:
            self._source.trouble("the server does not offer CHUNKING")
            self.quit()
            return
        self._pipelining = plan.pipelining and "PIPELINING" in offered
        # A leg speaks plain TCP, and hears one reply to the content.
        self._is_plain = plan.tls == "off" and not self._pipelining and not (self._lmtp and plan.recipients > 1)
        self._eight_bit = "8BITMIME" in offered
        if plan.auth:
            self._authenticate(offered.get("AUTH", ""))
        else:
            self._ready()

    def _authenticate(self, offered: str) -> None:
        plan = self._source.plan
        try:
            mechanism = sasl.choose(plan.auth_mechanism, offered)
        except ValueError as error:
            self._source.trouble(str(error))
            self.quit()
            return
        self._exchange = sasl.exchange(mechanism, *self._source.next_user())
        first = next(self._exchange)
        if first is not None and len(first) > INITIAL_RESPONSE_MAX:
            self._exchange = sasl.late(first, self._exchange)
            first = None
            next(self._exchange)
        line = f"AUTH {mechanism}".encode()
        self._send(AUTH, line + b"\r\n" if first is None else line + b" " + sasl.encoded(first) + b"\r\n")

    def _on_auth(self, code: int, text: str, sent: int) -> None:
        if code != 334:
            self._exchange = None
            self._ready()
            return
        try:
            assert self._exchange is not None
            answer = self._exchange.send(sasl.decoded(text)) or b""
        except (ValueError, StopIteration) as error:
            self._source.trouble(f"AUTH: {error or 'a challenge too many'}")
            answer, self._exchange = None, None
        self._expect(AUTH, sent)  # the stage is the whole exchange
        # RFC 4954 §4: "*" cancels.
        self.transport.write(b"*\r\n" if answer is None else sasl.encoded(answer) + b"\r\n")

    # -- transactions ------------------------------------------------------------------------------

    def _send(self, stage: int, octets: bytes) -> None:
        self._expect(stage, monotonic_ns())
        self.transport.write(octets)

    def _set(self, message: Message) -> None:
        """This one is answered from now on."""
        self._message = message
        self._content_sent = False
        self._asked = self._dots = self._mail_code = 0
        if self._recipients:
            self._recipients = []
            self._taken = []
        if self._refused:
            self._refused = []
            self._transient = []

    def _mail(self, message: Message) -> bytes:
        if self._eight_bit and message.content.is_eight_bit:
            return message.mail[:-2] + b" BODY=8BITMIME\r\n"  # RFC 6152 §2
        return message.mail

    def _transaction(self, message: Message, now: int) -> list[bytes]:
        """All of it for a server with PIPELINING: up to DATA, or with CHUNKING to the end of the content."""
        self._expect(MAIL, now)
        for _ in message.rcpts:
            self._expect(RCPT, now)
        if self._chunking:
            self._content_sent = True
            self._expect(DOT, now)
            return [self._mail(message), *message.rcpts, *message.content.chunk(self._head(message))]
        self._expect(DATA, now)
        return [self._mail(message), *message.rcpts, b"DATA\r\n"]

    def _on_mail(self, code: int) -> None:
        if code >= 400 and self._pipelining:
            self._mail_code = code
        elif code >= 400:
            self._refuse_open(code)
            self._end(monotonic_ns())
        elif not self._pipelining:
            assert self._message is not None
            self._send(RCPT, self._message.rcpts[0])

    def _on_rcpt(self, code: int) -> None:
        message = self._message
        assert message is not None
        asked = self._asked
        self._asked = asked + 1
        if code >= 400:
            self._refuse(asked, self._mail_code or code)  # 503 behind a refused MAIL says nothing of its own
        else:
            self._recipients.append(asked)
        if self._pipelining:
            return
        if self._asked < len(message.rcpts):
            self._send(RCPT, message.rcpts[self._asked])
        elif not self._recipients:
            self._send(RSET, b"RSET\r\n")
        elif self._chunking:
            self._content_sent = True
            self._expect(DOT, monotonic_ns())
            self.transport.writelines(message.content.chunk(self._head(message)))
        else:
            self._send(DATA, b"DATA\r\n")

    def _on_data(self, code: int) -> None:
        if code >= 400:
            self._refuse_open(code)
            self._send(RSET, b"RSET\r\n")  # a transaction may stand open: the next MAIL would be out of order
            return
        message = self._message
        assert message is not None
        if self._recipients:
            self._content_sent = True
            buffers = message.content.data(self._head(message))
        else:
            buffers = [b".\r\n"]  # RFC 2920 §3.1
        now = monotonic_ns()
        self._expect(DOT, now)
        # RFC 2920 §3.1: the next MAIL may stand behind the final dot.
        if self._pipelining and self._remaining:
            following = self._supply.take()
            if following is not None:
                self._following = following
                self._count(following, now)
                buffers += self._transaction(following, now)
        self.transport.writelines(buffers)

    def _on_dot(self, code: int, now: int) -> None:
        message = self._message
        assert message is not None
        # RFC 2033 §4.2: one reply for each recipient that was taken; to chunks without any there is one.
        about = self._recipients
        is_last = True
        if self._lmtp and about:
            is_last = self._dots + 1 == len(about)
            about = [about[self._dots]]
        self._dots += 1
        if code >= 400:
            for index in about:
                self._refuse(index, code)
        elif about:
            self._taken += about
            if self._ledger is not None:
                self._ledger.add(self._id(message), message.content.digest, [message.paths[index] for index in about])
        if is_last:
            self._answered()
            self._end(now)

    # -- how messages end --------------------------------------------------------------------------

    def _refuse(self, index: int, code: int) -> None:
        if index not in self._refused:
            self._refused.append(index)
            if code < 500:
                self._transient.append(index)

    def _refuse_open(self, code: int) -> None:
        """All recipients that have no final reply yet."""
        for index in self._open():
            self._refuse(index, code)

    def _open(self) -> list[int]:
        """By index, the recipients that have no final reply yet."""
        assert self._message is not None
        known = {*self._refused, *self._taken}
        return [index for index in range(len(self._message.rcpts)) if index not in known]

    def _end(self, now: int) -> None:
        """Every recipient of the message is answered."""
        message, self._message = self._message, None
        assert message is not None
        self.done += 1
        tally = self._tally
        tally.in_flight -= 1
        if self._taken and message.start_ns >= tally.measure_from_ns:
            tally.recipients_accepted += len(self._taken)
        if self._refused and self._ledger is not None:
            self._ledger.refuse(self._id(message), [message.paths[index] for index in self._refused])
        self._settle(message, ACCEPTED if self._taken else REFUSED, self._transient, now)
        following, self._following = self._following, None
        if following is not None:
            self._set(following)
        elif not self._is_closing:
            self._next()

    def _settle(self, message: Message, how: int, left: list[int], now: int) -> None:
        """Count it, or have it sent again to whom is left."""
        message.how = how
        if left and self._supply.again(message, left):
            self._tally.retried += 1
            if how != ACCEPTED:
                return
        if not message.is_counted:
            self._tally.end(how, message.start_ns, now, message.content.size_octets)
            message.is_counted = how == ACCEPTED

    def _break(self, now: int) -> None:
        """The connection is gone in the middle of a message."""
        left = self._open()
        message, self._message = self._message, None
        assert message is not None
        tally = self._tally
        tally.in_flight -= 1
        if self._taken and message.start_ns >= tally.measure_from_ns:
            tally.recipients_accepted += len(self._taken)
        if self._ledger is not None:
            name = self._id(message)
            if self._content_sent:
                self._ledger.unknown(name, [message.paths[index] for index in left])
            if self._refused:
                self._ledger.refuse(name, [message.paths[index] for index in self._refused])
        self._settle(message, BROKEN, left + self._transient, now)

    def _id(self, message: Message) -> str:
        return self._source.mail.message_id(message.number)

    def _head(self, message: Message) -> bytes:
        return self._source.mail.head(message.number)

    def _count(self, message: Message, now: int) -> None:
        self._remaining -= 1
        supply = self._supply
        self._tally.begin(message.start_ns, supply.is_open and now - message.start_ns > LATE_NS)
