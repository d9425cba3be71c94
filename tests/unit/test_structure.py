"""Messages as JSON: decoded header fields, parts, names of files."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_mail import real_mail

from gateway._native import scan_mime
from gateway.mail.structure import (
    decoded_body,
    decoded_words,
    parameters,
    parsed,
    section_numbers,
)


def example_message() -> bytes:
    message = EmailMessage()
    message["Subject"] = "Grüße aus Köln"
    message["From"] = "Jörg <joerg@example.org>"
    message.set_content("Hallo Wörld\n", cte="base64")
    message.add_alternative("<p>ü</p>", subtype="html")
    message.add_attachment(
        b"\x00\x01\x02", maintype="application", subtype="pdf", filename="Übersicht.pdf", cid="<1@x>"
    )
    return message.as_bytes().replace(b"\n", b"\r\n")


def test_parsed() -> None:
    result: Any = json.loads(json.dumps(parsed(example_message(), attachments=True)))
    fields = dict(result["headers"])
    assert fields["Subject"] == "Grüße aus Köln"
    assert fields["From"] == "Jörg <joerg@example.org>"
    text, html, pdf = result["parts"]
    assert (text["part"], text["type"], text["charset"]) == ("1.1", "text/plain", "utf-8")
    assert text["text"] == "Hallo Wörld\n" and text["size"] == 13
    assert html["type"] == "text/html" and html["text"].strip() == "<p>ü</p>"
    assert pdf["part"] == "2" and pdf["filename"] == "Übersicht.pdf"
    assert (pdf["disposition"], pdf["content_id"], pdf["size"]) == ("attachment", "1@x", 3)
    assert b64decode(pdf["base64"]) == b"\x00\x01\x02"


def test_attachments_only_on_demand_and_text_within_bounds() -> None:
    result: Any = parsed(example_message(), max_text_octets=5)
    text, _, pdf = result["parts"]
    assert text["text"] == "Hallo" and text["truncated"] is True
    assert "base64" not in pdf and "text" not in pdf


def test_text_as_attachment_is_no_text() -> None:
    result: Any = parsed(b"Content-Disposition: attachment; filename=a.txt\r\n\r\nx", attachments=True)
    (part,) = result["parts"]
    assert part["filename"] == "a.txt" and "text" not in part and part["base64"] == "eA=="


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        # RFC 2047 §8
        ("(=?ISO-8859-1?Q?a?=)", "(a)"),
        ("(=?ISO-8859-1?Q?a?= b)", "(a b)"),
        ("(=?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?b?=)", "(ab)"),
        ("(=?ISO-8859-1?Q?a?=  \r\n =?ISO-8859-1?Q?b?=)", "(ab)"),
        ("(=?ISO-8859-1?Q?a_b?=)", "(a b)"),
        ("=?iso-8859-1?q?gr=FCn?= und =?utf-8?b?YmxhdQ==?=", "grün und blau"),
        # a character cut between two words
        ("=?utf-8?q?gr=C3?= =?utf-8?q?=BCn?=", "grün"),
        # RFC 2231 §5
        ("=?utf-8*de?q?gr=C3=BCn?=", "grün"),
        ("=?utf-8?b?YmxhdQ?=", "blau"),
        ("=?no-such-charset?q?gr=C3=BCn?=", "grün"),
        ("=?punycode?q?abc-?=", "abc-"),
        ("=?rot13?q?abc?=", "abc"),
        ("a =? b ?= =?x?", "a =? b ?= =?x?"),
        ("=?utf-8?q?=FF?=", "\ufffd"),
    ],
)
def test_encoded_words(text: str, decoded: str) -> None:
    assert decoded_words(text) == decoded


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Text/Plain", ("text/plain", {})),
        ('text/plain; charset="utf-8"; Name=x.txt', ("text/plain", {"charset": "utf-8", "name": "x.txt"})),
        ('attachment; filename="a \\"b\\"; c.txt"', ("attachment", {"filename": 'a "b"; c.txt'})),
        ("attachment; filename=a b.txt", ("attachment", {"filename": "a b.txt"})),
        ('attachment; filename="=?utf-8?q?gr=C3=BCn?="', ("attachment", {"filename": "grün"})),
        # RFC 2231 §3, §4, §4.1
        ("attachment; filename*=utf-8'de'gr%C3%BCn.txt", ("attachment", {"filename": "grün.txt"})),
        (
            "attachment; filename*0*=iso-8859-1''gr%FC; filename*1=\"n %C3\"; filename*2*=%2E.txt",
            ("attachment", {"filename": "grün %C3..txt"}),
        ),
        ("attachment; filename=old; filename*=utf-8''new", ("attachment", {"filename": "new"})),
        ("attachment; filename*1=lost", ("attachment", {"filename": ""})),
        (";;; =x; a", ("", {})),
    ],
)
def test_parameters(value: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parameters(value) == expected


def test_section_numbers_of_rfc_9051() -> None:
    """The example of RFC 9051 §6.4.5."""

    def multipart(*parts: bytes, boundary: bytes) -> bytes:
        head = b"Content-Type: multipart/mixed; boundary=" + boundary + b"\r\n\r\n"
        return head + b"".join(
            b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts
        ) + b"--" + boundary + b"--"

    def message(inner: bytes) -> bytes:
        return b"Content-Type: message/rfc822\r\n\r\n" + inner

    plain, image = b"\r\ntext", b"Content-Type: image/gif\r\n\r\nx"
    content = multipart(
        plain,
        b"Content-Type: application/octet-stream\r\n\r\nx",
        message(multipart(plain, b"Content-Type: application/octet-stream\r\n\r\nx", boundary=b"b")),
        multipart(image, message(multipart(plain, multipart(plain, plain, boundary=b"e"), boundary=b"d")),
                  boundary=b"c"),
        message(plain),
        boundary=b"a",
    )
    parts = scan_mime(content)
    inner = {part.parent for part in parts}
    numbers = section_numbers(parts)
    assert [number for index, number in enumerate(numbers) if index not in inner] == [
        "1", "2", "3.1", "3.2", "4.1", "4.2.1", "4.2.2.1", "4.2.2.2", "5.1",
    ]  # fmt: skip
    assert section_numbers(scan_mime(plain)) == ["1"]


def test_damaged_encodings_are_decoded_as_far_as_they_go() -> None:
    for body, decoded in (
        (b"QUJD", b"ABC"),
        (b"QUI", b"AB"),
        (b"QU", b"A"),
        (b"QUJDR", b"ABCD"),
        (b"????", b""),
    ):
        content = b"Content-Transfer-Encoding: base64\r\n\r\n" + body
        assert decoded_body(content, scan_mime(content)[0]) == decoded


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=300)
def test_anything_becomes_json(content: bytes) -> None:
    json.dumps(parsed(content, attachments=True)).encode()
    header = b"Subject: =?utf-8?q?" + content + b"?=\r\nContent-Type: text/plain; a=" + content
    json.dumps(parsed(header)).encode()


@pytest.mark.parametrize(
    "octets",
    [b"=?a?q?", b"=?a?q?x?= ", b"=?a?b?QUJD?=", b";a", b"; a*1=b", b'"\\', b"(", b" ", b"=?"],
)
def test_cost_grows_with_the_size_only(octets: bytes) -> None:
    def seconds(count: int) -> float:
        field = octets * count
        content = b"Subject: " + field + b"\r\nContent-Type: text/plain;" + field + b"\r\n\r\nx"
        start = time.process_time()
        parsed(content)
        return time.process_time() - start

    seconds(1000)
    # 16 times the size; the square would be 256 times the cost
    assert seconds(32000) < 90 * max(seconds(2000), 0.002)


def test_real_mail() -> None:
    for content in real_mail(step=5):
        json.dumps(parsed(content, attachments=True)).encode()
