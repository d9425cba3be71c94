"""The log of one partition: appends records, makes them durable in groups, and keeps segments coming.

Flow      append → (end of the loop's iteration) flush → writer thread → tokens called with 0 or an errno
Files     <partition>/<slot>.log, see segment.py
Limits    a group is one write; while one is being written the next accumulates; a lone record waits for nobody
Errors    SpoolFull, SpoolError from append(); a failed write cuts its segment there: everything behind that
          offset is void, the log goes on in another segment (a CUT record says so), tried every probe_interval_s
Blocking  never on the loop, but for making a segment when none was ready in time (about 1 ms)
Bugs      a write that failed may still be on the disk; when the machine dies before the CUT record is, its
          messages come back although the client was told 451: a duplicate at worst
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gateway._native import LogWriter
from gateway.config_model import SpoolConfig
from gateway.spool import segment as files
from gateway.spool.errors import SpoolError, SpoolFull
from gateway.spool.message import Octets
from gateway.spool.record import CUT, pack_cuts
from gateway.spool.segment import FIRST_RECORD, Segment

logger = logging.getLogger(__name__)

Token = Callable[[int], None]  # told 0, or the errno of the write that failed


GATHER_S = 0.001  # the finest timer a uvloop has; a round trip to a client that is near is shorter
ALONE_GROUPS = 64  # after a wait in vain


class Log:
    """Segments in the order of their sequence; records in the order of append()."""

    def __init__(self, directory: Path, settings: SpoolConfig, clock: Callable[[], int]) -> None:
        self.directory = directory
        self.settings = settings
        self.segments: dict[
            int, Segment
        ] = {}  # those that hold records: sealed ones and the current one
        self.current: Segment | None = None
        self.trouble: str | None = None  # why nothing can be written
        self.full: str | None = None  # why no new mail is taken
        self.before_flush: Callable[[], None] = lambda: None  # adds what should ride along
        self.on_change: Callable[[], None] = lambda: None  # trouble or full changed
        self.on_resumed: Callable[[], None] = lambda: None  # writing works again
        self.on_complete: Callable[[Segment], None] = lambda segment: (
            None
        )  # its last record was told
        self.on_released: Callable[[Segment], None] = lambda segment: (
            None
        )  # release() is done or failed
        self._clock = clock
        self._writer = LogWriter(settings.group_octets)
        self._spares: list[Segment] = []  # ready, ascending sequence
        self._preparing: set[Future[Segment | None]] = set()
        self._executor = ThreadPoolExecutor(1, "spool-prepare")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flush_scheduled = False
        self._busy_loop: select.poll | None = None  # readable while the loop has sockets to serve
        self._gathering_until = 0.0
        # Messages whose content is arriving right now, kept true by whoever receives them: while there are some, a
        # group waits GATHER_S at most for them to join.  A lone message waits for nobody.
        self.expecting = 0
        self._gathering: asyncio.TimerHandle | None = None
        self._joined = False
        self._alone = 0  # groups to send without waiting
        self._timer: asyncio.TimerHandle | None = None
        self._next_sequence = 1
        self._next_slot = 1
        self._used_sequence = 0
        self._completing = 0  # sequence of the last group that completed
        self.closed = False

    # -- start and stop ----------------------------------------------------------------------------------------------

    def open(self, segments: list[Segment]) -> None:
        """Take over recovered segments and begin a fresh one.  Blocking.  Trouble is noted, not raised."""
        slots = [int(p.stem) for p in self.directory.glob("*.log") if p.stem.isdecimal()]
        self._next_slot = max(slots, default=0) + 1
        unused = []
        for segment in segments:
            self._next_sequence = max(self._next_sequence, segment.sequence + 1)
            if segment.empty and segment.size == self.settings.segment_octets:
                unused.append(segment)
            else:
                segment.sealed = segment.complete = True
                self.segments[segment.sequence] = segment
        self._used_sequence = self._next_sequence - 1
        try:
            for segment in unused:
                self._spares.append(self._rework(segment)())
            if not self._spares:
                self._check_floor()
                segment = self._new_segment(self._new_slot(), self.settings.segment_octets)
                files.create(segment, self.settings.write_method, self._clock(), fill=True)
                self._spares.append(segment)
            self._use(self._spares.pop(0))
        except OSError as error:
            self.trouble = str(_translate(error))
            return
        except SpoolError as error:
            self.trouble = str(error)
            return
        cuts = self._cuts()
        if cuts:
            self.write_cuts(cuts, lambda error: None)
            self._writer.submit()

    def _cuts(self) -> dict[int, int]:
        return {s.sequence: s.cut for s in self.segments.values() if s.cut is not None}

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        backend = _poller_of(loop)
        if backend >= 0 and self.settings.gather_s:
            self._busy_loop = select.poll()
            self._busy_loop.register(backend, select.POLLIN)
        loop.add_reader(self._writer.fileno(), self._on_event)
        self._prepare_spares()
        self._tick()

    def close(self) -> None:
        """Write what is queued, tell its tokens, free everything.  Blocking."""
        if self.closed:
            return
        self.flush()
        self.drain()
        self.closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._writer.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._executor.shutdown(wait=True)
        self._writer.close()
        for segment in (*self.segments.values(), *self._spares):
            segment.close()

    def drain(self) -> None:
        """Wait for the disk and call the tokens.  Blocking: before serving, at the end, and in tests."""
        self._writer.drain()
        self._on_event()

    # -- appending ---------------------------------------------------------------------------------------------------

    @property
    def pending_octets(self) -> int:
        return self._writer.pending_octets

    @property
    def writes(self) -> int:
        """Groups written so far."""
        return self._writer.writes

    @property
    def sequence(self) -> int:
        """Of the segment begun last."""
        return self._used_sequence

    @property
    def busy(self) -> bool:
        """True while something is on its way to the disk or a segment is being prepared."""
        return bool(self._writer.pending_octets or self._writer.busy or self._preparing)

    def append(
        self,
        kind: int,
        number: int,
        token: Token,
        payload: Octets,
        second: Octets | None = None,
        third: Octets | None = None,
        *,
        reserve: bool = False,
    ) -> tuple[Segment, int]:
        """Queue one record; where it will be.  reserve=True may use the segment kept for results."""
        offset = self._writer.append(kind, number, token, payload, second, third)
        if offset < 0:
            self._advance(reserve)
            offset = self._writer.append(kind, number, token, payload, second, third)
            if offset < 0:
                raise SpoolError("record is larger than a segment")
        if not self._flush_scheduled:
            if self._loop is not None:
                self._flush_scheduled = True
                self._loop.call_soon(self._flush_soon)
        elif self._gathering is not None:
            self._joined = True
            if not self.expecting:  # the last one of those we wait for
                self._gather_over()
        segment = self.current
        assert segment is not None
        return segment, offset

    def _flush_soon(self) -> None:
        """The turn of the loop is over: send the group, or wait a moment for those who are about to join it."""
        assert self._loop is not None
        if self._busy_loop is not None and self._worth_waiting(self._busy_loop):
            self._loop.call_soon(self._flush_soon)
            return
        self._gathering_until = 0.0
        if self.expecting and self._alone <= 0 and self.settings.gather_s:
            self._joined = False
            self._gathering = self._loop.call_later(GATHER_S, self._gather_over)
            return
        self._alone -= 1
        self._send_group()

    def _gather_over(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if not self._joined:  # slow senders, or stalled ones: do not wait for them every time
            self._alone = ALONE_GROUPS
        self._send_group()

    def _send_group(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def _worth_waiting(self, busy_loop: select.poll) -> bool:
        """True while other sockets are ready to be served: more mail for this group may come from them.

        An idle loop sends the group at once: a lone record waits for nobody.
        """
        now = time.monotonic()
        if not self._gathering_until:
            self._gathering_until = now + self.settings.gather_s
        return (
            now < self._gathering_until
            and self._writer.pending_octets < self.settings.group_octets // 4
            and bool(busy_loop.poll(0))
        )

    def flush(self) -> None:
        """Hand what was appended to the writer."""
        try:
            self.before_flush()
        except Exception:
            logger.exception("spool: collecting results failed")
        self._writer.submit()

    def _advance(self, reserve: bool) -> None:
        """Seal the current segment and go on in the next."""
        if self.trouble is not None:
            raise SpoolError(self.trouble)
        if len(self._spares) <= (0 if reserve else 1):
            try:
                self._spares.append(self._create_now())
            except SpoolFull as error:
                if reserve:
                    self._stop(f"{error}; results cannot be recorded")
                else:
                    self._set_full(str(error))
                raise
        segment = self._spares.pop(0)  # the lowest sequence: records must stay in order
        self._use(segment)
        self._prepare_spares()

    def _use(self, segment: Segment) -> None:
        before, self.current = self.current, segment
        self._used_sequence = segment.sequence
        self.segments[segment.sequence] = segment
        self._writer.use_segment(
            segment.write_fd,
            segment.sequence,
            segment.mark,
            FIRST_RECORD,
            segment.limit,
            segment.method,
        )
        if before is not None:
            before.sealed = True

    # -- completion --------------------------------------------------------------------------------------------------

    def _on_event(self) -> None:
        for error, sequence, offset, tokens in self._writer.completed():
            if sequence != self._completing:
                self._complete_before(sequence)
            if error:
                self._write_failed(error, sequence, offset)
            for token in tokens:
                try:
                    token(error)
                except Exception:
                    logger.exception("spool: completion of a record failed")

    def _complete_before(self, sequence: int) -> None:
        """Groups complete in order: with the first of a segment all earlier segments are through."""
        self._completing = sequence
        for segment in [
            s for s in self.segments.values() if s.sequence < sequence and not s.complete
        ]:
            segment.complete = True
            segment.close_write()
            self.on_complete(segment)

    def _write_failed(self, error: int, sequence: int, offset: int) -> None:
        """RFC 5321 §6.1 forbids to lose what was acknowledged: nothing in this group was."""
        segment = self.segments.get(sequence)
        if segment is not None and segment.cut is None:
            # After a failed sync nobody knows what the pages hold: this segment is never written to again.
            segment.cut = offset
            segment.retired = True
            logger.error(
                "spool: %s: write at %d failed: %s", segment.path, offset, os.strerror(error)
            )
        if segment is not None and segment is self.current:
            self._stop(f"write failed: {os.strerror(error)}")
        elif segment is not None and self.current is not None and segment.cut == offset:
            with contextlib.suppress(SpoolError):  # then _resume() writes it
                self.write_cuts({sequence: offset}, lambda error: None)

    def _stop(self, trouble: str) -> None:
        """Nothing can be written, until _resume()."""
        self._writer.leave_segment()
        if self.current is not None:
            self.current.sealed = True
            self.current = None
        self.trouble = trouble
        self.on_change()

    # -- health ------------------------------------------------------------------------------------------------------

    def _set_full(self, reason: str | None) -> None:
        if self.full != reason:
            self.full = reason
            self.on_change()

    def _tick(self) -> None:
        """Once every probe_interval_s: try again what failed, fetch missing spares."""
        if self._loop is None or self.closed:
            return
        self._timer = self._loop.call_later(self.settings.probe_interval_s, self._tick)
        if self.trouble is not None and self.current is None and self._spares:
            self._resume()
        self._prepare_spares()

    def _resume(self) -> None:
        """Begin another segment with a record of every cut; healthy again when that is on disk."""
        self._use(self._spares.pop(0))
        segment = self.current
        assert segment is not None
        cuts = self._cuts()

        def written(error: int) -> None:
            if error or self.current is not segment:
                return
            self.trouble = None
            logger.warning("spool: writing again, in %s", segment.path)
            self.on_change()
            self.on_resumed()

        self.write_cuts(cuts, written)
        self._writer.submit()

    def write_cuts(self, cuts: dict[int, int], token: Token) -> None:
        segment, _ = self.append(CUT, 0, token, pack_cuts(cuts), reserve=True)
        segment.cuts.update(cuts)

    # -- segments coming and going -----------------------------------------------------------------------------------

    @property
    def free_octets(self) -> int:
        """What the spool can still take: ready segments (but the reserve) and the disk down to its floor."""
        ready = (
            self._writer.room_octets + max(0, len(self._spares) - 1) * self.settings.segment_octets
        )
        return ready + max(0, self._disk_octets() - self.settings.min_free_octets)

    def _disk_octets(self) -> int:
        try:
            disk = os.statvfs(self.directory)
        except OSError:
            return 0
        return disk.f_bavail * disk.f_frsize

    def _new_segment(self, path: Path, size: int) -> Segment:
        segment = Segment(path, self._next_sequence, files.new_mark(), size)
        self._next_sequence += 1
        return segment

    def _rework(self, segment: Segment) -> Callable[[], Segment]:
        """What turns the file into a segment that comes next; it waits for the disk."""
        following = self._new_segment(segment.path, segment.size)
        clock = self._clock()

        def work() -> Segment:
            files.reuse(segment, following, self.settings.write_method, clock)
            return following

        return work

    def _new_slot(self) -> Path:
        path = self.directory / f"{self._next_slot:06d}.log"
        self._next_slot += 1
        return path

    def _check_floor(self) -> None:
        free = self._disk_octets() - self.settings.segment_octets
        if free < self.settings.min_free_octets:
            raise SpoolFull(f"disk full: {self.directory} would have {max(0, free)} octets left")

    def _create_now(self) -> Segment:
        """A segment at once, not yet written through: SpoolFull or SpoolError when there can be none."""
        self._check_floor()
        segment = self._new_segment(self._new_slot(), self.settings.segment_octets)
        try:
            files.create(segment, self.settings.write_method, self._clock(), fill=False)
        except OSError as error:
            raise _translate(error) from error
        return segment

    def _prepare_spares(self) -> None:
        """Start making what is missing, in the preparing thread."""
        if self._loop is None or self.closed or self._preparing:
            return
        if len(self._spares) >= self.settings.spare_segments:
            return
        try:
            self._check_floor()
        except SpoolFull as error:
            self._note_shortage(error)
            return
        segment = self._new_segment(self._new_slot(), self.settings.segment_octets)
        clock = self._clock()

        def work() -> Segment:
            files.create(segment, self.settings.write_method, clock, fill=True)
            return segment

        self._run(work, self._prepared)

    def release(self, segment: Segment) -> None:
        """Nothing in it is needed any more: reuse the file or remove it.  Until that is done it still counts."""
        # Whatever is being made: that may fail, this one is sure.
        wanted = len(self._spares) < self.settings.spare_segments
        if segment.retired or segment.size != self.settings.segment_octets or not wanted:
            clock = self._clock()

            def work() -> None:
                files.remove(segment, clock)

            self._run(work, lambda _, error: self._released(segment, error))
        else:

            def reworked(result: Segment | None, error: OSError | None) -> None:
                self._released(segment, error)
                self._prepared(result, error)

            self._run(self._rework(segment), reworked)

    def _released(self, segment: Segment, error: OSError | None) -> None:
        if error is not None:
            # Its records still count, so what says that they are settled must stay too.
            logger.error("spool: cannot release %s: %s", segment.path, error.strerror)
        else:
            del self.segments[segment.sequence]
        self.on_released(segment)
        self._prepare_spares()

    def _prepared(self, segment: Segment | None, error: OSError | None) -> None:
        if error is not None:
            self._note_shortage(_translate(error))
            return
        if segment is None:
            return
        if self.closed:
            segment.close()
            return
        if segment.sequence < self._used_sequence:
            # One made in haste overtook it: the order of records is the order of sequences.
            self._run(self._rework(segment), self._prepared)
            return
        self._spares.append(segment)
        self._spares.sort(key=lambda spare: spare.sequence)
        if len(self._spares) > 1:
            self._set_full(None)
        if self.trouble is not None and self.current is None:
            self._resume()
        self._prepare_spares()

    def _note_shortage(self, error: SpoolError) -> None:
        if len(self._spares) < 1:
            self._set_full(str(error))

    def _run(
        self,
        work: Callable[[], Segment | None],
        done: Callable[[Segment | None, OSError | None], None],
    ) -> None:
        """work() in the preparing thread, then done() on the loop (here and now without a loop)."""

        def finish(future: Future[Segment | None]) -> None:
            self._preparing.discard(future)
            problem = future.exception()
            if problem is not None and not isinstance(problem, OSError):
                logger.error("spool: preparing a segment failed", exc_info=problem)
                problem = OSError(errno.EIO, str(problem))
            done(None if problem else future.result(), problem)

        future = self._executor.submit(work)
        self._preparing.add(future)
        loop = self._loop
        if loop is None:
            with contextlib.suppress(Exception):
                future.result()
            finish(future)
            return

        def hand_over(future: Future[Segment | None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(finish, future)

        future.add_done_callback(hand_over)


def _poller_of(loop: asyncio.AbstractEventLoop) -> int:
    """The descriptor that the loop waits on (uvloop's or a selector loop's epoll); -1 when it does not tell."""
    get_backend_id = getattr(loop, "_get_backend_id", None)
    if get_backend_id is not None:
        return int(get_backend_id())
    fileno = getattr(getattr(loop, "_selector", None), "fileno", None)
    return int(fileno()) if fileno is not None else -1


def _translate(error: OSError) -> SpoolError:
    """The file system's words in ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpoolFull(f"disk full: {error.strerror}")
    return SpoolError(f"cannot make a segment: {error.strerror}")
