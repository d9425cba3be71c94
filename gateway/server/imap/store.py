"""STORE and UID STORE: flags and keywords.

Owns      STORE, UID STORE; Change, flag_bits()
Flow      arguments → the worker's index as it will be → the store logs the change, if it knows of no other; else
          arguments → one transaction of the store → the worker's index takes it over → FETCH responses
Errors    flags without the right to them are passed over; NO when none is left (RFC 4314 §4)
Standards RFC 9051 §6.4.6, RFC 7162 §3.1.3 (UNCHANGEDSINCE, MODIFIED), RFC 4314 §4; RFC 9738
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway._native import format_set, ranges_of_uids
from gateway.server.imap import updates
from gateway.server.imap.flags import SYSTEM, check_flags
from gateway.server.imap.message_limit import bounded_ranges
from gateway.server.imap.state import PENDING, SELECTED, Bad, Completed, Handler, No, Outcome
from gateway.server.imap.vanished import without
from gateway.store.errors import StoreError
from gateway.store.model import NEVER, Stored

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.state import Selected
    from gateway.store.model import Mailbox


SYNC_OCTETS = 1 << 18  # of changed records that are answered in one turn of the loop


class Change(NamedTuple):
    """What is to be done; replace: the flags are these afterwards."""

    add: list[str]
    remove: list[str]
    replace: list[str] | None
    silent: bool
    unchanged_since: int


def cmd_store(session: ImapSession, command: ImapCommand) -> Outcome | Coroutine[Any, Any, Outcome]:
    return _store(session, command, uid=False)


def cmd_uid_store(session: ImapSession, command: ImapCommand) -> Outcome | Coroutine[Any, Any, Outcome]:
    return _store(session, command, uid=True)


def _store(session: ImapSession, command: ImapCommand, *, uid: bool) -> Outcome | Coroutine[Any, Any, Outcome]:
    command.space()
    pairs = command.sequence_set()
    command.space()
    change = _change(command)
    selected = session.selected
    assert selected is not None
    view = selected.view
    ranges = view.ranges(pairs, uid)
    if selected.read_only:
        raise No("The mailbox is open for reading only", b"READ-ONLY")
    change = _permitted(selected, change)
    if change.unchanged_since != NEVER:
        session.enable_condstore()
    if not ranges:
        return None
    ranges = bounded_ranges(session, ranges)
    found = flag_bits(view.mailbox, change)
    store = view.watch.store if selected.contexts else view.store  # contexts need the update
    if found is not None and (stored := store(ranges, *found, change.unchanged_since)) is not None:
        if len(stored.changed) > SYNC_OCTETS:
            return _answer_later(session, stored, ranges, change, uid)
        return _answer(session, stored, ranges, change, uid)
    answer = session.answer_later()

    def done(stored: Stored | StoreError) -> None:
        if session.is_closed:
            return
        if isinstance(stored, StoreError):
            answer(stored)
            return
        watch = view.watch
        if stored.modseq and view.mailbox.bits(change.replace or change.add) is not None:
            watch.apply(stored.changed, b"", stored.modseq)
        elif stored.modseq:  # a new keyword: the row has to be read
            watch.newest_modseq = max(watch.newest_modseq, stored.modseq)
        if watch.is_stale or len(stored.changed) > SYNC_OCTETS:
            session.go_on(_answer_later(session, stored, ranges, change, uid))
            return
        answer(_answer(session, stored, ranges, change, uid))

    selected.place.account.store_then(
        view.mailbox.id,
        ranges,
        done,
        add=change.add,
        remove=change.remove,
        replace=change.replace,
        unchanged_since=change.unchanged_since,
    )
    return PENDING


def flag_bits(mailbox: Mailbox, change: Change) -> tuple[int, int] | None:
    """(clear, set): flags become (flags & ~clear) | set.  None: it takes a keyword that is new here."""
    bits = mailbox.bits(change.add if change.replace is None else change.replace)
    if bits is None:
        return None
    if change.replace is not None:
        return NEVER, bits
    clear = 0
    for flag in change.remove:
        clear |= mailbox.bits((flag,)) or 0  # a keyword that nobody ever set
    return clear, bits


def _answer(session: ImapSession, stored: Stored, ranges: bytes, change: Change, uid: bool) -> Outcome:
    """What came of it, when the view knows."""
    own = _own(stored, ranges, change, uid)
    updates.report(session, uid, own)
    for _ in updates.answer_store(session, own):
        pass
    return _outcome(session, stored, uid)


async def _answer_later(
    session: ImapSession, stored: Stored, ranges: bytes, change: Change, uid: bool
) -> Outcome:
    """The same where others were faster, or the responses are many."""
    assert session.selected is not None
    await session.selected.view.watch.refresh()
    own = _own(stored, ranges, change, uid)
    updates.report(session, uid, own)
    for _ in updates.answer_store(session, own):
        await session.drained()
    return _outcome(session, stored, uid)


def _own(stored: Stored, ranges: bytes, change: Change, uid: bool) -> updates.Own:
    if stored.refused:
        ranges = without(ranges, ranges_of_uids(stored.refused))
    return updates.Own(stored.modseq, ranges, change.silent, uid)


def _outcome(session: ImapSession, stored: Stored, uid: bool) -> Outcome:
    if not stored.refused:
        return None
    assert session.selected is not None
    refused = stored.refused if uid else session.selected.view.numbers_of(stored.refused)
    return Completed("Conditional STORE failed", b"MODIFIED " + format_set(refused))


def _change(command: ImapCommand) -> Change:
    unchanged_since = NEVER
    if command.accept(b"("):
        command.expect(b"UNCHANGEDSINCE")
        command.space()
        unchanged_since = command.number64()
        command.expect(b")")
        command.space()
    word = command.word()
    silent = word.endswith(b".SILENT")
    word = word.removesuffix(b".SILENT")
    if word not in (b"FLAGS", b"+FLAGS", b"-FLAGS"):
        raise Bad("FLAGS, +FLAGS or -FLAGS expected")
    command.space()
    if command.peek() == ord("("):
        flags = command.flag_list()
    else:
        flags = [command.flag()]
        while not command.at_end():
            command.space()
            flags.append(command.flag())
    command.end()
    check_flags(flags)
    add = flags if word == b"+FLAGS" else []
    remove = flags if word == b"-FLAGS" else []
    replace = flags if word == b"FLAGS" else None
    return Change(add, remove, replace, silent, unchanged_since)


def _permitted(selected: Selected, change: Change) -> Change:
    """What of it the session has the rights to: "s" for \\Seen, "t" for \\Deleted, "w" for the others."""
    rights = selected.place.rights
    if rights.issuperset("stw"):
        return change

    def keep(flags: list[str]) -> list[str]:
        return [flag for flag in flags if RIGHTS.get(flag.lower(), "w") in rights]

    if change.replace is None:
        add, remove = keep(change.add), keep(change.remove)
    else:
        add = keep(change.replace)
        given = {flag.lower() for flag in change.replace}
        others = [flag for flag, _ in SYSTEM] + list(selected.mailbox.keywords)
        remove = keep([flag for flag in others if flag.lower() not in given])
    if not add and not remove:
        raise No("You have no right to these flags", b"NOPERM")
    return change._replace(add=add, remove=remove, replace=None)


RIGHTS = {flag.lower(): right for flag, right in SYSTEM}

COMMANDS = {
    b"STORE": Handler(cmd_store, SELECTED, expunges=False, by_sequence=True),
    b"UID STORE": Handler(cmd_uid_store, SELECTED),
}
