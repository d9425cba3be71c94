"""SEARCH and UID SEARCH.

    Owns      SEARCH; Results, answer(), program(), esearch_line()
    Flow      request → plan → find() → Results → SEARCH or ESEARCH response
    Errors    BAD for keys that are none; NO [BADCHARSET]; StoreError
    Blocking  never: a search that the index answers in a moment is done at once, all others wait in tasks
    Standards RFC 9051 §6.4.4, §7.3.4; RFC 3501 §7.2.5; RFC 4731, RFC 5182, RFC 5267, RFC 6203, RFC 7162 §3.1.5,
              RFC 9394 (PARTIAL)
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gateway._native import (
    PICK_MESSAGE,
    PICK_MODSEQ,
    PICK_NUMBER,
    PICK_UID,
    ImapCommand,
    format_numbers,
    format_set,
    imap_string,
    take_numbers,
)
from gateway.protocol.imap.search import (
    CHARSETS,
    BadCharset,
    Return,
    SearchRequest,
    has_sequence_numbers,
    search_request,
)
from gateway.server.imap.context import register
from gateway.server.imap.message_limit import bounded_search, capability, refuse_more_to_sort
from gateway.server.imap.order import elsewhere
from gateway.server.imap.search_plan import (
    Found,
    Plan,
    Scope,
    at_once,
    find,
    plan_search,
    scope_of,
)
from gateway.server.imap.state import SELECTED, Bad, Capability, Handler, No, Outcome

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession

AT_ONCE_MESSAGES = 16_384  # the index of so many is searched, and the answer made, without giving way
ANSWER_US = 0.02  # a message; as in order.py
RETURN_ALL = Return(all=True)
T = TypeVar("T")


class Results(msgspec.Struct, frozen=True):
    """What was found, in the order it is answered in; all columns are packed."""

    uids: bytes  # u32
    numbers: bytes  # sequence numbers, u32
    modseqs: bytes = b""  # u64; b"": MODSEQ is not asked for
    scores: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return len(self.uids) // 4


def results_of(found: Found, plan: Plan, returns: Return | None) -> Results:
    scores: tuple[int, ...] = ()
    if returns is not None and returns.relevancy:
        scores = tuple(found.score(key) for key in array("Q", found.pick(PICK_MESSAGE)))
    return Results(
        found.pick(PICK_UID),
        found.pick(PICK_NUMBER),
        found.pick(PICK_MODSEQ) if plan.modseq else b"",
        scores,
    )


def ordered(results: Results, order: bytes) -> Results:
    """The results in another order: of their positions, u32."""
    modseqs = scores = None
    positions = array("I", order)
    if results.modseqs:
        column = array("Q", results.modseqs)
        modseqs = array("Q", (column[at] for at in positions)).tobytes()
    if results.scores:
        scores = tuple(results.scores[at] for at in positions)
    return Results(
        take_numbers(results.uids, order),
        take_numbers(results.numbers, order),
        modseqs or b"",
        scores or (),
    )


def program(session: ImapSession, read: Callable[[ImapCommand], T], command: ImapCommand) -> T:
    """The arguments as `read` understands them.  Raises No for charsets."""
    try:
        return read(command)
    except BadCharset as error:
        if error.saves and session.selected is not None:
            session.selected.view.saved = b""
        raise No(str(error), b"BADCHARSET (" + CHARSETS + b")") from None


def planned(
    session: ImapSession, request: SearchRequest, *, whole: bool = False
) -> tuple[Plan, Scope]:
    """The plan of a search in the selected mailbox.  whole: a part of its result would be worth nothing."""
    assert session.selected is not None
    if request.charset and b"UTF8=ACCEPT" in session.enabled:
        raise Bad("There is no CHARSET with UTF8=ACCEPT")  # RFC 6855 §3
    if b"UIDONLY" in session.enabled and has_sequence_numbers(request.key):  # RFC 9586 §3
        raise Bad("Use UIDs", b"UIDREQUIRED")
    scope = scope_of(session.selected)
    if whole:
        refuse_more_to_sort(session, request, scope)
    else:
        request = bounded_search(session, request, scope)
    plan = plan_search(request.key, scope, int(time.time()))
    if plan.modseq:
        session.enable_condstore()
    return plan, scope


async def found_by(session: ImapSession, plan: Plan, scope: Scope) -> Found:
    """find(), which tells the session how far it is."""
    goal = sum(map(len, scope.chunks)) // 48

    def progress(done: int) -> None:
        session.progress = (done, goal)

    return await find(plan, scope, progress)


# -- the command -----------------------------------------------------------------------------------------------------


def cmd_search(
    session: ImapSession, command: ImapCommand
) -> Outcome | Coroutine[Any, Any, Outcome]:
    request = program(session, search_request, command)
    plan, scope = planned(session, request)
    uid = command.name == b"UID SEARCH"
    assert session.selected is not None
    if plan.indexed and session.selected.view.count <= AT_ONCE_MESSAGES:
        found = at_once(find(plan, scope, turn_s=math.inf))
        results = results_of(found, plan, request.returns)
        at_once(answer(session, command.tag, request, results, uid=uid))
        return None
    return _search(session, command.tag, request, plan, scope, uid)


async def _search(
    session: ImapSession, tag: bytes, request: SearchRequest, plan: Plan, scope: Scope, uid: bool
) -> Outcome:
    try:
        found = await found_by(session, plan, scope)
    except Exception:
        if request.returns is not None and request.returns.save and session.selected is not None:
            session.selected.view.saved = b""  # RFC 5182 §2.1
        raise
    await answer(session, tag, request, results_of(found, plan, request.returns), uid=uid)
    return None


async def answer(
    session: ImapSession,
    tag: bytes,
    request: SearchRequest,
    results: Results,
    *,
    uid: bool,
    word: bytes = b"SEARCH",
) -> None:
    """Save and tell the results of SEARCH or SORT, as was asked."""
    returns = request.returns
    if returns is None and b"IMAP4REV2" in session.enabled and word == b"SEARCH":
        returns = RETURN_ALL  # RFC 9051 §7.3.4
    us = results.total * ANSWER_US
    if returns is None:
        line = await elsewhere(us, lambda: _plain_line(word, results, uid))
        session.untagged(line)
        return
    if returns.save and session.selected is not None:
        session.selected.view.saved = _saved(returns, results)
    if not returns.nothing_but_save:
        line = await elsewhere(us, lambda: esearch_line(tag, returns, results, uid=uid))
        session.untagged(line)
    if returns.update:
        register(session, tag, request, results, uid=uid)


def _plain_line(word: bytes, results: Results, uid: bool) -> bytes:
    """RFC 3501 §7.2.5, RFC 5256 §4, RFC 7162 §3.1.5."""
    line = word + format_numbers(results.uids if uid else results.numbers)
    if results.modseqs:
        line += b" (MODSEQ %d)" % max(array("Q", results.modseqs))
    return line


def _saved(returns: Return, results: Results) -> bytes:
    """The UIDs that "$" stands for (RFC 5182 §2.4, RFC 9394 §3.3)."""
    if not results.uids or returns.all or returns.count or returns.update or returns.relevancy:
        return _ascending(results.uids)
    if not (returns.min or returns.max or returns.partial):
        return _ascending(results.uids)
    chosen = results.uids[:4] * returns.min + results.uids[-4:] * returns.max
    if returns.partial is not None:
        chosen += part_of(results.uids, returns.partial)
    return _ascending(chosen)


def _ascending(uids: bytes) -> bytes:
    return array("I", sorted(set(array("I", uids)))).tobytes()


def part_of(values: bytes, partial: tuple[int, int]) -> bytes:
    """Those u32 at the positions, counted from 1, or from the end with -1 (RFC 9394 §3.1)."""
    first, last = partial
    count = len(values) // 4
    start, end = (first - 1, last) if first > 0 else (count + last, count + first + 1)
    return values[4 * max(0, start) : 4 * max(0, end)]


def esearch_line(
    tag: bytes, returns: Return, results: Results, *, uid: bool, where: bytes = b""
) -> bytes:
    """The ESEARCH response (RFC 9051 §7.3.4), without "* ".  where: the mailbox, for MULTISEARCH."""
    values = results.uids if uid else results.numbers
    line = [b"ESEARCH (TAG " + imap_string(tag) + where + b")"]
    if uid:
        line.append(b"UID")
    told: list[int] | None = None  # positions whose MODSEQ counts; None: all
    if values:
        # RFC 5267 §3: of a sorted result MIN is the first one, and MAX the last
        if returns.min:
            line.append(b"MIN " + format_set(values[:4]))
        if returns.max:
            line.append(b"MAX " + format_set(values[-4:]))
    if returns.count:
        line.append(b"COUNT %d" % results.total)
    if values and returns.all:
        line.append(b"ALL " + format_set(values))
    if returns.partial is not None:
        part = part_of(values, returns.partial)
        line.append(b"PARTIAL (%d:%d %b)" % (*returns.partial, format_set(part) or b"NIL"))
    if results.modseqs:
        if not (returns.all or returns.count or returns.partial):  # RFC 7162 §3.1.6
            told = [0] * returns.min + [-1] * returns.max or None
        modseqs = array("Q", results.modseqs)
        line.append(b"MODSEQ %d" % max(modseqs[at] for at in (told or range(len(modseqs)))))
    if values and returns.relevancy:
        line.append(b"RELEVANCY (%b)" % b" ".join(b"%d" % score for score in results.scores))
    return b" ".join(line)


COMMANDS = {
    b"SEARCH": Handler(cmd_search, SELECTED, expunges=False, by_sequence=True),
    b"UID SEARCH": Handler(cmd_search, SELECTED),
}
CAPABILITIES = [
    Capability(name)
    for name in (b"ESEARCH", b"SEARCHRES", b"SEARCH=FUZZY", b"WITHIN", b"I18NLEVEL=1", capability)
]
