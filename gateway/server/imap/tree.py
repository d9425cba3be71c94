"""All names a session can see: its own mailboxes, those shared with it, and the names that only lead to them.

Owns      Tree, read_tree(), in_order()
Flow      one statement for the own account; the store's index of who shares; one statement for each of those
Limits    config.owners accounts, ASKED of them at once
Errors    StoreError of the own account; another one that cannot be read is left out
Blocking  never
Security  of others' mailboxes only those with the right "l", whatever else they have (RFC 4314 §4)
Standards RFC 9051 §6.3.9, RFC 2342, RFC 5258
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from gateway.mail.imap_rights import ALL
from gateway.server.imap.access import part_of, prefixes
from gateway.store.errors import NoSuchAccount, StoreError
from gateway.store.names import SEPARATOR

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession
    from gateway.store.account_sharing import Listing

logger = logging.getLogger(__name__)

ASKED = 16


class Where(NamedTuple):
    """Whose mailbox it is, if not the session's own."""

    owner: str
    rights: frozenset[str]


class Tree:
    """Names in their order, parents in front of what lies below them."""

    __slots__ = ("foreign", "names", "parents", "rows", "subscribed")

    def __init__(self) -> None:
        self.rows: dict[str, Listing | None] = {}  # None: only something below it exists
        self.foreign: dict[str, Where] = {}
        self.subscribed: set[str] = set()  # the names need not exist
        self.names: list[str] = []
        self.parents: set[str] = set()  # those with anything below them

    def add(self, name: str, row: Listing, owner: str = "", rights: frozenset[str] = ALL) -> None:
        """owner: if it is not the session's own."""
        self.rows[name] = row
        if owner:
            self.foreign[name] = Where(owner, rights)

    def finish(self) -> None:
        """Add what only leads to others, and sort."""
        rows, parents = self.rows, self.parents
        for name in [name for name in rows if SEPARATOR in name]:
            above = name.rpartition(SEPARATOR)[0]
            while above and above not in parents:
                parents.add(above)
                rows.setdefault(above, None)
                above = above.rpartition(SEPARATOR)[0]
        self.names = sorted(rows, key=in_order)

    def rights(self, name: str) -> frozenset[str]:
        where = self.foreign.get(name)
        return ALL if where is None else where.rights


def in_order(name: str) -> str:
    """A key to sort by: what lies below a name follows it, whatever else begins with the same letters."""
    return name.replace(SEPARATOR, "\0")  # no name has a NUL


async def read_tree(
    session: ImapSession, wanted: Callable[[str], bool] = lambda _: True, prefix: str = ""
) -> Tree:
    """wanted(name): may anything at or below this name of another hierarchy be of interest?

    prefix: what names of interest begin with; what lies above them is not there then.
    """
    tree = Tree()
    paths = prefixes(session.service.config)
    rows, _ = await session.account.listing(prefix=prefix)
    tops = tuple(top for top in (paths.others, paths.shared) if top)
    hidden = tuple(f"{top}{SEPARATOR}" for top in tops)
    for row in rows:
        if row.subscribed:
            tree.subscribed.add(row.name)
        # Names of other hierarchies are there for subscriptions alone.
        if row.selectable and not row.name.startswith(hidden) and row.name not in tops:
            tree.rows[row.name] = row
    user = session.account_name
    owners = []
    if wanted(paths.others):
        owners = [
            owner
            for owner in (await session.account.sharers())[: session.service.config.owners]
            if not (paths.shared and owner == paths.shared_account)
            and wanted(f"{paths.others}{SEPARATOR}{part_of(owner)}")
        ]
    if paths.shared and user != paths.shared_account and wanted(paths.shared):
        owners.append(paths.shared_account)
    for start in range(0, len(owners), ASKED):
        part = owners[start : start + ASKED]
        found = await asyncio.gather(*(_shared(session, owner) for owner in part))
        for owner, (others, rights) in zip(part, found, strict=True):
            for row in others:
                tree.add(paths.show(owner, row.name, user), row, owner, rights[row.id])
    tree.finish()
    return tree


async def _shared(
    session: ImapSession, owner: str
) -> tuple[list[Listing], dict[int, frozenset[str]]]:
    try:
        account = session.service.store.account(owner, create=False)
        return await account.listing(session.account_name)
    except NoSuchAccount:
        return [], {}
    except StoreError as error:
        logger.warning("mailboxes that %s shares were left out: %s", owner, error)
        return [], {}
