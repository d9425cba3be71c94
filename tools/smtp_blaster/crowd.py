"""Many IMAP connections in IDLE, deliveries to some of their mailboxes, and how soon they are announced.

Owns      Crowd (a Source whose connections wait)
Flow      all connections into IDLE → Source of the deliveries, which tells of each 250 as it would a ledger → EXISTS
          → the time between the two, for each connection
Limits    a process has its own users, connections to them and deliveries; ANNOUNCE_S for the last announcements
Errors    announcements that never come are a note of the result
Standards RFC 2177, RFC 9051 §6.3.13
Bugs      who else adds or removes messages of these mailboxes meanwhile spoils the figures

The k-th message that a connection hears of is the k-th that was taken for its mailbox since it began to wait.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from smtp_blaster.content import Mail
from smtp_blaster.imap import ImapSession
from smtp_blaster.ledger import Ledger
from smtp_blaster.plan import IDLE_MAX_S, Plan, parse_delivery
from smtp_blaster.retrieval import Script, Step
from smtp_blaster.source import BACKOFF_S, FIRST_PATIENCE_S, Result, Source
from smtp_blaster.tally import NAMES

SELECT, IDLING, ANNOUNCEMENT = (NAMES.index(name) for name in ("select", "noop", "announcement"))
OPENING_MAX = 50  # connections that are set up at once
ANNOUNCE_S = 10.0


class _Mailbox:
    """One user's: when its deliveries were taken."""

    __slots__ = ("name", "sessions", "taken_ns", "user")

    def __init__(self, user: str) -> None:
        self.user = user
        self.name = user.partition(":")[0]
        self.taken_ns: list[int] = []
        self.sessions: set[IdleSession] = set()


class IdleSession(ImapSession):
    """A connection that waits."""

    def __init__(self, crowd: Crowd, mailbox: _Mailbox) -> None:
        super().__init__(crowd, None)  # it has no tasks
        self._crowd = crowd
        self._mailbox = mailbox
        self._offset = 0  # messages of the mailbox that are none of the run's
        self.heard = 0  # deliveries to the mailbox that it knows of, of the run's
        self.is_waiting = asyncio.get_running_loop().create_future()

    def user(self) -> tuple[str, str]:
        name, _, password = self._mailbox.user.partition(":")
        return name, password

    def set_up(self) -> Script:
        yield from super().set_up()
        self._selected_at((yield Step(SELECT, b"SELECT INBOX")).lines)
        yield Step(IDLING, b"IDLE")
        self._stage = -1  # its answer comes when it is told to end, which it is not
        if not self.is_waiting.done():
            self.is_waiting.set_result(None)
        self._mailbox.sessions.add(self)
        yield Step(-1)

    def _selected_at(self, lines: list[bytes]) -> None:
        for line in lines:
            self.state.see(line)
        self.heard = len(self._mailbox.taken_ns)
        self._offset = self.state.exists - self.heard

    def _untagged(self, line: bytes) -> None:
        super()._untagged(line)
        if self.is_waiting.done():
            self._lines.clear()
            if self.state.see(line):
                now = time.monotonic_ns()
                while self.heard < self.state.exists - self._offset:
                    self._crowd.announced(self._mailbox, self.heard, now)
                    self.heard += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._mailbox.sessions.discard(self)
        super().connection_lost(exc)


