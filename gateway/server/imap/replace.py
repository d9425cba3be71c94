"""REPLACE: a new message in place of an old one, in one step.

Owns      REPLACE, UID REPLACE
Limits    those of APPEND
Errors    those of APPEND; the old message stays where the new one is refused
Bugs      between accounts it is two transactions, the new message first: a crash, or a client that leaves in between,
          may leave both, never neither
Standards RFC 8508
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway._native import ranges_of_uids
from gateway.protocol.imap.append import append_message
from gateway.server.imap.append import append_code, begin_literal, new_message
from gateway.server.imap.copy import target
from gateway.server.imap.state import SELECTED, Bad, Capability, Handler, No, Outcome
from gateway.store.errors import MessageGone, StoreError
from gateway.store.model import ranges_of

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.access import Place
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.state import Selected
    from gateway.store.model import Delivered, Expunged, Quota
    from gateway.store.upload import NewMessage


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
        new = await new_message(session, place, message)
        quota = await session.quota_of(place.owner)
        source, uid_of_old = selected.mailbox.id, int.from_bytes(uids, "little")
        across = place.account.name != selected.place.account.name
        if across:
            delivered, expunged = await _replace_across(selected, place, new, uid_of_old, quota)
        else:
            delivered, expunged = await place.account.replace(place.mailbox.id, new, source, uid_of_old, quota)
    finally:
        session.discard_uploads()
    # RFC 8508 §3.3: before the EXPUNGE
    session.untagged(b"OK [%b] Replacement is there" % append_code([delivered]))
    if across or source != place.mailbox.id:
        selected.view.watch.apply(b"", ranges_of_uids(uids), expunged.modseq)
    return None


async def _replace_across(
    selected: Selected, place: Place, new: NewMessage, uid: int, quota: Quota
) -> tuple[Delivered, Expunged]:
    """From one account to another: the old message goes when the new one is on the disk.  Raises StoreError."""
    assert place.mailbox is not None
    [delivered] = await place.account.append(place.mailbox.id, [new], quota)
    try:
        expunged = await selected.place.account.expunge(selected.mailbox.id, ranges_of((uid,)), deleted_only=False)
        if not expunged.modseq:
            raise MessageGone("the message to be replaced was expunged")
    except StoreError:
        await place.account.expunge(place.mailbox.id, ranges_of((delivered.uid,)), deleted_only=False)
        raise
    return delivered, expunged


COMMANDS = {
    b"REPLACE": Handler(cmd_replace, SELECTED, by_sequence=True, literal=begin_literal),
    b"UID REPLACE": Handler(cmd_uid_replace, SELECTED, literal=begin_literal),
}
CAPABILITIES = [Capability(b"REPLACE")]
