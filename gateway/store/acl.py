"""Who beside its owner may do what with a mailbox.

Owns      entries(), change(), inherit(), forget(), rights_of_user(), identifiers()
Files     table acl, a row for each mailbox and identifier; none: the owner alone
Limits    entries_max of the caller
Errors    LimitReached
Blocking  everything; within a transaction of the caller
Standards RFC 4314; a new mailbox begins with the entries of the one it lies in
Bugs      \\Seen is the same for all who share a mailbox

The owner may do everything, always, and is in no list.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.mail.imap_rights import (
    changed_rights,
    effective_rights,
    identifiers_of,
    show_rights,
)
from gateway.store.database import Database
from gateway.store.errors import LimitReached
from gateway.store.names import SEPARATOR


def entries(database: Database, mailbox: int) -> dict[str, str]:
    """Identifier (with "-" in front of it: what is taken away) → letters."""
    return dict(
        database.execute(
            "SELECT identifier, rights FROM acl WHERE mailbox=? ORDER BY identifier", (mailbox,)
        )
    )


def change(
    database: Database,
    mailbox: int,
    identifier: str,
    how: str,
    rights: frozenset[str],
    entries_max: int,
) -> None:
    """SETACL, how: "+", "-" or "" (RFC 4314 §3.1).  Nobody keeps an entry without rights."""
    known = entries(database, mailbox)
    after = changed_rights(frozenset(known.get(identifier, "")), how, rights)
    if not after:
        database.execute("DELETE FROM acl WHERE mailbox=? AND identifier=?", (mailbox, identifier))
        return
    if identifier not in known and len(known) >= entries_max:
        raise LimitReached(f"a mailbox is shared with {entries_max} identifiers at most")
    database.execute(
        "INSERT OR REPLACE INTO acl VALUES(?,?,?)", (mailbox, identifier, show_rights(after))
    )


def inherit(database: Database, mailbox: int, name: str) -> None:
    """A new mailbox of that name begins with the entries of the nearest one above it."""
    above = name.rpartition(SEPARATOR)[0]
    while above:
        found = database.row("SELECT id FROM mailbox WHERE name=? AND selectable", (above,))
        if found is not None:
            database.execute(
                "INSERT INTO acl SELECT ?, identifier, rights FROM acl WHERE mailbox=?",
                (mailbox, found[0]),
            )
            return
        above = above.rpartition(SEPARATOR)[0]


def forget(database: Database, user: str) -> None:
    """The user is gone: whoever gets the name later has none of its rights."""
    database.execute("DELETE FROM acl WHERE identifier IN (?,?)", (user, "-" + user))


def rights_of_user(database: Database, user: str) -> dict[int, frozenset[str]]:
    """Mailbox → what the user may there; those where it is nothing are left out.  One statement."""
    names = identifiers_of(user)
    wanted = (*names, *("-" + name for name in names))
    lists: dict[int, dict[str, str]] = {}
    rows = database.execute(
        f"SELECT mailbox, identifier, rights FROM acl WHERE identifier IN ({','.join('?' * len(wanted))})",
        wanted,
    )
    for mailbox, identifier, rights in rows:
        lists.setdefault(mailbox, {})[identifier] = rights
    found = {mailbox: effective_rights(one, user) for mailbox, one in lists.items()}
    return {mailbox: rights for mailbox, rights in found.items() if rights}


def identifiers(database: Database) -> set[str]:
    """Everybody to whom anything is granted in this account."""
    rows: Iterable[tuple[str]] = database.execute("SELECT DISTINCT identifier FROM acl")
    return {identifier for (identifier,) in rows if not identifier.startswith("-")}