class Crowd(Source):
    """Process `part` of a run of the mix "idle"."""

    def __init__(
        self, plan: Plan, part: int = 0, *, mail: Mail | None = None, ledger: Ledger | None = None
    ) -> None:
        super().__init__(plan, part, mail=mail)
        users = plan.auth[part :: plan.processes]
        self._mailboxes = {mailbox.name: mailbox for mailbox in map(_Mailbox, users)}
        protocol, target = parse_delivery(plan.deliver)
        own = msgspec.structs.replace(
            plan, protocol=protocol, target=target, mix="", connections=1, processes=1, auth=(), auth_mechanism="",
            tls="off", rate=plan.rate / plan.processes, run=f"{plan.run}{part}", ledger="",
            messages=(plan.messages - part + plan.processes - 1) // plan.processes if plan.messages else 0,
            duration_s=plan.duration_s or IDLE_MAX_S, recipients=1,
        )  # fmt: skip
        to_these = Mail(own, own.run)
        to_these.forward_paths = list(self._mailboxes)
        self._deliveries = Source(own, mail=to_these, ledger=self)  # type: ignore[arg-type]  # in all that it asks of one
        self.tally = self._deliveries.tally

    async def run(self, start_ns: int = 0) -> Result:
        loop = asyncio.get_running_loop()
        opening = asyncio.Semaphore(OPENING_MAX)
        mailboxes = list(self._mailboxes.values())
        numbers = range(self._part, self.plan.connections, self.plan.processes)
        waiting = [loop.create_future() for _ in numbers]
        keepers = [
            loop.create_task(self._keep_waiting(mailboxes[index % len(mailboxes)], opening, waiting[index]))
            for index in range(len(numbers))
        ]
        try:
            await asyncio.gather(*waiting)
            self._deliveries.on_interval = self.on_interval
            result = await self._deliveries.run(max(start_ns, time.monotonic_ns()))
            end = loop.time() + ANNOUNCE_S
            while self._missing() and loop.time() < end:
                await asyncio.sleep(0.01)
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
        return self._with_crowd(result)

    def stop(self, drain_s: float = 0.0) -> None:
        super().stop(drain_s)
        self._deliveries.stop(drain_s)

    def next_user(self) -> tuple[str, str]:
        raise AssertionError("each connection of a crowd knows its user")

    def announced(self, mailbox: _Mailbox, index: int, now_ns: int) -> None:
        """A connection heard of the mailbox's index-th delivery; of one that is in the warm-up, nobody asks."""
        taken = mailbox.taken_ns
        taken_ns = taken[index] if index < len(taken) else now_ns  # before its 250 was read
        if taken_ns >= self.tally.measure_from_ns:
            self.tally.record(ANNOUNCEMENT, now_ns - taken_ns)

    # -- what the deliveries tell, as they would a ledger -------------------------------------------

    def add(self, identifier: str, digest: str, paths: list[str]) -> None:
        now = time.monotonic_ns()
        for path in paths:
            self._mailboxes[path].taken_ns.append(now)

    def refuse(self, identifier: str, paths: list[str]) -> None:
        """The result tells of it."""

    def unknown(self, identifier: str, paths: list[str]) -> None:
        """As above."""

    def flush(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """As above."""

    # -- connections -------------------------------------------------------------------------------

    async def _keep_waiting(
        self, mailbox: _Mailbox, opening: asyncio.Semaphore, waits: asyncio.Future[None]
    ) -> None:
        """One connection, opened again when it goes."""
        failures = 0
        while True:
            session = IdleSession(self, mailbox)
            try:
                async with opening:
                    if await self._open(session):
                        await asyncio.wait([session.is_waiting, session.closed], return_when=asyncio.FIRST_COMPLETED)
                if session.is_waiting.done():
                    failures = 0
                    self._settle(waits)
                    await session.closed
                    self.trouble("a connection in IDLE went")
                failures += 1
            finally:
                self._sessions.discard(session)
                if session.transport is not None:
                    session.transport.abort()
                    session.connection_lost(None)
            if self._is_hopeless():
                self._settle(waits)
                return
            await asyncio.sleep(min(BACKOFF_S[0] * 2**failures, BACKOFF_S[1]))

    def _settle(self, waits: asyncio.Future[None]) -> None:
        self._ready_ns = time.monotonic_ns() if not waits.done() else self._ready_ns
        if not waits.done():
            waits.set_result(None)

    def _is_hopeless(self) -> bool:
        self._start_ns = self._start_ns or time.monotonic_ns()
        return not self._ready_ns and time.monotonic_ns() - self._start_ns > FIRST_PATIENCE_S * 1e9

    # -- the end -----------------------------------------------------------------------------------

    def _missing(self) -> int:
        """Announcements that did not come yet."""
        return sum(
            len(mailbox.taken_ns) - session.heard
            for mailbox in self._mailboxes.values()
            for session in mailbox.sessions
            if session.heard < len(mailbox.taken_ns)
        )

    def _with_crowd(self, result: Result) -> Result:
        counts = self.tally.counts(ANNOUNCEMENT)
        if counts:
            result.latency[NAMES[ANNOUNCEMENT]] = counts
        result.connections_opened += self.opened
        result.connections_failed += self.failed
        result.troubles = {**result.troubles, **self.troubles}
        missing = self._missing()
        if missing:
            result.troubles[f"{missing:,} announcements did not come in {ANNOUNCE_S:g} s behind the end"] = 1
        return result
