"""net/proxy_header.py against an independent builder, at every split, and on octets nobody should send."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.net.proxy_header import (
    BLOCK_MAX,
    V2_START,
    ProxyError,
    ProxyHeader,
    ProxyTls,
    crc32c,
    parse,
)

V4 = struct.pack(">4s4sHH", bytes([192, 0, 2, 1]), bytes([198, 51, 100, 2]), 4711, 25)
FROM_V4 = (("192.0.2.1", 4711), ("198.51.100.2", 25))


def v2(block: bytes, command: int = 0x21, family: int = 0x11) -> bytes:
    return V2_START + struct.pack(">BBH", command, family, len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


def with_crc(block: bytes, family: int = 0x11) -> bytes:
    """Bit by bit, as RFC 9260 appendix A describes the polynomial."""
    blank = v2(block + tlv(3, bytes(4)), family=family)
    crc = 0xFFFFFFFF
    for octet in blank:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return blank[:-4] + struct.pack(">I", crc ^ 0xFFFFFFFF)


addresses = st.one_of(
    st.tuples(st.just(4), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(6), st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1)),
)
ports = st.integers(0, 65535)


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, ProxyHeader]:
    """A valid header of either version with what it means."""
    version, a, b = draw(addresses)
    kind = IPv4Address if version == 4 else IPv6Address
    size = 4 if version == 4 else 16
    source, destination = str(kind(a)), str(kind(b))
    sport, dport = draw(ports), draw(ports)
    if draw(st.booleans()):
        text = f"PROXY TCP{version} {source} {destination} {sport} {dport}\r\n".encode()
        return text, ProxyHeader((source, sport), (destination, dport), False, len(text))
    block = a.to_bytes(size, "big") + b.to_bytes(size, "big") + struct.pack(">HH", sport, dport)
    for value in draw(st.lists(st.binary(max_size=40), max_size=4)):
        block += tlv(4, value)
    family = 0x11 if version == 4 else 0x21
    octets = with_crc(block, family) if draw(st.booleans()) else v2(block, family=family)
    return octets, ProxyHeader((source, sport), (destination, dport), False, len(octets))


@settings(max_examples=150, deadline=None)
@given(headers(), st.binary(max_size=50))
def test_every_prefix_needs_more_and_what_follows_is_left(
    case: tuple[bytes, ProxyHeader], rest: bytes
) -> None:
    octets, meaning = case
    for cut in range(len(octets)):
        assert parse(octets[:cut]) is None
    assert parse(octets) == meaning
    assert parse(octets + rest) == meaning


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_headers_never_raise_anything_else(data: st.DataObject) -> None:
    octets = bytearray(data.draw(headers())[0])
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse(bytes(octets))
    except ProxyError:
        return
    assert found is None or 0 < found.consumed <= len(octets)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"PROXY ", V2_START, b""]), st.binary(max_size=200))
def test_garbage_is_refused_or_waits_within_bounds(start: bytes, rest: bytes) -> None:
    try:
        found = parse(start + rest)
    except ProxyError:
        return
    if found is None:
        assert len(start + rest) < BLOCK_MAX + 16


def test_a_flipped_bit_fails_the_checksum() -> None:
    whole = with_crc(V4)
    for bit in range(16 * 8, 28 * 8):  # in the addresses: nothing but the checksum tells
        octets = bytearray(whole)
        octets[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProxyError, match="CRC32c"):
            parse(bytes(octets))


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO example.org\r\n",
        b"\x16\x03\x01",  # a TLS handshake
        b"PROXX",
        b"proxy TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
        b"PROXY\r\n",
        b"PROXYTCP4 1.2.3.4 1.2.3.4 1 1\r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n",
        b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.256 1 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 1\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1" + b" " * 80,
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",  # 108 octets
        v2(V4, command=0x11),
        v2(V4, command=0x22),
        v2(V4, family=0x12),  # datagrams
        v2(V4, family=0x41),
        v2(V4[:11]),
        v2(b"", family=0x21),
        v2(bytes(215), family=0x31),
        v2(V4 + b"\x04"),
        v2(V4 + b"\x04\x00\x05abc"),
        v2(V4 + tlv(3, bytes(4))),
        v2(V4 + tlv(3, bytes(3))),
        v2(V4 + tlv(0x20, b"\x01")),
        v2(V4 + tlv(0x20, b"\x01\0\0\0\0" + b"\x21\0\x09TLSv1.3")),
        V2_START + b"\x21\x11\xff\xff",  # refused before anything is collected
    ],
)
def test_refused(octets: bytes) -> None:
    with pytest.raises(ProxyError):
        parse(octets)


def test_version_1_says_unknown() -> None:
    longest = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    for octets in (b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ::1 ::1 1 1\r\n", longest):
        assert parse(octets) == ProxyHeader(None, None, False, len(octets))


def test_the_longest_version_1_header() -> None:
    address = ":".join(["ffff"] * 8)
    octets = f"PROXY TCP6 {address} {address} 65535 65535\r\n".encode()
    assert parse(octets + b"EHLO") == ProxyHeader((address, 65535), (address, 65535), False, 104)


def test_local_is_skipped_whatever_it_carries() -> None:
    for block in (b"", V4, b"no addresses, no TLVs"):
        assert parse(v2(block, command=0x20)) == ProxyHeader(None, None, True, 16 + len(block))


def test_unspecified_and_unix_tell_no_address() -> None:
    assert parse(v2(b"", family=0x00)) == ProxyHeader(None, None, False, 16)
    unix = socket.AF_UNIX.name.encode().ljust(216, b"\0")
    tls = tlv(0x20, b"\x01\0\0\0\0" + tlv(0x21, b"TLSv1.2"))
    octets = v2(unix + tls, family=0x31)
    assert parse(octets) == ProxyHeader(
        None, None, False, len(octets), ProxyTls("TLSv1.2", "", "", False)
    )


@pytest.mark.parametrize(
    ("client", "verify", "expected"),
    [
        (0x01, 0, False),
        (0x05, 0, True),
        (0x03, 0, True),
        (0x03, 1, False),
    ],
)
def test_tls_facts(client: int, verify: int, expected: bool) -> None:
    texts = tlv(0x21, b"TLSv1.3") + tlv(0x23, b"TLS_AES_128_GCM_SHA256") + tlv(0x22, b"a.example")
    octets = v2(V4 + tlv(5, b"id") + tlv(0x20, struct.pack(">BI", client, verify) + texts))
    found = parse(octets)
    assert found == ProxyHeader(
        *FROM_V4,
        False,
        len(octets),
        ProxyTls("TLSv1.3", "TLS_AES_128_GCM_SHA256", "a.example", expected),
    )


def test_the_load_balancer_did_not_speak_tls() -> None:
    found = parse(v2(V4 + tlv(0x20, bytes(5))))
    assert found is not None and found.tls is None


def test_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue
    assert parse(with_crc(V4)) == ProxyHeader(*FROM_V4, False, 35)
