"""What the queue's tests share: a clock that stands still, a spool in memory, an agent that obeys."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from gateway.config_model import DeliveryConfig, QueueConfig, RouteConfig
from gateway.delivery.agent import Job, Listener, Outcome
from gateway.mail.envelope import Envelope, Facts, Recipient, pack, unpack
from gateway.metrics import Metrics
from gateway.queue.routing import NextHop, Route, Router
from gateway.queue.scheduler import Scheduler
from gateway.spool.errors import SpoolFull
from gateway.spool.record import PENDING

START_NS = 1_800_000_000_000_000_000


class FakeClock:
    """Time passes when advance() says so; wall-clock time can be made to jump."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.jump_ns = 0
        self._due: list[tuple[float, int, Any]] = []
        self._numbers = itertools.count()

    def now(self) -> int:
        return START_NS + int((self.time_s - 1000.0) * 1e9) + self.jump_ns

    def monotonic(self) -> float:
        return self.time_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        handle = _Handle(callback)
        heapq.heappush(self._due, (self.time_s + delay_s, next(self._numbers), handle))
        return handle

    def offload(self, work: Callable[[], Any], done: Callable[[Any, Any], None]) -> None:
        def run() -> None:
            try:
                result = work()
            except Exception as error:
                done(None, error)
            else:
                done(result, None)

        self.call_later(0.0, run)

    def advance(self, seconds: float) -> None:
        end = self.time_s + seconds
        while self._due and self._due[0][0] <= end:
            at, _, handle = heapq.heappop(self._due)
            self.time_s = max(self.time_s, at)
            if handle.callback is not None:
                handle.callback()
        self.time_s = end


class _Handle:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeStored:
    """The fields of Stored that the scheduler reads and sets."""

    def __init__(self, queue_id: str, envelope: Envelope, content: bytes) -> None:
        self.queue_id = queue_id
        self.envelope = envelope
        self.content = content
        self.size_octets = len(content)
        self.states = bytearray(len(envelope.recipients))
        self.attempts = [0] * len(envelope.recipients)
        self.next_attempt_at = 0
        self.held = False
        self.priority = 0
        self.route = ""
        self.details: dict[int, bytes] = {}


class FakeBody:
    def __init__(self, content: bytes, in_memory: bool = True) -> None:
        self.content = content
        self.size = len(content)
        self.in_memory = in_memory

    def slices(self) -> list[memoryview]:
        return [memoryview(self.content)]

    def chunks(self, size: int) -> Any:
        for start in range(0, len(self.content), size):
            yield memoryview(self.content)[start : start + size]


class FakeSpool:
    """Keeps what it is told, as a disk would: restart() gives what a recovery would find."""

    class _Log:
        trouble: str | None = None

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.log = self._Log()
        self.messages: dict[str, FakeStored] = {}
        self.disk: dict[str, tuple[bytes, bytes, list[int], list[int], int, bool, str, dict]] = {}
        self.settled: list[tuple[str, int, int]] = []
        self.released: list[str] = []
        self.full = False
        self.in_memory = True
        self._numbers = itertools.count(1)

    def begin(self) -> Any:
        return FakeIncoming(self, f"ID{next(self._numbers):010d}")

    def body(self, stored: FakeStored) -> FakeBody:
        return FakeBody(stored.content, self.in_memory)

    def settle(self, stored: FakeStored, index: int, state: int, detail: bytes = b"") -> None:
        assert stored.states[index] == PENDING, "settled twice"
        if detail:
            stored.details[index] = detail
        if state != PENDING:
            stored.states[index] = state
            self.settled.append((stored.queue_id, index, state))
        self._write(stored)
        if all(stored.states):
            del self.messages[stored.queue_id]
            del self.disk[stored.queue_id]

    def update(self, stored: FakeStored) -> None:
        if not all(stored.states):
            self._write(stored)

    def release(self, stored: FakeStored) -> None:
        self.released.append(stored.queue_id)

    def _write(self, stored: FakeStored) -> None:
        self.disk[stored.queue_id] = (
            pack(stored.envelope), stored.content, list(stored.states), list(stored.attempts),
            stored.next_attempt_at, stored.held, stored.route, dict(stored.details),
        )  # fmt: skip

    def put(self, envelope: Envelope, content: bytes = b"Subject: x\r\n\r\nx\r\n") -> FakeStored:
        stored = FakeStored(f"ID{next(self._numbers):010d}", envelope, content)
        self.messages[stored.queue_id] = stored
        self._write(stored)
        return stored

    def restart(self) -> list[FakeStored]:
        found = []
        for queue_id, kept in self.disk.items():
            stored = FakeStored(queue_id, unpack(kept[0]), kept[1])
            stored.states = bytearray(kept[2])
            stored.attempts, stored.next_attempt_at = list(kept[3]), kept[4]
            stored.held, stored.route, stored.details = kept[5], kept[6], dict(kept[7])
            found.append(stored)
        self.messages = {stored.queue_id: stored for stored in found}
        return found


