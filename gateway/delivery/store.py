"""Delivery into the embedded store.

    Owns      StoreAgent, Target
    Flow      submit → resolve() each recipient → Store.deliver() each target → one Outcome per recipient → done
    Limits    IN_FLIGHT jobs: those that wait for one account share its next transaction
    Errors    what the store says no with; an unknown recipient is 550 5.1.1, a full account as store.over_quota says
    Blocking  nothing: a body that is not in memory is read by the store's threads
    Standards RFC 5321 §4.4 (Return-Path), RFC 3463 §3.2 §3.3
    Bugs      a message that was delivered, moved or expunged by its reader, and whose result a crash then took from
              the spool, is delivered again

A delivery that may be a repetition (a retry, or mail that was in the spool when this worker started) is looked for in
its mailbox first: a crash between the store's commit and the spool's record of it makes no duplicates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic

import msgspec

from gateway.delivery.agent import BOUNCED, DEFERRED, DELIVERED, Done, Job, Outcome, failed
from gateway.delivery.local import trace_fields
from gateway.store.errors import OverQuota, StoreError
from gateway.store.model import Delivered, Delivery, Quota
from gateway.store.store import Store

# The store takes what it is given and makes batches of it; beyond, jobs wait in the queue where they can be seen.
IN_FLIGHT = 5000


class Target(msgspec.Struct, frozen=True):
    """One mailbox that a recipient's mail goes to."""

    account: str  # no two of a recipient's targets have the same
    mailbox: str = "INBOX"  # a wish: INBOX when there is no such mailbox
    quota: Quota = Quota()


# The mailboxes of a forward-path, or why it has none.
Resolved = Sequence[Target] | Outcome
Resolve = Callable[[str, Callable[[Resolved], None]], None]


class StoreAgent:
    """An Agent for store:."""

    recipients_max = 0

    def __init__(self, store: Store, resolve: Resolve, *, reject_over_quota: bool = False) -> None:
        """resolve(forward_path, done): calls done once, maybe before it returns."""
        self._store = store
        self._resolve = resolve
        self._reject_over_quota = reject_over_quota
        self._started_at = time.time_ns()
        self._active = 0
        self._closing = False

    @property
    def capacity(self) -> int:
        return 0 if self._closing else max(0, IN_FLIGHT - self._active)

    @property
    def connections(self) -> int:
        return 0

    def set_concurrency(self, connections: int) -> None:
        """There are no connections: the store has its own threads."""

    def submit(self, job: Job, done: Done) -> None:
        self._active += 1
        _Transaction(self, job, done).start()

    def close(self) -> None:
        self._closing = True

    def finished(self) -> None:
        self._active -= 1

    def again(self, job: Job) -> bool:
        """May the store have it already?"""
        return job.attempt > 1 or job.envelope.received_at < self._started_at

    @property
    def store(self) -> Store:
        return self._store

    @property
    def resolve(self) -> Resolve:
        return self._resolve

    def outcome(self, error: StoreError, duration_s: float) -> Outcome:
        """The verdict on a recipient whose mailbox said no."""
        text = str(error)
        if isinstance(error, OverQuota):
            if self._reject_over_quota:
                return Outcome(BOUNCED, 552, "5.2.2", text, duration_s=duration_s)
            return Outcome(DEFERRED, 452, "4.2.2", text, duration_s=duration_s)
        if error.transient or not error.enhanced.startswith("5"):
            return failed(text, error.enhanced, duration_s=duration_s)
        return Outcome(BOUNCED, 554, error.enhanced, text, duration_s=duration_s)


class _Transaction:
    """One job: its recipients' outcomes until all are there."""

    def __init__(self, agent: StoreAgent, job: Job, done: Done) -> None:
        self._agent = agent
        self._job = job
        self._done = done
        self._started = monotonic()
        self._outcomes: list[Outcome | None] = [None] * len(job.recipients)
        self._missing = len(job.recipients)

    def start(self) -> None:
        for place, index in enumerate(self._job.recipients):
            forward_path = self._job.envelope.recipients[index].forward_path

            def resolved(found: Resolved, place: int = place, index: int = index) -> None:
                if isinstance(found, Outcome):
                    self._settle(place, found)
                else:
                    self._deliver(place, index, found)

            try:
                self._agent.resolve(forward_path, resolved)
            except Exception as error:
                self._settle(place, failed(f"{type(error).__name__}: {error}"))

    def _deliver(self, place: int, index: int, targets: Sequence[Target]) -> None:
        job = self._job
        envelope = job.envelope
        try:
            body = job.body()
            prefix = trace_fields(envelope, envelope.recipients[index].forward_path)
            content = body.slices() if body.in_memory else body.slices
            size = body.size
        except Exception as error:  # the spool's, about a body it cannot read
            self._settle(place, failed(f"{type(error).__name__}: {error}"))
            return
        again = self._agent.again(job)
        stored: dict[str, Delivered | StoreError] = {}

        def done(result: Delivered | StoreError, account: str) -> None:
            stored[account] = result
            if len(stored) == len(targets):
                self._settle(place, self._verdict(stored))

        for target in targets:
            self._agent.store.deliver(
                Delivery(
                    target.account,
                    content,
                    size,
                    prefix,
                    target.mailbox,
                    fallback="INBOX",
                    origin=f"{job.queue_id} {index}",
                    received_at=envelope.received_at // 10**9,
                    again=again,
                    urgent=envelope.durability == "inline",
                    quota=target.quota,
                ),
                partial(done, account=target.account),
            )

    def _verdict(self, stored: Mapping[str, Delivered | StoreError]) -> Outcome:
        """All targets have it, or the recipient is tried again: those that have it know that they do."""
        duration_s = monotonic() - self._started
        verdicts = [
            self._agent.outcome(result, duration_s)
            for result in stored.values()
            if isinstance(result, StoreError)
        ]
        if verdicts:
            return min(verdicts, key=lambda verdict: verdict.state)  # DEFERRED before BOUNCED
        text = ", ".join(
            f"{account} {result.mailbox} UID {result.uid}"
            for account, result in stored.items()
            if isinstance(result, Delivered)
        )
        return Outcome(DELIVERED, 0, "2.0.0", f"stored: {text}", duration_s=duration_s)

    def _settle(self, place: int, outcome: Outcome) -> None:
        self._outcomes[place] = outcome
        self._missing -= 1
        if self._missing == 0:
            self._agent.finished()
            self._done(self._job, [one for one in self._outcomes if one is not None])
