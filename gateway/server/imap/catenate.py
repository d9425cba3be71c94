"""The octets that an IMAP URL names, as CATENATE and URLFETCH need them.

Owns      UrlOctets, open_url(), read_url()
Limits    what is large is read in slices
Errors    No with BADURL; why is not told: it might tell what others have
Standards RFC 4469 §3, §5 (BADURL), RFC 5092
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from gateway._native import imap_string
from gateway.mail.sections import section_range
from gateway.protocol.imap.fetch import Item
from gateway.protocol.imap.url import BadUrl, MessageUrl, message_url
from gateway.server.imap.body import LargeSource, Source, header_fields
from gateway.server.imap.fetch import LARGE_OCTETS
from gateway.server.imap.large import slices
from gateway.server.imap.state import No
from gateway.store.errors import StoreError

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession
    from gateway.store.large import LargeContent
    from gateway.store.store import Account


class UrlOctets:
    """What a URL names: its size, and its octets; close() it."""

    def __init__(
        self,
        account: Account,
        octets: bytes | None,
        start: int,
        end: int,
        large: LargeContent | None,
    ) -> None:
        """octets; or None: those of the large message from start to end."""
        self._account = account
        self._octets = octets
        self._start, self._end = start, end
        self._large = large

    @property
    def size(self) -> int:
        return self._end - self._start if self._octets is None else len(self._octets)

    async def read(self) -> AsyncIterator[bytes]:
        if self._octets is not None:
            yield self._octets
        elif self._large is not None:
            async for octets in slices(self._account, self._large, self._start, self._end):
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


async def open_url(account: Account, mailbox: int, uidvalidity: int, url: MessageUrl) -> UrlOctets:
    """Raises BadUrl for what is not there, and StoreError."""
    if url.uidvalidity is not None and url.uidvalidity != uidvalidity:
        raise BadUrl("UIDVALIDITY has changed")
    record = await account.record(mailbox, url.uid)
    if record is None:
        raise BadUrl("no such message")
    if record.size > LARGE_OCTETS:
        large = await account.open_large(record.message)
        if large is not None:
            try:
                part = await account.with_large(large, lambda large: _part(LargeSource(large), url))
            except BaseException:
                account.close_large(large)
                raise
            return UrlOctets(account, *part, large)

    def work(columns: list[list[Any]]) -> bytes:
        for (found,) in columns:
            if isinstance(found, StoreError):
                raise found
        (facts,), (content,) = columns
        source = Source(facts, content)
        octets, start, end = _part(source, url)
        return octets if octets is not None else bytes(source.octets(start, end))

    found = await account.columns([record.message], ["facts", "content"], work)
    return UrlOctets(account, found, 0, 0, None)


def _part(source: Source, url: MessageUrl) -> tuple[bytes | None, int, int]:
    """(octets, or None: those from start to end, of the message)."""
    section = url.section
    found = section_range(source.places, section.path, section.text)
    if found is None:
        raise BadUrl("no such part")
    start, end = found
    if section.fields:
        octets = header_fields(Item(b"BODY[]", section)).cut(source.octets(start, end))
        last = len(octets) if url.count is None else url.start + url.count
        return octets[url.start : last], 0, 0
    start = min(end, start + url.start)
    return None, start, end if url.count is None else min(end, start + url.count)
