"""Which accounts share anything with whom: so that nobody has to ask all accounts.

Owns      Shares
Files     <store>/shares.db: one row for each identifier and owner; read often, written hardly ever
Flow      within the owner's transaction what is granted is put in, after it exactly what is left (account_sharing.py)
Errors    StoreError kinds
Blocking  everything; only threads of the store, and tools, call this
Security  it only says where to ask: what somebody may is decided by the owner's account alone

An owner who is named in vain costs a question.  One who is not would be missing from lists: `gateway mailbox check`
puts that right, as after a restored backup.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import apsw

from gateway.mail.imap_rights import identifiers_of
from gateway.store.database import BUSY_S, errors

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS share(identifier TEXT, owner TEXT, PRIMARY KEY(identifier, owner)) WITHOUT ROWID; "
    "CREATE INDEX IF NOT EXISTS share_owner ON share(owner)"
)


class Shares:
    """The index of one store; any number of processes have it open."""

    def __init__(self, store: Path) -> None:
        self._path = store / "shares.db"
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None

    def owners(self, user: str) -> list[str]:
        """Who shares, or shared, something with the user; without the user itself."""
        with self._lock, errors(self._path):
            if self._connection is None and not self._path.exists():
                return []
            names = identifiers_of(user)
            rows = self._open().execute(
                "SELECT DISTINCT owner FROM share WHERE identifier IN (?,?,?) AND owner<>? ORDER BY owner",
                (*names, user),
            )
            return [owner for (owner,) in rows]

    def add(self, owner: str, identifiers: Iterable[str]) -> None:
        """The owner is about to share with these, too."""
        with self._lock, errors(self._path), self._written() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO share VALUES(?,?)",
                [(identifier, owner) for identifier in identifiers],
            )

    def replace(self, owner: str, identifiers: Iterable[str]) -> None:
        """The owner shares with these and nobody else."""
        wanted = set(identifiers)
        with self._lock, errors(self._path):
            if not wanted and self._connection is None and not self._path.exists():
                return
            with self._written() as connection:
                known = {
                    identifier
                    for (identifier,) in connection.execute(
                        "SELECT identifier FROM share WHERE owner=?", (owner,)
                    )
                }
                connection.executemany(
                    "DELETE FROM share WHERE identifier=? AND owner=?",
                    [(identifier, owner) for identifier in known - wanted],
                )
                connection.executemany(
                    "INSERT INTO share VALUES(?,?)",
                    [(identifier, owner) for identifier in wanted - known],
                )

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close(True)
                self._connection = None

    @contextlib.contextmanager
    def _written(self) -> Iterator[apsw.Connection]:
        """A transaction; durable afterwards."""
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(apsw.Error):
                connection.execute("ROLLBACK")
            raise

    def _open(self) -> apsw.Connection:
        if self._connection is None:
            connection = apsw.Connection(str(self._path))
            try:
                connection.set_busy_timeout(int(BUSY_S * 1000))
                connection.pragma("synchronous", 2)  # FULL
                connection.execute(_SCHEMA)
            except BaseException:
                connection.close(True)
                raise
            self._connection = connection
        return self._connection
