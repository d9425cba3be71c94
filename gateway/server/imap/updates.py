"""The untagged responses that tell a client what changed in its mailbox.

Owns      report()
Flow      view.update() → EXPUNGE or VANISHED, EXISTS, RECENT, FLAGS, FETCH
Standards RFC 9051 §7.3, §7.4, §7.5; RFC 7162 §3.2.10; RFC 9586 §3.3 (UIDFETCH)
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from gateway.store.model import records_of

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.state import Selected


def report(session: ImapSession, expunges: bool = True) -> None:
    """Tell what changed since the last report."""
    selected = session.selected
    assert selected is not None
    view = selected.view
    update = view.update(expunges)
    if not update:
        return
    if update.gone_uids:
        for number in reversed(update.gone_numbers):
            session.untagged(b"%d EXPUNGE" % number)
    if update.exists:
        session.untagged(b"%d EXISTS" % view.count)
    for numbers, records in update.changed:
        for number, record in zip(array("I", numbers), records_of(records), strict=True):
            flags = " ".join(view.mailbox.names(record.flags)).encode()
            session.untagged(b"%d FETCH (FLAGS (%s))" % (number, flags))
