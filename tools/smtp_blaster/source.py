"""The source: many SMTP or LMTP clients on one loop, sending numbered mail as fast or as often as
they are told.

    Owns      Plan (what to send), Source (one run), Result (what came of it)
    Flow      Source.run → Session per connection → transaction after transaction → Result
    Limits    every run ends: after plan.messages, after plan.duration_s, or when no connection can
              be had
    Errors    a refused or broken transaction is counted by its reply, never repeated;
              TargetRefused before anything
    Standards RFC 5321, RFC 2033 (LMTP), RFC 2920 (PIPELINING), RFC 3030 (CHUNKING), RFC 3207
              (STARTTLS)

Latency is measured from the intended start: in an open loop (plan.rate) a message that waits for a
free connection
waits inside its latency, so a server that stalls cannot hide it (coordinated omission).
"""

from __future__ import annotations

import asyncio
import resource
import ssl
import time
from array import array
from collections import Counter, deque
from collections.abc import Coroutine
from pathlib import Path

import msgspec

from gateway._native import ReplyParser
from smtp_blaster.content import Content
from smtp_blaster.ledger import Ledger
from smtp_blaster.target import resolve

# What a reply answers.
GREETING, HELLO, STARTTLS, MAIL, RCPT, DATA, DOT, RSET, QUIT = range(9)
STAGES = ("greeting", "hello", "starttls", "mail", "rcpt", "data", "dot", "rset", "quit")

REVERSE_PATH = "source@example.test"
FORWARD_PATH = "sink@example.test"

Message = tuple[int, float]  # number, intended start (time.monotonic())

CONNECT_ATTEMPTS = 3  # in a row, by one session; then it gives up
CONNECT_PAUSE_S = 0.2
DRAIN_S = 30.0  # how long transactions in flight may take after the duration is over


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    target: str  # HOST:PORT
    protocol: str = "smtp"  # smtp | lmtp
    connections: int = 1
    messages: int = 0  # 0 = until duration_s is over
    duration_s: float = 0.0  # 0 = until messages are sent
    rate: float = (
        0.0  # messages/s over all connections; 0 = closed loop, each connection as fast as it can
    )
    size_octets: int = 10240
    recipients: int = 1
    per_connection: int = 0  # messages, then QUIT and a new connection; 0 = no limit
    pipelining: bool = False
    chunking: bool = False
    dots: bool = False  # every tenth line begins with a dot
    tls: str = "off"  # off | starttls | implicit
    reverse_path: str = REVERSE_PATH
    forward_path: str = FORWARD_PATH  # with several recipients "sink-1@…", "sink-2@…"
    owned: bool = False  # --i-own-this-target
    seed: int = 1
    run: str = ""  # part of every Message-ID; "" = from the clock
    ledger: str = ""  # file for what was accepted


class Result(msgspec.Struct, kw_only=True):
    accepted: int  # messages with at least one recipient taken
    refused: int  # messages with a negative reply
    broken: (
        int  # messages whose connection went before the last reply: delivered or not, nobody knows
    )
    recipients_accepted: int
    connections_opened: int
    connections_failed: int
    seconds: float
    messages_per_s: float
    cpu_us_per_message: float  # of this process, from the first connection to the last
    latency_ms: dict[str, float]  # of accepted messages: min, p50, p90, p99, p999, max
    replies: dict[str, int]  # "dot 250": 17, every negative reply and every final one
    size_octets: int
    late_starts: int  # open loop: messages begun more than a millisecond after their intended start


