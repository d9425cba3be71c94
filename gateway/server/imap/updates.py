"""The untagged responses that tell a client what changed in its mailbox.

Owns      report(), answer_store(), fetch_flags(), Own
Flow      view.update() → EXPUNGE or VANISHED, EXISTS, RECENT, FLAGS, FETCH
Standards RFC 9051 §7.3, §7.4, §7.5; RFC 7162 §3.2.4, §3.2.10 (UID, MODSEQ, VANISHED); RFC 9586 §3.3 (UIDFETCH)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from gateway._native import (
    FETCH_FLAGS,
    FETCH_MODSEQ,
    FETCH_UID,
    FetchFormat,
    format_expunges,
    format_set,
    records_but,
)
from gateway.protocol.imap.notify import FLAG_CHANGE, MESSAGE_EVENTS
from gateway.server.imap.context import note_changes
from gateway.server.imap.flags import announce_flags
from gateway.server.imap.view import NEVER_RECENT
from gateway.store.model import UID_MAX

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession

_UID = (b"UID", FETCH_UID, 0, None, -1, 0)
_FLAGS = (b"FLAGS", FETCH_FLAGS, 0, None, -1, 0)
_MODSEQ = (b"MODSEQ", FETCH_MODSEQ, 0, None, -1, 0)


class Own(NamedTuple):
    """The session's own STORE, which is answered in its own way."""

    modseq: int  # of the change; 0: nothing was changed
    ranges: bytes  # UIDs it was about; all of them are told their flags
    silent: bool  # .SILENT: no flags of its own change
    uid: bool  # UID STORE: the responses have UIDs


def report(session: ImapSession, expunges: bool = True, own: Own | None = None) -> None:
    """Tell what changed since the last report; own: but for that, see answer_store()."""
    selected = session.selected
    assert selected is not None
    view = selected.view
    if view.is_told:
        return
    if view.is_lost:
        session.end("lost")
        return
    wanted = MESSAGE_EVENTS if session.notify is None else session.notify.request.selected
    if not wanted:  # RFC 5465 §3.1
        return
    known_uid = view.index.last_uid if view.is_loaded else UID_MAX
    update = view.update(expunges)
    if selected.contexts:
        note_changes(session, selected, update)
    if update.gone_uids:
        if session.enabled & _VANISHED:
            session.untagged(b"VANISHED " + format_set(update.gone_uids))
        else:
            session.send(format_expunges(update.gone_numbers))
    if update.exists:
        session.untagged(b"%d EXISTS" % view.count)
        if b"IMAP4REV2" not in session.enabled:
            session.untagged(b"%d RECENT" % view.recent)
        if session.notify is not None:
            session.notify.came(known_uid + 1)
    if view.keywords_told != len(view.mailbox.keywords):
        announce_flags(session, selected)
    for numbers, records in update.changed if FLAG_CHANGE in wanted else ():
        if own is not None and own.modseq:
            numbers, records = records_but(numbers, records, own.modseq)
        if numbers:  # RFC 5465 §5.1: with UID
            fetch_flags(session, numbers, records, uid=session.notify is not None)


def answer_store(session: ImapSession, own: Own) -> Iterator[None]:
    """What the client gets for its STORE, in pieces; silent: only what it cannot know (RFC 7162 §3.1.3)."""
    selected = session.selected
    assert selected is not None
    if own.silent and not (own.modseq and b"CONDSTORE" in session.enabled):
        return
    for numbers, records in selected.view.numbered(own.ranges):
        fetch_flags(session, numbers, records, uid=own.uid, flags=not own.silent)
        yield


def fetch_flags(
    session: ImapSession, numbers: bytes, records: bytes, *, uid: bool = False, flags: bool = True
) -> None:
    """FETCH responses with FLAGS for these records, with UID and MODSEQ where the client wants them."""
    selected = session.selected
    assert selected is not None
    view, enabled = selected.view, session.enabled
    words = view.mailbox.keywords
    key = (uid, flags, len(enabled), words)  # what is enabled stays so
    if view.flags_form is None or view.flags_form[0] != key:
        only = b"UIDONLY" in enabled  # the UID is in front then
        items = [_UID] if not only and (uid or b"QRESYNC" in enabled) else []
        if flags:
            items.append(_FLAGS)
        if b"CONDSTORE" in enabled:
            items.append(_MODSEQ)
        recent_uid = 0 if view.recent_uid == NEVER_RECENT else view.recent_uid
        view.flags_form = key, FetchFormat(items, [word.encode() for word in words], recent_uid, only)
    session.send(view.flags_form[1].format(records, numbers))


_VANISHED = {b"QRESYNC", b"UIDONLY"}
