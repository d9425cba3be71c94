"""The durable spool: owns mail between our 250 and the final disposition of its last recipient.

    Flow      begin → append* → commit → (group write) → done(stored) ... settle, update → SETTLED → space is reused
    Files     <root>/<worker>/: lock and the segments of the log (log.py); <root>/damaged/: what recovery set aside
    Limits    [spool] of the configuration; what exceeds one is refused with 452 4.3.1 before anything is accepted
    Errors    SpoolFull, SpoolError through done() and check(); SpoolCorrupt from a body; OSError never leaves
    Blocking  recover(), adopt(), close(), and a body that is no longer in memory
    Security  runs unprivileged; reads and writes nothing but its own files; no network
    Standards RFC 5321 §4.1.1.4, §4.2.5, §6.1
    Bugs      an id given out by new_id() and never stored may come again when the clock is set back over a restart; so
              may those of a partition that was taken over, when there are as many workers again

A message belongs to us from the moment done(stored, None) is called.  durability "fsync": when it is on disk.
"memory": at once, when it is queued to be written (one larger than a chunk is treated as "fsync", for it does not stay
in memory); "inline" mail never comes here.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from gateway._native import RECORD_HEADER_OCTETS, encode_number
from gateway.config_model import SpoolConfig
from gateway.mail.envelope import pack
from gateway.spool.adopt import take_over
from gateway.spool.compact import Compactor, add_live, drop_live
from gateway.spool.errors import SpoolCorrupt, SpoolError, SpoolFull, SpoolLocked
from gateway.spool.incoming import Done, Incoming
from gateway.spool.log import Log
from gateway.spool.message import Body, Stored
from gateway.spool.record import (
    COUNTER_BITS,
    DISCARDED,
    EPOCH_MS,
    LENGTHS,
    MESSAGE,
    WORKER_BITS,
)
from gateway.spool.recover import Recovery, recover_partition, set_aside
from gateway.spool.results import Results
from gateway.spool.segment import Segment, sync_directory, write_clock

logger = logging.getLogger(__name__)


class Spool:
    """One partition of the spool, owned by one worker process.  All methods belong to the loop's thread."""

    def __init__(
        self,
        root: Path,
        *,
        worker: int,
        settings: SpoolConfig | None = None,
        on_health: Callable[[str | None], None] | None = None,
    ) -> None:
        self.root = root
        self.worker = worker
        self.settings = settings or SpoolConfig()
        self.directory = root / str(worker)
        self.count = 0  # messages
        self.kept_octets = 0  # bodies in memory
        self.paused: dict[Incoming, None] = {}  # senders to resume when the log has caught up
        self.rewrite: list[Stored] = []  # acknowledged from memory, and their write failed
        self._on_health = on_health
        self._reported: str | None = None
        self._known: set[int] = set()  # numbers that recover() found, for adopt()
        self._clock = 0  # of the last queue id
        self._results_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = -1
        try:
            self._lock = _lock(self.directory)
        except OSError as error:
            raise SpoolError(f"{self.directory}: {error.strerror}") from error
        self.log = Log(self.directory, self.settings, lambda: self._clock)
        self._results = Results(self.log, self._bury)
        self.log.before_flush = self._results.write
        self.log.on_change = self._report_health
        self.log.on_resumed = self._on_resumed
        self.compactor = Compactor(self.log, self._on_damage)

    # -- start and stop ----------------------------------------------------------------------------------------------

    def recover(self) -> Recovery:
        """Read the log; the messages that still need something, oldest first.  Blocking, once, before attach().

        Raises SpoolError when a segment cannot be opened: its mail would be missing.
        """
        try:
            recovery = recover_partition(self.directory, self.root / "damaged")
        except OSError as error:
            raise SpoolError(f"{error.filename or self.directory}: {error.strerror}") from error
        self._clock = max(self._clock, recovery.clock)
        self.count = len(recovery.messages)
        self._known = {stored.number for stored in recovery.messages}
        self.log.open(recovery.segments)
        return recovery

    def adopt(self, directory: Path) -> Recovery:
        """Move the mail of a partition that no worker owns into this one.  Blocking; after recover(), before attach().

        The partition's log is removed.  SpoolLocked when it is in use; SpoolError when not everything could be moved:
        what was not stays there.
        """
        lock = _lock(directory)
        try:
            recovery = take_over(
                directory,
                self.root / "damaged",
                self.settings,
                (self.log, self.compactor),
                self._known.__contains__,
            )
            (directory / "lock").unlink()
            directory.rmdir()
        except OSError as error:
            raise SpoolError(f"{directory}: {error.strerror}") from error
        finally:
            os.close(lock)
        self._clock = max(self._clock, recovery.clock)
        self.count += len(recovery.messages)
        return recovery

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to serve on this loop."""
        self._loop = loop
        self._known.clear()
        self.log.attach(loop)
        self.compactor.attach(loop)
        self._report_health()

    def close(self) -> None:
        """Everything queued is written, then files and lock are given up."""
        if self._lock < 0:
            return
        self.log.close()
        os.close(self._lock)
        self._lock = -1
        if self._results_timer is not None:
            self._results_timer.cancel()

    # -- ids ---------------------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        """A queue id: sorts by time, unique over workers and restarts, rises even when the clock steps back."""
        return encode_number(self._new_number())

    def _new_number(self) -> int:
        now = (time.time_ns() // 1_000_000 - EPOCH_MS) << COUNTER_BITS
        self._clock = now if now > self._clock else self._clock + 1
        return self._clock << WORKER_BITS | self.worker

    # -- mail comes in -----------------------------------------------------------------------------------------------

    def begin(self) -> Incoming:
        return Incoming(self, self._new_number())

    def check(self, size_octets: int = 0) -> SpoolError | None:
        """Why a message (of that size, RFC 1870) cannot be taken now; None when it can."""
        log = self.log
        if log.trouble is not None:
            return SpoolError(log.trouble)
        if log.full is not None:
            return SpoolFull(log.full)
        if self.count >= self.settings.messages_max:
            return SpoolFull(f"{self.count} messages in the spool")
        if log.pending_octets > self.settings.commit_pending_octets:
            return SpoolFull("the disk is too slow")
        if size_octets and size_octets > log.free_octets:
            return SpoolFull(f"no room for {size_octets} octets")
        return None

    @property
    def health(self) -> str | None:
        """Why the spool refuses new mail, or None."""
        return self.log.trouble or self.log.full

    @property
    def free_octets(self) -> int:
        return self.log.free_octets

    @property
    def busy(self) -> bool:
        """True while anything is on its way to the disk, results and compaction included."""
        return bool(len(self._results) or self.log.busy or self.compactor.busy)

    def expect(self, change: int) -> None:
        """+1: the content of one more message is arriving, -1: it has arrived, or never will.

        Only a hint: a group of commits waits a moment for those that are about to join it (Log.GATHER_S).
        """
        self.log.expecting += change

    # -- what became of it -------------------------------------------------------------------------------------------

    def settle(self, stored: Stored, index: int, state: int, detail: bytes = b"") -> None:
        """Record the recipient's state (PENDING with a detail: why it is deferred).  Written with the next group.

        The message is gone when its last recipient is settled.  A final state stays as it is.
        """
        if self._results.settle(stored, index, state, detail):
            self._drop_body(stored)
        self._schedule_results()

    def withdraw(self, stored: Stored) -> None:
        """It is in the log and not ours: a record will say so.  Its sender hears that it was not taken."""
        for index in range(len(stored.states)):
            self.settle(stored, index, DISCARDED)

    def update(self, stored: Stored) -> None:
        """Record attempts, next_attempt_at, held, priority and route of the message."""
        if not stored.unsettled:
            return
        self._results.update(stored)
        if stored.written and (stored.held or stored.next_attempt_at > time.time_ns()):
            self._drop_body(stored)  # nobody needs it soon: memory is for active messages
        self._schedule_results()

    def release(self, stored: Stored) -> None:
        """Its body is not needed soon: memory is for mail that moves."""
        if stored.written:
            self._drop_body(stored)

    def body(self, stored: Stored) -> Body:
        """The message as it is sent on: prefix and content."""
        return Body(stored, self._on_damage)

    def _schedule_results(self) -> None:
        if self._results_timer is None and self._loop is not None:
            self._results_timer = self._loop.call_later(
                self.settings.results_delay_s, self._results_due
            )

    def _results_due(self) -> None:
        self._results_timer = None
        self.log.flush()

    def _bury(self, stored: Stored, segment: Segment) -> None:
        """Its SETTLED record is on disk, in segment."""
        drop_live(stored)
        for place in (stored.home, *stored.ghosts):
            if place is not segment:
                segment.tombs.setdefault(place.sequence, []).append(stored.number)
        for touched in stored.touched:
            touched.touched.discard(stored)
        self.forget(stored)
        for place, _, _ in stored.records():
            self.compactor.consider(place)

    # -- shared with Incoming ----------------------------------------------------------------------------------------

    def forget(self, stored: Stored) -> None:
        self.count -= 1
        self._drop_body(stored)

    def _drop_body(self, stored: Stored) -> None:
        self.kept_octets -= stored.kept_octets
        stored.kept_octets = 0
        stored.content = stored.prefix = None

    def resume_paused(self) -> None:
        if self.log.pending_octets >= self.settings.pending_octets:
            return
        low = self.settings.message_pending_octets // 2
        for incoming in [i for i in self.paused if i.pending_octets <= low]:
            del self.paused[incoming]
            if incoming.on_drain is not None:
                incoming.on_drain()

    def call_soon(self, done: Done, stored: Stored | None, error: SpoolError | None) -> None:
        if self._loop is not None:
            self._loop.call_soon(done, stored, error)
        else:
            done(stored, error)

    # -- trouble -----------------------------------------------------------------------------------------------------

    def _report_health(self) -> None:
        health = self.health
        if health != self._reported:
            self._reported = health
            if health is not None:
                logger.error("spool: refusing mail: %s", health)
            else:
                logger.warning("spool: taking mail again")
            if self._on_health is not None:
                self._on_health(health)
        self.compactor.consider_all()

    def _on_resumed(self) -> None:
        """Writing works again: first what was promised already."""
        again, self.rewrite = self.rewrite, []
        for stored in again:
            if stored.unsettled:
                self._write_again(stored)
        self.log.flush()

    def _write_again(self, stored: Stored) -> None:
        packed = pack(stored.envelope)
        prefix = stored.prefix or b""
        content = stored.content if stored.content is not None else b""

        def written(error: int) -> None:
            if error:
                drop_live(stored)
                self.rewrite.append(stored)
            else:
                stored.written = True

        lengths = LENGTHS.pack(len(packed), len(prefix))
        try:
            segment, offset = self.log.append(
                MESSAGE, stored.number, written, lengths + packed, prefix, content, reserve=True
            )
        except SpoolError:
            self.rewrite.append(stored)
            return
        stored.home, stored.home_offset = segment, offset
        stored.home_length = len(lengths) + len(packed) + len(prefix) + len(content)
        add_live(stored)

    def _on_damage(self, stored: Stored, error: Exception) -> None:
        """Octets read back are wrong: keep what there is, hold the message, never deliver it."""
        logger.error("spool: %s: %s", stored.queue_id, error)
        if isinstance(error, SpoolCorrupt) and not stored.held:
            try:
                octets = RECORD_HEADER_OCTETS + stored.home_length
                set_aside(
                    self.root / "damaged",
                    stored.home,
                    stored.home_offset,
                    octets,
                    [stored.queue_id],
                    error.what,
                )
            except OSError as problem:
                logger.error("spool: cannot set %s aside: %s", stored.queue_id, problem)
            stored.held = True
            self.update(stored)


def _lock(directory: Path) -> int:
    """The descriptor that owns the partition.  SpoolLocked when another process does."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What is on disk in a directory whose own name is not is lost with it.
    sync_directory(directory.parent)
    with contextlib.suppress(PermissionError):  # the root's parent need not be ours
        sync_directory(directory.parent.parent)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(fd).st_size:
            with contextlib.suppress(OSError):  # what matters is that later there is room for it
                write_clock(directory, 0)
    except BlockingIOError as error:
        os.close(fd)
        raise SpoolLocked(f"{directory} belongs to another process") from error
    except OSError:
        os.close(fd)
        raise
    return fd


__all__ = [
    "Body",
    "Incoming",
    "Recovery",
    "Spool",
    "SpoolCorrupt",
    "SpoolError",
    "SpoolFull",
    "SpoolLocked",
    "Stored",
]
