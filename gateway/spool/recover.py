"""Start-up: reads the log of a partition and tells which messages still need something.

    Flow      segments newest first, records last to first: what was said last is met first, and a settled message
              is passed over before its envelope is read
    Files     <root>/damaged/<partition>-<sequence>-<offset>.octets and .json: what could not be understood
    Limits    memory for one segment; a gigabyte of log takes one to two seconds (checksums are native)
    Errors    damage is set aside and reported, never dropped in silence, and never stops the start; OSError when the
              directory or a file in it cannot even be opened: to start without what it holds would lose it
    Blocking  yes

A tail that ends in the middle of a record is normal after a crash: that group was never acknowledged.  It is set aside
all the same when something of it can be recognised, for a damaged last record looks alike.
"""

from __future__ import annotations

import gc
import logging
import os
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway._native import (
    BLOCK_OCTETS,
    RECORD_HEADER_OCTETS,
    encode_number,
    find_headers,
    record_is_whole,
    scan_records,
)
from gateway.spool.compact import add_live
from gateway.spool.message import Extent, Stored, new_stored, read_envelope, restore
from gateway.spool.record import (
    CHUNK,
    CUT,
    END,
    EXTENT,
    MESSAGE,
    RESULT,
    SETTLED,
    UPDATE,
    WORKER_BITS,
    Update,
    unpack_numbers,
    unpack_results,
    unpack_update,
)
from gateway.spool.segment import (
    FIRST_RECORD,
    Segment,
    read_clock,
    sync_directory,
    unpack_header,
)

logger = logging.getLogger(__name__)

READ_OCTETS = 1024 * 1024
SEGMENT_HEADER_MARK = 16  # where a segment's header has its mark: segment.py
HEADER = struct.Struct(
    "<QIIIIQ"
)  # as in logwriter.h: mark, crc, length, sequence, type and group, number

WHOLE = (MESSAGE, END)  # records that make a message
Record = tuple[int, int, int, int, int]  # type, group, number, offset, length


@dataclass
class Damage:
    """Octets of the log that could not be used, and where they were put."""

    path: str  # segment
    sequence: int
    offset: int
    octets: int
    queue_ids: list[str]  # that can be recognised in it
    # False: possibly the torn end of a group that no client was told of.  True may be wrong when a write failed and the
    # machine died before the record of that was on disk.
    acknowledged: bool
    what: str
    kept_as: str


@dataclass
class Recovery:
    """What a partition holds."""

    messages: list[Stored] = field(default_factory=list)  # oldest first
    damaged: list[Damage] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    clock: int = 0  # highest queue-id clock seen
    octets: int = 0
    duration_s: float = 0.0


def recover_partition(directory: Path, damaged: Path) -> Recovery:
    """Everything that the segments in directory tell.  Their files stay open in the Recovery."""
    started = time.monotonic()
    recovery = Recovery()
    collecting = gc.isenabled()
    gc.disable()  # a million objects that all stay: looking for garbage among them doubles the time
    try:
        _recover(directory, damaged, recovery)
    finally:
        if collecting:
            gc.enable()
    recovery.duration_s = time.monotonic() - started
    return recovery


def _recover(directory: Path, damaged: Path, recovery: Recovery) -> None:
    sequences: set[int] = set()
    for path in sorted(directory.glob("*.log")):
        segment = _open(path, damaged, recovery)
        if segment is None:
            continue
        if segment.sequence in sequences:  # a copy that somebody made: a record's place must be one
            segment.close()
            size = path.stat().st_size
            _set_file_aside(path, size, damaged, recovery, "another file is this segment already")
            continue
        sequences.add(segment.sequence)
        recovery.segments.append(segment)
    recovery.clock = max(recovery.clock, read_clock(directory))
    recovery.segments.sort(key=lambda segment: segment.sequence)
    _Reader(recovery, damaged).run()
    recovery.messages.sort(key=lambda stored: stored.number)


