"""The mail that the source sends and the sink recognises.

Owns      Content (one body), Mail (the contents and mailboxes of a run), identify()
Limits    contents of a run CONTENTS_OCTETS_MAX together, CORPUS_MAX messages of a corpus
Errors    ValueError when a corpus has no message, or contents are too large to keep
Standards RFC 5321 §4.5.2 (transparency), RFC 5322 §2.1, RFC 6152 (8BITMIME)

Relays put their trace fields in front (RFC 5321 §4.4), so the Message-ID is our first field and the
digest covers all octets behind its line: header and body.  It is the same for every message of a
content, so it is computed once.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from email.utils import formatdate
from itertools import islice
from pathlib import Path

from smtp_blaster.corpus import messages
from smtp_blaster.plan import Plan, mailboxes, parse_sizes

_ID_LINE = re.compile(rb"^Message-ID: <([^>\r\n]*)>\r?\n", re.IGNORECASE | re.MULTILINE)
_DOT_LINE = re.compile(rb"^\.", re.MULTILINE)
_LINE_END = re.compile(rb"\r\n|\r|\n")
# The fields that are written anew, with their folded lines (RFC 5322 §2.2.3).
_STAMPS = re.compile(rb"^(?:Message-ID|Date):.*\r\n(?:[ \t].*\r\n)*", re.IGNORECASE | re.MULTILINE)

LINE_OCTETS = 78
UNKNOWN_ID = "-"
CONTENTS_OCTETS_MAX = 512 << 20
CORPUS_MAX = 20_000
DRAWS = 1 << 16  # after so many messages the order of the contents repeats


class Content:
    """One content but for its Message-ID line, `head_octets` long."""

    __slots__ = ("digest", "is_eight_bit", "rest", "size_octets", "stuffed")

    def __init__(self, rest: bytes, head_octets: int) -> None:
        self.rest = rest
        self.digest = hashlib.sha256(rest).hexdigest()
        self.stuffed = _DOT_LINE.sub(b"..", rest)
        self.is_eight_bit = not rest.isascii()
        self.size_octets = head_octets + len(rest)

    def data(self, head: bytes) -> list[bytes]:
        """What follows 354."""
        return [head, self.stuffed, b".\r\n"]

    def chunk(self, head: bytes) -> list[bytes]:
        """The whole content as one last chunk (RFC 3030 §2)."""
        return [b"BDAT %d LAST\r\n" % self.size_octets, head, self.rest]


class Mail:
    """What the messages of a run are made of, by their number."""

    def __init__(self, plan: Plan, run: str) -> None:
        self.run = run
        self._head = b"Message-ID: <%s." % run.encode()
        self.contents = _contents(plan, head_octets=len(self.head(0)))
        self.reverse_paths = mailboxes(plan.reverse_path)
        self.forward_paths = _forward_paths(plan)
        self.recipients = min(plan.recipients, len(self.forward_paths))
        self._draws: list[int] = []
        if len(self.contents) > 1:
            weights = [weight for _, weight in self.contents]
            chance = random.Random(plan.seed)
            self._draws = chance.choices(range(len(weights)), weights, k=DRAWS)

    def content(self, number: int) -> Content:
        index = self._draws[number % DRAWS] if self._draws else 0
        return self.contents[index][0]

    def message_id(self, number: int) -> str:
        return f"{self.run}.{number:09d}@blaster.invalid"

    def head(self, number: int) -> bytes:
        """The first header field; its length is the same for all messages."""
        return b"%b%09d@blaster.invalid>\r\n" % (self._head, number)


def _contents(plan: Plan, head_octets: int) -> list[tuple[Content, float]]:
    """(content, weight) pairs."""
    date = b"Date: %s\r\n" % formatdate(time.time()).encode()
    if plan.corpus:
        found: list[tuple[Content, float]] = []
        kept = 0
        for octets in islice(messages(Path(plan.corpus)), CORPUS_MAX):
            found.append((Content(date + restamped(octets), head_octets), 1.0))
            kept += len(octets)
            _check_octets(kept)
        if not found:
            raise ValueError(
                f"{plan.corpus}: no messages (*.eml files, a Maildir or an mbox are read)"
            )
        return found
    sizes = parse_sizes(plan.sizes) if plan.sizes else [(plan.size_octets, 1.0)]
    _check_octets(sum(octets for octets, _ in sizes))
    return [
        (Content(_generated(octets - head_octets, date, plan), head_octets), weight)
        for octets, weight in sizes
    ]


def _check_octets(octets: int) -> None:
    if octets > CONTENTS_OCTETS_MAX:
        raise ValueError(
            f"the contents need more than {CONTENTS_OCTETS_MAX >> 20} MiB of memory: choose fewer or smaller ones"
        )


def _generated(octets: int, date: bytes, plan: Plan) -> bytes:
    """Header fields and lines of text, exactly so many octets where they have room."""
    fields = (
        b"From: Source <source@example.test>\r\nTo: Sink <sink@example.test>\r\n"
        b"Subject: a message from the smtp-blaster\r\n%s\r\n" % date
    )
    return fields + _lines(max(0, octets - len(fields)), random.Random(plan.seed), plan.dots)


def restamped(octets: bytes) -> bytes:
    """A message without its Message-ID and Date, all its lines ended by CRLF."""
    text = _LINE_END.sub(b"\r\n", octets)
    header, empty, body = text.partition(b"\r\n\r\n")
    if not text.endswith(b"\r\n"):
        body += b"\r\n"
    return _STAMPS.sub(b"", header + b"\r\n") + (empty and b"\r\n") + body


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


def _forward_paths(plan: Plan) -> list[str]:
    found = mailboxes(plan.forward_path)
    if len(found) > 1 or plan.recipients == 1:
        return found
    local_part, _, domain = plan.forward_path.rpartition("@")
    return [f"{local_part}-{number}@{domain}" for number in range(1, plan.recipients + 1)]


def identify(content: bytes) -> tuple[str, str]:
    """(Message-ID without brackets, SHA-256 of what stands behind its line); the whole content when there is none."""
    found = _ID_LINE.search(content)
    if found is None:
        return UNKNOWN_ID, hashlib.sha256(content).hexdigest()
    return found[1].decode("ascii", "replace"), hashlib.sha256(
        memoryview(content)[found.end() :]
    ).hexdigest()
