"""8-bit and binary content made 7-bit or 8-bit: what every leaf decodes to stays the same."""

from __future__ import annotations

from email import message_from_bytes
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from real_mail import real_mail

from gateway._native import ENCODING_8BIT, ENCODING_BINARY, Part, scan_mime
from gateway.mail.downgrade import has_long_line, to_7bit, to_8bit
from gateway.mail.structure import decoded_body

bodies = st.one_of(
    st.text(max_size=60).map(lambda text: text.replace("\r", "").replace("\n", "\r\n").encode()),
    st.binary(max_size=80),
    st.sampled_from(
        [
            b"plain text\r\n",
            "Grüße\r\naus Köln \r\n".encode(),
            b"x" * 1200,
            "ü".encode() * 700 + b"\r\n.\r\n",
            b"line\r\n" * 30,
            bytes(range(256)),
            b"\r\n",
            b"",
            b"trailing space \r\n and tab\t\r\n",
        ]
    ),
)
LEAF_TYPES = [None, b"text/plain; charset=utf-8", b"TEXT/html", b"application/x-y", b"image/png"]
LEAF_ENCODINGS = [None, b"8bit", b"7bit", b"binary", b"8BIT (comment)"]


@st.composite
def leaf(draw: st.DrawFn) -> bytes:
    fields = [b"X-Leaf: yes"]
    media_type, encoding = draw(st.sampled_from(LEAF_TYPES)), draw(st.sampled_from(LEAF_ENCODINGS))
    if media_type:
        fields.append(b"Content-Type: " + media_type)
    if encoding:
        fields.append(b"Content-Transfer-Encoding: " + encoding)
    return b"\r\n".join([*fields, b"", draw(bodies)])


@st.composite
def container(draw: st.DrawFn, children: st.SearchStrategy[bytes]) -> bytes:
    encoding = draw(st.sampled_from([None, b"8bit", b"binary", b"7bit"]))
    field = b"Content-Transfer-Encoding: " + encoding + b"\r\n" if encoding else b""
    if draw(st.integers(0, 3)) == 0:
        return b"Content-Type: message/rfc822\r\n" + field + b"\r\n" + draw(children)
    inner = draw(st.lists(children, min_size=1, max_size=3))
    boundary = b"=_%d" % crc32(b"".join(inner))  # RFC 2046 §5.1.2: unlike those inside
    pieces = [b"Content-Type: multipart/mixed;\r\n\tboundary=\"" + boundary + b"\"\r\n" + field]
    pieces.append(draw(st.sampled_from([b"", b"a preamble", "vorne: ü".encode()])))
    pieces += [b"--" + boundary + b"\r\n" + part for part in inner]
    pieces.append(b"--" + boundary + b"--" + draw(st.sampled_from([b"", b"\r\nepilogue\r\n"])))
    return b"\r\n".join(pieces)


trees = st.recursive(leaf(), container, max_leaves=6)


def leaves(content: bytes) -> list[tuple[bytes, int, bytes]]:
    parts = scan_mime(content)
    inner = {part.parent for part in parts}
    return [
        (part.media_type, part.parent, decoded_body(content, part))
        for index, part in enumerate(parts)
        if index not in inner
    ]


def true_labels(parts: list[Part], allow_8bit: bool) -> bool:
    too_large = {ENCODING_BINARY} if allow_8bit else {ENCODING_BINARY, ENCODING_8BIT}
    return not any(part.encoding in too_large for part in parts)


def check(content: bytes, converted: bytes, allow_8bit: bool) -> None:
    assert allow_8bit or converted.isascii()
    assert b"\0" not in converted and not has_long_line(converted)
    parts = scan_mime(converted)
    assert true_labels(parts, allow_8bit)
    assert [part.media_type for part in parts] == [part.media_type for part in scan_mime(content)]
    assert leaves(converted) == leaves(content)


@given(trees)
@settings(deadline=None, max_examples=200)
@example("X: y\r\n\r\nä\r\n".encode())
@example(b"X: y\r\n\r\n" + b"a" * 74 + b"\xff--b\r\n")
def test_leaves_stay_the_same(tree: bytes) -> None:
    content = b"MIME-Version: 1.0\r\n" + tree
    for convert, allow_8bit in ((to_7bit, False), (to_8bit, True)):
        converted = convert(content)
        assert converted is not None
        check(content, converted, allow_8bit)
        assert b"\r" not in converted.replace(b"\r\n", b"") and converted.count(b"\n") == (
            converted.count(b"\r\n")
        )
        assert convert(converted) is converted


def test_what_fits_is_the_same_object() -> None:
    content = b"Subject: x\r\n\r\nplain\r\n"
    assert to_7bit(content) is content
    content = "Subject: x\r\n\r\ngrün\r\n".encode()
    assert to_8bit(content) is content


