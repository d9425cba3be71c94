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

from gateway._native import iter_fields, scan_mime
from gateway.mail.structure import (
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
        if not part.media_type.startswith(b"text/"):
            continue
        field = part.type_field
        _, found = parameters(header_text(content[field[0] : field[1]])) if field else ("", {})
        octets = decoded_body(content, part)[:PART_OCTETS_MAX]
        pieces.append(folded(decoded_text(octets, found.get("charset", "utf-8"))))
    return "\n".join(pieces)
