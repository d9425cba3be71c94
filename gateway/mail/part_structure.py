"""The BODYSTRUCTURE of one part, cut out of the message's.

Owns      part_structure(), decoded_structure()
Flow      packed facts → BODYSTRUCTURE as it is told → elements() of its lists, down the part's path
Standards RFC 9051 §7.5.2 (body), §6.4.5.1 (part numbers); RFC 5524 §3.2 (what BODYPARTSTRUCTURE tells)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

_ELEMENT = re.compile(rb'"(?:[^"\\]|\\.)*"|\{([0-9]+)\}\r\n|[^()" ]+|[()]', re.DOTALL)
_ENCODING, _OCTETS, _LINES, _ENCLOSED = 5, 6, 7, 8  # places in the list of a part that is no multipart


def _elements(octets: bytes, start: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each element of the list that begins at start."""
    at, depth, began = start, 0, 0
    while True:
        if octets[at : at + 1] == b" ":
            at += 1
            continue
        found = _ELEMENT.match(octets, at)
        assert found is not None, "our own BODYSTRUCTURE is well formed"
        end = found.end() + int(found[1] or 0)
        if found[0] == b"(":
            depth += 1
            if depth == 2:
                began = at
        elif found[0] == b")":
            depth -= 1
            if depth == 0:
                return
            if depth == 1:
                yield began, end
        elif depth == 1:
            yield at, end
        at = end


def part_structure(structure: bytes, path: Sequence[int]) -> bytes | None:
    """Of the part with these numbers, () is the message; None: there is none."""
    start, end, is_message = 0, len(structure), True
    for number in path:
        elements = list(_elements(structure, start))
        if not is_message and _encloses_message(structure, elements):
            (start, end), is_message = elements[_ENCLOSED], True
            elements = list(_elements(structure, start))
        parts = list(takewhile(lambda one: structure[one[0]] == ord("("), elements))
        if parts:
            if number > len(parts):
                return None
            (start, end), is_message = parts[number - 1], False
        elif is_message and number == 1:
            is_message = False
        else:
            return None
    return structure[start:end]


def _encloses_message(structure: bytes, elements: Sequence[tuple[int, int]]) -> bool:
    kind = b"/".join(structure[start:end].strip(b'"') for start, end in elements[:2]).upper()
    return kind in (b"MESSAGE/RFC822", b"MESSAGE/GLOBAL")


def decoded_structure(structure: bytes, octets: int, lines: int) -> bytes:
    """A part's, where its Content-Transfer-Encoding was undone: so many octets and lines are left."""
    elements = list(_elements(structure, 0))
    if structure[1:2] == b"(":  # a multipart has no encoding
        return structure
    told = {_ENCODING: b'"BINARY"', _OCTETS: b"%d" % octets}
    if structure[slice(*elements[0])].upper() == b'"TEXT"':
        told[_LINES] = b"%d" % lines
    return b"(%b)" % b" ".join(told.get(at, structure[slice(*one)]) for at, one in enumerate(elements))
