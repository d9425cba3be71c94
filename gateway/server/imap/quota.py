"""What an account may keep, and what it does.

Owns      GETQUOTA, GETQUOTAROOT, SETQUOTA
Flow      one root an account, called like it: all its mailboxes count, as they do for deliveries
Errors    No: NOPERM for the quota of others, and for setting one, which is the administrator's (`gateway user`)
Standards RFC 9208; RFC 2087
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway._native import imap_string
from gateway.accounts.model import SourceError
from gateway.protocol.imap.response import mailbox_octets
from gateway.server.imap.state import AUTHENTICATED, Capability, Handler, No, Outcome

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession
    from gateway.store.store import Account

STORAGE_OCTETS = 1024  # RFC 9208 §5.1


async def cmd_getquota(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    root = command.astring().decode("utf-8", "replace")
    command.end()
    if root != session.account_name:
        raise No("There is no such quota root", b"NONEXISTENT")
    await _tell(session, session.account)
    return None


async def cmd_getquotaroot(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    name = command.mailbox()
    command.end()
    place = await session.place(name, "r")  # RFC 9208 §4.1.2
    octets = mailbox_octets(name, session.machine.utf8)
    session.send(b"* QUOTAROOT %b %b\r\n" % (octets, imap_string(place.owner.encode())))
    await _tell(session, place.account)
    return None


async def cmd_setquota(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    command.astring()
    command.space()
    command.expect(b"(")
    while not command.accept(b")"):
        command.atom()
        command.space()
        command.number64()
        if command.peek() == ord(" "):
            command.space()
    command.end()
    raise No("Quotas are set by the administrator", b"NOPERM")


async def _tell(session: ImapSession, account: Account) -> None:
    try:
        quota = await session.quota_of(account.name)
    except SourceError:
        raise No("The quota cannot be told now", b"UNAVAILABLE") from None
    parts = []
    if quota.octets or quota.messages:
        usage = await account.usage()
        if quota.octets:
            used, limit = -(-usage.octets // STORAGE_OCTETS), quota.octets // STORAGE_OCTETS
            parts.append(b"STORAGE %d %d" % (used, limit))
        if quota.messages:
            parts.append(b"MESSAGE %d %d" % (usage.messages, quota.messages))
    session.send(b"* QUOTA %b (%b)\r\n" % (imap_string(account.name.encode()), b" ".join(parts)))


COMMANDS = {
    b"GETQUOTA": Handler(cmd_getquota, AUTHENTICATED, indexed=False),
    b"GETQUOTAROOT": Handler(cmd_getquotaroot, AUTHENTICATED, indexed=False),
    b"SETQUOTA": Handler(cmd_setquota, AUTHENTICATED, indexed=False),
}
CAPABILITIES = [
    Capability(b"QUOTA"),
    Capability(b"QUOTA=RES-STORAGE"),
    Capability(b"QUOTA=RES-MESSAGE"),
]
