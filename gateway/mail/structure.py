"""A message as people and programs read it: header fields and parts, decoded.

    Owns      parsed() for webhooks; decoded_body(), decoded(), field_text(), decoded_words(), parameters(),
              section_numbers()
    Limits    parts and depth are the scanner's; text beyond max_text_octets is cut and marked so
    Errors    none: what is damaged is decoded as far as it goes, with U+FFFD for what is lost
    Security  charsets are the sender's to choose: codecs that are no charsets, or whose cost
              grows with the square of the input, are refused
    Standards RFC 2045 §5, RFC 2047, RFC 2183, RFC 2231, RFC 6532, RFC 9051 §6.4.5 (section numbers)
"""

from __future__ import annotations

import codecs
import re
from binascii import a2b_qp, b2a_base64
from functools import lru_cache

from gateway._native import (
    ENCODING_BASE64,
    ENCODING_QUOTED_PRINTABLE,
    Part,
    decode_base64,
    iter_fields,
    scan_mime,
)

MAX_TEXT_OCTETS = 1_048_576

NO_CHARSETS = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}

# RFC 2047 §2 encoded-word; white space between two of them does not count (§6.2)
_ENCODED_WORD = re.compile(r"=\?([^?\s*]{1,40})(?:\*[^?\s]*)?\?([bBqQ])\?([^?\s]*)\?=")
_BETWEEN_WORDS = re.compile(r"(\?=)[ \t\r\n]+(?==\?[^?\s]{1,60}\?[bBqQ]\?[^?\s]*\?=)")
# RFC 2045 §5.1 parameter
_PARAMETER = re.compile(
    r';[ \t\r\n]*([^=;\s"]+)[ \t\r\n]*=[ \t\r\n]*(?:"((?:[^"\\]|\\.)*)"?|([^;]*))', re.DOTALL
)
_CONTINUED = re.compile(r"([^*]+)(?:\*(\d{1,3}))?(\*)?\Z")  # RFC 2231 §3, §4


@lru_cache(maxsize=128)
def _codec(charset: str) -> str:
    """The name of the codec for a charset; UTF-8 for what we do not know or do not want."""
    try:
        name = codecs.lookup(charset).name
        b"text".decode(name, "replace")  # LookupError for codecs that are not text encodings
    except (LookupError, ValueError):
        return "utf-8"
    if name == "ascii" or name in NO_CHARSETS:
        return "utf-8"
    return name


@lru_cache(maxsize=128)
def contains_ascii(charset: str) -> bool:
    """Octets below 128 mean ASCII in it, wherever they stand."""
    name = _codec(charset)
    if name.startswith(("iso2022", "hz")):  # escape sequences switch to other characters
        return False
    return bytes(range(128)).decode(name, "replace") == bytes(range(128)).decode()


def decoded_text(octets: bytes, charset: str) -> str:
    """octets as text; what is not of the charset (or of UTF-8, when unknown) becomes U+FFFD."""
    return octets.decode(_codec(charset), "replace")


