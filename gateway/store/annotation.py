"""What clients keep beside mailboxes: the entries of METADATA.

Owns      Annotation; read(), read_all(), write(), copy(), changed_since(), last_change()
Files     table annotation: a row for each mailbox (0: the server, or all of the account), user and entry
Limits    those the caller gives
Errors    TooMany, TooLarge
Blocking  everything; within a transaction of the caller
Standards RFC 5464 §3: names are in lower case, values are octets

A /private entry belongs to one user, whoever owns the mailbox; a /shared one has no user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gateway.store.database import Database
from gateway.store.errors import LimitReached

PRIVATE, SHARED = "/private/", "/shared/"


class TooMany(LimitReached):
    """More entries than a user may keep on one mailbox."""


class Annotation(NamedTuple):
    """One entry, as one user sees it."""

    mailbox: int
    entry: str
    value: bytes


def read(database: Database, mailbox: int, user: str) -> list[Annotation]:
    """All entries of one mailbox that the user may see, by name."""
    return _rows(database, "mailbox=?", (mailbox,), user)


def read_all(database: Database, user: str) -> list[Annotation]:
    """Those of all mailboxes, in one statement."""
    return _rows(database, "mailbox>0", (), user)


def _rows(
    database: Database, where: str, bindings: tuple[object, ...], user: str
) -> list[Annotation]:
    rows = database.execute(
        f"SELECT mailbox, entry, value FROM annotation WHERE {where} AND user IN ('', ?) "
        "AND value IS NOT NULL ORDER BY mailbox, entry",
        (*bindings, user),
    )
    return [Annotation(*row) for row in rows]


def write(
    database: Database,
    mailbox: int,
    user: str,
    values: Mapping[str, bytes | None],
    entries_max: int,
    octets_max: int,
) -> None:
    """Set entries, remove those whose value is None.  All of them or, with TooMany, none.

    entries_max: of the user on the mailbox; octets_max: of all values in the account.
    """
    database.execute("UPDATE mailbox SET history_modseq=history_modseq+1 WHERE id=0")
    changed = last_change(database)
    for entry, value in values.items():
        owner = user if entry.startswith(PRIVATE) else ""
        if value is None:
            # The row stays for those who ask what changed.
            database.execute(
                "UPDATE annotation SET value=NULL, changed=? WHERE mailbox=? AND user=? AND entry=? "
                "AND value IS NOT NULL",
                (changed, mailbox, owner, entry),
            )
        else:
            database.execute(
                "INSERT OR REPLACE INTO annotation VALUES(?,?,?,?,?)",
                (mailbox, owner, entry, value, changed),
            )
    for owner in ("", user):
        counted = (mailbox, owner)
        where = "FROM annotation WHERE mailbox=? AND user=?"
        (count,) = database.row(f"SELECT count(*) {where}", counted) or (0,)
        if count > entries_max:  # what was removed long ago is forgotten first
            database.execute(f"DELETE {where} AND value IS NULL AND changed<{changed}", counted)
            (count,) = database.row(f"SELECT count(value) {where}", counted) or (0,)
            if count > entries_max:
                raise TooMany(f"a mailbox has {entries_max} annotations at most")
    (octets,) = database.row("SELECT total(length(value)) FROM annotation") or (0,)
    if octets > octets_max:
        raise TooMany(f"all annotations together have {octets_max} octets at most")


def last_change(database: Database) -> int:
    """What changed_since() is asked with later."""
    (last,) = database.row("SELECT history_modseq FROM mailbox WHERE id=0") or (0,)
    return int(last)


def changed_since(database: Database, change: int, user: str) -> list[tuple[int, str]]:
    """(mailbox, entry) of what was set or removed after that, and the user may see."""
    rows = database.execute(
        "SELECT mailbox, entry FROM annotation WHERE changed>? AND user IN ('', ?) ORDER BY mailbox, entry",
        (change, user),
    )
    return [(mailbox, entry) for mailbox, entry in rows]


def copy(database: Database, source: int, target: int) -> None:
    """RFC 5464 §4.1: INBOX and what it was renamed to have the same."""
    database.execute("UPDATE mailbox SET history_modseq=history_modseq+1 WHERE id=0")
    database.execute(
        "INSERT OR REPLACE INTO annotation SELECT ?, user, entry, value, ? FROM annotation "
        "WHERE mailbox=? AND value IS NOT NULL AND entry>='/' AND entry<'0'",  # not url_keys.py's
        (target, last_change(database), source),
    )


def forget(database: Database, mailbox: int) -> None:
    """The mailbox is deleted."""
    database.execute("DELETE FROM annotation WHERE mailbox=?", (mailbox,))
