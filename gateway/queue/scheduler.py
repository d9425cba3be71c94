"""The scheduler: takes every stored message to its lanes, and every outcome to the spool.

    Owns      Scheduler; the one Task (or several) of every message that is not settled
    Flow      enqueue → route → lane → agent → on_done → spool.settle; deferred: timer → lane again
    Limits    [queue]; a message waits as one small Task, its envelope and states are the spool's
    Errors    an outcome that cannot be recorded is kept by the spool; delivery pauses meanwhile
    Blocking  never
    Standards RFC 5321 §4.5.4.1 (retries), §6.1 (responsibility); RFC 3461 §5; RFC 1047

An outcome is given to the spool before the task is forgotten.  A crash between the next hop's 250
and the spool's next group sends the message again: that is the window of RFC 1047, and no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from gateway.config_model import QueueConfig
from gateway.delivery.agent import (
    BOUNCED,
    DEFERRED,
    DELIVERED,
    DISCARDED,
    RELAYED,
    Outcome,
    failed,
)
from gateway.log import Log
from gateway.mail.envelope import Envelope
from gateway.metrics import Metrics
from gateway.queue.backoff import wait_s
from gateway.queue.inline import Answered, deliver
from gateway.queue.lanes import DEFERRED_TASK, GONE, HELD, READY, RUNNING, Lane, MakeAgent, Task
from gateway.queue.reports import Reporter, wants_delay, wants_success
from gateway.queue.routing import Route, Router, parse_next_hop
from gateway.queue.timers import Clock, Timers
from gateway.spool.message import Stored
from gateway.spool.record import EXPIRED, PENDING
from gateway.spool.spool import Spool

logger = logging.getLogger(__name__)

SWEEP_S = 60.0  # how often what waits in lanes is looked through for mail that waits too long
SLICE = 1000  # tasks moved or looked at in one go: about 5 ms
RETRY_AFTER_MAX_S = 86_400.0
# RFC 5321 §4.5.3.1.10: what a 452 to RCPT may say of the number of recipients; 4.0.0: it had no status.
TOO_MANY = frozenset({"4.5.3", "4.0.0"})
TEXT_MAX = 500  # of a peer's words, kept with a recipient

EVENTS = {
    DELIVERED: "delivered",
    RELAYED: "relayed",
    BOUNCED: "bounced",
    EXPIRED: "expired",
    DISCARDED: "discarded",
    DEFERRED: "deferred",
}


class Detail(msgspec.Struct, array_like=True):
    """What the spool keeps with a recipient that was deferred."""

    code: int
    enhanced: str
    text: str
    peer: str
    at: int  # ns UTC
    warned: bool  # the sender was told that it is delayed


_encode_detail = msgspec.msgpack.Encoder().encode
_decode_detail = msgspec.msgpack.Decoder(Detail).decode


def detail_of(stored: Stored, index: int) -> Detail | None:
    """Why the recipient was deferred last; None when it was not."""
    octets = stored.details.get(index)
    return _decode_detail(octets) if octets else None


class Scheduler:
    """One worker's queue."""

    def __init__(
        self,
        *,
        hostname: str,
        config: QueueConfig,
        router: Router,
        spool: Spool,
        make_agent: MakeAgent,
        log: Log,
        metrics: Metrics,
        clock: Clock,
        workers: int = 1,
    ) -> None:
        self.config = config
        self.router = router
        self.spool = spool
        self.clock = clock
        self.timers = Timers(clock)
        self.log = log
        self.metrics = metrics
        self.tasks: dict[str, Task] = {}  # by queue id; further ones are its siblings
        self.paused: str | None = None  # why nothing is sent
        self.closing = False
        self._make_agent = make_agent
        self._share = 1.0 / workers
        self._lanes: dict[Route, Lane] = {}
        self._rerouted: dict[str, Lane] = {}  # by the next hop that an operator named
        self._retired: list[Lane] = []
        self._idle: asyncio.Event | None = None
        self._sweeping = False
        self.reporter = Reporter(
            hostname=hostname,
            spool=spool,
            clock=clock,
            timers=self.timers,
            log=log,
            metrics=metrics,
            enqueue=self.enqueue,
            has_route=lambda mailbox: self.router.route_for(mailbox) is not None,
            settle=self._settle,
        )
        self.timers.add(SWEEP_S, self._sweep)

    # -- mail comes in ----------------------------------------------------------------------------

    def enqueue(self, stored: Stored) -> None:
        """The message is ours: send it as soon as may be."""
        recipients = stored.envelope.recipients
        if len(recipients) == 1 and not stored.route:
            route = self.router.route_for(recipients[0].forward_path)
            lane = self._lanes.get(route) if route is not None else None
            if lane is not None:
                task = Task(stored, [0], self.spool.body, lane)
                task.born = self.birth(stored.envelope)
                self.tasks[stored.queue_id] = task
                if lane.route.config.hold:
                    task.state = HELD
                    self.spool.release(stored)
                    return
                lane.add(task)
                if lane.is_down:
                    self._let_go_of_body(task)
                return
        self._dispatch(stored, range(len(recipients)))

    def recover(self, messages: Iterable[Stored]) -> None:
        """Take up what the spool found at start."""
        now = self.clock.now()
        longest = max(self.config.retry_s) * 1.2
        for stored in messages:
            # A clock that was wrong when this was written must not hold the mail for years.
            wait = min((stored.next_attempt_at - now) / 1e9, longest)
            self._dispatch(stored, range(len(stored.states)), wait)

    def birth(self, envelope: Envelope) -> float:
        """When the message was received, on the clock that does not jump: asked once, it stays true
        when the other one is set.  A time in the future counts as now."""
        return self.clock.monotonic() - max(0, self.clock.now() - envelope.received_at) / 1e9

    def age_s(self, task: Task) -> float:
        return self.clock.monotonic() - task.born

    def _dispatch(
        self,
        stored: Stored,
        indices: Iterable[int],
        wait: float = 0.0,
        born: float | None = None,
    ) -> None:
        """Make the tasks of these recipients, one a lane, and set them going."""
        if born is None:
            born = self.birth(stored.envelope)
        by_lane: dict[Lane | None, list[int]] = {}
        recipients = stored.envelope.recipients
        for index in indices:
            if stored.states[index] == PENDING and not self.reporter.owes(stored, index):
                lane = self.lane_for(recipients[index].forward_path, stored.route)
                by_lane.setdefault(lane, []).append(index)
        tasks = []
        for lane, chosen in by_lane.items():
            attempt = 1 + max(stored.attempts[index] for index in chosen)
            task = Task(stored, chosen, self.spool.body, lane, attempt)
            task.born = born
            self._register(task)
            tasks.append(task)
        for task in tasks:
            self._set_going(task, wait)

    def _set_going(self, task: Task, wait: float) -> None:
        lane: Lane | None = task.lane
        if lane is None:
            self._on_no_route(task)
        elif task.stored.held or lane.route.config.hold:
            task.state = HELD
        elif wait > 0.0:
            self._sleep(task, wait)
        else:
            lane.add(task)
            if lane.is_down:
                self._let_go_of_body(task)

    def _on_no_route(self, task: Task) -> None:
        stored: Stored = task.stored
        if stored.envelope.is_null:
            # A report to somebody we have no way to: there is nobody left to tell.
            outcome = Outcome(DISCARDED, 0, "5.4.4", "no route for the originator of the message")
        else:
            outcome = failed("no route for this recipient", "4.4.4")
        task.state = RUNNING
        self.on_done(task, [outcome] * len(task.recipients))

    # -- tasks ------------------------------------------------------------------------------------

    def tasks_of(self, queue_id: str) -> list[Task]:
        """All tasks of a message."""
        task = self.tasks.get(queue_id)
        if task is None:
            return []
        return [task] if task.siblings is None else list(task.siblings)

    def all_tasks(self) -> Iterator[Task]:
        for task in list(self.tasks.values()):
            if task.siblings is None:
                yield task
            else:
                yield from list(task.siblings)

    def _register(self, task: Task) -> None:
        first = self.tasks.setdefault(task.queue_id, task)
        if first is not task:
            if first.siblings is None:
                first.siblings = [first]
            first.siblings.append(task)
            task.siblings = first.siblings

    def _forget(self, task: Task) -> None:
        task.state = GONE
        task.lane = None
        siblings = task.siblings
        if siblings is None:
            del self.tasks[task.queue_id]
            return
        siblings.remove(task)
        task.siblings = None
        if siblings:
            self.tasks[task.queue_id] = siblings[0]
        else:
            del self.tasks[task.queue_id]

    def _sleep(self, task: Task, seconds: float) -> None:
        task.state = DEFERRED_TASK
        task.timer = self.timers.add(seconds, self._on_due, task)

    def _on_due(self, task: Task) -> None:
        task.timer = None
        lane: Lane | None = task.lane
        if lane is None or lane.retired:
            self.route_again(task)
        else:
            lane.add(task)

    def detach(self, task: Task) -> bool:
        """Stop the task where it is, so that something else can be done with it.  False: it runs."""
        if task.state in (RUNNING, GONE):
            return False
        if task.state == READY:
            task.lane.take_out(task, HELD)
        if task.timer is not None:
            task.timer.cancel()
            task.timer = None
        task.state = HELD
        return True

    def send_now(self, task: Task) -> None:
        """A task that does not run goes to its lane, whatever it waited for."""
        if self.detach(task):
            self._on_due(task)

    def route_again(self, task: Task) -> None:
        """Look up the routes anew for a task that does not run; keeps its time and its hold."""
        wait = 0.0
        if task.timer is not None:
            wait = max(0.0, task.timer.at - self.clock.monotonic())
        stored: Stored = task.stored
        indices = task.recipients
        if self.detach(task):
            self._forget(task)
            for index in indices:
                stored.attempts[index] = max(stored.attempts[index], task.attempt - 1)
            self._dispatch(stored, indices, wait, task.born)

    # -- lanes ------------------------------------------------------------------------------------

    @property
    def lanes(self) -> list[Lane]:
        return [*self._lanes.values(), *self._rerouted.values()]

    def lane_for(self, forward_path: str, rerouted: str = "") -> Lane | None:
        """The lane of a recipient; rerouted: the next hop that an operator chose for its message."""
        route = self.router.route_for(forward_path)
        if rerouted:
            return self._rerouted_lane(rerouted, route)
        if route is None:
            return None
        lane = self._lanes.get(route)
        if lane is None:
            lane = self._lanes[route] = self._open_lane(route)
        return lane

    def _rerouted_lane(self, url: str, route: Route | None) -> Lane | None:
        lane = self._rerouted.get(url)
        if lane is None:
            pattern = route or next(iter(self.router.routes), None)
            if pattern is None:
                return None
            lane = self._open_lane(pattern.with_next_hop(parse_next_hop(url)))
            self._rerouted[url] = lane
        return lane

    def _open_lane(self, route: Route) -> Lane:
        lane = Lane(
            route,
            owner=self,
            config=self.config,
            make_agent=self._make_agent,
            clock=self.clock,
            timers=self.timers,
            share=self._share,
        )
        lane.paused = self.paused is not None or self.closing
        return lane

    # -- what lanes say ---------------------------------------------------------------------------

    def on_done(self, task: Task, outcomes: Sequence[Outcome]) -> None:
        """One attempt is over.  Everything is given to the spool before the task is forgotten."""
        if task.answer is not None:
            answer, task.answer, task.state = task.answer, None, GONE
            answer(task, outcomes)
            return
        stored: Stored = task.stored
        recipients = stored.envelope.recipients
        left: list[tuple[int, Outcome]] = []
        reported = False
        for index, outcome in zip(task.recipients, outcomes, strict=True):
            state = outcome.state
            if state == DEFERRED:
                left.append((index, outcome))
                continue
            self.note(task, index, outcome, EVENTS[state])
            notify = recipients[index].notify
            if state == BOUNCED:
                reported = True
                self.reporter.add_failure(stored, index, outcome, BOUNCED)
            elif notify and not outcome.dsn and wants_success(stored.envelope, notify):
                reported = True
                self.reporter.add_success(stored, index, outcome, state)
            else:
                self.spool.settle(stored, index, state)
        if left:
            took_some = len(left) < len(outcomes) and all(
                o.code in (452, 552) and o.enhanced in TOO_MANY for _, o in left
            )
            self._on_deferred(task, left, at_once=took_some)
        else:
            self._forget(task)
        if reported or len(self.reporter):
            self._report_if_quiet(stored)
        if self._idle is not None and not self.running:
            self._idle.set()

    def _on_deferred(
        self, task: Task, left: list[tuple[int, Outcome]], *, at_once: bool = False
    ) -> None:
        """at_once: the others of the transaction were taken, these were too many for one."""
        stored: Stored = task.stored
        now = self.clock.now()
        age_s = self.age_s(task)
        expire_s = self.expire_s(stored)
        lane: Lane | None = task.lane
        if lane is not None:
            lane.deferrals += len(left)
        if age_s >= expire_s:
            for index, outcome in left:
                self._expire(task, index, outcome)
            self._forget(task)
            return
        wait = wait_s(self.config.retry_s, task.attempt)
        wait = max(wait, *(min(o.retry_after_s, RETRY_AFTER_MAX_S) for _, o in left))
        wait = max(1.0, min(wait, expire_s - age_s))  # the last attempt is when it expires
        due = now + int(wait * 1e9)
        if task.siblings is None or not now < stored.next_attempt_at < due:
            stored.next_attempt_at = due
        for index, outcome in left:
            self.note(task, index, outcome, "deferred")
            stored.attempts[index] = task.attempt
            self._keep_detail(stored, index, outcome, age_s)
        self.spool.update(stored)
        task.recipients = [index for index, _ in left]
        task.error = left[-1][1]
        order, task.order = task.order, None
        if at_once and lane is not None and not lane.retired and not stored.held:
            lane.add(task)  # RFC 5321 §4.5.3.1.10; each round is shorter, so this comes to an end
            if order is not None and task.state != RUNNING:
                order(task)
            else:
                task.order = order
            return
        task.attempt += 1
        if stored.held:
            task.state = HELD
        else:
            self._sleep(task, wait)
        if order is not None:
            order(task)

    def _keep_detail(self, stored: Stored, index: int, outcome: Outcome, age_s: float) -> None:
        before = detail_of(stored, index)
        warned = before is not None and before.warned
        if not warned and 0.0 < self.config.delay_warning_s <= age_s:
            warned = self._warn(stored, index, outcome)
        detail = Detail(
            outcome.code,
            outcome.enhanced,
            outcome.text[:TEXT_MAX],
            outcome.peer,
            self.clock.now(),
            warned,
        )
        self.spool.settle(stored, index, PENDING, _encode_detail(detail))

    def _warn(self, stored: Stored, index: int, outcome: Outcome) -> bool:
        envelope = stored.envelope
        if wants_delay(envelope, envelope.recipients[index].notify):
            until = envelope.received_at + int(self.expire_s(stored) * 1e9)
            self.reporter.add_delay(stored, index, outcome, until)
        return True

    def _expire(self, task: Task, index: int, outcome: Outcome, why: str = "") -> None:
        """Give up: RFC 3463 §3.5 X.4.7, with what was heard last."""
        last = f"{outcome.code} {outcome.enhanced} {outcome.text}" if outcome.code else outcome.text
        why = why or f"not delivered within {self.expire_s(task.stored) / 86400:.3g} days"
        text = f"{why}; the last answer was: {last}"
        expired = Outcome(BOUNCED, 0, "4.4.7", text, outcome.peer)
        self.note(task, index, expired, "expired")
        self.reporter.add_failure(task.stored, index, expired, EXPIRED)

    def give_up(self, task: Task, reason: Outcome, why: str = "") -> None:
        """Expire a task that does not run."""
        if self.detach(task):
            for index in task.recipients:
                self._expire(task, index, reason, why)
            stored: Stored = task.stored
            self._forget(task)
            self._report_if_quiet(stored)

    def drop(self, task: Task, text: str) -> None:
        """Discard a task that does not run, without a report."""
        if self.detach(task):
            outcome = Outcome(DISCARDED, 0, "2.0.0", text)
            for index in task.recipients:
                self.note(task, index, outcome, "discarded")
                self.spool.settle(task.stored, index, DISCARDED)
            self._forget(task)

    def on_put_back(self, task: Task, reason: Outcome) -> None:
        task.error = reason
        lane: Lane = task.lane
        if lane.is_down:
            for index in task.recipients:
                self.note(task, index, reason, "deferred")
        if task.answer is None:
            if task.stored.held:
                self.detach(task)
            order, task.order = task.order, None
            if order is not None:
                order(task)

    def on_lane_down(self, lane: Lane, reason: Outcome, wait: float, *, again: bool) -> None:
        self.log.warning(
            "lane_down",
            lane=lane.name,
            reply=reason.text,
            peer=reason.peer,
            waiting=lane.ready,
            retry_s=round(wait, 3),
        )
        if not again:
            self._in_slices(lane.waiting(), self._let_go_of_body, lambda: None)

    def _let_go_of_body(self, task: Task) -> None:
        """Memory is for mail that moves; this is read from the disk when its time comes."""
        if task.state == READY and task.answer is None:
            self.spool.release(task.stored)

    def on_lane_up(self, lane: Lane) -> None:
        self.log.event("lane_up", lane=lane.name, waiting=lane.ready)

    def split(self, task: Task, size: int) -> Task:
        rest = Task(task.stored, task.recipients[size:], task.read, task.lane, task.attempt)
        rest.born = task.born
        rest.answer = task.answer
        rest.error = task.error
        task.recipients = task.recipients[:size]
        if task.answer is None:
            self._register(rest)
        return rest

    def adopt(self, task: Task) -> None:
        task.state = HELD
        if not self.closing:
            self.route_again(task)
        elif self._idle is not None and not self.running:  # it is recovered at the next start
            self._idle.set()

    # -- records ----------------------------------------------------------------------------------

    def note_outcome(self, task: Task, index: int, outcome: Outcome) -> None:
        self.note(task, index, outcome, EVENTS[outcome.state])

    def deliver_inline(
        self, queue_id: str, envelope: Envelope, slices: Sequence[Any], answered: Answered
    ) -> None:
        """Durability "inline": send without storing; answered() tells what the next hops said."""
        deliver(self, queue_id, envelope, slices, answered)

    def note(self, task: Task, index: int, outcome: Outcome, event: str) -> None:
        """Log and count one recipient's outcome: this is what `gateway trace` shows."""
        stored = task.stored
        envelope = stored.envelope
        delay_s = self.age_s(task)
        lane: Lane | None = task.lane
        self.log.event(
            event,
            queue_id=stored.queue_id,
            forward_path=envelope.recipients[index].forward_path,
            next_hop=lane.name if lane is not None else "",
            peer=outcome.peer,
            code=outcome.code,
            enhanced=outcome.enhanced,
            reply=outcome.text,
            attempt=task.attempt,
            delay_s=round(delay_s, 6),
            tls=outcome.tls,
        )
        metrics = self.metrics
        if event == "relayed":
            metrics.relayed += 1
        elif event == "delivered":
            metrics.delivered += 1
        elif event == "deferred":
            metrics.deferred += 1
            metrics.attempt_seconds.observe(outcome.duration_s)
            return
        elif event == "bounced":
            metrics.bounced += 1
        elif event == "expired":
            metrics.expired += 1
        else:
            metrics.discarded += 1
        metrics.attempt_seconds.observe(outcome.duration_s)
        metrics.delivery_seconds.observe(delay_s)
        if lane is not None:
            lane.recipients_done[outcome.state] += 1

    def expire_s(self, stored: Stored) -> float:
        return self.config.bounce_expire_s if stored.envelope.is_null else self.config.expire_s

    def _settle(self, stored: Stored, index: int, state: int) -> None:
        self.spool.settle(stored, index, state)

    def _report_if_quiet(self, stored: Stored) -> None:
        """One report for what is found out now; its window ends early when nothing more is due."""
        if all(task.state not in (READY, RUNNING) for task in self.tasks_of(stored.queue_id)):
            self.reporter.flush(stored)

    # -- mail that waits too long -----------------------------------------------------------------

    def _sweep(self, _: object = None) -> None:
        self.timers.add(SWEEP_S, self._sweep)
        if self._sweeping or self.closing:
            return
        for lane in self.lanes:
            lane.pump()  # should an agent have forgotten to say that it is ready again
        waiting = [task for lane in self.lanes if lane.ready for task in lane.waiting()]
        waiting = [task for task in waiting if task.answer is None]
        if waiting:
            self._sweeping = True
            self._in_slices(waiting, self._look_at, self._swept)

    def _swept(self) -> None:
        self._sweeping = False

    def _look_at(self, task: Task) -> None:
        """A task that cannot be sent is warned about and expires like one that was tried."""
        lane: Lane | None = task.lane
        if task.state != READY or lane is None:
            return
        # Never without an attempt: a clock that was wrong must not bounce mail that nobody refused.
        reason = task.error or (lane.last_error if lane.is_down else None)
        if reason is None:
            return
        stored: Stored = task.stored
        age_s = self.age_s(task)
        if age_s >= self.expire_s(stored):
            self.give_up(task, reason)
        elif 0.0 < self.config.delay_warning_s <= age_s:
            for index in task.recipients:
                detail = detail_of(stored, index)
                if detail is None or not detail.warned:
                    self._keep_detail(stored, index, reason, age_s)
            self.reporter.flush(stored)

    def _in_slices(
        self, tasks: list[Task], work: Callable[[Task], None], done: Callable[[], None]
    ) -> None:
        """work(task) for all of them, without stopping the loop for long."""

        def run(start: int) -> None:
            for task in tasks[start : start + SLICE]:
                work(task)
            if start + SLICE < len(tasks):
                self.timers.add(0.0, run, start + SLICE)
            else:
                done()

        run(0)

    # -- the worker says --------------------------------------------------------------------------

    def on_spool_health(self, reason: str | None) -> None:
        """Results cannot be recorded (reason), or can again (None).

        Delivering without recording it would deliver twice after the next crash.
        """
        # A full disk refuses new mail only: results still have room, and make more of it.
        reason = self.spool.log.trouble if reason is not None else None
        if reason == self.paused:
            return
        self.paused = reason
        for lane in self.lanes:
            lane.paused = reason is not None or self.closing
            lane.pump()
        if reason is not None:
            self.log.warning("delivery_paused", reason=reason)
        else:
            self.log.event("delivery_resumed")
            self.reporter.flush_all()

    def reload(self, config: QueueConfig, router: Router) -> None:
        """New routes and settings: whatever does not run is routed anew."""
        old = self.lanes
        self.config = config
        self.router = router
        self._lanes = {}
        self._rerouted = {}
        for lane in old:
            lane.close()
        self._retired = [lane for lane in [*self._retired, *old] if lane.running]
        # Those that are deferred or held follow when their time comes.
        tasks = [task for lane in old for task in lane.waiting()]
        self._in_slices(tasks, self._route_after_reload, lambda: None)

    def _route_after_reload(self, task: Task) -> None:
        if task.state == READY and task.answer is None and task.lane.retired:
            self.route_again(task)

    @property
    def running(self) -> int:
        """Tasks with an agent."""
        return sum(lane.running for lane in [*self.lanes, *self._retired])

    async def close(self, timeout_s: float) -> None:
        """Start no delivery any more; wait for those that run, but not longer than timeout_s."""
        self.closing = True
        for lane in [*self.lanes, *self._retired]:
            lane.close()
        if self.running:
            self._idle = asyncio.Event()
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_s)
            except TimeoutError:
                self.log.warning("drain_timeout", running=self.running)
        self.timers.close()