def _open(path: Path, damaged: Path, recovery: Recovery) -> Segment | None:
    """The segment of a file; None when nothing in it says what it is (then the file is set aside as a whole)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    size = os.fstat(fd).st_size
    head = unpack_header(_read(fd, 0, BLOCK_OCTETS))
    if head is None and size > BLOCK_OCTETS:
        head = unpack_header(_read(fd, size - BLOCK_OCTETS, BLOCK_OCTETS))
    if head is None:
        head = _identify(fd, size)
    if head is None:
        os.close(fd)
        _set_file_aside(path, size, damaged, recovery)
        return None
    sequence, mark, full_size, clock = head
    recovery.clock = max(recovery.clock, clock)
    segment = Segment(path, sequence, mark, full_size)
    segment.fd = fd
    return segment


def _identify(fd: int, size: int) -> tuple[int, int, int, int] | None:
    """Both headers are damaged: the first whole record at the start of a block tells sequence and mark.

    The size, too, when the last block has a header's mark; else the file was cut off, and records may reach to its end.
    """
    for offset in range(FIRST_RECORD, size - RECORD_HEADER_OCTETS, BLOCK_OCTETS):
        header = _read(fd, offset, RECORD_HEADER_OCTETS)
        if len(header) < RECORD_HEADER_OCTETS:
            break
        mark, _, length, sequence, _, _ = HEADER.unpack(header)
        if mark and offset + RECORD_HEADER_OCTETS + length <= size:
            record = _read(fd, offset, RECORD_HEADER_OCTETS + length)
            if record_is_whole(record, mark, sequence):
                place = size - BLOCK_OCTETS + SEGMENT_HEADER_MARK
                is_header = _read(fd, place, 8) == mark.to_bytes(8, "little")
                return sequence, mark, size if is_header else size + BLOCK_OCTETS, 0
    return None


def _read(fd: int, offset: int, octets: int) -> bytearray:
    """Up to so many octets; what the disk refuses is zeros."""
    buffer = bytearray(octets)
    with memoryview(buffer) as view:
        done, _ = _read_into(fd, offset, view)
    del buffer[done:]
    return buffer


def _read_into(fd: int, offset: int, view: memoryview) -> tuple[int, list[tuple[int, int, int]]]:
    """How many octets there are, and (offset, octets, errno) of those that the disk refuses: they are zeros."""
    refused: list[tuple[int, int, int]] = []
    done, step = 0, READ_OCTETS
    while done < len(view):
        piece = view[done : done + step]
        try:
            n = os.preadv(fd, [piece], offset + done)
        except OSError as error:
            if len(piece) > BLOCK_OCTETS:
                step = BLOCK_OCTETS  # find the good blocks around the bad one
                continue
            piece[:] = bytes(len(piece))
            refused.append((offset + done, len(piece), error.errno or 0))
            n = len(piece)
        if not n:
            break
        done += n
        if done % READ_OCTETS == 0:
            step = READ_OCTETS
    return done, refused


class _Reader:
    """Applies the records of all segments, last to first."""

    def __init__(self, recovery: Recovery, damaged: Path) -> None:
        self._recovery = recovery
        self._damaged = damaged
        self._segments = {segment.sequence: segment for segment in recovery.segments}
        self._settled: dict[int, Segment] = {}  # number -> segment of the record that says so
        self._results: dict[int, dict[int, tuple[int, bytes]]] = {}
        self._updates: dict[int, Update] = {}
        self._touched: dict[int, set[Segment]] = {}
        # Newest copy first: compaction makes more than one, and a crash may tear all but the oldest.
        self._messages: dict[int, list[Stored]] = {}
        self._needed: dict[tuple[Segment, int], list[Stored]] = {}  # CHUNK records that were not met yet
        self._torn: set[int] = set()  # id() of copies with a piece in a segment that is gone
        self._later_records = False
        self._last_group: set[int] = set()  # messages whose record may never have been acknowledged
        self._cuts: dict[int, int] = {}
        # What a header says of the size is not to be trusted with memory.
        sizes = [min(segment.size, os.fstat(segment.fd).st_size) for segment in recovery.segments]
        self._buffer = memoryview(bytearray(max(sizes, default=0)))

    def run(self) -> None:
        for segment in reversed(self._recovery.segments):
            self._read_segment(segment)
        torn = self._torn.union(id(copy) for copies in self._needed.values() for copy in copies)
        for number, copies in self._messages.items():
            stored = next((copy for copy in copies if id(copy) not in torn), None)
            if stored is None:
                self._damage_message(copies[0])
                continue
            stored.ghosts = tuple(copy.home for copy in copies if copy is not stored)
            restore(stored, self._results.get(number, {}), self._updates.get(number))
            stored.written = True
            stored.touched = tuple(self._touched.get(number, ()))
            for segment in stored.touched:
                segment.touched.add(stored)
            add_live(stored)
            self._recovery.messages.append(stored)

    def _read_segment(self, segment: Segment) -> None:
        got, refused = _read_into(segment.fd, 0, self._buffer[: segment.size])
        octets = self._buffer[:got]
        self._recovery.octets += got
        for offset, length, error in refused:
            self._report(segment, octets, offset, offset + length, True, os.strerror(error))
        if got < segment.size:
            self._report(segment, octets, got, got, False, "the file is shorter than it was made")
        cut = segment.cut = self._cuts.get(segment.sequence)
        segment.retired = segment.retired or cut is not None
        end = max(0, min(segment.limit if cut is None else cut, got))
        records, broken, tail = scan_records(
            octets, segment.mark, segment.sequence, FIRST_RECORD, end
        )
        if cut is None:
            self._check_tail(segment, octets, tail, end)
        for start, stop in broken:
            behind = [group for _, group, _, offset, _ in records if offset >= stop]
            sure = self._later_records or (bool(behind) and max(behind) > behind[0])
            self._report(segment, octets, start, stop, sure, "octets between records are damaged")
        segment.empty = not records and not segment.retired
        self._apply_all(segment, records, octets)
        self._later_records = self._later_records or bool(records)

    def _apply_all(self, segment: Segment, records: list[Record], octets: memoryview) -> None:
        settled, highest = self._settled, 0
        last_group = records[-1][1] if records and not self._later_records else -1
        for record in reversed(records):
            kind, group, number, offset, length = record
            highest = max(highest, number)
            if group == last_group:
                self._last_group.add(number)
            if kind in WHOLE and number in settled:
                teller = settled[number]
                if teller is not segment:
                    teller.tombs.setdefault(segment.sequence, []).append(number)
                continue
            start = offset + RECORD_HEADER_OCTETS
            try:
                self._apply(segment, kind, number, offset, octets[start : start + length])
            except (msgspec.MsgspecError, struct.error, ValueError) as error:
                what = f"record cannot be read: {error}"
                self._report(segment, octets, offset, start + length, True, what, [number])
        self._recovery.clock = max(self._recovery.clock, highest >> WORKER_BITS)

    def _apply(
        self, segment: Segment, kind: int, number: int, offset: int, payload: memoryview
    ) -> None:
        if kind in WHOLE:
            self._message(segment, kind, number, offset, payload)
        elif kind == CHUNK:
            self._needed.pop((segment, offset), None)
        elif kind == SETTLED:
            for settled in unpack_numbers(payload):
                self._settled.setdefault(settled, segment)
        elif kind == CUT:
            for sequence, _, cut in EXTENT.iter_unpack(payload):
                if sequence < segment.sequence:  # compaction must not carry on one that meant nothing here
                    segment.cuts.setdefault(sequence, cut)
                    self._cuts.setdefault(sequence, cut)
        elif number not in self._settled:
            if kind == RESULT:
                results = self._results.setdefault(number, {})
                for index, state, detail in unpack_results(payload):
                    results.setdefault(index, (state, detail))
            elif kind == UPDATE:
                self._updates.setdefault(number, unpack_update(payload))
            self._touched.setdefault(number, set()).add(segment)

    def _message(
        self, segment: Segment, kind: int, number: int, offset: int, payload: memoryview
    ) -> None:
        envelope, prefix_octets, rest = read_envelope(payload)
        size = prefix_octets + len(rest)
        extents: list[Extent] = []
        missing = False
        if kind == END:
            size = prefix_octets
            for sequence, length, at in EXTENT.iter_unpack(rest):
                place = self._segments.get(sequence)
                if place is None:  # given back already when a newer copy was made
                    missing = True
                    break
                extents.append((place, at, length))
                size += length
        stored = new_stored(number, encode_number(number), envelope, size)
        stored.home, stored.home_offset, stored.home_length = segment, offset, len(payload)
        stored.extents = tuple(extents)
        if missing:
            self._torn.add(id(stored))
        for place, at, _ in extents:
            self._needed.setdefault((place, at), []).append(stored)
        self._messages.setdefault(number, []).append(stored)

    # -- damage ------------------------------------------------------------------------------------------------------

    def _check_tail(self, segment: Segment, octets: memoryview, tail: int, end: int) -> None:
        """Is what follows the last whole record a record that was damaged, or merely what a former use left?"""
        headers = find_headers(octets, segment.mark, tail, end)
        if headers:
            last = headers[-1]
            length = HEADER.unpack_from(octets, last)[2]
            stop = min(end, last + RECORD_HEADER_OCTETS + min(length, end))
        elif (
            tail + RECORD_HEADER_OCTETS <= end
            and HEADER.unpack_from(octets, tail)[3] == segment.sequence
        ):
            stop = min(end, tail + BLOCK_OCTETS)  # all but the mark is there
        else:
            return
        segment.cut = tail  # told once: the log that goes on says that nothing behind it counts
        self._report(
            segment,
            octets,
            tail,
            stop,
            self._later_records,
            "the last record is damaged or incomplete",
        )

    def _report(
        self,
        segment: Segment,
        octets: memoryview,
        start: int,
        stop: int,
        acknowledged: bool,
        what: str,
        numbers: list[int] | None = None,
    ) -> None:
        if numbers is None:
            found = find_headers(octets, segment.mark, start, stop)
            numbers = [HEADER.unpack_from(octets, offset)[5] for offset in found]
        ids = list(
            dict.fromkeys(encode_number(number) for number in numbers if 0 < number < 1 << 60)
        )
        damage = set_aside(
            self._damaged,
            segment,
            start,
            stop - start,
            ids,
            what,
            bytes(octets[start:stop]),
            acknowledged=acknowledged,
        )
        segment.retired = True
        self._recovery.damaged.append(damage)

    def _damage_message(self, stored: Stored) -> None:
        what = "pieces of its content are missing or damaged"
        size = RECORD_HEADER_OCTETS + stored.home_length
        damage = set_aside(
            self._damaged,
            stored.home,
            stored.home_offset,
            size,
            [stored.queue_id],
            what,
            acknowledged=stored.number not in self._last_group,
        )
        self._recovery.damaged.append(damage)


def set_aside(
    damaged: Path,
    segment: Segment,
    offset: int,
    octets: int,
    queue_ids: list[str],
    what: str,
    content: bytes | None = None,
    *,
    acknowledged: bool = True,
) -> Damage:
    """Keep octets of a segment with a report, on disk when this returns.

    Once: a second start finds the first one's files, and believes what that one said of acknowledged.
    """
    name = f"{segment.path.parent.name}-{segment.sequence:08d}-{offset:010d}"
    kept, report = damaged / f"{name}.octets", damaged / f"{name}.json"
    damage = Damage(
        str(segment.path), segment.sequence, offset, octets, queue_ids, acknowledged, what, str(kept)
    )
    try:
        before = _read_report(report)
        if before is not None:
            damage.acknowledged = before.acknowledged
        else:
            damaged.mkdir(mode=0o700, parents=True, exist_ok=True)
            _keep(kept, content if content is not None else _read(segment.fd, offset, octets))
            _keep(report, msgspec.json.encode(damage))
            sync_directory(damaged)
            sync_directory(damaged.parent)
    except OSError as error:
        damage.kept_as = ""
        logger.error("spool: cannot keep damaged octets in %s: %s", damaged, error.strerror)
    logger.error(
        "spool: %s offset %d: %s; messages: %s",
        segment.path,
        offset,
        what,
        ", ".join(queue_ids) or "-",
    )
    return damage


def _keep(path: Path, octets: bytes | bytearray) -> None:
    with path.open("wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())


def _read_report(path: Path) -> Damage | None:
    """None when there is none, or only part of one: written last, it shows that both files are whole."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Damage)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _set_file_aside(
    path: Path,
    size: int,
    damaged: Path,
    recovery: Recovery,
    what: str = "nothing in this file can be recognised",
) -> None:
    """A file that is no segment.  One that is only zeros was being made when the machine stopped.

    What the disk refuses leaves it where it is, in nobody's way.
    """
    with path.open("rb") as file:
        empty = not any(any(block) for block in iter(lambda: file.read(READ_OCTETS), b""))
    kept = damaged / f"{path.parent.name}-{path.name}-{time.time_ns()}"
    try:
        if empty:
            path.unlink()
            return
        damaged.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.rename(kept)
        sync_directory(damaged)
        sync_directory(path.parent)
    except OSError as error:
        logger.error("spool: cannot move %s out of the way: %s", path, error.strerror)
        if empty:
            return
        kept = path
    recovery.damaged.append(Damage(str(path), 0, 0, size, [], True, what, str(kept)))
    logger.error("spool: %s: %s; kept as %s", path, what, kept)
