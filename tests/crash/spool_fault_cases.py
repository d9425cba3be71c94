"""Cases of test_spool_faults.py: run by pytest in a process that has faults.c preloaded."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from faults import Control, open_control
from msgspec import structs
from spool_rig import SMALL, Rig, make_envelope

from gateway.spool.record import PENDING, RELAYED
from gateway.spool.recover import Recovery
from gateway.spool.spool import SpoolError, SpoolFull, Stored

METHODS = ("direct", "dsync", "fdatasync")


@pytest.fixture
def control():
    control = open_control(Path(os.environ["FAULT_CONTROL"]))
    control.clear()
    yield control
    control.clear()


@pytest.fixture(params=METHODS)
def rig(request: pytest.FixtureRequest, tmp_path: Path, control: Control):
    rig = Rig(tmp_path, structs.replace(SMALL, write_method=request.param))
    rig.open()
    rig.settle_down()
    yield rig
    control.clear()
    rig.end()


def ids(rig: Rig) -> list[str]:
    return [stored.queue_id for stored in rig.reopen().messages]


def ids_of(recovery: Recovery) -> list[str]:
    return [stored.queue_id for stored in recovery.messages]


def fail_writes(rig: Rig, control: Control, error: int, count: int) -> None:
    """fdatasync fails where there is one: the write before it may well reach the disk."""
    if rig.settings.write_method == "fdatasync":
        control.sync_count, control.sync_errno = count, error
    else:
        control.write_count, control.write_errno = count, error


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_failed_write_is_never_acknowledged_and_the_spool_goes_on(
    rig: Rig, control: Control, error: int
):
    before = rig.store(b"before")
    fail_writes(rig, control, error, 1)
    stored, problem = rig.commit(b"failed")
    assert stored is None and problem is not None and problem.reply.code == 451
    assert rig.health and os.strerror(error) in (rig.health[0] or "")
    rig.until(lambda: rig.spool.health is None)
    after = rig.store(b"after")
    assert rig.health[0] is not None and rig.health[-1] is None
    assert rig.read(before) == b"Received: here\r\nbefore"
    assert ids(rig) == [before.queue_id, after.queue_id]
    assert ids(rig) == [before.queue_id, after.queue_id]


def test_a_sick_disk_refuses_everything_until_it_is_well(rig: Rig, control: Control):
    kept = [rig.store(b"kept") for _ in range(3)]
    fail_writes(rig, control, errno.EIO, 0)
    for _ in range(3):
        stored, problem = rig.commit(b"refused")
        assert stored is None and problem is not None
    rig.spool.settle(kept[0], 0, RELAYED)
    rig.spool.settle(kept[1], 0, PENDING, b"451")
    kept[1].attempts[0] = 5
    rig.spool.update(kept[1])
    control.allocate_errno = errno.EIO  # new segments cannot be made either
    rig.until(lambda: not rig.spool.log._spares and not rig.spool.log._preparing)
    assert rig.spool.health is not None
    control.clear()
    rig.until(lambda: rig.spool.health is None)
    rig.settle_down()
    again = rig.reopen().messages
    assert [m.queue_id for m in again] == [kept[1].queue_id, kept[2].queue_id]
    assert list(again[0].attempts) == [5] and again[0].details == {0: b"451"}


def test_what_was_promised_from_memory_is_written_when_the_disk_is_well(rig: Rig, control: Control):
    fail_writes(rig, control, errno.EIO, 2)
    promised: list[Stored] = []

    def done(stored: Stored | None, error: Exception | None) -> None:
        assert stored is not None, error
        promised.append(stored)

    for i in range(4):
        rig.spool.begin().commit(make_envelope(durability="memory"), b"", b"promised %d" % i, done)
    rig.until(lambda: rig.spool.health is not None)
    assert len(promised) == 4 and not any(m.written for m in promised)
    assert rig.read(promised[3]) == b"promised 3"
    rig.spool.settle(promised[0], 0, RELAYED)
    rig.until(lambda: rig.spool.health is None and all(m.written for m in promised[1:]))
    rig.settle_down()
    assert rig.spool.count == 3
    again = rig.reopen().messages
    assert [m.queue_id for m in again] == [m.queue_id for m in promised[1:]]
    assert [rig.read(m) for m in again] == [b"promised %d" % i for i in range(1, 4)]


def test_a_large_message_fails_as_a_whole(rig: Rig, control: Control):
    incoming_pieces = [bytes([i]) * 8000 for i in range(10)]
    fail_writes(rig, control, errno.EIO, 1)
    stored, problem = rig.commit(b"end", pieces=incoming_pieces)
    assert stored is None and problem is not None
    rig.until(lambda: rig.spool.health is None)
    whole = rig.store(b"end", pieces=incoming_pieces)
    assert ids(rig) == [whole.queue_id]


def begun_in_one_segment_and_ended_in_another(rig: Rig, control: Control) -> SpoolError | None:
    """A large message whose first pieces are in a write that fails, and its end in one that does not; what was told.

    Where the failure struck a segment in the making instead, it is done once more.
    """
    piece = bytes(range(250)) * 32
    told: list[tuple[Stored | None, SpoolError | None]] = []
    for _ in range(20):
        told.clear()
        incoming = rig.spool.begin()
        first = rig.spool.log.current
        fail_writes(rig, control, errno.EIO, 1)
        while rig.spool.log.current is first:
            incoming.append(piece)
        incoming.commit(make_envelope(), b"", b"end", lambda *result: told.append(result))
        rig.until(lambda: told)
        ((stored, problem),) = told
        if stored is None:
            return problem
        rig.spool.settle(stored, 0, RELAYED)
        rig.until(lambda: rig.spool.health is None)
        rig.settle_down()
    raise AssertionError("no piece was struck")


def test_a_message_is_refused_when_a_piece_in_another_segment_failed(rig: Rig, control: Control):
    before = rig.store(b"before")
    problem = begun_in_one_segment_and_ended_in_another(rig, control)
    assert problem is not None and problem.reply.code == 451
    rig.until(lambda: rig.spool.health is None)
    rig.settle_down()
    assert rig.spool.count == 1
    recovery = rig.reopen()
    assert [m.queue_id for m in recovery.messages] == [before.queue_id]
    assert not recovery.damaged


def test_a_failed_segment_that_is_not_the_last_is_cut_at_once(rig: Rig, control: Control):
    begun_in_one_segment_and_ended_in_another(rig, control)
    rig.until(lambda: rig.spool.health is None)
    log = rig.spool.log
    failed = [s.sequence for s in log.segments.values() if s.cut is not None]
    cut = {sequence for segment in log.segments.values() for sequence in segment.cuts}
    assert cut >= set(failed)


def test_a_copy_is_not_used_when_a_piece_in_another_segment_failed(rig: Rig, control: Control):
    content = bytes(range(250)) * 160
    stored = rig.store(None, prefix=b"", pieces=[content])
    places = stored.records()
    while rig.spool.log._writer.room_octets > 30_000:
        rig.store(bytes(6000))
    rig.settle_down()
    first = rig.spool.log.current
    fail_writes(rig, control, errno.EIO, 1)
    list(rig.spool.compactor.copy(stored, {place for place, _, _ in places}))
    assert rig.spool.log.current is not first
    rig.until(lambda: rig.spool.health is None)
    rig.settle_down()
    assert rig.read(stored) == content
    again = {message.queue_id: message for message in rig.reopen().messages}
    assert rig.read(again[stored.queue_id]) == content


def test_short_writes_are_completed(rig: Rig, control: Control):
    control.short_octets = 5000
    kept = [rig.store(bytes([i]) * (5000 * i)) for i in range(8)]
    again = rig.reopen().messages
    assert [m.queue_id for m in again] == [m.queue_id for m in kept]
    for i, message in enumerate(again):
        assert rig.read(message) == b"Received: here\r\n" + bytes([i]) * (5000 * i)


def test_a_full_disk_refuses_mail_and_still_takes_results(rig: Rig, control: Control):
    control.allocate_errno = errno.ENOSPC
    kept = []
    for _ in range(200):
        stored, problem = rig.commit(bytes(6000))
        if stored is None:
            break
        kept.append(stored)
    assert isinstance(problem, SpoolFull) and problem.reply.code == 452
    assert len(kept) >= 15
    assert "full" in (rig.spool.health or "") and isinstance(rig.spool.check(), SpoolFull)
    for stored in kept[:3]:
        rig.spool.settle(stored, 0, RELAYED)
    rig.settle_down()
    assert not any(stored.counted for stored in kept[:3])
    assert ids(rig) == [m.queue_id for m in kept[3:]]
    control.clear()
    rig.until(lambda: rig.spool.health is None)
    rig.store(bytes(6000))


def test_a_full_disk_takes_mail_again_when_mail_leaves(rig: Rig, control: Control):
    control.allocate_errno = errno.ENOSPC
    kept = []
    while len(kept) < 200:
        stored, _ = rig.commit(bytes(6000))
        if stored is None:
            break
        kept.append(stored)
    for stored in kept[:-1]:
        rig.spool.settle(stored, 0, RELAYED)
    rig.until(lambda: rig.spool.health is None)
    new = rig.store(bytes(6000))
    assert ids(rig) == [kept[-1].queue_id, new.queue_id]


def test_compaction_that_fails_loses_nothing(rig: Rig, control: Control):
    held = [rig.store(b"held %d" % i) for i in range(4)]
    passing = [rig.store(bytes(8000)) for _ in range(30)]
    fail_writes(rig, control, errno.EIO, 3)
    for stored in passing:
        rig.spool.settle(stored, 0, RELAYED)
    rig.until(lambda: rig.spool.health is not None)
    rig.until(lambda: rig.spool.health is None)
    control.unlink_count, control.unlink_errno = (
        2,
        errno.EIO,
    )  # failed segments cannot be removed at once
    rig.until(lambda: not rig.spool.busy)
    again = rig.reopen().messages
    assert [m.queue_id for m in again] == [m.queue_id for m in held]
    assert [rig.read(m) for m in again] == [b"Received: here\r\nheld %d" % i for i in range(4)]


@pytest.mark.parametrize("refused, method", [((), 2), (("direct",), 1), (("direct", "dsync"), 0)])
def test_the_best_way_that_the_file_system_takes(
    tmp_path: Path, control: Control, refused: tuple[str, ...], method: int
):
    for name in refused:
        setattr(control, f"refuse_{name}", 1)
    rig = Rig(tmp_path)
    rig.open()
    current = rig.spool.log.current
    assert current is not None and current.method <= method
    stored = rig.store(b"stored")
    assert ids(rig) == [stored.queue_id]
    rig.end()


def test_no_segment_at_start(tmp_path: Path, control: Control):
    control.allocate_errno = errno.ENOSPC
    rig = Rig(tmp_path)
    rig.open()
    stored, problem = rig.commit()
    assert stored is None and problem is not None and problem.reply.code in (451, 452)
    control.clear()
    rig.until(lambda: rig.spool.health is None)
    stored = rig.store()
    assert ids(rig) == [stored.queue_id]
    rig.end()


def test_a_segment_that_cannot_be_opened_stops_the_start_and_loses_nothing(
    tmp_path: Path, control: Control
):
    rig = Rig(tmp_path)
    rig.open()
    stored = rig.store(b"kept")
    rig.close()
    control.open_errno = errno.EIO
    with pytest.raises(SpoolError, match=os.strerror(errno.EIO)):
        rig.open()
    rig.close()
    control.clear()
    assert [m.queue_id for m in rig.open().messages] == [stored.queue_id]
    rig.end()


@pytest.mark.parametrize("content", [b"", b"\0" * 70_000, b"?" * 70_000])
def test_what_cannot_be_moved_out_of_the_way_stays_in_nobodys(
    tmp_path: Path, control: Control, content: bytes
):
    rig = Rig(tmp_path)
    rig.open()
    stored = rig.store(b"kept")
    rig.close()
    foreign = tmp_path / "0" / "000777.log"
    foreign.write_bytes(content)
    control.rename_errno = control.unlink_errno = errno.EROFS
    recovery = rig.open()
    assert [m.queue_id for m in recovery.messages] == [stored.queue_id]
    assert foreign.read_bytes() == content
    assert [d.kept_as for d in recovery.damaged] == ([str(foreign)] if b"?" in content else [])
    again = rig.store(b"more")
    assert ids(rig) == [stored.queue_id, again.queue_id]
    control.clear()
    rig.reopen()
    assert not foreign.exists()
    rig.end()


def test_what_cannot_be_read_at_the_start_is_reported_and_the_rest_is_there(
    tmp_path: Path, control: Control
):
    rig = Rig(tmp_path, structs.replace(SMALL, memory_octets=0))
    rig.open()
    kept = [rig.store(b"kept %d" % i) for i in range(3)]
    control.read_errno = errno.EIO  # bodies, while it serves
    with pytest.raises(SpoolError):
        rig.read(kept[0])
    control.clear()
    assert rig.read(kept[0]).endswith(b"kept 0")
    assert not kept[0].held, "what could not be read once is tried again"
    rig.close()
    control.read_count, control.read_errno = 2, errno.EIO  # the header, then its copy is read
    assert ids_of(rig.open()) == [m.queue_id for m in kept]
    rig.end()


def test_a_message_is_not_touched_by_a_quota(rig: Rig, control: Control):
    before = rig.store(b"before")
    fail_writes(rig, control, errno.EDQUOT, 1)
    stored, problem = rig.commit(b"over")
    assert stored is None and problem is not None and problem.reply.code == 451
    rig.until(lambda: rig.spool.health is None)
    assert ids(rig) == [before.queue_id]
    control.allocate_errno = errno.EDQUOT
    for _ in range(200):
        stored, problem = rig.commit(bytes(6000))
        if stored is None:
            break
    assert isinstance(problem, SpoolFull) and problem.reply.code == 452
