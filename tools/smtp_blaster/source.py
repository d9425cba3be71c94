"""The source: many clients on one loop, sending numbered mail, or retrieving it, as fast or as often as they are told.

Owns      Source (one process's part of a run), Result (what came of it)
Flow      Source.run → a task a connection → Session (to send), RetrievalSession → Supply and Tally → Result
Limits    every run ends: plan.messages, plan.duration_s or supply.py's limits, no ready connection for
          plan.patience_s, stop(); then transactions in flight have DRAIN_S
Errors    a refused or broken transaction is counted, and repeated only when the plan says so (retry_s); a
          connection that went is opened again with growing pauses; TargetRefused before anything
Standards RFC 5321 §4.5.3.2, RFC 3207, RFC 8314 §3.3

Latency is measured from the intended start: in an open loop (plan.rate) a message that waits for a free
connection waits inside its latency, so a server that stalls cannot hide it (coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
import time
from collections import deque
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path
from typing import cast

import msgspec

from smtp_blaster.content import Mail
from smtp_blaster.imap import ImapSession
from smtp_blaster.ledger import Ledger
from smtp_blaster.plan import Plan, check, duration_s
from smtp_blaster.pop3 import Pop3Session
from smtp_blaster.session import Session
from smtp_blaster.speaker import Speaker
from smtp_blaster.supply import NEVER_NS, Message, Supply
from smtp_blaster.tally import HISTOGRAMS, NAMES, TLS, Tally
from smtp_blaster.target import parse, resolve
from smtp_blaster.timer import Timer
from smtp_blaster.wire import Leg, Wire

__all__ = ["Interval", "Plan", "Result", "Source"]

BACKOFF_S = (0.05, 1.0)  # between two attempts to connect: the first pause, the longest
FIRST_PATIENCE_S = 10.0  # as plan.patience_s, as long as there was no connection at all
DRAIN_S = 30.0  # how long transactions in flight may take after the end
QUIT_S = 5.0  # and a connection that has none
FLUSH_S = 0.1  # how much of a ledger a kill of this process may cost; it costs no promise
TROUBLES_MAX = 10


SPEAKERS: dict[str, type[Speaker]] = {"pop3": Pop3Session, "imap": ImapSession}  # who else sends mail: Session


class Interval(msgspec.Struct, kw_only=True, tag=True):
    """One second of a source."""

    second: int  # from the run's start
    offered: int
    accepted: int
    refused: int
    broken: int
    in_flight: int
    latency: dict[int, int]  # tally's buckets of the messages accepted in it


class Answer(msgspec.Struct, kw_only=True):
    """A kind of reply: every negative one, and every one to content."""

    stage: str
    code: int
    enhanced: str
    text: str
    count: int


class Result(msgspec.Struct, kw_only=True, tag=True):
    """What came of a source's part; summary.py adds up several."""

    accepted: int = 0  # messages with at least one recipient taken
    refused: int = 0  # messages with negative replies only
    broken: int = 0  # messages whose connection went before the last reply: delivered or not, nobody knows
    unsent: int = 0  # messages that were due and never begun
    retried: int = 0
    recipients_accepted: int = 0
    octets: int = 0
    connections_opened: int = 0
    connections_failed: int = 0
    late_starts: int = 0
    warmed_up: int = 0  # messages of the warm-up: sent, not counted
    seconds: float = 0.0
    cpu_s: float = 0.0  # of this process between start and end
    latency: dict[str, dict[int, int]] = {}  # by stage: tally's buckets
    answers: list[Answer] = []
    intervals: list[Interval] = []
    troubles: dict[str, int] = {}  # why connections did not become ready

    @property
    def replies(self) -> dict[str, int]:
        """ "dot 250": 17"""
        found: dict[str, int] = {}
        for answer in self.answers:
            key = f"{answer.stage} {answer.code}"
            found[key] = found.get(key, 0) + answer.count
        return dict(sorted(found.items()))

    @property
    def messages_per_s(self) -> float:
        return self.accepted / self.seconds if self.seconds else 0.0

    @property
    def cpu_us_per_message(self) -> float:
        return 1e6 * self.cpu_s / max(1, self.accepted)


