"""Threads: a page of the interface, see __init__.pyi."""

def thread_references(
    numbers: bytes,
    references: bytes,
    dates: bytes,
    subjects: bytes,
    replies: bytes,
    seed: int,
    newest: bool = False,
) -> bytes:
    """The threads of RFC 5256 REFERENCES, as they are answered: b"(2)(3 6 (4 23)(44 7 96))".

    A row is a message, in ascending order: number u32, the text of references (Message-ID, NUL, its references), date
    i64, rank of its base subject i64 (0: none), reply 0 or 1.  newest: THREAD=REFS, subjects and replies are not used.
    seed: a secret (64 bits).
    """

def thread_by_subject(numbers: bytes, dates: bytes, subjects: bytes) -> bytes:
    """The threads of RFC 5256 ORDEREDSUBJECT, as they are answered; rows as in thread_references()."""
