"""Is everything as it should be, and if not: put it right, and say what was lost.

    Owns      check_account(), Report, Finding
    Flow      database pages → index of each mailbox → every message → references → files
    Files     <account>/damaged/: what was left of messages that are not as they were written, or lost their rows
    Limits    memory: 16 octets a message
    Errors    StoreError when the account cannot be opened, or is in use while its file must be replaced
    Blocking  everything; reads every octet of the account
    Bugs      a message that lost its record comes back without its flags, in RECOVERED

Repairs are transactions like any other: sessions may go on meanwhile.  Only a file that SQLite itself finds damaged
has to be replaced, and then nobody else may have it open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway._native import (
    RECORD_OCTETS,
    apply_flag_log,
    record_column,
    records_ascend,
    sum_records,
)
from gateway.config_store import StoreConfig
from gateway.store.account import AccountFile
from gateway.store.content import make_directory
from gateway.store.database import Database, errors
from gateway.store.errors import NoSuchAccount, StoreBusy, StoreDamaged, StoreError
from gateway.store.index import (
    IndexRow,
    all_rows,
    check_head,
    head_of,
    replace,
)
from gateway.store.model import FLAG_CHANGE, RECORD, UID_MAX, Record, ranges_of, records_of
from gateway.store.salvage import salvage

RECOVERED = "Recovered messages"
_PROGRESS_EVERY = 256
_UPLOAD_S = 600  # a file that was not written to for so long is no upload any more


class Finding(msgspec.Struct, frozen=True):
    """One thing that was not right."""

    what: str
    repaired: bool
    lost: bool = False  # something of the user's is gone


class Report(msgspec.Struct):
    """What a check found."""

    account: str
    mailboxes: int = 0
    messages: int = 0
    octets: int = 0
    findings: list[Finding] = []

    @property
    def clean(self) -> bool:
        return not self.findings


Progress = Callable[[int, int], None]  # messages read, messages in all


def check_account(
    directory: Path,
    settings: StoreConfig,
    *,
    account: str = "",
    repair: bool = True,
    progress: Progress = lambda _done, _all: None,
) -> Report:
    """The account's report; with repair nothing of it is true any more afterwards."""
    if not (directory / "store.db").exists():
        raise NoSuchAccount(f"{account or directory} has no mailboxes")
    report = Report(account)
    report.findings = []
    damage = _pages(directory / "store.db")
    if damage is not None:
        _replace_file(directory, report, damage, repair)
        if not repair:
            return report
    abandoned = _files_nobody_writes(directory)
    file = AccountFile(directory, settings, create=True)
    try:
        _Check(file, report, repair, progress, abandoned).run()
    finally:
        file.close()
    return report


def _pages(path: Path) -> str | None:
    """What SQLite finds wrong with the file, or None."""
    try:
        database = Database(path)
    except (StoreDamaged, StoreError) as error:
        if isinstance(error, StoreBusy):
            raise
        return str(error)
    try:
        with errors(path):
            for (line,) in database.execute("PRAGMA integrity_check(10)"):
                if line != "ok":
                    return str(line)
    except StoreDamaged as error:
        return str(error)
    finally:
        database.close()
    return None


def _replace_file(directory: Path, report: Report, damage: str, repair: bool) -> None:
    if not repair:
        report.findings.append(Finding(f"the database file is damaged: {damage}", False))
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreBusy(
                f"{directory} is in use and its file must be replaced: stop the gateway first"
            ) from None
        kept = salvage(
            directory / "store.db",
            lambda line: report.findings.append(Finding(line, True, lost=True)),
        )
        report.findings.append(
            Finding(f"the database file was damaged ({damage}); it is kept as {kept.name}", True)
        )
    finally:
        os.close(fd)


def _files_nobody_writes(directory: Path) -> frozenset[str]:
    """The large bodies, when nobody has the account open; none when somebody has."""
    with errors(directory):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return frozenset(os.listdir(directory / "large"))
        except (BlockingIOError, FileNotFoundError):
            return frozenset()
        finally:
            os.close(fd)


