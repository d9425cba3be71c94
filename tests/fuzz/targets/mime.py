"""MIME structure and header fields: the model's, cut anywhere, with and without SIMD; leaves as in Python's email."""

from __future__ import annotations

import email.policy
import re
from email import message_from_bytes
from email.message import EmailMessage, Message

from gateway._native import MimeScanner, Part, find_field, iter_fields, scan_mime
from tests.fuzz.octets import cut, options
from tests.native import model_mime

MAX_OCTETS = 3000  # beyond what is kept of a field
RUNS = 2_500
WORDS = (
    b"Content-Type: ",
    b"multipart/mixed",
    b"multipart/digest",
    b"message/rfc822",
    b"; boundary=",
    b"Content-Transfer-Encoding: ",
    b"quoted-printable",
    b"base64",
    b"8bit",
    b"Content-Disposition: ",
    b"Content-ID: ",
    b"\n--a\n",
    b"\n--a--\n",
    b"\r\n",
    b"From ",
)

FIELDS = {
    "type_field": b"content-type",
    "encoding_field": b"content-transfer-encoding",
    "disposition_field": b"content-disposition",
    "id_field": b"content-id",
}
# type/subtype and parameters without quoted-pairs
_TOKEN = r"[!#$%&'*+.^_`{|}~\w-]{1,70}"
WELL_FORMED = re.compile(
    rf'{_TOKEN}/{_TOKEN}(?:\s*;\s*{_TOKEN}=(?:{_TOKEN}|"[^"\\\s]*"))*', re.ASCII
)


def seeds() -> list[bytes]:
    inner = EmailMessage()
    inner.set_content("text")
    inner.add_alternative("<p>text</p>", subtype="html")
    outer = EmailMessage()
    outer["Subject"] = "=?utf-8?q?f=C3=BCr?="
    outer.set_content("für", cte="8bit")
    outer.add_attachment(inner)
    outer.add_attachment(b"\0\1" * 9, maintype="a", subtype="b", filename="x")
    found = [
        outer.as_bytes(),
        inner.as_bytes(policy=email.policy.SMTP),
        b"Content-Type: multipart/digest; boundary=a\n\n--a\n\nSubject: x\n\nbody\n--a--\nend",
        b'Content-Type: multipart/x; (c) boundary="a\\b" ; x=y\r\n\r\n--ab \r\n\r\n--ab--',
    ]
    long = b"Content-Transfer-Encoding: (" + b"c" * 2040 + b") base64\r\n\r\n"
    found += [long, b"Content-Type: multipart/x; a=" + b"b" * 2040 + b"; boundary=c\n\n--c\n"]
    return [
        bytes([how, limits]) + mail for mail in found for how in (0, 1, 90) for limits in (0, 9)
    ]


def check(data: bytes) -> None:
    (how, limits), content = options(data, 2)
    bounds = {}
    if limits:
        bounds = {"max_depth": 1 + limits % 8, "max_parts": 1 + limits // 8}
    expected = modelled(content, **bounds)
    for simd in (True, False):
        scanner = MimeScanner(simd=simd, **bounds)
        for piece in cut(content, how):
            scanner.feed(piece)
        assert [described(part) for part in scanner.close()] == expected, f"simd={simd}"
    check_fields(content)
    if not limits:
        compare_with_the_standard_library(content)


def described(part: Part) -> tuple[object, ...]:
    return (
        part.media_type,
        part.encoding,
        part.parent,
        part.depth,
        (part.header_start, part.header_end, part.body_start, part.body_end),
        tuple(getattr(part, field) for field in FIELDS),
        (part.lines, part.eight_bit, part.header_eight_bit),
    )


def modelled(content: bytes, **bounds: int) -> list[tuple[object, ...]]:
    def high(start: int, end: int) -> int:
        return sum(octet > 127 for octet in content[start:end])

    return [
        (
            part.media_type,
            part.encoding,
            part.parent,
            part.depth,
            (part.header_start, part.header_end, part.body_start, part.body_end),
            tuple(part.fields.get(name) for name in FIELDS.values()),
            (
                content.count(b"\n", part.body_start, part.body_end),
                high(part.body_start, part.body_end),
                high(part.header_start, part.header_end),
            ),
        )
        for part in model_mime.Model(content, **bounds).parts
    ]


def check_fields(content: bytes) -> None:
    fields = model_mime.fields_of(content)
    assert iter_fields(content) == fields
    for name, _ in fields:
        first = next(value for other, value in fields if other.lower() == name.lower())
        assert find_field(content, name.swapcase()) == first


def compare_with_the_standard_library(content: bytes) -> None:
    """Where email sees nothing wrong and knows the same line ends, its leaves are ours."""
    if not content.isascii() or b"\r" in content.replace(b"\r\n", b"") or b"\0" in content:
        return
    message = message_from_bytes(content)
    if any(explained(part) for part in message.walk()):
        return
    parts = scan_mime(content)
    inner = {part.parent for part in parts}
    found = [
        (part.media_type.decode(), content[part.body_start : part.body_end].decode())
        for index, part in enumerate(parts)
        if index not in inner
    ]
    leaves = [
        (part.get_content_type(), part.get_payload())
        for part in message.walk()
        if not part.is_multipart()
    ]
    assert found == leaves


def explained(part: Message[str, str]) -> bool:
    """What email reads in another way, and why that is no fault of ours."""
    content_type = str(part.get("content-type", "text/plain"))
    media_type = part.get_content_type()
    return bool(
        part.defects
        # ... and fields whose name alone is longer than what is kept of a line
        or any(len(name) >= model_mime.KEPT for name in part)
        # email knows neither comments nor tokens: it makes something of any value (RFC 2045 §5.1)
        or not WELL_FORMED.fullmatch(content_type)
        # ... and reads the body of every message/… as a message, encoded or not
        or (media_type.startswith("message/") and media_type != "message/rfc822")
        or (media_type == "message/rfc822" and "content-transfer-encoding" in part)
    )
