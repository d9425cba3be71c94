"""What IMAP asks of a message again and again, found once, at delivery, in the form it is answered in.

    Owns      message_facts(), facts_of(), section(), Facts; ENVELOPE and BODYSTRUCTURE as octets of the wire
    Flow      content → MIME scanner → Facts.packed → (store) → section(packed, ENVELOPE) → FETCH response
    Limits    parts and depth are the scanner's; ADDRESSES_MAX of a field; REFERENCES_MAX of a message
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
from functools import lru_cache

import msgspec

from gateway._native import (
    ENCODING_OTHER,
    Part,
    first_fields,
    imap_nstring,
    imap_string,
    parse_date,
    scan_mime,
)
from gateway.mail.imap_address import Address, format_addresses
from gateway.mail.structure import decoded_words, header_text

# Sections of packed facts.
ENVELOPE, BODYSTRUCTURE, SORT, THREAD, PARTS, ORIGIN = range(6)

VERSION = 1
REFERENCES_MAX = 100  # of a long thread the first and the newest matter
_HEAD = struct.Struct("<BxxxI6I")
_PART = struct.Struct("<iBxxxIIII")  # parent, encoding, header start and end, body start and end

_ADDRESS_FIELDS = (b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc")
_PART_FIELDS = frozenset(
    b"content-" + name
    for name in (
        b"type", b"transfer-encoding", b"id", b"description", b"md5", b"disposition", b"language", b"location",
    )
)  # fmt: skip
_FIELDS = _PART_FIELDS.union(
    _ADDRESS_FIELDS, (b"date", b"subject", b"in-reply-to", b"message-id", b"references")
)
_ENCODINGS = (b"7BIT", b"8BIT", b"BINARY", b"QUOTED-PRINTABLE", b"BASE64")
_MSG_ID = re.compile(rb"<([^<>]{1,998})>")
_SPACE = re.compile(rb"\s")
_PARAMETER = re.compile(rb';[ \t]*([^=;\s"]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"?|([^;\s]*))')
_QUOTED_PAIR = re.compile(rb"\\(.)")


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
    view = memoryview(content)
    return facts_of(scan_mime(content), lambda start, end: view[start:end], origin)


def facts_of(parts: list[Part], octets: Octets, origin: str = "") -> Facts:
    """The same of one whose parts are known; octets: asked for their headers."""
    top = parts[0]
    fields = first_fields(octets(0, top.header_end), _FIELDS)
    addresses = _addresses(fields)
    sections = (
        _envelope(fields, addresses),
        _structure(octets, parts, fields),
        _sort_keys(fields, addresses),
        _thread(fields),
        b"".join(
            _PART.pack(p.parent, p.encoding, p.header_start, p.header_end, p.body_start, p.body_end)
            for p in parts
        ),
        origin.encode(),
    )
    packed = _HEAD.pack(VERSION, top.body_start, *map(len, sections)) + b"".join(sections)
    return Facts(packed, top.body_start, sent_date(fields.get(b"date", b"")))


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


# -- ENVELOPE -------------------------------------------------------------------------------------


def _addresses(fields: dict[bytes, bytes]) -> dict[bytes, tuple[bytes, Address]]:
    """Each address field's formatted list, and its first address."""
    return {name: format_addresses(fields.get(name)) for name in _ADDRESS_FIELDS}


def _envelope(fields: dict[bytes, bytes], addresses: dict[bytes, tuple[bytes, Address]]) -> bytes:
    """RFC 9051 §7.5.2: date, subject, from, sender, reply-to, to, cc, bcc, in-reply-to, message-id."""
    from_, sender, reply_to, to, cc, bcc = (formatted for formatted, _ in addresses.values())
    get = fields.get
    return b"(%b %b %b %b %b %b %b %b %b %b)" % (
        imap_nstring(get(b"date")),
        imap_nstring(get(b"subject")),
        from_,
        from_ if sender == b"NIL" else sender,
        from_ if reply_to == b"NIL" else reply_to,
        to,
        cc,
        bcc,
        imap_nstring(get(b"in-reply-to")),
        imap_nstring(get(b"message-id")),
    )


# -- BODYSTRUCTURE --------------------------------------------------------------------------------


def _structure(octets: Octets, parts: list[Part], fields: dict[bytes, bytes]) -> bytes:
    """Parts begin after the part they lie in: from the last to the first, the inner ones are ready."""
    formatted: list[list[bytes]] = [[] for _ in parts]  # of each part, what lies in it; backwards
    result = b""
    for index in range(len(parts) - 1, -1, -1):
        part = parts[index]
        if index:
            fields_of = first_fields(octets(part.header_start, part.header_end), _PART_FIELDS)
        else:
            fields_of = fields
        result = _part(part, fields_of, formatted[index], octets, parts, index)
        if part.parent >= 0:
            formatted[part.parent].append(result)
    return result


