"""A lane: everything that waits for, or travels to, the next hops of one route.

    Owns      Task (a message's recipients in one lane), Lane, Hop
    Flow      Scheduler → Lane.add → fairness groups → Hop → Agent → Hop.done → Scheduler
    Limits    connections to a hop: from initial_connections up by one for each full round of
              success, halved on failure, never above max_connections; GROUPS_MAX fairness groups
    Errors    an agent that raises, or answers for too many or too few recipients, means DEFERRED
    Bugs      rate_per_s is shared out evenly among the workers, however uneven their load is
    Standards RFC 5321 §4.5.4.1 (a host that is down delays all its mail, not each message alone)
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.config_model import QueueConfig
from gateway.delivery.agent import DEFERRED, Agent, Body, Job, Listener, Message, Outcome, failed
from gateway.queue.backoff import TokenBucket, wait_s
from gateway.queue.routing import NextHop, Route
from gateway.queue.timers import Clock, Timer, Timers

logger = logging.getLogger(__name__)

GROUPS_MAX = 1000  # clients that are told apart; the mail of all others takes turns as one
TROUBLE_MAX = 5  # transactions in a row that broke off without a reply: the hop counts as down
RETURNED_MAX = 100  # jobs given back in a row without one that began: the hop counts as down

# What a task is doing.
READY = 0  # in its lane, to be sent as soon as it may
RUNNING = 1  # with an agent
DEFERRED_TASK = 2  # its timer runs
HELD = 3  # until an operator releases it
REPORTING = 4  # its end is known; the report to the sender is on its way into the spool
GONE = 5

STATE_NAMES = ("ready", "running", "deferred", "held", "reporting", "gone")

MakeAgent = Callable[[Route, NextHop, Listener], Agent]


class Task(Job):
    """A message's unsettled recipients in one lane: what is scheduled."""

    __slots__ = ("answer", "born", "error", "failures_before", "order", "siblings", "state", "timer")

    def __init__(
        self,
        stored: Message,
        recipients: list[int],
        read: Callable[..., Body],
        lane: Lane | None,
        attempt: int = 1,
    ) -> None:
        self.stored = stored  # not by super(): this runs for every message
        self.recipients = recipients
        self.read = read
        self.lane = lane
        self.attempt = attempt
        self.state = READY
        self.siblings: list[Task] | None = None  # all tasks of the message, when it has several
        self.timer: Timer | None = None  # when DEFERRED_TASK
        self.born = 0.0  # monotonic, when the message was received; the scheduler's
        self.failures_before = 0  # of its lane to connect, when it joined
        self.order: Callable[[Task], None] | None = None  # an operator's, for when it stops running
        self.error: Outcome | None = None  # of the last attempt
        # durability "inline": who waits for the outcomes; such a task is tried once.
        self.answer: Callable[[Task, Sequence[Outcome]], None] | None = None


class Owner(Protocol):
    """What a lane tells the scheduler."""

    def on_done(self, task: Task, outcomes: Sequence[Outcome]) -> None:
        """The attempt is over; the task is the scheduler's again."""

    def on_put_back(self, task: Task, reason: Outcome) -> None:
        """The task is READY in its lane again: its next hop could not be connected to."""

    def on_lane_down(self, lane: Lane, reason: Outcome, wait: float, *, again: bool) -> None:
        """No next hop can be connected to; the next attempt is in `wait` seconds."""

    def on_lane_up(self, lane: Lane) -> None:
        """A next hop replied again."""

    def split(self, task: Task, size: int) -> Task:
        """The task keeps its first `size` recipients; the new one has the others."""

    def adopt(self, task: Task) -> None:
        """A task that its lane, retired by a reload, can not send any more."""


