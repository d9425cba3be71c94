"""From a mailbox name to the mailbox, and what the session may do there.

Owns      Place, find_place()
Errors    No: NONEXISTENT, NOPERM (RFC 5530)
Standards RFC 9051 §5.1, RFC 4314 §4 (which right a command needs)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.server.imap.state import No
from gateway.store.errors import NoSuchMailbox

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession
    from gateway.store.model import Mailbox
    from gateway.store.store import Account

ALL_RIGHTS = frozenset("lrswipkxtea")


class Place(msgspec.Struct, frozen=True):
    """Where a name leads."""

    account: Account  # of whose mail it is
    owner: str  # the account's name
    name: str  # in that account
    mailbox: Mailbox | None  # None: there is none of that name
    rights: frozenset[str]  # the letters of RFC 4314 §2.1


async def find_place(session: ImapSession, name: str, *rights: str) -> Place:
    """The mailbox of that name; with rights it must exist, and the session must have them."""
    try:
        mailbox = await session.account.mailbox(name)
    except NoSuchMailbox:
        if rights:
            raise No(f'There is no mailbox "{name}"', b"NONEXISTENT") from None
        mailbox = None
    return Place(session.account, session.account_name, name, mailbox, ALL_RIGHTS)
