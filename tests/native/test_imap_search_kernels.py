"""The kernels of SEARCH and SORT beside obvious Python."""

from __future__ import annotations

import struct
from array import array
from collections import Counter

import model_store_index as model
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_store_index import mailboxes, range_lists

from gateway._native import (
    PICK_ARRIVAL,
    PICK_DATE,
    PICK_MESSAGE,
    PICK_MODSEQ,
    PICK_NUMBER,
    PICK_SIZE,
    PICK_UID,
    count_blocks,
    find_texts,
    gather_texts,
    join_texts,
    mask_and,
    mask_or,
    mask_ranges,
    mask_without,
    mask_words,
    match_records,
    pack_texts,
    pick,
    rank_texts,
    scatter_mask,
    sort_order,
    take_numbers,
    unpack_texts,
)

CRITERIA = struct.Struct("<QQQQQQqqqqqqqq")
octets = st.binary(max_size=12).map(lambda some: bytes(97 + octet % 3 if octet % 4 else 0 for octet in some))
masks = st.lists(st.integers(0, 1), max_size=20).map(bytes)


@given(mailboxes(), st.data())
def test_match_records(records: list[model.Fields], data: st.DataObject) -> None:
    bits = st.sampled_from([0, 1, 8, 1 << 63])
    must, must_not = data.draw(bits), data.draw(bits)
    bounds = [data.draw(st.sampled_from([-1, 0, 1, 3, 5, 2**32])) for _ in range(12)]
    # modseq, message, size, internal date, save date, sent date
    places = (3, 4, 1, 5, 6, 7)
    unsigned = [max(0, bound) for bound in bounds[:4]]
    wanted = bytes(
        fields[2] & must == must
        and not fields[2] & must_not
        and all(
            low <= fields[place] <= high
            for place, low, high in zip(
                places, (unsigned + bounds[4:])[::2], (unsigned + bounds[4:])[1::2], strict=True
            )
        )
        for fields in records
    )
    criteria = CRITERIA.pack(must, must_not, *unsigned, *bounds[4:])
    assert match_records(model.packed(records), criteria) == wanted


@given(mailboxes(), range_lists(), st.integers(1, 60))
def test_mask_ranges(records: list[model.Fields], ranges: bytes, first: int) -> None:
    packed = model.packed(records)
    assert mask_ranges(packed, ranges) == bytes(model.inside(fields[0], ranges) for fields in records)
    wanted = bytes(model.inside(number, ranges) for number in range(first, first + len(records)))
    assert mask_ranges(packed, ranges, first) == wanted


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1))))
def test_masks(pairs: list[tuple[int, int]]) -> None:
    a, b = bytes(a for a, _ in pairs), bytes(b for _, b in pairs)
    assert mask_and(a, b) == bytes(a & b for a, b in pairs)
    assert mask_or(a, b) == bytes(a | b for a, b in pairs)
    assert mask_without(a, b) == bytes(a & ~b & 1 for a, b in pairs)


@given(masks, st.data())
def test_scatter_mask(mask: bytes, data: st.DataObject) -> None:
    part = data.draw(st.binary(min_size=sum(mask), max_size=sum(mask)))
    given = iter(part)
    assert scatter_mask(mask, part) == bytes(next(given) if bit else 0 for bit in mask)
    with pytest.raises(ValueError, match="places"):
        scatter_mask(mask, part + b"\1")


