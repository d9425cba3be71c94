"""The embedded source: accounts and aliases in one SQLite database.

Owns      Database
Files     <state_dir>/accounts.db with -wal and -shm beside it, mode 0600
Limits    none but the disk's; look-ups are one indexed read (5 us)
Errors    SourceError when the database cannot be read or written: transient, and it says what failed
Blocking  a read never waits for a writer (WAL); a write waits up to BUSY_S for another one
Security  verifiers and SCRAM keys; the passwords themselves only of accounts that asked for APOP
Bugs      a database that is replaced (not written to) while workers run is seen after a restart

Every worker has a connection of its own and asks anew, so what `gateway user` changes is seen by the
next login (and within a second at RCPT); there is nothing to tell the workers.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway.accounts.model import Account, Record, SourceError

SCHEMA_VERSION = 1
BUSY_S = 5.0

_SCHEMA = """
CREATE TABLE account (
    name           TEXT PRIMARY KEY,
    verifier       TEXT NOT NULL,
    scram          TEXT NOT NULL,            -- JSON: hash → iterations,salt,stored key,server key
    secret         TEXT,                     -- the password, for APOP and CRAM-MD5; NULL: not allowed
    quota_octets   INTEGER,                  -- NULL: the default
    quota_messages INTEGER,
    disabled       INTEGER NOT NULL DEFAULT 0,
    created_at     INTEGER NOT NULL,         -- ns UTC
    changed_at     INTEGER NOT NULL          -- of the password
) STRICT, WITHOUT ROWID;
CREATE INDEX account_secret ON account (name) WHERE secret IS NOT NULL;
CREATE TABLE alias (
    address TEXT NOT NULL,                   -- "@domain": everything there that is not known
    target  TEXT NOT NULL,
    PRIMARY KEY (address, target)
) STRICT, WITHOUT ROWID;
CREATE TABLE setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
"""
_COLUMNS = "name, verifier, scram, secret, quota_octets, quota_messages, disabled"
_RECORD = f"SELECT {_COLUMNS} FROM account WHERE name = ?"


class Listed(msgspec.Struct, frozen=True):
    """An account as `gateway user list` shows it."""

    name: str
    quota_octets: int | None
    quota_messages: int | None
    disabled: bool
    mechanisms: list[str]
    created_at: int
    changed_at: int


class Database:
    """One connection; use it from the thread that made it."""

    name = "embedded"
    local = True

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Opened, and made when it does not exist.  Raises SourceError."""
        self._path = path
        if not create and not path.exists():
            raise SourceError(f"{path} does not exist")
        mask = os.umask(0o077)  # for -wal and -shm, too
        try:
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            self._prepare()
        except sqlite3.Error as error:
            raise SourceError(f"{path}: {error}") from None
        finally:
            os.umask(mask)

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")  # a password that was changed stays changed
        execute("PRAGMA trusted_schema = OFF")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            execute("BEGIN IMMEDIATE")
            if execute("PRAGMA user_version").fetchone()[0] == 0:  # nobody was quicker
                for statement in _SCHEMA.split(";\n"):
                    execute(statement)
                execute("INSERT INTO setting VALUES ('salt_key', ?)", (os.urandom(32),))
                execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            execute("COMMIT")
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(
                f"version {version} is not version {SCHEMA_VERSION} of this program"
            )

    def close(self) -> None:
        self._connection.close()

    @property
    def own_changes(self) -> int:
        """Rows changed by way of this object; other processes' changes are not counted."""
        return self._connection.total_changes

    @contextmanager
    def _asking(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connection
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise SourceError(f"{self._path}: {error}") from None

    # -- questions -------------------------------------------------------------------------------------

    def record(self, name: str) -> Record | None:
        """The account of this name (normal form).  Raises SourceError."""
        try:
            row = self._connection.execute(_RECORD, (name,)).fetchone()
        except sqlite3.Error:
            with self._asking():
                raise
        return None if row is None else _record(row)

    def targets(self, address: str) -> tuple[str, ...]:
        """What the alias stands for; "@domain" asks for the catch-all.  Raises SourceError."""
        with self._asking() as connection:
            rows = connection.execute("SELECT target FROM alias WHERE address = ?", (address,))
            return tuple(row[0] for row in rows)

    def salt_key(self) -> bytes:
        """Makes the salts shown for users that do not exist: the same in all workers, for ever."""
        with self._asking() as connection:
            row = connection.execute("SELECT value FROM setting WHERE name = 'salt_key'").fetchone()
        return bytes(row[0])

    def has_secrets(self) -> bool:
        """Did any account ask for APOP and CRAM-MD5?  Raises SourceError."""
        with self._asking() as connection:
            row = connection.execute("SELECT 1 FROM account WHERE secret IS NOT NULL LIMIT 1").fetchone()
        return row is not None

    def check(self) -> list[str]:
        """What is wrong with it; for `gateway check`."""
        try:
            with self._asking() as connection:
                rows = connection.execute("PRAGMA quick_check").fetchall()
        except SourceError as error:
            return [str(error)]
        return [f"{self._path}: {row[0]}" for row in rows if row[0] != "ok"]

    def accounts(self) -> list[Listed]:
        """All of them, by name.  Raises SourceError."""
        with self._asking() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS}, created_at, changed_at FROM account ORDER BY name"
            ).fetchall()
        return [_listed(row) for row in rows]

    def aliases(self) -> dict[str, list[str]]:
        """All of them, by address.  Raises SourceError."""
        found: dict[str, list[str]] = {}
        with self._asking() as connection:
            for address, target in connection.execute("SELECT address, target FROM alias"):
                found.setdefault(address, []).append(target)
        return found

    # -- changes ---------------------------------------------------------------------------------------

    def add(self, record: Record) -> bool:
        """False when the account exists already.  Raises SourceError."""
        now, account = time.time_ns(), record.account
        with self._asking() as connection:
            added = connection.execute(
                f"INSERT OR IGNORE INTO account ({_COLUMNS}, created_at, changed_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    account.name,
                    record.verifier,
                    msgspec.json.encode(record.scram).decode(),
                    record.secret,
                    account.quota_octets,
                    account.quota_messages,
                    account.disabled,
                    now,
                    now,
                ),
            )
            return added.rowcount == 1

    def set_password(self, record: Record) -> bool:
        """The verifier, the keys and the secret of this record are those of its account now; False: none such."""
        with self._asking() as connection:
            changed = connection.execute(
                "UPDATE account SET verifier = ?, scram = ?, secret = ?, changed_at = ? WHERE name = ?",
                (
                    record.verifier,
                    msgspec.json.encode(record.scram).decode(),
                    record.secret,
                    time.time_ns(),
                    record.account.name,
                ),
            )
            return changed.rowcount == 1

    def set_quota(self, name: str, octets: int | None, messages: int | None) -> bool:
        """None: the default again."""
        with self._asking() as connection:
            changed = connection.execute(
                "UPDATE account SET quota_octets = ?, quota_messages = ? WHERE name = ?",
                (octets, messages, name),
            )
            return changed.rowcount == 1

    def set_disabled(self, name: str, disabled: bool) -> bool:
        with self._asking() as connection:
            changed = connection.execute(
                "UPDATE account SET disabled = ? WHERE name = ?", (disabled, name)
            )
            return changed.rowcount == 1

    def remove(self, name: str) -> bool:
        with self._asking() as connection:
            return connection.execute("DELETE FROM account WHERE name = ?", (name,)).rowcount == 1

    def add_alias(self, address: str, targets: Iterable[str]) -> int:
        """How many of the targets are new."""
        with self._asking() as connection:
            connection.execute("BEGIN IMMEDIATE")
            added = connection.executemany(
                "INSERT OR IGNORE INTO alias VALUES (?, ?)", [(address, t) for t in targets]
            ).rowcount
            connection.execute("COMMIT")
            return added

    def remove_alias(self, address: str, targets: Iterable[str] = ()) -> int:
        """How many went; without targets all of the address."""
        chosen = tuple(targets)
        with self._asking() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if chosen:
                removed = connection.executemany(
                    "DELETE FROM alias WHERE address = ? AND target = ?",
                    [(address, t) for t in chosen],
                ).rowcount
            else:
                removed = connection.execute(
                    "DELETE FROM alias WHERE address = ?", (address,)
                ).rowcount
            connection.execute("COMMIT")
            return removed


def _record(row: tuple[str, str, str, str | None, int | None, int | None, int]) -> Record:
    name, verifier, scram, secret, quota_octets, quota_messages, disabled = row
    account = Account(name, quota_octets, quota_messages, bool(disabled), "embedded")
    return Record(account, verifier, msgspec.json.decode(scram), secret)


def _listed(row: tuple[str, str, str, str | None, int | None, int | None, int, int, int]) -> Listed:
    record = _record(row[:7])
    mechanisms = ["PLAIN", *(f"SCRAM-{kind}" for kind in sorted(record.scram))]
    if record.secret is not None:
        mechanisms += ["APOP", "CRAM-MD5"]
    account = record.account
    return Listed(
        account.name,
        account.quota_octets,
        account.quota_messages,
        account.disabled,
        mechanisms,
        row[7],
        row[8],
    )