class Hop:
    """One next hop of a lane: its agent, how many connections it may have, whether it is up."""

    __slots__ = (
        "_grace",
        "_lane",
        "_replies",
        "_returned",
        "_trouble",
        "agent",
        "concurrency",
        "down_until",
        "failures",
        "last_error",
        "next_hop",
        "running",
    )

    def __init__(self, lane: Lane, next_hop: NextHop) -> None:
        self._lane = lane
        self.next_hop = next_hop
        self.agent: Agent | None = None
        self.concurrency = float(lane.initial_connections)
        self.running = 0
        self.failures = 0  # connect failures since the last reply
        self.down_until = 0.0  # monotonic; 0.0 = up.  Afterwards one task at a time probes
        self.last_error: Outcome | None = None
        self._replies = 0  # since the last connect failure
        self._returned = 0  # jobs given back in a row
        self._trouble = 0  # transactions without a reply in a row
        self._grace = 0  # failures of what was under way when we slowed down do not count again

    def open(self) -> Agent | None:
        """The agent, made when it is first needed; None (and the hop is down) when that fails."""
        try:
            self.agent = self._lane.make_agent(self._lane.route, self.next_hop, self)
        except Exception as error:
            logger.exception("%s: no agent", self.next_hop)
            self.on_connect_failed(failed(f"{type(error).__name__}: {error}"))
            return None
        self.agent.set_concurrency(int(self.concurrency))
        return self.agent

    # -- what the agent calls ---------------------------------------------------------------------

    def on_ready(self) -> None:
        self._lane.pump()

    def on_connect_failed(self, outcome: Outcome) -> None:
        self.last_error = outcome
        if self._replies and self.running > 1 and not self.down_until:
            # Others of our connections work: the peer has as many of us as it wants.
            self._replies = 0
            self._slow_down()
        else:
            self._go_down(outcome)

    def done(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        assert isinstance(job, Task)
        if job.state != RUNNING:
            logger.error("%s: outcomes for a task that is not running", job.queue_id)
            return
        lane = self._lane
        self.running -= 1
        lane.running -= 1
        if not outcomes:
            self._returned += 1
            reason = self.last_error or failed("connection closed", "4.4.2")
            if self._returned > RETURNED_MAX:
                self._go_down(reason)
            lane.put_back(job, reason)
            return
        self._returned = 0
        if len(outcomes) != len(job.recipients):
            logger.error("%s: outcomes and recipients differ in number", job.queue_id)
            outcomes = [failed("internal error")] * len(job.recipients)
        for outcome in outcomes:
            if outcome.state == DEFERRED and outcome.code in (0, 421):
                self._on_trouble(outcome)
                break
        else:
            self._on_success()
        lane.owner.on_done(job, outcomes)
        lane.pump()

    # -- feedback ---------------------------------------------------------------------------------

    def _on_success(self) -> None:
        self._replies += 1
        self._trouble = 0
        if self._grace:
            self._grace -= 1
        if self.down_until:
            self._come_up()
        lane = self._lane
        if lane.ready and self.concurrency < lane.max_connections:
            before = int(self.concurrency)
            self.concurrency = min(lane.max_connections, self.concurrency + 1.0 / before)
            if int(self.concurrency) != before and self.agent is not None:
                self.agent.set_concurrency(int(self.concurrency))

    def _on_trouble(self, outcome: Outcome) -> None:
        self.last_error = outcome
        self._trouble += 1
        if outcome.code and self.down_until:
            self._come_up()  # a 421 is a sign of life
        if self._trouble >= TROUBLE_MAX or self.down_until:
            self._go_down(outcome)
        elif self._grace:
            self._grace -= 1
        else:
            self._slow_down()

    def _slow_down(self) -> None:
        self._grace = self.running
        self.concurrency = max(1.0, self.concurrency / 2)
        if self.agent is not None:
            self.agent.set_concurrency(int(self.concurrency))

    def _go_down(self, outcome: Outcome) -> None:
        lane = self._lane
        now = lane.clock.monotonic()
        if self.down_until > now:
            return  # the failures of connections opened together are one failure
        self._replies = self._trouble = self._grace = self._returned = 0
        self.failures += 1
        self.down_until = now + wait_s(lane.config.connect_retry_s, self.failures)
        self.concurrency = 1.0
        if self.agent is not None:
            self.agent.set_concurrency(1)
        lane.on_hop_down(outcome)

    def _come_up(self) -> None:
        self.failures = 0
        self.down_until = 0.0
        self.concurrency = float(self._lane.initial_connections)
        if self.agent is not None:
            self.agent.set_concurrency(int(self.concurrency))
        self._lane.on_hop_up()


class _Group(deque[Task]):
    """Waiting tasks that take turns as one."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key


class Lane:
    """One lane.  All its methods are quick, and may be called from within an agent's call-back."""

    def __init__(
        self,
        route: Route,
        *,
        owner: Owner,
        config: QueueConfig,
        make_agent: MakeAgent,
        clock: Clock,
        timers: Timers,
        share: float = 1.0,
    ) -> None:
        self.route = route
        self.owner = owner
        self.config = config
        self.make_agent = make_agent
        self.clock = clock
        self.max_connections = route.max_connections
        self.initial_connections = route.initial_connections
        self.hops = [Hop(self, next_hop) for next_hop in route.next_hops]
        self.ready = 0  # tasks that wait here
        self.running = 0  # tasks with an agent
        self.begun = 0  # tasks given to an agent since the start, less those given back
        self.is_down = False  # no next hop can be connected to
        self.paused = False
        self.retired = False  # a reload replaced it
        self.last_error: Outcome | None = None
        self.failures = 0  # to connect to a next hop, since the start
        self.recipients_done = [0] * 6  # by final state, for statistics
        self.deferrals = 0
        self._timers = timers
        self._rate = (
            TokenBucket(route.config.rate_per_s * share, clock.monotonic())
            if route.config.rate_per_s
            else None
        )
        self._urgent: deque[Task] = deque()  # put back, or somebody waits for the answer
        self._groups: dict[str, _Group] = {}
        self._ring: deque[_Group] = deque()
        self._pumping = False
        self._stalled = False  # nothing can be submitted until somebody calls pump()
        self._wake: Timer | None = None

    @property
    def name(self) -> str:
        return self.route.name

    def add(self, task: Task) -> None:
        """The task is ready: it goes as soon as it may."""
        task.state = READY
        task.lane = self
        task.failures_before = self.failures
        self.ready += 1
        if self.ready == 1 and not self._pumping and not self.paused and self._rate is None:
            hop = self._find_hop()  # the ordinary case: nobody waits, so nothing to be fair about
            if hop is not None:
                self._pumping = True
                self._submit(hop, task)
                self._pumping = False
                if self.ready:
                    self.pump()
                return
        if task.answer is not None:
            self._urgent.append(task)
        else:
            self._join_group(task)
        if not self._stalled:
            self.pump()

    def take_out(self, task: Task, state: int) -> None:
        """A READY task leaves the lane; its place in the line is skipped when its turn comes."""
        assert task.state == READY
        task.state = state
        self.ready -= 1
        if not self.ready:
            self._urgent.clear()
            self._groups.clear()
            self._ring.clear()

    def waiting(self) -> list[Task]:
        """All READY tasks, in no particular order."""
        found = {id(task): task for task in self._urgent if task.state == READY}
        for group in self._ring:
            found.update((id(task), task) for task in group if task.state == READY)
        return list(found.values())

    def put_back(self, task: Task, reason: Outcome) -> None:
        """The transaction of this task was never begun."""
        if task.answer is not None and (self.retired or self.is_blocked()):
            self.owner.on_done(task, [reason] * len(task.recipients))
            return
        if self.retired:
            self.owner.adopt(task)
            return
        task.state = READY
        self.ready += 1
        self.begun -= 1
        self._urgent.appendleft(task)
        self.owner.on_put_back(task, reason)
        self.pump()

    def is_blocked(self) -> bool:
        """No next hop may even be tried now."""
        now = self.clock.monotonic()
        return self.is_down and all(hop.down_until > now for hop in self.hops)

    def pump(self) -> None:
        """Submit what may go now."""
        if self._pumping or self.paused:
            return
        self._pumping = True
        self._stalled = False
        try:
            while self.ready:
                hop = self._find_hop()
                if hop is None:
                    self._stalled = True
                    self._sleep_until_probe()
                    break
                if self._rate is not None:
                    wait = self._rate.take(self.clock.monotonic())
                    if wait > 0.0:
                        self._stalled = True
                        self._sleep(wait)
                        break
                self._submit(hop, self._next())
        finally:
            self._pumping = False

    def retry_now(self) -> None:
        """Forget that next hops were down."""
        for hop in self.hops:
            if hop.down_until:
                hop.down_until = self.clock.monotonic()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        self.pump()

    def close(self) -> None:
        """Submit nothing any more; agents finish what runs and disconnect."""
        self.paused = self.retired = True
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        for hop in self.hops:
            if hop.agent is not None:
                hop.agent.close()

    # -- what hops call ---------------------------------------------------------------------------

    def on_hop_down(self, reason: Outcome) -> None:
        self.last_error = reason
        self.failures += 1
        now = self.clock.monotonic()
        if all(hop.down_until > now for hop in self.hops):
            again, self.is_down = self.is_down, True
            wait = min(hop.down_until for hop in self.hops) - now
            self.owner.on_lane_down(self, reason, wait, again=again)

    def on_hop_up(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if self.is_down:
            self.is_down = False
            self.owner.on_lane_up(self)

    # -- inner parts ------------------------------------------------------------------------------

    def _find_hop(self) -> Hop | None:
        """The first next hop that is up, if it takes a job now; those that were down are probed
        with one job at a time, while the next in line does the work."""
        for hop in self.hops:
            if hop.down_until and (hop.running or self.clock.monotonic() < hop.down_until):
                continue
            agent = hop.agent or hop.open()
            if agent is None:
                continue
            if agent.capacity > 0:
                return hop
            if not hop.down_until:
                return None
        return None

    def _submit(self, hop: Hop, task: Task) -> None:
        agent = hop.agent
        assert agent is not None
        limit = self.route.recipients_per_transaction
        if agent.recipients_max:
            limit = min(limit, agent.recipients_max)
        self.ready -= 1
        if len(task.recipients) > limit:
            rest = self.owner.split(task, limit)
            self.ready += 1
            self._urgent.appendleft(rest)
        task.state = RUNNING
        hop.running += 1
        self.running += 1
        self.begun += 1
        try:
            agent.submit(task, hop.done)
        except Exception:
            logger.exception("%s: %s: the agent failed", task.queue_id, hop.next_hop)
            if task.state == RUNNING:
                hop.done(task, [failed("internal error")] * len(task.recipients))

    def _join_group(self, task: Task) -> None:
        envelope = task.stored.envelope
        if task.attempt > 1:
            key = ""  # what was deferred takes one turn in a round beside new mail
        else:
            client = envelope.client_address.rpartition(":")[0]
            key = f"{client} {envelope.reverse_path.rpartition('@')[2]}"
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= GROUPS_MAX:
                key = ""
                group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = _Group(key)
                self._ring.append(group)
        group.append(task)

    def _next(self) -> Task:
        """The task whose turn it is.  Only while `ready` is above zero."""
        while self._urgent:
            task = self._urgent.popleft()
            if task.state == READY and task.lane is self:
                return task
        while True:
            group = self._ring[0]
            task = group.popleft()
            if group:
                self._ring.rotate(-1)
            else:
                self._ring.popleft()
                del self._groups[group.key]
            if task.state == READY and task.lane is self:
                return task

    def _sleep_until_probe(self) -> None:
        now = self.clock.monotonic()
        if all(hop.down_until > now for hop in self.hops):
            self._sleep(min(hop.down_until for hop in self.hops) - now)

    def _sleep(self, seconds: float) -> None:
        if self._wake is None:
            self._wake = self._timers.add(seconds, self._on_wake)

    def _on_wake(self, _: object) -> None:
        self._wake = None
        self.pump()
