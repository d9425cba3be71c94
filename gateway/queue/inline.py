"""Durability "inline": the client gets its reply when the next hop has spoken.  No queue, no report.

    Owns      InlineDelivery, InlineMessage, InlineBody, reply_of()
    Flow      session → deliver() → lanes (before queued mail) → outcomes → one Reply a recipient
    Limits    queue.inline_wait_s for a free connection; the content stays in memory until then
    Errors    a lane that is down, no route, no time: 451; nothing is kept of the message
    Standards RFC 5321 §4.2.5 (who has the responsibility), RFC 2033 §4.2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gateway.delivery.agent import BOUNCED, DEFERRED, Outcome, failed
from gateway.mail.envelope import Envelope
from gateway.mail.reply import Reply
from gateway.queue.lanes import HELD, Lane, Task

if TYPE_CHECKING:
    from gateway.queue.scheduler import Scheduler

TEXT_MAX = 400  # of a peer's words in our reply: RFC 5321 §4.5.3.1.5 allows 512 octets a line

Answered = Callable[[str, Envelope, list[Reply]], None]


class InlineBody:
    """Content that was never stored."""

    __slots__ = ("_slices", "size")

    in_memory = True

    def __init__(self, slices: Sequence[Any]) -> None:
        self._slices = [memoryview(piece) for piece in slices if memoryview(piece)]
        self.size = sum(map(len, self._slices))

    def slices(self) -> list[memoryview]:
        return list(self._slices)

    def chunks(self, size: int) -> Iterator[memoryview]:
        for piece in self._slices:
            for start in range(0, len(piece), size):
                yield piece[start : start + size]


class InlineMessage:
    """What a lane needs of a message, without a place in the spool."""

    __slots__ = ("body", "envelope", "queue_id")

    def __init__(self, queue_id: str, envelope: Envelope, slices: Sequence[Any]) -> None:
        self.queue_id = queue_id
        self.envelope = envelope
        self.body = InlineBody(slices)


def _read(message: InlineMessage) -> InlineBody:
    return message.body


class InlineDelivery:
    """One message on its way through, until each recipient has an outcome."""

    __slots__ = ("_answered", "_born", "_lanes", "_message", "_outcomes", "_scheduler", "_timer", "_waiting")

    def __init__(
        self, scheduler: Scheduler, message: InlineMessage, answered: Answered
    ) -> None:
        self._scheduler = scheduler
        self._message = message
        self._answered = answered
        count = len(message.envelope.recipients)
        self._outcomes: list[Outcome | None] = [None] * count
        self._waiting = count
        self._lanes: list[Lane] = []
        self._born = scheduler.birth(message.envelope)
        self._timer = scheduler.timers.add(scheduler.config.inline_wait_s, self._on_timeout)

    def start(self) -> None:
        """Give each lane its share."""
        by_lane: dict[Lane, list[int]] = {}
        for index, recipient in enumerate(self._message.envelope.recipients):
            lane = self._scheduler.lane_for(recipient.forward_path)
            if lane is None:
                self._take(index, failed("no route for this recipient", "4.4.4"), None)
            elif lane.route.config.hold:
                self._take(index, failed("mail for this recipient is on hold", "4.3.2"), None)
            elif lane.is_blocked():
                reason = lane.last_error or failed("the next hop cannot be reached", "4.4.1")
                self._take(index, reason, None)
            else:
                by_lane.setdefault(lane, []).append(index)
        for lane, indices in by_lane.items():
            task = self._task(indices, lane)
            task.answer = self._on_outcomes
            self._lanes.append(lane)
            lane.add(task)
        self._finish()

    def _task(self, indices: list[int], lane: Lane | None) -> Task:
        task = Task(self._message, indices, _read, lane)
        task.born = self._born
        return task

    def _on_outcomes(self, task: Task, outcomes: Sequence[Outcome]) -> None:
        for index, outcome in zip(task.recipients, outcomes, strict=True):
            self._take(index, outcome, task)
        self._finish()

    def _take(self, index: int, outcome: Outcome, task: Task | None) -> None:
        if self._outcomes[index] is None:
            self._outcomes[index] = outcome
            self._waiting -= 1
        task = task or self._task([index], None)
        self._scheduler.note_outcome(task, index, outcome)

    def _finish(self) -> None:
        if self._waiting == 0:
            self._timer.cancel()
            answered, self._waiting = self._answered, -1
            replies = [reply_of(outcome) for outcome in self._outcomes if outcome is not None]
            answered(self._message.queue_id, self._message.envelope, replies)

    def _on_timeout(self, _: object) -> None:
        """Those that still wait for a connection have waited long enough; those that run go on,
        within the agent's own timeouts, and are looked at again: a job may be given back."""
        scheduler = self._scheduler
        self._timer = scheduler.timers.add(
            max(1.0, scheduler.config.inline_wait_s), self._on_timeout
        )
        for lane in self._lanes:
            for task in lane.waiting():
                if task.stored is self._message:
                    lane.take_out(task, HELD)
                    reason = task.error or failed("no connection to the next hop is free", "4.4.5")
                    self._on_outcomes(task, [reason] * len(task.recipients))


def deliver(
    scheduler: Scheduler,
    queue_id: str,
    envelope: Envelope,
    slices: Sequence[Any],
    answered: Answered,
) -> None:
    """Send the message now; answered(queue_id, envelope, replies) when each recipient has one."""
    InlineDelivery(scheduler, InlineMessage(queue_id, envelope, slices), answered).start()


def reply_of(outcome: Outcome) -> Reply:
    """What the client hears of an outcome: the next hop's own code where it has one of that class."""
    text = " ".join(outcome.text.split())[:TEXT_MAX]
    if outcome.state == DEFERRED:
        kind, code, words = "4", 451, "Not accepted by the next hop, try again later"
    elif outcome.state == BOUNCED:
        kind, code, words = "5", 550, "Refused by the next hop"
    else:
        kind, code, words = "2", 250, "Ok"
    if kind != "2" and outcome.code // 100 == int(kind):
        code = outcome.code
    enhanced = outcome.enhanced if outcome.enhanced.startswith(f"{kind}.") else f"{kind}.0.0"
    return Reply(code, enhanced, text or words)
