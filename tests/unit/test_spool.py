"""gateway.spool: what is stored, what is remembered of it, and what it costs in space and memory."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from spool_rig import SMALL, Rig, make_envelope

from gateway.spool.adopt import orphan_partitions
from gateway.spool.record import BOUNCED, DELIVERED, PENDING, RELAYED, decode_number, worker_of
from gateway.spool.spool import Spool, SpoolFull, SpoolLocked, Stored


@pytest.fixture
def rig(tmp_path: Path):
    rig = Rig(tmp_path / "spool")
    rig.open()
    yield rig
    rig.end()


def test_a_message_and_its_states_survive_a_restart(rig: Rig):
    stored = rig.store(b"hello\r\n", recipients=3)
    assert rig.read(stored) == b"Received: here\r\nhello\r\n"
    assert stored.size_octets == 23 and stored.unsettled == 3
    rig.spool.settle(stored, 1, RELAYED)
    rig.spool.settle(stored, 0, PENDING, b"451 later")
    stored.attempts[0] = 2
    stored.next_attempt_at = 12345
    stored.held = True
    stored.priority = -3
    stored.route = "smtp://other"
    rig.spool.update(stored)
    (again,) = rig.reopen().messages
    assert again is not stored and again.queue_id == stored.queue_id
    assert list(again.states) == [PENDING, RELAYED, PENDING] and again.unsettled == 2
    assert again.details == {0: b"451 later"}
    assert list(again.attempts) == [2, 0, 0]
    assert (again.next_attempt_at, again.held, again.priority, again.route) == (
        12345,
        True,
        -3,
        "smtp://other",
    )
    assert again.envelope == stored.envelope
    assert not rig.spool.body(again).in_memory
    assert rig.read(again) == b"Received: here\r\nhello\r\n"


def test_a_settled_message_is_gone(rig: Rig):
    stored = rig.store(recipients=2)
    kept = rig.store(b"kept")
    rig.spool.settle(stored, 0, DELIVERED)
    rig.spool.settle(stored, 1, BOUNCED, b"550")
    rig.spool.settle(stored, 1, DELIVERED)  # a final state stays
    assert list(stored.states) == [DELIVERED, BOUNCED]
    rig.settle_down()
    assert rig.spool.count == 1
    recovery = rig.reopen()
    assert [message.queue_id for message in recovery.messages] == [kept.queue_id]
    assert rig.spool.count == 1 and not recovery.damaged


def test_empty_and_tiny_contents(rig: Rig):
    for content, prefix in ((None, b""), (b"", b""), (b"", b"p"), (b"x", b"")):
        stored = rig.store(content, prefix=prefix)
        assert rig.read(stored) == prefix + (content or b"")
    for stored, octets in zip(rig.reopen().messages, (b"", b"", b"p", b"x"), strict=True):
        assert rig.read(stored) == octets and stored.size_octets == len(octets)


@pytest.mark.parametrize("size", [8192, 8193, 8192 * 3, 200_000])
def test_large_messages_in_pieces(rig: Rig, size: int):
    content = bytes(i * 31 % 251 for i in range(size))
    whole = rig.store(content)
    pieces = [content[i : i + 5000] for i in range(0, size, 5000)]
    pieced = rig.store(pieces[-1], pieces=pieces[:-1])

    def check(stored: Stored) -> None:
        assert rig.read(stored) == b"Received: here\r\n" + content
        chunks = list(rig.spool.body(stored).chunks(3000))
        assert b"".join(chunks) == b"Received: here\r\n" + content
        assert max(map(len, chunks)) <= 3000

    check(whole)
    check(pieced)
    for stored in rig.reopen().messages:
        check(stored)


def test_senders_wait_while_the_disk_is_behind(rig: Rig):
    incoming = rig.spool.begin()
    drained: list[bool] = []
    incoming.on_drain = lambda: drained.append(True)
    assert incoming.append(bytes(8192))
    assert incoming.append(bytes(8192)) and incoming.append(bytes(8192))
    assert not incoming.append(bytes(8192))
    assert not drained
    rig.until(lambda: drained)
    assert incoming.pending_octets <= SMALL.message_pending_octets // 2
    incoming.abort()
    rig.settle_down()
    assert drained == [True] and not rig.spool.paused
    assert rig.reopen().messages == []


def test_who_commits_is_told_once_even_when_the_last_piece_has_to_wait(rig: Rig):
    incoming = rig.spool.begin()
    told: list[object] = []
    incoming.on_drain = lambda: told.append("drained")
    while incoming.append(bytes(8192)):
        pass
    rig.until(lambda: told)
    told.clear()
    incoming.commit(make_envelope(), b"", bytes(100_000), lambda stored, _: told.append(stored))
    assert rig.spool.paused
    rig.settle_down()
    assert [stored.queue_id for stored in told] == [incoming.queue_id]


def test_an_aborted_message_leaves_no_trace(rig: Rig):
    for _ in range(40):
        incoming = rig.spool.begin()
        incoming.append(bytes(20_000))
        rig.settle_down()
        incoming.abort()
    rig.settle_down()
    assert rig.spool.count == 0
    assert len(list(rig.spool.directory.glob("*.log"))) <= 4
    assert rig.reopen().messages == []


def test_memory_durability_answers_at_once_and_is_written_all_the_same(rig: Rig):
    told: list[Stored | None] = []
    envelope = make_envelope(durability="memory")
    rig.spool.begin().commit(envelope, b"", b"quick", lambda stored, _: told.append(stored))
    rig.loop.call_soon(rig.loop.stop)
    rig.loop.run_forever()  # one turn: the disk was not waited for
    (stored,) = told
    assert stored is not None and rig.read(stored) == b"quick"
    rig.settle_down()
    assert stored.written
    (again,) = rig.reopen().messages
    assert rig.read(again) == b"quick"


def test_bodies_in_memory_are_bounded(rig: Rig):
    messages = [rig.store(bytes(4000), prefix=b"") for _ in range(30)]
    assert rig.spool.kept_octets <= SMALL.memory_octets
    assert [rig.spool.body(m).in_memory for m in messages].count(
        True
    ) == SMALL.memory_octets // 4000
    assert all(rig.read(m) == bytes(4000) for m in messages)
    messages[0].next_attempt_at = time.time_ns() + 10**12
    rig.spool.update(messages[0])  # not needed soon: makes room
    assert not rig.spool.body(messages[0]).in_memory
    assert rig.read(messages[0]) == bytes(4000)
    for message in messages:
        rig.spool.settle(message, 0, RELAYED)
    rig.settle_down()
    assert rig.spool.kept_octets == 0 and rig.spool.count == 0


def test_space_is_used_again(rig: Rig):
    for _ in range(200):
        stored = rig.store(bytes(8000))
        rig.spool.settle(stored, 0, RELAYED)
    rig.settle_down()
    assert rig.spool.log.sequence > 10
    assert len(list(rig.spool.directory.glob("*.log"))) <= 4


def test_one_held_message_pins_no_segment(rig: Rig):
    held = [rig.store(b"held %d" % i, recipients=2) for i in range(3)]
    for message in held:
        message.held = True
        rig.spool.settle(message, 1, RELAYED)
        rig.spool.update(message)
    for _ in range(150):
        rig.spool.settle(rig.store(bytes(8000)), 0, RELAYED)
    rig.until(lambda: len(rig.spool.log.segments) <= 3)
    rig.settle_down()
    again = rig.reopen().messages
    assert [message.queue_id for message in again] == [message.queue_id for message in held]
    for i, message in enumerate(again):
        assert message.held and list(message.states) == [PENDING, RELAYED]
        assert rig.read(message) == b"Received: here\r\nheld %d" % i


def test_large_messages_move_too(rig: Rig):
    large = rig.store(bytes(range(256)) * 120)  # in pieces
    for _ in range(100):
        rig.spool.settle(rig.store(bytes(8000)), 0, RELAYED)
    first = large.home.sequence
    rig.until(lambda: len(rig.spool.log.segments) <= 3)
    assert large.home.sequence > first - 1
    assert rig.read(large) == b"Received: here\r\n" + bytes(range(256)) * 120
    rig.settle_down()
    (again,) = rig.reopen().messages
    assert rig.read(again) == b"Received: here\r\n" + bytes(range(256)) * 120


def test_settled_messages_stay_settled_when_their_record_moves(rig: Rig):
    """Messages share a segment with held ones; their SETTLED records are in segments that come and go."""
    settled, held = [], []
    for _ in range(12):
        settled.append(rig.store(bytes(3000)))
        held.append(rig.store(bytes(7000)))
    for message in settled:
        rig.spool.settle(message, 0, RELAYED)
        rig.spool.settle(rig.store(bytes(8000)), 0, RELAYED)
    for _ in range(100):
        rig.spool.settle(rig.store(bytes(8000)), 0, RELAYED)
    rig.settle_down()
    for _ in range(3):
        again = rig.reopen().messages
        assert [m.queue_id for m in again] == [m.queue_id for m in held]


def test_ids_rise_and_carry_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rig = Rig(tmp_path, worker=37)
    rig.open()
    stored = rig.store()
    ids = [rig.spool.new_id() for _ in range(5000)]
    assert ids == sorted(set(ids)) and ids[0] > stored.queue_id
    assert {worker_of(decode_number(i)) for i in ids} == {37}
    last = rig.store()
    rig.spool.settle(last, 0, RELAYED)
    rig.spool.settle(stored, 0, RELAYED)
    rig.close()
    monkeypatch.setattr(
        time, "time_ns", lambda: 1_600_000_000 * 10**9
    )  # the clock was set back over the restart
    rig.open()
    assert rig.spool.new_id() > last.queue_id
    assert rig.spool.new_id() > last.queue_id
    rig.end()


def test_a_partition_has_one_owner(rig: Rig):
    with pytest.raises(SpoolLocked) as caught:
        Spool(rig.root, worker=0)
    assert caught.value.reply.code == 451


def test_limits_are_told_before_the_content_comes(tmp_path: Path):
    rig = Rig(tmp_path, msgspec.structs.replace(SMALL, messages_max=2))
    rig.open()
    assert rig.spool.check(1000) is None
    first = rig.store()
    rig.store()
    refusal = rig.spool.check()
    assert (
        isinstance(refusal, SpoolFull)
        and refusal.reply.code == 452
        and refusal.reply.enhanced == "4.3.1"
    )
    stored, error = rig.commit()
    assert stored is None and isinstance(error, SpoolFull)
    rig.spool.settle(first, 0, RELAYED)
    rig.settle_down()
    assert rig.spool.check() is None
    assert isinstance(rig.spool.check(1 << 60), SpoolFull)
    rig.end()


def test_a_record_that_no_segment_can_hold_is_refused(rig: Rig):
    stored, error = rig.commit(prefix=bytes(200_000))
    assert stored is None and error is not None and error.reply.code == 451
    assert rig.spool.health is None
    rig.store()


def test_mail_of_a_former_worker_is_adopted(tmp_path: Path):
    old = Rig(tmp_path, worker=3)
    old.open()
    settled = old.store(b"settled")
    small = old.store(b"small", recipients=2)
    large = old.store(bytes(range(256)) * 200)
    old.spool.settle(settled, 0, RELAYED)
    old.spool.settle(small, 1, RELAYED)
    small.attempts[0] = 7
    old.spool.update(small)
    rig = Rig(tmp_path)
    rig.open()
    with pytest.raises(SpoolLocked):
        rig.spool.adopt(tmp_path / "3")
    rig.close()
    old.end()
    rig.spool = Spool(tmp_path, worker=0, settings=SMALL)
    rig.spool.recover()
    (orphan,) = orphan_partitions(tmp_path, 1)
    adopted = rig.spool.adopt(orphan).messages
    assert [m.queue_id for m in adopted] == [small.queue_id, large.queue_id]
    assert not orphan.exists() and orphan_partitions(tmp_path, 1) == []
    rig.spool.attach(rig.loop)
    assert rig.read(adopted[1]) == b"Received: here\r\n" + bytes(range(256)) * 200
    again = rig.reopen().messages
    assert list(again[0].states) == [PENDING, RELAYED] and list(again[0].attempts) == [7, 0]
    assert rig.read(again[0]) == b"Received: here\r\nsmall"
    assert rig.read(again[1]) == b"Received: here\r\n" + bytes(range(256)) * 200
    rig.end()



def test_envelope_of_a_thousand_recipients(rig: Rig):
    stored = rig.store(recipients=1000)
    for i in range(0, 1000, 2):
        rig.spool.settle(stored, i, RELAYED)
    (again,) = rig.reopen().messages
    assert (
        again.unsettled == 500 and again.envelope.recipients[999].forward_path == "r999@example.org"
    )
    assert make_envelope(2).recipients[1].domain == "example.org"
