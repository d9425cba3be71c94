"""The octets that an IMAP URL names, as CATENATE and URLFETCH need them.

Owns      UrlOctets, open_url(), read_url()
Limits    what is large is read in slices
Errors    No with BADURL; why is not told: it might tell what others have
Standards RFC 4469 §3, §5 (BADURL), RFC 5092; RFC 5524 §3 (decoded parts)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway._native import ENCODING_BASE64, ENCODING_BINARY, ENCODING_QUOTED_PRINTABLE, imap_string
from gateway.mail.sections import PartDecoder, UnknownEncoding, part_encoding, section_range
from gateway.protocol.imap.fetch import Item
from gateway.protocol.imap.url import BadUrl, MessageUrl, message_url
from gateway.server.imap.body import LargeSource, Source, header_fields
from gateway.server.imap.fetch import LARGE_OCTETS
from gateway.server.imap.large import decoded_slices
from gateway.server.imap.state import No
from gateway.store.errors import StoreError

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession
    from gateway.store.large import LargeContent
    from gateway.store.store import Account


_ENCODED = (ENCODING_BASE64, ENCODING_QUOTED_PRINTABLE)


class Part(NamedTuple):
    """octets; or None: those of the large message from start to end, encoded like that."""

    octets: bytes | None
    start: int = 0
    end: int = 0
    encoding: int = ENCODING_BINARY


class UrlOctets:
    """What a URL names: its size, and its octets; close() it."""

    def __init__(self, account: Account, facts: bytes, part: Part, large: LargeContent | None) -> None:
        self._account = account
        self._part = part
        self._large = large
        self.facts = facts  # of the whole message
        self.size = part.end - part.start if part.octets is None else len(part.octets)  # of decoded ones later
        self.whole: tuple[int, int] | None = None  # octets and lines that were left of an encoded part, all of it
        self.has_nul = False  # is known of decoded parts
        self._first = 0  # octet of the decoded part

    async def read(self) -> AsyncIterator[bytes]:
        """Some octets at a time."""
        if self._part.octets is not None:
            yield self._part.octets
            return
        at, last = 0, self._first + self.size
        async for octets in self._decoded():
            piece = octets[max(0, self._first - at) : max(0, last - at)]
            at += len(octets)
            if piece:
                yield piece

    async def decode(self, start: int, count: int | None) -> None:
        """What was opened with decoded=True has its size, and is cut."""
        size = lines = 0
        async for octets in self._decoded():
            size += len(octets)
            lines += octets.count(b"\n")
            self.has_nul = self.has_nul or b"\0" in octets
        if self._part.encoding in _ENCODED:
            self.whole = size, lines
        self._first = min(size, start)
        self.size = size - self._first if count is None else min(size - self._first, count)
        if self._part.octets is not None:
            self._part = self._part._replace(octets=self._part.octets[self._first : self._first + self.size])

    async def _decoded(self) -> AsyncIterator[bytes]:
        part = self._part
        if part.octets is not None:
            yield part.octets
        elif self._large is not None:
            async for octets in decoded_slices(self._account, self._large, (part.start, part.end), part.encoding):
                yield octets

    def close(self) -> None:
        if self._large is not None:
            self._account.close_large(self._large)


async def read_url(session: ImapSession, octets: bytes) -> AsyncIterator[bytes]:
    """For CATENATE: a URL of the session's own, without URLAUTH."""
    try:
        url = message_url(octets)
        if url.host and url.user != session.account_name:
            raise BadUrl("somebody else's")
        if url.mailbox is None:
            if session.selected is None:
                raise BadUrl("no mailbox is selected")
            place = session.selected.place
        else:
            place = await session.place(url.mailbox, "r")
        assert place.mailbox is not None
        opened = await open_url(place.account, place.mailbox.id, place.mailbox.uidvalidity, url)
    except (BadUrl, No, StoreError):
        raise bad_url(octets) from None
    try:
        async for piece in opened.read():
            yield piece
    finally:
        opened.close()


def bad_url(octets: bytes) -> No:
    return No("There is no such message", b"BADURL " + imap_string(octets))


async def open_url(
    account: Account, mailbox: int, uidvalidity: int, url: MessageUrl, *, decoded: bool = False
) -> UrlOctets:
    """decoded: without its Content-Transfer-Encoding, and before ;PARTIAL= cuts it: see UrlOctets.decode().

    Raises BadUrl for what is not there, UnknownEncoding, and StoreError.
    """
    if url.uidvalidity is not None and url.uidvalidity != uidvalidity:
        raise BadUrl("UIDVALIDITY has changed")
    record = await account.record(mailbox, url.uid)
    if record is None:
        raise BadUrl("no such message")
    if record.size > LARGE_OCTETS:
        large = await account.open_large(record.message)
        if large is not None:
            try:
                part = await account.with_large(large, lambda large: _part_or_error(LargeSource(large), url, decoded))
                if isinstance(part, ValueError):
                    raise part
            except BaseException:
                account.close_large(large)
                raise
            return UrlOctets(account, large.facts, part, large)

    def work(columns: list[list[Any]]) -> tuple[bytes, Part | ValueError]:
        for (found,) in columns:
            if isinstance(found, StoreError):
                raise found
        (facts,), (content,) = columns
        source = Source(facts, content)
        part = _part_or_error(source, url, decoded)
        if isinstance(part, ValueError) or part.octets is not None:
            return facts, part
        decoder = PartDecoder(part.encoding)
        octets = decoder.feed(bytes(source.octets(part.start, part.end))) + decoder.finish()
        return facts, part._replace(octets=octets)

    facts, part = await account.columns([record.message], ["facts", "content"], work)
    if isinstance(part, ValueError):
        raise part
    return UrlOctets(account, facts, part, None)


def _part_or_error(source: Source, url: MessageUrl, decoded: bool) -> Part | ValueError:
    """For a thread of the store, which takes what is raised there for its own failure."""
    try:
        return _part(source, url, decoded)
    except (BadUrl, UnknownEncoding) as error:
        return error


def _part(source: Source, url: MessageUrl, decoded: bool) -> Part:
    section = url.section
    found = section_range(source.places, section.path, section.text)
    if found is None:
        raise BadUrl("no such part")
    start, end = found
    if section.fields:
        octets = header_fields(Item(b"BODY[]", section)).cut(source.octets(start, end))
        last = len(octets) if url.count is None else url.start + url.count
        return Part(octets if decoded else octets[url.start : last])
    if decoded:  # a header has no encoding of its own
        return Part(None, start, end, ENCODING_BINARY if section.text else part_encoding(source.places, section.path))
    start = min(end, start + url.start)
    return Part(None, start, end if url.count is None else min(end, start + url.count))
