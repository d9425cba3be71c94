"""The mail that the source sends and the sink recognises.

Owns      the Message-ID that numbers a message, its digest, and how both are found again behind
relays
Standards RFC 5321 §4.5.2 (transparency), RFC 5322 §2.1
"""

from __future__ import annotations

import hashlib
import random
import re

# Relays put their trace fields in front (RFC 5321 §4.4), so the Message-ID is our first field and
# the digest covers
# all octets behind its line: header and body.  The same for every message of a size, so it is
# computed once.
_ID_LINE = re.compile(rb"^Message-ID: <([^>\r\n]*)>\r?\n", re.IGNORECASE | re.MULTILINE)
_DOT_LINE = re.compile(rb"^\.", re.MULTILINE)

LINE_OCTETS = 78
UNKNOWN_ID = "-"


class Content:
    """Content of `size_octets` octets, made once for a run; only the Message-ID differs between messages."""

    def __init__(self, size_octets: int, *, run: str, seed: int, dots: bool = False) -> None:
        self.run = run
        head = len(self.head(0))
        rest = (
            "From: Source <source@example.test>\r\n"
            "To: Sink <sink@example.test>\r\n"
            f"Subject: {size_octets} octets from the smtp-blaster\r\n"
            "\r\n"
        ).encode()
        body = _lines(max(0, size_octets - head - len(rest)), random.Random(seed), dots)
        self.rest = rest + body
        self.digest = hashlib.sha256(self.rest).hexdigest()
        self.stuffed = _DOT_LINE.sub(b"..", self.rest)
        self.size_octets = head + len(self.rest)

    def message_id(self, number: int) -> str:
        return f"{self.run}.{number:09d}@blaster.invalid"

    def head(self, number: int) -> bytes:
        """The first header field; its length is the same for all messages."""
        return b"Message-ID: <%s.%09d@blaster.invalid>\r\n" % (self.run.encode(), number)

    def data(self, number: int) -> list[bytes]:
        """What follows 354."""
        return [self.head(number), self.stuffed, b".\r\n"]

    def chunk(self, number: int) -> list[bytes]:
        """The whole content as one last chunk (RFC 3030 §2)."""
        return [b"BDAT %d LAST\r\n" % self.size_octets, self.head(number), self.rest]


def _lines(octets: int, chance: random.Random, dots: bool) -> bytes:
    """Text lines that end in CRLF, exactly `octets` long; with dots, every tenth begins with one."""
    if octets < 2:
        return b""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789 "
    block = []
    for number in range(100):
        line = (
            "".join(chance.choices(alphabet, k=LINE_OCTETS - 2)).strip().ljust(LINE_OCTETS - 2, "x")
        )
        block.append("." + line[1:] if dots and number % 10 == 0 else line)
    text = ("\r\n".join(block) + "\r\n").encode()
    body = (text * (octets // len(text) + 1))[: octets - 2]
    if body.endswith(b"\r"):
        body = body[:-1] + b"x"
    return body + b"\r\n"


def identify(content: bytes) -> tuple[str, str]:
    """(Message-ID without brackets, SHA-256 of what stands behind its line); the whole content when there is none."""
    found = _ID_LINE.search(content)
    if found is None:
        return UNKNOWN_ID, hashlib.sha256(content).hexdigest()
    return found[1].decode("ascii", "replace"), hashlib.sha256(
        memoryview(content)[found.end() :]
    ).hexdigest()
