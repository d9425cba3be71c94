"""The durable spool: owns mail between our 250 and the final disposition of its last recipient.

    Flow      begin → append* → commit → (group write) → done(stored) ... settle, update → SETTLED → space is reused
    Files     <root>/<worker>/: lock and the segments of the log (log.py); <root>/damaged/: what recovery set aside
    Limits    SpoolSettings; what exceeds one is refused with 452 4.3.1 before anything is accepted
    Errors    SpoolFull, SpoolError through done() and check(); SpoolCorrupt from a body; OSError never leaves
    Blocking  recover(), adopt(), close(), and a body that is no longer in memory
    Security  runs unprivileged; reads and writes nothing but its own files; no network
    Standards RFC 5321 §4.1.1.4, §4.2.5, §6.1
    Bugs      an id given out by new_id() and never stored may come again when the clock is set back over a restart

A message belongs to us from the moment done(stored, None) is called.  durability "fsync": when it is on disk.
"memory": at once, when it is queued to be written (one larger than a chunk is treated as "fsync", for it does not stay
in memory); "inline" mail never comes here.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gateway._native.logwriter import encode_number
from gateway.mail.envelope import Envelope, pack

from .compact import Compactor, add_live, drop_live
from .errors import SpoolCorrupt, SpoolError, SpoolFull, SpoolLocked
from .log import Log
from .message import Body, Extent, Stored, pack_extents
from .record import (
    CHUNK,
    COUNTER_BITS,
    END,
    EPOCH_MS,
    LENGTHS,
    MESSAGE,
    PENDING,
    RESULT,
    SETTLED,
    UPDATE,
    WORKER_BITS,
    pack_numbers,
    pack_results,
    pack_update,
)
from .recover import Damage, Recovery, recover_partition, set_aside
from .segment import Segment
from .settings import SpoolSettings

if TYPE_CHECKING:
    from typing_extensions import Buffer

logger = logging.getLogger(__name__)

Done = Callable[[Stored | None, SpoolError | None], None]


class Incoming:
    """A message being received.  End it with commit() or abort()."""

    __slots__ = (
        "_done",
        "_extents",
        "_pending_octets",
        "_size_octets",
        "_spool",
        "_stored",
        "error",
        "number",
        "on_drain",
        "queue_id",
    )

    def __init__(self, spool: Spool, number: int) -> None:
        self._spool = spool
        self.number = number
        self.queue_id = encode_number(number)
        self.on_drain: Callable[[], None] | None = None  # called once after append() returned False
        self.error: SpoolError | None = None  # it cannot be stored any more: commit() will say so
        self._extents: list[Extent] = []
        self._size_octets = 0
        self._pending_octets = 0
        self._stored: Stored | None = None
        self._done: Done | None = None

    def append(self, chunk: Buffer) -> bool:
        """Stream a piece of the content into the log.  False: pause the sender until on_drain is called.

        Errors wait for commit(), so that the dialogue stays in step; the octets are dropped then.
        """
        spool = self._spool
        view = memoryview(chunk)
        step = spool.settings.chunk_octets
        for start in range(0, len(view), step):
            if self.error is not None:
                return True
            piece = view[start : start + step]
            self._append(piece)
        if self._pending_octets < spool.settings.message_pending_octets and (
            spool.log.pending_octets < spool.settings.pending_octets
        ):
            return True
        if self.error is not None:
            return True
        spool.paused[self] = None
        return False

    def _append(self, piece: memoryview) -> None:
        spool, octets = self._spool, len(piece)

        def written(error: int) -> None:
            self._pending_octets -= octets
            if error:
                self.error = SpoolError(f"{self.queue_id}: {os.strerror(error)}")
            if spool.paused:
                spool.resume_paused()

        try:
            offset = spool.log.append(CHUNK, self.number, written, piece)
        except SpoolError as error:
            self.error = error
            return
        assert spool.log.current is not None
        self._extents.append((spool.log.current, offset, octets))
        spool.log.current.pins += 1
        self._size_octets += octets
        self._pending_octets += octets

    def abort(self) -> None:
        """Forget it.  What is in the log already means nothing."""
        self._unpin()
        self._spool.paused.pop(self, None)

    def _unpin(self) -> None:
        extents, self._extents = self._extents, []
        for segment, _, _ in extents:
            segment.pins -= 1
            if not segment.pins:
                self._spool.compactor.consider(segment)

    def commit(self, envelope: Envelope, prefix: bytes, last: Buffer | None, done: Done) -> None:
        """Store it; done(stored, None) when it is ours, done(None, error) when it is not: on the loop, later.

        prefix (our trace fields) goes before the content; last is what append() was not given.
        """
        spool = self._spool
        self._done = done
        if last is not None and (
            self._extents or len(memoryview(last)) > spool.settings.chunk_octets
        ):
            self.append(last)
            last = None
        error = self.error or spool.check()
        if error is not None:
            self._refuse(error)
            return
        packed = pack(envelope)
        lengths = LENGTHS.pack(len(packed), len(prefix))
        size = self._size_octets + len(prefix)
        log = spool.log
        try:
            if self._extents:
                kind = END
                third: Buffer | None = pack_extents(self._extents)
                length = len(lengths) + len(packed) + len(prefix) + len(self._extents) * 16
            else:
                kind = MESSAGE
                third = last
                octets = len(memoryview(last)) if last is not None else 0
                size += octets
                length = len(lengths) + len(packed) + len(prefix) + octets
            offset = log.append(kind, self.number, self._written, lengths + packed, prefix, third)
        except SpoolError as problem:
            self._refuse(problem)
            return
        assert log.current is not None
        stored = Stored(self.number, self.queue_id, envelope, size)
        stored.home = (log.current, offset, length)
        self._stored = stored
        spool.count += 1
        memory = envelope.durability == "memory" and not self._extents
        stored.extents = tuple(self._extents)
        add_live(stored)
        if self._extents:
            self._unpin()
        # What "memory" promises is kept in memory whatever the bound says, until it is written.
        elif memory or spool.kept_octets + size <= spool.settings.memory_octets:
            stored.prefix = prefix
            stored.content = [last] if last is not None else []
            stored.kept_octets = size
            spool.kept_octets += size
        if memory:
            self._done = None
            spool.call_soon(done, stored, None)

    def _refuse(self, error: SpoolError) -> None:
        self.abort()
        done, self._done = self._done, None
        assert done is not None
        self._spool.call_soon(done, None, error)

    def _written(self, error: int) -> None:
        stored, done = self._stored, self._done
        assert stored is not None
        self._stored = None
        if not error:
            stored.written = True
            if done is not None:
                done(stored, None)
            return
        drop_live(stored)
        if done is None:  # durability "memory": it is ours already
            self._spool.rewrite.append(stored)
            return
        self._spool.forget(stored)
        done(None, SpoolError(f"{self.queue_id}: {os.strerror(error)}"))


class Spool:
    """One partition of the spool, owned by one worker process.  All methods belong to the loop's thread."""

    def __init__(
        self,
        root: Path,
        *,
        worker: int,
        settings: SpoolSettings | None = None,
        on_health: Callable[[str | None], None] | None = None,
    ) -> None:
        self.root = root
        self.worker = worker
        self.settings = settings or SpoolSettings()
        self.directory = root / str(worker)
        self.count = 0  # messages
        self.kept_octets = 0  # bodies in memory
        self.paused: dict[Incoming, None] = {}  # senders to resume when the log has caught up
        self.rewrite: list[Stored] = []  # acknowledged from memory, and their write failed
        self._on_health = on_health
        self._reported: str | None = None
        self._clock = 0  # of the last queue id
        self._dirty: dict[Stored, set[int]] = {}
        self._updated: dict[Stored, None] = {}
        self._settled: list[Stored] = []
        self._results_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = -1
        try:
            self._lock = _lock(self.directory)
        except OSError as error:
            raise SpoolError(f"{self.directory}: {error.strerror}") from error
        self.log = Log(self.directory, self.settings, lambda: self._clock)
        self.log.before_flush = self._collect_results
        self.log.on_change = self._report_health
        self.log.on_resumed = self._on_resumed
        self.compactor = Compactor(self.log, self._on_damage)

    # -- start and stop ----------------------------------------------------------------------------------------------

    def recover(self) -> Recovery:
        """Read the log; the messages that still need something, oldest first.  Blocking, once, before attach()."""
        recovery = recover_partition(self.directory, self.root / "damaged")
        self._clock = max(self._clock, recovery.clock)
        self.count = len(recovery.messages)
        self.log.open(recovery.segments)
        return recovery

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to serve on this loop."""
        self._loop = loop
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

    # -- what became of it -------------------------------------------------------------------------------------------

    def settle(self, stored: Stored, index: int, state: int, detail: bytes = b"") -> None:
        """Record the recipient's state (PENDING with a detail: why it is deferred).  Written with the next group.

        The message is gone when its last recipient is settled.  A final state stays as it is.
        """
        if stored.states[index] != PENDING:
            return
        if detail:
            stored.details[index] = detail
        if state != PENDING:
            stored.states[index] = state
            stored.unsettled -= 1
            if not stored.unsettled:
                self._dirty.pop(stored, None)
                self._updated.pop(stored, None)
                self._settled.append(stored)
                self._drop_body(stored)
                self._schedule_results()
                return
        self._dirty.setdefault(stored, set()).add(index)
        self._schedule_results()

    def update(self, stored: Stored) -> None:
        """Record attempts, next_attempt_at, held, priority and route of the message."""
        if not stored.unsettled:
            return
        self._updated[stored] = None
        if stored.written and (stored.held or stored.next_attempt_at > time.time_ns()):
            self._drop_body(stored)  # nobody needs it soon: memory is for active messages
        self._schedule_results()

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

    def _collect_results(self) -> None:
        """Everything settled and updated since the last group, as records of the one about to be written."""
        if not (self._settled or self._dirty or self._updated):
            return
        if self.log.trouble is not None:
            return  # kept for on_resumed
        try:
            while self._settled:
                batch, self._settled = self._settled[:4096], self._settled[4096:]
                self._record(SETTLED, 0, batch, pack_numbers([stored.number for stored in batch]))
            while self._dirty:
                stored, indices = self._dirty.popitem()
                results = [
                    (i, stored.states[i], stored.details.get(i, b"")) for i in sorted(indices)
                ]
                self._record(RESULT, stored.number, (stored, indices), pack_results(results))
            while self._updated:
                stored, _ = self._updated.popitem()
                self._record(UPDATE, stored.number, (stored, None), pack_update(stored.update))
        except SpoolError as error:
            logger.error("spool: results cannot be recorded: %s", error)

    def _record(
        self,
        kind: int,
        number: int,
        about: list[Stored] | tuple[Stored, set[int] | None],
        payload: bytes,
    ) -> None:
        segment: Segment | None = None

        def put_back() -> None:
            if isinstance(about, list):
                self._settled.extend(about)
            elif not about[0].unsettled:
                pass  # its SETTLED says all
            elif about[1] is not None:
                self._dirty.setdefault(about[0], set()).update(about[1])
            else:
                self._updated[about[0]] = None

        def written(error: int) -> None:
            if error:
                put_back()
            elif isinstance(about, list):
                assert segment is not None
                for stored in about:
                    self._bury(stored, segment)

        try:
            self.log.append(kind, number, written, payload, reserve=True)
        except SpoolError:
            put_back()
            raise
        segment = self.log.current
        if not isinstance(about, list):
            assert segment is not None
            segment.touched.add(about[0])
            about[0].touched.add(segment)

    def _bury(self, stored: Stored, segment: Segment) -> None:
        """Its SETTLED record is on disk, in segment."""
        drop_live(stored)
        home = stored.home[0]
        for place in (home, *stored.ghosts):
            if place is not segment:
                segment.tombs.setdefault(place.sequence, []).append(stored.number)
        for touched in stored.touched:
            touched.touched.discard(stored)
        self.forget(stored)
        self.compactor.consider(home)
        for extent in stored.extents:
            self.compactor.consider(extent[0])

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
        for incoming in [i for i in self.paused if i._pending_octets <= low]:
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
        content = b"".join(bytes(part) for part in stored.content or [])

        def written(error: int) -> None:
            if error:
                drop_live(stored)
                self.rewrite.append(stored)
            else:
                stored.written = True

        lengths = LENGTHS.pack(len(packed), len(prefix))
        try:
            offset = self.log.append(
                MESSAGE, stored.number, written, lengths + packed, prefix, content, reserve=True
            )
        except SpoolError:
            self.rewrite.append(stored)
            return
        assert self.log.current is not None
        stored.home = (
            self.log.current,
            offset,
            len(lengths) + len(packed) + len(prefix) + len(content),
        )
        add_live(stored)

    def _on_damage(self, stored: Stored, error: Exception) -> None:
        """Octets read back are wrong: keep what there is, hold the message, never deliver it."""
        logger.error("spool: %s: %s", stored.queue_id, error)
        if isinstance(error, SpoolCorrupt) and not stored.held:
            try:
                segment, offset, length = stored.home
                set_aside(
                    self.root / "damaged", segment, offset, length, [stored.queue_id], error.what
                )
            except OSError as problem:
                logger.error("spool: cannot set %s aside: %s", stored.queue_id, problem)
            stored.held = True
            self.update(stored)


def _lock(directory: Path) -> int:
    """The descriptor that owns the partition.  SpoolLocked when another process does."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise SpoolLocked(f"{directory} belongs to another process") from error
    except OSError:
        os.close(fd)
        raise
    return fd


__all__ = ["Damage", "Incoming", "Recovery", "Spool", "Stored"]
