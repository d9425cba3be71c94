"""What targets share: options out of the first octets of an input, and cuts wherever a network may make them."""

from __future__ import annotations

from collections.abc import Iterator

WHOLE, OCTETS = 0, 1


def options(data: bytes, count: int) -> tuple[list[int], bytes]:
    """The first count octets as numbers (0 where the input is shorter), and what follows them."""
    head = data[:count].ljust(count, b"\0")
    return list(head), data[count:]


def cut(data: bytes, how: int) -> Iterator[bytes]:
    """data in pieces: whole (0), octet by octet (1), or as the number 2...255 decides."""
    if how == WHOLE:
        yield data
        return
    state, at = how, 0
    while at < len(data):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        size = 1 if how == OCTETS else 1 + (state >> 16) % (how if state & 0x8000 else 4)
        yield data[at : at + size]
        at += size
