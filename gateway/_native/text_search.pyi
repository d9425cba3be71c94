"""Substrings in any case where all is ASCII: a page of the interface, see __init__.pyi."""

ABSENT: int
FOUND: int
UNDECIDED: int

def find_in_header(header: bytes, wanted: bytes, name: bytes = b"") -> int:
    """Is the text in a value of the fields of that name (lower case); without one, in "name: value" of any field?

    wanted: ASCII in lower case.  ABSENT, FOUND; UNDECIDED: only fields that have to be decoded may have it.
    """

def find_in_ascii(octets: bytes, start: int, end: int, wanted: bytes) -> int:
    """Is the text between the offsets?  UNDECIDED: it is not in front of the first octet that is not ASCII."""
