"""Pieces of responses: tagged lines, names of mailboxes.

Owns      tagged(), in_progress(), mailbox_octets(), astring()
Security  whatever text goes in, what goes out is one line
Standards RFC 9051 §7.1 (status responses, resp-text), §5.1 (names), §4.3 (strings); RFC 9585 (INPROGRESS)
"""

from __future__ import annotations

import re

from gateway._native import encode_utf7, imap_string

# RFC 9051 §9: ATOM-CHAR and "]"; "NIL" alone would be something else to some clients.
_ATOM = re.compile(rb"(?!NIL\Z)[A-Za-z0-9!#$&'+,\-./:;<=>?@^_`|~\]]+", re.IGNORECASE)


def tagged(tag: bytes, status: bytes, text: str, code: bytes = b"") -> bytes:
    """The line that ends a command; without a tag (none could be read) it is untagged."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if " " <= c <= "~" else "?" for c in text)
    if code:
        return b"%b %b [%b] %b\r\n" % (tag or b"*", status, code, text.encode())
    return b"%b %b %b\r\n" % (tag or b"*", status, text.encode())


def in_progress(tag: bytes, done: int, goal: int) -> bytes:
    """The response code for a command that takes long; goal: 0 when it is not known."""
    # RFC 9585 §4: the goal is larger than what is done
    state = b"%d %d" % (min(done, goal - 1), goal) if goal else b"NIL NIL"
    return b"INPROGRESS (%b %b)" % (imap_string(tag), state)


def mailbox_octets(name: str, utf8: bool) -> bytes:
    """The name as a string of the wire: UTF-8 for a client that enabled it, else modified UTF-7."""
    if not utf8:
        return imap_string(encode_utf7(name))
    octets = name.encode()
    if octets.isascii():
        return imap_string(octets)
    return b'"' + octets.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'  # RFC 6855 §3


def astring(octets: bytes) -> bytes:
    """An atom where that can be, as clients expect where they seldom see a string; else a string."""
    return octets if _ATOM.fullmatch(octets) else imap_string(octets)
