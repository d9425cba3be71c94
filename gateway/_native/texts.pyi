"""Many short texts in one piece: a page of the interface, see __init__.pyi."""

from typing_extensions import Buffer

# Texts are a count, the offset behind each (u32) and the octets of all of them.

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
