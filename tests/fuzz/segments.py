"""Segments of a log, written as an input says: whole records, odd records, and damage done to them afterwards.

Owns      Script: an input as a list of steps → files, and what is true of each record in them

An input is a program for the log's writer, so that every mutation of it is a log whose checksums are right except
where a step damages something.  Numbers, sizes and places are taken modulo what exists.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway._native import BLOCK_OCTETS, RECORD_HEADER_OCTETS, crc32c
from gateway.mail.envelope import Envelope, Recipient, pack
from gateway.spool import record as rec
from gateway.spool.segment import CRC, FIRST_RECORD, HEADER, MAGIC

PAD = 1
SEGMENTS_MAX = 4
SEGMENT_OCTETS_MAX = 64 * 1024
_RECORD = struct.Struct("<QIIIIQ")  # mark, crc, length, sequence, type and group, number


@dataclass
class Record:
    """One record as it was written."""

    kind: int
    number: int
    offset: int
    octets: bytes
    content: bytes | None = None  # prefix and content, of a MESSAGE or END that can be read
    pieces: list[tuple[Segment, Record]] = field(default_factory=list)  # of an END

    @property
    def end(self) -> int:
        return self.offset + len(self.octets)


@dataclass
class Segment:
    """One file of the log."""

    sequence: int
    mark: int
    octets: bytearray = field(default_factory=lambda: bytearray(BLOCK_OCTETS))
    records: list[Record] = field(default_factory=list)
    header: bytes = b""  # what stands in it instead of the true one
    damage: list[Callable[[bytearray], None]] = field(default_factory=list)
    final: bytes = b""

    def finish(self) -> None:
        size = -(-len(self.octets) // BLOCK_OCTETS) * BLOCK_OCTETS + BLOCK_OCTETS
        self.octets += bytes(size - len(self.octets))
        head = self.header or header(self.sequence, self.mark, size, 0)
        self.octets[: len(head)] = self.octets[
            size - BLOCK_OCTETS : size - BLOCK_OCTETS + len(head)
        ] = head
        for damage in self.damage:
            damage(self.octets)
        self.final = bytes(self.octets)

    def is_whole(self, record: Record) -> bool:
        return self.final[record.offset : record.end] == record.octets

    def is_marked(self, record: Record) -> bool:
        """Something of the record can still be recognised."""
        return self.final[record.offset : record.offset + 8] == record.octets[:8]


def header(sequence: int, mark: int, size: int, clock: int) -> bytes:
    head = HEADER.pack(MAGIC, sequence, 0, mark, size, clock)
    return head + CRC.pack(crc32c(head))


class Script:
    """Carries out the steps of an input."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.segments = [Segment(1, 0x1111_1111_1111_1111)]
        self.odd = (
            False  # something no writer writes: no promise about which messages are recovered
        )
        self._chunks: dict[int, list[tuple[Segment, Record]]] = {}
        self._group = 0
        while self._at < len(data) and len(self.segment.octets) < SEGMENT_OCTETS_MAX:
            self._STEPS[self.byte() % len(self._STEPS)](self)
        for segment in self.segments:
            segment.finish()

    def write(self, directory: Path) -> None:
        for number, segment in enumerate(self.segments):
            (directory / f"{number:06d}.log").write_bytes(segment.final)

    @property
    def segment(self) -> Segment:
        return self.segments[-1]

    # -- reading the input ---------------------------------------------------------------------------------------------

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self) -> int:
        return (1000 + self.byte() % 8) << rec.WORKER_BITS

    def octets(self) -> bytes:
        size = self.byte()
        self._at += size
        return self._data[self._at - size : self._at]

    def size(self) -> int:
        return self.byte() << self.byte() % 6

    def place(self) -> int:
        """Somewhere in what this segment has so far."""
        return (self.byte() << 8 | self.byte()) % len(self.segment.octets)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def append(self, kind: int, number: int, payload: bytes) -> Record:
        segment = self.segment
        size = (RECORD_HEADER_OCTETS + len(payload) + 7) & ~7
        words = (len(payload), segment.sequence, kind | self._group << 8, number)
        head = _RECORD.pack(segment.mark, 0, *words)
        crc = crc32c(head[12:] + payload, crc32c(head[:8]))
        octets = _RECORD.pack(segment.mark, crc, *words) + payload
        record = Record(kind, number, len(segment.octets), octets)
        segment.octets += octets.ljust(size, b"\0")
        segment.records.append(record)
        return record

    def message(self) -> None:
        number, content = self.number(), bytes([self.byte()]) * self.size()
        packed = pack(envelope(number))
        lengths = rec.LENGTHS.pack(len(packed), 5)
        record = self.append(rec.MESSAGE, number, lengths + packed + b"X: y\n" + content)
        record.content = b"X: y\n" + content

    def chunk(self) -> None:
        number = self.number()
        record = self.append(rec.CHUNK, number, bytes([self.byte()]) * (1 + self.size()))
        self._chunks.setdefault(number, []).append((self.segment, record))

    def end_of_chunks(self) -> None:
        number = self.number()
        pieces = self._chunks.pop(number, [])
        packed = pack(envelope(number))
        extents = b"".join(
            rec.EXTENT.pack(
                segment.sequence, len(piece.octets) - RECORD_HEADER_OCTETS, piece.offset
            )
            for segment, piece in pieces
        )
        lengths = rec.LENGTHS.pack(len(packed), 0)
        record = self.append(rec.END, number, lengths + packed + extents)
        record.content = b"".join(piece.octets[RECORD_HEADER_OCTETS:] for _, piece in pieces)
        record.pieces = pieces

    def result(self) -> None:
        index, state = self.byte() % 4, self.byte() % 7
        self.append(rec.RESULT, self.number(), rec.pack_results([(index, state, self.octets())]))
        self.odd |= index > 1 or state > 5

    def update(self) -> None:
        attempts = [self.byte() << self.byte() % 20 for _ in range(self.byte() % 4)]
        update = rec.Update(self.byte() << 56, bool(self.byte() & 1), self.byte(), "", attempts)
        self.append(rec.UPDATE, self.number(), rec.pack_update(update))

    def settled(self) -> None:
        numbers = [self.number() for _ in range(1 + self.byte() % 3)]
        self.append(rec.SETTLED, 0, rec.pack_numbers(numbers))

    def cut(self) -> None:
        self.append(rec.CUT, 0, rec.pack_cuts({self.byte() % 5: self.place()}))
        self.odd = True

    def odd_record(self) -> None:
        """Any payload, with a checksum that is right."""
        kind = self.byte()
        number = int.from_bytes(self.octets()[:8], "little") if self.byte() & 1 else self.number()
        self.append(kind, number, self.octets())
        self.odd = True

    def end_of_group(self) -> None:
        """The rest of the block is one PAD record, or zeros where no header fits."""
        rest = -len(self.segment.octets) % BLOCK_OCTETS
        if rest >= RECORD_HEADER_OCTETS:
            self.append(PAD, 0, bytes(rest - RECORD_HEADER_OCTETS))
            self.segment.records.pop()
        else:
            self.segment.octets += bytes(rest)
        self._group += 1

    def next_segment(self) -> None:
        if len(self.segments) < SEGMENTS_MAX:
            sequence = len(self.segments) + 1
            self.segments.append(Segment(sequence, 0x1111_1111_1111_1111 * sequence))
            self._group = 0

    def raw_octets(self) -> None:
        octets = self.octets()
        self.segment.octets += octets + bytes(-len(octets) % 8)
        self.odd = True

    def flip(self) -> None:
        at, mask = self.place(), self.byte()

        def damage(octets: bytearray) -> None:
            octets[at % len(octets)] ^= mask

        self.segment.damage.append(damage)

    def zeros(self) -> None:
        at, size = self.place(), self.size()

        def damage(octets: bytearray) -> None:
            octets[at : at + size] = bytes(len(octets[at : at + size]))

        self.segment.damage.append(damage)

    def truncate(self) -> None:
        at = self.place()

        def damage(octets: bytearray) -> None:
            del octets[max(1, at) :]

        self.segment.damage.append(damage)

    def lose_headers(self) -> None:
        which = self.byte() % 3

        def damage(octets: bytearray) -> None:
            for at in ((0,), (len(octets) - BLOCK_OCTETS,), (0, len(octets) - BLOCK_OCTETS))[which]:
                octets[max(0, at)] ^= 1

        self.segment.damage.append(damage)

    def odd_header(self) -> None:
        """A header whose checksum is right, and which says what no writer says."""
        numbers = [self.byte() << self.byte() % 64 for _ in range(4)]
        sequence, mark, size, clock = numbers
        self.segment.header = header(
            sequence & 0xFFFFFFFF if self.byte() & 1 else self.segment.sequence,
            mark & (1 << 64) - 1 if mark & 1 else self.segment.mark,
            size & (1 << 64) - 1,
            clock & (1 << 64) - 1,
        )
        self.odd = True

    _STEPS = (
        message, message, chunk, end_of_chunks, result, update, settled, end_of_group,
        next_segment, flip, zeros, truncate, lose_headers, cut, odd_record, raw_octets, odd_header,
    )  # fmt: skip


def envelope(number: int) -> Envelope:
    return Envelope("s@d", [Recipient("r@d"), Recipient("t@d")], number, message_id=f"<{number}@d>")


assert FIRST_RECORD == BLOCK_OCTETS
