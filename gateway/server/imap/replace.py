"""REPLACE: a new message in place of an old one, in one step.

Owns      REPLACE, UID REPLACE
Limits    those of APPEND
Errors    those of APPEND; the old message stays where the new one is refused
Standards RFC 8508
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway._native import ranges_of_uids
from gateway.protocol.imap.append import append_message
from gateway.server.imap.append import append_code, begin_literal, new_message
from gateway.server.imap.copy import target
from gateway.server.imap.state import SELECTED, Bad, Capability, Handler, No, Outcome

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession


async def cmd_replace(session: ImapSession, command: ImapCommand) -> Outcome:
    return await _replace(session, command, uid=False)


async def cmd_uid_replace(session: ImapSession, command: ImapCommand) -> Outcome:
    return await _replace(session, command, uid=True)


async def _replace(session: ImapSession, command: ImapCommand, *, uid: bool) -> Outcome:
    try:
        command.space()
        pairs = command.sequence_set()
        command.space()
        name = command.mailbox()
        message = append_message(command)
        command.end()
        selected = session.selected
        assert selected is not None
        uids = selected.view.uids_of(selected.view.ranges(pairs, uid))
        if len(uids) != 4:
            raise (
                Bad("REPLACE takes one message")
                if len(uids) > 4
                else No("There is no such message")
            )
        if selected.read_only:
            raise No("The mailbox is open for reading only", b"READ-ONLY")
        if not {"t", "e"} <= selected.place.rights:  # RFC 8508 §5
            raise No("You may not remove mail from here", b"NOPERM")
        place = await target(session, name)
        assert place.mailbox is not None
        if place.account.name != selected.place.account.name:
            raise No("Replacing between accounts is not possible", b"CANNOT")
        new = await new_message(session, place, message)
        quota = await session.quota_of(place.owner)
        source = selected.mailbox.id
        delivered, expunged = await place.account.replace(
            place.mailbox.id, new, source, int.from_bytes(uids, "little"), quota
        )
    finally:
        session.discard_uploads()
    # RFC 8508 §3.3: before the EXPUNGE
    session.untagged(b"OK [%b] Replacement is there" % append_code([delivered]))
    if source != place.mailbox.id:
        selected.view.watch.apply(b"", ranges_of_uids(uids), expunged.modseq)
    return None


COMMANDS = {
    b"REPLACE": Handler(cmd_replace, SELECTED, by_sequence=True, literal=begin_literal),
    b"UID REPLACE": Handler(cmd_uid_replace, SELECTED, literal=begin_literal),
}
CAPABILITIES = [Capability(b"REPLACE")]
