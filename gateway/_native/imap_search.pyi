"""Masks over records, texts in one piece, the order of rows: a page of the interface, see __init__.pyi."""

from typing_extensions import Buffer

# A mask is an octet a record, 0 or 1.  Texts are a count, the offset behind each (u32) and the octets of all of them.
PICK_UID: int
PICK_NUMBER: int
PICK_MESSAGE: int
PICK_MODSEQ: int
PICK_SIZE: int
PICK_ARRIVAL: int
PICK_DATE: int

def match_records(records: Buffer, criteria: Buffer) -> bytes:
    """The mask of the records that the criteria hold for: packed as protocol.imap.search.Criteria does it."""

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

def pack_texts(texts: list[bytes]) -> bytes:
    """These, in one piece."""

def unpack_texts(data: bytes) -> list[bytes]:
    """The list that pack_texts() was given."""

def count_blocks(keys: Buffer, shift: int) -> dict[int, int]:
    """{key >> shift: how many of the keys}, in the order they first come."""

def gather_texts(keys: Buffer, blocks: dict[int, bytes], shift: int) -> bytes:
    """The text of each key: number `key & (1 << shift) - 1` of the texts blocks[key >> shift]; empty without those."""

def join_texts(pieces: list[bytes]) -> bytes:
    """The texts of all of these, one behind the other."""

def find_texts(data: bytes, wanted: bytes) -> bytes:
    """The mask of the texts that have the wanted octets in them; every text has none."""

def mask_words(data: bytes, which: int) -> bytes:
    """The mask of the texts whose which-th word, where NULs are between them, is not empty."""

def rank_texts(data: bytes, which: int) -> bytes:
    """Each text's place in the order of octets, i64: its which-th word, where NULs are between them, is what counts.

    Equal ones have the same rank.  Rank 0 is for the empty ones alone.
    """

def sort_order(columns: list[bytes], reverse: bytes) -> bytes:
    """The order of the rows of these columns (i64 each), u32: the first column decides, then the second …

    reverse: an octet a column, 1 for descending.  Equal rows stay as they are.
    """

def take_numbers(numbers: Buffer, order: Buffer) -> bytes:
    """numbers[order[0]], numbers[order[1]] …: all u32."""
