"""The account's second SQLite file: what makes searches fast and can be made again at any time.

Owns      SearchDatabase
Files     <account>/search.db, which may be removed at any time
Errors    SearchUnusable when it is damaged, locked or cannot be written: the answer comes without it, then
Blocking  everything
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import apsw

VERSION = 2
BUSY_MS = 300  # it is only to save work: nobody waits long for it

_SCHEMA = f"""
CREATE VIRTUAL TABLE words USING fts5(
  text, content='', contentless_delete=1, detail=none, tokenize='trigram case_sensitive 1');
CREATE TABLE state(id INTEGER PRIMARY KEY, last_key INTEGER, rows INTEGER, unindexed_reads INTEGER);
CREATE TABLE long(message INTEGER PRIMARY KEY);
CREATE TABLE block(kind TEXT, number INTEGER, texts BLOB, PRIMARY KEY(kind, number));
INSERT INTO state VALUES(1, 0, 0, 0);
PRAGMA user_version={VERSION};
"""


class SearchUnusable(Exception):
    """Do without."""


class SearchDatabase:
    """A connection, made when it is first needed.  One thread at a time may use it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "search.db"
        self._connection: apsw.Connection | None = None

    @property
    def exists(self) -> bool:
        return self._connection is not None or self.path.exists()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close(True)
            self._connection = None

    @contextlib.contextmanager
    def read(self) -> Iterator[apsw.Connection]:
        """Raises SearchUnusable; what is damaged is removed."""
        try:
            yield self._open()
        except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, ValueError) as error:
            self._discard()
            raise SearchUnusable(str(error)) from error
        except (apsw.Error, OSError) as error:
            raise SearchUnusable(str(error)) from error

    @contextlib.contextmanager
    def write(self) -> Iterator[apsw.Connection]:
        """The same, in a transaction."""
        with self.read() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if not connection.get_autocommit():
                    connection.execute("ROLLBACK")
                raise

    def _open(self) -> apsw.Connection:
        if self._connection is None:
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            connection = apsw.Connection(str(self.path), flags=flags)
            try:
                connection.set_busy_timeout(BUSY_MS)
                connection.pragma("journal_mode", "wal")
                connection.pragma("synchronous", 1)  # what a power loss takes is made again
                connection.pragma("mmap_size", 2**40)
                self._begin(connection)
            except BaseException:
                connection.close(True)
                raise
            self._connection = connection
        return self._connection

    def _begin(self, connection: apsw.Connection) -> None:
        version = connection.pragma("user_version")
        if version == VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            if connection.pragma("user_version") != VERSION:  # nobody was faster
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_schema WHERE type='table' AND name IN ('words','state','long','block')"
                ).fetchall():
                    connection.execute(f"DROP TABLE {name}")
                connection.execute(_SCHEMA)
            connection.execute("COMMIT")
        except BaseException:
            if not connection.get_autocommit():
                connection.execute("ROLLBACK")
            raise

    def _discard(self) -> None:
        with contextlib.suppress(apsw.Error):
            self.close()
        self._connection = None
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