def header_text(value: bytes) -> str:
    """A field's octets as text: UTF-8 (RFC 6532), else Latin-1, which old mail means most often."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def decoded_words(text: str) -> str:
    """text with its encoded-words decoded (RFC 2047)."""
    if "=?" not in text:
        return text
    text = _BETWEEN_WORDS.sub(r"\1", text)
    pieces: list[str] = []
    pending: list[bytes] = []  # neighbours of one charset are decoded together: a character may be cut between
    pending_charset = ""
    at = 0
    for match in _ENCODED_WORD.finditer(text):
        charset, encoding, encoded = match.groups()
        charset = charset.lower()
        if pending_charset and (match.start() > at or charset != pending_charset):
            pieces.append(decoded_text(b"".join(pending), pending_charset))
            pending = []
        pieces.append(text[at : match.start()])
        octets = encoded.encode(errors="replace")
        if encoding in "bB":
            pending.append(_base64(octets))
        else:
            pending.append(a2b_qp(octets, header=True))  # §4.2 (2): "_" is SP
        pending_charset = charset
        at = match.end()
    if pending_charset:
        pieces.append(decoded_text(b"".join(pending), pending_charset))
    pieces.append(text[at:])
    return "".join(pieces)


def _base64(octets: bytes) -> bytes:
    """The octets of base64 that may lack its end."""
    for missing in (b"", b"==", b"A=="):
        try:
            found: bytes = decode_base64(octets + missing)
        except ValueError:
            continue
        return found
    return b""


def _percent_decoded(value: str) -> bytes:
    return re.sub(
        rb"%([0-9A-Fa-f]{2})", lambda m: bytes([int(m[1], 16)]), value.encode(errors="replace")
    )


def parameters(value: str) -> tuple[str, dict[str, str]]:
    """A Content-Type or Content-Disposition value as (its first word, {attribute: value}), lower case.

    Continuations and charsets of RFC 2231 are resolved, encoded-words too (which do not belong here,
    but are what many programs send).
    """
    main, _, _ = value.partition(";")
    plain: dict[str, str] = {}
    continued: dict[str, dict[int, tuple[str, bool]]] = {}
    for name, quoted, bare in _PARAMETER.findall(value):
        text = re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL) if quoted else bare.strip()
        match = _CONTINUED.match(name.lower())
        if match is None:
            continue
        attribute, number, extended = match.groups()
        if number is None and not extended:
            plain.setdefault(attribute, decoded_words(text))
        else:
            pieces = continued.setdefault(attribute, {})
            pieces.setdefault(int(number or 0), (text, bool(extended)))
    for attribute, pieces in continued.items():
        plain[attribute] = _joined(pieces)
    return main.strip().lower(), plain


def _joined(pieces: dict[int, tuple[str, bool]]) -> str:
    """RFC 2231 §4.1: the first piece may name the charset; each says whether it is percent-encoded."""
    charset = "utf-8"
    octets = b""
    for number in range(len(pieces)):
        if number not in pieces:
            break
        text, extended = pieces[number]
        if extended and number == 0 and text.count("'") >= 2:
            charset, _, text = text.split("'", 2)
        octets += _percent_decoded(text) if extended else text.encode(errors="replace")
    return decoded_text(octets, charset)


def decoded_body(content: bytes, part: Part) -> bytes:
    """The body with its Content-Transfer-Encoding undone."""
    return decoded(content[part.body_start : part.body_end], part.encoding)


def decoded(octets: bytes, encoding: int) -> bytes:
    """octets without that encoding (one of ENCODING_*), as far as they are encoded well."""
    if encoding == ENCODING_BASE64:
        return _base64(octets)
    if encoding == ENCODING_QUOTED_PRINTABLE:
        return a2b_qp(_without_padding(octets))
    return octets


def _without_padding(octets: bytes) -> bytes:
    """Lines without white space at their ends, which was added on the way (RFC 2045 §6.7 rule 3)."""
    if b" \r\n" not in octets and b"\t\r\n" not in octets and octets[-1:] not in (b" ", b"\t"):
        return octets
    lines = octets.split(b"\r\n")
    return b"\r\n".join([line.rstrip(b" \t") for line in lines])


def section_numbers(parts: list[Part]) -> list[str]:
    """The number of each part, as IMAP counts (RFC 9051 §6.4.5): "1", "2.1"; "" is the whole message."""
    numbers: list[str] = []
    children = [0] * len(parts)
    has_children = [False] * len(parts)
    for part in parts:
        if part.parent >= 0:
            has_children[part.parent] = True
    for index, part in enumerate(parts):
        if part.parent < 0:
            numbers.append("" if has_children[index] else "1")
            continue
        above = numbers[part.parent]
        if parts[part.parent].media_type.startswith(b"message/"):
            # an enclosed message has no number of its own; without parts, its body is number 1
            is_multipart = has_children[index] and part.media_type.startswith(b"multipart/")
            numbers.append(above if is_multipart else f"{above}.1".lstrip("."))
        else:
            children[part.parent] += 1
            numbers.append(f"{above}.{children[part.parent]}".lstrip("."))
    return numbers


def field_text(content: bytes, field: tuple[int, int] | None) -> str:
    """The unfolded value at that place, as Part has it; "" for None."""
    if field is None:
        return ""
    return header_text(re.sub(rb"\r?\n", b"", content[field[0] : field[1]])).strip()


def _described(
    content: bytes, part: Part, number: str, attachments: bool, max_text_octets: int
) -> dict[str, object]:
    """One leaf part as parsed() lists it."""
    _, type_parameters = parameters(field_text(content, part.type_field))
    disposition, disposition_parameters = parameters(field_text(content, part.disposition_field))
    body = decoded_body(content, part)
    described: dict[str, object] = {
        "part": number,
        "type": part.media_type.decode(errors="replace"),
        "charset": type_parameters.get("charset"),
        # RFC 2183 §2.3; "name" of Content-Type is its forerunner
        "filename": disposition_parameters.get("filename") or type_parameters.get("name"),
        "disposition": disposition or None,
        "content_id": field_text(content, part.id_field).strip("<>") or None,
        "size": len(body),
    }
    if part.media_type.startswith(b"text/") and disposition != "attachment":
        described["text"] = decoded_text(
            body[:max_text_octets], type_parameters.get("charset", "utf-8")
        )
        if len(body) > max_text_octets:
            described["truncated"] = True
    elif attachments:
        described["base64"] = b2a_base64(body, newline=False).decode()
    return described


def parsed(
    content: bytes, *, attachments: bool = False, max_text_octets: int = MAX_TEXT_OCTETS
) -> dict[str, object]:
    """The message as JSON can carry it: {"headers": [[name, value]], "parts": [{…}]}.

    headers are those of the message itself, in their order, unfolded and decoded.  parts are the leaves:
    part (section number), type, charset, filename, disposition, content_id, size (octets, decoded); text
    for text that is not an attachment (with truncated when it was cut), else base64 when attachments is
    set.
    """
    parts = scan_mime(content)
    inner = {part.parent for part in parts}
    header = memoryview(content)[: parts[0].header_end]
    return {
        "headers": [
            [header_text(name), decoded_words(header_text(value))]
            for name, value in iter_fields(header)
        ],
        "parts": [
            _described(content, part, number, attachments, max_text_octets)
            for index, (part, number) in enumerate(zip(parts, section_numbers(parts), strict=True))
            if index not in inner
        ],
    }
