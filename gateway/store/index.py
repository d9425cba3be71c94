"""The index of a mailbox: packed records in chunks, and a short tail in the mailbox's own row.

    Owns      IndexRow; load(), load_after(), record_of(), append(), change(), log_flags(), settle_flags()
    Flow      delivery → tail (TAIL_RECORDS at most) → merged into the last chunk → full chunk (CHUNK_RECORDS)
              STORE of what the asker knows → flag log (FLAG_LOG_CHANGES at most) → the chunks, all at once
    Files     tables mailbox and chunk; a chunk's id is mailbox id « 32 | the lowest UID it may hold
    Limits    a delivery writes 48 octets and, once in 32, a chunk of 24 KiB; a STORE 32 octets and, once in 64, chunks
    Errors    StoreDamaged for records that do not match their chunk's checksum
    Blocking  everything; within a transaction of the caller

Flags and sequence numbers are not rows: a session works on the chunks as arrays (_native/store_index.pyx), and a
change of ten thousand flags writes twenty chunks.  SQLite overwrites a row of unchanged length in place and journals
only the pages that differ, so that one flag costs one or two pages.

The flag log is cheaper still: one page for any number of flags.  It has what was asked for, not what became of it:
(flags & ~clear) | set, for UIDs from first to last, with a MODSEQ.  Whoever reads a chunk applies it; a record that has
that MODSEQ or a higher one has had it (RFC 7162 §3.1: each change has a higher one than the one before), so that
chunks may be written with it or without, in any order, and it means the same until it is emptied.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator

import msgspec

from gateway._native import RECORD_OCTETS, apply_flag_log, crc32c, split_records, sum_records
from gateway.store.database import Database
from gateway.store.errors import LimitReached, NoSuchMailbox, StoreDamaged
from gateway.store.model import (
    FLAG_CHANGE,
    KEYWORD_BIT,
    KEYWORDS_MAX,
    SYSTEM_FLAGS_LOWER,
    UID_MAX,
    Mailbox,
    Record,
    records_of,
)

TAIL_RECORDS = 32
CHUNK_RECORDS = 512
MERGE_RECORDS = (
    128  # a chunk that an expunge leaves with less joins the one before it, if that has room
)

FLAG_LOG_CHANGES = 64  # with the tail and the rest of the row they have a page
SETTLED_AT_ONCE = 4  # chunks that take a log over without a thread

_HEAD = struct.Struct(
    "<IIIIQQ"
)  # records, unseen, deleted, CRC-32C of the records, octets, highest modseq
_COLUMNS = (
    "id, name, uidvalidity, uidnext, highestmodseq, messages, unseen, deleted, octets, recent_uid, "
    "history_modseq, selectable, subscribed, special_use, keywords, tail, flag_log"
)


class IndexRow(msgspec.Struct):
    """A row of the table mailbox, being worked on."""

    id: int
    name: str
    uidvalidity: int
    uidnext: int
    highestmodseq: int
    messages: int
    unseen: int
    deleted: int
    octets: int
    recent_uid: int  # UIDs from here on were not told as \\Recent
    history_modseq: int  # expunges after this one are in the history
    selectable: int
    subscribed: int
    special_use: str  # words, separated by space
    keywords: str  # the same, in the order of their bits
    tail: bytes  # the last records
    flag_log: bytes = b""  # changes that records of the chunks may not have had

    def __post_init__(self) -> None:
        if self.flag_log:
            self.tail = apply_flag_log(self.tail, self.flag_log)

    def mailbox(self) -> Mailbox:
        """As the callers of the store see it."""
        recent = min(self.messages, max(0, self.uidnext - self.recent_uid))
        return Mailbox(
            self.id,
            self.name,
            self.uidvalidity,
            self.uidnext,
            self.highestmodseq,
            self.messages,
            self.unseen,
            self.deleted,
            self.octets,
            recent,
            tuple(self.special_use.split()),
            bool(self.subscribed),
            tuple(self.keywords.split()),
            bool(self.selectable),
        )

    def bits(self, flags: Iterable[str]) -> int:
        """The bits of these flags; unknown keywords get one.  Raises LimitReached."""
        bits = 0
        known: list[str] | None = None
        for flag in flags:
            lower = flag.lower()
            bit = SYSTEM_FLAGS_LOWER.get(lower)
            if bit is None:
                if known is None:
                    known = self.keywords.lower().split()
                if lower not in known:
                    if len(known) == KEYWORDS_MAX:
                        raise LimitReached(f"{self.name} has {KEYWORDS_MAX} keywords already")
                    known.append(lower)
                    self.keywords = f"{self.keywords} {flag}".strip()
                bit = 1 << (KEYWORD_BIT + known.index(lower))
            bits |= bit
        return bits

    def save(self, database: Database) -> None:
        database.execute(
            "UPDATE mailbox SET uidnext=?2, highestmodseq=?3, messages=?4, unseen=?5, deleted=?6, octets=?7, "
            "recent_uid=?8, history_modseq=?9, keywords=?10, tail=?11, flag_log=?12 WHERE id=?1",
            (
                self.id,
                self.uidnext,
                self.highestmodseq,
                self.messages,
                self.unseen,
                self.deleted,
                self.octets,
                self.recent_uid,
                self.history_modseq,
                self.keywords,
                self.tail,
                self.flag_log,
            ),
        )


def row_of(database: Database, mailbox: int) -> IndexRow:
    """Raises NoSuchMailbox."""
    row = database.row(f"SELECT {_COLUMNS} FROM mailbox WHERE id=?", (mailbox,))
    if row is None:
        raise NoSuchMailbox("the mailbox was deleted")
    return IndexRow(*row)


def row_named(database: Database, name: str) -> IndexRow | None:
    row = database.row(f"SELECT {_COLUMNS} FROM mailbox WHERE name=?", (name,))
    return None if row is None else IndexRow(*row)


def all_rows(database: Database) -> list[IndexRow]:
    """Every mailbox but the account's own row, by name."""
    rows = database.execute(f"SELECT {_COLUMNS} FROM mailbox WHERE id>0 ORDER BY name")
    return [IndexRow(*row) for row in rows]