class _Check:
    """One account being checked."""

    def __init__(
        self,
        file: AccountFile,
        report: Report,
        repair: bool,
        progress: Progress,
        abandoned: frozenset[str],
    ) -> None:
        """abandoned: files of large bodies that no delivery is about to commit."""
        self._file = file
        self._database = file.database
        self._report = report
        self._repair = repair
        self._progress = progress
        self._abandoned = abandoned

    def run(self) -> None:
        self._indexes()
        self._messages()
        self._large_files()
        with self._database.read():
            rows = [row for row in all_rows(self._database) if row.selectable]
        self._report.mailboxes = len(rows)
        self._report.messages = sum(row.messages for row in rows)
        self._report.octets = sum(row.octets for row in rows)

    def _found(self, what: str, *, lost: bool = False) -> None:
        self._report.findings.append(Finding(what, self._repair, lost))

    # -- the index of each mailbox -------------------------------------------------------------------------------

    def _indexes(self) -> None:
        with self._database.write():
            rows = all_rows(self._database)
            known = {row.id for row in rows}
            self._root(rows)
            for row in rows:
                self._index(row)
            strange = [
                chunk
                for (chunk,) in self._database.execute("SELECT id FROM chunk")
                if chunk >> 32 not in known
            ]
            for chunk in strange:  # its messages turn up as unreferenced, and are recovered
                self._found(f"index of mailbox {chunk >> 32}, which does not exist")
                if self._repair:
                    replace(self._database, chunk, b"")
            for table in ("acl", "annotation"):
                unowned = f"FROM {table} WHERE mailbox NOT IN (SELECT id FROM mailbox)"
                if self._database.row(f"SELECT 1 {unowned}"):
                    self._found(f"{table} of mailboxes that do not exist")
                    if self._repair:
                        self._database.execute(f"DELETE {unowned}")

    def _root(self, rows: list[IndexRow]) -> None:
        root = self._database.row(
            "SELECT uidnext, highestmodseq, uidvalidity FROM mailbox WHERE id=0"
        )
        (last_key,) = self._database.row("SELECT max(id) FROM message") or (None,)
        wanted = (
            max((last_key or 0) + 1, root[0] if root else 1),
            max([row.id for row in rows] + [root[1] if root else 0]),
            max([row.uidvalidity for row in rows] + [root[2] if root else 0]),
        )
        if root != wanted:
            self._found("the account's own counters")
            if self._repair:
                self._database.execute(
                    "UPDATE mailbox SET uidnext=?, highestmodseq=?, uidvalidity=? WHERE id=0",
                    wanted,
                )

    def _index(self, row: IndexRow) -> None:
        totals = [0, 0, 0, 0]
        last_uid = 0
        highest = max((change[4] for change in FLAG_CHANGE.iter_unpack(row.flag_log)), default=0)
        bounds = (row.id << 32, row.id << 32 | UID_MAX)
        chunks = [
            chunk
            for (chunk,) in self._database.execute(
                "SELECT id FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id", bounds
            )
        ]
        for chunk in [*chunks, None]:
            head, records = self._chunk(chunk, row)
            whole = records[: len(records) // RECORD_OCTETS * RECORD_OCTETS]
            lowest = 0 if chunk is None else (chunk & UID_MAX) - 1
            sound = _sorted_records(whole, max(last_uid, lowest))
            if sound != records:
                self._found(
                    f"{row.name}: records from UID {last_uid + 1} on out of order", lost=True
                )
            elif head is not None and not check_head(head, records):
                self._found(
                    f"{row.name}: the index from UID {last_uid + 1} on does not match its checksum"
                )
            if chunk is None:
                row.tail = sound
            elif self._repair and (
                sound != records or head is None or head != head_of(records) or not records
            ):
                replace(self._database, chunk, sound)
            if not sound:
                continue
            now = apply_flag_log(sound, row.flag_log)
            count, unseen, deleted, octets, modseq, _ = sum_records(now)
            for at, value in enumerate((count, unseen, deleted, octets)):
                totals[at] += value
            highest = max(highest, modseq)
            last_uid = int.from_bytes(sound[-RECORD_OCTETS:][:4], "little")
        counters = [row.messages, row.unseen, row.deleted, row.octets]
        if counters != totals:
            self._found(f"{row.name}: counters were {counters}, are {totals}")
            row.messages, row.unseen, row.deleted, row.octets = totals
        if row.uidnext <= last_uid or row.highestmodseq < highest:
            self._found(f"{row.name}: UIDNEXT or HIGHESTMODSEQ too low")
            row.uidnext = max(row.uidnext, last_uid + 1)
            row.highestmodseq = max(row.highestmodseq, highest)
        if self._repair:
            row.save(self._database)

    def _chunk(self, chunk: int | None, row: IndexRow) -> tuple[bytes | None, bytes]:
        if chunk is None:
            return None, row.tail
        found = self._database.row("SELECT head, records FROM chunk WHERE id=?", (chunk,))
        return (found[0], found[1]) if found is not None else (b"", b"")

    def _index_of(self, row: IndexRow) -> list[bytes]:
        """The chunks as they are, damaged or not."""
        bounds = (row.id << 32, row.id << 32 | UID_MAX)
        chunks = [
            records
            for (records,) in self._database.execute(
                "SELECT records FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id", bounds
            )
        ]
        return [c[: len(c) // RECORD_OCTETS * RECORD_OCTETS] for c in (*chunks, row.tail)]

    # -- messages ------------------------------------------------------------------------------------------------

    def _messages(self) -> None:
        """Each message is read once; what points at it is counted."""
        with self._database.read():
            rows = all_rows(self._database)
            referenced = array("Q")
            for row in rows:
                for records in self._index_of(row):
                    referenced.frombytes(record_column(records, "message"))
            references = array("Q", sorted(referenced))
            keys = array("Q", (key for (key,) in self._database.execute("SELECT id FROM message")))
            garbage = {key for (key,) in self._database.execute("SELECT message FROM garbage")}
            shared = dict(self._database.execute("SELECT message, copies FROM shared"))
        bad: set[int] = set()
        orphans: list[int] = []
        at = 0
        for done, key in enumerate(keys):
            if done % _PROGRESS_EVERY == 0:
                self._progress(done, len(keys))
            while at < len(references) and references[at] < key:
                bad.add(references[at])  # a record without a message
                at += 1
            start = at
            while at < len(references) and references[at] == key:
                at += 1
            count = at - start
            if count == 0 and key not in garbage:
                orphans.append(key)
            if count and shared.get(key, 0) != count - 1:
                self._found(f"message {key}: {count} references, counted {shared.get(key, 0) + 1}")
                self._set_copies(key, count)
            if count and not self._is_sound(key):
                bad.add(key)
        bad.update(references[at:])
        self._progress(len(keys), len(keys))
        if bad:
            self._remove_lost(rows, bad)
        if orphans:
            self._recover(orphans)

    def _set_copies(self, key: int, count: int) -> None:
        if self._repair:
            with self._database.write():
                self._database.execute("DELETE FROM shared WHERE message=?", (key,))
                if count > 1:
                    self._database.execute("INSERT INTO shared VALUES(?,?)", (key, count - 1))

    def _is_sound(self, key: int) -> bool:
        (result,) = self._file.read([key])
        return not isinstance(result, StoreError)

    def _remove_lost(self, rows: list[IndexRow], bad: set[int]) -> None:
        """Messages that cannot be read as written leave their mailboxes; what is left of them is kept aside."""
        keys = sorted(bad)
        for row in rows:
            uids: list[int] = []
            for records in self._index_of(row):
                for record in records_of(records):
                    place = bisect_left(keys, record.message)
                    if place < len(keys) and keys[place] == record.message:
                        uids.append(record.uid)
                        self._name_lost(row, record)
            if uids and self._repair:
                self._file.expunge(row.id, ranges_of(uids), deleted_only=False)

    def _name_lost(self, row: IndexRow, record: Record) -> None:
        left = self._database.row("SELECT header, body FROM message WHERE id=?", (record.message,))
        what = f"{row.name} UID {record.uid} is lost: "
        if left is None:
            self._found(what + "its octets are gone", lost=True)
            return
        octets = (left[0] or b"") + (left[1] or b"")
        if self._repair:
            path = self._file.directory / "damaged"
            with errors(path):
                make_directory(path)
                name = path / f"{int(time.time())}-{row.id}-{record.uid}.eml"
                name.write_bytes(octets)
            what += (
                f"it is not as it was written; {len(octets)} octets are kept in damaged/{name.name}"
            )
        else:
            what += "it is not as it was written"
        self._found(what, lost=True)

    def _recover(self, orphans: list[int]) -> None:
        """Messages that no mailbox has: what a damaged index leaves.  They come back, unseen."""
        readable = [key for key in orphans if self._is_sound(key)]
        self._found(
            f"{len(orphans)} messages are in no mailbox; {len(readable)} can be read and are put into {RECOVERED!r}",
            lost=len(readable) < len(orphans),
        )
        if not self._repair:
            return
        self._file.adopt(readable, RECOVERED)
        unreadable = set(orphans).difference(readable)
        with self._database.write():
            self._database.executemany(
                "INSERT OR IGNORE INTO garbage VALUES(?)", ((key,) for key in unreadable)
            )

    # -- files ---------------------------------------------------------------------------------------------------

    def _large_files(self) -> None:
        """A file without a message is what a crash left of an upload; after damage it may be all that is left."""
        damaged = not self._report.clean
        if self._repair:
            while self._file.reclaim():
                pass
        directory = self._file.directory / "large"
        if not directory.is_dir():
            return
        there = {path.name: path for path in directory.iterdir()}
        with self._database.read():
            known = {
                name
                for (name,) in self._database.execute(
                    "SELECT file FROM message WHERE file IS NOT NULL"
                )
            }
        for name in sorted(set(there).difference(known)):
            path = there[name]
            with errors(path), contextlib.suppress(FileNotFoundError):
                if name not in self._abandoned and time.time() - path.stat().st_mtime < _UPLOAD_S:
                    continue  # somebody may be about to commit it
                if damaged:
                    self._found(f"large/{name} belongs to no message; it is kept in damaged/")
                if self._repair:
                    self._put_away(path, keep=damaged)

    def _put_away(self, path: Path, *, keep: bool) -> None:
        if keep:
            aside = self._file.directory / "damaged"
            make_directory(aside)
            path.rename(aside / path.name)
        else:
            path.unlink()


def _sorted_records(records: bytes, above: int) -> bytes:
    """The records in order, each UID once, none at or below `above`."""
    if records_ascend(records, above):
        return records
    found: dict[int, bytes] = {}
    for at in range(0, len(records), RECORD_OCTETS):
        record = records[at : at + RECORD_OCTETS]
        uid = RECORD.unpack(record)[0]
        if uid > above:
            found.setdefault(uid, record)
    return b"".join(found[uid] for uid in sorted(found))
