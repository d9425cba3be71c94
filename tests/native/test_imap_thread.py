"""Threads beside the steps of RFC 5256."""

from __future__ import annotations

import struct

import model_thread as model
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway._native import pack_texts, thread_by_subject, thread_references

ids = st.sampled_from("abcdefgh")
rows = st.builds(
    model.Row,
    st.just(0),
    st.one_of(st.just(""), ids),
    st.lists(ids, max_size=4),
    st.integers(0, 4),
    st.sampled_from(["", "", "x", "y", "z"]),
    st.booleans(),
)
mailboxes = st.lists(rows, max_size=12).map(
    lambda found: [row._replace(number=number) for number, row in enumerate(found, 3)]
)


def columns(rows: list[model.Row]) -> tuple[bytes, bytes, bytes, bytes]:
    """Numbers, dates, ranks of subjects, replies."""
    ranks = {subject: rank for rank, subject in enumerate(sorted({row.subject for row in rows} | {""}))}
    count = len(rows)
    return (
        struct.pack(f"<{count}I", *(row.number for row in rows)),
        struct.pack(f"<{count}q", *(row.date for row in rows)),
        struct.pack(f"<{count}q", *(ranks[row.subject] for row in rows)),
        bytes(row.reply for row in rows),
    )


def texts(rows: list[model.Row]) -> bytes:
    return pack_texts(["\0".join((row.message_id, *row.references)).encode() for row in rows])


@given(mailboxes, st.integers(0, 2**64 - 1))
def test_references(rows: list[model.Row], seed: int) -> None:
    numbers, dates, subjects, replies = columns(rows)
    found = thread_references(numbers, texts(rows), dates, subjects, replies, seed)
    assert found.decode() == model.references(rows)


@given(mailboxes, st.integers(0, 2**64 - 1))
def test_refs(rows: list[model.Row], seed: int) -> None:
    numbers, dates, _, _ = columns(rows)
    found = thread_references(numbers, texts(rows), dates, b"", b"", seed, True)
    assert found.decode() == model.references(rows, newest=True)


@given(mailboxes)
def test_ordered_subject(rows: list[model.Row]) -> None:
    numbers, dates, subjects, _ = columns(rows)
    assert thread_by_subject(numbers, dates, subjects).decode() == model.ordered_subject(rows)


def test_a_very_long_thread() -> None:
    rows = [model.Row(at, f"m{at}", [f"m{at - 1}"] if at > 1 else [], at, "", False) for at in range(1, 30_001)]
    for order in (rows, rows[::-1]):
        numbers, dates, subjects, replies = columns(order)
        found = thread_references(numbers, texts(order), dates, subjects, replies, 7)
        assert sorted(map(int, found.replace(b"(", b" ").replace(b")", b" ").split())) == list(range(1, 30_001))


def test_columns_must_fit() -> None:
    with pytest.raises(ValueError, match="lengths"):
        thread_references(b"", pack_texts([b"a"]), b"", b"", b"", 1)
    with pytest.raises(ValueError, match="texts"):
        thread_references(b"", b"\1\0\0\0", b"", b"", b"", 1)
    with pytest.raises(ValueError, match="rank"):
        thread_by_subject(bytes(4), bytes(8), struct.pack("<q", 2))
