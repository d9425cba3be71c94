"""A message as text to be searched: header fields and text parts, decoded and folded.

Owns      folded(), header_text_of(), body_text_of(), field_texts()
Limits    PART_OCTETS_MAX of a part are looked at
Errors    none: what cannot be decoded is searched as far as it goes
Standards RFC 9051 §6.4.4 (SEARCH: substrings, any case, decoded), RFC 5051 (i;unicode-casemap)
Bugs      HTML is searched with its tags
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from gateway._native import (
    ENCODING_BASE64,
    ENCODING_QUOTED_PRINTABLE,
    FOUND,
    UNDECIDED,
    Part,
    find_in_ascii,
    find_in_header,
    iter_fields,
    scan_mime,
)
from gateway.mail.structure import (
    contains_ascii,
    decoded_body,
    decoded_text,
    decoded_words,
    header_text,
    parameters,
)

PART_OCTETS_MAX = 16 << 20


def folded(text: str) -> str:
    """Texts that i;unicode-casemap holds to be equal are equal afterwards; so are their parts."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKD", text).casefold()


def field_texts(header: bytes, name: bytes = b"") -> list[str]:
    """The folded values of the fields of that name (any case), of all fields without one."""
    wanted = name.lower()
    return [
        folded(decoded_words(header_text(value)))
        for field, value in iter_fields(header)
        if not wanted or field.lower() == wanted
    ]


def common_field_texts(header: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """The folded values of the fields of these names in UTF-8, with NUL between those of one name."""
    found: dict[str, bytes] = {}
    for field, value in iter_fields(header):
        name = field.lower().decode("latin-1")
        if name in names:
            text = folded(decoded_words(header_text(value))).encode("utf-8", "replace")
            found[name] = found[name] + b"\0" + text if name in found else text
    return found


def header_text_of(header: bytes) -> str:
    """Names and values of all fields, a line each, folded."""
    return "\n".join(
        folded(f"{header_text(name)}: {decoded_words(header_text(value))}")
        for name, value in iter_fields(header)
    )


def body_text_of(content: bytes) -> str:
    """All text parts, decoded and folded; the headers of parts and enclosed messages, too."""
    pieces = []
    for part in scan_mime(content):
        if part.parent >= 0:
            pieces.append(header_text_of(content[part.header_start : part.header_end]))
        if part.media_type.startswith(b"text/"):
            octets = decoded_body(content, part)[:PART_OCTETS_MAX]
            pieces.append(folded(decoded_text(octets, _charset(content, part)[0])))
    return "\n".join(pieces)


# -- is a text in a message? -----------------------------------------------------------------------------------------


class Wanted:
    """A text that is looked for: in what body_text_of() and its like give, most often without making it."""

    __slots__ = ("_octets", "_plain", "text")

    def __init__(self, text: str) -> None:
        self.text = folded(text)
        self._octets = self.text.encode("utf-8", "replace")  # in ASCII nothing else is ever found
        self._plain = bool(self.text) and "\n" not in self.text

    def in_header(self, header: bytes) -> bool:
        """In "name: value" of any field."""
        found = find_in_header(header, self._octets) if self._plain else UNDECIDED
        return found == FOUND or (found == UNDECIDED and self.text in header_text_of(header))

    def in_field(self, header: bytes, name: bytes) -> bool:
        """In a value of the fields of that name (lower case)."""
        found = find_in_header(header, self._octets, name)
        return found == FOUND or (
            found == UNDECIDED and any(self.text in value for value in field_texts(header, name))
        )

    def in_body(self, content: bytes) -> bool:
        """In one of the texts of body_text_of()."""
        if not self._plain:
            return self.text in body_text_of(content)
        for part in scan_mime(content):
            if part.parent >= 0 and self.in_header(content[part.header_start : part.header_end]):
                return True
            if part.media_type.startswith(b"text/") and self._in_part(content, part):
                return True
        return False

    def _in_part(self, content: bytes, part: Part) -> bool:
        charset, is_ascii = _charset(content, part)
        octets, start, end = content, part.body_start, part.body_end
        if part.encoding in _ENCODED:
            octets = decoded_body(content, part)
            start, end = 0, len(octets)
        end = min(end, start + PART_OCTETS_MAX)
        if is_ascii:
            found = find_in_ascii(octets, start, end, self._octets)
            if found != UNDECIDED:
                return found == FOUND
        return self.text in folded(decoded_text(octets[start:end], charset))


_ENCODED = (ENCODING_BASE64, ENCODING_QUOTED_PRINTABLE)


def _charset(content: bytes, part: Part) -> tuple[str, bool]:
    """(charset of a part, whether octets below 128 mean ASCII in it)."""
    field = part.type_field
    return _charset_of(content[field[0] : field[1]]) if field else ("utf-8", True)


@lru_cache(maxsize=512)
def _charset_of(value: bytes) -> tuple[str, bool]:
    _, found = parameters(header_text(value))
    charset = found.get("charset", "utf-8")
    return charset, contains_ascii(charset)
