"""gateway._native.logwriter: records, groups, checksums and the scan, against slow Python."""

from __future__ import annotations

import errno
import mmap
import os
import select
import struct
from pathlib import Path

import pytest
from gateway._native.logwriter import (
    BLOCK_OCTETS,
    RECORD_HEADER_OCTETS,
    LogWriter,
    crc32c,
    encode_number,
    find_headers,
    record_is_whole,
    scan_records,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.spool.record import decode_number

MARK = 0x1122334455667789
HEADER = struct.Struct("<QIIIIQ")
SEGMENT = 64 * BLOCK_OCTETS
METHODS = {"fdatasync": 0, "dsync": 1, "direct": 2}


def model_crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def model_record(kind: int, group: int, number: int, payload: bytes, sequence: int = 1) -> bytes:
    header = HEADER.pack(MARK, 0, len(payload), sequence, kind | group << 8, number)
    crc = model_crc32c(header[12:] + payload, model_crc32c(header[:8]))
    record = header[:8] + struct.pack("<I", crc) + header[12:] + payload
    return record + bytes(-len(record) % 8)


def model_group(records: list[tuple[int, int, bytes]], group: int) -> bytes:
    octets = b"".join(
        model_record(kind, group, number, payload) for kind, number, payload in records
    )
    rest = -len(octets) % BLOCK_OCTETS
    if rest >= RECORD_HEADER_OCTETS:
        return octets + model_record(1, group, 0, bytes(rest - RECORD_HEADER_OCTETS))
    return octets + bytes(rest)


@pytest.fixture(params=METHODS)
def segment(request: pytest.FixtureRequest, tmp_path: Path):
    path = tmp_path / "segment"
    path.write_bytes(bytes(SEGMENT))
    flags = os.O_RDWR | (os.O_DIRECT | os.O_DSYNC if request.param == "direct" else 0)
    try:
        fd = os.open(path, flags)
        with mmap.mmap(-1, BLOCK_OCTETS) as block:
            os.pwrite(fd, block, 0)
    except OSError as error:
        pytest.skip(f"{request.param}: {error}")
    yield path, fd, METHODS[request.param]
    os.close(fd)


def test_crc32c_known_values():
    # RFC 3720 appendix B.4
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(b"") == 0


@given(st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_crc32c_is_the_slow_one_and_continues(a: bytes, b: bytes, portable: bool):
    assert crc32c(a + b, portable=portable) == model_crc32c(a + b)
    assert crc32c(b, crc32c(a), portable=portable) == model_crc32c(a + b)


@pytest.mark.parametrize("size", [1023, 3071, 3072, 3073, 6144, 9999, 100_001])
def test_crc32c_three_lanes(size: int):
    data = bytes(i * 7 % 251 for i in range(size))
    for start in (0, 1, 5):
        assert crc32c(memoryview(data)[start:]) == crc32c(memoryview(data)[start:], portable=True)


def test_groups_on_disk_are_the_model(segment):
    path, fd, method = segment
    writer = LogWriter(16384)
    writer.use_segment(fd, 1, MARK, BLOCK_OCTETS, SEGMENT, method)
    first = [(2, 11, b"hello"), (6, 12, b""), (5, 13, b"x" * 1000)]
    offsets = [writer.append(kind, number, number, payload) for kind, number, payload in first]
    assert offsets == [BLOCK_OCTETS, BLOCK_OCTETS + 40, BLOCK_OCTETS + 72]
    assert writer.submit() and not writer.submit()
    writer.drain()
    # A record that leaves less than a header of its block: zeros instead of a PAD record.
    second = [(2, 14, b"y" * (BLOCK_OCTETS - RECORD_HEADER_OCTETS - 16))]
    writer.append(2, 14, 14, second[0][2][:10], second[0][2][10:20], second[0][2][20:])
    writer.drain()
    assert writer.completed() == [
        (0, 1, BLOCK_OCTETS, [11, 12, 13]),
        (0, 1, 2 * BLOCK_OCTETS, [14]),
    ]
    assert writer.pending_octets == 0 and not writer.busy and writer.writes == 2
    writer.close()
    data = path.read_bytes()
    assert data[BLOCK_OCTETS : 3 * BLOCK_OCTETS] == model_group(first, 0) + model_group(second, 1)
    records, broken, tail = scan_records(data, MARK, 1, BLOCK_OCTETS, SEGMENT)
    assert [(kind, number, length) for kind, _, number, _, length in records] == [
        (kind, number, len(payload)) for kind, number, payload in first + second
    ]
    assert not broken and tail == 3 * BLOCK_OCTETS - 16


def test_eventfd_tells_of_completion(segment):
    _, fd, method = segment
    writer = LogWriter()
    writer.use_segment(fd, 1, MARK, BLOCK_OCTETS, SEGMENT, method)
    poll = select.poll()
    poll.register(writer.fileno(), select.POLLIN)
    for i in range(20):
        assert not poll.poll(0)
        writer.append(2, i, i, b"payload")
        writer.submit()
        assert poll.poll(10_000)
        assert [tokens for *_, tokens in writer.completed()] == [[i]]
    writer.close()


def test_a_full_segment_takes_nothing(segment):
    _, fd, method = segment
    writer = LogWriter(16384)
    assert writer.append(2, 1, None, b"no segment yet") == -1
    writer.use_segment(fd, 1, MARK, BLOCK_OCTETS, 4 * BLOCK_OCTETS, method)
    assert writer.room_octets == 3 * BLOCK_OCTETS
    assert writer.append(2, 1, None, bytes(4 * BLOCK_OCTETS)) == -1
    assert writer.append(2, 1, None, bytes(2 * BLOCK_OCTETS)) == BLOCK_OCTETS
    assert writer.append(2, 2, None, bytes(BLOCK_OCTETS)) == -1
    assert writer.append(2, 3, None, b"fits") > 0
    assert writer.room_octets == 0
    writer.leave_segment()
    assert writer.append(2, 1, None, b"") == -1
    writer.drain()
    assert [error for error, *_ in writer.completed()] == [0]
    writer.close()


def test_records_larger_than_a_group(segment):
    path, fd, method = segment
    writer = LogWriter(8192)
    writer.use_segment(fd, 1, MARK, BLOCK_OCTETS, SEGMENT, method)
    payloads = [bytes([i]) * size for i, size in enumerate((100, 50_000, 7000, 5000, 100_000, 1))]
    for i, payload in enumerate(payloads):
        assert writer.append(2, i, i, payload) > 0
    writer.drain()
    done = writer.completed()
    assert [token for *_, tokens in done for token in tokens] == list(range(6)) and len(done) > 2
    writer.close()
    data = path.read_bytes()
    records, broken, _ = scan_records(data, MARK, 1, BLOCK_OCTETS, SEGMENT)
    assert not broken
    for (_, _, number, offset, length), payload in zip(records, payloads, strict=True):
        start = offset + RECORD_HEADER_OCTETS
        assert data[start : start + length] == payload and payload[:1] == bytes([number])


def test_errors_stay_with_their_segment(tmp_path: Path):
    good = os.open(tmp_path / "good", os.O_RDWR | os.O_CREAT)
    bad = os.open(tmp_path / "good", os.O_RDONLY)
    writer = LogWriter(8192)
    writer.use_segment(bad, 1, MARK, 0, SEGMENT, 0)
    writer.append(2, 1, "a", bytes(8000))
    writer.append(2, 1, "b", bytes(8000))
    writer.use_segment(good, 2, MARK, 0, SEGMENT, 0)
    writer.append(2, 1, "c", b"")
    writer.drain()
    told = {tokens[0]: error for error, _, _, tokens in writer.completed()}
    assert told == {"a": errno.EBADF, "b": errno.ECANCELED, "c": 0}
    writer.close()
    os.close(good)
    os.close(bad)


def test_buffers_of_every_kind_and_wrong_ones():
    writer = LogWriter()
    fd = os.open("/dev/null", os.O_WRONLY)
    writer.use_segment(fd, 1, MARK, 0, 1 << 30, 0)
    for payload in (b"x", bytearray(b"x"), memoryview(b"xyz")[1:]):
        assert writer.append(2, 1, None, payload) >= 0
    with pytest.raises(TypeError):
        writer.append(2, 1, None, "text")
    with pytest.raises(BufferError):
        writer.append(2, 1, None, memoryview(b"xyz")[::2])
    with pytest.raises(ValueError, match="whole blocks"):
        writer.use_segment(fd, 1, MARK, 1, SEGMENT, 0)
    writer.close()
    writer.close()
    os.close(fd)


def model_scan(data: bytes, start: int, end: int) -> list[int]:
    """Offsets of whole records, found at every multiple of eight that no record before covers."""
    found, p = [], start
    while p + RECORD_HEADER_OCTETS <= end:
        mark, crc, length, sequence, word, _ = HEADER.unpack_from(data, p)
        stop = p + RECORD_HEADER_OCTETS + length
        if mark == MARK and sequence == 1 and stop <= end:
            octets = data[p:stop]
            if model_crc32c(octets[12:], model_crc32c(octets[:8])) == crc:
                if word & 0xFF != 1:
                    found.append(p)
                p = stop + -stop % 8
                continue
        p += 8
    return found


LOG = b"".join(
    model_group([(2, 7 * i + j, bytes([i * 16 + j]) * (37 * j + i)) for j in range(1 + i % 3)], i)
    for i in range(4)
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(LOG) - 1), st.integers(1, 255), st.integers(0, len(LOG)))
def test_scan_of_damaged_and_truncated_logs(at: int, flip: int, end: int):
    data = bytearray(LOG)
    data[at] ^= flip
    records, broken, tail = scan_records(data, MARK, 1, 0, end)
    assert [record[3] for record in records] == model_scan(bytes(data), 0, end)
    assert tail <= end
    assert all(start < stop <= tail for start, stop in broken)
    if at >= end:
        assert not broken


def test_stale_records_are_never_believed():
    old = model_group([(2, 99, b"old")], 0).replace(
        struct.pack("<Q", MARK), struct.pack("<Q", MARK + 2)
    )
    data = model_group([(2, 1, b"new")], 0) + old + model_record(2, 0, 98, b"other", sequence=2)
    records, broken, tail = scan_records(data, MARK, 1, 0, len(data))
    assert [record[2] for record in records] == [1] and not broken and tail == BLOCK_OCTETS


def test_find_headers_and_whole_records():
    data = bytearray(LOG)
    assert find_headers(data, MARK, 0, len(data))[0] == 0
    assert find_headers(data, MARK + 2, 0, len(data)) == []
    record = model_record(2, 0, 5, b"payload")
    assert record_is_whole(record, MARK, 1)
    assert not record_is_whole(record, MARK, 2) and not record_is_whole(record, MARK + 2, 1)
    assert not record_is_whole(b"", MARK, 1)
    for i in range(39):
        assert not record_is_whole(record[:i], MARK, 1)
        assert not record_is_whole(record[:i] + bytes([record[i] ^ 1]) + record[i + 1 :], MARK, 1)


@given(st.integers(0, (1 << 60) - 1), st.integers(0, (1 << 60) - 1))
def test_ids_are_numbers_and_sort_like_them(a: int, b: int):
    assert decode_number(encode_number(a)) == a
    assert (encode_number(a) < encode_number(b)) == (a < b)


@pytest.mark.parametrize(
    "text", ["", "0000000000", "00000000000U", "00000000000i", "0000000000000"]
)
def test_what_is_no_id(text: str):
    with pytest.raises(ValueError, match="queue id"):
        decode_number(text)
