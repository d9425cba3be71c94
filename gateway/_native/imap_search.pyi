"""Masks over records, and what is picked by them: a page of the interface, see __init__.pyi."""

from typing_extensions import Buffer

# A mask is an octet a record, 0 or 1.
PICK_UID: int
PICK_NUMBER: int
PICK_MESSAGE: int
PICK_MODSEQ: int
PICK_SIZE: int
PICK_ARRIVAL: int
PICK_DATE: int

def match_records(records: Buffer, criteria: Buffer) -> bytes:
    """The mask of the records that the criteria hold for: packed as server/imap/search_plan.py does it."""

def mask_ranges(records: Buffer, ranges: Buffer, first: int = 0) -> bytes:
    """The mask of the records in the ranges: of UIDs; of sequence numbers when first, the first record's, is given."""

def mask_and(a: bytes, b: bytes) -> bytes:
    """What is in both masks."""

def mask_or(a: bytes, b: bytes) -> bytes:
    """What is in one of the masks or in both."""

def mask_without(a: bytes, b: bytes) -> bytes:
    """What is in a and not in b."""

def scatter_mask(mask: bytes, part: bytes) -> bytes:
    """A mask as long as `mask`: where that has its n-th 1, the n-th octet of part; 0 elsewhere."""

def pick(records: Buffer, mask: bytes, what: int, first: int = 0) -> bytes:
    """One value of each record in the mask, joined: PICK_UID or PICK_NUMBER (from first on) u32, the others 64 bits.

    PICK_DATE: when it was sent, else when it arrived (RFC 5256 §2.2).
    """
