"""One large message as a FETCH response, read and sent in slices.

Owns      send_large(), slices(), decoded_slices()
Flow      Account.open_large() → the small items as always → each large one: size, slices
Limits    SLICE_OCTETS being read and as many being sent
Errors    what is damaged is found out before the first octet is sent
Standards RFC 9051 §6.4.5, RFC 3516 §4.2 (literal8 for what has a NUL)
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from gateway._native import record_column
from gateway.mail.sections import PartDecoder, UnknownEncoding, part_encoding, section_range
from gateway.protocol.imap.fetch import Item
from gateway.server.imap.body import UNKNOWN_CTE, LargeSource, Plan
from gateway.server.imap.state import No
from gateway.store.errors import StoreError
from gateway.store.large import SLICE_OCTETS, LargeContent

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession
    from gateway.store.store import Account


async def send_large(
    session: ImapSession, plan: Plan, account: Account, window: tuple[bytes, bytes]
) -> No | None:
    """The response for the one message of the window; what is wrong with it."""
    numbers, records = window
    keys = array("Q", record_column(records, "message"))
    large = await account.open_large(keys[0])
    if large is None:  # not in a file of its own, or gone
        answer = await account.columns(
            keys, plan.names, lambda columns: plan.answer(numbers, records, columns)
        )
        session.send(answer.octets)
        return answer.error
    try:
        streamed = [item for item in plan.items if is_streamed(item)]
        small = Plan([item for item in plan.items if not is_streamed(item)], plan.context)
        head = await account.with_large(
            large, lambda large: small.answer_large(numbers, records, large)
        )
        session.mid_response = True
        session.send(head[: -len(b")\r\n")])
        error = small.error
        space = b" " if small.items else b""
        for item in streamed:
            session.send(space, item.label, b" ")
            error = await _send_item(session, account, large, item) or error
            space = b" "
        session.send(b")\r\n")
        return error
    except StoreError as broken:
        if session.mid_response:
            session.break_off(broken)
        raise
    finally:
        session.mid_response = False
        account.close_large(large)


def is_streamed(item: Item) -> bool:
    """It may be as large as the message."""
    return (
        item.section is not None
        and item.name != b"BINARY.SIZE[]"
        and item.section.text in (b"", b"TEXT")
    )


async def _send_item(
    session: ImapSession, account: Account, large: LargeContent, item: Item
) -> No | None:
    section = item.section
    assert section is not None
    source = LargeSource(large)
    found = section_range(source.places, section.path, section.text)
    if found is None:
        session.send(b"NIL")
        return None
    start, end = found
    if item.name == b"BINARY[]":
        try:
            encoding = part_encoding(source.places, section.path)
        except UnknownEncoding as error:
            session.send(b"NIL")
            return No(str(error), UNKNOWN_CTE)
        await _send_decoded(session, account, large, found, item, encoding)
        return None
    if item.start >= 0:
        start = min(end, start + item.start)
        end = min(end, start + item.count)
    session.send(b"{%d}\r\n" % (end - start))
    async for octets in slices(account, large, start, end):
        session.send(octets.replace(b"\0", b"\x80"))  # as imap_fetch.pyx does
        await session.drained()
    return None


async def _send_decoded(
    session: ImapSession,
    account: Account,
    large: LargeContent,
    place: tuple[int, int],
    item: Item,
    encoding: int,
) -> None:
    """Twice: the size has to be said first."""
    size = 0
    has_nul = False
    async for octets in decoded_slices(account, large, place, encoding):
        size += len(octets)
        has_nul = has_nul or b"\0" in octets
    first, last = 0, size
    if item.start >= 0:
        first = min(size, item.start)
        last = min(size, first + item.count)
    session.send(b"%b{%d}\r\n" % (b"~" if has_nul else b"", last - first))
    at = 0
    async for octets in decoded_slices(account, large, place, encoding):
        piece = octets[max(0, first - at) : max(0, last - at)]
        at += len(octets)
        if piece:
            session.send(piece)
            await session.drained()


async def decoded_slices(
    account: Account, large: LargeContent, place: tuple[int, int], encoding: int
) -> AsyncIterator[bytes]:
    """Octets of that place without their Content-Transfer-Encoding."""
    decoder = PartDecoder(encoding)
    async for octets in slices(account, large, *place):
        yield decoder.feed(octets)
    yield decoder.finish()


async def slices(
    account: Account, large: LargeContent, start: int, end: int
) -> AsyncIterator[bytes]:
    """Octets start to end; the next slice is read while one is sent."""

    def read(at: int) -> asyncio.Future[bytes]:
        return account.with_large(large, lambda large: large.read(at, min(end, at + SLICE_OCTETS)))

    reading = read(start) if start < end else None
    try:
        while reading is not None:
            octets = await reading
            start += len(octets)
            reading = read(start) if start < end else None
            yield octets
    finally:
        if reading is not None:
            reading.cancel()
