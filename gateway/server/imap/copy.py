"""COPY and MOVE: to another mailbox, all messages or none.

Owns      COPY, UID COPY, MOVE, UID MOVE
Errors    NO [TRYCREATE] when there is no such mailbox
Standards RFC 9051 §6.4.7, §6.4.8; RFC 4315 §3 (COPYUID), RFC 6851 (MOVE), RFC 7162 §3.2.7, RFC 4314 §4,
          RFC 9738
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway._native import format_set, ranges_of_uids
from gateway.server.imap.copy_across import copy_across
from gateway.server.imap.message_limit import bounded_ranges, refuse_more
from gateway.server.imap.state import SELECTED, Capability, Completed, Handler, No, Outcome

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.access import Place
    from gateway.server.imap.session import ImapSession


async def cmd_copy(session: ImapSession, command: ImapCommand) -> Outcome:
    return await _copy(session, command, uid=False, move=False)


async def cmd_uid_copy(session: ImapSession, command: ImapCommand) -> Outcome:
    return await _copy(session, command, uid=True, move=False)


async def cmd_move(session: ImapSession, command: ImapCommand) -> Outcome:
    return await _copy(session, command, uid=False, move=True)


async def cmd_uid_move(session: ImapSession, command: ImapCommand) -> Outcome:
    return await _copy(session, command, uid=True, move=True)


async def _copy(session: ImapSession, command: ImapCommand, *, uid: bool, move: bool) -> Outcome:
    command.space()
    pairs = command.sequence_set()
    command.space()
    name = command.mailbox()
    command.end()
    selected = session.selected
    assert selected is not None
    ranges = selected.view.ranges(pairs, uid)
    if move:
        if selected.read_only:
            raise No("The mailbox is open for reading only", b"READ-ONLY")
        if not {"t", "e"} <= selected.place.rights:
            raise No("You may not move mail out of here", b"NOPERM")
    place = await target(session, name)
    assert place.mailbox is not None
    if not ranges:
        return None
    if move:
        ranges = bounded_ranges(session, ranges)
    elif limit := session.service.config.messages_per_command:
        uids = selected.view.uids_of(ranges)
        lowest = int.from_bytes(uids[-4 * limit :][:4], "little")
        refuse_more(session, len(uids) // 4, lowest)  # RFC 9738 §3.1: all of them or none
    source, account = selected.place, place.account
    across = account.name != source.account.name
    if across:
        copied = await copy_across(session, place, ranges, move=move)
    else:
        copied = await account.copy(
            selected.mailbox.id, place.mailbox.id, ranges, move=move, quota=await session.quota_of(place.owner)
        )
    if not copied.target:
        return None
    if copied.expunged_modseq and (across or place.mailbox.id != selected.mailbox.id):
        selected.view.watch.apply(b"", ranges_of_uids(copied.source), copied.expunged_modseq)
    code = b"COPYUID %d %b %b" % (
        copied.uidvalidity, format_set(copied.source), format_set(copied.target)
    )  # fmt: skip
    if not move:
        return Completed("", code)
    session.untagged(b"OK [" + code + b"] Moved")  # RFC 6851 §4.3: before the EXPUNGEs
    if b"CONDSTORE" in session.enabled:
        return Completed("", b"HIGHESTMODSEQ %d" % copied.expunged_modseq)
    return None


async def target(session: ImapSession, name: str) -> Place:
    """Where messages are put: the mailbox of that name; No with TRYCREATE when there is none (RFC 9051 §6.3.12)."""
    try:
        return await session.place(name, "i")
    except No as error:
        if error.code == b"NONEXISTENT":
            error.code = b"TRYCREATE"
        raise


COMMANDS = {
    b"COPY": Handler(cmd_copy, SELECTED, by_sequence=True),
    b"UID COPY": Handler(cmd_uid_copy, SELECTED),
    b"MOVE": Handler(cmd_move, SELECTED, by_sequence=True),
    b"UID MOVE": Handler(cmd_uid_move, SELECTED),
}
CAPABILITIES = [Capability(b"MOVE")]