def _bounds(mailbox: int, first: int = 0, last: int = UID_MAX) -> tuple[int, int]:
    return mailbox << 32 | first, mailbox << 32 | last


def head_of(records: bytes) -> bytes:
    """What the directory of chunks tells of them."""
    count, unseen, deleted, octets, modseq, _ = sum_records(records)
    return _HEAD.pack(count, unseen, deleted, crc32c(records), octets, modseq)


def check_head(head: bytes, records: bytes) -> bool:
    """True when the records are those that the head was made for."""
    return len(head) == _HEAD.size and crc32c(records) == _HEAD.unpack(head)[3]


def _checked(row: IndexRow, chunk: int, head: bytes, records: bytes) -> bytes:
    """The records as they are now."""
    if not check_head(head, records):
        raise StoreDamaged(
            f"the index of mailbox {chunk >> 32} is damaged from UID {chunk & UID_MAX} on: "
            "run `gateway mailbox check`"
        )
    return apply_flag_log(records, row.flag_log) if row.flag_log else records


def load(database: Database, row: IndexRow, modseq_above: int = 0) -> Iterator[bytes]:
    """The chunks that have a record changed after that modseq, in order, the tail last."""
    bounds = _bounds(row.id)
    if modseq_above == 0:
        sql = "SELECT id, head, records FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id"
        for found in database.execute(sql, bounds):
            yield _checked(row, *found)
    else:
        sql = "SELECT id, head FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id"
        heads = database.execute(sql, bounds).fetchall()
        logged = _logged(row, [chunk for chunk, _ in heads], modseq_above)
        for chunk, head in heads:
            if _HEAD.unpack(head)[5] > modseq_above or chunk in logged:
                for found in database.execute(
                    "SELECT id, head, records FROM chunk WHERE id=?", (chunk,)
                ):
                    yield _checked(row, *found)
    if row.tail:
        yield row.tail


def _logged(row: IndexRow, chunks: list[int], modseq_above: int = 0) -> set[int]:
    """Those of the chunks, in order, that changes of the flag log with a higher MODSEQ may be about."""
    found: set[int] = set()
    for first, last, _, _, modseq in FLAG_CHANGE.iter_unpack(row.flag_log):
        if modseq > modseq_above:
            low, high = _bounds(row.id, first, last)
            found.update(chunks[max(0, bisect_right(chunks, low) - 1) : bisect_right(chunks, high)])
    return found


