"""SORT and UID SORT.

Owns      SORT
Flow      request → plan → find() → order.py → SORT or ESEARCH response
Standards RFC 5256 §3 (SORT), RFC 5957 (DISPLAY), RFC 5267 §3 (ESORT)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway._native import ImapCommand
from gateway.protocol.imap.search import sort_request
from gateway.server.imap.order import order_of
from gateway.server.imap.search import answer, found_by, ordered, planned, program, results_of
from gateway.server.imap.state import SELECTED, Capability, Handler, Outcome

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession


async def cmd_sort(session: ImapSession, command: ImapCommand) -> Outcome:
    request = program(session, sort_request, command)
    plan, scope = planned(session, request, whole=True)
    found = await found_by(session, plan, scope)
    results = results_of(found, plan, request.returns)
    if found.count:
        results = ordered(results, await order_of(scope.account, found, request.order))
    uid = command.name == b"UID SORT"
    await answer(session, command.tag, request, results, uid=uid, word=b"SORT")
    return None


COMMANDS = {
    b"SORT": Handler(cmd_sort, SELECTED, expunges=False, by_sequence=True),
    b"UID SORT": Handler(cmd_sort, SELECTED),
}
CAPABILITIES = [Capability(b"SORT"), Capability(b"SORT=DISPLAY"), Capability(b"ESORT")]
