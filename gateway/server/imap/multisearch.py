"""ESEARCH: one search in several mailboxes.

Owns      ESEARCH
Flow      sources → names of the tree → each mailbox: snapshot → plan → find() → one ESEARCH response
Limits    config's for accounts that share; one mailbox's index in memory at a time
Errors    BAD for sequence numbers, "$" and SAVE beyond the selected mailbox; what cannot be read is left out
Blocking  never
Security  mailboxes without the right "r" are left out without a word (RFC 7377 §2.2)
Standards RFC 7377, RFC 5465 §6 (sources)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from gateway._native import ImapCommand, imap_string, resolve_set
from gateway.protocol.imap.response import mailbox_octets
from gateway.protocol.imap.search import SearchRequest, Sources, esearch_request
from gateway.server.imap.search import (
    RETURN_ALL,
    answer,
    esearch_line,
    found_by,
    planned,
    program,
    results_of,
)
from gateway.server.imap.search_plan import Scope, plan_search
from gateway.server.imap.state import AUTHENTICATED, IN_SELECTED, Bad, Capability, Handler, Outcome
from gateway.server.imap.tree import Tree, read_tree
from gateway.store.errors import NoSuchAccount, NoSuchMailbox
from gateway.store.model import Snapshot
from gateway.store.names import SEPARATOR
from gateway.store.store import Account

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession

_SELECTED = frozenset(((), (b"SELECTED",)))


async def cmd_esearch(session: ImapSession, command: ImapCommand) -> Outcome:
    sources, request = program(session, esearch_request, command)
    if request.returns is None:
        request = request._replace(returns=RETURN_ALL)
    if tuple(kind for kind, _ in sources.filters) in _SELECTED:
        await _selected(session, command.tag, sources, request)
        return None
    assert request.returns is not None
    if request.returns.save:
        raise Bad("SAVE is for the selected mailbox")  # RFC 7377 §2.1
    if request.returns.update:
        session.untagged(b"NO [NOUPDATE " + imap_string(command.tag) + b"] Not in several mailboxes")
    if request.charset and b"UTF8=ACCEPT" in session.enabled:
        raise Bad("There is no CHARSET with UTF8=ACCEPT")  # RFC 6855 §3
    tree = await read_tree(session)
    for name in dict.fromkeys(_names(session, tree, sources)):
        await _search(session, command.tag, tree, name, request)
    return None


async def _selected(
    session: ImapSession, tag: bytes, sources: Sources, request: SearchRequest
) -> None:
    """The same as UID SEARCH RETURN, where the mailbox is named if it was asked for."""
    if session.state != IN_SELECTED or session.selected is None:
        raise Bad("No mailbox is selected")
    plan, scope = planned(session, request)
    results = results_of(await found_by(session, plan, scope), plan, request.returns)
    if not sources.filters or request.returns is None:
        await answer(session, tag, request, results, uid=True)
        return
    # Saved and kept up to date as always; told with its name.
    quiet = msgspec.structs.replace(
        request.returns, min=False, max=False, all=False, count=False, partial=None, relevancy=False
    )
    if quiet.save or quiet.update:
        await answer(session, tag, request._replace(returns=quiet), results, uid=True)
    place = session.selected.place
    where = _where(session, place.name, session.selected.uidvalidity)
    session.untagged(esearch_line(tag, request.returns, results, uid=True, where=where))


def _where(session: ImapSession, name: str, uidvalidity: int) -> bytes:
    octets = mailbox_octets(name, session.machine.utf8)
    return b" MAILBOX %b UIDVALIDITY %d" % (octets, uidvalidity)


def _names(session: ImapSession, tree: Tree, sources: Sources) -> Iterator[str]:
    """Those of the tree that the sources mean; RFC 5465 §6."""
    for kind, given in sources.filters:
        if kind == b"SELECTED":
            if session.selected is None:
                raise Bad("No mailbox is selected")
            yield session.selected.place.name
        elif kind == b"SUBSCRIBED":
            yield from (name for name in tree.names if name in tree.subscribed)
        elif kind in (b"PERSONAL", b"INBOXES"):  # it is not known where mail may be delivered to
            yield from (name for name in tree.names if name not in tree.foreign)
        else:
            below = tuple(name + SEPARATOR for name in given) if kind != b"MAILBOXES" else ()
            deep = kind != b"SUBTREE-ONE"
            for name in tree.names:
                inside = name.startswith(below) and (deep or name.rpartition(SEPARATOR)[0] in given)
                if name in given or inside:
                    yield name


async def _snapshot(session: ImapSession, tree: Tree, name: str) -> tuple[Account, Snapshot] | None:
    """None: it cannot be looked at, or is gone."""
    row = tree.rows.get(name)
    if row is None or not row.selectable or "r" not in tree.rights(name):
        return None
    account = session.account
    if name in tree.foreign:
        account = session.service.store.account(tree.foreign[name].owner, create=False)
    try:
        return account, await account.snapshot(row.id)
    except (NoSuchMailbox, NoSuchAccount):
        return None


async def _search(
    session: ImapSession, tag: bytes, tree: Tree, name: str, request: SearchRequest
) -> None:
    looked = await _snapshot(session, tree, name)
    if looked is None:
        return
    account, snapshot = looked
    last_uid = snapshot.mailbox.uidnext - 1

    def ranges(pairs: bytes | None, uid: bool) -> bytes:
        if pairs is None or not uid:
            raise Bad("Numbers mean nothing in several mailboxes")  # RFC 7377 §2.1
        return resolve_set(pairs, last_uid) if last_uid else b""

    scope = Scope(account, snapshot.mailbox, snapshot.chunks, ranges)
    plan = plan_search(request.key, scope, int(time.time()))
    found = await found_by(session, plan, scope)
    assert request.returns is not None
    if found.count:
        results = results_of(found, plan, request.returns)
        where = _where(session, name, snapshot.mailbox.uidvalidity)
        session.untagged(esearch_line(tag, request.returns, results, uid=True, where=where))
        await session.drained()


COMMANDS = {b"ESEARCH": Handler(cmd_esearch, AUTHENTICATED)}
CAPABILITIES = [Capability(b"MULTISEARCH")]
