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
    from gateway.server.imap.view import View
    from gateway.store.model import Mailbox


KNOWN_OCTETS = 256  # of a change that is kept, lest the next command is read again
SYNC_OCTETS = 1 << 18  # of changed records that are answered in one turn of the loop


class Change(NamedTuple):
    """What is to be done; replace: the flags are these afterwards."""

    add: list[str]
    remove: list[str]
    replace: list[str] | None
    silent: bool
    unchanged_since: int
    bits: tuple[int, int] | None = None  # flag_bits()


def cmd_store(session: ImapSession, command: ImapCommand) -> Outcome | Coroutine[Any, Any, Outcome]:
    return _store(session, command, uid=False)


def cmd_uid_store(session: ImapSession, command: ImapCommand) -> Outcome | Coroutine[Any, Any, Outcome]:
    return _store(session, command, uid=True)


def _store(session: ImapSession, command: ImapCommand, *, uid: bool) -> Outcome | Coroutine[Any, Any, Outcome]:
    command.space()
    pairs = command.sequence_set()
    command.space()
    selected = session.selected
    assert selected is not None
    view = selected.view
    change = _read(view, command)
    one = view.one(pairs, uid)
    ranges = one[1][:4] * 2 if one is not None else view.ranges(pairs, uid)
    if selected.read_only:
        raise No("The mailbox is open for reading only", b"READ-ONLY")
    change = _permitted(selected, change)
    if change.unchanged_since != NEVER:
        session.enable_condstore()
    if not ranges:
        return None
    if one is None:
        ranges = bounded_ranges(session, ranges)
    if change.bits is not None:
        store = view.watch.store if selected.contexts else view.store  # contexts need the update
        stored = store(ranges, *change.bits, change.unchanged_since)
        if stored is not None:
            if one is not None and view.is_told:
                if not change.silent or (stored.modseq and b"CONDSTORE" in session.enabled):
                    record = stored.changed or one[1]
                    updates.fetch_flags(session, one[0], record, uid=uid, flags=not change.silent)
                return None
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
        try:
            outcome = _answer(session, stored, ranges, change, uid)
        except No as error:
            answer(error)
        else:
            answer(outcome)

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
    own, gone = _report(session, stored, ranges, change, uid)
    for _ in updates.answer_store(session, own):
        pass
    return _outcome(session, stored, change, uid, gone)


async def _answer_later(
    session: ImapSession, stored: Stored, ranges: bytes, change: Change, uid: bool
) -> Outcome:
    """The same where others were faster, or the responses are many."""
    assert session.selected is not None
    await session.selected.view.watch.refresh()
    own, gone = _report(session, stored, ranges, change, uid)
    for _ in updates.answer_store(session, own):
        await session.drained()
    return _outcome(session, stored, change, uid, gone)


def _report(
    session: ImapSession, stored: Stored, ranges: bytes, change: Change, uid: bool
) -> tuple[updates.Own, bytes]:
    """(what is told of it, UIDs of messages of the ranges that others expunged and the client may not hear of yet)."""
    assert session.selected is not None
    own = _own(stored, ranges, change, uid)
    updates.report(session, uid, own)
    gone = session.selected.view.gone(ranges)
    if gone:
        own = own._replace(ranges=without(own.ranges, ranges_of_uids(gone)))
    return own, gone


def _own(stored: Stored, ranges: bytes, change: Change, uid: bool) -> updates.Own:
    if stored.refused:
        ranges = without(ranges, ranges_of_uids(stored.refused))
    return updates.Own(stored.modseq, ranges, change.silent, uid)


def _outcome(session: ImapSession, stored: Stored, change: Change, uid: bool, gone: bytes) -> Outcome:
    if stored.refused:
        assert session.selected is not None
        refused = stored.refused if uid else session.selected.view.numbers_of(stored.refused)
        return Completed("Conditional STORE failed", b"MODIFIED " + format_set(refused))
    if not gone:
        return None
    text = "Some of the messages were expunged"
    if change.silent:  # RFC 2180 §4.2.3
        return Completed(text, b"EXPUNGEISSUED")
    raise No(text, b"EXPUNGEISSUED")  # RFC 2180 §4.2.1, §4.2.2: the others are done


def _read(view: View, command: ImapCommand) -> Change:
    """What stands behind the set."""
    asked = command.rest(), view.mailbox.keywords
    if view.last_store is not None and view.last_store[0] == asked:  # clients do the same to one message after another
        known: Change = view.last_store[1]
        return known
    change = _change(command)
    change = change._replace(bits=flag_bits(view.mailbox, change))
    if len(asked[0]) <= KNOWN_OCTETS:
        view.last_store = asked, change
    return change


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
    change = change._replace(add=add, remove=remove, replace=None)
    return change._replace(bits=flag_bits(selected.mailbox, change))


RIGHTS = {flag.lower(): right for flag, right in SYSTEM}

COMMANDS = {
    b"STORE": Handler(cmd_store, SELECTED, expunges=False, by_sequence=True),
    b"UID STORE": Handler(cmd_uid_store, SELECTED),
}
