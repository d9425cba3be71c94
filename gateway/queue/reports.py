"""Who is told what about a message, and the way of a report into the spool.

    Owns      Reporter
    Flow      scheduler → add_failure | add_delay | add_success → (collected by message) → spool →
              scheduler.enqueue; only then the failed recipients are settled
    Limits    one report of a kind for what is found out about a message within WINDOW_S
    Errors    a report that cannot be built or stored is tried again each RETRY_S; until then its
              recipients stay pending in the spool, so that a crash loses nothing
    Blocking  never: originals that are on disk are read by Clock.offload
    Standards RFC 3461 §5.2 (who is told), RFC 5321 §4.5.5 (nobody is told about a report)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gateway.delivery.agent import BOUNCED, Outcome
from gateway.delivery.bounce import (
    DELAY,
    FAILURE,
    SUCCESS,
    Original,
    ReportItem,
    collect_original,
    make_report,
)
from gateway.log import Log
from gateway.mail.envelope import (
    NOTIFY_DEFAULT,
    NOTIFY_DELAY,
    NOTIFY_FAILURE,
    NOTIFY_SUCCESS,
    Envelope,
)
from gateway.metrics import Metrics
from gateway.queue.timers import Clock, Timer, Timers
from gateway.spool.errors import SpoolError
from gateway.spool.message import Stored
from gateway.spool.spool import Spool

logger = logging.getLogger(__name__)

WINDOW_S = 5.0  # recipients of one message that fail within this time share a report
RETRY_S = 30.0  # a report that found no room in the spool


def wants_failure(envelope: Envelope, notify: int) -> bool:
    """RFC 3461 §5.2.4, and §5.2.1 (c): without NOTIFY as with FAILURE."""
    return not envelope.is_null and (notify == NOTIFY_DEFAULT or bool(notify & NOTIFY_FAILURE))


def wants_delay(envelope: Envelope, notify: int) -> bool:
    """RFC 3461 §5.2.7; without NOTIFY it is ours to choose."""
    return not envelope.is_null and (notify == NOTIFY_DEFAULT or bool(notify & NOTIFY_DELAY))


def wants_success(envelope: Envelope, notify: int) -> bool:
    """RFC 3461 §5.2.2, §5.2.3: only when asked."""
    return bool(notify & NOTIFY_SUCCESS) and not envelope.is_null


class _Pending:
    """The reports that one message will give rise to."""

    __slots__ = ("items", "original", "refused", "states", "stored", "timer", "under_way")

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.items: dict[str, list[ReportItem]] = {}
        self.states: dict[int, int] = {}  # failed recipients: BOUNCED or EXPIRED once reported
        self.original: Original | None = None  # header of a message that may be gone by then
        self.timer: Timer | None = None
        self.under_way = False
        self.refused = False  # the spool had no room, and it was said


class Reporter:
    """Collects what is to be reported, and reports it."""

    def __init__(
        self,
        *,
        hostname: str,
        spool: Spool,
        clock: Clock,
        timers: Timers,
        log: Log,
        metrics: Metrics,
        enqueue: Callable[[Stored], None],
        has_route: Callable[[str], bool],
        settle: Callable[[Stored, int, int], None],
    ) -> None:
        self._hostname = hostname
        self._spool = spool
        self._clock = clock
        self._timers = timers
        self._log = log
        self._metrics = metrics
        self._enqueue = enqueue
        self._has_route = has_route
        self._settle = settle
        self._pending: dict[str, _Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def owes(self, stored: Stored, index: int) -> bool:
        """True while the recipient's failure is being reported: nothing else may be done to it."""
        pending = self._pending.get(stored.queue_id)
        return pending is not None and index in pending.states

    # -- what the scheduler says ------------------------------------------------------------------

    def add_failure(self, stored: Stored, index: int, outcome: Outcome, state: int) -> None:
        """The recipient failed for good; it is settled when the sender's report is safe."""
        envelope = stored.envelope
        if not wants_failure(envelope, envelope.recipients[index].notify):
            if envelope.is_null:
                # RFC 5321 §6.1: a report that fails has nobody left to go to.
                self._log.event(
                    "double_bounce",
                    queue_id=stored.queue_id,
                    forward_path=envelope.recipients[index].forward_path,
                    reply=outcome.text,
                )
            self._settle(stored, index, state)
            return
        if not self._has_route(envelope.reverse_path):
            self._log.event(
                "undeliverable_report",
                queue_id=stored.queue_id,
                reverse_path=envelope.reverse_path,
                forward_path=envelope.recipients[index].forward_path,
            )
            self._settle(stored, index, state)
            return
        pending = self._add(FAILURE, stored, index, outcome, 0)
        pending.states[index] = state

    def add_delay(self, stored: Stored, index: int, outcome: Outcome, retry_until: int) -> None:
        """The recipient has been waiting for long."""
        envelope = stored.envelope
        if wants_delay(envelope, envelope.recipients[index].notify) and self._has_route(
            envelope.reverse_path
        ):
            self._add(DELAY, stored, index, outcome, retry_until)

    def add_success(self, stored: Stored, index: int, outcome: Outcome, state: int) -> None:
        """The recipient was delivered to, and the sender wants to know.  Settles it."""
        if not self._has_route(stored.envelope.reverse_path):
            self._settle(stored, index, state)
            return
        pending = self._add(SUCCESS, stored, index, outcome, 0)
        if pending.original is not None:
            self._settle(stored, index, state)
            return
        # Once settled the message may be gone: its header is taken first.
        def collected(original: Any, error: BaseException | None) -> None:
            pending.original = original if error is None else Original(b"", None)
            self._settle(stored, index, state)

        in_memory = self._spool.body(stored).in_memory
        self._read(in_memory, lambda: self._collect(SUCCESS, stored), collected)

    def flush(self, stored: Stored) -> None:
        """Nothing more is expected of the message for now: report at once."""
        pending = self._pending.get(stored.queue_id)
        if pending is not None and not pending.under_way:
            self._report(pending)

    def flush_all(self) -> None:
        """Try everything again, for instance when the spool has room again."""
        for pending in list(self._pending.values()):
            if not pending.under_way:
                self._report(pending)

    # -- inner parts ------------------------------------------------------------------------------

    def _add(
        self, kind: str, stored: Stored, index: int, outcome: Outcome, retry_until: int
    ) -> _Pending:
        pending = self._pending.get(stored.queue_id)
        if pending is None:
            pending = self._pending[stored.queue_id] = _Pending(stored)
        if pending.timer is None:
            pending.timer = self._timers.add(WINDOW_S, self._on_timer, pending)
        item = ReportItem(index, outcome, self._clock.now(), retry_until)
        pending.items.setdefault(kind, []).append(item)
        return pending

    def _on_timer(self, pending: _Pending) -> None:
        pending.timer = None
        if not pending.under_way:
            self._report(pending)

    def _report(self, pending: _Pending) -> None:
        """Build and store one report; the next kind follows when it is safe."""
        if pending.timer is not None:
            pending.timer.cancel()
            pending.timer = None
        if not pending.items:
            del self._pending[pending.stored.queue_id]
            return
        stored = pending.stored
        kind, items = next(iter(pending.items.items()))
        del pending.items[kind]
        if kind == SUCCESS and pending.original is None:  # its header is still being read
            self._again(pending, kind, items, WINDOW_S)
            return
        pending.under_way = True
        incoming = self._spool.begin()
        now = self._clock.now()

        def build() -> tuple[Envelope, bytes]:
            original = pending.original
            if original is None or kind == FAILURE:
                original = self._collect(kind, stored)
            return make_report(
                kind,
                hostname=self._hostname,
                message=stored,
                items=items,
                original=original,
                now=now,
                report_id=incoming.queue_id,
            )

        def built(result: Any, error: BaseException | None) -> None:
            if error is not None:
                logger.error("%s: report cannot be built: %r", stored.queue_id, error)
                incoming.abort()
                self._again(pending, kind, items)
                return
            envelope, content = result
            incoming.commit(envelope, b"", content, committed)

        def committed(report: Stored | None, error: SpoolError | None) -> None:
            if report is None:
                if not pending.refused:
                    pending.refused = True
                    logger.warning("%s: report cannot be stored yet: %s", stored.queue_id, error)
                self._again(pending, kind, items)
                return
            self._on_stored(pending, kind, items, report)

        in_memory = pending.original is not None or self._spool.body(stored).in_memory
        self._read(in_memory, build, built)

    def _collect(self, kind: str, stored: Stored) -> Original:
        try:
            return collect_original(kind, stored.envelope, self._spool.body(stored))
        except (OSError, SpoolError) as error:  # a report without a quotation is better than none
            logger.error("%s: cannot be quoted: %s", stored.queue_id, error)
            return Original(b"", None)

    def _read(
        self,
        at_once: bool,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
    ) -> None:
        if not at_once:
            self._clock.offload(work, done)
            return
        try:
            result = work()
        except Exception as error:
            done(None, error)
        else:
            done(result, None)

    def _again(
        self, pending: _Pending, kind: str, items: list[ReportItem], wait: float = RETRY_S
    ) -> None:
        pending.under_way = False
        pending.items.setdefault(kind, []).extend(items)
        if pending.timer is None:
            pending.timer = self._timers.add(wait, self._on_timer, pending)

    def _on_stored(
        self, pending: _Pending, kind: str, items: list[ReportItem], report: Stored
    ) -> None:
        stored = pending.stored
        self._metrics.reports_total += 1
        self._log.event(
            "reported",
            queue_id=stored.queue_id,
            kind=kind,
            report=report.queue_id,
            reverse_path=stored.envelope.reverse_path,
            recipients=len(items),
        )
        self._log.event(
            "accepted",
            queue_id=report.queue_id,
            reverse_path="",
            forward_paths=[stored.envelope.reverse_path],
            size_octets=report.size_octets,
            report_of=stored.queue_id,
        )
        if kind == FAILURE:
            for item in items:
                self._settle(stored, item.index, pending.states.pop(item.index, BOUNCED))
        pending.under_way = False
        self._enqueue(report)
        if pending.items and pending.timer is None:
            self._report(pending)
        elif not pending.items:
            self._pending.pop(stored.queue_id, None)
