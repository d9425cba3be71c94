"""Corpora with a fixed seed, and the floor that kernels are measured against.

Bugs      a floor is measured beside its bench, not interleaved with it: on a busy machine the ratio of one run
          means little
"""

from __future__ import annotations

import random
import string
import timeit
from collections.abc import Callable, Sequence
from typing import Any

import pytest

SEED = 5321
SIZES = {"1K": 1024, "10K": 10 * 1024, "100K": 100 * 1024, "1M": 1024 * 1024}

Measure = Callable[..., None]


def make_body(size: int, *, line: int = 78, seed: int = SEED) -> bytes:
    """Exactly size octets of words in CRLF lines of at most line octets (CRLF not counted)."""
    source = random.Random(seed)
    words = [
        "".join(source.choices(string.ascii_letters + ",.", k=source.randint(1, 11)))
        for _ in range(500)
    ]
    lines: list[str] = []
    octets = 0
    while octets < size:
        text = source.choice(words).lstrip(".")
        while len(text) < line - 12:
            text += " " + source.choice(words)
        lines.append(text[: source.randint(line - 12, line)])
        octets += len(lines[-1]) + 2
    # The last line is cut, or made a little longer, so that the size is met.
    cut = "\r\n".join(lines).encode()[: size - 2].rstrip(b"\r\n")
    return cut.ljust(size - 2, b"x") + b"\r\n"


def make_mail(size: int, *, line: int = 78, seed: int = SEED) -> bytes:
    """A clean message of exactly size octets: an ordinary header section and make_body()."""
    number = random.Random(seed).getrandbits(64)
    header = (
        f"Received: from mail.example.com (mail.example.com [192.0.2.25])\r\n"
        f"\tby mx.example.org with ESMTPS id {number:x}\r\n"
        f"\tfor <user@example.org>; Sat, 21 Nov 2026 12:00:00 +0000\r\n"
        f"Message-ID: <{number:x}@example.com>\r\n"
        f"Date: Sat, 21 Nov 2026 11:59:58 +0000\r\n"
        f"From: Some One <someone@example.com>\r\n"
        f"To: user@example.org\r\n"
        f"Subject: A message of {size} octets\r\n"
        f"MIME-Version: 1.0\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\n"
        f"\r\n"
    ).encode()
    return header + make_body(size - len(header), line=line, seed=seed)


@pytest.fixture(params=SIZES)
def mail(request: pytest.FixtureRequest) -> bytes:
    """One clean message of 1 KiB, 10 KiB, 100 KiB and 1 MiB."""
    return make_mail(SIZES[request.param])


@pytest.fixture(params=SIZES)
def body(request: pytest.FixtureRequest) -> bytes:
    """CRLF lines of 1 KiB, 10 KiB, 100 KiB and 1 MiB."""
    return make_body(SIZES[request.param])


def best_s(function: Callable[[], object]) -> float:
    """Seconds of one call: the best of several rounds of about 5 ms."""
    number = max(1, int(0.005 / max(timeit.timeit(function, number=3) / 3, 1e-7)))
    return min(timeit.repeat(function, number=number, repeat=20)) / number


@pytest.fixture
def against_memcpy(benchmark: Any) -> Measure:
    """measure(function, buffers): benches the function and notes in extra_info

    octets_per_s, memcpy_octets_per_s (one memcpy for each of the buffers, into memory that is there already, called
    from Python like the function) and ratio, the function's speed divided by memcpy's.
    """

    def measure(function: Callable[[], object], buffers: Sequence[bytes]) -> None:
        target = memoryview(bytearray(max(map(len, buffers))))
        pairs = [(target[: len(octets)], octets) for octets in buffers]

        def copy() -> None:
            for place, octets in pairs:
                place[:] = octets

        before_s = best_s(copy)
        benchmark(function)
        if benchmark.disabled:
            return
        octets = sum(map(len, buffers))
        floor_s = min(before_s, best_s(copy))
        taken_s = benchmark.stats.stats.min
        benchmark.extra_info["octets"] = octets
        benchmark.extra_info["octets_per_s"] = octets / taken_s
        benchmark.extra_info["memcpy_octets_per_s"] = octets / floor_s
        benchmark.extra_info["ratio"] = floor_s / taken_s

    return measure
