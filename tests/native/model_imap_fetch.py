"""The slow, obvious way to FETCH responses: what _native/imap_fetch.pyx must agree with."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from gateway.store.model import Record

SYSTEM = (
    (2, b"\\Answered"),
    (4, b"\\Flagged"),
    (8, b"\\Deleted"),
    (1, b"\\Seen"),
    (16, b"\\Draft"),
)


def date(at: int) -> bytes:
    return (
        time.strftime('"%d-%b-%Y %H:%M:%S +0000"', time.gmtime(at)).replace('"0', '" ', 1).encode()
    )


def flags(record: Record, keywords: Sequence[bytes], recent_uid: int) -> bytes:
    words = [name for bit, name in SYSTEM if record.flags & bit]
    if recent_uid and record.uid >= recent_uid:
        words.append(b"\\Recent")
    words += [word for at, word in enumerate(keywords) if record.flags >> (8 + at) & 1]
    return b"(" + b" ".join(words) + b")"


def literal(octets: bytes, start: int = -1, count: int = 0, eight: bool = False) -> bytes:
    if start >= 0:
        octets = octets[start : start + count]
    if not eight:
        octets = octets.replace(b"\0", b"\x80")
    return b"%b{%d}\r\n%b" % (b"~" if eight and b"\0" in octets else b"", len(octets), octets)


def fields(header: bytes, names: Sequence[bytes], others: bool) -> bytes:
    wanted = {name.lower() for name in names}
    kept = []
    taken = False
    for line in re.findall(rb"[^\n]*\n|[^\n]+\Z", header):
        if line in (b"\r\n", b"\n"):
            break
        if line[:1] not in (b" ", b"\t"):
            found = re.match(rb"([!-9;-~]+)[ \t]*:", line)
            taken = others if found is None else (found[1].lower() in wanted) != others
        if taken:
            kept.append(line)
    return b"".join(kept) + b"\r\n"


def tokens(structure: bytes) -> list[bytes | list]:  # type: ignore[type-arg]
    """Nested lists of the strings and atoms of a parenthesised list."""
    stack: list[list] = [[]]  # type: ignore[type-arg]
    at = 0
    while at < len(structure):
        if structure[at : at + 1] == b"(":
            stack.append([])
            at += 1
        elif structure[at : at + 1] == b")":
            done = stack.pop()
            stack[-1].append(done)
            at += 1
        elif structure[at : at + 1] == b" ":
            at += 1
        elif (found := re.compile(rb"\{(\d+)\}\r\n").match(structure, at)) is not None:
            end = found.end() + int(found[1])
            stack[-1].append(structure[at:end])
            at = end
        else:
            found = re.compile(rb'"(?:[^"\\]|\\.)*"|[^ ()"{]+', re.DOTALL).match(structure, at)
            assert found is not None, structure[at:]
            stack[-1].append(found[0])
            at = found.end()
    assert len(stack) == 1
    return stack[0]


def body(structure: list) -> list:  # type: ignore[type-arg]
    """BODYSTRUCTURE without extension data (RFC 9051 §9)."""
    if isinstance(structure[0], list):
        count = next(at for at, one in enumerate(structure) if not isinstance(one, list))
        return [*map(body, structure[:count]), structure[count]]
    if structure[0].upper() == b'"TEXT"':
        return structure[:8]
    if structure[0].upper() == b'"MESSAGE"' and isinstance(structure[7], list):
        return [*structure[:8], body(structure[8]), structure[9]]
    return structure[:7]
