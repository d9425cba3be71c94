"""Opening and closing a mailbox.

Owns      SELECT, EXAMINE, CLOSE, UNSELECT, CHECK
Flow      the row of the mailbox → its Watch → a View → what the client must know, with QRESYNC also what it missed
Limits    the index of a large mailbox is not read here (watch.py)
Standards RFC 9051 §6.3.2, §6.3.3, §6.4.1, §6.4.2; RFC 3501 §6.3.1 (RECENT, UNSEEN), §6.4.1 (CHECK); RFC 7162 §3.1.8,
          §3.2.5 (CONDSTORE, QRESYNC), RFC 8474 §4.1 (MAILBOXID), RFC 9586 (UIDONLY)
"""

from __future__ import annotations

from array import array
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway._native import find_records, resolve_set, sum_records
from gateway.mail.imap_rights import ALL
from gateway.protocol.imap.response import mailbox_octets
from gateway.server.imap import updates
from gateway.server.imap.access import Place, prefixes
from gateway.server.imap.flags import flags_lines
from gateway.server.imap.grant import Grant
from gateway.server.imap.state import (
    AUTHENTICATED,
    SELECTED,
    Bad,
    Capability,
    Completed,
    Handler,
    No,
    Outcome,
    Selected,
)
from gateway.server.imap.vanished import vanished_since
from gateway.server.imap.view import NEVER_RECENT, View
from gateway.store.model import UID_MAX
from gateway.store.names import mailbox_name

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession


UNSEEN_MESSAGES = 20_000  # RFC 3501's UNSEEN is looked for in so many; it may be left out


class Known(NamedTuple):
    """What a client that was here before knows (RFC 7162 §3.2.5)."""

    uidvalidity: int
    modseq: int
    uids: bytes | None  # a set as sent


def cmd_select(session: ImapSession, command: ImapCommand) -> Outcome | Coroutine[Any, Any, Outcome]:
    return _open(session, command, read_only=False)


def cmd_examine(session: ImapSession, command: ImapCommand) -> Outcome | Coroutine[Any, Any, Outcome]:
    return _open(session, command, read_only=True)


def _open(
    session: ImapSession, command: ImapCommand, *, read_only: bool
) -> Outcome | Coroutine[Any, Any, Outcome]:
    command.space()
    name = command.mailbox()
    condstore, known = _parameters(session, command)
    command.end()
    if condstore or known:
        session.enabled.add(b"CONDSTORE")
    session.poll()
    if known is None and (session.selected is None or not session.selected.view.watch.is_stale):
        found = _open_now(session, name, read_only)
        if found is not None:
            return found
    return _open_later(session, name, known, read_only)


def _open_now(session: ImapSession, name: str, read_only: bool) -> Outcome:
    """The same for a mailbox of the user's own of which the worker knows everything; None: it does not."""
    user = session.account_name
    inner = name
    if name != "INBOX":  # which every account has
        where = prefixes(session.service.config).find(mailbox_name(name), user)
        if where is None or where[0] != user:
            return None
        inner = where[1]
    watches = session.service.watches
    watch = watches.find(user, inner)
    if watch is None or not watch.mailbox.selectable:
        return None
    rev1 = b"IMAP4REV2" not in session.enabled
    if rev1 and watch.mailbox.recent and not read_only:  # it has to be claimed
        return None
    watches.enter(watch)
    if session.selected is not None:
        updates.report(session)
        _close(session)
    recent_uid = watch.mailbox.uidnext - watch.mailbox.recent if rev1 else NEVER_RECENT
    place = Place(session.account, user, inner, watch.mailbox, ALL)
    return _select(session, place, View(watch, recent_uid), read_only, name)


async def _open_later(
    session: ImapSession, name: str, known: Known | None, read_only: bool
) -> Outcome:
    if session.selected is not None:  # RFC 9051 §6.3.2: closed even when this fails
        await session.catch_up()
        _close(session)
    place = await session.place(name, "r")
    mailbox = place.mailbox
    assert mailbox is not None
    if not mailbox.selectable:
        raise No("There is nothing but names below it", b"NONEXISTENT")
    read_only = read_only or not place.rights & set("swtei")
    recent_uid = NEVER_RECENT
    claims = False
    if b"IMAP4REV2" not in session.enabled:
        recent_uid = mailbox.uidnext - mailbox.recent
        claims = mailbox.recent > 0 and not read_only
        if claims:
            recent_uid = await place.account.claim_recent(mailbox.id)
    watch = await session.service.watches.open(place.account, mailbox)
    if session.is_closed:
        session.service.watches.leave(watch)
        return None
    if claims:
        watch.claimed()
    view = View(watch, recent_uid)
    outcome = _select(session, place, view, read_only, name)
    if known is not None and known.uidvalidity == watch.mailbox.uidvalidity:
        await watch.load()
        await _resynchronize(session, view, known)
    return outcome


def _close(session: ImapSession) -> None:
    session.leave_mailbox()
    session.untagged(b"OK [CLOSED] Previous mailbox is closed")


def _select(session: ImapSession, place: Place, view: View, read_only: bool, name: str) -> Completed:
    view.watch.views.add(view)
    session.selected = Selected(place, view, read_only)
    if not place.is_of(session.account_name):
        session.selected.grant = Grant(session, place.owner)
    _describe(session, session.selected, name)
    return Completed("", b"READ-ONLY" if read_only else b"READ-WRITE")


