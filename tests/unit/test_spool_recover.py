"""gateway.spool.recover: logs that end anywhere, and logs with octets that are not what was written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from gateway._native.logwriter import RECORD_HEADER_OCTETS, encode_number, scan_records
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from spool_rig import SMALL, Rig, make_envelope

from gateway.spool.message import Body
from gateway.spool.record import (
    CHUNK,
    END,
    MESSAGE,
    RELAYED,
    SETTLED,
    WORKER_BITS,
    unpack_numbers,
)
from gateway.spool.recover import Recovery, recover_partition
from gateway.spool.segment import Segment, remove, unpack_header
from gateway.spool.spool import SpoolCorrupt, Stored


@dataclass
class Written:
    """A partition with one segment of records, and what is in it."""

    path: Path
    octets: bytes
    records: list[tuple[int, int, int, int, int]]  # type, group, number, offset, length
    contents: dict[str, bytes]
    settled: set[str]

    @property
    def end(self) -> int:
        return self.records[-1][3] + RECORD_HEADER_OCTETS + self.records[-1][4]

    def whole(self, kind: int, end: int) -> list[tuple[int, int, int, int, int]]:
        return [
            r for r in self.records if r[0] == kind and r[3] + RECORD_HEADER_OCTETS + r[4] <= end
        ]

    def expected(self, end: int) -> dict[str, bytes]:
        """What must be recovered when only the octets before end are there."""
        found = {encode_number(r[2]) for r in (*self.whole(MESSAGE, end), *self.whole(END, end))}
        for _, _, _, offset, length in self.whole(SETTLED, end):
            start = offset + RECORD_HEADER_OCTETS
            found -= {encode_number(n) for n in unpack_numbers(self.octets[start : start + length])}
        return {queue_id: self.contents[queue_id] for queue_id in found}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    rig = Rig(tmp_path_factory.mktemp("written"))
    rig.open()
    contents, settled = {}, set()
    for i in range(5):
        stored = rig.store(b"%d" % i * (300 * i), prefix=b"P: %d\r\n" % i)
        contents[stored.queue_id] = b"P: %d\r\n" % i + b"%d" % i * (300 * i)
        if i % 2:
            rig.spool.settle(stored, 0, RELAYED)
            settled.add(stored.queue_id)
            rig.settle_down()
    large = rig.store(b"L" * 20_000, prefix=b"")
    contents[large.queue_id] = b"L" * 20_000
    messages = [rig.spool.begin() for _ in range(3)]  # one group
    told: list[str] = []
    for i, incoming in enumerate(messages):
        contents[incoming.queue_id] = b"G" * (100 + i)
        incoming.commit(
            make_envelope(),
            b"",
            b"G" * (100 + i),
            lambda stored, error: told.append(stored.queue_id),
        )
    rig.until(lambda: len(told) == 3)
    directory = rig.spool.directory
    path = rig.spool.log.segments[1].path
    rig.end()
    for spare in directory.glob("*.log"):
        if spare != path:
            spare.unlink()
    octets = path.read_bytes()
    header = unpack_header(octets[:4096])
    assert header is not None
    sequence, mark, size, _ = header
    records, broken, _ = scan_records(octets, mark, sequence, 4096, size - 4096)
    assert not broken and {r[0] for r in records} == {MESSAGE, CHUNK, END, SETTLED}
    return Written(path, octets, records, contents, settled)


def recover(octets: bytes | bytearray, tmp_path: Path) -> tuple[Recovery, dict[str, bytes]]:
    directory = tmp_path / "0"
    shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
    directory.mkdir(exist_ok=True)
    (directory / "000001.log").write_bytes(octets)
    recovery = recover_partition(directory, tmp_path / "damaged")

    def on_damage(stored: object, error: Exception) -> None:
        raise AssertionError(f"{stored}: {error}")

    found = {m.queue_id: b"".join(Body(m, on_damage).slices()) for m in recovery.messages}
    for segment in recovery.segments:
        segment.close()
    return recovery, found


def test_an_undamaged_log(written: Written, tmp_path: Path):
    recovery, found = recover(written.octets, tmp_path)
    assert found == written.expected(len(written.octets))
    assert set(found) == set(written.contents) - written.settled
    assert not recovery.damaged and not (tmp_path / "damaged").exists()


def test_truncated_at_every_octet_of_the_last_records(written: Written, tmp_path: Path):
    start = written.records[-4][3]
    for end in range(start, written.end + 1):
        recovery, found = recover(written.octets[:end], tmp_path)
        assert found == written.expected(end), end
        assert recovery.damaged


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"garbage "])
def test_overwritten_from_every_octet_of_the_last_records(
    written: Written, tmp_path: Path, fill: bytes
):
    start = written.records[-3][3]
    for end in range(start, written.end, 3 if fill != b"\0" else 1):
        rest = len(written.octets) - end
        octets = written.octets[:end] + (fill * (rest // len(fill) + 1))[:rest]
        recovery, found = recover(octets, tmp_path)
        expected = written.expected(end)
        if found != expected:  # the fill happens to be what was there
            assert fill == b"\0" and set(found) - set(expected) and not set(expected) - set(found)
        cut = [r for r in written.records if r[3] + 8 <= end < r[3] + RECORD_HEADER_OCTETS + r[4]]
        if cut and found == expected:
            assert recovery.damaged, end


def check_damage(written: Written, recovery: Recovery, found: dict[str, bytes]) -> None:
    """Nothing is altered, and what is missing or back is covered by a report."""
    expected = written.expected(len(written.octets))
    for queue_id, content in found.items():
        assert content == written.contents[queue_id]
    reported = [(d.offset, d.offset + d.octets) for d in recovery.damaged]

    def covered(offset: int) -> bool:
        return any(start <= offset < stop or stop == start <= offset for start, stop in reported)

    for queue_id in set(expected) - set(found):
        places = [r for r in written.records if encode_number(r[2]) == queue_id]
        assert any(covered(r[3]) for r in places), f"{queue_id} was dropped in silence"
    if set(found) - set(
        expected
    ):  # a SETTLED record was lost: its messages come again, and it is reported
        assert any(covered(r[3]) for r in written.records if r[0] == SETTLED)


def test_a_flipped_octet_anywhere_in_every_header(written: Written, tmp_path: Path):
    for _, _, _, offset, _ in written.records:
        for i in range(RECORD_HEADER_OCTETS):
            octets = bytearray(written.octets)
            octets[offset + i] ^= 0x40
            recovery, found = recover(octets, tmp_path)
            check_damage(written, recovery, found)
            assert recovery.damaged


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_anywhere(
    written: Written, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    octets = bytearray(written.octets)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, written.end - 1))
        if data.draw(st.booleans()):
            octets[at] ^= data.draw(st.integers(1, 255))
        else:
            stop = min(written.end, at + data.draw(st.integers(1, 9000)))
            octets[at:stop] = bytes(stop - at)
    tmp_path = tmp_path_factory.getbasetemp() / "anywhere"
    tmp_path.mkdir(exist_ok=True)
    recovery, found = recover(octets, tmp_path)
    check_damage(written, recovery, found)


def test_headers_of_the_segment_are_not_needed(written: Written, tmp_path: Path):
    for damaged in ((0,), (-4096,), (0, -4096)):
        octets = bytearray(written.octets)
        for at in damaged:
            octets[at] ^= 1
        recovery, found = recover(octets, tmp_path)
        assert found == written.expected(len(octets))
        assert recovery.segments[0].sequence == 1


def test_the_report_names_offset_and_messages(written: Written, tmp_path: Path):
    kind, _, number, offset, length = written.records[0]
    assert kind == MESSAGE
    octets = bytearray(written.octets)
    octets[offset + RECORD_HEADER_OCTETS + length - 1] ^= 1
    recovery, _ = recover(octets, tmp_path)
    (damage,) = recovery.damaged
    assert damage.acknowledged and damage.queue_ids == [encode_number(number)]
    assert damage.offset == offset
    kept = Path(damage.kept_as)
    assert kept.read_bytes() == octets[offset : offset + damage.octets]
    report = json.loads(kept.with_suffix(".json").read_bytes())
    assert report["queue_ids"] == [encode_number(number)] and report["offset"] == offset


def test_a_file_of_nothing_known_is_set_aside_and_an_unfinished_one_removed(tmp_path: Path):
    directory = tmp_path / "0"
    directory.mkdir()
    (directory / "000001.log").write_bytes(os.urandom(70_000))
    (directory / "000002.log").write_bytes(bytes(70_000))
    recovery = recover_partition(directory, tmp_path / "damaged")
    assert recovery.messages == [] and recovery.segments == []
    assert len(recovery.damaged) == 1 and recovery.damaged[0].octets == 70_000
    assert list(directory.iterdir()) == [] and len(list((tmp_path / "damaged").iterdir())) == 1


def test_a_copy_of_a_segment_is_set_aside(written: Written, tmp_path: Path):
    copy, damaged = written.path.with_name("999999.log"), tmp_path / "damaged"
    copy.write_bytes(written.octets)
    recovery = recover_partition(written.path.parent, damaged)
    found = {stored.queue_id for stored in recovery.messages}
    assert found == written.contents.keys() - written.settled
    (damage,) = recovery.damaged
    assert damage.path == str(copy) and "another file" in damage.what
    assert Path(damage.kept_as).read_bytes() == written.octets


def test_blocks_that_the_disk_refuses_are_reported(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bad = written.records[-2][3] // 4096 * 4096  # of the group that holds the last three messages
    preadv = os.preadv

    def refuse(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset <= bad < offset + len(buffers[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    recovery, found = recover(written.octets, tmp_path)
    assert found == written.expected(bad)
    assert (bad, 4096) in [(damage.offset, damage.octets) for damage in recovery.damaged]
    assert recovery.segments[0].retired


def test_damage_met_while_serving_holds_the_message(tmp_path: Path):
    rig = Rig(tmp_path, structs.replace(SMALL, memory_octets=0))
    rig.open()
    stored = rig.store(b"x" * 1000)
    fine = rig.store(b"y" * 1000)
    with stored.home.path.open("r+b") as file:
        file.seek(stored.home_offset + 500)
        file.write(b"!")
    with pytest.raises(SpoolCorrupt) as caught:
        rig.read(stored)
    assert caught.value.queue_id == stored.queue_id and stored.held
    assert rig.read(fine).endswith(b"y" * 1000)
    assert len(list((tmp_path / "damaged").glob("*.json"))) == 1
    recovery = rig.reopen()
    assert [m.queue_id for m in recovery.messages] == [fine.queue_id]
    assert recovery.damaged[0].queue_ids == [stored.queue_id]
    # The damaged segment is given up: what is good moves to another.
    (again,) = recovery.messages
    rig.until(lambda: again.home.sequence > fine.home.sequence and not rig.spool.busy)
    assert rig.read(again).endswith(b"y" * 1000)
    recovery = rig.reopen()
    assert len(recovery.messages) == 1 and not recovery.damaged
    rig.end()


def copied(rig: Rig, stored: Stored) -> bytes:
    """Compaction copies the message; the segment's octets with both copies, before anything is given back."""
    segments = {place for place, _, _ in stored.records()}
    list(rig.spool.compactor.copy(stored, segments))
    rig.settle_down()
    return stored.home.path.read_bytes()


