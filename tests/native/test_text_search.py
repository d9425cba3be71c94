"""Substrings in ASCII, beside Python's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway._native import ABSENT, FOUND, UNDECIDED, find_in_ascii, find_in_header, iter_fields

pieces = st.lists(
    st.sampled_from([b"A", b"b", b"c: ", b": ", b"Ab", b"=?", b"\xe4", b"\r\n", b"\r\n ", b" ", b"\n\t", b"From "])
)
headers = st.builds(b"".join, pieces)
wanted = st.text("abc: ", max_size=5).map(str.encode)


@given(headers, wanted, st.sampled_from([b"", b"a", b"ab", b"c"]))
def test_find_in_header(header: bytes, text: bytes, name: bytes) -> None:
    values = [
        (value if name else field + b": " + value).lower()
        for field, value in iter_fields(header)
        if not name or field.lower() == name
    ]
    plain = [value for value in values if value.isascii() and b"=?" not in value]
    found = find_in_header(header, text, name)
    if any(text in value for value in plain):
        assert found == FOUND
    else:
        assert found == (ABSENT if plain == values else UNDECIDED)


@given(st.binary(max_size=40), st.integers(0, 3), st.sampled_from([b"", b"a", b"ab", b"a\0"]))
def test_find_in_ascii(octets: bytes, start: int, text: bytes) -> None:
    start = min(start, len(octets))
    found = find_in_ascii(octets, start, len(octets), text)
    if found != UNDECIDED:
        assert found == (FOUND if text in octets[start:].lower() else ABSENT)
    else:
        assert not octets[start:].isascii()


@pytest.mark.parametrize("at", [0, 1, 16_380, 16_383, 16_384, 16_385, 40_000])
def test_over_the_seams_of_windows(at: int) -> None:
    octets = b"x" * at + b"NeedleNeedle" + b"y" * 20_000
    assert find_in_ascii(octets, 0, len(octets), b"needleneedle") == FOUND
    assert find_in_ascii(octets, 0, at + 11, b"needleneedle") == ABSENT
    assert find_in_ascii(octets + b"\xff", 0, len(octets) + 1, b"never") == UNDECIDED
    with pytest.raises(ValueError, match="offsets"):
        find_in_ascii(octets, 1, len(octets) + 1, b"x")