def load_newest(database: Database, row: IndexRow) -> Iterator[bytes]:
    """The tail, then the chunks, the last one first."""
    if row.tail:
        yield row.tail
    sql = "SELECT id, head, records FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id DESC"
    for found in database.execute(sql, _bounds(row.id)):
        yield _checked(row, *found)


def load_after(
    database: Database, row: IndexRow, uid: int, chunks: int
) -> tuple[list[bytes], bool]:
    """The records above that UID, about so many chunks of them, in order; False: that is all."""
    low, high = _bounds(row.id, uid, UID_MAX)
    first = database.row(
        "SELECT max(id) FROM chunk WHERE id BETWEEN ? AND ?", (row.id << 32, low)
    )
    start = first[0] if first is not None and first[0] is not None else low
    found: list[bytes] = []
    sql = "SELECT id, head, records FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
    for chunk in database.execute(sql, (start, high, chunks + 1)):
        found.append(_above(_checked(row, *chunk), uid))
    more = len(found) > chunks
    if not more:
        found.append(_above(row.tail, uid))
    return [records for records in found if records], more


def _above(records: bytes, uid: int) -> bytes:
    """Those of the records whose UID is above that."""
    if not records or int.from_bytes(records[:4], "little") > uid:
        return records
    return split_records(records, struct.pack("<II", uid + 1, UID_MAX))[1]


def record_of(database: Database, row: IndexRow, uid: int) -> Record | None:
    """The message with that UID."""
    sql = "SELECT id, head, records FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1"
    found = database.row(sql, _bounds(row.id, 0, uid))
    wanted = struct.pack("<II", uid, uid)
    for records in (_checked(row, *found) if found is not None else b"", row.tail):
        for record in records_of(split_records(records, wanted)[1]):
            return record
    return None


def first_unseen(database: Database, row: IndexRow) -> tuple[int, int]:
    """(messages before it, UID) of the first message without \\Seen; (messages, 0) when there is none."""
    before = 0
    sql = "SELECT id, head FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id"
    heads = database.execute(sql, _bounds(row.id)).fetchall()
    logged = _logged(row, [chunk for chunk, _ in heads])
    for chunk, head in heads:
        count, unseen = _HEAD.unpack(head)[:2]
        if unseen or chunk in logged:
            found = database.row("SELECT id, head, records FROM chunk WHERE id=?", (chunk,))
            records = _checked(row, *found) if found is not None else b""
            uid = sum_records(records)[5]
            if uid:
                return before + _position(records, uid), uid
        before += count
    uid = sum_records(row.tail)[5]
    return (before + _position(row.tail, uid), uid) if uid else (row.messages, 0)


def _position(records: bytes, uid: int) -> int:
    wanted = struct.pack("<I", uid)
    for at in range(0, len(records), RECORD_OCTETS):
        if records[at : at + 4] == wanted:
            return at // RECORD_OCTETS
    return 0


def append(database: Database, row: IndexRow, records: bytes) -> None:
    """Add records with new UIDs; the row's counters follow, the caller saves it."""
    count, unseen, deleted, octets, _, _ = sum_records(records)
    row.messages += count
    row.unseen += unseen
    row.deleted += deleted
    row.octets += octets
    row.tail += records
    if len(row.tail) >= TAIL_RECORDS * RECORD_OCTETS:
        _merge_tail(database, row)


def _merge_tail(database: Database, row: IndexRow) -> None:
    full = CHUNK_RECORDS * RECORD_OCTETS
    records, row.tail = row.tail, b""
    last = database.row(
        "SELECT id, head, records FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
        _bounds(row.id),
    )
    if last is not None and len(last[2]) < full:
        room = full - len(last[2])
        joined = _checked(row, *last) + records[:room]
        records = records[room:]
        replace(database, last[0], joined)
    for at in range(0, len(records), full):
        part = records[at : at + full]
        first = int.from_bytes(part[:4], "little")
        database.execute(
            "INSERT INTO chunk VALUES(?,?,?)", (row.id << 32 | first, head_of(part), part)
        )


def replace(database: Database, chunk: int, records: bytes) -> None:
    """A chunk is these records from now on; it is gone when there are none."""
    if records:
        database.execute(
            "UPDATE chunk SET head=?2, records=?3 WHERE id=?1", (chunk, head_of(records), records)
        )
    else:
        database.execute("DELETE FROM chunk WHERE id=?", (chunk,))


