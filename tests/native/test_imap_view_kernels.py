"""The kernels of a session's view, against the obvious."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway._native import (
    diff_records,
    numbers_to_uids,
    patch_records,
    ranges_of_uids,
    records_but,
    select_records,
    uids_to_numbers,
)

RECORD = struct.Struct("<IIQQQqII")

Mailbox = dict[int, tuple[int, int]]  # UID → flags, modseq

uids = st.integers(1, 60)
mailboxes = st.dictionaries(uids, st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=40)
subsets = st.sets(uids, max_size=40)


def pack(mailbox: Mailbox) -> bytes:
    return b"".join(RECORD.pack(uid, 7, *mailbox[uid], uid, -1, 5, 0) for uid in sorted(mailbox))


def u32(numbers: object) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)  # type: ignore[attr-defined]


def ranges(numbers: set[int]) -> bytes:
    return ranges_of_uids(u32(sorted(numbers)))


@given(subsets)
def test_ranges_are_the_runs(numbers: set[int]) -> None:
    pairs = struct.iter_unpack("<II", ranges(numbers))
    found = [set(range(first, last + 1)) for first, last in pairs]
    assert set().union(*found) == numbers
    assert all(max(one) + 1 < min(other) for one, other in pairwise(found))


@given(mailboxes, mailboxes, subsets)
def test_patch(mailbox: Mailbox, changed: Mailbox, gone: set[int]) -> None:
    records = pack(mailbox)
    wanted = {uid: changed.get(uid, old) for uid, old in mailbox.items() if uid not in gone}
    found = patch_records(records, pack(changed), ranges(gone))
    assert found == pack(wanted)
    if not mailbox.keys() & (changed.keys() | gone):
        assert found is records


@given(mailboxes, mailboxes, st.booleans())
def test_diff(old: Mailbox, new: Mailbox, keep: bool) -> None:
    result = {**old, **new} if keep else new
    olds, results = sorted(old), sorted(result)
    first = 5, 9
    gone = [uid for uid in olds if uid not in new]
    changed = [uid for uid in olds if uid in new and old[uid] != new[uid]]
    assert diff_records(pack(old), pack(new), keep, *first) == (
        u32(5 + olds.index(uid) for uid in gone),
        u32(gone),
        pack(result),
        u32(9 + results.index(uid) for uid in changed),
        pack({uid: new[uid] for uid in changed}),
    )


@given(mailboxes, subsets, st.integers(1, 1000))
def test_select(mailbox: Mailbox, wanted: set[int], first: int) -> None:
    numbers, records = select_records(pack(mailbox), ranges(wanted), first)
    found = {uid: mailbox[uid] for uid in mailbox.keys() & wanted}
    assert records == pack(found)
    assert numbers == u32(first + sorted(mailbox).index(uid) for uid in sorted(found))


@given(mailboxes, st.lists(st.integers(1, 39), max_size=5), subsets)
def test_numbers_and_uids(mailbox: Mailbox, cuts: list[int], asked: set[int]) -> None:
    order = sorted(mailbox)
    bounds = sorted({0, len(order), *(cut for cut in cuts if cut < len(order))})
    parts = [order[a:b] for a, b in pairwise(bounds)]
    chunks = [pack({uid: mailbox[uid] for uid in part}) for part in parts]
    starts = u32(bound + 1 for bound in bounds) if chunks else u32([1])
    numbers = {uid: number for number, uid in enumerate(order, 1)}
    assert uids_to_numbers(chunks, starts, u32(sorted(asked))) == u32(numbers.get(uid, 0) for uid in sorted(asked))
    wanted = sorted(number for number in asked if number <= len(order))
    pairs = struct.pack(f"<{2 * len(wanted)}I", *(n for number in wanted for n in (number, number)))
    found = numbers_to_uids(chunks, starts, pairs)
    assert found == struct.pack(f"<{2 * len(wanted)}I", *(order[n - 1] for n in wanted for _ in "12"))
    with pytest.raises(IndexError):
        numbers_to_uids(chunks, starts, u32([1, len(order) + 1]))


@given(mailboxes, st.integers(1, 4))
def test_but(mailbox: Mailbox, modseq: int) -> None:
    left = {uid: value for uid, value in mailbox.items() if value[1] != modseq}
    numbers = u32(range(1, len(mailbox) + 1))
    found = records_but(numbers, pack(mailbox), modseq)
    assert found == (u32(n for n, uid in enumerate(sorted(mailbox), 1) if uid in left), pack(left))


def test_octets_that_are_no_records_are_refused() -> None:
    with pytest.raises(ValueError, match="whole number"):
        diff_records(b"x", b"", False)
    with pytest.raises(ValueError, match="has a number"):
        records_but(b"", bytes(48), 1)
