"""Line framing.  Floor: bytes.find over the same octets, which does nothing but memchr.

Standards RFC 5321 §2.3.8
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import best_s

from gateway._native import find_line


@pytest.mark.parametrize("octets", [6, 40, 512, 998])
def test_find_line(benchmark: Any, octets: int) -> None:
    data = b"x" * (octets - 2) + b"\r\n" + b"y" * 100
    assert benchmark(find_line, data, 0, 1000) == octets
    if not benchmark.disabled:
        floor_s = best_s(lambda: data.find(b"\n", 0, 1000))
        benchmark.extra_info["octets"] = octets
        benchmark.extra_info["floor_ns"] = floor_s * 1e9
        benchmark.extra_info["ratio"] = floor_s / benchmark.stats.stats.min
