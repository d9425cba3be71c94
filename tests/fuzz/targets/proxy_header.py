"""The PROXY header: ProxyError, None or a header; the same however it arrives, and never more than what it says."""

from __future__ import annotations

import ipaddress
import struct

from gateway.net.proxy_header import (
    BLOCK_MAX,
    V2_START,
    ProxyError,
    ProxyHeader,
    crc32c,
    parse,
)

CODE = ("gateway.net.proxy_header",)
MAX_OCTETS = BLOCK_MAX + 64
RUNS = 20_000
WORDS = (
    b"PROXY TCP4 ",
    b"PROXY TCP6 ",
    b"UNKNOWN",
    b"\r\n\r\n\x00\r\nQUIT\n",
    b"!\x11",
    b"!!",
    b" \x00\x07",
)


def seeds() -> list[bytes]:
    ssl = struct.pack(">BIBH", 3, 0, 0x21, 7) + b"TLSv1.3" + struct.pack(">BH", 0x22, 2) + b"cn"
    block = bytes(4) + bytes([1, 2, 3, 4]) + struct.pack(">HH", 25, 26)
    tlvs = struct.pack(">BH", 0x20, len(ssl)) + ssl
    crc = struct.pack(">BHI", 3, 4, 0)
    whole = V2_START + struct.pack(">BBH", 0x21, 0x11, len(block + tlvs + crc)) + block + tlvs + crc
    return [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 25\r\nEHLO x\r\n",
        b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n",
        b"PROXY UNKNOWN whatever\r\n",
        V2_START + struct.pack(">BBH", 0x20, 0, 3) + b"abc",
        V2_START + struct.pack(">BBH", 0x21, 0x21, 36) + bytes(36) + b"EHLO",
        V2_START + struct.pack(">BBH", 0x21, 0x31, 216) + bytes(216),
        whole[:-4] + struct.pack(">I", crc32c(whole)),
    ]


def check(data: bytes) -> None:
    found = outcome(data)
    if found is None:
        assert len(data) < BLOCK_MAX + 16, "waits for ever"
    if not isinstance(found, ProxyHeader):
        return
    assert 0 < found.consumed <= len(data)
    assert outcome(data[: found.consumed]) == found, "it depends on what follows"
    # The reader asks again with every octet that arrives: nothing may be decided before the header is whole.
    for end in {*range(1, min(20, found.consumed)), found.consumed // 2, found.consumed - 1}:
        assert outcome(data[:end]) is None, end
    for address in (found.source, found.destination):
        if address is not None:
            ipaddress.ip_address(address[0])
            assert 0 <= address[1] <= 65535


def outcome(data: bytes) -> ProxyHeader | ProxyError | None:
    try:
        return parse(data)
    except ProxyError as error:
        return error
