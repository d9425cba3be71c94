"""From a mailbox name to the mailbox, and what the session may do there.

Owns      Place, find_place(), refuse(); Prefixes: where in the hierarchy other accounts' mailboxes are
Flow      name → account and its own name there → the store: mailbox and rights, in one question
Errors    No: NONEXISTENT, NOPERM (RFC 5530)
Security  who may not look a mailbox up gets the answer for one that does not exist, and so does who asks for an account
          that does not exist
Standards RFC 9051 §5.1, RFC 2342, RFC 4314 §2 (rights), §4 (which right a command needs)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.mail.imap_rights import ALL, NONE
from gateway.server.imap.state import No
from gateway.store.errors import NoSuchAccount
from gateway.store.names import SEPARATOR, mailbox_name

if TYPE_CHECKING:
    from gateway.config_imap import ImapConfig
    from gateway.server.imap.session import ImapSession
    from gateway.store.model import Mailbox
    from gateway.store.store import Account


class Place(msgspec.Struct, frozen=True):
    """Where a name leads."""

    account: Account  # of whose mail it is
    owner: str  # the account's name
    name: str  # in that account
    mailbox: Mailbox | None  # None: there is none of that name
    rights: frozenset[str]  # the letters of RFC 4314 §2.1
    above: frozenset[str] = ALL  # on the mailbox it lies in: "k" allows making one here

    def is_of(self, user: str) -> bool:
        """It is the user's own: nobody else's rights count."""
        return self.owner == user


class Prefixes(NamedTuple):
    """Names that lead out of the user's own hierarchy."""

    others: str  # "Other Users"
    shared: str  # "Shared"; "": there is nothing shared by the site
    shared_account: str

    def find(self, name: str, user: str) -> tuple[str, str] | None:
        """(account, name there) of a name as the user knows it; None: he can make no mailbox of that name.

        Both are empty for the names at which such hierarchies begin.
        """
        top, _, rest = name.partition(SEPARATOR)
        if top == self.others:
            part, _, inner = rest.partition(SEPARATOR)
            owner = user_of(part)
            return None if owner == user else (owner, inner)
        if self.shared and top == self.shared and self.shared_account != user:
            return self.shared_account, rest
        return user, name

    def show(self, owner: str, name: str, user: str) -> str:
        """What find() takes apart."""
        if owner == user:
            return name
        if self.shared and owner == self.shared_account:
            return f"{self.shared}{SEPARATOR}{name}"
        return f"{self.others}{SEPARATOR}{part_of(owner)}{SEPARATOR}{name}"


def prefixes(config: ImapConfig) -> Prefixes:
    """Those of the configuration."""
    shared = config.shared if config.shared_account else ""
    return Prefixes(config.other_users, shared, config.shared_account)


def part_of(user: str) -> str:
    """An account's name as one level of the hierarchy."""
    return user.replace("%", "%25").replace(SEPARATOR, "%2F")


def user_of(part: str) -> str:
    """The account of that level."""
    return re.sub("%(25|2F)", lambda found: "%" if found[1] == "25" else SEPARATOR, part)


async def find_place(session: ImapSession, name: str, *rights: str) -> Place:
    """The mailbox of that name; with rights it must exist, and the session must have them.  Raises No."""
    name = mailbox_name(name)
    user = session.account_name
    found = prefixes(session.service.config).find(name, user)
    if found is None:
        raise refuse(name, NONE)
    owner, inner = found
    if owner == user:
        account = session.account
        access = await account.access(inner)
        if rights and access.mailbox is None:
            raise refuse(name, NONE)
        return Place(account, owner, inner, access.mailbox, ALL)
    if not inner:
        raise refuse(name, NONE)
    account = session.service.store.account(owner, create=False)
    try:
        access = await account.access(inner, user)
    except NoSuchAccount:
        raise refuse(name, NONE) from None
    if rights and (access.mailbox is None or not access.rights.issuperset(rights)):
        raise refuse(name, access.rights)
    mailbox = access.mailbox if access.rights else None
    return Place(account, owner, inner, mailbox, access.rights, access.above)


def own_name(session: ImapSession, name: str) -> str | None:
    """The name in the session's own account; None: it is somebody else's, or nobody's."""
    user = session.account_name
    found = prefixes(session.service.config).find(mailbox_name(name), user)
    return found[1] if found is not None and found[0] == user else None


def refuse(name: str, rights: frozenset[str]) -> No:
    """What to raise for who has only these rights on the mailbox (RFC 4314 §6)."""
    if "l" in rights:
        return No("You have not the right to do that", b"NOPERM")
    return No(f'There is no mailbox "{name}"', b"NONEXISTENT")
