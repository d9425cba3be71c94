"""Searches that are kept up to date: RETURN (UPDATE), CANCELUPDATE.

    Owns      CANCELUPDATE, Context; register(), note_changes(), tell_contexts()
    Flow      register() → updates.report() notes what changed → tell_contexts() searches that alone → ADDTO, REMOVEFROM
    Limits    CONTEXTS_MAX in a session; more are refused with NOUPDATE, their search is answered all the same
    Errors    StoreError: the context ends with NOUPDATE
    Blocking  never
    Standards RFC 5267 §4 (CONTEXT=SEARCH, CONTEXT=SORT)
    Bugs      OLDER and YOUNGER are looked at when a message changes, not when time passes

A context remembers UIDs in the order of its result.  Messages do not change but for their flags, so of a search only
the changed and the new messages are searched again; in a sorted result the others keep their order.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from gateway._native import PICK_UID, RECORD_OCTETS, ImapCommand, format_set, imap_string
from gateway.protocol.imap.search import ALL, SearchRequest
from gateway.server.imap.order import order_of
from gateway.server.imap.search_plan import find, plan_search, scope_of
from gateway.server.imap.state import SELECTED, Capability, Handler, No, Outcome
from gateway.store.errors import StoreError
from gateway.store.model import ranges_of

if TYPE_CHECKING:
    from gateway.server.imap.search import Results
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.state import Selected
    from gateway.server.imap.view import Update

CONTEXTS_MAX = 16
RECORD_WORDS = RECORD_OCTETS // 4  # its UID is the first


class Context(msgspec.Struct, eq=False):
    """One search."""

    tag: bytes
    request: SearchRequest
    uid: bool  # it is told in UIDs
    uids: array[int]  # its result, in order
    last_uid: int  # messages above are new to it
    pending: set[int]  # UIDs that changed

    def position(self, at: int) -> int:
        """As it is told: from 1 on where there is an order (RFC 5267 §4.3.3)."""
        return at + 1 if self.request.order else 0


def register(
    session: ImapSession, tag: bytes, request: SearchRequest, results: Results, *, uid: bool
) -> None:
    """This result is kept up to date from now on."""
    selected = session.selected
    assert selected is not None
    selected.contexts[:] = [one for one in selected.contexts if one.tag != tag]
    if len(selected.contexts) == CONTEXTS_MAX:
        _refuse(session, tag, "Too many contexts")
        return
    context = Context(
        tag, request, uid, array("I", results.uids), selected.view.last_uid, set()
    )
    selected.contexts.append(context)


def _refuse(session: ImapSession, tag: bytes, text: str) -> None:
    session.untagged(b"NO [NOUPDATE " + imap_string(tag) + b"] " + text.encode())


# -- what changed ----------------------------------------------------------------------------------------------------


def note_changes(session: ImapSession, selected: Selected, update: Update) -> None:
    """To be called before EXPUNGE is told: numbers are still what they were."""
    gone = dict(zip(update.gone_uids, update.gone_numbers, strict=True))
    for context in selected.contexts:
        if gone:
            _remove(session, context, gone)
        for _, records in update.changed:
            context.pending.update(array("I", records)[::RECORD_WORDS])


def _remove(session: ImapSession, context: Context, gone: dict[int, int]) -> None:
    """The UIDs leave the result; gone: the number of each."""
    places = [at for at, uid in enumerate(context.uids) if uid in gone]
    if not places:
        return
    told = [(at, context.uids[at]) for at in reversed(places)]
    context.uids = array("I", (uid for uid in context.uids if uid not in gone))
    _tell(session, context, b"REMOVEFROM", [(at, uid if context.uid else gone[uid]) for at, uid in told])


def _tell(
    session: ImapSession, context: Context, word: bytes, pairs: Iterable[tuple[int, int]]
) -> None:
    """pairs: position from 0 on, UID or number."""
    if context.request.order:
        words = b" ".join(b"%d %d" % (context.position(at), number) for at, number in pairs)
    else:
        words = b"0 " + format_set(array("I", sorted(number for _, number in pairs)))
    uid = b" UID" if context.uid else b""
    session.untagged(b"ESEARCH (TAG %b)%b %b (%b)" % (imap_string(context.tag), uid, word, words))


async def tell_contexts(session: ImapSession) -> None:
    """Every context of the selected mailbox is up to date, unless a response is being sent in parts."""
    selected = session.selected
    if selected is None or selected.is_telling:
        return
    selected.is_telling = True
    try:
        for context in list(selected.contexts):
            while context.pending or context.last_uid < selected.view.last_uid:
                try:
                    if not await _follow(session, selected, context):
                        return
                except StoreError:
                    if context in selected.contexts:
                        selected.contexts.remove(context)
                        _refuse(session, context.tag, "The search failed")
                    break
    finally:
        selected.is_telling = False


async def _follow(session: ImapSession, selected: Selected, context: Context) -> bool:
    """Search what changed; False when that cannot be told now."""
    view = selected.view
    changed, context.pending = context.pending, set()
    ranges = ranges_of([*changed, *_above(view.chunks, context.last_uid)])
    last_uid = view.last_uid
    scope = scope_of(selected)._replace(chunks=[records for _, records in view.numbered(ranges)])
    plan = plan_search(context.request.key, scope, int(time.time()))
    matching = set(array("I", (await find(plan, scope)).pick(PICK_UID)))
    searched = set(array("I", view.uids_of(ranges)))
    known = set(context.uids)
    added = matching - known
    uids = array("I", (uid for uid in context.uids if uid not in searched or uid in matching))
    uids = await _ordered(selected, context, uids, added)
    if session.selected is not selected or session.mid_response:
        context.pending |= changed
        return False
    if context.pending & searched:  # again, meanwhile
        context.pending |= changed
        return True
    context.last_uid = last_uid
    numbers = _numbers(selected, context)
    _remove(session, context, {uid: numbers(uid) for uid in (known & searched) - matching})
    context.uids = uids
    if added:
        pairs = [(at, numbers(uid)) for at, uid in enumerate(uids) if uid in added]
        _tell(session, context, b"ADDTO", pairs)
    return True


def _numbers(selected: Selected, context: Context) -> Callable[[int], int]:
    return (lambda uid: uid) if context.uid else selected.view.number_of


def _above(chunks: Iterable[bytes], uid: int) -> Iterable[int]:
    """UIDs above that one."""
    for chunk in chunks:
        words = array("I", chunk)
        if words[-RECORD_WORDS] > uid:
            yield from (one for one in words[::RECORD_WORDS] if one > uid)


async def _ordered(
    selected: Selected, context: Context, uids: array[int], added: set[int]
) -> array[int]:
    """uids with the added ones, where they belong."""
    if not added:
        return uids
    everyone = sorted({*uids, *added})
    if not context.request.order:
        return array("I", everyone)
    chunks = [records for _, records in selected.view.numbered(ranges_of(everyone))]
    scope = scope_of(selected)._replace(chunks=chunks)
    found = await find(plan_search(ALL, scope, 0), scope)
    order = await order_of(scope.account, found, context.request.order)
    there = array("I", found.pick(PICK_UID))
    return array("I", (there[at] for at in array("I", order)))


# -- CANCELUPDATE ----------------------------------------------------------------------------------------------------


def cmd_cancelupdate(session: ImapSession, command: ImapCommand) -> Outcome:
    tags = set[bytes]()
    while not command.at_end() or not tags:
        command.space()
        tags.add(command.string())
    selected = session.selected
    assert selected is not None
    known = {context.tag for context in selected.contexts}
    selected.contexts[:] = [one for one in selected.contexts if one.tag not in tags]
    if not tags <= known:
        raise No("No such context")
    return None


COMMANDS = {b"CANCELUPDATE": Handler(cmd_cancelupdate, SELECTED)}
CAPABILITIES = [Capability(b"CONTEXT=SEARCH"), Capability(b"CONTEXT=SORT")]
