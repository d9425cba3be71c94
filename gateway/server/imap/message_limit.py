"""How many messages one command may be about.

Owns      bounded_ranges(), bounded_deleted(), bounded_windows(), bounded_search(), refuse_more()
Flow      a command about more of them is carried out for the newest ones; the session tells the lowest UID that was
          looked at (`limited`), and the client goes on below it.  What must be done whole is refused
Limits    messages_per_command of the configuration, announced as MESSAGELIMIT; EXPUNGE, CLOSE and a search in
          several mailboxes have none
Errors    NO [MESSAGELIMIT]
Standards RFC 9738
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gateway._native import PICK_UID, RECORD_OCTETS, find_records, ranges_of_uids, record_column
from gateway.protocol.imap.search import And, Key, Numbers, SearchRequest
from gateway.server.imap.search_plan import Scope, at_once, find, plan_search
from gateway.server.imap.state import No
from gateway.store.model import DELETED, UID_MAX

if TYPE_CHECKING:
    from gateway.server.imap.service import ImapService
    from gateway.server.imap.session import ImapSession


def capability(service: ImapService) -> bytes:
    """As it is announced (RFC 9738 §3)."""
    limit = service.config.messages_per_command
    return b"MESSAGELIMIT=%d" % limit if limit else b""


def response_code(limit: int, uid: int = 0) -> bytes:
    """uid: the lowest one that was looked at; 0: nothing was done."""
    return b"MESSAGELIMIT %d %d" % (limit, uid) if uid else b"MESSAGELIMIT %d" % limit


def _bounded(session: ImapSession, uids: bytes) -> bytes:
    """The last of these UIDs (u32, ascending), which the session will tell of; b"": all of them may be done."""
    limit = session.service.config.messages_per_command
    if len(uids) <= 4 * limit:
        return b""
    uids = uids[-4 * limit :]
    session.limited = response_code(limit, int.from_bytes(uids[:4], "little"))
    return uids


def bounded_ranges(session: ImapSession, ranges: bytes) -> bytes:
    """The newest messages in the ranges of UIDs, for STORE and MOVE."""
    if not session.service.config.messages_per_command:
        return ranges
    assert session.selected is not None
    uids = _bounded(session, session.selected.view.uids_of(ranges))
    return ranges_of_uids(uids) if uids else ranges


def bounded_deleted(session: ImapSession, ranges: bytes) -> bytes:
    """The same for UID EXPUNGE, which is about messages with \\Deleted alone."""
    if not session.service.config.messages_per_command:
        return ranges
    assert session.selected is not None
    found = (find_records(records, DELETED, 0) for _, records in session.selected.view.numbered(ranges))
    uids = _bounded(session, b"".join(found))
    return ranges_of_uids(uids) if uids else ranges


def bounded_windows(session: ImapSession, windows: list[tuple[bytes, bytes]]) -> int:
    """How many messages of the windows (sequence numbers, records) are passed over, for FETCH."""
    limit = session.service.config.messages_per_command
    if not limit or (count := sum(len(numbers) for numbers, _ in windows) // 4) <= limit:
        return 0
    _bounded(session, b"".join(record_column(records, "uid") for _, records in windows))
    return count - limit


def refuse_more(session: ImapSession, count: int, uid: int = 0) -> None:
    """Raises No for more messages than a command may be about that has to be done whole."""
    limit = session.service.config.messages_per_command
    if limit and count > limit:
        raise No(f"That is about more than {limit} messages; ask for fewer", response_code(limit, uid))


def bounded_search(session: ImapSession, request: SearchRequest, scope: Scope) -> SearchRequest:
    """The same search in the newest of the messages that its UIDs and numbers name."""
    uids = _bounded(session, _searched(request.key, scope)) if _is_larger(session, scope) else b""
    if not uids:
        return request
    pairs = array("I", (int.from_bytes(uids[:4], "little"), UID_MAX)).tobytes()
    return request._replace(key=And((Numbers(pairs, uid=True), request.key)))


def refuse_more_to_sort(session: ImapSession, request: SearchRequest, scope: Scope) -> None:
    """SORT and THREAD are nothing without all messages (RFC 9738 §3.3).  Raises No."""
    if _is_larger(session, scope):
        refuse_more(session, len(_searched(request.key, scope)) // 4)


def _is_larger(session: ImapSession, scope: Scope) -> bool:
    """The mailbox has more messages than a command may be about."""
    limit = session.service.config.messages_per_command
    return limit != 0 and sum(map(len, scope.chunks)) > limit * RECORD_OCTETS


def _searched(key: Key, scope: Scope) -> bytes:
    """UIDs that a search has to look at: not those that match."""
    plan = plan_search(And(tuple(_sets(key))), scope, 0)
    return at_once(find(plan, scope, turn_s=math.inf)).pick(PICK_UID)


def _sets(key: Key) -> Iterator[Key]:
    """The sets that every message of the result must be in."""
    if isinstance(key, And):
        for one in key.keys:
            yield from _sets(one)
    elif isinstance(key, Numbers):
        yield key
