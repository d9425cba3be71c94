"""base64 and quoted-printable: what binascii says, with and without SIMD, and back again."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable

from gateway._native import decode_base64, encode_base64, encode_quoted_printable
from tests.fuzz.octets import options

MAX_OCTETS = 1024
RUNS = 12_000

QP_LINE = re.compile(rb"(?:[\t -<>-~]|=[0-9A-F]{2})*=?")


def seeds() -> list[bytes]:
    return [
        b"\0QUJDREVG" * 20 + b"QQ==",
        b"\1QU\r\nJD=Q=QQ",
        b"\2" + b"x" * 76 + b"\r\n" + b"y" * 77 + b" \t\r\n--z=\n\r" + bytes(range(256)),
    ]


def check(data: bytes) -> None:
    (flags,), data = options(data, 1)
    simd, lf = bool(flags & 1), bool(flags & 2)
    newline = b"\n" if lf else b"\r\n"

    lines = [binascii.b2a_base64(data[i : i + 57], newline=False) for i in range(0, len(data), 57)]
    encoded = encode_base64(data, lf=lf, simd=simd)
    assert encoded == b"".join(line + newline for line in lines)
    assert encode_base64(data, lf=lf, end=False, simd=simd) == newline.join(lines)
    assert decode_base64(encoded, simd=simd) == data
    assert outcome(lambda: decode_base64(data, simd=simd)) == outcome(
        lambda: binascii.a2b_base64(data)
    )

    text = encode_quoted_printable(data, lf=lf, simd=simd)
    assert binascii.a2b_qp(text) == data
    for line in text.split(newline):
        assert len(line) <= 76 and QP_LINE.fullmatch(line), line  # RFC 2045 §6.7 (1), (5)
        assert not line.endswith((b" ", b"\t")), line  # (3)


def outcome(decode: Callable[[], bytes]) -> bytes | None:
    try:
        return decode()
    except ValueError:
        return None