def test_a_torn_copy_of_a_large_message_leaves_the_message_it_was_made_of(tmp_path: Path):
    rig = Rig(tmp_path / "first")
    rig.open()
    stored = rig.store(b"L" * 20_000, prefix=b"")
    octets = bytearray(copied(rig, stored))
    piece = stored.extents[0][1]
    rig.end()
    assert recover(octets, tmp_path)[1] == {stored.queue_id: b"L" * 20_000}
    octets[piece + 100] ^= 1  # its END is whole, a piece is not
    assert recover(octets, tmp_path)[1] == {stored.queue_id: b"L" * 20_000}


def test_what_a_report_says_stays_said(written: Written, tmp_path: Path):
    octets = bytearray(written.octets)
    octets[written.records[-2][3] + 50] ^= 1  # in the last group: perhaps nobody was told
    first, _ = recover(octets, tmp_path)
    assert [damage.acknowledged for damage in first.damaged] == [False]
    assert not json.loads(Path(first.damaged[0].kept_as).with_suffix(".json").read_bytes())[
        "acknowledged"
    ]
    (tmp_path / "0" / "000001.log").unlink()
    shutil.copytree(tmp_path / "damaged", tmp_path / "kept")
    recover(octets, tmp_path)
    shutil.rmtree(tmp_path / "damaged")
    shutil.copytree(tmp_path / "kept", tmp_path / "damaged")
    again = recover_partition(tmp_path / "0", tmp_path / "damaged")
    assert [damage.acknowledged for damage in again.damaged] == [False]


def test_ids_rise_though_the_segments_that_had_them_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rig = Rig(tmp_path)
    rig.open()
    rig.spool.settle(stored := rig.store(), 0, RELAYED)
    rig.settle_down()
    for path in rig.spool.directory.glob("*.log"):
        remove(Segment(path, 0, 0, 0), stored.number >> WORKER_BITS)
    rig.close()
    monkeypatch.setattr(time, "time_ns", lambda: 1_600_000_000_000_000_000)
    rig.open()
    assert rig.spool.new_id() > stored.queue_id
    rig.end()
