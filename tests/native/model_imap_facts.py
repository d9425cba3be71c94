"""The slow, obvious way to the facts of a message: what _native/imap_facts.pyx must agree with."""

from __future__ import annotations

import re
import struct

import msgspec

from gateway._native import ENCODING_OTHER, Part, first_fields, imap_nstring, imap_string, scan_mime
from gateway.mail.imap_facts import Octets, base_subject, casemapped
from gateway.mail.structure import decoded_words, header_text

VERSION = 1
REFERENCES_MAX = 100
SUBJECT_OCTETS = 4096
ADDRESSES_MAX = 10_000
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
_TOKEN = re.compile(
    rb'[ \t\r\n]+|"((?:[^"\\]|\\.)*)"?|(\[[^\]]*\]?)|([^ \t\r\n()<>@,;:"\[\]]+)|(.)', re.DOTALL
)
_ANY_PAIR = re.compile(rb"\\(.)", re.DOTALL)


def message_facts(content: bytes, origin: str = "") -> bytes:
    """Packed facts."""
    view = memoryview(content)
    return facts_of(scan_mime(content), lambda start, end: view[start:end], origin)


def facts_of(parts: list[Part], octets: Octets, origin: str = "") -> bytes:
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
    return _HEAD.pack(VERSION, top.body_start, *map(len, sections)) + b"".join(sections)


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


def _parameters(value: bytes) -> bytes:
    found = [
        b"%b %b"
        % (imap_string(name), imap_string(_QUOTED_PAIR.sub(rb"\1", quoted) if quoted else bare))
        for name, quoted, bare in _PARAMETER.findall(value)
    ]
    return b"(%b)" % b" ".join(found) if found else b"NIL"


# -- sort keys and references -----------------------------------------------------------------------


def _sort_keys(fields: dict[bytes, bytes], addresses: dict[bytes, tuple[bytes, Address]]) -> bytes:
    subject, is_reply = base_subject(
        decoded_words(header_text(fields.get(b"subject", b"")[:SUBJECT_OCTETS]))
    )
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


# -- addresses ---


class Address(msgspec.Struct, frozen=True):
    """RFC 9051 §7.5.2.  host None: a group begins (mailbox is its name) or ends (mailbox None)."""

    name: bytes | None = None
    route: bytes | None = None
    mailbox: bytes | None = None
    host: bytes | None = None


_NOBODY = Address()


def address_list(value: bytes) -> list[Address]:
    """The mailboxes and groups of an unfolded field value."""
    return _Reader(value).read(ADDRESSES_MAX)


def format_addresses(value: bytes | None) -> tuple[bytes, Address]:
    """(the addresses as ENVELOPE has them, the first of them); (NIL, Address()) for none."""
    if value is None:
        return b"NIL", _NOBODY
    addresses = address_list(value)
    if not addresses:
        return b"NIL", _NOBODY
    formatted = b"".join(
        b"(%b %b %b %b)"
        % (
            imap_nstring(one.name),
            imap_nstring(one.route),
            imap_nstring(one.mailbox),
            imap_nstring(one.host),
        )
        for one in addresses
    )
    return b"(%b)" % formatted, addresses[0]


class _Reader:
    """One pass over the tokens, with what the current address has so far."""

    def __init__(self, value: bytes) -> None:
        self._value = value
        self._found: list[Address] = []
        self._in_group = False
        self._clear()

    def _clear(self) -> None:
        self._words: list[bytes] = []  # phrase, or local part
        self._domain: list[bytes] | None = None  # once "@" was seen
        self._phrase: list[bytes] | None = None  # once "<" was seen
        self._route: bytes | None = None
        self._hops: list[bytes] = []
        self._comment = b""
        self._closed = False  # ">" was seen

    def read(self, most: int) -> list[Address]:
        value = self._value
        at, end = 0, len(value)
        while at < end and len(self._found) < most:
            if value[at] == 0x28:  # "("
                at = self._skip_comment(at)
                continue
            match = _TOKEN.match(value, at)
            if match is None:
                break
            at = match.end()
            quoted, literal, atom, special = match.groups()
            if special is not None:
                self._special(special)
            elif quoted is not None:
                self._word(_ANY_PAIR.sub(rb"\1", quoted))
            elif literal is not None or atom is not None:
                self._word(literal or atom)
        self._finish()
        if self._in_group:
            self._found.append(Address())
        return self._found

    def _skip_comment(self, at: int) -> int:
        depth, start, value = 0, at + 1, self._value
        while at < len(value):
            octet = value[at]
            if octet == 0x5C:
                at += 1
            elif octet == 0x28:
                depth += 1
            elif octet == 0x29:
                depth -= 1
                if depth == 0:
                    break
            at += 1
        if not self._comment:
            self._comment = _ANY_PAIR.sub(rb"\1", value[start:at]).strip()
        return at + 1

    def _word(self, word: bytes) -> None:
        if self._closed:
            return
        if self._domain is not None:
            self._domain.append(word)
        else:
            self._words.append(word)

    def _special(self, char: bytes) -> None:
        if char == b"<" and self._phrase is None:
            self._phrase, self._words, self._domain = self._words, [], None
        elif char == b">":
            self._closed = True
        elif char == b"@" and not self._closed:
            if self._domain is not None and self._phrase is None:
                self._domain.append(b"@")
            else:
                self._domain = []
        elif char == b":" and self._phrase is not None and not self._closed:
            self._end_of_route()
            self._route = b",".join(self._hops)
            self._words = []
        elif char == b":" and self._domain is None and not self._in_group:
            self._found.append(Address(mailbox=b" ".join(self._words)))
            self._in_group = True
            self._clear()
        elif char == b";":
            self._finish()
            if self._in_group:
                self._found.append(Address())
                self._in_group = False
        elif char == b"," and self._phrase is not None and not self._closed:
            self._end_of_route()
        elif char == b",":
            self._finish()

    def _end_of_route(self) -> None:
        """RFC 5322 §4.4 obs-route: @one,@two:local@domain."""
        if self._domain:
            self._hops.append(b"@" + b"".join(self._domain))
        self._domain = None

    def _finish(self) -> None:
        name = b" ".join(self._phrase) if self._phrase is not None else self._comment
        if self._words or self._domain is not None or self._phrase:
            if self._domain is None:  # no "@": a host there must be, or it would be a group
                local, host = (b" " if self._phrase is None else b"").join(self._words), b""
            else:
                local, host = b"".join(self._words), b"".join(self._domain)
            self._found.append(Address(name or self._comment or None, self._route, local, host))
        self._clear()
