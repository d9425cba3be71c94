"""Threads that work on accounts: one at a time on each account, several accounts at once.

    Owns      Pool, Slot
    Flow      loop: Slot.add*() → run queue → thread: Slot.run() → results → loop: callbacks, in order
    Limits    settings.threads; settings.open_accounts (the longest unused is closed)
    Errors    StoreError goes to the callback; anything else is logged and becomes a StoreError
    Blocking  threads only; the loop waits for nothing but the page cache: a few rows are read, a few flags changed
              at once (QUICK_S)

Everything that waits on an account while another transaction runs is done in the next turn: deliveries of one turn
share a transaction, and so do, in a busy worker, those that come within gather_s of the one before.  All bookkeeping is
the loop's; a thread only takes from the deques of the slot it was given.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gateway.config_store import StoreConfig
from gateway.store.account import AccountFile
from gateway.store.errors import NotNow, StoreBusy, StoreError
from gateway.store.handoff import Handoff, Waiter
from gateway.store.model import Delivered, Delivery, Notice
from gateway.store.names import account_directory

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[AccountFile], Any]
# (result, None) or (None, error)
Done = Callable[[Any, StoreError | None], None]
DeliveryDone = Callable[[Delivered | StoreError], None]

JOBS_PER_TURN = 64
# A few rows that are in memory are read in a fraction of what it costs to hand the job to a thread and back.  When the
# disk was asked for longer than QUICK_S, all jobs go to the threads for SLOW_S.
QUICK_S = 0.002
SLOW_S = 1.0
BUSY_DELIVERIES = 16  # within gather_s, over all accounts; with fewer nothing is worth waiting for


class Slot:
    """One account in this worker: what waits for it, and its open file."""

    __slots__ = (
        "busy", "close", "deliveries", "directory", "due_at", "file", "jobs", "name", "timer",
    )  # fmt: skip

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.file: AccountFile | None = None
        self.jobs: deque[tuple[Work, Done, bool, Notices]] = deque()
        self.deliveries: deque[tuple[Delivery, int, DeliveryDone]] = deque()
        self.busy = False  # in the run queue, or in a thread
        self.close = False  # the next turn closes the file
        self.due_at = 0.0  # loop time from which on deliveries are not gathered any more
        self.timer: asyncio.TimerHandle | None = None  # runs until then


# What a job's result means for others: (mailbox id, modseq) pairs.
Notices = Callable[[Any], list[tuple[int, int]]]
Result = tuple[Callable[..., None], tuple[Any, ...]]


class Pool:
    """The threads of one worker."""

    def __init__(
        self,
        directory: Path,
        settings: StoreConfig,
        publish: Callable[[list[Notice]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._directory = directory
        self._settings = settings
        self._publish = publish
        self._slots: OrderedDict[str, Slot] = OrderedDict()  # the longest unused first
        self._queue: Handoff[Slot | Callable[[], None] | None] = Handoff()
        self._finished: deque[tuple[Slot, list[Result], list[Notice]]] = deque()
        self._woken = False
        self._open = 0
        self._waiting_octets = 0
        self._closed = False
        self._tick_at = 0.0  # when the current period of gather_s ends
        self._tick_deliveries = 0  # in it
        self._is_busy = False  # the period before had many
        self._idle = asyncio.Event()
        # Threads that do many small things would hand the GIL to and fro: most of what a delivery costs.
        self._turn_taking = threading.Lock()
        self._not_quick_until = 0.0  # time.monotonic()
        self._disk_reads = 0  # of the loop's thread
        self._threads = [
            threading.Thread(target=self._work, name=f"store-{number}", daemon=True)
            for number in range(settings.threads)
        ]
        for thread in self._threads:
            thread.start()

    # -- on the loop ---------------------------------------------------------------------------------------------

    def submit(
        self,
        account: str,
        work: Work,
        done: Done,
        *,
        create: bool,
        notices: Notices,
        quick: bool = False,
    ) -> None:
        """done is called on the loop; quick: maybe before this returns, when work but reads a few rows."""
        if quick:
            try:
                result = self.now(account, work)
            except NotNow:
                pass
            except StoreError as error:
                done(None, error)
                return
            else:
                done(result, None)
                self.publish(account, notices(result))
                return
        slot = self._slot(account, done)
        if slot is not None:
            slot.jobs.append((work, done, create, notices))
            self._schedule(slot)

    def now(self, account: str, work: Callable[..., T], *arguments: Any) -> T:
        """work(file, *arguments) in this turn of the loop.  Raises StoreError, and NotNow: submit() it."""
        slot = self._slots.get(account)
        if slot is None or slot.file is None or slot.busy or self._closed:
            raise NotNow
        began = time.monotonic()
        if began < self._not_quick_until:
            raise NotNow
        try:
            return work(slot.file, *arguments)
        except (StoreError, NotNow):
            raise
        except Exception as error:
            logger.exception("the store failed on account %s", account)
            raise StoreError(f"{type(error).__name__}: {error}") from error
        finally:
            now = time.monotonic()
            if now - began > QUICK_S:
                usage = resource.getrusage(resource.RUSAGE_THREAD)
                reads = usage.ru_majflt + usage.ru_inblock
                if reads > self._disk_reads:  # else only the processor was busy
                    self._disk_reads = reads
                    self._not_quick_until = now + SLOW_S
            self._slots.move_to_end(account)

    def publish(self, account: str, changed: list[tuple[int, int]]) -> None:
        """These (mailbox, MODSEQ) of the account are committed."""
        if changed:
            self._publish([Notice(account, mailbox, modseq) for mailbox, modseq in changed])

    def aside(self, account: str, work: Callable[[AccountFile], object]) -> None:
        """work(file) in a thread while others may work on the same file; nothing when it is closed."""
        slot = self._slots.get(account)
        if slot is None or slot.file is None or self._closed:
            return
        file = slot.file

        def aside() -> None:
            try:
                work(file)
            except StoreError as error:
                logger.error("account %s: %s", account, error)
            except Exception:
                logger.exception("the store failed on account %s", account)

        self._queue.put(aside)

    def deliver(self, delivery: Delivery, done: DeliveryDone) -> None:
        octets = delivery.octets
        if self._waiting_octets and self._waiting_octets + octets > self._settings.waiting_octets:
            done(StoreBusy("too much mail waits for the store"))
            return
        slot = self._slot(delivery.account, lambda _, error: done(error or StoreBusy("closed")))
        if slot is not None:
            self._waiting_octets += octets
            self._count_delivery()
            slot.deliveries.append((delivery, octets, done))
            self._gather(slot, delivery.urgent)

    def hold(self, octets: int) -> bool:
        """Count what a session holds for the store among what waits for it; False: that would be too much."""
        if octets > 0 and self._waiting_octets + octets > self._settings.waiting_octets:
            return False
        self._waiting_octets += octets
        return True

    async def close(self) -> None:
        """What was submitted is done; then nothing is taken any more, and all files are closed."""
        self._closed = True
        for slot in self._slots.values():
            if slot.deliveries:
                self._schedule(slot)
        while any(slot.busy or slot.deliveries for slot in self._slots.values()):
            self._idle.clear()
            await self._idle.wait()
        for slot in self._slots.values():
            if slot.file is not None:
                slot.close = True
                self._schedule(slot)
        while any(slot.busy for slot in self._slots.values()):
            self._idle.clear()
            await self._idle.wait()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _slot(self, account: str, done: Done) -> Slot | None:
        if self._closed:
            done(None, StoreBusy("the store is closing"))
            return None
        slot = self._slots.get(account)
        if slot is None:
            try:
                slot = Slot(account, account_directory(self._directory, account))
            except StoreError as error:
                done(None, error)
                return None
            self._slots[account] = slot
        return slot

    def _count_delivery(self) -> None:
        now = self._loop.time()
        if now >= self._tick_at:
            recent = now - self._tick_at < self._settings.gather_s
            self._is_busy = recent and self._tick_deliveries >= BUSY_DELIVERIES
            self._tick_at = self._next_tick()
            self._tick_deliveries = 0
        self._tick_deliveries += 1

    def _gather(self, slot: Slot, urgent: bool) -> None:
        """In a busy worker, deliveries that follow each other soon share a transaction; the first is done at once."""
        if slot.busy:
            return
        if (
            urgent
            or self._closed
            or not (self._is_busy or self._tick_deliveries >= BUSY_DELIVERIES)
            or slot.jobs
            or len(slot.deliveries) >= self._settings.batch_messages
            or self._loop.time() >= slot.due_at
        ):
            self._schedule(slot)
        elif slot.timer is None:
            slot.timer = self._loop.call_at(slot.due_at, self._schedule, slot)

    def _schedule(self, slot: Slot) -> None:
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        if not slot.busy:
            slot.busy = True
            self._queue.put(slot)

    def _drain(self) -> None:
        self._woken = False
        notices: list[Notice] = []
        finished = self._finished
        done: list[Result] = []
        while finished:
            slot, results, told = finished.popleft()
            slot.busy = False
            done += results
            notices += told
            if slot.jobs:
                self._schedule(slot)
            elif slot.deliveries:
                self._gather(slot, any(one[0].urgent for one in slot.deliveries))
            elif slot.file is None:
                self._slots.pop(slot.name, None)
            else:
                self._slots.move_to_end(slot.name)
        self._close_unused()
        for callback, arguments in done:
            try:
                callback(*arguments)
            except Exception:
                logger.exception("a callback of the store failed")
        if notices:
            self._publish(notices)
        self._idle.set()

    def _delivered(self, octets: int) -> None:
        self._waiting_octets -= octets

    def _close_unused(self) -> None:
        excess = self._open - self._settings.open_accounts
        if excess <= 0:
            return
        for slot in list(self._slots.values()):
            if not slot.busy and slot.file is not None:
                slot.close = True
                self._schedule(slot)
                excess -= 1
                if excess == 0:
                    return

    # -- in a thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        waiter: Waiter[Slot | Callable[[], None] | None] = Waiter()
        while (slot := self._queue.take(waiter)) is not None:
            if not isinstance(slot, Slot):
                slot()
                continue
            results: list[Result] = []
            notices: list[Notice] = []
            try:
                self._turn(slot, results, notices)
            except BaseException:  # a bug of ours: the slot must come back all the same
                logger.exception("the store failed on account %s", slot.name)
            self._finished.append((slot, results, notices))
            if not self._woken:
                self._woken = True
                self._loop.call_soon_threadsafe(self._drain)

    def _turn(self, slot: Slot, results: list[Result], notices: list[Notice]) -> None:
        if slot.close and not slot.jobs and not slot.deliveries:
            slot.close = False
            self._close_file(slot)
            return
        slot.close = False
        if slot.deliveries:
            self._deliver(slot, results, notices)
            slot.due_at = self._next_tick()
        for _ in range(JOBS_PER_TURN):
            if not slot.jobs:
                break
            work, done, create, changed = slot.jobs.popleft()
            try:
                result = work(self._file(slot, create))
                notices += [
                    Notice(slot.name, mailbox, modseq) for mailbox, modseq in changed(result)
                ]
                results.append((done, (result, None)))
            except StoreError as error:
                results.append((done, (None, error)))
            except Exception as error:
                logger.exception("the store failed on account %s", slot.name)
                results.append((done, (None, StoreError(f"{type(error).__name__}: {error}"))))

    def _deliver(self, slot: Slot, results: list[Result], notices: list[Notice]) -> None:
        settings = self._settings
        batch: list[tuple[Delivery, int, DeliveryDone]] = []
        octets = 0
        while slot.deliveries and len(batch) < settings.batch_messages:
            if batch and octets + slot.deliveries[0][1] > settings.batch_octets:
                break
            batch.append(slot.deliveries.popleft())
            octets += batch[-1][1]
        outcomes: list[Delivered | StoreError]
        try:
            outcomes = self._file(slot, True).deliver([one[0] for one in batch], self._turn_taking)
        except StoreError as error:
            outcomes = [error] * len(batch)
        except Exception:
            logger.exception("the store failed on account %s", slot.name)
            outcomes = [self._deliver_alone(slot, one[0]) for one in batch]
        changed: dict[int, int] = {}
        for (_, _, done), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Delivered):
                changed[outcome.mailbox_id] = outcome.modseq
            results.append((done, (outcome,)))
        results.append((self._delivered, (octets,)))
        notices += [Notice(slot.name, mailbox, modseq) for mailbox, modseq in changed.items()]

    def _next_tick(self) -> float:
        """All accounts' gathered deliveries become due at the same moments: one wake-up for many."""
        gather_s = self._settings.gather_s
        now = self._loop.time()
        return now - now % gather_s + gather_s if gather_s else now

    def _deliver_alone(self, slot: Slot, delivery: Delivery) -> Delivered | StoreError:
        """A bug that one message wakes must not keep the others of its batch out."""
        try:
            return self._file(slot, True).deliver([delivery])[0]
        except StoreError as error:
            return error
        except Exception as error:
            return StoreError(f"{type(error).__name__}: {error}")

    def _file(self, slot: Slot, create: bool) -> AccountFile:
        if slot.file is None:
            slot.file = AccountFile(slot.directory, self._settings, create=create)
            self._loop.call_soon_threadsafe(self._count_open, 1)
        return slot.file

    def _close_file(self, slot: Slot) -> None:
        if slot.file is not None:
            slot.file.close()
            slot.file = None
            self._loop.call_soon_threadsafe(self._count_open, -1)

    def _count_open(self, change: int) -> None:
        self._open += change
