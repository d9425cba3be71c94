"""Making, deleting, renaming mailboxes, and subscribing to them.

Owns      CREATE, DELETE, RENAME, SUBSCRIBE, UNSUBSCRIBE
Errors    No: ALREADYEXISTS, CANNOT, HASCHILDREN, LIMIT, NONEXISTENT, NOPERM, USEATTR
Security  names of other hierarchies lead to their owners' accounts, with their rights
Standards RFC 9051 §6.3.4 to §6.3.8; RFC 4314 §4; RFC 6154 §3 (CREATE-SPECIAL-USE), RFC 8474 §4.2 (MAILBOXID)

A session that has a mailbox selected which somebody deletes sees all its messages expunged (watch.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.mail.imap_rights import NONE
from gateway.protocol.imap.notify import MAILBOX_NAME, SUBSCRIPTION_CHANGE
from gateway.protocol.imap.response import mailbox_octets
from gateway.server.imap.access import Place, prefixes, refuse
from gateway.server.imap.state import (
    AUTHENTICATED,
    Bad,
    Capability,
    Completed,
    Handler,
    No,
    Outcome,
)
from gateway.store.mailboxes import SPECIAL_USES
from gateway.store.names import SEPARATOR, mailbox_name

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession

_USES = {use.lower(): use for use in SPECIAL_USES}


async def cmd_create(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    asked = command.mailbox()
    uses = _uses(command)
    command.end()
    # RFC 9051 §6.3.4: a delimiter at the end says that there will be something below it.
    place = await _new_place(session, asked.removesuffix(SEPARATOR))
    if uses and not place.is_of(session.account_name):
        raise No("Only its owner says what a mailbox is for", b"USEATTR")
    _expect(session, MAILBOX_NAME, asked.removesuffix(SEPARATOR))
    mailbox = await place.account.create(place.name, uses)
    name = prefixes(session.service.config).show(place.owner, place.name, session.account_name)
    if b"IMAP4REV2" in session.enabled and name != asked.removesuffix(SEPARATOR):
        # RFC 9051 §6.3.9.7: it was made under its normal form
        utf8 = session.machine.utf8
        session.send(
            b'* LIST () "/" %b ("OLDNAME" (%b))\r\n'
            % (mailbox_octets(name, utf8), mailbox_octets(asked, utf8))
        )
    return Completed("", b"MAILBOXID (%b)" % mailbox.object_id(place.account.name).encode())


def _uses(command: ImapCommand) -> list[str]:
    """CREATE's parameters (RFC 4466 §2.2): USE alone (RFC 6154 §3)."""
    if command.at_end():
        return []
    command.space()
    command.expect(b"(")
    command.expect(b"USE")
    command.space()
    words = command.flag_list()
    command.expect(b")")
    for word in words:
        if word.lower() not in _USES:
            raise No(f"A mailbox's use is one of {' '.join(SPECIAL_USES)}", b"USEATTR")
    return [_USES[word.lower()] for word in words]


async def _new_place(session: ImapSession, name: str) -> Place:
    """Where a mailbox of that name would be.  Raises No."""
    if prefixes(session.service.config).find(mailbox_name(name), session.account_name) is None:
        raise No("That name is where other users' mailboxes are", b"CANNOT")
    try:
        place = await session.place(name)
        allowed = "k" in place.above
    except No:  # there is no such account: that is not told
        allowed = False
    if not allowed:
        raise No("You have not the right to do that", b"NOPERM")
    return place


async def cmd_delete(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    name = command.mailbox()
    command.end()
    place = await session.place(name, "x")
    _expect(session, MAILBOX_NAME, name)
    await place.account.delete(place.name)
    return None


async def cmd_rename(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    old = command.mailbox()
    command.space()
    new = command.mailbox().removesuffix(SEPARATOR)
    command.end()
    source = await _renamed(session, old)
    target = await _new_place(session, new)
    if source.owner != target.owner:
        raise No("A mailbox stays with its owner: copy its messages", b"CANNOT")
    _expect(session, MAILBOX_NAME, new)
    _expect(session, SUBSCRIPTION_CHANGE, old, new)
    await source.account.rename(source.name, target.name)
    return None


async def _renamed(session: ImapSession, name: str) -> Place:
    """It may be a name that only has something below it, in the own account."""
    place = await session.place(name)
    if place.is_of(session.account_name):
        return place
    if place.mailbox is None or "x" not in place.rights:
        raise refuse(name, place.rights if place.mailbox is not None else NONE)
    if place.name == "INBOX":
        raise No("Only its owner renames INBOX", b"CANNOT")
    return place


async def cmd_subscribe(session: ImapSession, command: ImapCommand) -> Outcome:
    name = _name(command)
    place = await session.place(name)
    if not place.is_of(session.account_name) and (place.mailbox is None or "l" not in place.rights):
        raise refuse(name, NONE)
    _expect(session, SUBSCRIPTION_CHANGE, name)
    await session.account.subscribe(name)
    return None


async def cmd_unsubscribe(session: ImapSession, command: ImapCommand) -> Outcome:
    name = _name(command)
    _expect(session, SUBSCRIPTION_CHANGE, name)
    await session.account.subscribe(name, False)
    return None


def _expect(session: ImapSession, kind: bytes, *names: str) -> None:
    """The session does this itself: NOTIFY need not tell it (RFC 5465 §5)."""
    if session.notify is not None:
        session.notify.expect(kind, *map(mailbox_name, names))


def _name(command: ImapCommand) -> str:
    command.space()
    name = command.mailbox()
    command.end()
    if not name:
        raise Bad("A name is missing")
    return name


COMMANDS = {
    b"CREATE": Handler(cmd_create, AUTHENTICATED, indexed=False),
    b"DELETE": Handler(cmd_delete, AUTHENTICATED, indexed=False),
    b"RENAME": Handler(cmd_rename, AUTHENTICATED, indexed=False),
    b"SUBSCRIBE": Handler(cmd_subscribe, AUTHENTICATED, indexed=False),
    b"UNSUBSCRIBE": Handler(cmd_unsubscribe, AUTHENTICATED, indexed=False),
}
CAPABILITIES = [Capability(b"CREATE-SPECIAL-USE")]
