"""THREAD and UID THREAD.

Owns      THREAD
Flow      found messages → their dates, references, base subjects → one native pass → the response
Limits    messages and references as thread_references() says
Blocking  never: what takes long is done in a thread without the GIL
Standards RFC 5256 §3; REFS is REFERENCES without subjects, threads in the order of their newest message
"""

from __future__ import annotations

import secrets
from array import array
from typing import TYPE_CHECKING

from gateway._native import (
    PICK_DATE,
    PICK_MESSAGE,
    PICK_NUMBER,
    PICK_UID,
    ImapCommand,
    mask_words,
    rank_texts,
    thread_by_subject,
    thread_references,
)
from gateway.protocol.imap.search import thread_request
from gateway.server.imap.order import IS_REPLY, RANK_US, SUBJECT, elsewhere
from gateway.server.imap.search import found_by, planned, program
from gateway.server.imap.search_plan import Found
from gateway.server.imap.state import SELECTED, Capability, Handler, No, Outcome
from gateway.store.store import Account
from gateway.store.texts import REFERENCES, SORT_KEYS

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession

THREAD_US = 0.3  # a message; as in order.py
_SEED = secrets.randbits(64)  # of the hashes of Message-IDs, which senders choose


async def threads_of(account: Account, found: Found, algorithm: bytes, uid: bool) -> bytes:
    """The found messages as THREAD tells them.  Raises StoreError, ValueError for too many."""
    numbers = found.pick(PICK_UID if uid else PICK_NUMBER)
    keys = array("Q", found.pick(PICK_MESSAGE))
    dates = found.pick(PICK_DATE)
    if algorithm == b"REFS":
        references = await account.texts(REFERENCES, keys)
        return await elsewhere(
            len(keys) * THREAD_US,
            lambda: thread_references(numbers, references, dates, b"", b"", _SEED, newest=True),
        )
    sort_keys = await account.texts(SORT_KEYS, keys)
    subjects = await elsewhere(len(keys) * RANK_US, lambda: rank_texts(sort_keys, SUBJECT))
    if algorithm == b"ORDEREDSUBJECT":
        return await elsewhere(
            len(keys) * THREAD_US, lambda: thread_by_subject(numbers, dates, subjects)
        )
    references = await account.texts(REFERENCES, keys)
    replies = mask_words(sort_keys, IS_REPLY)
    return await elsewhere(
        len(keys) * THREAD_US,
        lambda: thread_references(numbers, references, dates, subjects, replies, _SEED),
    )


async def cmd_thread(session: ImapSession, command: ImapCommand) -> Outcome:
    request = program(session, thread_request, command)
    plan, scope = planned(session, request, whole=True)
    found = await found_by(session, plan, scope)
    uid = command.name == b"UID THREAD"
    try:
        threads = await threads_of(scope.account, found, request.algorithm, uid)
    except ValueError as error:
        raise No(str(error), b"LIMIT") from None
    session.untagged(b"THREAD " + threads if threads else b"THREAD")
    return None


COMMANDS = {
    b"THREAD": Handler(cmd_thread, SELECTED, expunges=False, by_sequence=True),
    b"UID THREAD": Handler(cmd_thread, SELECTED),
}
CAPABILITIES = [
    Capability(b"THREAD=" + name) for name in (b"ORDEREDSUBJECT", b"REFERENCES", b"REFS")
]
