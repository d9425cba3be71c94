"""Where the octets of messages are: rows of the account's database, large ones in files of their own.

    Owns      Contents
    Flow      prepare() → write_large() → insert() in the transaction → read(); release() → reclaim()
    Files     table message: facts, header section, body; <account>/large/<random name>
    Limits    a body above LARGE_OCTETS is a file; a header above HEADER_OCTETS is kept with the body
    Errors    StoreDamaged when octets do not match their CRC-32C, or their file is gone
    Blocking  everything
    Bugs      a crash between a large file and its transaction, or between a removal and its unlink, leaves a file
              without a message: `gateway mailbox check` removes it

Body first, metadata second; delete in the other order.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import apsw
import msgspec

from gateway._native import crc32c
from gateway.mail.imap_facts import ORIGIN, message_facts, section
from gateway.store.database import Database, errors
from gateway.store.errors import LimitReached, MessageGone, StoreDamaged, StoreError
from gateway.store.large import LargeContent
from gateway.store.model import Content

# Measured (benches/bench_store.py): below, a row is cheaper to write than a second sync; above, its octets
# written twice (log and checkpoint) cost more than the file.
LARGE_OCTETS = 128 * 1024
HEADER_OCTETS = 64 * 1024
SIZE_MAX = 2**32 - 1  # RFC 9051 §4.2: RFC822.SIZE of a record is 32 bits
ROWS_AT_ONCE = 16  # one statement: between two of them another thread takes the GIL
_COLUMNS = ("id", "crc", "file", "facts", "header", "body")
_GONE: tuple[Any, ...] = ()  # instead of a row
RECLAIM_MESSAGES = 500  # removed in one transaction
SPARE_OCTETS = 4 << 20  # of free pages are kept for new messages, or
SPARE_PART = 0.25  # that part of the file
GIVE_BACK_PAGES = 512  # moved in one transaction


class Prepared(msgspec.Struct):
    """A message whose octets are ready for the transaction."""

    size: int
    crc: int
    facts: bytes
    sent_date: int
    header: bytes
    body: bytes | None  # None: it is in the file
    file: str | None = None


class Contents:
    """The messages of one account, by key."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._directory = database.path.parent / "large"

    def prepare(
        self, slices: Sequence[bytes | memoryview], prefix: bytes = b"", origin: str = ""
    ) -> Prepared:
        """Facts and checksum; write_large() comes next."""
        content = b"".join((prefix, *slices))
        if len(content) > SIZE_MAX:
            raise LimitReached("messages of 4 GiB and more are not kept")
        found = message_facts(content, origin)
        at = found.header_octets if found.header_octets <= HEADER_OCTETS else 0
        return Prepared(
            len(content), crc32c(content), found.packed, found.sent_date, content[:at], content[at:]
        )

    def write_large(self, prepared: Prepared) -> None:
        """A large body is on the disk afterwards; nothing is done to others.  Raises StoreError."""
        body = prepared.body
        if body is None or len(body) <= LARGE_OCTETS:
            return
        name = secrets.token_hex(12)
        path = self._directory / name
        with errors(path):
            try:
                make_directory(self._directory)
                with open(path, "xb", buffering=0, opener=_private) as file:
                    view = memoryview(body)
                    while view:
                        view = view[file.write(view) :]
                    os.fdatasync(file.fileno())
                sync_directory(self._directory)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        prepared.file, prepared.body = name, None

    def discard(self, prepared: Prepared) -> None:
        """The transaction was not made: forget a large body."""
        if prepared.file is not None:
            with contextlib.suppress(OSError):
                (self._directory / prepared.file).unlink()

    def insert(self, first_key: int, prepared: Iterable[Prepared]) -> None:
        """Messages with that key and the ones behind it."""
        row: list[Any] = []
        for key, one in enumerate(prepared, first_key):
            row += (key, one.crc, one.file, one.facts, one.header, one.body)
            if len(row) == len(_COLUMNS) * ROWS_AT_ONCE:
                self._database.execute(_insert(ROWS_AT_ONCE), row)
                row = []
        for at in range(0, len(row), len(_COLUMNS)):
            self._database.execute(_insert(1), row[at : at + len(_COLUMNS)])

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, keys: Sequence[int]) -> list[Content | StoreError]:
        """The messages in that order; what cannot be had is the error that says why."""
        rows = self._rows("crc, file, header, body", keys)
        return [self._content(key, rows.get(key, _GONE)) for key in keys]

    def _content(self, key: int, row: tuple[Any, ...] | StoreError) -> Content | StoreError:
        if isinstance(row, StoreError):
            return row
        if row is _GONE:
            return MessageGone(f"message {key} was expunged")
        _, crc, file, header, body = row
        if file is not None:
            try:
                body = (self._directory / file).read_bytes()
            except OSError as error:
                return StoreDamaged(f"the body of message {key} cannot be read: {error}")
        if body is None or crc32c(body, crc32c(header)) != crc:
            return StoreDamaged(
                f"message {key} is not as it was written: run `gateway mailbox check`"
            )
        if not header:  # longer than we keep apart
            header = _header_of(body)
            body = body[len(header) :]
        return Content(header, body)

    def each(
        self, keys: Sequence[int], octets_max: int
    ) -> Iterator[tuple[int, Content | StoreError]]:
        """read(), with one large body at a time in memory; of the very large ones only the beginning, unchecked."""
        for at in range(0, len(keys), ROWS_AT_ONCE):
            some = keys[at : at + ROWS_AT_ONCE]
            rows = self._rows("crc, file, header, body", some)
            for key in some:
                row = rows.pop(key, _GONE)
                if isinstance(row, tuple) and row and row[2] is not None:
                    with contextlib.suppress(OSError), open(self._directory / row[2], "rb") as file:
                        if os.fstat(file.fileno()).st_size > octets_max:
                            yield key, Content(row[3], file.read(octets_max))
                            continue
                yield key, self._content(key, row)

    def open_large(self, key: int) -> LargeContent | None:
        """For a body that is a file: not checked yet, to be closed.  None: it is in the database, or gone."""
        row = self._database.row("SELECT file, header, facts, crc FROM message WHERE id=?", (key,))
        if row is None or row[0] is None:
            return None
        try:
            file = open(self._directory / row[0], "rb", buffering=0)  # noqa: SIM115  the caller closes it
        except OSError as error:
            raise StoreDamaged(f"the body of message {key} cannot be read: {error}") from error
        return LargeContent(key, file, *row[1:])

    def headers(self, keys: Sequence[int]) -> list[bytes | StoreError]:
        """Header sections with their empty line."""
        found = self._column("header", keys)
        for at, header in enumerate(found):
            if header == b"":  # longer than we keep apart, or none at all
                (content,) = self.read([keys[at]])
                found[at] = content if isinstance(content, StoreError) else content.header
        return found

    def facts(self, keys: Sequence[int]) -> list[bytes | StoreError]:
        """What mail.imap_facts packed at delivery."""
        return self._column("facts", keys)

    def joined_facts(self, keys: Sequence[int]) -> bytes | list[bytes | StoreError]:
        """The same, all in one: they tell their lengths themselves; a list where some cannot be had.

        One row instead of one for each message halves the cost.
        """
        sql = (
            "SELECT count(*), CAST(group_concat(m.facts, '') AS BLOB) "
            "FROM carray(?) k CROSS JOIN message m ON m.id=k.value"
        )
        with contextlib.suppress(apsw.CorruptError):
            found = self._database.row(sql, (apsw.carray(array("q", keys)),))
            if found is not None and found[0] == len(keys):
                octets: bytes = found[1]
                return octets
        return self.facts(keys)

    def _column(self, name: str, keys: Sequence[int]) -> list[bytes | StoreError]:
        rows = self._rows(name, keys)
        found: list[bytes | StoreError] = []
        for key in keys:
            row = rows.get(key)
            if row is None:
                found.append(MessageGone(f"message {key} was expunged"))
            else:
                found.append(row if isinstance(row, StoreError) else row[1])
        return found

    def _rows(self, columns: str, keys: Sequence[int]) -> dict[int, tuple[Any, ...] | StoreError]:
        """(id, columns) of each message that is there, by its key; one statement costs a fifth of one for each."""
        found: dict[int, tuple[Any, ...] | StoreError] = {}
        one = f"SELECT id, {columns} FROM message WHERE id=?"
        some = f"SELECT m.id, {columns} FROM carray(?) k CROSS JOIN message m ON m.id=k.value"
        try:
            if len(keys) == 1:
                rows = self._database.execute(one, (keys[0],))
            else:
                rows = self._database.execute(some, (_carray(keys),))
            for row in rows:
                found[row[0]] = row
        except apsw.CorruptError:  # a damaged page: the others are not concerned
            for key in keys:
                try:
                    with errors(self._database.path):
                        for row in self._database.execute(one, (key,)):
                            found[key] = row
                except StoreError as error:
                    found[key] = error
        return found

    def came_from(self, key: int, origin: str) -> bool:
        """True when the message was delivered by this origin."""
        (facts,) = self.facts([key])
        return not isinstance(facts, StoreError) and section(facts, ORIGIN) == origin.encode()

    # -- removing ------------------------------------------------------------------------------------------------

    def share(self, keys: Sequence[int]) -> None:
        """One more record points at each of these."""
        self._database.execute(
            "INSERT INTO shared SELECT value, 1 FROM carray(?) WHERE true "
            "ON CONFLICT DO UPDATE SET copies=copies+1",
            (_carray(keys),),
        )

    def release(self, keys: Sequence[int]) -> None:
        """One record less points at each of these; the last one makes it garbage."""
        execute = self._database.execute
        if self._database.row("SELECT 1 FROM shared LIMIT 1") is None:
            execute("INSERT INTO garbage SELECT value FROM carray(?)", (_carray(keys),))
            return
        again: list[int] = []  # several records of one message: one after the other
        if len(set(keys)) < len(keys):
            once: dict[int, None] = {}
            for key in keys:
                if key in once:
                    again.append(key)
                once[key] = None
            keys = array("q", once)
        bound = (_carray(keys),)
        execute(
            "INSERT INTO garbage SELECT value FROM carray(?) "
            "WHERE NOT EXISTS (SELECT 1 FROM shared WHERE message=value)",
            bound,
        )
        execute(
            "DELETE FROM shared WHERE copies=1 AND message IN (SELECT value FROM carray(?))", bound
        )
        execute("UPDATE shared SET copies=copies-1 FROM carray(?) k WHERE message=k.value", bound)
        if again:
            self.release(again)

    def reclaim(self, removed: Callable[[Sequence[int]], None]) -> bool:
        """Remove some garbage; False when none is left.  removed: is told the keys, ascending."""
        files: list[str] = []
        with self._database.write():
            keys = [
                key
                for (key,) in self._database.execute(
                    "SELECT message FROM garbage ORDER BY message LIMIT ?", (RECLAIM_MESSAGES,)
                )
            ]
            if keys:
                bound = (_carray(keys),)
                sql = "SELECT m.file FROM carray(?) k CROSS JOIN message m ON m.id=k.value WHERE m.file IS NOT NULL"
                files = [name for (name,) in self._database.execute(sql, bound)]
                self._database.execute(
                    "DELETE FROM message WHERE id IN (SELECT value FROM carray(?))", bound
                )
                self._database.execute("DELETE FROM garbage WHERE message<=?", (keys[-1],))
        for name in files:
            with contextlib.suppress(OSError):
                (self._directory / name).unlink()
        if keys:
            removed(keys)
        return self._give_back() or len(keys) == RECLAIM_MESSAGES

    def _give_back(self) -> bool:
        """Free pages that are no use any more leave the file, a bounded number; True when more should."""
        octets, free = self._database.page_octets_free
        if free < SPARE_OCTETS or free < octets * SPARE_PART:
            return False
        with self._database.write():
            self._database.execute(f"PRAGMA incremental_vacuum({GIVE_BACK_PAGES})").fetchall()
        return True


@cache
def _insert(rows: int) -> str:
    row = f"({','.join('?' * len(_COLUMNS))})"
    return f"INSERT INTO message({','.join(_COLUMNS)}) VALUES {','.join([row] * rows)}"


def _header_of(content: bytes) -> bytes:
    end = content.find(b"\r\n\r\n")
    return content if end < 0 else content[: end + 4]


def make_directory(path: Path) -> None:
    """It exists afterwards, and durably so.  Raises OSError."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _carray(keys: Sequence[int]) -> Any:
    """For "carray(?)": one statement for all of them."""
    return apsw.carray(array("q", keys))
