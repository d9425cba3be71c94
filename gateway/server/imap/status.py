"""STATUS, and its response for LIST and NOTIFY.

Owns      STATUS; StatusFormat, deleted_octets()
Flow      the mailbox's row has all but DELETED-STORAGE, for which the index is read when anything is \\Deleted
Standards RFC 9051 §6.3.11, §7.3.4; RFC 3501 §6.3.10 (RECENT), RFC 7162 §3.1.7, RFC 7889, RFC 8438, RFC 8474 §4.3,
          RFC 9208 §4.1.4
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from gateway._native import record_column
from gateway.protocol.imap.list import parse_status
from gateway.protocol.imap.response import mailbox_octets
from gateway.server.imap.state import AUTHENTICATED, Capability, Handler, Outcome
from gateway.store.model import DELETED

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession
    from gateway.store.account_sharing import Listing
    from gateway.store.model import Mailbox
    from gateway.store.store import Account

DELETED_STORAGE = b"DELETED-STORAGE"

# Item → attribute of Mailbox and Listing.
_ATTRIBUTES = {
    b"MESSAGES": "messages",
    b"UIDNEXT": "uidnext",
    b"UIDVALIDITY": "uidvalidity",
    b"UNSEEN": "unseen",
    b"RECENT": "recent",
    b"DELETED": "deleted",
    b"SIZE": "octets",
    b"HIGHESTMODSEQ": "highestmodseq",
}


class StatusFormat:
    """The responses of one command: the same items of many mailboxes."""

    def __init__(self, session: ImapSession, items: Sequence[bytes]) -> None:
        """Asking for HIGHESTMODSEQ enables CONDSTORE (RFC 7162 §3.1)."""
        if b"HIGHESTMODSEQ" in items:
            session.enable_condstore()
        self.needs_deleted_octets = DELETED_STORAGE in items
        words, attributes = [], []
        for item in items:
            if item == b"APPENDLIMIT":
                words.append(f"APPENDLIMIT {session.service.append_octets}")
            elif item == DELETED_STORAGE:
                words.append("DELETED-STORAGE {deleted_octets}")
            elif item == b"MAILBOXID":
                words.append("MAILBOXID ({object_id})")
            else:
                words.append(f"{item.decode()} %s")
                attributes.append(_ATTRIBUTES[item])
        self._needs_object_id = b"MAILBOXID" in items
        self._format = " (" + " ".join(words) + ")\r\n"
        self._values: Any = attrgetter(*attributes) if attributes else lambda _: ()

    def response(self, name: bytes, account: str, row: Mailbox | Listing, deleted_octets: int = 0) -> bytes:
        """The whole response; name: as mailbox_octets() made it; account: whose mailbox it is."""
        text: str = self._format % self._values(row)
        if self.needs_deleted_octets or self._needs_object_id:
            object_id = row.object_id(account) if self._needs_object_id else ""
            text = text.format(deleted_octets=deleted_octets, object_id=object_id)
        return b"* STATUS " + name + text.encode()


async def deleted_octets(account: Account, row: Mailbox | Listing) -> int:
    """Octets that EXPUNGE would free."""
    if not row.deleted:
        return 0
    octets = 0
    for chunk in (await account.snapshot(row.id)).chunks:
        flags = array("Q", record_column(chunk, "flags"))
        sizes = array("I", record_column(chunk, "size"))
        octets += sum(size for size, bits in zip(sizes, flags, strict=True) if bits & DELETED)
    return octets


async def cmd_status(session: ImapSession, command: ImapCommand) -> Outcome:
    name, items = parse_status(command)
    place = await session.place(name, "r")
    assert place.mailbox is not None
    form = StatusFormat(session, items)
    octets = 0
    if form.needs_deleted_octets:
        octets = await deleted_octets(place.account, place.mailbox)
    shown = mailbox_octets(name, session.machine.utf8)
    session.send(form.response(shown, place.account.name, place.mailbox, octets))
    return None


COMMANDS = {b"STATUS": Handler(cmd_status, AUTHENTICATED, indexed=False)}
CAPABILITIES = [Capability(b"STATUS=SIZE")]