class Source:
    """Process `part` of a run of a plan."""

    def __init__(
        self, plan: Plan, part: int = 0, *, mail: Mail | None = None, ledger: Ledger | None = None
    ) -> None:
        """mail, ledger: those of the whole run where it has several parts."""
        check(plan)
        self.plan = plan
        self.address = resolve(plan.target, owned=plan.owned)
        self.mail = mail or Mail(plan, plan.run or f"{time.time_ns():x}")
        self.ledger = ledger or (Ledger(Path(plan.ledger)) if plan.ledger else None)
        self.supply = Supply(plan, self.mail, part)
        self.tally = Tally()
        self.opened = self.failed = 0
        self.troubles: dict[str, int] = {}
        self.intervals: list[Interval] = []
        self.on_interval: Callable[[Interval], None] | None = None
        self._part = part
        self._users = cycle(plan.auth)
        self._tls = _client_context() if plan.tls != "off" else None
        self._waiting: deque[asyncio.Future[Message | None]] = deque()  # connections not open
        self._idle: deque[Speaker] = deque()  # open, with nothing to send
        self._opening: set[asyncio.Task[None]] = set()  # connecting, or pausing before it
        self._sessions: set[Speaker] = set()
        self._upgrades: set[asyncio.Task[None]] = set()
        self._timer: Timer | None = None
        self._wire: Wire | None = None
        self._limit: asyncio.Timeout | None = None
        self._measured = _Measured()
        self._ready_ns = 0  # when a connection was last ready for mail; 0 = never
        self._warmed_up = 0
        self._has_warmed_up = not plan.warmup_s

    @property
    def accepted(self) -> int:
        """Messages so far."""
        return self.tally.accepted

    # -- the run -----------------------------------------------------------------------------------

    async def run(self, start_ns: int = 0) -> Result:
        """All of it.  start_ns: time.monotonic_ns() of its begin, for parts that begin together."""
        plan = self.plan
        start_ns = start_ns or time.monotonic_ns()
        await asyncio.sleep((start_ns - time.monotonic_ns()) / 1e9)
        self._start_ns = start_ns
        self.supply.start(start_ns, duration_s(plan))
        self._measure(start_ns)
        self._timer = Timer(self._pace)
        self._wire = Wire(asyncio.get_running_loop())
        clock = asyncio.create_task(self._keep_time())
        numbers = range(self._part, plan.connections, plan.processes)
        keepers = [asyncio.create_task(self._keep_connection(number)) for number in numbers]
        try:
            async with asyncio.timeout(duration_s(plan) + DRAIN_S) as self._limit:
                await asyncio.gather(*keepers, return_exceptions=True)
        except TimeoutError:
            self.trouble(f"transactions were still in flight {DRAIN_S:g} s behind the end")
        finally:
            self._limit = None
            clock.cancel()
            for task in keepers:
                task.cancel()
            await asyncio.gather(*keepers, clock, *self._upgrades, return_exceptions=True)
            self._timer.close()
            self._wire.close()
        for task in keepers:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        self._interval()
        unsent = self._unsent()
        if self.ledger is not None:
            self.ledger.close()
        return self._result(unsent)

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Nothing more begins; what is in flight has so long.  Again: it has less."""
        self.supply.stop()
        self._release()
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + drain_s)

    # -- what sessions ask -------------------------------------------------------------------------

    def next_user(self) -> tuple[str, str]:
        """Name and password for a connection."""
        name, _, password = next(self._users).partition(":")
        return name, password

    def on_ready(self) -> None:
        self._ready_ns = time.monotonic_ns()

    def park(self, session: Speaker) -> None:
        """It has nothing to send now."""
        if self.supply.is_over(self.tally.in_flight):
            session.quit()
            self._release()
        else:
            self._idle.append(session)
            self._arm()

    def join(self, session: Session) -> Leg | None:
        """A leg for a session that has nothing in flight, where the run has a wire and the connection is there."""
        if self._wire is None or session.transport.is_closing():
            return None
        session.transport.pause_reading()
        fd = session.transport.get_extra_info("socket").fileno()
        return self._wire.join(fd, session, self.tally)

    def leave(self, session: Session) -> None:
        """The session's leg has ended: its transport reads again."""
        if not session.transport.is_closing():
            session.transport.resume_reading()

    def trouble(self, text: str) -> None:
        """Why a connection is of no use."""
        line = text.partition("\n")[0]
        if line in self.troubles or len(self.troubles) < TROUBLES_MAX:
            self.troubles[line] = self.troubles.get(line, 0) + 1

    def start_tls(self, session: Speaker, since_ns: int) -> None:
        """Afterwards the session says EHLO again, or its connection is gone."""

        async def upgrade() -> None:
            if await self._secure(session, since_ns):
                session.hello()

        task = asyncio.get_running_loop().create_task(upgrade())
        self._upgrades.add(task)
        task.add_done_callback(self._upgrades.discard)

    # -- connections -------------------------------------------------------------------------------

    async def _keep_connection(self, number: int) -> None:
        """One of plan.connections: opened when a message is due, and again after its end, to the run's."""
        plan = self.plan
        if plan.ramp_s and not plan.rate:
            await asyncio.sleep(plan.ramp_s * number / plan.connections)
        failures = 0
        while (message := await self._due()) is not None:
            if await self._serve(message):
                failures = 0
                self._ready_ns = time.monotonic_ns()  # one that was opened long ago was good until now
            else:
                failures += 1
                if self._is_out_of_patience():
                    self.stop()
                await self._pause(min(BACKOFF_S[0] * 2 ** (failures - 1), BACKOFF_S[1]))

    async def _due(self) -> Message | None:
        """The next message for a connection that is not open; None when the run is over."""
        message = self.supply.take()
        if message is not None or self.supply.is_over(self.tally.in_flight):
            return message
        place: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._arm()
        return await place

    async def _serve(self, message: Message) -> bool:
        """A connection from beginning to end; False when it answered no message."""
        session = SPEAKERS.get(self.plan.protocol, Session)(self, message)
        try:
            if await self._open(session):
                await session.closed
        finally:
            if session.transport is not None:
                session.abort()
                session.connection_lost(None)
            self._sessions.discard(session)
            with contextlib.suppress(ValueError):
                self._idle.remove(session)
            unbegun = session.unbegun()
            if unbegun is not None:
                self.supply.put_back(unbegun)
        return session.done > 0

    async def _open(self, session: Speaker) -> bool:
        task = asyncio.current_task()
        assert task is not None
        self._opening.add(task)
        try:
            async with asyncio.timeout(self.plan.timeout_s):
                protocol = cast(asyncio.Protocol, session)  # in all but its base class
                await asyncio.get_running_loop().create_connection(lambda: protocol, *self.address)
        except OSError as error:  # TimeoutError is one
            self.failed += 1
            self.trouble(f"connect: {error.strerror or error or 'timed out'}")
            return False
        finally:
            self._opening.discard(task)
        self.opened += 1
        self._sessions.add(session)
        if self.plan.tls == "implicit" and await self._secure(session, time.monotonic_ns()):
            session.greet()
        return True

    async def _secure(self, session: Speaker, since_ns: int) -> bool:
        loop = asyncio.get_running_loop()
        host = parse(self.plan.target)[0]
        assert self._tls is not None
        try:
            transport = await loop.start_tls(
                session.transport, cast(asyncio.Protocol, session), self._tls,
                server_hostname=None if host == self.address[0] else host,
                ssl_handshake_timeout=self.plan.timeout_s,
            )  # fmt: skip
        except OSError as error:  # ssl.SSLError is one
            self.trouble(f"TLS: {error}")
            session.abort()
            return False
        if transport is None:
            return False
        self.tally.record(TLS, time.monotonic_ns() - since_ns)
        session.transport = transport
        session.is_secure = True
        return True

    async def _pause(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._opening.add(task)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._opening.discard(task)

    def _is_out_of_patience(self) -> bool:
        patience_s = self.plan.patience_s
        if not self._ready_ns:
            patience_s = min(patience_s, FIRST_PATIENCE_S)
        since_s = (time.monotonic_ns() - (self._ready_ns or self._start_ns)) / 1e9
        if since_s <= patience_s:
            return False
        self.trouble(f"no connection became ready for mail for {patience_s:g} s: the run ended")
        return True

    # -- time --------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have _pace() called when something is due; for those who wait now."""
        due_ns = self.supply.next_due_ns()
        if due_ns != NEVER_NS and self._timer is not None:
            self._timer.set(due_ns)

    def _pace(self) -> None:
        """Give what is due to who is free; connections that are to be opened come first, then in turn."""
        while self._waiting or self._idle:
            message = self.supply.take()
            if message is None:
                break
            if self._waiting:
                place = self._waiting.popleft()
                if place.done():  # its connection was given up meanwhile
                    self.supply.put_back(message)
                else:
                    place.set_result(message)
            else:
                session = self._idle.popleft()
                if session.closed.done():
                    self.supply.put_back(message)
                else:
                    session.begin(message)
        if self.supply.is_over(self.tally.in_flight):
            self._release()
        elif self._waiting or self._idle:
            self._arm()

    def _release(self) -> None:
        """Whoever waits for something to send may go; once nothing begins any more, who is still connecting, too."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
        while self._idle:
            session = self._idle.popleft()
            if not session.closed.done():
                session.quit()
        if self.supply.is_ended():
            for task in list(self._opening):
                task.cancel()
            for session in self._sessions:
                if not session.is_ready:
                    session.abort()

    async def _keep_time(self) -> None:
        plan = self.plan
        tick_s = FLUSH_S if self.ledger is not None else 1.0
        warm_ns = self._start_ns + int(plan.warmup_s * 1e9)
        for tick in count(1):
            due_ns = self._start_ns + int(tick * tick_s * 1e9)
            if not self._has_warmed_up:
                due_ns = min(due_ns, warm_ns)
            await asyncio.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            now = time.monotonic_ns()
            if self.ledger is not None:
                self.ledger.flush()
            if not self._has_warmed_up and now >= warm_ns:
                self._has_warmed_up = True
                self._warmed_up = self.tally.accepted
                self._measure(warm_ns)
            if now >= self._measured.next_ns:
                self._interval()
                for session in self._sessions:
                    if session.is_overdue(now, int(plan.timeout_s * 1e9), int(QUIT_S * 1e9)):
                        session.abort()
            if self.supply.is_over(self.tally.in_flight):
                self._release()

    def _measure(self, now_ns: int) -> None:
        """All figures count from now."""
        self.tally.clear(now_ns)
        self._measured = _Measured(
            from_ns=now_ns,
            next_ns=now_ns + 10**9,
            cpu_s=_cpu_s(),
            seen=(self.supply.count_offered(now_ns), 0, 0, 0),
        )

    def _interval(self) -> None:
        """Write down the second that ends now."""
        tally, measured = self.tally, self._measured
        now = time.monotonic_ns()
        seen = (self.supply.count_offered(now), tally.accepted, tally.refused, tally.broken)
        before, measured.seen = measured.seen, seen
        latency, tally.interval = tally.interval, {}
        interval = Interval(
            second=(measured.next_ns - measured.from_ns) // 10**9 - 1,
            offered=seen[0] - before[0],
            accepted=seen[1] - before[1],
            refused=seen[2] - before[2],
            broken=seen[3] - before[3],
            in_flight=tally.in_flight,
            latency=latency,
        )
        measured.next_ns += 10**9 * max(1, 1 + (now - measured.next_ns) // 10**9)
        self.intervals.append(interval)
        if self.on_interval is not None:
            self.on_interval(interval)

    # -- the end -----------------------------------------------------------------------------------

    def _unsent(self) -> int:
        """Messages that were due and never begun; those that waited to be sent again keep their last outcome."""
        supply, tally = self.supply, self.tally
        never = 0
        for message in supply.left():
            if not message.is_again:
                never += 1
            elif not message.is_counted:
                tally.end(message.how, message.start_ns, time.monotonic_ns(), 0)
        if supply.is_open:
            return supply.count_offered(time.monotonic_ns()) - supply.taken + never
        return never + (supply.limit - supply.taken if self.plan.messages else 0)

    def _result(self, unsent: int) -> Result:
        tally, measured = self.tally, self._measured
        latency = {NAMES[stage]: tally.counts(stage) for stage in range(HISTOGRAMS)}
        return Result(
            accepted=tally.accepted,
            refused=tally.refused,
            broken=tally.broken,
            unsent=unsent,
            retried=tally.retried,
            recipients_accepted=tally.recipients_accepted,
            octets=tally.octets,
            connections_opened=self.opened,
            connections_failed=self.failed,
            late_starts=tally.late_starts,
            warmed_up=self._warmed_up,
            seconds=((tally.last_ns or time.monotonic_ns()) - measured.from_ns) / 1e9,
            cpu_s=_cpu_s() - measured.cpu_s,
            latency={name: counts for name, counts in latency.items() if counts},
            answers=[
                Answer(stage=NAMES[stage], code=code, enhanced=enhanced, text=text, count=number)
                for (stage, code, enhanced), (number, text) in tally.answers.items()
            ],
            intervals=self.intervals,
            troubles=self.troubles,
        )


class _Measured(msgspec.Struct):
    """Where the figures begin, and what the last interval saw."""

    from_ns: int = 0
    next_ns: int = 0  # the end of the interval
    cpu_s: float = 0.0
    seen: tuple[int, int, int, int] = (0, 0, 0, 0)  # offered, accepted, refused, broken


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _client_context() -> ssl.SSLContext:
    """Takes any certificate: the load is measured here, not the peer's identity."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