def change(
    database: Database, row: IndexRow, ranges: bytes, work: Callable[[bytes], bytes | None]
) -> None:
    """Pass each chunk that the ranges touch through `work`: new records, or None to leave it as it is.

    The row's counters follow, the caller saves it.
    """
    if not ranges:
        return
    low, high = int.from_bytes(ranges[:4], "little"), int.from_bytes(ranges[-4:], "little")
    first = database.row(
        "SELECT max(id) FROM chunk WHERE id BETWEEN ? AND ?", _bounds(row.id, 0, low)
    )
    start = first[0] if first is not None and first[0] is not None else row.id << 32
    shrunk = False
    for (chunk,) in database.execute(
        "SELECT id FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id", (start, row.id << 32 | high)
    ).fetchall():
        found = database.row("SELECT id, head, records FROM chunk WHERE id=?", (chunk,))
        if found is None:
            continue
        records = _checked(row, *found)
        new = work(records)
        if new is not None:
            _recount(row, records, new)
            replace(database, chunk, new)
            shrunk = shrunk or len(new) < len(records)
    if row.tail:
        new = work(row.tail)
        if new is not None:
            _recount(row, row.tail, new)
            row.tail = new
    if shrunk:
        _join_small(database, row, start, row.id << 32 | high)


def log_flags(
    database: Database, mailbox: int, modseq: int, log: bytes, unseen: int, deleted: int
) -> bool:
    """A transaction: the mailbox gets these changes, whose MODSEQ is the next one, if it is at that MODSEQ.

    unseen, deleted: how many more messages are without \\Seen, with \\Deleted.  False: others changed it, or the log
    is full.  Raises NotNow.
    """
    return database.attempt(  # the two are BLOBs, which || makes TEXT of the same octets
        "UPDATE mailbox SET highestmodseq=?2+1, unseen=unseen+?4, deleted=deleted+?5, "
        "flag_log=CAST(flag_log||?3 AS BLOB) WHERE id=?1 AND highestmodseq=?2 AND length(flag_log)<=?6",
        (mailbox, modseq, log, unseen, deleted, FLAG_LOG_CHANGES * FLAG_CHANGE.size - len(log)),
    )


def settle_flags(database: Database, row: IndexRow, chunks_max: int = 1 << 32) -> bool:
    """Write a flag log that is half full into the chunks, where those are few; True: the caller saves the row."""
    if len(row.flag_log) * 2 <= FLAG_LOG_CHANGES * FLAG_CHANGE.size:
        return False
    sql = "SELECT id FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id"
    chunks = _logged(row, [chunk for (chunk,) in database.execute(sql, _bounds(row.id))])
    if len(chunks) > chunks_max:
        return False
    for chunk in sorted(chunks):
        found = database.row("SELECT id, head, records FROM chunk WHERE id=?", (chunk,))
        assert found is not None
        records = _checked(row, *found)
        if records is not found[2]:
            replace(database, chunk, records)
    row.flag_log = b""
    return True


def _recount(row: IndexRow, old: bytes, new: bytes) -> None:
    before, after = sum_records(old), sum_records(new)
    row.messages += after[0] - before[0]
    row.unseen += after[1] - before[1]
    row.deleted += after[2] - before[2]
    row.octets += after[3] - before[3]


def _join_small(database: Database, row: IndexRow, start: int, end: int) -> None:
    """Chunks that an expunge left small are joined, lest a large mailbox keeps a directory of empty pages."""
    previous: tuple[int, int] | None = None  # (chunk, its records)
    sql = "SELECT id, head FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id"
    for chunk, head in database.execute(sql, (start, end)).fetchall():
        count = _HEAD.unpack(head)[0]
        if previous is not None and count < MERGE_RECORDS and previous[1] + count <= CHUNK_RECORDS:
            found = [
                database.row("SELECT records FROM chunk WHERE id=?", (which,))
                for which in (previous[0], chunk)
            ]
            joined = b"".join(one[0] for one in found if one is not None)
            replace(database, previous[0], joined)
            replace(database, chunk, b"")
            previous = (previous[0], len(joined) // RECORD_OCTETS)
        else:
            previous = (chunk, count)
