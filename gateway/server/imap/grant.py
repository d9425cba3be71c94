"""The rights on somebody else's mailbox, while it is selected.

Owns      Grant
Flow      a Notice about the owner's list of mailboxes → stale → asked again before the next command, or at once when
          the session waits in IDLE or by NOTIFY
Errors    a session that may not read the mailbox any more ends with BYE
Security  whatever a command may do is what the rights are when it begins
Standards RFC 4314 §4; RFC 9051 §7.1.5
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.mail.imap_rights import effective_rights
from gateway.server.imap.flags import announce_flags
from gateway.store.errors import NoSuchMailbox, StoreError

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession
    from gateway.store.model import Notice


class Grant:
    """Of one session, from SELECT on; end() it when the mailbox is closed."""

    __slots__ = ("_session", "end", "is_stale")

    def __init__(self, session: ImapSession, owner: str) -> None:
        self._session = session
        self.is_stale = False
        self.end = session.service.store.notices.subscribe(owner, self._noticed)

    def _noticed(self, notice: Notice) -> None:
        if notice.mailbox == 0:  # rights are changed with the list of mailboxes
            self.is_stale = True
            session = self._session
            if session.is_free and (session.idling or session.notify is not None):
                session.later(self.check())

    async def check(self) -> None:
        """The selected mailbox has the rights of this moment."""
        self.is_stale = False
        session = self._session
        selected = session.selected
        if selected is None:
            return
        place = selected.place
        try:
            entries = await place.account.acl(selected.mailbox.id)
        except NoSuchMailbox:
            return  # its watch tells
        except StoreError:
            self.is_stale = True
            return
        if session.selected is not selected:
            return
        rights = effective_rights(entries, session.account_name)
        if "r" not in rights:
            session.end("rights")
        elif rights != place.rights:
            selected.place = msgspec.structs.replace(place, rights=rights)
            announce_flags(session, selected)