def _parameters(session: ImapSession, command: ImapCommand) -> tuple[bool, Known | None]:
    """(CONDSTORE, QRESYNC) of a SELECT (RFC 4466 §2.4)."""
    condstore, known = False, None
    if command.at_end():
        return condstore, known
    command.space()
    command.expect(b"(")
    while True:
        word = command.word()
        if word == b"CONDSTORE":
            condstore = True
        elif word == b"QRESYNC" and known is None:
            if b"QRESYNC" not in session.enabled:
                raise Bad("ENABLE QRESYNC first")  # RFC 7162 §3.2.5
            command.space()
            known = _known(session, command)
        else:
            raise Bad("Unknown parameter")
        if command.accept(b")"):
            return condstore, known
        command.space()


def _known(session: ImapSession, command: ImapCommand) -> Known:
    command.expect(b"(")
    uidvalidity = command.nz_number()
    command.space()
    modseq = command.number64()
    uids: bytes | None = None
    while not command.accept(b")"):
        command.space()
        if command.accept(b"("):  # numbers that match UIDs: a hint that our history makes unnecessary
            if b"UIDONLY" in session.enabled:
                raise Bad("Use UIDs", b"UIDREQUIRED")  # RFC 9586 §3
            command.sequence_set()
            command.space()
            command.sequence_set()
            command.expect(b")")
            command.expect(b")")
            break
        if uids is not None:
            raise Bad("Too many parameters of QRESYNC")
        uids = command.sequence_set()
        if uids is None:
            raise Bad("Numbers expected")
    return Known(uidvalidity, modseq, uids)


def _describe(session: ImapSession, selected: Selected, name: str) -> None:
    """RFC 9051 §6.3.2: what every client has to know.  It is kept for the next session that sees the same."""
    view = selected.view
    enabled = session.enabled
    rev1 = b"IMAP4REV2" not in enabled
    index = view.index if view.is_loaded else None
    seen = (
        view.mailbox, index, view.recent_uid, rev1, b"UIDONLY" in enabled, selected.place.rights, selected.read_only,
    )  # fmt: skip
    described = view.watch.described
    if described is None or described[0] != seen:
        described = view.watch.described = (seen, _description(session, selected))
    session.send(described[1])
    if not rev1:
        session.untagged(b'LIST () "/" ' + mailbox_octets(name, session.machine.utf8))


def _description(session: ImapSession, selected: Selected) -> bytes:
    view = selected.view
    mailbox = view.mailbox
    rev1 = b"IMAP4REV2" not in session.enabled
    lines = [*flags_lines(selected), b"%d EXISTS" % view.count]
    if rev1:
        lines.append(b"%d RECENT" % view.recent)
        if b"UIDONLY" not in session.enabled and view.is_loaded and view.count <= UNSEEN_MESSAGES:
            number = first_unseen(view)
            if number:
                lines.append(b"OK [UNSEEN %d] First unseen" % number)
    lines += (
        b"OK [UIDVALIDITY %d] UIDs valid" % mailbox.uidvalidity,
        b"OK [UIDNEXT %d] Predicted next UID" % mailbox.uidnext,
        b"OK [HIGHESTMODSEQ %d] Highest" % mailbox.highestmodseq,
        b"OK [MAILBOXID (%b)] Ok" % mailbox.object_id(selected.place.account.name).encode(),
    )
    return b"".join([b"* %b\r\n" % line for line in lines])


def first_unseen(view: View) -> int:
    """The sequence number of the first message without \\Seen; 0: there is none."""
    for chunk in view.chunks:
        uid = sum_records(chunk)[5]
        if uid:
            return view.number_of(uid)
    return 0


async def _resynchronize(session: ImapSession, view: View, known: Known) -> None:
    """What changed while the client was away: VANISHED (EARLIER), FETCH (RFC 7162 §3.2.5.1)."""
    wanted = resolve_set(known.uids or _ALL, max(view.last_uid, view.mailbox.uidnext - 1))
    await vanished_since(session, known.modseq, wanted)
    changed = [find_records(chunk, 0, 0, known.modseq) for chunk in view.chunks]
    uids = array("I", b"".join(changed))
    pairs = array("I", (bound for uid in uids for bound in (uid, uid)))
    for numbers, records in view.numbered(pairs.tobytes()):
        updates.fetch_flags(session, numbers, records, uid=True)
        await session.drained()


_ALL = array("I", (1, UID_MAX)).tobytes()


async def cmd_close(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    selected = session.selected
    assert selected is not None
    view = selected.view
    if not selected.read_only and "e" in selected.place.rights and view.mailbox.messages:
        ranges = array("I", (1, view.mailbox.uidnext - 1)).tobytes()
        await selected.place.account.expunge(view.mailbox.id, ranges)
    session.leave_mailbox()
    return None


def cmd_unselect(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    session.leave_mailbox()
    return None


def cmd_check(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    return None


COMMANDS = {
    b"SELECT": Handler(cmd_select, AUTHENTICATED, indexed=False),
    b"EXAMINE": Handler(cmd_examine, AUTHENTICATED, indexed=False),
    b"CLOSE": Handler(cmd_close, SELECTED, indexed=False),
    b"UNSELECT": Handler(cmd_unselect, SELECTED, indexed=False),
    b"CHECK": Handler(cmd_check, SELECTED, indexed=False),
}
CAPABILITIES = [
    Capability(b"UNSELECT"),
    Capability(b"CONDSTORE"),
    Capability(b"QRESYNC"),
    Capability(b"UIDONLY"),
    Capability(b"OBJECTID"),
]
