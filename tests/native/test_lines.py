from __future__ import annotations

from collections.abc import Callable

import model_data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway._native import lines

FindLine = Callable[[bytes, int, int], int]


@pytest.fixture(params=[model_data, lines], ids=["model", "native"])
def find_line(request: pytest.FixtureRequest) -> FindLine:
    return request.param.find_line


@pytest.mark.parametrize(
    ("data", "pos", "max_octets", "expected"),
    [
        (b"", 0, 10, -1),
        (b"NOOP", 0, 10, -1),
        (b"NOOP\r", 0, 10, -1),
        (b"NOOP\r\n", 0, 10, 6),
        (b"NOOP\r\nQUIT\r\n", 6, 10, 12),
        (b"NOOP\r\nQUIT\r\n", 12, 10, -1),
        (b"NOOP\nQUIT\r\n", 0, 10, 5),  # the bare LF is the caller's to refuse
        (b"\n", 0, 1, 1),
        (b"NOOP\r\n", 0, 6, 6),
        (b"NOOP\r\n", 0, 5, -2),
        (b"NOOP\r", 0, 5, -2),  # without its LF it is too long already
        (b"NOO", 0, 4, -1),
        (b"x" * 600 + b"\r\n", 0, 512, -2),
    ],
)
def test_find_line(
    find_line: FindLine, data: bytes, pos: int, max_octets: int, expected: int
) -> None:
    assert find_line(data, pos, max_octets) == expected


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"\0", b"x" * 70])).map(b"".join),
    st.data(),
)
@settings(deadline=None, max_examples=200)
def test_find_line_as_the_model(data: bytes, draw: st.DataObject) -> None:
    pos = draw.draw(st.integers(0, len(data)))
    max_octets = draw.draw(st.integers(1, 200))
    assert lines.find_line(data, pos, max_octets) == model_data.find_line(data, pos, max_octets)


@pytest.mark.parametrize(("pos", "max_octets"), [(-1, 10), (5, 10), (0, 0), (0, -1), (2**62, 10)])
def test_arguments_outside_their_range(pos: int, max_octets: int) -> None:
    with pytest.raises(ValueError, match=r"outside|below"):
        lines.find_line(b"NOOP", pos, max_octets)


def test_the_largest_limit() -> None:
    assert lines.find_line(b"NOOP\r\n", 0, 2**63 - 1) == 6
