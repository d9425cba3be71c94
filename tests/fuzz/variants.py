"""Variants of inputs, in a sequence that depends on nothing else: not on coverage, time, machine or version of a tool.

A change of the gateway does not change what is tried, so what fails is what the change brought.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

CHANGES_MAX = 4  # of one input
COPIED_MAX = 32
TIMES = (1, 2, 40)  # how often something is there again


def variants(inputs: Sequence[bytes], words: Sequence[bytes], max_octets: int) -> Iterator[bytes]:
    """Without end.  inputs: what is varied, in turn; none is empty or longer than max_octets."""
    draw = random.Random(1).random  # the one method whose sequence Python promises to keep

    def below(limit: int) -> int:
        return int(draw() * limit)

    def piece(octets: bytes) -> bytes:
        at = below(len(octets) + 1)
        return octets[at : at + 1 + below(COPIED_MAX)]

    def changed(octets: bytes) -> bytes:
        at = below(len(octets) + 1)
        before, behind = octets[:at], octets[at:]
        match below(7):
            case 0:  # another octet
                return before + bytes([below(256)]) + behind[1:]
            case 1:  # a bit
                return before + bytes([octet ^ 1 << below(8) for octet in behind[:1]]) + behind[1:]
            case 2:  # less
                return before + behind[1 + below(COPIED_MAX) :]
            case 3:  # something again
                return before + piece(octets) * TIMES[below(len(TIMES))] + behind
            case 4:  # the end of another
                other = inputs[below(len(inputs))]
                return before + other[below(len(other) + 1) :]
            case 5 if words:
                return before + words[below(len(words))] + behind
            case 6 if words:
                word = words[below(len(words))]
                return before + word + behind[len(word) :]
            case _:
                return before + bytes(below(256) for _ in range(1 + below(4))) + behind

    while True:
        for octets in inputs or [b""]:
            for _ in range(1 + below(CHANGES_MAX)):
                octets = changed(octets)
            if octets:
                yield octets[:max_octets]
