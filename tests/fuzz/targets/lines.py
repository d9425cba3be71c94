"""Line framing: find_line and skip_line find what their slow models find, for every limit and place."""

from __future__ import annotations

from gateway._native import find_line, skip_line
from tests.fuzz.octets import options
from tests.native import model_data, model_smtp

MAX_OCTETS = 512
RUNS = 20_000


def seeds() -> list[bytes]:
    return [b"\x10\0EHLO a\r\nRSET\r\n", b"\x04\0" + b"x" * 100 + b"\n", b"\0\0\n\r\n\n"]


def check(data: bytes) -> None:
    (limit, _), data = options(data, 2)
    max_octets = limit + 1
    at = 0
    while True:
        assert skip_line(data, at) == model_smtp.skip_line(data, at)
        end = find_line(data, at, max_octets)
        assert end == model_data.find_line(data, at, max_octets), (at, end)
        if end < 0:
            return
        at = end
