"""The PROXY protocol header, both versions: who the client is behind a load balancer.

Owns      parse(), ProxyHeader, ProxyTls
Limits    version 1: 107 octets; version 2: 16 octets and BLOCK_MAX
Errors    ProxyError on whatever is no header, as early as that can be known
Security  says what the peer claims: ask only peers that are trusted to tell
Standards PROXY protocol 2.2 (haproxy.org, proxy-protocol.txt), RFC 9260 appendix A (CRC32c)
"""

from __future__ import annotations

import struct
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, NamedTuple

V1_START: Final = b"PROXY"
V1_MAX: Final = 107  # §2.1: the worst case with CRLF
V2_START: Final = b"\r\n\r\n\0\r\nQUIT\n"
V2_FIXED: Final = struct.Struct(">12sBBH")
# §2.2 allows 65535; addresses take 216 at most, the rest is TLVs: a certificate name, a unique id …
BLOCK_MAX: Final = 4096

LOCAL, PROXY = 0, 1
UNSPEC, INET, INET6, UNIX = 0, 1, 2, 3
UNSPECIFIED, STREAM = 0, 1
UNIX_BLOCK_OCTETS: Final = 216

TLV_CRC32C, TLV_SSL = 0x03, 0x20
SSL_VERSION, SSL_CN, SSL_CIPHER = 0x21, 0x22, 0x23
CLIENT_SSL, CLIENT_CERT_CONN, CLIENT_CERT_SESS = 1, 2, 4


class ProxyError(Exception):
    """These octets are no PROXY header; the connection is of no use."""


class ProxyTls(NamedTuple):
    """What the load balancer says about the TLS it ended (§2.2.6)."""

    version: str
    cipher: str
    client_name: str  # common name of the client's certificate
    client_verified: bool  # a client certificate was given and verified


class ProxyHeader(NamedTuple):
    """source and destination are (address, port); None when the header does not tell (UNKNOWN, AF_UNIX)."""

    source: tuple[str, int] | None
    destination: tuple[str, int] | None
    local: bool  # the load balancer speaks for itself: a health check
    consumed: int  # octets of the header; what follows belongs to the connection
    tls: ProxyTls | None = None


def parse(data: bytes) -> ProxyHeader | None:
    """The header that data begins with, or None while it is not whole.  Raises ProxyError.

    Give it everything received so far: it keeps nothing, and looks at BLOCK_MAX + 16 octets at most.
    """
    if data.startswith(V1_START):
        return _parse_v1(data)
    if data.startswith(V2_START):
        return _parse_v2(data)
    if V1_START.startswith(data) or V2_START.startswith(data):
        return None
    raise ProxyError(f"no PROXY header but {bytes(data[:16])!r}")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, V1_MAX)
    if end < 0:
        if len(data) >= V1_MAX:
            raise ProxyError(f"version 1 header without end in {V1_MAX} octets")
        return None
    words = data[:end].decode("latin-1").split(" ")
    if len(words) >= 2 and words[0] == "PROXY" and words[1] == "UNKNOWN":
        return ProxyHeader(None, None, False, end + 2)  # §2.1: the rest of the line is ignored
    if len(words) != 6 or words[0] != "PROXY" or words[1] not in ("TCP4", "TCP6"):
        raise ProxyError(f"version 1 header {bytes(data[:end])!r}")
    kind = IPv4Address if words[1] == "TCP4" else IPv6Address
    try:
        source = str(kind(words[2])), _port(words[4])
        destination = str(kind(words[3])), _port(words[5])
    except (AddressValueError, ValueError) as error:
        raise ProxyError(f"version 1 header: {error}") from None
    return ProxyHeader(source, destination, False, end + 2)


def _port(text: str) -> int:
    # §2.1: decimal, no leading zero, 0..65535
    if not (text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0"):
        raise ValueError(f"{text!r} is no port")
    port = int(text)
    if port > 65535:
        raise ValueError(f"{text!r} is no port")
    return port


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < V2_FIXED.size:
        return None
    _, version_command, family_transport, length = V2_FIXED.unpack_from(data)
    version, command = version_command >> 4, version_command & 15
    family, transport = family_transport >> 4, family_transport & 15
    if version != 2 or command not in (LOCAL, PROXY):
        raise ProxyError(f"version and command 0x{version_command:02x}")
    if length > BLOCK_MAX:
        raise ProxyError(f"version 2 header of {length} octets; {BLOCK_MAX} are allowed")
    end = V2_FIXED.size + length
    if command == PROXY and (family > UNIX or transport > STREAM):
        raise ProxyError(f"family and transport 0x{family_transport:02x}")
    if len(data) < end:
        return None
    if command == LOCAL:
        return ProxyHeader(None, None, True, end)  # §2.2: the block is skipped unread
    if UNSPEC in (family, transport):
        return ProxyHeader(None, None, False, end)
    if family == UNIX:
        source = destination = None
        tlvs = V2_FIXED.size + UNIX_BLOCK_OCTETS
    else:
        size, kind = (4, IPv4Address) if family == INET else (16, IPv6Address)
        tlvs = V2_FIXED.size + 2 * size + 4
        if tlvs <= end:
            at = V2_FIXED.size
            ports = struct.unpack_from(">HH", data, at + 2 * size)
            source = str(kind(bytes(data[at : at + size]))), ports[0]
            destination = str(kind(bytes(data[at + size : at + 2 * size]))), ports[1]
    if tlvs > end:
        raise ProxyError(f"{length} octets are too few for their family")
    return ProxyHeader(source, destination, False, end, _read_tlvs(data, tlvs, end))


def _tlvs(data: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    """(type, start, end) of each type-length-value from at to end."""
    found = []
    while at < end:
        if end - at < 3:
            raise ProxyError("TLV cut off")
        kind, length = struct.unpack_from(">BH", data, at)
        at += 3 + length
        if at > end:
            raise ProxyError("TLV longer than the header")
        found.append((kind, at - length, at))
    return found


def _read_tlvs(data: bytes, at: int, end: int) -> ProxyTls | None:
    tls = None
    for kind, start, stop in _tlvs(data, at, end):
        if kind == TLV_CRC32C:
            if stop - start != 4:
                raise ProxyError("CRC32c TLV of another size than 4")
            # §2.2.3: over the whole header with the checksum's own octets as zero
            zeroed = data[:start] + b"\0\0\0\0" + data[stop:end]
            if crc32c(zeroed) != int.from_bytes(data[start:stop], "big"):
                raise ProxyError("CRC32c does not match")
        elif kind == TLV_SSL:
            tls = _read_ssl(data, start, stop) or tls
    return tls


def _read_ssl(data: bytes, at: int, end: int) -> ProxyTls | None:
    if end - at < 5:
        raise ProxyError("SSL TLV cut off")
    client, verify = struct.unpack_from(">BI", data, at)
    texts = {
        kind: data[start:stop].decode("utf-8", "replace")
        for kind, start, stop in _tlvs(data, at + 5, end)
    }
    if not client & CLIENT_SSL:
        return None
    return ProxyTls(
        texts.get(SSL_VERSION, ""),
        texts.get(SSL_CIPHER, ""),
        texts.get(SSL_CN, ""),
        bool(client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS)) and verify == 0,
    )


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(octets: bytes) -> int:
    """Castagnoli's CRC: 0.1 µs an octet, once for a connection whose header carries one."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = (crc >> 8) ^ _CRC32C[(crc ^ octet) & 255]
    return crc ^ 0xFFFFFFFF