@given(mailboxes(), st.data())
def test_pick(records: list[model.Fields], data: st.DataObject) -> None:
    mask = bytes(data.draw(st.integers(0, 1)) for _ in records)
    packed = model.packed(records)
    chosen = [(at, fields) for at, fields in enumerate(records) if mask[at]]
    assert list(array("I", pick(packed, mask, PICK_UID))) == [fields[0] for _, fields in chosen]
    assert list(array("I", pick(packed, mask, PICK_NUMBER, 7))) == [7 + at for at, _ in chosen]
    for what, place in ((PICK_MESSAGE, 4), (PICK_MODSEQ, 3)):
        assert list(array("Q", pick(packed, mask, what))) == [fields[place] for _, fields in chosen]
    for what, place in ((PICK_SIZE, 1), (PICK_ARRIVAL, 5)):
        assert list(array("q", pick(packed, mask, what))) == [fields[place] for _, fields in chosen]
    assert list(array("q", pick(packed, mask, PICK_DATE))) == [fields[7] or fields[5] for _, fields in chosen]


@given(st.lists(octets, max_size=30), octets)
def test_texts(texts: list[bytes], wanted: bytes) -> None:
    packed = pack_texts(texts)
    assert unpack_texts(packed) == texts
    assert unpack_texts(join_texts([packed, pack_texts([]), packed])) == texts * 2
    assert find_texts(packed, wanted) == bytes(wanted in text for text in texts)
    for which in range(3):
        words = [[*text.split(b"\0"), b"", b""][which] for text in texts]
        order = sorted(set(words) - {b""})
        ranks = [order.index(word) + 1 if word else 0 for word in words]
        assert list(array("q", rank_texts(packed, which))) == ranks
        assert mask_words(packed, which) == bytes(bool(word) for word in words)


@given(st.lists(st.lists(octets, max_size=4), max_size=4), st.lists(st.integers(0, 17)))
def test_gather_texts(blocks: list[list[bytes]], keys: list[int]) -> None:
    counts = count_blocks(array("Q", keys), 2)
    assert counts == Counter(key >> 2 for key in keys) and list(counts) == list(dict.fromkeys(k >> 2 for k in keys))
    wanted = [
        blocks[key >> 2][key & 3] if key >> 2 < len(blocks) and key & 3 < len(blocks[key >> 2]) else b""
        for key in keys
    ]
    packed = {number: pack_texts(block) for number, block in enumerate(blocks)}
    assert unpack_texts(gather_texts(array("Q", keys), packed, 2)) == wanted


@given(
    st.lists(st.tuples(*[st.integers(-2, 2)] * 3)),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_sort_order(rows: list[tuple[int, int, int]], reverse: list[bool]) -> None:
    columns = [array("q", [row[at] for row in rows]).tobytes() for at in range(3)]
    signs = [-1 if one else 1 for one in reverse]
    wanted = sorted(range(len(rows)), key=lambda at: [s * v for s, v in zip(signs, rows[at], strict=True)])
    order = sort_order(columns, bytes(reverse))
    assert list(array("I", order)) == wanted
    numbers = array("I", range(100, 100 + len(rows)))
    assert list(array("I", take_numbers(numbers, order))) == [100 + at for at in wanted]


@pytest.mark.parametrize("damaged", [b"", b"\1\0\0\0", b"\1\0\0\0\1\0\0\0", b"\2\0\0\0\1\0\0\0\0\0\0\0a", b"\0\0\0\0a"])
def test_damaged_texts(damaged: bytes) -> None:
    for work in (
        lambda: unpack_texts(damaged),
        lambda: find_texts(damaged, b"a"),
        lambda: rank_texts(damaged, 0),
        lambda: gather_texts(array("Q", [0]), {0: damaged}, 8),
    ):
        with pytest.raises(ValueError, match="texts"):
            work()


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="lengths"):
        mask_and(b"\1", b"")
    with pytest.raises(ValueError, match="mask"):
        pick(bytes(48), b"", PICK_UID)
    with pytest.raises(ValueError, match="nothing"):
        pick(bytes(48), b"\1", 99)
    with pytest.raises(ValueError, match="criteria"):
        match_records(b"", b"")
    with pytest.raises(ValueError, match="columns"):
        sort_order([bytes(8), bytes(16)], b"\0\0")
    with pytest.raises(ValueError, match="number"):
        take_numbers(bytes(4), array("I", [1]))
