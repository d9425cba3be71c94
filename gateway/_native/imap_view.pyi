"""What changed between two states of a mailbox, numbers against UIDs: a page of the interface, see __init__.pyi."""

from typing_extensions import Buffer

def patch_records(records: bytes, changed: Buffer, gone: Buffer) -> bytes:
    """The records, without those in the ranges of gone, and with those of changed instead of the same UIDs.

    UIDs of changed that records lacks are left out.  Returns `records` itself when nothing is different.
    """

def diff_records(
    old: Buffer, new: bytes, keep: bool, old_number: int = 0, new_number: int = 0
) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """What became of old records: (numbers, UIDs, result, numbers of the changed, the changed).

    The first two are of those that new lacks; the first of old has old_number.  result: new itself, or with keep also
    the records that are only in old.  Changed are those whose flags or modseq differ, as new has them; their numbers
    are those in result, whose first has new_number.
    """

def select_records(records: bytes, ranges: Buffer, number: int) -> tuple[bytes, bytes]:
    """(sequence numbers, records) of those in the ranges; number: of the first record."""

def numbers_to_uids(chunks: list[bytes], starts: Buffer, ranges: Buffer) -> bytes:
    """Ranges of sequence numbers as ranges of UIDs; starts: the number of each chunk's first record, and one behind.

    Raises IndexError for numbers that are not there.
    """

def uids_to_numbers(chunks: list[bytes], starts: Buffer, uids: Buffer) -> bytes:
    """The sequence number (u32) of each UID (u32, ascending), 0 for those that are not there."""

def records_but(numbers: Buffer, records: Buffer, modseq: int) -> tuple[bytes, bytes]:
    """(numbers, records) without the records that have this modseq; numbers: a u32 of each record."""

def ranges_of_uids(uids: Buffer) -> bytes:
    """UIDs (u32, ascending) as ranges."""
