"""Headers with UTF-8 for readers that do not know it: what POP3 clients get that did not say UTF8.

    Owns      surrogate_header()
    Limits    the header as it is given; each field is rewritten on its own
    Errors    none: a field that cannot be understood is passed on as it is
    Blocking  never
    Standards RFC 6858 §2 (simple downgrade), RFC 2047
    Bugs      the surrogate is longer or shorter than the message that LIST counted
"""

from __future__ import annotations

import re
from email.header import Header
from email.utils import formataddr, getaddresses

_FIELD = re.compile(rb"^[^\r\n:]+:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*\r?\n?", re.MULTILINE)
_ADDRESSES = frozenset(
    (b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc", b"resent-from", b"resent-sender", b"resent-to",
     b"resent-cc", b"resent-bcc", b"return-path", b"disposition-notification-to")
)  # fmt: skip
_FOLD = re.compile(r"\r?\n(?=[ \t])")


def surrogate_header(header: bytes) -> bytes:
    """The header section with every field that has UTF-8 in it rewritten in ASCII."""
    if header.isascii():
        return header
    return _FIELD.sub(lambda match: _field(match[0]), header)


def _field(octets: bytes) -> bytes:
    if octets.isascii():
        return octets
    name, _, value = octets.partition(b":")
    try:
        text = _FOLD.sub("", value.decode()).strip()
    except UnicodeDecodeError:  # some older charset: what every client has to guess at
        return octets
    found = getaddresses([text]) if name.strip().lower() in _ADDRESSES else []
    if found and all(address for _, address in found):
        encoded = ",\r\n ".join(_mailbox(*pair) for pair in found)
    else:
        encoded = Header(text, "utf-8", header_name=name.decode("ascii", "replace")).encode(linesep="\r\n")
    return name + b": " + encoded.encode() + b"\r\n"


def _mailbox(phrase: str, address: str) -> str:
    if address.isascii():
        return formataddr((phrase, address), "utf-8")
    # RFC 6858 §2.1: there is nobody to answer to but an empty group whose name shows who it was.
    text = f"{phrase} <{address}>" if phrase else address
    return Header(text, "utf-8").encode(linesep="\r\n") + " :;"