class FakeIncoming:
    def __init__(self, spool: FakeSpool, queue_id: str) -> None:
        self.spool = spool
        self.queue_id = queue_id

    def abort(self) -> None:
        pass

    def commit(self, envelope: Envelope, prefix: bytes, last: Any, done: Any) -> None:
        def commit() -> None:
            if self.spool.full:
                done(None, SpoolFull("disk full"))
                return
            content = prefix + (bytes(last) if last is not None else b"")
            stored = FakeStored(self.queue_id, envelope, content)
            self.spool.messages[self.queue_id] = stored
            self.spool._write(stored)
            done(stored, None)

        self.spool.clock.call_later(0.0, commit)


class FakeAgent:
    """Takes jobs and answers when the test says so, or at once by `answer`."""

    def __init__(self, route: Route, next_hop: NextHop, listener: Listener) -> None:
        self.route = route
        self.next_hop = next_hop
        self.listener = listener
        self.jobs: list[tuple[Job, Any]] = []
        self.log: list[Job] = []
        self.concurrency = 0
        self.depth = 1  # jobs a connection takes
        self.recipients_max = 0
        self.closed = False
        self.answer: Callable[[Job], Sequence[Outcome]] | None = None
        self.unreachable: Outcome | None = None

    @property
    def capacity(self) -> int:
        return 0 if self.closed else self.concurrency * self.depth - len(self.jobs)

    @property
    def connections(self) -> int:
        return len(self.jobs)

    def set_concurrency(self, connections: int) -> None:
        self.concurrency = connections

    def submit(self, job: Job, done: Any) -> None:
        assert self.capacity > 0, "more than capacity"
        self.log.append(job)
        if self.unreachable is not None:
            self.jobs.append((job, done))
            self.refuse(self.unreachable)
        elif self.answer is not None:
            done(job, self.answer(job))
        else:
            self.jobs.append((job, done))

    def finish(self, outcome: Outcome | Sequence[Outcome], number: int = 0) -> None:
        """Answer one of the jobs that run."""
        job, done = self.jobs.pop(number)
        if isinstance(outcome, Outcome):
            outcome = [outcome] * len(job.recipients)
        done(job, outcome)

    def refuse(self, outcome: Outcome, number: int = 0) -> None:
        """The job's connection could not be had."""
        self.listener.on_connect_failed(outcome)
        job, done = self.jobs.pop(number)
        done(job, [])

    def close(self) -> None:
        self.closed = True


class FakeLog:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    warning = error = exception = debug = event

    def names(self, *wanted: str) -> list[str]:
        return [name for name, _ in self.events if not wanted or name in wanted]


def envelope_to(
    *mailboxes: str | Recipient, sender: str = "alice@example.org", at: int = START_NS, **keys: Any
) -> Envelope:
    recipients = [m if isinstance(m, Recipient) else Recipient(m) for m in mailboxes]
    return Envelope(sender, recipients, at, facts=Facts(size_octets=16), **keys)


class Lab:
    """A scheduler with everything around it under the test's control."""

    def __init__(self, *routes: RouteConfig, workers: int = 1, **queue: Any) -> None:
        self.clock = FakeClock()
        self.spool: Any = FakeSpool(self.clock)
        self.log: Any = FakeLog()
        self.agents: dict[str, FakeAgent] = {}
        self.answer: Callable[[Job], Sequence[Outcome]] | None = None
        self.unreachable: Outcome | None = None
        self.config = QueueConfig(**queue)
        self.delivery = DeliveryConfig()
        self.routes = routes or (route("example.org", "*"),)
        self.workers = workers
        self.start()

    def start(self) -> None:
        self.metrics = Metrics()
        self.scheduler = Scheduler(
            hostname="mx.example.org",
            config=self.config,
            router=Router(self.routes, self.delivery, "mx.example.org"),
            spool=self.spool,
            make_agent=self.make_agent,
            log=self.log,
            metrics=self.metrics,
            clock=self.clock,
            workers=self.workers,
        )

    def make_agent(self, route: Route, next_hop: NextHop, listener: Listener) -> FakeAgent:
        agent = FakeAgent(route, next_hop, listener)
        agent.answer = self.answer
        agent.unreachable = self.unreachable
        name = next_hop.url
        while name in self.agents:  # another lane's
            name += "+"
        self.agents[name] = agent
        return agent

    def agent(self, url: str = "smtp://relay:25") -> FakeAgent:
        return self.agents[url]

    def send(self, *mailboxes: str | Recipient, **keys: Any) -> FakeStored:
        """Store and enqueue one message."""
        keys.setdefault("at", self.clock.now())
        stored = self.spool.put(envelope_to(*mailboxes, **keys))
        self.scheduler.enqueue(stored)
        return stored

    def restart(self) -> None:
        """The process died and a new one recovers."""
        self.clock._due.clear()
        self.agents.clear()
        self.start()
        self.scheduler.recover(self.spool.restart())


def route(*domains: str, hops: Sequence[str] = ("smtp://relay",), **keys: Any) -> RouteConfig:
    return RouteConfig(domains=domains, next_hop=tuple(hops), **keys)


