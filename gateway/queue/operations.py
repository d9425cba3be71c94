"""What an operator can ask of the queue, and what it tells: `gateway queue`, `gateway top`.

    Owns      Operations: every method takes and returns plain values, for the control channel
    Limits    lists are cut at `limit` entries; a filter looks at every message in the queue
    Errors    ValueError for a filter or a next hop that cannot be understood
    Blocking  a command over a million messages takes seconds: it is done in one go, so that what
              it says is true
    Bugs      a transaction that runs is not broken off: the order is carried out when it ends
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from gateway.delivery.agent import Outcome, failed
from gateway.queue.lanes import DEFERRED_TASK, HELD, READY, RUNNING, STATE_NAMES, Lane, Task
from gateway.queue.routing import parse_next_hop
from gateway.queue.scheduler import Detail, Scheduler, detail_of
from gateway.spool.message import Stored
from gateway.spool.record import PENDING
from gateway.spool.record import STATE_NAMES as RECIPIENT_STATES

LIST_MAX = 1000
AGES_S = (300, 600, 1200, 2400, 4800, 9600, 19200, 38400, 76800)  # columns of ages(): doubling


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which messages; every field that is given must fit.  Empty: all."""

    queue_ids: list[str] = []
    reverse_path: str = ""  # part of it, any case
    recipient: str = ""  # part of a pending recipient, any case
    next_hop: str = ""  # part of the lane's name
    state: str = ""  # ready | running | deferred | held
    error: str = ""  # part of what the next hop said last, any case
    older_than_s: float = 0.0


