"""What is done to the messages of a mailbox: add, change flags, expunge, copy, move; and what changed since.

Owns      Messages
Flow      within a write transaction of the caller: read the row, change chunks, save the row
Files     tables mailbox, chunk, expunged, shared, garbage
Limits    HISTORY_ROWS and HISTORY_OCTETS of expunge history a mailbox
Errors    StoreError kinds
Blocking  everything
Standards RFC 9051 §6.4, RFC 7162 (MODSEQ, VANISHED), RFC 4315 (UIDPLUS), RFC 6851 (MOVE), RFC 8514
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from gateway._native import (
    copy_records,
    newer_records,
    or_flags,
    ranges_of_uids,
    record_column,
    split_records,
    store_flags,
)
from gateway.mail.imap_facts import message_facts
from gateway.store.content import Contents, Prepared
from gateway.store.database import Database
from gateway.store.errors import LimitReached, StoreError
from gateway.store.index import IndexRow, append, change, load, row_of, settle_flags
from gateway.store.model import (
    DELETED,
    KEYWORD_BIT,
    NEVER,
    RECORD,
    SYSTEM_MASK,
    UID_MAX,
    Changes,
    Copied,
    Delivered,
    Expunged,
    Stored,
    ranges_of,
)

# A client that was away for longer than this history is told what is left (RFC 7162 §3.2.5.1).
HISTORY_ROWS = 4096
HISTORY_OCTETS = 1 << 20
_TRIM_EVERY = 64  # modseqs


class Addition(msgspec.Struct):
    """A message to be added to a mailbox."""

    prepared: Prepared
    flags: Sequence[str]
    internal_date: int  # seconds since 1970
    uid: int = 0  # an import keeps it when it is free; 0: the next one


def message_keys(records: bytes) -> array[int]:
    return array("Q", record_column(records, "message"))


def uids(records: bytes) -> array[int]:
    return array("I", record_column(records, "uid"))


class Messages:
    """The messages of one account."""

    def __init__(self, database: Database, contents: Contents) -> None:
        self._database = database
        self._contents = contents

    def add(self, row: IndexRow, additions: Sequence[Addition]) -> list[Delivered]:
        """They get the next UIDs and one MODSEQ; the caller saves nothing."""
        (key,) = self._database.row("SELECT uidnext FROM mailbox WHERE id=0") or (1,)
        first = key
        now = int(time.time())
        records = []
        delivered = []
        row.highestmodseq += 1
        for addition in additions:
            prepared = addition.prepared
            uid = max(addition.uid, row.uidnext)
            if uid > UID_MAX:
                raise LimitReached(f"{row.name} has used up its UIDs")
            row.uidnext = uid + 1
            flags = row.bits(addition.flags) if addition.flags else 0
            records.append(
                RECORD.pack(
                    uid,
                    prepared.size,
                    flags,
                    row.highestmodseq,
                    key,
                    addition.internal_date,
                    now,
                    prepared.sent_date,
                )
            )
            delivered.append(
                Delivered(row.name, row.id, uid, row.uidvalidity, row.highestmodseq, key)
            )
            key += 1
        self._contents.insert(first, (addition.prepared for addition in additions))
        append(self._database, row, b"".join(records))
        self._database.execute("UPDATE mailbox SET uidnext=? WHERE id=0", (key,))
        row.save(self._database)
        return delivered

    def adopt(self, row: IndexRow, keys: Sequence[int]) -> None:
        """Messages that no mailbox has get a place in this one; the caller saves nothing."""
        now = int(time.time())
        row.highestmodseq += 1
        records = []
        for key in keys:
            (content,) = self._contents.read([key])
            if isinstance(content, StoreError):
                raise content
            octets = content.header + content.body
            sent_date = message_facts(octets).sent_date
            records.append(
                RECORD.pack(
                    row.uidnext,
                    len(octets),
                    0,
                    row.highestmodseq,
                    key,
                    sent_date or now,
                    now,
                    sent_date,
                )
            )
            row.uidnext += 1
        append(self._database, row, b"".join(records))
        row.save(self._database)

    def store(
        self,
        mailbox: int,
        ranges: bytes,
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        replace: Sequence[str] | None = None,
        unchanged_since: int = NEVER,
    ) -> Stored:
        """RFC 9051 §6.4.6; replace: the flags are these afterwards."""
        row = row_of(self._database, mailbox)
        keywords = row.keywords
        if replace is not None:
            clear, bits = 2**64 - 1, row.bits(replace)
        else:
            bits = row.bits(add)
            known = {flag.lower() for flag in row.keywords.split()}
            clear = row.bits([f for f in remove if f.startswith("\\") or f.lower() in known])
        modseq = row.highestmodseq + 1
        changed: list[bytes] = []
        refused: list[bytes] = []

        def work(records: bytes) -> bytes | None:
            new, touched, left, _, _ = store_flags(records, ranges, clear, bits, modseq, unchanged_since)
            changed.append(touched)
            refused.append(left)
            return new

        settled = settle_flags(self._database, row)
        change(self._database, row, ranges, work)
        touched = b"".join(changed)
        if touched:
            row.highestmodseq = modseq
        if touched or settled or row.keywords != keywords:
            row.save(self._database)
        return Stored(touched, b"".join(refused), modseq if touched else 0)

    def expunge(self, mailbox: int, ranges: bytes, *, deleted_only: bool = True) -> Expunged:
        """RFC 9051 §6.4.3; deleted_only: those of the ranges that have \\Deleted."""
        row = row_of(self._database, mailbox)
        removed, keys = self._remove(row, ranges, DELETED if deleted_only else 0)
        if not removed:
            return Expunged(b"", 0)
        self._contents.release(keys)
        row.save(self._database)
        return Expunged(removed, row.highestmodseq)

    def _remove(self, row: IndexRow, ranges: bytes, must: int) -> tuple[bytes, array[int]]:
        """The records are out of the index and in the history; the caller saves the row.

        Returns their UIDs, as u32, and the keys of their messages: 12 octets each of maybe a million.
        """
        found = bytearray()
        keys = array("Q")

        def work(records: bytes) -> bytes | None:
            kept, gone = split_records(records, ranges, must)
            if not gone:
                return None
            found.extend(record_column(gone, "uid"))
            keys.frombytes(record_column(gone, "message"))
            return kept

        change(self._database, row, ranges, work)
        removed = bytes(found)
        if removed:
            row.highestmodseq += 1
            gone = ranges_of_uids(removed)
            self._database.execute(
                "INSERT INTO expunged VALUES(?,?,?)", (row.id, row.highestmodseq, gone)
            )
            if row.highestmodseq % _TRIM_EVERY == 0:
                self._trim_history(row)
        return removed, keys

    def _trim_history(self, row: IndexRow) -> None:
        octets = 0
        sql = "SELECT modseq, length(ranges) FROM expunged WHERE mailbox=? ORDER BY modseq DESC"
        rows = self._database.execute(sql, (row.id,)).fetchall()
        for count, (modseq, length) in enumerate(rows, 1):
            octets += length
            if count > HISTORY_ROWS or octets > HISTORY_OCTETS:
                self._database.execute(
                    "DELETE FROM expunged WHERE mailbox=? AND modseq<=?", (row.id, modseq)
                )
                row.history_modseq = modseq
                return

    def copy(self, source: int, target: int, ranges: bytes, *, move: bool = False) -> Copied:
        """RFC 9051 §6.4.7, §6.4.8: flags, dates and octets are the same, UID, MODSEQ and save date new."""
        origin = row_of(self._database, source)
        into = row_of(self._database, target) if target != source else origin
        taken: list[bytes] = []

        def take(records: bytes) -> None:
            taken.append(split_records(records, ranges)[1])

        change(self._database, origin, ranges, take)
        records = b"".join(taken)
        if not records:
            return Copied(into.uidvalidity, b"", b"")
        count = len(records) // RECORD.size
        if into.uidnext + count - 1 > UID_MAX:
            raise LimitReached(f"{into.name} has used up its UIDs")
        into.highestmodseq += 1
        modseq = into.highestmodseq
        bits = _keyword_bits(origin, into, or_flags(records))
        copies = copy_records(records, into.uidnext, modseq, int(time.time()), bits)
        new_uids = array("I", range(into.uidnext, into.uidnext + count))
        into.uidnext += count
        append(self._database, into, copies)
        old_uids = record_column(records, "uid")
        removed_modseq = 0
        if move:
            self._remove(origin, ranges_of_uids(old_uids), 0)
            removed_modseq = origin.highestmodseq
            origin.save(self._database)
        else:
            self._contents.share(message_keys(records))
        if into is not origin:
            into.save(self._database)
        elif not move:
            origin.save(self._database)
        return Copied(into.uidvalidity, old_uids, new_uids.tobytes(), modseq, removed_modseq)

    def changes(self, mailbox: int, modseq: int) -> Changes:
        """What happened after that MODSEQ; within a read transaction."""
        row = row_of(self._database, mailbox)
        if modseq >= row.highestmodseq:
            return Changes(row.mailbox(), [], b"", True)
        changed = [
            records
            for chunk in load(self._database, row, modseq)
            if (records := changed_records(chunk, modseq))
        ]
        gone: Iterable[int] = (
            uid
            for (ranges,) in self._database.execute(
                "SELECT ranges FROM expunged WHERE mailbox=? AND modseq>? ORDER BY modseq",
                (mailbox, modseq),
            )
            for uid in range_uids(ranges)
        )
        return Changes(row.mailbox(), changed, ranges_of(gone), modseq >= row.history_modseq)


def changed_records(records: bytes, modseq_above: int) -> bytes:
    """The records whose modseq is above that."""
    return newer_records(bytes(4 * (len(records) // RECORD.size)), records, modseq_above)[1]


def range_uids(ranges: bytes) -> Iterator[int]:
    """Every UID of packed ranges."""
    pairs = array("I", ranges)
    for at in range(0, len(pairs), 2):
        yield from range(pairs[at], pairs[at + 1] + 1)


def _keyword_bits(origin: IndexRow, into: IndexRow, used: int) -> bytes | None:
    """The bit in the other mailbox of each keyword of this one; what is not used gets none there."""
    if origin is into or origin.keywords == into.keywords or used <= SYSTEM_MASK:
        return None
    words = origin.keywords.split()
    return bytes(
        into.bits((word,)).bit_length() - 1 if used >> (KEYWORD_BIT + at) & 1 else 0
        for at, word in enumerate(words)
    )
