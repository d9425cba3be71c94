"""Strings for IMAP, and the fields that matter of a header."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from real_mail import real_mail

from gateway._native import first_fields, imap_nstring, imap_string, iter_fields


def read_string(octets: bytes) -> bytes:
    """What a client makes of it."""
    literal = re.fullmatch(rb"\{(\d+)\}\r\n(.*)", octets, re.DOTALL)
    if literal:
        assert int(literal[1]) == len(literal[2])
        return literal[2]
    assert re.fullmatch(rb'"(?:[^"\\\r\n\x00\x80-\xff]|\\["\\])*"', octets), octets
    return re.sub(rb"\\(.)", rb"\1", octets[1:-1])


@given(st.one_of(st.binary(max_size=40), st.text('ab"\\ \r\n\0é').map(str.encode)))
def test_a_string_reads_back(value: bytes) -> None:
    assert read_string(imap_string(value)) == value.replace(b"\0", b"")


def test_strings_at_their_limits() -> None:
    assert imap_string(b"a" * 1024).startswith(b'"')
    assert imap_string(b"a" * 1025).startswith(b"{1025}")
    assert imap_nstring(None) == b"NIL"
    assert imap_nstring(b"") == b'""'


def test_first_fields_are_the_first_of_iter_fields() -> None:
    names = frozenset((b"subject", b"received", b"x-" + b"y" * 37, b"x-" + b"y" * 39))
    header = b"SUBJECT : a\r\n b\r\nsubject: c\r\nX-%b: d\r\nX-%b: e\r\n\r\nReceived: body\r\n" % (
        b"Y" * 37, b"Y" * 39,
    )  # fmt: skip
    assert first_fields(header, names) == {b"subject": b"a b", b"x-" + b"y" * 37: b"d"}
    for content in real_mail():
        wanted: dict[bytes, bytes] = {}
        for name, value in iter_fields(content):
            if name.lower() in names:
                wanted.setdefault(name.lower(), value)
        assert first_fields(content, names) == wanted
