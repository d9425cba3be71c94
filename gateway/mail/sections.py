"""Where the sections of a message are, and what stands in its parts: BODY[2.1.MIME], BINARY[1], PREVIEW.

Owns      section_range(), cut(), decoded_part(), preview()
Flow      packed facts → part_places() → section_range() → cut(content) → FETCH response
Limits    PREVIEW_CHARACTERS; of a message PREVIEW_OCTETS are looked at
Errors    UnknownEncoding
Standards RFC 9051 §6.4.5.1 (sections), RFC 3516 §4.3 (UNKNOWN-CTE), RFC 8970 §3, §4 (PREVIEW)
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from gateway._native import (
    ENCODING_BASE64,
    ENCODING_BINARY,
    ENCODING_OTHER,
    ENCODING_QUOTED_PRINTABLE,
    scan_mime,
)
from gateway.mail.imap_facts import PartPlace
from gateway.mail.structure import decoded, decoded_text, field_text, parameters

PREVIEW_CHARACTERS = 200  # RFC 8970 §3.2
PREVIEW_OCTETS = 256 * 1024
_TEXT_OCTETS = 16 * 1024  # of a part, decoded

_NOT_BASE64 = bytes(
    set(range(256)).difference(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
)
_UNSEEN = re.compile(
    r"<(style|script|head|title)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)", re.DOTALL | re.I
)
_TAG = re.compile(r"<[^>]*(?:>|\Z)")
_SPACES = re.compile(r"[\s\x00-\x1f\x7f\u200b\u200c\ufeff]+")
_QUOTE = re.compile(r"^>.*$", re.MULTILINE)


class UnknownEncoding(ValueError):
    """The part's Content-Transfer-Encoding is not one that we can undo."""


def section_range(
    places: Sequence[PartPlace], path: Sequence[int], text: bytes = b""
) -> tuple[int, int] | None:
    """(start, end) in the content of that section; None: there is none.

    text: b"" for the part's body, MIME, HEADER or TEXT; HEADER.FIELDS are cut out of HEADER by the caller.
    """
    found = find_part(places, path)
    if found is None:
        return None
    index, is_message = found
    part = places[index]
    if text in (b"", b"MIME") and path:
        return (part.header_start, part.body_start) if text else (part.body_start, part.body_end)
    if not is_message:
        # HEADER and TEXT are those of the message that the part is (RFC 9051 §6.4.5.1)
        if not _encloses_message(places, index):
            return None
        part = places[_children(places, index)[0]]
    if text.startswith(b"HEADER"):
        return part.header_start, part.body_start
    if text == b"TEXT":
        return part.body_start, part.body_end
    return part.header_start, part.body_end


def find_part(places: Sequence[PartPlace], path: Sequence[int]) -> tuple[int, bool] | None:
    """(its index, whether a message is meant and not its body) of the part with these numbers."""
    index, is_message = 0, True
    for number in path:
        if not is_message and _encloses_message(places, index):
            index, is_message = _children(places, index)[0], True
        children = [] if _encloses_message(places, index) else _children(places, index)
        if children:
            if number > len(children):
                return None
            index, is_message = children[number - 1], False
        elif is_message and number == 1:  # a message without parts: its body is number 1
            is_message = False
        else:
            return None
    return index, is_message


def _children(places: Sequence[PartPlace], index: int) -> list[int]:
    return [at for at in range(index + 1, len(places)) if places[at].parent == index]


def _encloses_message(places: Sequence[PartPlace], index: int) -> bool:
    """A message begins where the body does; before a part of a multipart comes at least its boundary."""
    children = _children(places, index)
    return len(children) == 1 and places[children[0]].header_start == places[index].body_start


def cut(header: bytes, body: bytes, start: int, end: int) -> bytes | memoryview:
    """Octets start to end of header and body, which follow each other."""
    split = len(header)
    if start >= split:
        return memoryview(body)[start - split : end - split]
    if end <= split:
        return header[start:end]
    return header[start:] + body[: end - split]


def part_encoding(places: Sequence[PartPlace], path: Sequence[int]) -> int:
    """One of ENCODING_*, of the part with these numbers.  Raises UnknownEncoding (RFC 3516 §4.3)."""
    found = find_part(places, path)
    if not path or found is None:
        return ENCODING_BINARY  # the whole message has no encoding of its own
    encoding = places[found[0]].encoding
    if encoding == ENCODING_OTHER:
        raise UnknownEncoding("The part has an unknown Content-Transfer-Encoding")
    return encoding


class PartDecoder:
    """Undoes a Content-Transfer-Encoding slice by slice."""

    __slots__ = ("_encoding", "_ended", "_rest")

    def __init__(self, encoding: int) -> None:
        self._encoding = encoding
        self._rest = b""
        self._ended = False  # base64 padding was seen

    def feed(self, octets: bytes) -> bytes:
        """What can be decoded so far."""
        if self._encoding == ENCODING_BASE64:
            if self._ended:
                return b""
            octets = self._rest + octets.translate(None, _NOT_BASE64)
            self._ended = b"=" in octets
            whole = len(octets) if self._ended else len(octets) & ~3
        elif self._encoding == ENCODING_QUOTED_PRINTABLE:
            octets = self._rest + octets
            whole = octets.rfind(b"\n") + 1
        else:
            return octets
        self._rest = octets[whole:]
        return decoded(octets[:whole], self._encoding)

    def finish(self) -> bytes:
        """The rest."""
        rest, self._rest = self._rest, b""
        return decoded(rest, self._encoding)


def preview(content: bytes) -> str:
    """The beginning of what the message says, on one line; "" when it has no text."""
    content = content[:PREVIEW_OCTETS]
    fallback = ""
    for part in scan_mime(content):
        if part.media_type not in (b"text/plain", b"text/html"):
            continue
        main, found = parameters(field_text(content, part.type_field))
        octets = content[part.body_start : min(part.body_end, part.body_start + 4 * _TEXT_OCTETS)]
        text = decoded_text(
            decoded(octets, part.encoding)[:_TEXT_OCTETS], found.get("charset", "utf-8")
        )
        if main == "text/html":
            text = html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text)))
        words = _shortened(_QUOTE.sub("", text)) or _shortened(text)
        if words and main != "text/html":
            return words
        fallback = fallback or words
    return fallback


def _shortened(text: str) -> str:
    return _SPACES.sub(" ", text).strip()[:PREVIEW_CHARACTERS].rstrip()
