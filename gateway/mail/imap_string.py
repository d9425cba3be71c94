"""Strings as IMAP writes them.

Owns      string(), nstring()
Standards RFC 9051 §4.3, §9 (string, nstring, literal)
Security  whatever octets come in: what goes out is one string, and ends where it says
"""

from __future__ import annotations

import re

_PLAIN = re.compile(
    rb"[\x20\x21\x23-\x5b\x5d-\x7e]*\Z"
)  # nothing to quote, nothing that needs a literal
_LITERAL = re.compile(rb"[\x00\r\n\x80-\xff]")
_LONG = 1024  # old clients read a quoted string of a line only


def string(value: bytes) -> bytes:
    """A quoted string, or a literal where that cannot be (8-bit octets, CR, LF; a NUL is left out)."""
    if _PLAIN.match(value) and len(value) <= _LONG:
        return b'"%b"' % value
    if _LITERAL.search(value) or len(value) > _LONG:
        value = value.replace(b"\0", b"")  # RFC 9051 §9: CHAR8 has no NUL
        return b"{%d}\r\n%b" % (len(value), value)
    return b'"%b"' % value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def nstring(value: bytes | None) -> bytes:
    """The same; NIL for None."""
    return b"NIL" if value is None else string(value)