class Source:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        if not plan.messages and not plan.duration_s:
            raise ValueError("a run needs an end: messages or duration_s")
        self.plan = plan
        self.address = resolve(plan.target, owned=plan.owned)
        self.content = Content(
            plan.size_octets, run=plan.run or f"{time.time_ns():x}", seed=plan.seed, dots=plan.dots
        )
        self.forward_paths = _forward_paths(plan.forward_path, plan.recipients)
        self.mail = f"MAIL FROM:<{plan.reverse_path}>\r\n".encode()
        self.rcpts = [f"RCPT TO:<{path}>\r\n".encode() for path in self.forward_paths]
        self.ledger = Ledger(Path(plan.ledger)) if plan.ledger else None
        self.tls = _client_context() if plan.tls != "off" else None
        self.accepted = self.refused = self.broken = self.recipients_accepted = 0
        self.opened = self.failed = self.begun = self.late_starts = 0
        self.latencies = array("d")
        self.replies: Counter[tuple[int, int]] = Counter()
        self.started = self.deadline = 0.0
        self._beside: set[asyncio.Task[None]] = set()
        self._interval = 1.0 / plan.rate if plan.rate else 0.0

    async def run(self) -> Result:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.started = time.monotonic()
        self.deadline = (
            self.started + self.plan.duration_s if self.plan.duration_s else float("inf")
        )
        sessions = [asyncio.create_task(self._keep_session()) for _ in range(self.plan.connections)]
        limit = self.plan.duration_s + DRAIN_S if self.plan.duration_s else None
        _, late = await asyncio.wait(sessions, timeout=limit)
        for session in late:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
        if self.ledger is not None:
            self.ledger.close()
        return self._result(time.monotonic() - self.started, usage)

    def take(self) -> Message | None:
        """Number and intended start (monotonic) of the next message, None when the run is over."""
        number = self.begun
        if self.plan.messages and number >= self.plan.messages:
            return None
        start = self.started + number * self._interval if self._interval else time.monotonic()
        if start >= self.deadline or time.monotonic() >= self.deadline:
            return None
        self.begun = number + 1
        return number, start

    def keep(self, work: Coroutine[None, None, None]) -> None:
        """Run beside the sessions; asyncio itself holds tasks only weakly."""
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _keep_session(self) -> None:
        """One of plan.connections: opens a connection, and again after per_connection messages or a break."""
        failures = 0
        while failures < CONNECT_ATTEMPTS and (message := self.take()) is not None:
            session = await self._connect(message)
            if session is None:
                self.broken += 1
                return
            try:
                await session.closed
            finally:
                session.transport.abort()
            failures = 0 if session.done else failures + 1

    async def _connect(self, message: Message) -> Session | None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECT_ATTEMPTS):
            try:
                _, session = await loop.create_connection(
                    lambda: Session(self, message),
                    *self.address,
                    ssl=self.tls if self.plan.tls == "implicit" else None,
                )
            except OSError:
                self.failed += 1
                await asyncio.sleep(CONNECT_PAUSE_S)
            else:
                self.opened += 1
                return session
        return None

    def _result(self, seconds: float, before: resource.struct_rusage) -> Result:
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Result(
            accepted=self.accepted,
            refused=self.refused,
            broken=self.broken,
            recipients_accepted=self.recipients_accepted,
            connections_opened=self.opened,
            connections_failed=self.failed,
            seconds=seconds,
            messages_per_s=self.accepted / seconds if seconds else 0.0,
            cpu_us_per_message=1e6 * cpu_s / max(1, self.accepted),
            latency_ms=_percentiles(self.latencies),
            replies={
                f"{STAGES[stage]} {code}": n for (stage, code), n in sorted(self.replies.items())
            },
            size_octets=self.content.size_octets,
            late_starts=self.late_starts,
        )


