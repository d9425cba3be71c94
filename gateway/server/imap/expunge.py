"""EXPUNGE and UID EXPUNGE.

Owns      EXPUNGE, UID EXPUNGE
Standards RFC 9051 §6.4.3, §6.4.9; RFC 4315 §2.1; RFC 7162 §3.2.7 (HIGHESTMODSEQ); RFC 9738
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from gateway._native import ranges_of_uids
from gateway.server.imap.message_limit import bounded_deleted
from gateway.server.imap.state import SELECTED, Capability, Completed, Handler, No, Outcome

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession


async def cmd_expunge(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    assert session.selected is not None
    last = session.selected.view.last_uid  # what the client does not know of stays
    return await _expunge(session, array("I", (1, last)).tobytes() if last else b"")


async def cmd_uid_expunge(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    pairs = command.sequence_set()
    command.end()
    assert session.selected is not None
    return await _expunge(session, session.selected.view.ranges(pairs, uid=True), bounded=True)


async def _expunge(session: ImapSession, ranges: bytes, *, bounded: bool = False) -> Outcome:
    selected = session.selected
    assert selected is not None
    if selected.read_only:
        raise No("The mailbox is open for reading only", b"READ-ONLY")
    if "e" not in selected.place.rights:
        raise No("You may not expunge here", b"NOPERM")
    if not ranges:
        return None
    if bounded:
        ranges = bounded_deleted(session, ranges)
    expunged = await selected.place.account.expunge(selected.mailbox.id, ranges)
    if not expunged.modseq:
        return None
    selected.view.watch.apply(b"", ranges_of_uids(expunged.uids), expunged.modseq)
    if b"CONDSTORE" in session.enabled:
        return Completed("", b"HIGHESTMODSEQ %d" % expunged.modseq)
    return None


COMMANDS = {
    b"EXPUNGE": Handler(cmd_expunge, SELECTED),
    b"UID EXPUNGE": Handler(cmd_uid_expunge, SELECTED),
}
CAPABILITIES = [Capability(b"UIDPLUS")]
