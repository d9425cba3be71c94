"""COMPRESS=DEFLATE: both directions of one session.

Owns      Deflate
Limits    PIECE_OCTETS of input are inflated at a time: a bomb waits, compressed, until its octets are read;
          WINDOW_BITS and MEMORY_LEVEL: 64 KiB a session for what is sent
Standards RFC 4978, RFC 1951
"""

from __future__ import annotations

import zlib

PIECE_OCTETS = 65_536
# A quarter of the memory that zlib takes otherwise (256 KiB a session), for a tenth more octets of English text.
WINDOW_BITS = 13
MEMORY_LEVEL = 6


class Deflate:
    """Raw DEFLATE streams; each batch of responses ends at an octet's boundary."""

    __slots__ = ("_deflate", "_inflate", "_rest")

    def __init__(self, level: int) -> None:
        self._deflate = zlib.compressobj(level, zlib.DEFLATED, -WINDOW_BITS, MEMORY_LEVEL)
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._rest = b""

    @property
    def unread_octets(self) -> int:
        """Compressed input that waits."""
        return len(self._rest)

    def feed(self, data: bytes) -> None:
        self._rest = self._rest + data if self._rest else data

    def next_piece(self) -> bytes | None:
        """The next octets of the client, b"" when there are none yet; None when they are no DEFLATE."""
        while self._rest:
            inflate = self._inflate
            if inflate.eof:  # nothing comes behind the end of the stream
                return None
            try:
                piece = inflate.decompress(self._rest, PIECE_OCTETS)
            except zlib.error:
                return None
            self._rest = inflate.unused_data or inflate.unconsumed_tail
            if piece:
                return piece
        return b""

    def take_rest(self) -> bytes:
        """The input that was not inflated: it is what it is, once compression has ended."""
        rest, self._rest = self._rest, b""
        return rest

    def compress(self, pieces: list[bytes | memoryview]) -> list[bytes | memoryview]:
        """What goes over the wire for them."""
        out: list[bytes | memoryview] = []
        for piece in pieces:
            octets = self._deflate.compress(piece)
            if octets:
                out.append(octets)
        out.append(self._deflate.flush(zlib.Z_SYNC_FLUSH))
        return out
