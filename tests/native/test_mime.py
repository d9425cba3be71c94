"""The MIME scanner against its model: structure, offsets and limits, whatever the slices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from email import message_from_bytes
from email.message import EmailMessage, Message
from typing import Any

import model_mime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from real_mail import real_mail

from gateway._native import (
    ENCODING_7BIT,
    ENCODING_8BIT,
    ENCODING_BASE64,
    ENCODING_BINARY,
    ENCODING_OTHER,
    ENCODING_QUOTED_PRINTABLE,
    MimeScanner,
    find_field,
    iter_fields,
    scan_mime,
)

Described = tuple[Any, ...]

FIELDS = ("type", "encoding", "disposition", "id")
FIELD_NAMES = (
    b"content-type",
    b"content-transfer-encoding",
    b"content-disposition",
    b"content-id",
)

# Lines that mean something to the scanner, put together at random below.
LINES = [
    b"",
    b"",
    b"--a",
    b"--a",
    b"--a--",
    b"--b",
    b"--b--",
    b"--a \t",
    b"--a-- ",
    b"--ab",
    b"--a-",
    b"-",
    b"--",
    b"-- ",
    b"---",
    b"Subject: x",
    b"Content-Type: multipart/mixed; boundary=a",
    b"Content-Type: multipart/mixed; boundary=a",
    b"Content-type: multipart/alternative;\r\n\tboundary = \"b\"",
    b"CONTENT-TYPE: Multipart/Digest; charset=x; boundary=\"a\" (comment; boundary=b)",
    b"Content-Type: multipart/mixed; boundary=\"a\\\"q; \\b\"",
    b"--a\"q; b",
    b"Content-Type: multipart/mixed",
    b"Content-Type: multipart/mixed; boundary=\"\"",
    b"Content-Type: message/rfc822",
    b"Content-Type: message/global",
    b"Content-Type: text/HTML; charset=utf-8",
    b"Content-Type: (nested (comment\\)) text / plain ; x=y",
    b"Content-Type: text",
    b"Content-Type:",
    b"Content-Transfer-Encoding: base64",
    b"Content-Transfer-Encoding: 8BIT",
    b"Content-Transfer-Encoding: x-strange",
    b"Content-Transfer-Encoding : quoted-printable (yes)",
    b"Content-Disposition: attachment;\n filename=x",
    b"Content-ID: <1@x>",
    b"Content-Id: <2@x>",
    b"Content-Foo: x",
    b" continued",
    b"\tboundary=b",
    b"no field at all",
    b": no name",
    b"From someone Mon",
    b"\xe4\xf6\xfc\xff",
    b"x\ry",
    b"x" * 40,
    b"x\0y",
]

content_strategy = st.lists(
    st.tuples(st.sampled_from(LINES), st.sampled_from([b"\r\n", b"\r\n", b"\n"])), max_size=24
).flatmap(
    lambda lines: st.sampled_from(
        [
            b"".join(line + end for line, end in lines),
            b"Content-Type: multipart/mixed; boundary=a\n\n" + b"".join(a + b for a, b in lines),
            b"\r\n".join(line for line, _ in lines),
        ]
    )
)


def described(parts: Sequence[Any]) -> list[Described]:
    return [
        (
            part.media_type,
            part.encoding,
            part.parent,
            part.depth,
            (part.header_start, part.header_end, part.body_start, part.body_end),
            tuple(getattr(part, f"{name}_field") for name in FIELDS),
            (part.lines, part.eight_bit, part.header_eight_bit),
        )
        for part in parts
    ]


def modelled(content: bytes, **limits: int) -> list[Described]:
    def high(start: int, end: int) -> int:
        return sum(octet > 127 for octet in content[start:end])

    return [
        (
            part.media_type,
            part.encoding,
            part.parent,
            part.depth,
            (part.header_start, part.header_end, part.body_start, part.body_end),
            tuple(part.fields.get(name) for name in FIELD_NAMES),
            (
                content.count(b"\n", part.body_start, part.body_end),
                high(part.body_start, part.body_end),
                high(part.header_start, part.header_end),
            ),
        )
        for part in model_mime.Model(content, **limits).parts
    ]


def scanned(slices: Sequence[bytes], **options: Any) -> list[Described]:
    scanner = MimeScanner(**options)
    for piece in slices:
        scanner.feed(piece)
    return described(scanner.close())


@given(content_strategy)
@settings(deadline=None, max_examples=600)
@example(b"")
@example(b"\n")
@example(b"Content-Type: message/rfc822\n")
@example(b"Content-Type: multipart/digest; boundary=a\n\n--a\nSubject: x\n--a\n\n--a--\n")
@example(b"From x\nFrom y\n")
@example(b"Content-Type: multipart/mixed; boundary=a\n\n--a\r\n\r\n--a\n--a--\n")
@example(b"Content-Type: multipart/x; boundary=a\n\n--a\nContent-Type: multipart/x; boundary=b\n\n--b\n--a")
@example(b"Content-Type: multipart/digest; boundary=a\n\n--a\n\nSubject: x\n\nbody\n--a--\n")
def test_equals_the_model(content: bytes) -> None:
    expected = modelled(content)
    assert scanned([content]) == expected
    assert scanned([content], simd=False) == expected


@given(content_strategy)
@settings(deadline=None, max_examples=60)
def test_every_cut_gives_the_same(content: bytes) -> None:
    whole = scanned([content])
    for at in range(len(content) + 1):
        assert scanned([content[:at], content[at:]]) == whole
    assert scanned([content[i : i + 1] for i in range(len(content))]) == whole


@given(content_strategy, st.lists(st.integers(0, 2000), max_size=12), st.booleans())
@settings(deadline=None, max_examples=200)
def test_any_slices_give_the_same(content: bytes, cuts: list[int], simd: bool) -> None:
    cuts = sorted({cut for cut in cuts if cut < len(content)})
    slices = [content[a:b] for a, b in itertools.pairwise([0, *cuts, len(content)])]
    assert scanned(slices, simd=simd) == scanned([content])


@given(content_strategy, st.integers(1, 4), st.integers(1, 6))
@settings(deadline=None, max_examples=200)
def test_limits_equal_the_model(content: bytes, max_depth: int, max_parts: int) -> None:
    limits = {"max_depth": max_depth, "max_parts": max_parts}
    found = scanned([content], **limits)
    assert found == modelled(content, **limits)
    assert len(found) <= max_parts
    assert all(part[3] < max_depth for part in found)


@pytest.mark.parametrize("simd", [True, False])
@pytest.mark.parametrize("offset", range(0, 70, 3))
def test_delimiters_at_every_place_of_a_block(simd: bool, offset: int) -> None:
    body = b"x" * offset + b"\n--\n-\n--b\n" + b"\xff" * offset + b"\n\n--b--\n" + b"y" * offset
    content = b"Content-Type: multipart/mixed; boundary=b\n\n" + body
    assert scanned([content], simd=simd) == modelled(content)
    for at in range(len(content)):
        assert scanned([content[:at], content[at:]], simd=simd) == modelled(content)


def test_invariants_of_nesting() -> None:
    content = (
        b"Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n"
        b"Content-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n--o\r\n\r\n--o--\r\n"
    )
    parts = scan_mime(content)
    for part in parts[1:]:
        above = parts[part.parent]
        assert above.body_start <= part.header_start <= part.header_end
        assert part.header_end <= part.body_start <= part.body_end <= above.body_end


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (b"7bit", ENCODING_7BIT),
        (b"", ENCODING_7BIT),
        (b"8bit", ENCODING_8BIT),
        (b" Binary ", ENCODING_BINARY),
        (b"QUOTED-printable;", ENCODING_QUOTED_PRINTABLE),
        (b"(c) base64", ENCODING_BASE64),
        (b"uuencode", ENCODING_OTHER),
    ],
)
def test_encodings(value: bytes, encoding: int) -> None:
    assert scan_mime(b"Content-Transfer-Encoding:" + value + b"\r\n\r\n")[0].encoding == encoding


def test_boundary_of_70_octets_is_the_longest() -> None:
    for length, count in ((70, 2), (71, 1)):
        boundary = b"b" * length
        content = b"Content-Type: multipart/x; boundary=" + boundary + b"\n\n--" + boundary + b"\n\nx"
        scanner = MimeScanner()
        scanner.feed(content)
        assert len(scanner.close()) == count
        assert scanner.limited == (count == 1)


def test_limits_are_told() -> None:
    nested = b"".join(
        b"Content-Type: multipart/x; boundary=b%d\n\n--b%d\n" % (i, i) for i in range(50)
    )
    scanner = MimeScanner(max_depth=5)
    scanner.feed(nested)
    assert len(scanner.close()) == 5
    assert scanner.limited

    scanner = MimeScanner(max_parts=10)
    scanner.feed(b"Content-Type: multipart/x; boundary=b\n\n" + b"--b\n\n" * 100 + b"--b--\n")
    assert len(scanner.close()) == 10
    assert scanner.limited

    scanner = MimeScanner(max_header_octets=100)
    scanner.feed(b"X: " + b"y" * 200 + b"\nContent-Type: text/html\n\nbody")
    (part,) = scanner.close()
    assert part.media_type == b"text/plain" and part.body_end - part.body_start == 4
    assert scanner.limited


def test_endless_lines_take_no_memory() -> None:
    scanner = MimeScanner()
    block = b"x" * 65536
    scanner.feed(b"Content-Type: multipart/x; boundary=b\r\nSubject: ")
    for _ in range(64):
        scanner.feed(block)
    scanner.feed(b"\r\n\r\n--b")
    for _ in range(64):
        scanner.feed(b" " * 65536)
    scanner.feed(b"\r\n--b\r\n\r\nx\r\n--b--")
    parts = scanner.close()
    assert [part.media_type for part in parts] == [b"multipart/x", b"text/plain"]
    assert parts[1].body_end - parts[1].body_start == 1


@pytest.mark.parametrize("limits", [{"max_depth": 0}, {"max_depth": 999}, {"max_parts": 0}])
def test_limits_out_of_range(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_"):
        MimeScanner(**limits)


def test_any_buffer_and_close_once() -> None:
    content = b"Subject: x\r\n\r\nbody"
    scanner = MimeScanner()
    for kind in (memoryview, bytearray):
        scanner.feed(kind(content))
    assert scanner.close()[0].body_end == 2 * len(content)
    assert scanner.close()[0].body_end == 2 * len(content)
    with pytest.raises(RuntimeError, match="after close"):
        scanner.feed(b"")
    with pytest.raises(TypeError):
        MimeScanner().feed("text")


@given(content_strategy)
@settings(deadline=None, max_examples=300)
def test_fields_equal_the_model(content: bytes) -> None:
    expected = model_mime.fields_of(content)
    assert iter_fields(content) == expected
    assert iter_fields(memoryview(content)) == expected
    for name, _ in expected:
        first = next(value for other, value in expected if other.lower() == name.lower())
        assert find_field(content, name.swapcase()) == first
    assert find_field(content, b"Not-There") is None


def test_unfolding() -> None:
    header = b"A:\r\n\r\n"
    assert iter_fields(header) == [(b"A", b"")]
    assert find_field(b"A: b\r\n\tc\n  d \r\nB: e", b"a") == b"b\tc  d"
    assert find_field(b"A: b\r\n \r\n c\r\n", b"A") == b"b  c"
    assert find_field(b"A: b\r\n\r\nB: body", b"B") is None


# -- the standard library's parser as second opinion -----------------------------------------------


def leaves(message: Message[str, str]) -> list[tuple[str, str]]:
    return [
        (part.get_content_type(), part.get_payload())  # type: ignore[misc]
        for part in message.walk()
        if not part.is_multipart()
    ]


def made_messages() -> list[bytes]:
    plain = EmailMessage()
    plain["Subject"] = "plain"
    plain.set_content("one\ntwo\n")
    mixed = EmailMessage()
    mixed["Subject"] = "mixed"
    mixed.set_content("text")
    mixed.add_alternative("<p>text</p>", subtype="html")
    mixed.add_attachment(b"\x00\x01" * 99, maintype="application", subtype="octet-stream")
    enclosing = EmailMessage()
    enclosing.set_content("see below")
    enclosing.add_attachment(mixed)
    enclosing.add_attachment("more\n", filename="x.txt")
    return [message.as_bytes() for message in (plain, mixed, enclosing)]


@pytest.mark.parametrize("content", made_messages())
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_agrees_with_the_standard_library(content: bytes, newline: bytes) -> None:
    content = content.replace(b"\n", newline)
    parts = scan_mime(content)
    inner = {part.parent for part in parts}
    found = [
        (part.media_type.decode(), content[part.body_start : part.body_end].decode())
        for index, part in enumerate(parts)
        if index not in inner
    ]
    assert found == leaves(message_from_bytes(content))


def test_real_mail() -> None:
    """Every part as the model finds it; leaves as the standard library does where it sees no defect."""
    compared = 0
    for content in real_mail(step=5):
        parts = scan_mime(content)
        assert described(parts) == modelled(content)
        message = message_from_bytes(content)
        if not content.isascii() or any(
            # the blocks of a delivery-status are parts to the standard library
            part.defects or part.get_content_type() == "message/delivery-status"
            for part in message.walk()
        ):
            continue
        inner = {part.parent for part in parts}
        found = [
            (part.media_type.decode(), content[part.body_start : part.body_end].decode())
            for index, part in enumerate(parts)
            if index not in inner
        ]
        assert found == leaves(message)
        compared += 1
    assert compared > 100


@pytest.mark.parametrize("fill", [40, 1000, 2000, 2012, 2013, 2030, 3000])
def test_values_longer_than_is_kept(fill: int) -> None:
    """An encoding that was not read to its end is none we know; a boundary that was not, a limit."""
    encoding = b"Content-Transfer-Encoding: (" + b"c" * fill + b") base64\r\n\r\n"
    boundary = b"Content-Type: multipart/x; a=" + b"b" * fill + b"; boundary=c\n\n--c\n\nx"
    for content in (encoding, boundary):
        assert scanned([content]) == modelled(content)
        assert scanned([content[i : i + 1] for i in range(len(content))]) == modelled(content)
    assert scan_mime(encoding)[0].encoding == (ENCODING_OTHER if fill > 2012 else 4)
    scanner = MimeScanner()
    scanner.feed(boundary)
    assert scanner.limited == (len(scanner.close()) == 1)
