"""COPY and MOVE to a mailbox of another account.

Owns      copy_across()
Flow      messages of the one account are read, a batch at a time, and stored in the other
Limits    BATCH_OCTETS and one message in memory; a large message goes from file to file
Errors    what was stored is removed again when a later batch fails (RFC 9051 §6.4.7: the mailbox is as it was)
Bugs      a crash, or a client that leaves in between, may leave what was copied so far; MOVE then has it in both
          mailboxes, never in none
Standards RFC 9051 §6.4.7, §6.4.8; RFC 4314 §4 (which flags come along)
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from gateway.server.imap.fetch import LARGE_OCTETS
from gateway.server.imap.flags import SYSTEM
from gateway.server.imap.large import slices
from gateway.store.errors import StoreError
from gateway.store.model import Copied, Record, ranges_of, records_of
from gateway.store.upload import NewMessage, Upload

if TYPE_CHECKING:
    from gateway.server.imap.access import Place
    from gateway.server.imap.session import ImapSession
    from gateway.store.model import Quota

BATCH_OCTETS = 8 << 20
BATCH_MESSAGES = 1000

_RIGHTS = dict(SYSTEM)


async def copy_across(session: ImapSession, place: Place, ranges: bytes, *, move: bool) -> Copied:
    """All messages in the ranges of UIDs, or none.  Raises StoreError."""
    selected = session.selected
    assert selected is not None
    assert place.mailbox is not None
    quota = await session.quota_of(place.owner)
    records = [
        record for _, packed in selected.view.numbered(ranges) for record in records_of(packed)
    ]
    target = array("I")
    modseq = expunged_modseq = 0
    try:
        for batch in _batches(records):
            modseq = await _copy_batch(session, place, batch, quota, target)
    except BaseException:
        if target:
            await place.account.expunge(place.mailbox.id, ranges_of(target), deleted_only=False)
        raise
    if move and records:  # from here on nothing is undone: whoever is cancelled does not know whether this was done
        gone = await selected.place.account.expunge(
            selected.mailbox.id,
            ranges_of(record.uid for record in records),
            deleted_only=False,
        )
        expunged_modseq = gone.modseq
    source = array("I", (record.uid for record in records))
    return Copied(
        place.mailbox.uidvalidity, source.tobytes(), target.tobytes(), modseq, expunged_modseq
    )


def _batches(records: list[Record]) -> list[list[Record]]:
    batches: list[list[Record]] = []
    octets = 0
    for record in records:
        octets += record.size
        if not batches or octets > BATCH_OCTETS or len(batches[-1]) == BATCH_MESSAGES:
            batches.append([])
            octets = record.size
        batches[-1].append(record)
    return batches


async def _copy_batch(
    session: ImapSession, place: Place, batch: list[Record], quota: Quota, target: array[int]
) -> int:
    """target gets the UIDs; returns the MODSEQ."""
    selected = session.selected
    assert selected is not None
    assert place.mailbox is not None
    source = selected.place.account
    uploads: list[Upload] = []
    try:
        messages = []
        small = [record.message for record in batch if record.size <= LARGE_OCTETS]
        contents = iter(await source.read(small)) if small else iter(())
        for record in batch:
            flags = [
                flag
                for flag in selected.mailbox.names(record.flags)
                if _RIGHTS.get(flag, "w") in place.rights
            ]
            if record.size <= LARGE_OCTETS:
                content = next(contents)
                if isinstance(content, StoreError):
                    raise content
                pieces = [content.header, content.body]
                messages.append(NewMessage(pieces, None, flags, record.internal_date))
            else:
                uploads.append(place.account.upload_large(lambda: None))
                await _read_large(session, record.message, uploads[-1])
                messages.append(uploads[-1].message(flags, record.internal_date))
        delivered = await place.account.append(place.mailbox.id, messages, quota)
    finally:
        for upload in uploads:
            upload.discard()
    target.extend(one.uid for one in delivered)
    return delivered[0].modseq


async def _read_large(session: ImapSession, key: int, upload: Upload) -> None:
    assert session.selected is not None
    account = session.selected.place.account
    large = await account.open_large(key)
    if large is None:  # it is in the database after all
        [content] = await account.read([key])
        if isinstance(content, StoreError):
            raise content
        upload.write(content.header + content.body)
        return
    try:
        async for octets in slices(account, large, 0, large.size):
            upload.write(octets)
            await upload.drained()
    finally:
        account.close_large(large)
