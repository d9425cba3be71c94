"""A connection that retrieves mail: set-up, then task after task of a mix, then its end.

Owns      RetrievalSession, what POP3 and IMAP share; Step and Answer, what their scripts yield and are sent
Flow      script (a generator) yields Step → octets → Answer → script …; Supply says what is due, Tally what came of it
Limits    the source's sweep ends it when an answer takes longer than plan.timeout_s
Errors    a negative answer ends the task ("refused"), in the set-up the connection; a connection that goes leaves its
          task "broken"; one that was not begun goes back to the source

A stage lasts from the write that carried its command to the end of its answer.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Generator
from time import monotonic_ns
from typing import TYPE_CHECKING, NamedTuple

from smtp_blaster import sasl
from smtp_blaster.speaker import FAREWELLS, NOTHING, Speaker
from smtp_blaster.supply import LATE_NS, Message
from smtp_blaster.tally import (
    ACCEPTED,
    AUTH,
    BROKEN,
    NAMES,
    QUIT,
    REFUSED,
    STARTTLS,
)

if TYPE_CHECKING:
    from smtp_blaster.source import Source


class Step(NamedTuple):
    """What a script does next."""

    stage: int  # STARTTLS: TLS begins behind the positive answer
    octets: bytes = b""  # a command without its line end; empty: nothing is sent
    is_continued: bool = False  # it belongs to the command before, whose stage goes on
    has_lines: bool = False  # POP3: the positive answer has several (RFC 1939 §3)


class Answer(NamedTuple):
    """What came."""

    is_positive: bool
    word: str  # OK, NO, BAD, +OK, -ERR; + for a continuation
    text: bytes  # the rest of that line
    lines: list[bytes]  # that stood before it (IMAP), or behind it (POP3)


Script = Generator[Step, Answer, None]


class RetrievalSession(Speaker, ABC):
    """A Speaker of POP3 or IMAP; the work is a task of the mix."""

    farewell = Step(QUIT, b"QUIT")
    is_short = False  # a connection for each task, where the plan does not say how many

    def __init__(self, source: Source, first: Message | None) -> None:
        super().__init__(source, first)
        if self.is_short and not source.plan.per_connection:
            self._remaining = 1
        self._octets_before = 0
        self._script: Script | None = None
        self.octets = 0  # that came

    # -- what a protocol is ------------------------------------------------------------------------

    @abstractmethod
    def set_up(self) -> Script:
        """From the greeting to where tasks may begin.  ValueError says why it cannot go on."""

    @abstractmethod
    def task(self, number: int) -> Script:
        """One task of the mix."""

    @abstractmethod
    def read(self, data: bytes) -> None:
        """Calls answered() for each answer.  ValueError for what is none."""

    @abstractmethod
    def line(self, step: Step) -> bytes:
        """As it is sent."""

    # -- asyncio -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._script = self.set_up()
        self._perform(next(self._script))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._message is not None:
            self._end(BROKEN)
        self._script = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.octets += len(data)
        try:
            self.read(data)
        except ValueError as error:
            self._source.trouble(f"{self._source.plan.protocol.upper()}: {error}")
            self.transport.abort()

    # -- what the source asks ----------------------------------------------------------------------

    def hello(self) -> None:
        """TLS stands behind STARTTLS or STLS: the set-up goes on."""
        self._go_on(Answer(True, "", b"", []))

    def begin(self, message: Message) -> None:
        """Run the task.  The session is idle."""
        now = monotonic_ns()
        self._remaining -= 1
        self._message = message
        self._octets_before = self.octets
        self._tally.begin(message.start_ns, self._supply.is_open and now - message.start_ns > LATE_NS)
        self._script = self.task(message.number)
        self._perform(next(self._script))

    def quit(self) -> None:
        self._script = None
        self._perform(self.farewell)

    def user(self) -> tuple[str, str]:
        """Name and password."""
        return self._source.next_user()

    def authenticate(self, command: bytes) -> Script:
        """The SASL exchange, without an initial response."""
        mechanism = self._source.plan.auth_mechanism
        exchange = sasl.exchange(mechanism, *self.user())
        answer = yield Step(AUTH, command + b" " + mechanism.encode())
        message = next(exchange)
        while answer.word == "+":
            try:
                if message is None:  # the server speaks first
                    message = exchange.send(sasl.decoded(answer.text.decode()))
                answer = yield Step(AUTH, sasl.encoded(message or b""), is_continued=True)
                if answer.word == "+":
                    message = exchange.send(sasl.decoded(answer.text.decode()))
            except StopIteration:
                raise ValueError(f"{mechanism}: a challenge too many") from None

    # -- scripts -----------------------------------------------------------------------------------

    def _perform(self, step: Step) -> None:
        if not step.is_continued:
            self._stage, self._sent_ns = step.stage, monotonic_ns()
        self.asked(step)
        if step.octets or step.is_continued:
            self.transport.write(self.line(step))

    def asked(self, step: Step) -> None:
        """The answer to this is awaited now."""

    def answered(self, answer: Answer) -> None:
        """By read(): the answer to what was asked last."""
        stage, sent_ns = self._stage, self._sent_ns
        if stage == NOTHING:
            return
        if answer.word != "+":
            self._stage = NOTHING
            if stage != STARTTLS:
                self._tally.record(stage, monotonic_ns() - sent_ns)
        if not answer.is_positive:
            self._refused(stage, answer)
        elif stage in FAREWELLS:
            self.transport.close()
        elif stage == STARTTLS:
            self._source.start_tls(self, sent_ns)
        else:
            self._go_on(answer)

    def _go_on(self, answer: Answer) -> None:
        script = self._script
        if script is None:
            return
        try:
            step = script.send(answer)
        except StopIteration:
            self._script = None
            if self._message is None:
                self._ready()
            else:
                self._end(ACCEPTED)
                self._next()
        except ValueError as error:
            self._source.trouble(str(error))
            self.transport.abort()
        else:
            self._perform(step)

    def _refused(self, stage: int, answer: Answer) -> None:
        text = answer.text.decode("utf-8", "replace")
        if stage in FAREWELLS:
            self.transport.close()
        elif self._message is None:
            self._source.trouble(f"{NAMES[stage]}: {answer.word} {text}")
            self.quit()
        else:
            self._tally.reply(stage, 0, answer.word, text)
            self._script = None
            self._end(REFUSED)
            self._next()

    def _end(self, how: int) -> None:
        message, self._message = self._message, None
        assert message is not None
        self.done += how != BROKEN
        self._tally.in_flight -= 1
        message.how = how
        self._tally.end(how, message.start_ns, monotonic_ns(), self.octets - self._octets_before)
