"""The kernels over packed records beside their model."""

from __future__ import annotations

import struct

import model_store_index as model
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway._native import (
    RECORD_OCTETS,
    apply_flag_log,
    find_records,
    record_column,
    records_ascend,
    split_records,
    store_flags,
    sum_records,
)

flag_bits = st.sampled_from([0, 1, 8, 9, 1 << 8, 1 << 63, 2**64 - 1])
small = st.integers(0, 6)


@st.composite
def mailboxes(draw: st.DrawFn) -> list[model.Fields]:
    uids = sorted(draw(st.sets(st.integers(1, 40), max_size=20)))
    return [
        (
            uid,
            draw(st.sampled_from([0, 5, 2**32 - 1])),
            draw(flag_bits),
            draw(small),
            uid * 7,
            draw(st.sampled_from([-1, 0, 2**40])),
            draw(small),
            uid,
        )
        for uid in uids
    ]


@st.composite
def range_lists(draw: st.DrawFn) -> bytes:
    edges = sorted(draw(st.sets(st.integers(1, 50), max_size=8)))
    return b"".join(
        struct.pack("<II", first, max(first, last - 1))
        for first, last in zip(edges[::2], edges[1::2], strict=False)
    )


@given(mailboxes(), range_lists(), flag_bits, flag_bits, st.one_of(small, st.just(2**64 - 1)))
def test_store_flags(
    records: list[model.Fields], ranges: bytes, clear: int, set_: int, unchanged_since: int
) -> None:
    wanted = model.store_flags(records, ranges, clear, set_, 99, unchanged_since)
    assert store_flags(model.packed(records), ranges, clear, set_, 99, unchanged_since) == wanted


changes = st.tuples(st.integers(1, 45), st.integers(0, 20), flag_bits, flag_bits)


@given(mailboxes(), st.lists(changes, max_size=6), st.integers(0, 8))
def test_flag_log(records: list[model.Fields], found: list[tuple[int, int, int, int]], modseq: int) -> None:
    log = [(first, first + more, *bits, modseq + at) for at, (first, more, *bits) in enumerate(found)]
    packed = b"".join(struct.pack("<IIQQQ", *change) for change in log)
    octets = model.packed(records)
    wanted = model.apply_flag_log(records, log)
    after = apply_flag_log(octets, packed)
    assert after == wanted
    assert (after is octets) == (after == octets)
    assert apply_flag_log(after, packed) is after  # it has had them


@given(mailboxes(), range_lists(), flag_bits)
def test_split_records(records: list[model.Fields], ranges: bytes, must: int) -> None:
    wanted = model.split_records(records, ranges, must)
    assert split_records(model.packed(records), ranges, must) == wanted


@given(mailboxes(), flag_bits, flag_bits, small)
def test_find_records(records: list[model.Fields], must: int, must_not: int, modseq: int) -> None:
    wanted = model.find_records(records, must, must_not, modseq)
    assert find_records(model.packed(records), must, must_not, modseq) == wanted


@given(mailboxes())
def test_sums_columns_and_order(records: list[model.Fields]) -> None:
    octets = model.packed(records)
    assert sum_records(octets) == model.sum_records(records)
    for at, (name, width) in enumerate(zip(model.COLUMNS, model.WIDTHS, strict=True)):
        values = [fields[at] for fields in records]
        assert record_column(octets, name) == struct.pack(f"<{len(values)}{width}", *values)
    assert records_ascend(octets)
    if records:
        assert not records_ascend(octets, records[0][0])
        assert not records_ascend(octets + octets)


def test_what_is_no_records_is_refused() -> None:
    for call in (
        lambda: sum_records(b"x" * (RECORD_OCTETS + 1)),
        lambda: split_records(bytes(RECORD_OCTETS), b"xyz"),
        lambda: record_column(bytes(RECORD_OCTETS), "nothing"),
    ):
        with pytest.raises(ValueError):
            call()