def _part(
    part: Part,
    fields: dict[bytes, bytes],
    inner: list[bytes],
    octets: Octets,
    parts: list[Part],
    index: int,
) -> bytes:
    media, _, subtype = part.media_type.upper().partition(b"/")
    extension = _extension(fields)
    type_value = fields.get(b"content-type")
    parameters = _parameters(type_value) if type_value else b"NIL"
    if media == b"MULTIPART":
        children = b"".join(reversed(inner)) or _EMPTY_PART
        return b"(%b %b %b %b)" % (children, imap_string(subtype), parameters, extension)
    if part.encoding == ENCODING_OTHER:
        encoding = imap_string(fields.get(b"content-transfer-encoding", b"7BIT").strip())
    else:
        encoding = b'"%b"' % _ENCODINGS[part.encoding]
    if parameters == b"NIL" and media == b"TEXT" and subtype == b"PLAIN":
        parameters = _US_ASCII
    basic = b"%b %b %b %b %b %b %d" % (
        imap_string(media),
        imap_string(subtype),
        parameters,
        imap_nstring(fields.get(b"content-id")),
        imap_nstring(fields.get(b"content-description")),
        encoding,
        part.body_end - part.body_start,
    )
    md5 = imap_nstring(fields.get(b"content-md5"))
    if media == b"MESSAGE" and inner:
        child = next(p for p in parts[index + 1 :] if p.parent == index)
        enclosed = first_fields(octets(child.header_start, child.header_end), _FIELDS)
        return b"(%b %b %b %d %b %b)" % (
            basic,
            _envelope(enclosed, _addresses(enclosed)),
            inner[0],
            part.lines,
            md5,
            extension,
        )
    if media == b"TEXT":
        return b"(%b %d %b %b)" % (basic, part.lines, md5, extension)
    return b"(%b %b %b)" % (basic, md5, extension)


_US_ASCII = b'("CHARSET" "US-ASCII")'  # RFC 2045 §5.2
_EMPTY_PART = (
    b'("TEXT" "PLAIN" %b NIL NIL "7BIT" 0 0 NIL NIL NIL NIL)' % _US_ASCII
)  # one is required


def _extension(fields: dict[bytes, bytes]) -> bytes:
    """Disposition, language, location."""
    disposition = fields.get(b"content-disposition")
    language = fields.get(b"content-language")
    location = fields.get(b"content-location")
    if disposition is None and language is None and location is None:
        return b"NIL NIL NIL"
    where = b"NIL"
    if disposition is not None:
        kind = disposition.partition(b";")[0].strip()
        where = b"(%b %b)" % (imap_string(kind), _parameters(disposition)) if kind else b"NIL"
    tongues = b"NIL"
    if language is not None:
        words = [word.strip() for word in language.split(b",") if word.strip()]
        if words:
            tongues = b"(%b)" % b" ".join(imap_string(word) for word in words)
    return b"%b %b %b" % (where, tongues, imap_nstring(location))


@lru_cache(maxsize=256)
def _parameters(value: bytes) -> bytes:
    found = [
        b"%b %b"
        % (imap_string(name), imap_string(_QUOTED_PAIR.sub(rb"\1", quoted) if quoted else bare))
        for name, quoted, bare in _PARAMETER.findall(value)
    ]
    return b"(%b)" % b" ".join(found) if found else b"NIL"


# -- sort keys and references -----------------------------------------------------------------------


def _sort_keys(fields: dict[bytes, bytes], addresses: dict[bytes, tuple[bytes, Address]]) -> bytes:
    subject, is_reply = base_subject(decoded_words(header_text(fields.get(b"subject", b""))))
    # The first mailbox counts; of a group, its name (RFC 5256 §3).
    from_, to, cc = (addresses[name][1] for name in (b"from", b"to", b"cc"))
    words = (
        casemapped(subject),
        "1" if is_reply else "",
        casemapped(header_text(from_.mailbox or b"")),
        casemapped(header_text(to.mailbox or b"")),
        casemapped(header_text(cc.mailbox or b"")),
        casemapped(_display(from_)),
        casemapped(_display(to)),
    )
    joined = "\0".join(words)
    if joined.count("\0") != len(words) - 1:
        joined = "\0".join(word.replace("\0", "") for word in words)
    return joined.encode("utf-8", "replace")


def _display(address: Address) -> str:
    """RFC 5957 §3: the display name, else the address."""
    if address.name:
        return decoded_words(header_text(address.name))
    if address.host:
        return header_text(b"%b@%b" % (address.mailbox or b"", address.host))
    return header_text(address.mailbox or b"")


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


def _thread(fields: dict[bytes, bytes]) -> bytes:
    own = _msg_ids(fields.get(b"message-id", b""))[:1] or [b""]
    references = _msg_ids(fields.get(b"references", b""))
    if not references:  # RFC 5256 §3: then the first of In-Reply-To
        references = _msg_ids(fields.get(b"in-reply-to", b""))[:1]
    if len(references) > REFERENCES_MAX:
        references = references[:1] + references[-REFERENCES_MAX + 1 :]
    return b"\0".join(own + references)


def _msg_ids(value: bytes) -> list[bytes]:
    """Without <>, and without the white space that folding left within (RFC 5322 §4.5.4); it may be no id, then."""
    found = _MSG_ID.findall(value)
    if not any(map(_SPACE.search, found)):
        return found
    return [b"".join(one.split()) for one in found if b"@" in one or not _SPACE.search(one)]


def sent_date(value: bytes) -> int:
    """Seconds since 1970 of a Date field; 0 when it cannot be read, or is not of the years 1970 to 2105."""
    if not value:
        return 0
    at = parse_date(value)
    if at >= 0:
        return at if at < 2**32 else 0
    try:
        fields = parsedate_tz(value.decode("ascii", "replace"))
        if fields is None:
            return 0
        at = timegm((*fields[:6], 0, 1, 0)) - (fields[9] or 0)
    except (ValueError, OverflowError, IndexError, TypeError):
        return 0
    return at if 0 < at < 2**32 else 0
