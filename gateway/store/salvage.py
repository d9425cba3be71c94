"""A damaged database file: what can be read of it becomes a new one.

    Owns      salvage()
    Flow      the account is ours alone → read row by row, leaving out what cannot be read → new file → rename
    Files     store.db.damaged-<seconds> is kept; store.db.new while it works
    Limits    one row in memory at a time
    Errors    StoreBusy while another process has the account open; StoreError kinds
    Blocking  everything, for as long as the file is large
    Bugs      none known

Message keys are dense, so each is tried; chunks are looked for from every 32nd UID on.  What the rows say of each other
is put right by check.py afterwards: it finds messages without a mailbox and records without a message.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw

from gateway._native import records_ascend, sum_records
from gateway.store.content import sync_directory
from gateway.store.database import Database, errors
from gateway.store.index import TAIL_RECORDS
from gateway.store.model import UID_MAX

_KEYS_WITHOUT_END = (
    1000  # keys in a row that are not there, when nothing says where the last one is
)
_MAILBOX_COLUMNS = 17  # the last one, flag_log, is not in files of earlier versions
_SMALL_TABLES = (("shared", 2), ("garbage", 1), ("expunged", 3), ("acl", 3), ("annotation", 5))


def salvage(path: Path, told: Callable[[str], None]) -> Path:
    """path is a whole database afterwards; returns where the damaged one is kept.

    The caller has the account for itself.  told gets a line for everything that could not be read.
    """
    fresh = path.with_name("store.db.new")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{fresh}{suffix}").unlink(missing_ok=True)
    database = Database(fresh, create=True)
    try:
        source = _open(path)
        if source is None:
            told("the database file cannot be read at all")
        else:
            _copy(source, database, told)
            source.close(True)
    finally:
        database.close()
    kept = path.with_name(f"store.db.damaged-{int(time.time())}")
    with errors(path):
        for suffix in ("-wal", "-shm"):
            log = Path(f"{path}{suffix}")
            if log.exists():
                log.rename(f"{kept}{suffix}")
        for suffix in ("", "-wal", "-shm"):  # keys may be given a second time: it is made again
            path.with_name(f"search.db{suffix}").unlink(missing_ok=True)
        path.rename(kept)
        fresh.rename(path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(path.parent)
    return kept


def _open(path: Path) -> apsw.Connection | None:
    try:
        source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        source.pragma("mmap_size", 0)
        source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    except apsw.Error:
        return None
    return source


def _copy(source: apsw.Connection, database: Database, told: Callable[[str], None]) -> None:
    with database.write():
        mailboxes = 0
        highest: dict[int, int] = {}
        for row in _by_key(source, "mailbox", 0, told):
            row = (*row, b"")[:_MAILBOX_COLUMNS]
            if len(row) == _MAILBOX_COLUMNS and all(isinstance(one, bytes) for one in row[15:]):
                marks = _marks(_MAILBOX_COLUMNS)
                database.execute(f"INSERT OR IGNORE INTO mailbox VALUES({marks})", row)
                mailboxes += 1
                highest[row[0]] = row[3]
    next_key = highest.pop(0, None)
    for mailbox, uidnext in sorted(highest.items()):
        with database.write():
            _copy_chunks(source, database, mailbox, uidnext, told)
    with database.write():
        last = next_key
        for count, row in enumerate(_by_key(source, "message", 1, told, next_key), 1):
            database.execute(f"INSERT OR IGNORE INTO message VALUES({_marks(6)})", row)
            last = max(last or 0, row[0] + 1)
            if count % 1000 == 0:
                database.execute("COMMIT")
                database.execute("BEGIN IMMEDIATE")
        if last is not None:
            database.execute("UPDATE mailbox SET uidnext=max(uidnext, ?) WHERE id=0", (last,))
    for table, columns in _SMALL_TABLES:
        with database.write():
            try:
                if not source.execute(
                    "SELECT 1 FROM sqlite_schema WHERE name=?", (table,)
                ).fetchall():
                    continue  # a file of an earlier version
                for row in source.execute(f"SELECT * FROM {table}"):
                    database.execute(
                        f"INSERT OR IGNORE INTO {table} VALUES({_marks(columns)})", row
                    )
            except apsw.Error as error:
                told(f"table {table}: {error}")


def _marks(count: int) -> str:
    return ",".join("?" * count)


def _by_key(
    source: apsw.Connection,
    table: str,
    first: int,
    told: Callable[[str], None],
    end: int | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Every row that can be read, by its key, one after the other."""
    missing = 0
    key = first
    sql = f"SELECT * FROM {table} WHERE id=?"
    while key < end if end is not None else missing < _KEYS_WITHOUT_END:
        try:
            found = source.execute(sql, (key,)).fetchall()
        except apsw.Error as error:
            told(f"{table} {key}: {error}")
            found = []
        missing = 0 if found else missing + 1
        yield from found
        key += 1


def _copy_chunks(
    source: apsw.Connection,
    database: Database,
    mailbox: int,
    uidnext: int,
    told: Callable[[str], None],
) -> None:
    at = mailbox << 32
    end = mailbox << 32 | min(uidnext, UID_MAX)
    broken = False
    while at <= end:
        found: list[Any]
        try:
            found = source.execute(
                "SELECT id, head, records FROM chunk WHERE id>=? AND id<=? ORDER BY id LIMIT 1",
                (at, end),
            ).fetchall()
        except apsw.Error as error:
            if not broken:
                told(f"mailbox {mailbox}, index from UID {at & UID_MAX} on: {error}")
            broken = True
            at += TAIL_RECORDS
            continue
        broken = False
        if not found:
            return
        row: Any = found[0]
        chunk, head, records = row
        if isinstance(records, bytes) and records and _plausible(records):
            database.execute("INSERT OR IGNORE INTO chunk VALUES(?,?,?)", (chunk, head, records))
        else:
            told(f"mailbox {mailbox}, index from UID {chunk & UID_MAX} on: damaged")
        at = chunk + 1


def _plausible(records: bytes) -> bool:
    try:
        return records_ascend(records) and sum_records(records)[0] > 0
    except ValueError:
        return False
