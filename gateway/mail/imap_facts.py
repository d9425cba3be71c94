"""What IMAP asks of a message again and again, found once, at delivery, in the form it is answered in.

    Owns      message_facts(), facts_of(), section(), Facts; sort keys of text that is not ASCII
    Flow      content → MIME scanner → FactsPacker (_native/imap_facts.pyx) → Facts.packed → (store)
              → section(packed, ENVELOPE) → FETCH response
    Limits    parts and depth are the scanner's, the others the packer's
    Errors    none: what cannot be read is NIL, or left out
    Security  octets of the sender reach the wire only as quoted strings and literals
    Standards RFC 9051 §7.5.2 (ENVELOPE, BODYSTRUCTURE), RFC 5256 §2 (sort keys, references), RFC 5957, RFC 5322 §3.4
    Bugs      of repeated fields the first one counts (RFC 5322 §3.6 allows no second)

Packed facts are a head (version, five lengths, octets of the header) and the sections, one behind the other.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from calendar import timegm
from collections.abc import Callable
from email.utils import parsedate_tz

import msgspec

from gateway._native import FactsPacker, Part, scan_mime
from gateway.mail.structure import decoded_words, header_text

# Sections of packed facts.
ENVELOPE, BODYSTRUCTURE, SORT, THREAD, PARTS, ORIGIN = range(6)

_HEAD = struct.Struct("<BxxxI6I")
_PART = struct.Struct("<iBxxxIIII")  # parent, encoding, header start and end, body start and end


class Facts(msgspec.Struct, frozen=True):
    """What the store keeps of a message beside its octets."""

    packed: bytes
    header_octets: int  # of the header section, the empty line included
    sent_date: int  # seconds since 1970 of the Date field; 0: none that can be read


class SortKeys(msgspec.Struct, frozen=True):
    """RFC 5256 §3, folded as i;unicode-casemap compares (RFC 5051)."""

    subject: str  # base subject
    is_reply: bool  # the subject had a reply or forward mark (§2.1)
    from_: str  # local part of the first mailbox
    to: str
    cc: str
    display_from: str  # RFC 5957
    display_to: str


class PartPlace(msgspec.Struct, frozen=True):
    """Where a part is in the content; parent is an index into the list, -1 for the message."""

    parent: int
    encoding: int
    header_start: int
    header_end: int
    body_start: int
    body_end: int


# Octets of a message from start to end.
Octets = Callable[[int, int], bytes | memoryview]


def message_facts(content: bytes, origin: str = "") -> Facts:
    """All facts of a message; origin: the queue id it came by."""
    return Facts(*_PACKER.pack(scan_mime(content), content, origin.encode()))


def facts_of(parts: list[Part], octets: Octets, origin: str = "") -> Facts:
    """The same of one whose parts are known; octets: asked for their headers."""
    return Facts(*_PACKER.pack(parts, octets, origin.encode()))


def section(packed: bytes, which: int) -> bytes:
    """One section of packed facts, as it was written."""
    lengths = _HEAD.unpack_from(packed)[2:]
    start = _HEAD.size + sum(lengths[:which])
    return packed[start : start + lengths[which]]


def sort_keys(packed: bytes) -> SortKeys:
    """The section SORT, unpacked."""
    words = section(packed, SORT).decode().split("\0")
    return SortKeys(words[0], words[1] == "1", *words[2:])


def thread_ids(packed: bytes) -> tuple[bytes, list[bytes]]:
    """(Message-ID or b"", the references, oldest first), without <>  (RFC 5256 §3, THREAD=REFERENCES)."""
    message_id, *references = section(packed, THREAD).split(b"\0")
    return message_id, references


def part_places(packed: bytes) -> list[PartPlace]:
    """Where each part is, in the order they begin; what BODY[section] needs."""
    return [PartPlace(*found) for found in _PART.iter_unpack(section(packed, PARTS))]


# -- what is not ASCII, for the packer ------------------------------------------------------------------


def sort_word(value: bytes, decode: bool) -> bytes:
    """An address's local part or display name as a sort key, in UTF-8; decode: it may have encoded-words."""
    text = header_text(value)
    return casemapped(decoded_words(text) if decode else text).encode("utf-8", "replace")


def sort_subject(value: bytes) -> tuple[bytes, bool]:
    """(base subject as a sort key, in UTF-8; whether a reply or forward mark was removed)."""
    subject, is_reply = base_subject(decoded_words(header_text(value)))
    return casemapped(subject).encode("utf-8", "replace"), is_reply


def casemapped(text: str) -> str:
    """text as i;unicode-casemap compares it (RFC 5051 §2): title case, then decomposed."""
    if text.isascii():
        return text.upper()
    return unicodedata.normalize("NFKD", "".join(map(str.title, text)))


_SPACES = re.compile(r"[ \t\r\n]+")
_BLOB = r"\[[^\[\]]*\]\s*"
_LEADER = re.compile(rf"(?:{_BLOB})*(?:re|fwd?)\s*(?:{_BLOB})?:", re.IGNORECASE)
_LEADING_BLOB = re.compile(_BLOB)
_TRAILER = re.compile(r"(?:\(fwd\)|\s)+\Z", re.IGNORECASE)
_FORWARDED = re.compile(r"\[fwd:(.*)\]\Z", re.IGNORECASE)


def base_subject(subject: str) -> tuple[str, bool]:
    """(base subject, whether a reply or forward mark was removed) by RFC 5256 §2.1, on decoded text."""
    text = subject.strip()
    if (
        "  " in text or "\t" in text or "\n" in text or "\r" in text
    ):  # few have: looking is cheaper than replacing
        text = _SPACES.sub(" ", text)
    is_reply = False
    while True:
        trimmed = (
            _TRAILER.sub("", text) if text.endswith(")") else text
        )  # step 2; nothing ends with a space here
        is_reply |= "(" in text[len(trimmed) :]
        text = trimmed
        while True:  # steps 3 to 5
            text = text.lstrip()
            leader = _LEADER.match(text)
            if leader is not None:
                text, is_reply = text[leader.end() :], True
                continue
            blob = _LEADING_BLOB.match(text)
            if blob is not None and blob.end() < len(text):  # unless it is all there is
                text = text[blob.end() :]
                continue
            break
        forwarded = _FORWARDED.match(text)  # step 6
        if forwarded is None:
            return text, is_reply
        text, is_reply = forwarded[1].strip(), True


def sent_date(value: bytes) -> int:
    """Seconds since 1970 of a Date field that is not as RFC 5322 §3.3 has it; 0 when it cannot be read, or is not of
    the years 1970 to 2105.
    """
    try:
        fields = parsedate_tz(value.decode("ascii", "replace"))
        if fields is None:
            return 0
        at = timegm((*fields[:6], 0, 1, 0)) - (fields[9] or 0)
    except (ValueError, OverflowError, IndexError, TypeError):
        return 0
    return at if 0 < at < 2**32 else 0


_PACKER = FactsPacker(sort_word, sort_subject, sent_date)
