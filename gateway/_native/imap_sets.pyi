"""Sets of numbers: a page of the interface, see __init__.pyi."""

from typing_extensions import Buffer

def resolve_set(pairs: Buffer, highest: int) -> bytes:
    """What sequence_set() gave as ranges: ascending, apart, "*" replaced by highest, none above highest."""

def set_maximum(pairs: Buffer) -> int:
    """The largest number in it; "*" does not count."""

def format_set(numbers: Buffer) -> bytes:
    """Numbers (u32) in their order, runs as ranges: b"1:3,7"."""

def format_ranges(ranges: Buffer) -> bytes:
    """Ranges (pairs of u32) the same way."""

def format_expunges(numbers: Buffer) -> bytes:
    """An EXPUNGE response for each number (u32, ascending), from the last one: each is what it was before."""

def format_numbers(numbers: Buffer) -> bytes:
    """Numbers (u32) with a space in front of each: b" 1 2 7"."""
