"""Compaction: gives segments back whose mail is (nearly) all settled, copying forward what is still needed.

    Flow      consider(segment) → copy live messages → carry states, settled numbers and cuts → wait → release
    Limits    one segment at a time; compact_step_octets in one turn of the loop; pauses while the log is behind
    Errors    anything that fails leaves the segment as it is, to be tried again later
    Blocking  reads records of at most a chunk on the loop, mostly from the page cache

Why a segment is not just dropped when its messages are settled: its SETTLED, RESULT and UPDATE records may speak of
messages that lie in other segments.  Those records are needed while the other segment exists, so they are written
again (8 octets a message) before this one goes.  That makes segments independent: old mail that is held pins neither
its segment nor the ones behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator

from gateway._native import RECORD_HEADER_OCTETS
from gateway.spool.errors import SpoolCorrupt, SpoolError
from gateway.spool.log import Log
from gateway.spool.message import Extent, Stored, pack_extents, split_message
from gateway.spool.record import (
    CHUNK,
    CUT,
    END,
    LENGTHS,
    MESSAGE,
    RESULT,
    SETTLED,
    UPDATE,
    pack_cuts,
    pack_numbers,
    pack_results,
    pack_update,
)
from gateway.spool.segment import Segment

logger = logging.getLogger(__name__)

RETRY_S = 0.2
NUMBERS_A_RECORD = 4096


def add_live(stored: Stored) -> None:
    """Count the message's octets in every segment that holds some."""
    stored.counted = True
    home = stored.home
    home.live.add(stored)
    home.live_octets += RECORD_HEADER_OCTETS + stored.home_length
    for segment, _, length in stored.extents:
        segment.live.add(stored)
        segment.live_octets += RECORD_HEADER_OCTETS + length


def drop_live(stored: Stored) -> None:
    if not stored.counted:
        return
    stored.counted = False
    home = stored.home
    home.live.discard(stored)
    home.live_octets -= RECORD_HEADER_OCTETS + stored.home_length
    for segment, _, length in stored.extents:
        segment.live.discard(stored)
        segment.live_octets -= RECORD_HEADER_OCTETS + length


def touch(stored: Stored, segment: Segment) -> None:
    """The segment has a state record of the message."""
    if stored not in segment.touched:
        segment.touched.add(stored)
        stored.touched = (*stored.touched, segment)


