"""What AccountFile does about access rights, lists for other users, and annotations.

Owns      Listing, Access; listing(), subscriptions(), rows(), access(), acl(), set_acl(), resync(), read_annotations(),
          write_annotations(), annotation_changes()
Flow      store.py → one of these, each one transaction
Errors    StoreError kinds
Blocking  everything
Standards RFC 4314, RFC 5464
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.mail.imap_rights import ALL, effective_rights
from gateway.store import acl as lists
from gateway.store import annotation as notes
from gateway.store.account import AccountFile
from gateway.store.annotation import Annotation
from gateway.store.database import errors
from gateway.store.index import row_named, row_of
from gateway.store.model import Mailbox, object_id
from gateway.store.names import SEPARATOR, mailbox_name
from gateway.store.shares import Shares


class Listing(NamedTuple):
    """A mailbox as lists of thousands need it: without its index and keywords."""

    id: int
    name: str
    selectable: int
    subscribed: int
    special_use: str
    uidvalidity: int
    uidnext: int
    highestmodseq: int
    messages: int
    unseen: int
    deleted: int
    octets: int
    recent_uid: int

    @property
    def recent(self) -> int:
        return min(self.messages, max(0, self.uidnext - self.recent_uid))

    def object_id(self, account: str) -> str:
        """account: whose mailbox it is."""
        return object_id(account, self.uidvalidity, self.id)


class Access(NamedTuple):
    """A name in somebody's account, and what a user may do there."""

    mailbox: Mailbox | None  # None: there is none of that name
    rights: frozenset[str]  # on it
    above: frozenset[str]  # on the nearest mailbox it lies in; nothing when there is none


_COLUMNS = ", ".join(Listing._fields)
ROWS = 500  # asked for in one statement


def listing(
    file: AccountFile, user: str = "", prefix: str = ""
) -> tuple[list[Listing], dict[int, frozenset[str]]]:
    """All mailboxes and names that begin so, in no order; with a user, those he may look up, and his rights there."""
    database = file.database
    sql = f"SELECT {_COLUMNS} FROM mailbox WHERE id>0"
    bindings: tuple[str, ...] = ()
    if prefix:
        sql, bindings = f"{sql} AND name>=? AND name<?", (prefix, f"{prefix}\U0010ffff")
    with database.read():
        rights = lists.rights_of_user(database, user) if user else {}
        rows = map(Listing._make, database.execute(sql, bindings).fetchall())
        if not user:
            return list(rows), rights
        return [row for row in rows if row.selectable and "l" in rights.get(row.id, ())], rights


def subscriptions(file: AccountFile, prefix: str = "", most: int = -1) -> list[str]:
    """Names that the owner subscribed to and that begin so, in order; they need not exist.  most: -1 is all."""
    sql = "SELECT name FROM mailbox WHERE subscribed=1 AND name>=? AND name<? ORDER BY name LIMIT ?"
    with errors(file.database.path):
        found = file.database.execute(sql, (prefix, f"{prefix}\U0010ffff", most)).fetchall()
    return [name for (name,) in found]


def rows(file: AccountFile, mailboxes: Sequence[int]) -> list[Listing]:
    """These mailboxes as they are now, in no order; those that are gone are left out."""
    found: list[Listing] = []
    with file.database.read():
        for start in range(0, len(mailboxes), ROWS):
            part = mailboxes[start : start + ROWS]
            marks = ",".join("?" * len(part))
            sql = f"SELECT {_COLUMNS} FROM mailbox WHERE id IN ({marks})"
            found += map(Listing._make, file.database.execute(sql, part).fetchall())
    return found


def access(file: AccountFile, name: str, user: str = "") -> Access:
    """user: empty is the owner."""
    database = file.database
    name = mailbox_name(name)
    with database.read():
        row = row_named(database, name)
        found = row.mailbox() if row is not None and row.selectable else None
        if not user:
            return Access(found, ALL, ALL)
        rights = above = frozenset[str]()
        if found is not None:
            rights = effective_rights(lists.entries(database, found.id), user)
        parent = name.rpartition(SEPARATOR)[0]
        while parent:
            row = row_named(database, parent)
            if row is not None and row.selectable:
                above = effective_rights(lists.entries(database, row.id), user)
                break
            parent = parent.rpartition(SEPARATOR)[0]
        return Access(found, rights, above)


def acl(file: AccountFile, mailbox: int) -> dict[str, str]:
    """Identifier → rights; the owner is in none.  Raises NoSuchMailbox."""
    with file.database.read():
        row_of(file.database, mailbox)
        return lists.entries(file.database, mailbox)


def set_acl(
    file: AccountFile,
    owner: str,
    shares: Shares,
    mailbox: int,
    identifier: str,
    how: str,
    rights: frozenset[str],
    entries_max: int,
) -> None:
    """See acl.change()."""
    with file.database.write():
        row_of(file.database, mailbox)
        lists.change(file.database, mailbox, identifier, how, rights, entries_max)
        shares.add(owner, lists.identifiers(file.database))
    resync(file, owner, shares)


def forget_user(file: AccountFile, owner: str, shares: Shares, user: str) -> None:
    """The account of that name was removed: it may do nothing here any more."""
    with file.database.write():
        lists.forget(file.database, user)
    resync(file, owner, shares)


def resync(file: AccountFile, owner: str, shares: Shares) -> None:
    """The index says what the account does."""
    with file.database.write():  # nobody grants anything meanwhile
        shares.replace(owner, lists.identifiers(file.database))


def read_annotations(file: AccountFile, mailbox: int | None, user: str) -> list[Annotation]:
    """Of one mailbox (0: the server), or of all of them (None); what the user may see."""
    with file.database.read():
        if mailbox is None:
            return notes.read_all(file.database, user)
        return notes.read(file.database, mailbox, user)


def write_annotations(
    file: AccountFile,
    mailbox: int,
    user: str,
    values: Mapping[str, bytes | None],
    entries_max: int,
    octets_max: int,
) -> None:
    """All of them or none.  Raises NoSuchMailbox, TooMany."""
    with file.database.write():
        row_of(file.database, mailbox)
        notes.write(file.database, mailbox, user, values, entries_max, octets_max)


def annotation_changes(
    file: AccountFile, since: int, user: str
) -> tuple[int, list[tuple[int, str]]]:
    """(what to ask with next time, (mailbox, entry) of what changed); since -1: only the first."""
    with file.database.read():
        last = notes.last_change(file.database)
        changed = notes.changed_since(file.database, since, user) if 0 <= since < last else []
        return last, changed