class Operations:
    """Bound to one worker's scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    # -- which messages ---------------------------------------------------------------------------

    def select(self, which: dict[str, Any] | None = None) -> Sequence[Stored]:
        """The messages that fit, oldest first."""
        try:
            chosen = msgspec.convert(which or {}, Filter)
        except msgspec.ValidationError as error:
            raise ValueError(f"filter: {error}") from None
        if chosen.state and chosen.state not in STATE_NAMES:
            raise ValueError(f"filter: state is one of {', '.join(STATE_NAMES[:4])}")
        queue_ids = chosen.queue_ids or self._scheduler.tasks
        found = [
            tasks[0].stored
            for queue_id in list(queue_ids)
            if (tasks := self._scheduler.tasks_of(queue_id)) and self._fits(tasks, chosen)
        ]
        return sorted(found, key=lambda stored: (stored.envelope.received_at, stored.queue_id))

    def _fits(self, tasks: Sequence[Task], chosen: Filter) -> bool:
        stored: Stored = tasks[0].stored
        envelope = stored.envelope
        if chosen.reverse_path.lower() not in envelope.reverse_path.lower():
            return False
        if chosen.recipient and not any(
            chosen.recipient.lower() in recipient.forward_path.lower()
            for recipient, state in zip(envelope.recipients, stored.states, strict=True)
            if state == PENDING
        ):
            return False
        if chosen.next_hop and not any(
            task.lane is not None and chosen.next_hop in task.lane.name for task in tasks
        ):
            return False
        if chosen.state and not any(STATE_NAMES[task.state] == chosen.state for task in tasks):
            return False
        if chosen.error and not any(
            chosen.error.lower() in entry["reply"].lower()
            for entry in self._recipients(stored, tasks)
        ):
            return False
        return not (
            chosen.older_than_s and self._scheduler.age_s(tasks[0]) < chosen.older_than_s
        )

    # -- orders: each returns how many messages it was for ----------------------------------------

    def hold(self, which: dict[str, Any]) -> int:
        """Nothing is sent until release()."""

        def order(task: Task) -> None:
            self._scheduler.detach(task)

        def prepare(stored: Stored) -> None:
            stored.held = True
            self._scheduler.spool.update(stored)

        return self._order(which, "held", order, prepare)

    def release(self, which: dict[str, Any]) -> int:
        """End of hold(), or of the hold of its route: it is sent now."""

        def prepare(stored: Stored) -> None:
            stored.held = False
            stored.next_attempt_at = 0
            self._scheduler.spool.update(stored)

        def order(task: Task) -> None:
            if task.state == HELD:
                self._scheduler.send_now(task)

        return self._order(which, "released", order, prepare)

    def retry(self, which: dict[str, Any] | None = None) -> int:
        """What is deferred is tried now, also at next hops that were down."""
        count = self._order(which or {}, "retried", self._retry_task, lambda stored: None)
        for lane in self._scheduler.lanes:
            lane.retry_now()
        return count

    def _retry_task(self, task: Task) -> None:
        if task.state == DEFERRED_TASK:
            self._scheduler.send_now(task)

    def expire(self, which: dict[str, Any]) -> int:
        """Give up now and report to the senders."""

        def order(task: Task) -> None:
            reason = task.error or failed("none, it was not tried yet")
            self._scheduler.give_up(task, reason, "given up by the operator")

        return self._order(which, "expire_requested", order, lambda stored: None)

    def delete(self, which: dict[str, Any]) -> int:
        """Remove without telling anybody."""

        def order(task: Task) -> None:
            self._scheduler.drop(task, "deleted by the operator")

        return self._order(which, "deleted", order, lambda stored: None)

    def reroute(self, which: dict[str, Any], next_hop: str) -> int:
        """Send to this next hop instead; "" goes back to the routes."""
        hop = parse_next_hop(next_hop) if next_hop else None
        if hop is not None and hop.scheme == "mx":
            raise ValueError("mx: delivery is not in this version; name a next hop")

        def prepare(stored: Stored) -> None:
            stored.route = hop.url if hop is not None else ""
            stored.next_attempt_at = 0
            self._scheduler.spool.update(stored)

        def order(task: Task) -> None:
            if task.timer is not None:
                task.timer.cancel()
                task.timer = None
            self._scheduler.route_again(task)

        return self._order(which, "rerouted", order, prepare, next_hop=next_hop)

    def _order(
        self,
        which: dict[str, Any],
        event: str,
        order: Callable[[Task], None],
        prepare: Callable[[Stored], None],
        **fields: Any,
    ) -> int:
        chosen = self.select(which)
        for stored in chosen:
            self._scheduler.log.event(event, queue_id=stored.queue_id, **fields)
            prepare(stored)
            for task in self._scheduler.tasks_of(stored.queue_id):
                if task.state == RUNNING:
                    task.order = order
                else:
                    order(task)
        return len(chosen)

    # -- what there is ----------------------------------------------------------------------------

    def list(self, which: dict[str, Any] | None = None, limit: int = LIST_MAX) -> dict[str, Any]:
        """{"total", "messages"}: the oldest `limit` of those that fit."""
        chosen = self.select(which)
        shown = chosen[: max(0, min(limit, LIST_MAX))]
        return {"total": len(chosen), "messages": [self.describe(stored) for stored in shown]}

    def show(self, queue_id: str) -> dict[str, Any] | None:
        """One message; None when it is not here."""
        tasks = self._scheduler.tasks_of(queue_id)
        return self.describe(tasks[0].stored) if tasks else None

    def describe(self, stored: Stored) -> dict[str, Any]:
        envelope = stored.envelope
        tasks = self._scheduler.tasks_of(stored.queue_id)
        return {
            "queue_id": stored.queue_id,
            "received_at": envelope.received_at,
            "age_s": round(self._scheduler.age_s(tasks[0]), 3),
            "size_octets": stored.size_octets,
            "reverse_path": envelope.reverse_path,
            "message_id": envelope.message_id,
            "client": envelope.client_address,
            "session": envelope.session,
            "held": stored.held,
            "route": stored.route,
            "states": sorted({STATE_NAMES[task.state] for task in tasks}),
            "next_attempt_at": stored.next_attempt_at,
            "recipients": list(self._recipients(stored, tasks)),
        }

    def _recipients(self, stored: Stored, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        by_index = {index: task for task in tasks for index in task.recipients}
        for index, recipient in enumerate(stored.envelope.recipients):
            task = by_index.get(index)
            detail = detail_of(stored, index)
            lane: Lane | None = task.lane if task is not None else None
            reply, peer, code = "", "", 0
            attempts = stored.attempts[index]
            error: Outcome | Detail | None = detail
            if detail is None and task is not None:
                error = task.error
            if task is not None and task.state in (READY, RUNNING) and lane is not None:
                attempts += lane.failures - task.failures_before
                if lane.is_down:
                    error = lane.last_error  # why it is not even tried
            if error is not None:
                reply, peer, code = f"{error.enhanced} {error.text}", error.peer, error.code
            yield {
                "forward_path": recipient.forward_path,
                "state": RECIPIENT_STATES[stored.states[index]],
                "doing": STATE_NAMES[task.state] if task is not None else "",
                "attempts": attempts,  # transactions, and failed connections while it waited for one
                "next_hop": lane.name if lane is not None else "",
                "code": code,
                "reply": reply,
                "peer": peer,
            }

    def stats(self) -> dict[str, Any]:
        """Totals, and a line for each lane."""
        scheduler = self._scheduler
        waiting: dict[Lane | None, tuple[int, int, float]] = {}  # deferred, held, oldest's age
        nothing = (0, 0, 0.0)
        for task in scheduler.all_tasks():
            deferred, held, oldest_s = waiting.get(task.lane, nothing)
            waiting[task.lane] = (
                deferred + (task.state == DEFERRED_TASK),
                held + (task.state == HELD),
                max(oldest_s, scheduler.age_s(task)),
            )
        lanes = [_describe_lane(lane, waiting.get(lane, nothing)) for lane in scheduler.lanes]
        return {
            "messages": len(scheduler.tasks),
            "running": scheduler.running,
            "reports": len(scheduler.reporter),
            "paused": scheduler.paused,
            "lanes": lanes,
        }

    def ages(self) -> dict[str, Any]:
        """How old the mail of each next hop is: {"bounds_s", "lanes": {name: [count, …]}}; the last
        column counts what is older than every bound."""
        table: dict[str, list[int]] = {}
        for task in self._scheduler.all_tasks():
            name = task.lane.name if task.lane is not None else "(no route)"
            row = table.setdefault(name, [0] * (len(AGES_S) + 1))
            age_s = self._scheduler.age_s(task)
            row[sum(age_s > bound for bound in AGES_S)] += 1
        return {"bounds_s": list(AGES_S), "lanes": table}


def _describe_lane(lane: Lane, waiting: tuple[int, int, float]) -> dict[str, Any]:
    deferred, held, oldest_s = waiting
    error = lane.last_error
    return {
        "next_hop": lane.name,
        "domains": list(lane.route.domains),
        "down": lane.is_down,
        "ready": lane.ready,
        "active": lane.running,
        "deferred": deferred,
        "held": held,
        "oldest_s": round(oldest_s, 3),
        "done": sum(lane.recipients_done),
        "bounced": lane.recipients_done[3],
        "deferrals": lane.deferrals,
        "last_error": f"{error.enhanced} {error.text}" if error is not None else "",
        "rate_per_s": lane.route.config.rate_per_s,
        "hops": [
            {
                "next_hop": hop.next_hop.url,
                "up": not hop.down_until,
                "active": hop.running,
                "connections": hop.agent.connections if hop.agent is not None else 0,
                "concurrency": int(hop.concurrency),
                "max_connections": lane.max_connections,
                "failures": hop.failures,
            }
            for hop in lane.hops
        ],
    }