class Session(asyncio.Protocol):
    """One connection: speaks its messages one after the other, then QUIT."""

    __slots__ = (
        "_awaited", "_dots", "_first", "_following", "_lmtp", "_number", "_parser", "_pipelining",
        "_positive_dot", "_recipients", "_remaining", "_source", "_start", "_timer", "closed", "done",
        "transport",
    )  # fmt: skip

    def __init__(self, source: Source, first: Message) -> None:
        self._source = source
        self._lmtp = source.plan.protocol == "lmtp"
        self._pipelining = False
        self._remaining = (
            source.plan.per_connection or -1
        )  # messages this connection may still begin
        self._parser = ReplyParser()
        self._awaited: deque[int] = deque((GREETING,))
        self._first: Message | None = first  # taken, but not begun
        self._number = -1  # the transaction that is being answered; -1 = none
        self._start = 0.0
        self._following: Message | None = (
            None  # the one whose MAIL rides behind the content of this one
        )
        self._recipients: list[
            int
        ] = []  # by index, those taken in the transaction that is being answered
        self._dots = 0  # replies to its content that came already (LMTP: one a recipient)
        self._positive_dot = 0  # recipients they accepted
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done = 0  # messages answered to the end

    # -- asyncio -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        unanswered = (self._number >= 0, self._following is not None, self._first is not None)
        self._source.broken += sum(unanswered)
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._parser.feed(data)
        except ValueError:
            self.transport.abort()
            return
        for code, _, text in replies:
            self._on_reply(code, text)

    # -- the dialog --------------------------------------------------------------------------------

    def _on_reply(self, code: int, text: str) -> None:
        if code == 421 or not self._awaited:
            self._source.replies[self._awaited[0] if self._awaited else QUIT, code] += 1
            self.transport.abort()
            return
        stage = self._awaited.popleft()
        if stage == DOT:
            self._on_dot(code)
            return
        if code >= 400:
            self._source.replies[stage, code] += 1
        if stage == MAIL:
            self._on_mail(code)
        elif stage == RCPT:
            self._on_rcpt(code)
        elif stage == DATA:
            self._on_data(code)
        elif stage == RSET:
            self._refuse()
        elif stage == QUIT:
            self.transport.close()
        elif code >= 400:
            self._quit()
        elif stage == GREETING:
            self._hello()
        elif stage == STARTTLS:
            self._start_tls()
        else:
            self._on_hello(text)

    def _send(self, stage: int, *octets: bytes) -> None:
        self._awaited.append(stage)
        self.transport.writelines(octets)

    def _hello(self) -> None:
        self._send(
            HELLO,
            b"LHLO blaster.example.test\r\n" if self._lmtp else b"EHLO blaster.example.test\r\n",
        )

    def _on_hello(self, text: str) -> None:
        plan = self._source.plan
        if plan.tls == "starttls" and self.transport.get_extra_info("ssl_object") is None:
            self._send(STARTTLS, b"STARTTLS\r\n")
            return
        offered = {line.partition(" ")[0].upper() for line in text.split("\n")[1:]}
        if plan.chunking and "CHUNKING" not in offered:
            self._quit()
            return
        self._pipelining = plan.pipelining and "PIPELINING" in offered
        assert self._first is not None
        message, self._first = self._first, None
        self._begin(message)

    def _start_tls(self) -> None:
        source, context = self._source, self._source.tls
        assert context is not None

        async def upgrade() -> None:
            try:
                transport = await asyncio.get_running_loop().start_tls(
                    self.transport, self, context
                )
            except OSError:  # ssl.SSLError is one
                self.transport.abort()
                return
            if transport is not None:
                self.transport = transport
                self._hello()

        source.keep(upgrade())

    def _next(self) -> None:
        """Begin another transaction, or end the connection."""
        message = self._source.take() if self._remaining else None
        if message is None:
            self._quit()
        else:
            self._begin(message)

    def _begin(self, message: Message) -> None:
        early_s = message[1] - time.monotonic()
        if early_s > 0 and self._source.plan.rate:
            self._first = message
            self._timer = asyncio.get_running_loop().call_later(early_s, self._begin_in_time)
            return
        self._source.late_starts += early_s < -0.001
        self._remaining -= 1
        self._number, self._start = message
        self._clear()
        if self._pipelining:
            self.transport.writelines(self._transaction(self._number))
        else:
            self._send(MAIL, self._source.mail)

    def _begin_in_time(self) -> None:
        assert self._first is not None
        message, self._first = self._first, None
        self._begin(message)

    def _clear(self) -> None:
        self._recipients.clear()
        self._dots = self._positive_dot = 0

    def _transaction(self, number: int) -> list[bytes]:
        """All of it for a server with PIPELINING: up to DATA, or with CHUNKING to the end of the content."""
        source = self._source
        self._awaited.append(MAIL)
        self._awaited.extend(RCPT for _ in source.rcpts)
        if source.plan.chunking:
            self._awaited.append(DOT)
            return [source.mail, *source.rcpts, *source.content.chunk(number)]
        self._awaited.append(DATA)
        return [source.mail, *source.rcpts, b"DATA\r\n"]

    def _on_mail(self, code: int) -> None:
        if self._pipelining:
            return
        if code < 400:
            self._send(RCPT, self._source.rcpts[0])
        else:
            self._refuse()

    def _on_rcpt(self, code: int) -> None:
        asked = self._dots  # before the content, this counts the answers to RCPT
        self._dots += 1
        if code < 400:
            self._recipients.append(asked)
        source = self._source
        if self._dots == len(source.rcpts):
            self._dots = 0
        if self._pipelining:
            return
        if self._dots:
            self._send(RCPT, source.rcpts[self._dots])
        elif not self._recipients:
            self._send(RSET, b"RSET\r\n")
        elif source.plan.chunking:
            self._send(DOT, *source.content.chunk(self._number))
        else:
            self._send(DATA, b"DATA\r\n")

    def _on_data(self, code: int) -> None:
        if code >= 400:
            self._refuse()
            return
        source = self._source
        buffers = (
            source.content.data(self._number) if self._recipients else [b".\r\n"]
        )  # RFC 2920 §3.1
        self._awaited.append(DOT)
        # RFC 2920 §3.1: the next MAIL may stand behind the final dot.  An open loop begins by the
        # clock instead.
        if self._pipelining and self._remaining and not source.plan.rate:
            self._following = source.take()
            if self._following is not None:
                self._remaining -= 1
                buffers += self._transaction(self._following[0])
        self.transport.writelines(buffers)

    def _on_dot(self, code: int) -> None:
        source = self._source
        source.replies[DOT, code] += 1
        if code < 400:
            taken = (
                [self._recipients[self._dots]]
                if self._lmtp and self._recipients
                else self._recipients
            )
            self._positive_dot += len(taken)
            if source.ledger is not None:
                source.ledger.add(
                    source.content.message_id(self._number),
                    source.content.digest,
                    [source.forward_paths[index] for index in taken],
                )
        self._dots += 1
        # RFC 2033 §4.2: one reply for each recipient that was taken; to chunks without any there
        # is one.
        if self._lmtp and self._dots < len(self._recipients):
            self._awaited.appendleft(DOT)
            return
        if not self._positive_dot:
            self._refuse()
            return
        source.accepted += 1
        source.recipients_accepted += self._positive_dot
        source.latencies.append(time.monotonic() - self._start)
        self._finish()

    def _refuse(self) -> None:
        self._source.refused += 1
        self._finish()

    def _finish(self) -> None:
        self.done += 1
        self._number = -1
        if self._following is None:
            self._next()
        else:
            (self._number, self._start), self._following = self._following, None
            self._clear()

    def _quit(self) -> None:
        self._send(QUIT, b"QUIT\r\n")


def _forward_paths(template: str, count: int) -> list[str]:
    if count == 1:
        return [template]
    local_part, _, domain = template.rpartition("@")
    return [f"{local_part}-{number}@{domain}" for number in range(1, count + 1)]


def _client_context() -> ssl.SSLContext:
    """Takes any certificate: the load is measured here, not the peer's identity."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _percentiles(seconds: array[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    last = len(ordered) - 1
    points = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: 1e3 * ordered[round(last * point)] for name, point in points.items()}
