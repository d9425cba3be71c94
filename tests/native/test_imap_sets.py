"""Sets of numbers against sets of Python.

    Standards RFC 9051 §9 (sequence-set, seq-range), §4.1.1
"""

from __future__ import annotations

import random
import struct
from array import array

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway._native import (
    COMMAND,
    ImapReader,
    format_expunges,
    format_numbers,
    format_ranges,
    format_set,
    resolve_set,
    set_maximum,
)

many = settings(max_examples=400, deadline=None)
LARGEST = 2**32 - 1
SMALL = st.integers(0, 30)
NUMBERS = SMALL | st.sampled_from([LARGEST, LARGEST - 1, 2**31])


def pairs_of(octets: bytes) -> list[tuple[int, int]]:
    return list(struct.iter_unpack("<II", octets))


def model_resolve(pairs: list[tuple[int, int]], highest: int) -> list[tuple[int, int]]:
    """By small numbers one at a time; large ones as they are."""
    spans = sorted(tuple(sorted((first or highest, last or highest))) for first, last in pairs) if highest else []
    out: list[tuple[int, int]] = []
    for first, last in spans:
        if first > highest:
            continue
        last = min(last, highest)
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return out


@many
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12), NUMBERS)
@example([(0, 5)], 3)
@example([(3291, 0)], 100)
@example([(LARGEST, LARGEST), (1, 0), (LARGEST - 1, 7)], LARGEST)
def test_resolve_set(pairs: list[tuple[int, int]], highest: int) -> None:
    octets = b"".join(struct.pack("<II", *pair) for pair in pairs)
    expected = model_resolve(pairs, highest)
    assert pairs_of(resolve_set(octets, highest)) == expected
    if highest <= 30:  # and the model itself, number by number
        wanted: set[int] = set()
        for first, last in pairs:
            low, high = sorted((first or highest, last or highest))
            wanted |= set(range(low, min(high, highest) + 1))
        wanted.discard(0)
        assert {n for first, last in expected for n in range(first, last + 1)} == wanted
    assert set_maximum(octets) == max((n for pair in pairs for n in pair), default=0)
    assert format_ranges(resolve_set(octets, highest)) == ",".join(
        str(first) if first == last else f"{first}:{last}" for first, last in expected
    ).encode()


@many
@given(st.lists(st.integers(1, 12) | st.sampled_from([LARGEST, LARGEST - 1]), max_size=30))
def test_numbers_on_the_wire(numbers: list[int]) -> None:
    octets = array("I", numbers).tobytes()
    assert format_numbers(octets) == b"".join(b" %d" % n for n in numbers)
    assert format_expunges(octets) == b"".join(b"* %d EXPUNGE\r\n" % n for n in reversed(numbers))
    said: list[int] = []
    for part in format_set(octets).split(b",") if numbers else []:
        first, _, last = part.partition(b":")
        said += range(int(first), int(last or first) + 1)
    assert said == numbers


def parse(text: bytes) -> bytes:
    reader = ImapReader(10_000_000)
    reader.feed(b"a FETCH " + text + b"\r\n")
    assert reader.read() == COMMAND
    reader.command.space()
    pairs = reader.command.sequence_set()
    assert pairs is not None
    return pairs


@pytest.mark.parametrize("hostile", ["reversed", "shuffled", "same", "overlapping", "star"])
def test_large_sets(hostile: str) -> None:
    numbers = list(range(1, 400_000, 3))
    if hostile == "reversed":
        text = ",".join(f"{n + 1}:{n}" for n in reversed(numbers))
    elif hostile == "shuffled":
        random.Random(1).shuffle(numbers)
        text = ",".join(map(str, numbers))
    elif hostile == "same":
        text = ",".join(["7"] * len(numbers))
    elif hostile == "overlapping":
        text = ",".join(f"{n}:*" for n in numbers)
    else:
        text = ",".join(["*"] * len(numbers))
    pairs = parse(text.encode())
    assert len(pairs) == 8 * len(numbers)
    found = pairs_of(resolve_set(pairs, 1_000_000))
    assert found == model_resolve(pairs_of(pairs), 1_000_000)


def test_what_is_no_whole_number_of_items() -> None:
    for function in (format_set, format_expunges, format_numbers, format_ranges, set_maximum):
        with pytest.raises(ValueError):
            function(b"abc")
    with pytest.raises(ValueError):
        resolve_set(b"abcd", 1)
