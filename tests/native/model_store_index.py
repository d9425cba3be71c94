"""What the kernels over records do, the obvious way."""

from __future__ import annotations

import struct

RECORD = struct.Struct("<IIQQQqII")
COLUMNS = ("uid", "size", "flags", "modseq", "message", "internal_date", "save_date", "sent_date")
WIDTHS = ("I", "I", "Q", "Q", "Q", "q", "I", "I")

Fields = tuple[int, int, int, int, int, int, int, int]


def packed(records: list[Fields]) -> bytes:
    return b"".join(RECORD.pack(*fields) for fields in records)


def pairs(ranges: bytes) -> list[tuple[int, int]]:
    return list(struct.iter_unpack("<II", ranges))


def inside(uid: int, ranges: bytes) -> bool:
    return any(first <= uid <= last for first, last in pairs(ranges))


def u32(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def store_flags(
    records: list[Fields], ranges: bytes, clear: int, set_: int, modseq: int, unchanged_since: int
) -> tuple[bytes | None, bytes, bytes, int, int]:
    after, changed, refused = [], [], []
    for fields in records:
        uid, size, flags, old, *rest = fields
        new = fields
        if inside(uid, ranges):
            if old > unchanged_since:
                refused.append(uid)
            elif flags & ~clear | set_ != flags:
                new = (uid, size, flags & ~clear | set_, modseq, *rest)
                changed.append(new)
        after.append(new)
    unseen, deleted = (sum_records(after)[at] - sum_records(records)[at] for at in (1, 2))
    return packed(after) if changed else None, packed(changed), u32(refused), unseen, deleted


def apply_flag_log(records: list[Fields], log: list[tuple[int, int, int, int, int]]) -> bytes:
    after = []
    for uid, size, flags, modseq, *rest in records:
        for first, last, clear, set_, changed in log:
            if first <= uid <= last and modseq < changed and flags & ~clear | set_ != flags:
                flags, modseq = flags & ~clear | set_, changed
        after.append((uid, size, flags, modseq, *rest))
    return packed(after)


def split_records(records: list[Fields], ranges: bytes, must: int) -> tuple[bytes, bytes]:
    gone = [r for r in records if inside(r[0], ranges) and r[2] & must == must]
    return packed([r for r in records if r not in gone]), packed(gone)


def find_records(records: list[Fields], must: int, must_not: int, modseq_above: int) -> bytes:
    return u32(
        [
            r[0]
            for r in records
            if r[2] & must == must and not r[2] & must_not and r[3] > modseq_above
        ]
    )


def sum_records(records: list[Fields]) -> tuple[int, ...]:
    unseen = [r[0] for r in records if not r[2] & 1]
    return (
        len(records),
        len(unseen),
        sum(bool(r[2] & 8) for r in records),
        sum(r[1] for r in records),
        max((r[3] for r in records), default=0),
        unseen[0] if unseen else 0,
    )
