"""Segments: the files that hold the log, and what is known about each while it exists.

Owns      Segment; making, reusing and removing the files
Files     <partition>/<slot>.log: header block, records, and a copy of the header as last block.
          The slot says nothing: sequence and mark are in the header, and change with every reuse.
          <partition>/lock: held by the owner; in it the highest queue-id clock of segments that were removed
Limits    one or two descriptors a segment
Errors    OSError
Blocking  everything here waits for the disk: call it from the preparing thread, or before serving
Security  files are 0600; the mark is random, so no sender can write octets that pass for records

How a group reaches the disk, measured on ext4 over a virtio disk, overwriting blocks written before (latency and CPU of
one write with its sync, 12 KiB / 128 KiB):
    pwrite + fdatasync       123 us, 51 us / 159 us, 81 us
    pwritev2 RWF_DSYNC       103 us, 43 us / 160 us, 69 us
    O_DIRECT | O_DSYNC        87 us, 29 us / 134 us, 47 us      first choice
Blocks that were only allocated cost a third more: the file system writes its inode each time.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import struct
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

from gateway._native import BLOCK_OCTETS, RECORD_HEADER_OCTETS, crc32c, record_is_whole
from gateway.spool.errors import SpoolCorrupt, SpoolError

if TYPE_CHECKING:
    from gateway.spool.message import Stored

MAGIC = b"GWSPOOL1"
HEADER = struct.Struct("<8sIIQQQ")  # magic, sequence, 0, mark, size, clock; a CRC-32C follows
CRC = struct.Struct("<I")
CLOCK = struct.Struct("<8sQ")  # magic, clock; a CRC-32C follows
CLOCK_MAGIC = b"GWCLOCK1"
FIRST_RECORD = BLOCK_OCTETS
FILL_OCTETS = 1024 * 1024

FDATASYNC, DSYNC, DIRECT = 0, 1, 2  # enum in logwriter.h
METHODS = {"fdatasync": FDATASYNC, "dsync": DSYNC, "direct": DIRECT}


class Segment:
    """One file of the log in its present use."""

    __slots__ = (
        "complete",
        "cut",
        "cuts",
        "empty",
        "fd",
        "live",
        "live_octets",
        "mark",
        "method",
        "path",
        "pins",
        "retired",
        "sealed",
        "sequence",
        "size",
        "tombs",
        "touched",
        "write_fd",
    )

    def __init__(self, path: Path, sequence: int, mark: int, size: int) -> None:
        self.path = path
        self.sequence = sequence
        self.mark = mark
        self.size = size
        self.fd = -1  # for reading, through the page cache
        self.write_fd = -1
        self.method = FDATASYNC
        self.sealed = False  # nothing is appended any more
        self.complete = False  # ... and every record was reported
        self.cut: int | None = None  # a write failed there: nothing behind it counts
        self.empty = False  # recovery found no record in it
        self.retired = False  # failed or damaged: its mail moves out and the file goes
        self.pins = 0  # messages still being received that have pieces here
        self.live: set[Stored] = set()  # messages with octets here that are still needed
        self.live_octets = 0
        self.touched: set[Stored] = set()  # messages with state records here
        self.tombs: dict[
            int, list[int]
        ] = {}  # sequence -> numbers settled here whose message lies there
        self.cuts: dict[int, int] = {}  # sequence -> offset: the CUT records here

    @property
    def limit(self) -> int:
        """End of the room for records."""
        return self.size - BLOCK_OCTETS

    def is_dead(self, existing: Container[int]) -> bool:
        """True when nothing in it is needed, nor said in it about what lies in other existing segments."""
        return not (
            self.live
            or self.pins
            or any(stored.unsettled for stored in self.touched)
            or any(s in existing and s != self.sequence for s in (*self.tombs, *self.cuts))
        )

    def read_record(self, offset: int, length: int, queue_id: str) -> memoryview:
        """The payload of the record at offset, verified.  SpoolCorrupt when it is not what was written."""
        want = RECORD_HEADER_OCTETS + length
        octets = b""
        try:
            while len(octets) < want:
                piece = os.pread(self.fd, want - len(octets), offset + len(octets))
                if not piece:
                    break
                octets = octets + piece if octets else piece
        except OSError as error:
            raise SpoolError(f"{queue_id}: cannot read {self.path}: {error.strerror}") from error
        if not record_is_whole(octets, self.mark, self.sequence):
            raise SpoolCorrupt(queue_id, f"{self.path} offset {offset}: checksum does not match")
        return memoryview(octets)[RECORD_HEADER_OCTETS:]

    def close_write(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        self.close_write()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def new_mark() -> int:
    return secrets.randbits(64) | 1  # never 0: that is what unwritten octets look like


def pack_header(segment: Segment, clock: int) -> bytes:
    """One block.  clock is the highest queue-id clock so far: ids rise even when all records are gone."""
    head = HEADER.pack(MAGIC, segment.sequence, 0, segment.mark, segment.size, clock)
    return (head + CRC.pack(crc32c(head))).ljust(BLOCK_OCTETS, b"\0")


def unpack_header(block: bytes | bytearray) -> tuple[int, int, int, int] | None:
    """(sequence, mark, size, clock), or None when this is no undamaged header."""
    if len(block) < HEADER.size + CRC.size or bytes(block[:8]) != MAGIC:
        return None
    if CRC.unpack_from(block, HEADER.size)[0] != crc32c(block[: HEADER.size]):
        return None
    _, sequence, _, mark, size, clock = HEADER.unpack_from(block)
    return sequence, mark, size, clock


def create(segment: Segment, method: str, clock: int, *, fill: bool) -> None:
    """Make the file: allocated as a whole, with fill=True written once (overwriting written blocks is what is cheap).

    On failure nothing is left behind.
    """
    try:
        fd = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        segment.fd = fd
        os.posix_fallocate(fd, 0, segment.size)
        _open_for_writing(segment, method)
        if fill:
            with mmap.mmap(-1, FILL_OCTETS) as zeros:
                for offset in range(0, segment.size, FILL_OCTETS):
                    _write(segment, memoryview(zeros)[: segment.size - offset], offset)
        write_headers(segment, clock)
        sync_directory(segment.path.parent)
    except OSError:
        segment.close()
        segment.path.unlink(missing_ok=True)
        raise


def reuse(old: Segment, segment: Segment, method: str, clock: int) -> None:
    """Turn old's file into segment (same path, same size): its records are gone once the new header is on disk."""
    old.close()
    try:
        segment.fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        _open_for_writing(segment, method)
        write_headers(segment, clock)
    except OSError:
        segment.close()
        raise