def test_text_becomes_quoted_printable_and_data_base64() -> None:
    content = (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n"
        b"Content-Transfer-Encoding: 8bit\r\n\r\n"
        b"--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        b"gr\xc3\xbcn = green\r\n\r\n"
        b"--b\r\nContent-Type: application/x-y\r\n\r\n\xff\x00\r\n"
        b"--b--\r\n"
    )
    assert to_7bit(content) == (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n"
        b"Content-Transfer-Encoding: 7bit\r\n\r\n"
        b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"gr=C3=BCn =3D green\r\n\r\n"
        b"--b\r\nContent-Type: application/x-y\r\nContent-Transfer-Encoding: base64\r\n\r\n/wA=\r\n"
        b"--b--\r\n"
    )


def test_mail_that_is_not_mime_becomes_it() -> None:
    converted = to_7bit(b"Subject: x\r\n\r\ngr\xfcn\r\n")
    assert converted == (
        b"Subject: x\r\nContent-Transfer-Encoding: quoted-printable\r\n"
        b"Content-Type: text/plain; charset=unknown-8bit\r\nMIME-Version: 1.0\r\n\r\n"
        b"gr=FCn\r\n"
    )


def test_content_without_header() -> None:
    converted = to_7bit("grün\r\n".encode())
    assert converted is not None
    message = message_from_bytes(converted)
    assert message.get_payload(decode=True) == "grün\r\n".encode()


def test_a_preamble_without_an_empty_line_above_stays_one() -> None:
    header = b"Content-Type: multipart/mixed; boundary=x\r\n"
    rest = b"--x\r\n\r\na\r\n--x--\r\n"
    assert to_7bit(header + b"\xe4Subject: no field\r\n" + rest) == header + b"\r\n?Subject: no field\r\n" + rest


def test_no_line_of_the_encoding_is_taken_for_a_delimiter() -> None:
    body = b"x" * 75 + b"--b\r\n\xff"
    content = (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\n\r\n" + body + b"\r\n--b--\r\n"
    )
    converted = to_7bit(content)
    assert converted is not None
    assert [octets for _, _, octets in leaves(converted)] == [body]


@pytest.mark.parametrize(
    "content",
    [
        # header in UTF-8: needs SMTPUTF8
        "Subject: grün\r\n\r\nbody\r\n".encode(),
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nX: \xc3\xbc\r\n\r\nx\r\n--b--\r\n",
        # RFC 1847 §2.1: signed and encrypted content must not change
        b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xff\r\n--b--\r\n",
        b"Content-Type: multipart/encrypted; boundary=b\r\n\r\n--b\r\n"
        b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\n\xff\r\n--c--\r\n--b--\r\n",
        # RFC 2046 §5.2: identity encodings only
        b"Content-Type: message/partial; id=x\r\n\r\n\xff\r\n",
        b"Content-Type: message/delivery-status\r\n\r\n\xff\r\n",
        # parts that cannot be told
        b"Content-Type: multipart/mixed\r\n\r\n--b\r\n\r\n\xff\r\n--b--\r\n",
        b"Content-Type: multipart/mixed; boundary=\xff\r\n\r\n--\xff\r\n\r\nx\r\n--\xff--\r\n",
        # an encoding nobody knows
        b"Content-Transfer-Encoding: x-strange\r\n\r\n\xff\r\n",
        # base64 that ends in the middle
        b"Content-Transfer-Encoding: base64\r\n\r\nQUJDR\xff\r\n",
    ],
)
def test_impossible(content: bytes) -> None:
    assert to_7bit(content) is None


def test_signed_parts_stay_untouched() -> None:
    signed = (
        b"--b\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: 8bit\r\n\r\nplain\r\n"
        b"--b\r\nContent-Type: application/pgp-signature\r\n\r\nxyz\r\n--b--\r\n"
    )
    head = b"MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b\r\n"
    content = head + b"Content-Transfer-Encoding: 8bit\r\n\r\n" + signed
    assert to_7bit(content) == head + b"Content-Transfer-Encoding: 7bit\r\n\r\n" + signed


def test_deeper_than_the_scanner_sees() -> None:
    nested = b"".join(
        b"Content-Type: multipart/x; boundary=b%d\r\n\r\n--b%d\r\n" % (i, i) for i in range(60)
    )
    assert to_7bit(nested + b"\r\n\xff\r\n") is None


def test_utf8_types_may_be_encoded() -> None:
    """RFC 6533 §6.3"""
    content = b"MIME-Version: 1.0\r\nContent-Type: message/global-headers\r\n\r\nSubject: \xc3\xbc\r\n"
    converted = to_7bit(content)
    assert converted is not None and b"quoted-printable\r\n\r\nSubject: =C3=BC\r\n" in converted


@pytest.mark.parametrize(
    ("octets", "long"),
    [
        (b"x" * 998 + b"\r\n", False),
        (b"x" * 999 + b"\r\n", True),
        (b"x" * 998, False),
        (b"x" * 1000, True),
        (b"x\n" * 4000, False),
        (b"x\n" * 4000 + b"x" * 2000, True),
        (b"", False),
    ],
)
def test_long_lines(octets: bytes, long: bool) -> None:
    assert has_long_line(octets) == long


def test_real_mail() -> None:
    for content in real_mail(step=9):
        for convert, allow_8bit in ((to_7bit, False), (to_8bit, True)):
            converted = convert(content)
            if converted is not None:
                check(content, converted, allow_8bit)
                assert message_from_bytes(converted).as_bytes()
