"""Threads: the kernel says what the steps of RFC 5256 say, whatever the ids are."""

from __future__ import annotations

from gateway._native import pack_texts, thread_by_subject, thread_references
from tests.fuzz.octets import options
from tests.native import model_thread as model

MAX_OCTETS = 300
RUNS = 3000
WORDS = (b"a\0b\n", b"a\0a\n", b"b\0a\0b\n", b"\0a\n", b"\n")


def seeds() -> list[bytes]:
    return [b"\1\x12a\nb\0a\nc\0a\0b\n\0c\na\0c\n", b"\7\x31b\0a\na\0b\nc\0b\n", b"\3\x05\n\n\n"]


def check(data: bytes) -> None:
    """A line is a message: its id and its references; the first octets decide dates, subjects and replies."""
    (seed, how), octets = options(data, 2)
    rows = []
    for number, line in enumerate(octets.split(b"\n"), 1):
        own, *references = line.decode("latin-1").split("\0")
        mixed = how * number ^ seed
        known = [reference for reference in references if reference]
        rows.append(model.Row(number, own, known, mixed % 5, "xyz "[mixed % 4].strip(), mixed % 3 == 0))
    numbers = b"".join(row.number.to_bytes(4, "little") for row in rows)
    dates = b"".join(row.date.to_bytes(8, "little") for row in rows)
    subjects = b"".join((1 + "xyz".index(row.subject) if row.subject else 0).to_bytes(8, "little") for row in rows)
    if len(rows) < 3:  # a rank is never above the number of messages
        return
    texts = pack_texts(octets.split(b"\n"))
    replies = bytes(row.reply for row in rows)
    assert thread_references(numbers, texts, dates, subjects, replies, seed).decode() == model.references(rows)
    assert thread_references(numbers, texts, dates, b"", b"", seed, True).decode() == model.references(rows, True)
    assert thread_by_subject(numbers, dates, subjects).decode() == model.ordered_subject(rows)
