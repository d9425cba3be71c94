"""A message whose body is a file of its own, read in slices.

    Owns      LargeContent
    Flow      Contents.open_large() → check() until it is done → read()… → close()
    Limits    SLICE_OCTETS in memory; one descriptor
    Errors    StoreDamaged when the octets do not match their CRC-32C, or cannot be read
    Blocking  check() and read() read the disk

The descriptor stays good when the message is expunged meanwhile: what was begun can be finished.
"""

from __future__ import annotations

from io import FileIO

from gateway._native import crc32c
from gateway.store.errors import StoreDamaged

SLICE_OCTETS = 1 << 20
_CHECKED_OCTETS = 16 << 20  # in one step: others wait for the account meanwhile


class LargeContent:
    """See the module."""

    __slots__ = ("_at", "_crc", "_expected", "_file", "_key", "facts", "header", "size")

    def __init__(self, key: int, file: FileIO, header: bytes, facts: bytes, crc: int) -> None:
        """header: with its empty line; b"" when it is in the file.  crc: of the whole message."""
        self.header = header
        self.facts = facts
        self.size = len(header) + file.seek(0, 2)  # octets of the message
        self._key = key
        self._file = file
        self._expected = crc
        self._crc = crc32c(header)
        self._at = len(header)

    def check(self) -> bool:
        """Compare some more with the checksum; False when all of it is as it was written."""
        end = min(self.size, self._at + _CHECKED_OCTETS)
        while self._at < end:
            octets = self.read(self._at, min(end, self._at + SLICE_OCTETS))
            self._crc = crc32c(octets, self._crc)
            self._at += len(octets)
        if self._at == self.size and self._crc != self._expected:
            raise self._damaged("is not as it was written")
        return self._at < self.size

    def read(self, start: int, end: int) -> bytes:
        """Octets start to end of the message; ask for SLICE_OCTETS at most."""
        split = len(self.header)
        if end <= split:
            return self.header[start:end]
        octets = self.header[start:split]
        self._file.seek(max(start, split) - split)
        wanted = end - max(start, split)
        while wanted:
            try:
                found = self._file.read(wanted)
            except OSError as error:
                raise self._damaged(f"cannot be read: {error.strerror}") from error
            if not found:
                raise self._damaged("is cut")
            octets += found
            wanted -= len(found)
        return octets

    def close(self) -> None:
        self._file.close()

    def _damaged(self, what: str) -> StoreDamaged:
        return StoreDamaged(f"message {self._key} {what}: run `gateway mailbox check`")
