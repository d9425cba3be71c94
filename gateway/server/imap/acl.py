"""Who else may do what with a mailbox.

Owns      SETACL, DELETEACL, GETACL, LISTRIGHTS, MYRIGHTS
Flow      identifiers are accounts, "anyone" or "authenticated", with "-" in front for what is taken away.  The owner
          may do everything, always
Limits    config.acl_entries
Errors    No: NOPERM, NONEXISTENT, CANNOT, LIMIT
Standards RFC 4314
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway._native import ImapSyntaxError
from gateway.accounts.model import SourceError
from gateway.mail.imap_rights import (
    ALL,
    ANYONE,
    AUTHENTICATED,
    NEW,
    NONE,
    RIGHTS,
    parse_rights,
    show_rights,
)
from gateway.protocol.imap.response import astring, mailbox_octets
from gateway.server.imap import state
from gateway.server.imap.access import Place, refuse
from gateway.server.imap.state import Bad, Capability, Handler, No, Outcome

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession

# RFC 4314 §3.7: each can be granted for itself; what RFC 2086 called them comes behind.
_GRANTABLE = " ".join(f"{RIGHTS}cd").encode()
_OWNERS = show_rights(ALL, old=True).encode()


async def cmd_setacl(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    name = command.mailbox()
    command.space()
    identifier = _identifier(command)
    command.space()
    text = command.astring().decode("ascii", "replace")
    command.end()
    how = text[:1] if text[:1] in ("+", "-") else ""
    try:
        rights = parse_rights(text[len(how) :])
    except ValueError as error:
        raise Bad(str(error)) from None  # RFC 4314 §3.1
    place, mailbox = await _administered(session, name)
    negative = "-" if identifier.startswith("-") else ""
    user = _user(session, identifier[len(negative) :])
    if user == place.owner:
        if negative or (how == "" and rights != ALL) or (how == "-" and rights):
            raise No("Its owner may do everything with a mailbox", b"CANNOT")
        return None
    if not negative and how != "-" and rights and user not in (ANYONE, AUTHENTICATED):
        await _check_exists(session, user)
    await place.account.set_acl(
        mailbox, negative + user, how, rights, session.service.config.acl_entries
    )
    return None


async def cmd_deleteacl(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    name = command.mailbox()
    command.space()
    identifier = _identifier(command)
    command.end()
    place, mailbox = await _administered(session, name)
    negative = "-" if identifier.startswith("-") else ""
    user = _user(session, identifier[len(negative) :])
    if user == place.owner and not negative:
        raise No("Its owner may do everything with a mailbox", b"CANNOT")
    await place.account.set_acl(mailbox, negative + user, "", NONE, 1)
    return None


async def cmd_getacl(session: ImapSession, command: ImapCommand) -> Outcome:
    name = _only_mailbox(command)
    place, mailbox = await _administered(session, name)
    pairs = [_pair(place.owner, ALL)]
    for identifier, rights in (await place.account.acl(mailbox)).items():
        pairs.append(_pair(identifier, frozenset(rights)))
    session.send(
        b"* ACL %b %b\r\n" % (mailbox_octets(name, session.machine.utf8), b" ".join(pairs))
    )
    return None


async def cmd_listrights(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    name = command.mailbox()
    command.space()
    identifier = _identifier(command)
    command.end()
    place, _ = await _administered(session, name)
    user = _user(session, identifier.removeprefix("-"))
    always, grantable = b'""', _GRANTABLE
    if user == place.owner and not identifier.startswith("-"):
        always, grantable = _OWNERS, b""
    words = [mailbox_octets(name, session.machine.utf8), astring(identifier.encode()), always]
    session.send(b"* LISTRIGHTS %b\r\n" % b" ".join([*words, grantable] if grantable else words))
    return None


async def cmd_myrights(session: ImapSession, command: ImapCommand) -> Outcome:
    name = _only_mailbox(command)
    place = await session.place(name)
    # RFC 4314 §4: any of these is enough.
    if place.mailbox is None or not place.rights & set("lrikxa"):
        raise refuse(name, NONE)
    octets = mailbox_octets(name, session.machine.utf8)
    session.send(b"* MYRIGHTS %b %b\r\n" % (octets, show_rights(place.rights, old=True).encode()))
    return None


def _only_mailbox(command: ImapCommand) -> str:
    command.space()
    name = command.mailbox()
    command.end()
    return name


def _identifier(command: ImapCommand) -> str:
    try:
        text = command.astring().decode()
    except UnicodeDecodeError:
        raise ImapSyntaxError("An identifier is UTF-8") from None
    if not text.isprintable() or not text.removeprefix("-"):
        raise ImapSyntaxError("An identifier is the name of an account, anyone or authenticated")
    return text


def _user(session: ImapSession, identifier: str) -> str:
    """In the form in which lists have it."""
    lower = identifier.lower()
    if lower in (ANYONE, AUTHENTICATED):
        return lower
    return session.service.authenticator.directory.user(identifier) or identifier


async def _check_exists(session: ImapSession, user: str) -> None:
    """Rights of somebody who does not exist would be those of whoever gets the name."""
    try:
        account = await session.service.authenticator.directory.find(user)
    except SourceError:
        raise No("Whether there is such an account cannot be told now", b"UNAVAILABLE") from None
    if account is None:
        raise No(f'There is no account "{user}"', b"CANNOT")


async def _administered(session: ImapSession, name: str) -> tuple[Place, int]:
    place = await session.place(name, "a")
    assert place.mailbox is not None
    return place, place.mailbox.id


def _pair(identifier: str, rights: frozenset[str]) -> bytes:
    return b"%b %b" % (astring(identifier.encode()), show_rights(rights, old=True).encode())


COMMANDS = {
    name: Handler(function, state.AUTHENTICATED, indexed=False)
    for name, function in (
        (b"SETACL", cmd_setacl),
        (b"DELETEACL", cmd_deleteacl),
        (b"GETACL", cmd_getacl),
        (b"LISTRIGHTS", cmd_listrights),
        (b"MYRIGHTS", cmd_myrights),
    )
}
CAPABILITIES = [Capability(b"ACL"), Capability(b"RIGHTS=" + NEW.encode())]
