"""Mailboxes of one account: create, rename, delete, subscribe, special use.

Owns      Mailboxes
Files     table mailbox; row 0 is the account's own (see database.py)
Limits    mailboxes_max
Errors    NoSuchMailbox, MailboxExists, BadName, LimitReached
Blocking  everything; within a write transaction of the caller, unless said otherwise
Standards RFC 9051 §6.3.4 to §6.3.8, RFC 6154, RFC 8474 §4
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from gateway.store import acl, annotation
from gateway.store.content import Contents
from gateway.store.database import Database
from gateway.store.errors import BadName, LimitReached, MailboxExists, NoSuchMailbox
from gateway.store.index import IndexRow, load, row_named, row_of
from gateway.store.messages import message_keys
from gateway.store.model import UID_MAX
from gateway.store.names import SEPARATOR, is_below, mailbox_name

SPECIAL_USES = (
    "\\All",
    "\\Archive",
    "\\Drafts",
    "\\Flagged",
    "\\Important",
    "\\Junk",
    "\\Sent",
    "\\Trash",
)


class Mailboxes:
    """The names of one account."""

    def __init__(self, database: Database, contents: Contents, mailboxes_max: int) -> None:
        self._database = database
        self._contents = contents
        self._max = mailboxes_max

    def begin(self, initial: Iterable[str]) -> None:
        """A new account: its own row, INBOX, and the mailboxes it begins with ("name \\Use")."""
        if self._database.row("SELECT 1 FROM mailbox WHERE id=0") is not None:
            return
        # A repaired account may have mailboxes already.
        highest = self._database.row("SELECT max(id), max(uidvalidity) FROM mailbox") or (
            None,
            None,
        )
        last_id, validity = highest[0] or 0, highest[1] or 0
        self._insert(IndexRow(0, "", validity, 1, last_id, 0, 0, 0, 0, 1, 0, 0, 0, "", "", b""))
        if row_named(self._database, "INBOX") is None:
            self.make("INBOX")
        if last_id:
            return
        for words in initial:
            name, _, use = words.rpartition(" ")
            self.make(mailbox_name(name), [use])

    def find(self, name: str) -> IndexRow:
        """Raises NoSuchMailbox, also for names that only have something below them."""
        row = row_named(self._database, mailbox_name(name))
        if row is None or not row.selectable:
            raise NoSuchMailbox(f"there is no mailbox {name!r}")
        return row

    def create(self, name: str, special_use: Iterable[str] = ()) -> IndexRow:
        """The mailbox, and those it lies in (RFC 9051 §6.3.4)."""
        name = mailbox_name(name.removesuffix(SEPARATOR))
        existing = row_named(self._database, name)
        if existing is not None and existing.selectable:
            raise MailboxExists(f"there is a mailbox {name!r} already")
        parts = name.split(SEPARATOR)
        for depth in range(1, len(parts)):
            above = SEPARATOR.join(parts[:depth])
            row = row_named(self._database, above)
            if row is None or not row.selectable:
                self.make(above)
        return self.make(name, special_use)

    def make(self, name: str, special_use: Iterable[str] = ()) -> IndexRow:
        uses = sorted(set(special_use))
        for use in uses:
            if use not in SPECIAL_USES:
                raise BadName(f"{use!r} is none of {', '.join(SPECIAL_USES)}")  # RFC 6154 §3
        self._check_room()
        root = row_of(self._database, 0)
        root.highestmodseq += 1  # the mailbox's id
        root.uidvalidity = min(max(int(time.time()), root.uidvalidity + 1), UID_MAX)
        root_id, validity = root.highestmodseq, root.uidvalidity
        self._database.execute(
            "UPDATE mailbox SET highestmodseq=?, uidvalidity=? WHERE id=0", (root_id, validity)
        )
        placeholder = row_named(self._database, name)  # a subscription or parent without a mailbox
        subscribed = 0
        if placeholder is not None:
            subscribed = placeholder.subscribed
            self._database.execute("DELETE FROM mailbox WHERE id=?", (placeholder.id,))
        row = IndexRow(
            root_id, name, validity, 1, 1, 0, 0, 0, 0, 1, 1, 1, subscribed, " ".join(uses), "", b""
        )
        self._insert(row)
        acl.inherit(self._database, row.id, name)
        return row

    def _check_room(self) -> None:
        (count,) = self._database.row("SELECT count(*) FROM mailbox") or (0,)
        if count > self._max:
            raise LimitReached(f"an account has {self._max} mailboxes and subscriptions at most")

    def delete(self, name: str) -> IndexRow:
        """RFC 9051 §6.3.5: what lies below stays; its messages are garbage now."""
        row = self.find(name)
        if row.name == "INBOX":
            raise BadName("INBOX cannot be deleted")
        self._empty(row)
        below = bool(self._below(row.name, 1))
        self._database.execute("DELETE FROM mailbox WHERE id=?", (row.id,))
        self._database.execute("DELETE FROM acl WHERE mailbox=?", (row.id,))
        annotation.forget(self._database, row.id)
        if below or row.subscribed:
            self._placeholder(row.name, row.subscribed)
        return row

    def _empty(self, row: IndexRow) -> None:
        for records in load(self._database, row):
            self._contents.release(message_keys(records))
        bounds = (row.id << 32, row.id << 32 | UID_MAX)
        self._database.execute("DELETE FROM chunk WHERE id BETWEEN ? AND ?", bounds)
        self._database.execute("DELETE FROM expunged WHERE mailbox=?", (row.id,))

    def _placeholder(self, name: str, subscribed: int) -> None:
        root = row_of(self._database, 0)
        placeholder = root.highestmodseq + 1
        self._database.execute("UPDATE mailbox SET highestmodseq=? WHERE id=0", (placeholder,))
        self._insert(
            IndexRow(placeholder, name, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, subscribed, "", "", b"")
        )

    def rename(self, old: str, new: str) -> None:
        """RFC 9051 §6.3.6: what lies below comes along.  INBOX is not renamed but emptied: Account.rename()."""
        new = mailbox_name(new.removesuffix(SEPARATOR))
        old = mailbox_name(old)
        source = row_named(self._database, old)
        if source is None:
            raise NoSuchMailbox(f"there is no mailbox {old!r}")
        target = row_named(self._database, new)
        if target is not None and (target.selectable or not source.selectable):
            raise MailboxExists(f"there is a mailbox {new!r} already")
        if is_below(new, old):
            raise BadName("a mailbox cannot be moved into itself")
        if SEPARATOR in new:
            above = new.rpartition(SEPARATOR)[0]
            row = row_named(self._database, above)
            if row is None or not row.selectable:
                self.create(above)
        for number, name in [(source.id, old), *self._below(old)]:
            self._move_name(number, new + name[len(old) :])

    def _below(self, name: str, limit: int = -1) -> list[tuple[int, str]]:
        """(id, name) of what lies below, in order; -1: all."""
        sql = "SELECT id, name FROM mailbox WHERE name>? AND name<? ORDER BY name LIMIT ?"
        after = chr(ord(SEPARATOR) + 1)
        bounds = (f"{name}{SEPARATOR}", f"{name}{after}", limit)
        return list(self._database.execute(sql, bounds).fetchall())

    def _move_name(self, mailbox: int, name: str) -> None:
        name = mailbox_name(name)
        existing = row_named(self._database, name)
        if existing is not None:
            if existing.selectable:
                raise MailboxExists(f"there is a mailbox {name!r} already")
            self._database.execute("DELETE FROM mailbox WHERE id=?", (existing.id,))
            if existing.subscribed:
                self._database.execute("UPDATE mailbox SET subscribed=1 WHERE id=?", (mailbox,))
        self._database.execute("UPDATE mailbox SET name=? WHERE id=?", (name, mailbox))

    def subscribe(self, name: str, subscribed: bool) -> None:
        """RFC 9051 §6.3.7: the name need not exist."""
        name = mailbox_name(name)
        row = row_named(self._database, name)
        if row is not None:
            if row.selectable or subscribed or self._below(name, 1):
                self._database.execute(
                    "UPDATE mailbox SET subscribed=? WHERE id=?", (int(subscribed), row.id)
                )
            else:
                self._database.execute("DELETE FROM mailbox WHERE id=?", (row.id,))
        elif subscribed:
            self._check_room()
            self._placeholder(name, 1)

    def set_special_use(self, name: str, uses: Iterable[str]) -> None:
        """RFC 8440 and METADATA /private/specialuse (RFC 6154 §4)."""
        words = sorted(set(uses))
        for use in words:
            if use not in SPECIAL_USES:
                raise BadName(f"{use!r} is none of {', '.join(SPECIAL_USES)}")
        row = self.find(name)
        self._database.execute(
            "UPDATE mailbox SET special_use=? WHERE id=?", (" ".join(words), row.id)
        )

    def _insert(self, row: IndexRow) -> None:
        self._database.execute(
            "INSERT INTO mailbox VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                row.id,
                row.name,
                row.uidvalidity,
                row.uidnext,
                row.highestmodseq,
                row.messages,
                row.unseen,
                row.deleted,
                row.octets,
                row.recent_uid,
                row.history_modseq,
                row.selectable,
                row.subscribed,
                row.special_use,
                row.keywords,
                row.tail,
                row.flag_log,
            ),
        )