class Compactor:
    """Works through the segments that are worth it."""

    def __init__(self, log: Log, on_damage: Callable[[Stored, Exception], None]) -> None:
        self._log = log
        self._on_damage = on_damage
        self._waiting: dict[int, Segment] = {}
        self._segment: Segment | None = None
        self._steps: Iterator[int] = iter(())
        self._outstanding = 0
        self._failed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        log.on_complete = self.consider
        log.on_released = self._on_released

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.consider_all()

    @property
    def busy(self) -> bool:
        return self._segment is not None or bool(self._waiting)

    def consider_all(self) -> None:
        for segment in list(self._log.segments.values()):
            self.consider(segment)

    def consider(self, segment: Segment) -> None:
        """Something in the segment was settled, or it was completed."""
        if not segment.complete or segment.pins or not self._exists(segment):
            return
        settings = self._log.settings
        share = settings.compact_below_when_full if self._log.full else settings.compact_below
        if segment.live and not segment.retired and segment.live_octets >= share * segment.size:
            return
        if segment.sequence not in self._waiting and segment is not self._segment:
            self._waiting[segment.sequence] = segment
            self._next()

    def _next(self) -> None:
        if self._segment is not None or self._loop is None or not self._waiting:
            return
        sequence = min(self._waiting)  # oldest first: what refers to it can go sooner
        self._segment = self._waiting.pop(sequence)
        self._outstanding = 0
        self._failed = False
        self._steps = self._work(self._segment)
        self._loop.call_soon(self._step)

    def _step(self) -> None:
        loop, log = self._loop, self._log
        assert loop is not None and self._segment is not None
        if log.closed:
            return
        behind = log.trouble is not None or log.pending_octets > log.settings.pending_octets
        if behind and not self._segment.is_dead(log.segments):
            loop.call_later(RETRY_S, self._step)
            return
        budget = log.settings.compact_step_octets
        try:
            for octets in self._steps:
                budget -= octets
                if budget <= 0:
                    loop.call_soon(self._step)
                    return
        except SpoolError as error:
            logger.warning("spool: compaction of %s stopped: %s", self._segment.path, error)
            self._failed = True
        except Exception:
            logger.exception("spool: compaction of %s failed", self._segment.path)
            self._failed = True
        self._finish()

    def _finish(self) -> None:
        """The work is queued: release the segment when it is on disk."""
        if self._outstanding:
            return  # the last token comes back here
        segment = self._segment
        assert segment is not None and self._loop is not None
        if self._log.closed:
            return
        if self._failed or segment.live or segment.pins:
            self._segment = None
            delay = self._log.settings.probe_interval_s if self._failed else RETRY_S
            self._loop.call_later(delay, self._retry, segment)
            self._next()
            return
        self._log.release(segment)

    def _exists(self, segment: Segment) -> bool:
        return self._log.segments.get(segment.sequence) is segment

    def _retry(self, segment: Segment) -> None:
        self.consider(segment)
        self._next()

    def _on_released(self, segment: Segment) -> None:
        self._segment = None
        if self._loop is not None:
            if not self._exists(segment):
                for stored in segment.touched:
                    stored.touched = tuple(
                        other for other in stored.touched if other is not segment
                    )
                segment.touched.clear()
            else:
                self._loop.call_later(self._log.settings.probe_interval_s, self._retry, segment)
            self._next()

    # -- what is copied ----------------------------------------------------------------------------------------------

    def _append(
        self,
        kind: int,
        number: int,
        payload: bytes | memoryview,
        then: Callable[[int], None] | None = None,
    ) -> tuple[Segment, int]:
        self._outstanding += 1

        def token(error: int) -> None:
            self._outstanding -= 1
            if error:
                self._failed = True
            if then is not None:
                then(error)
            if not self._outstanding and self._segment is not None and not self._stepping():
                self._finish()

        try:
            return self._log.append(kind, number, token, payload, reserve=True)
        except BaseException:
            self._outstanding -= 1
            raise

    def _stepping(self) -> bool:
        return getattr(self._steps, "gi_frame", None) is not None

    def _work(self, segment: Segment) -> Iterator[int]:
        for stored in list(segment.live):
            if stored.unsettled and stored.written and stored in segment.live:
                try:
                    yield from self.copy(stored, (segment,))
                except SpoolCorrupt as error:
                    self._on_damage(stored, error)
                    self._failed = True
        for stored in list(segment.touched):
            if stored.unsettled:
                yield self.write_states(stored)
        for sequence, numbers in segment.tombs.items():
            if sequence in self._log.segments and sequence != segment.sequence:
                for start in range(0, len(numbers), NUMBERS_A_RECORD):
                    part = numbers[start : start + NUMBERS_A_RECORD]
                    at, _ = self._append(SETTLED, 0, pack_numbers(part))
                    at.tombs.setdefault(sequence, []).extend(part)
                    yield 8 * len(part)
        existing = self._log.segments
        cuts = {
            s: cut for s, cut in segment.cuts.items() if s in existing and s != segment.sequence
        }
        if cuts:
            at, _ = self._append(CUT, 0, pack_cuts(cuts))
            at.cuts.update(cuts)

    def copy(self, stored: Stored, leaving: Collection[Segment]) -> Iterator[int]:
        """The message's records in those segments again, at the end of the log; yields octets copied."""
        extents = list(stored.extents)
        pinned: list[Segment] = []
        failed: list[int] = []  # errors of pieces: a piece and its END may lie in different segments
        try:
            for i, (at, offset, length) in enumerate(extents):
                if at in leaving:
                    payload = at.read_record(offset, length, stored.queue_id)
                    segment, offset = self._append(CHUNK, stored.number, payload, failed.append)
                    segment.pins += 1
                    pinned.append(segment)
                    extents[i] = segment, offset, length
                    yield length
                    if not stored.unsettled:
                        return
            payload = stored.home.read_record(
                stored.home_offset, stored.home_length, stored.queue_id
            )
            kind = MESSAGE
            if extents:
                kind = END
                envelope, prefix, _ = split_message(payload)
                lengths = LENGTHS.pack(len(envelope), len(prefix))
                payload = memoryview(b"".join((lengths, envelope, prefix, pack_extents(extents))))
            move = _Move(self._log, stored, extents, pinned, failed, len(payload))
            pinned = []  # from here on they are the move's
            move.segment, move.offset = self._append(kind, stored.number, payload, move.written)
            if not stored.is_default():
                yield self.write_states(stored)
            yield len(payload)
        finally:
            for pin in pinned:
                pin.pins -= 1

    def write_states(self, stored: Stored) -> int:
        """Everything that is known about the message's delivery, as records; their octets."""
        results = pack_results(
            [
                (index, state, stored.details.get(index, b""))
                for index, state in enumerate(stored.states)
                if state or index in stored.details
            ]
        )
        update = pack_update(stored.update)
        for kind, payload in ((RESULT, results), (UPDATE, update)):
            segment, _ = self._append(kind, stored.number, payload)
            touch(stored, segment)
        return len(results) + len(update)


class _Move:
    """A message whose copy is on its way to the disk."""

    segment: Segment
    offset: int

    def __init__(
        self,
        log: Log,
        stored: Stored,
        extents: list[Extent],
        pinned: list[Segment],
        failed: list[int],
        length: int,
    ) -> None:
        self._log = log
        self._stored = stored
        self._extents = extents
        self._pinned = pinned
        self._failed = failed
        self._length = length

    def written(self, error: int) -> None:
        """From now on the copy is the message; when it or a piece of it failed, what was stays."""
        stored = self._stored
        if not error and any(self._failed):
            stored.ghosts = (*stored.ghosts, self.segment)
        elif not error:
            drop_live(stored)
            existing = self._log.segments
            ghosts = (*stored.ghosts, stored.home)
            stored.ghosts = tuple(
                ghost for ghost in ghosts if existing.get(ghost.sequence) is ghost
            )
            stored.home, stored.home_offset, stored.home_length = (
                self.segment,
                self.offset,
                self._length,
            )
            stored.extents = tuple(self._extents)
            add_live(stored)
        for pin in self._pinned:
            pin.pins -= 1