def remove(segment: Segment, clock: int) -> None:
    """Unlink the file; durable when this returns.  clock: as for pack_header(), and kept for the same reason."""
    segment.close()
    write_clock(segment.path.parent, clock)
    segment.path.unlink(missing_ok=True)
    sync_directory(segment.path.parent)


def write_clock(directory: Path, clock: int) -> None:
    """Overwrites a few octets of the lock's file, which needs no room on a full disk."""
    head = CLOCK.pack(CLOCK_MAGIC, clock)
    fd = os.open(directory / "lock", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, head + CRC.pack(crc32c(head)), 0)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def read_clock(directory: Path) -> int:
    """What write_clock() left; 0 when it never did."""
    try:
        octets = (directory / "lock").read_bytes()
    except FileNotFoundError:
        return 0
    head, crc = octets[: CLOCK.size], octets[CLOCK.size : CLOCK.size + CRC.size]
    if crc != CRC.pack(crc32c(head)) or head[:8] != CLOCK_MAGIC:
        return 0
    return int(CLOCK.unpack(head)[1])


def write_headers(segment: Segment, clock: int) -> None:
    """Head last: while it is not on disk the former use of the file still counts."""
    with mmap.mmap(-1, BLOCK_OCTETS) as block:  # page-aligned, as O_DIRECT wants it
        block[:] = pack_header(segment, clock)
        _write(segment, memoryview(block), segment.limit)
        _write(segment, memoryview(block), 0)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_for_writing(segment: Segment, method: str) -> None:
    """Opens write_fd and settles segment.method: the best that this file system takes."""
    wanted = [DIRECT, DSYNC, FDATASYNC] if method == "auto" else [METHODS[method]]
    for candidate in wanted:
        flags = (
            os.O_WRONLY | os.O_CLOEXEC | (os.O_DIRECT | os.O_DSYNC if candidate == DIRECT else 0)
        )
        try:
            segment.write_fd = os.open(segment.path, flags)
            segment.method = candidate
            with mmap.mmap(
                -1, BLOCK_OCTETS
            ) as zeros:  # the last block is the header's copy: written again below
                _write(segment, memoryview(zeros), segment.limit)
            return
        except OSError as error:
            segment.close_write()
            refused = error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
            if not refused or candidate == wanted[-1]:
                raise


def _write(segment: Segment, octets: memoryview, offset: int) -> None:
    """All of octets, durable when this returns."""
    with octets:
        done = 0
        while done < len(octets):
            if segment.method == DSYNC:
                n = os.pwritev(segment.write_fd, [octets[done:]], offset + done, os.RWF_DSYNC)
            else:
                n = os.pwrite(segment.write_fd, octets[done:], offset + done)
            if segment.method == DIRECT and done + n < len(octets):
                n -= n % BLOCK_OCTETS
            if not n:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += n
        if segment.method == FDATASYNC:
            os.fdatasync(segment.write_fd)
