"""Recovery of the spool: what is whole comes back, nothing else does, what is damaged is named, again and again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gateway._native import RECORD_HEADER_OCTETS, encode_number
from gateway.config_model import SpoolConfig
from gateway.spool.message import Stored
from gateway.spool.record import END, MESSAGE, PENDING, SETTLED, unpack_numbers
from gateway.spool.recover import Recovery, recover_partition
from gateway.spool.segment import Segment as Opened
from gateway.spool.spool import Spool
from tests.fuzz.octets import options
from tests.fuzz.one_worker import LOOP, wait_for
from tests.fuzz.segments import Script, Segment

CODE = ("gateway.spool",)
MAX_OCTETS = 256
RUNS = 250

GO_ON = 1  # of 4: it takes longer than all the rest
SETTINGS = SpoolConfig(
    segment_octets=64 * 1024,
    spare_segments=1,
    chunk_octets=1024,
    group_octets=8192,
    min_free_octets=0,
)
(
    A_MESSAGE, _, A_CHUNK, AN_END, A_RESULT, AN_UPDATE, A_SETTLED, NEXT_GROUP,
    NEXT_SEGMENT, FLIP, ZEROS, TRUNCATE, NO_HEADER, A_CUT, ODD, RAW, ODD_HEADER,
) = range(17)  # fmt: skip


def seeds() -> list[bytes]:
    """Steps as segments.py reads them: a log like those that are written, and each kind of damage to it."""
    log = [
        [A_MESSAGE, 0, 65, 90, 2],
        [A_RESULT, 0, 1, 0, 3, 97, 98, 99],
        [NEXT_GROUP],
        [A_CHUNK, 1, 66, 200, 3, A_CHUNK, 1, 67, 9, 0, NEXT_GROUP, AN_END, 1],
        [A_MESSAGE, 2, 68, 250, 4, A_MESSAGE, 3, 69, 0, 0],
        [AN_UPDATE, 1, 5, 0, 7, 1, 9, 2],
        [NEXT_SEGMENT, A_MESSAGE, 4, 70, 100, 1, A_SETTLED, 1, 2, 0],
        [NEXT_GROUP, A_MESSAGE, 5, 71, 20, 5],
    ]
    damages = [
        [],
        [FLIP, 16, 40, 255],
        [ZEROS, 16, 0, 100, 3],
        [TRUNCATE, 20, 9],
        [NO_HEADER, 2],
        [A_CUT, 1, 17, 0],
        [ODD, MESSAGE, 0, 2, 5, 1, 2, 3, 4, 5],
        [RAW, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [ODD_HEADER, 1, 40, 3, 0, 255, 50, 1, 1, 1],
    ]
    flat = [octet for step in log for octet in step]
    return [bytes([flags, *flat, *damage]) for damage in damages for flags in (0, GO_ON)]


def check(data: bytes) -> None:
    (flags,), data = options(data, 1)
    script = Script(data)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        directory = root / "0"
        directory.mkdir()
        script.write(directory)
        first = recover(root)
        check_recovery(script, first)
        found = contents(first)
        close(first)
        again = recover(root)
        assert contents(again) == found, "a second start finds another mail"
        close(again)
        if flags % 4 == GO_ON:
            check_going_on(root, found)


def recover(root: Path) -> Recovery:
    return recover_partition(root / "0", root / "damaged")


def close(recovery: Recovery) -> None:
    for segment in recovery.segments:
        segment.close()


def contents(recovery: Recovery) -> dict[str, bytes]:
    """Every message as it can be read back, checksums verified."""
    return {
        stored.queue_id: b"".join(
            bytes(segment.read_record(at, size, stored.queue_id))
            for segment, at, size in stored.records()
        )
        for stored in recovery.messages
    }


def check_recovery(script: Script, recovery: Recovery) -> None:
    assert recovery.octets <= sum(len(segment.final) for segment in script.segments)
    opened = {segment.path.name: segment for segment in recovery.segments}
    pairs = [
        (segment, opened.get(f"{number:06d}.log")) for number, segment in enumerate(script.segments)
    ]
    found = {stored.number: stored for stored in recovery.messages}
    assert len(found) == len(recovery.messages), "twice the same message"
    for stored in recovery.messages:
        check_message(stored, pairs)
    for segment, log in pairs:
        if log is None:
            named = any(segment.final == Path(d.kept_as).read_bytes() for d in recovery.damaged)
            assert named or not any(segment.final), "a file is gone"
        elif not script.odd:
            check_segment(script, segment, log, recovery, found)


def check_message(stored: Stored, pairs: list[tuple[Segment, Opened | None]]) -> None:
    """It is a record that was written under this number and is whole."""
    assert len(stored.states) == len(stored.envelope.recipients) == len(stored.attempts)
    assert stored.unsettled == stored.states.count(PENDING)
    segment = next(segment for segment, log in pairs if log is stored.home)
    at = segment.final[stored.home_offset :]
    assert int.from_bytes(at[24:32], "little") == stored.number
    assert at[20] in (MESSAGE, END)


def check_segment(
    script: Script, segment: Segment, log: Opened, recovery: Recovery, found: dict[int, Stored]
) -> None:
    settled = settled_numbers(script)
    reported = [
        (damage.offset, damage.offset + max(1, damage.octets))
        for damage in recovery.damaged
        if damage.path == str(log.path)
    ]
    for record in segment.records:
        whole = segment.is_whole(record)
        if not whole and segment.is_marked(record):
            covered = any(start < record.end and record.offset < stop for start, stop in reported)
            assert covered, f"damage at {record.offset} is not named"
        if record.content is None or record.number in settled:
            continue
        if whole and all(of.is_whole(piece) for of, piece in record.pieces):
            assert record.number in found, f"{encode_number(record.number)} is lost"


def settled_numbers(script: Script) -> set[int]:
    """Of every SETTLED record, damaged or not."""
    return {
        number
        for segment in script.segments
        for record in segment.records
        if record.kind == SETTLED
        for number in unpack_numbers(record.octets[RECORD_HEADER_OCTETS:])
    }


def check_going_on(root: Path, found: dict[str, bytes]) -> None:
    """A worker starts on it, moves what is good out of damaged segments, and stops: the mail is the same."""

    async def serve() -> None:
        spool = Spool(root, worker=0, settings=SETTINGS)
        try:
            spool.recover()
            spool.attach(LOOP)
            assert spool.health is None, spool.health
            await wait_for(lambda: not spool.busy)
        finally:
            spool.close()

    LOOP.run_until_complete(serve())
    recovery = recover(root)
    assert contents(recovery).keys() == found.keys()
    close(recovery)
