"""One message in is one message out: every mix of CR, LF, NUL and dots, read by strict and by lenient receivers.

CVE-2023-51764 and its kin: a sender and a receiver that disagree about where a message ends let the first inject mails
through the second.  What we send on must mean the same to every receiver, whatever we were sent.
"""

from __future__ import annotations

import itertools
import re

import pytest

from gateway._native import DataDecoder, stuff

ALPHABET = [b"\r", b"\n", b".", b"\0", b"a"]
END = b"\r\n.\r\n"

# How receivers of this world find the end of data; the number of ends each sees must be one, at the very end.
RECEIVERS = {
    "strict": re.compile(rb"\r\n\.\r\n"),
    "bare LF ends a line": re.compile(rb"\r?\n\.\r?\n"),
    "bare CR ends a line": re.compile(rb"(?:\r\n|\r|\n)\.(?:\r\n|\r|\n)"),
    "NUL is ignored": re.compile(rb"(?:\r\0*\n|\r|\n)\0*\.\0*(?:\r\0*\n|\r|\n)"),
    "space is trimmed from dot lines' front": re.compile(rb"(?:\r\n|\r|\n)\.(?:\r\n|\r|\n)"),
}


def through(sent: bytes, *, normalize: bool = True) -> tuple[bytes, int]:
    """(what the next hop is sent, octets of `sent` that belonged to the message)."""
    decoder = DataDecoder(0, normalize)
    used = decoder.feed(sent, 0)
    assert decoder.finished
    chunk = decoder.take(True)
    pieces = [bytes(chunk)] if chunk is not None else []
    return b"".join(bytes(piece) for piece in stuff(pieces)), used


def check(sent: bytes) -> None:
    out, used = through(sent)
    assert used == sent.index(END) + len(END) if not sent.startswith(b".\r\n") else used == 3
    wire = b"\r\n" + out  # the line end of DATA stands before the content
    for name, pattern in RECEIVERS.items():
        ends = list(pattern.finditer(wire))
        assert len(ends) == 1, f"{name} sees {len(ends)} ends in {out!r} (sent {sent!r})"
        assert ends[0].end() == len(wire), f"{name} ends early in {out!r} (sent {sent!r})"


@pytest.mark.parametrize("length", range(7))
def test_every_short_content(length: int) -> None:
    for parts in itertools.product(ALPHABET, repeat=length):
        check(b"".join(parts) + END)


@pytest.mark.parametrize("length", range(5))
def test_every_mix_inside_lines(length: int) -> None:
    for parts in itertools.product(ALPHABET, repeat=length):
        check(b"x\r\n" + b"".join(parts) + b"\r\nMAIL FROM:<evil@example.org>\r\n" + END)


def test_bdat_content_is_repaired_when_it_leaves_by_data() -> None:
    for length in range(7):
        for parts in itertools.product(ALPHABET[:3] + ALPHABET[4:], repeat=length):
            content = b"".join(parts)
            wire = b"\r\n" + b"".join(bytes(p) for p in stuff([content], repair=True))
            for name, pattern in RECEIVERS.items():
                ends = list(pattern.finditer(wire))
                assert len(ends) == 1 and ends[0].end() == len(wire), f"{name}: {content!r} became {wire!r}"
