"""base64 and quoted-printable against binascii, in both code paths."""

from __future__ import annotations

import binascii
import itertools
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway._native import (
    decode_base64,
    encode_base64,
    encode_quoted_printable,
)

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

both_paths = pytest.mark.parametrize("simd", [True, False])

octets = st.binary(max_size=400)
long_octets = st.integers(0, 300).flatmap(lambda n: st.binary(min_size=n, max_size=n))
text_octets = st.lists(
    st.sampled_from(
        [b"a", b"word ", b"=", b" ", b"\t", b"\r\n", b"\n", b"\r", b"-", b"--", b".", b"\xe4", b"\0"]
        + [b"x" * n for n in (30, 31, 32, 33, 72, 73, 74, 75, 76, 77, 150)]
    ),
    max_size=30,
).map(b"".join)
base64_octets = st.lists(
    st.sampled_from(
        [b"QUJD", b"A", b"=", b"==", b"\r\n", b"\n", b" ", b"-", b"\xff", b"/+9z"]
        + [ALPHABET[:n] for n in (8, 31, 32, 33, 64)]
        + [ALPHABET + ALPHABET[:12] + b"\r\n"]
    ),
    max_size=20,
).map(b"".join)


def result_of(function: Callable[..., bytes], *args: object, **options: object) -> bytes | None:
    try:
        return function(*args, **options)
    except ValueError:
        return None


def base64_lines(data: bytes, newline: bytes) -> bytes:
    lines = [binascii.b2a_base64(data[i : i + 57], newline=False) for i in range(0, len(data), 57)]
    return b"".join(line + newline for line in lines)


@both_paths
@given(octets)
@settings(deadline=None, max_examples=200)
@example(bytes(range(256)) * 3)
def test_base64_encode(simd: bool, data: bytes) -> None:
    assert encode_base64(data, simd=simd) == base64_lines(data, b"\r\n")
    assert encode_base64(data, lf=True, simd=simd) == base64_lines(data, b"\n")
    assert encode_base64(data, end=False, simd=simd) == base64_lines(data, b"\r\n").removesuffix(
        b"\r\n"
    )
    assert decode_base64(encode_base64(data, simd=simd), simd=simd) == data


@both_paths
@given(base64_octets | octets)
@settings(deadline=None, max_examples=400)
@example(ALPHABET * 3)
@example(b"A===")
@example(b"=AAAA")
@example(b"QQ=Q=QQQ=")
def test_base64_decode_as_binascii(simd: bool, data: bytes) -> None:
    assert result_of(decode_base64, data, simd=simd) == result_of(binascii.a2b_base64, data)


@both_paths
@pytest.mark.parametrize("position", range(33))
def test_base64_decode_knows_every_octet(simd: bool, position: int) -> None:
    for octet in range(256):
        data = bytearray(ALPHABET)
        data[position] = octet
        assert result_of(decode_base64, data, simd=simd) == result_of(binascii.a2b_base64, data)


@both_paths
@given(text_octets | long_octets, st.booleans())
@settings(deadline=None, max_examples=400)
@example(b"x" * 76 + b"\r\n" + b"x" * 77 + b"\r\n" + b"x" * 75 + b"=\r\n", False)
@example(b"x" * 75 + b"--boundary", False)
def test_quoted_printable_encode(simd: bool, data: bytes, lf: bool) -> None:
    encoded = encode_quoted_printable(data, lf=lf, simd=simd)
    newline = b"\n" if lf else b"\r\n"
    assert binascii.a2b_qp(encoded) == data
    lines = encoded.split(newline)
    assert all(len(line) <= 76 for line in lines)  # RFC 2045 §6.7 (5)
    assert all(re.fullmatch(rb"(?:[\t -<>-~]|=[0-9A-F]{2})*=?", line) for line in lines)
    assert not any(line.endswith((b" ", b"\t")) for line in lines)  # §6.7 (3)
    pairs = itertools.pairwise(lines)
    after_soft_ends = [line for before, line in pairs if before.endswith(b"=")]
    assert not any(line.startswith(b"-") for line in after_soft_ends)
    # line ends stay line ends
    assert len(lines) - len(after_soft_ends) == len(data.split(newline))


def test_any_buffer() -> None:
    for kind in (bytearray, memoryview):
        assert decode_base64(kind(b"QUJD")) == b"ABC"
        assert encode_quoted_printable(kind(b"=")) == b"=3D"
    with pytest.raises(TypeError):
        decode_base64("QUJD")
