"""The order of messages: what SORT, and a sorted context, put first.

Owns      order_of(), elsewhere()
Flow      found messages → a column for each criterion, ranks of texts where they are texts → one native sort
Blocking  never: what takes long is done in a thread without the GIL
Standards RFC 5256 §3 (criteria), RFC 5957 (DISPLAY), RFC 6203 §6 (RELEVANCY)
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from typing import TypeVar

from gateway._native import (
    PICK_ARRIVAL,
    PICK_DATE,
    PICK_MESSAGE,
    PICK_SIZE,
    rank_texts,
    sort_order,
)
from gateway.server.imap.search_plan import Found
from gateway.store.store import Account
from gateway.store.texts import SORT_KEYS

T = TypeVar("T")

_OF_RECORD = {b"ARRIVAL": PICK_ARRIVAL, b"DATE": PICK_DATE, b"SIZE": PICK_SIZE}
# Which word of the sort keys (mail/imap_facts.py, section SORT).
SUBJECT, IS_REPLY = 0, 1
_OF_TEXT = {b"SUBJECT": SUBJECT, b"FROM": 2, b"TO": 3, b"CC": 4, b"DISPLAYFROM": 5, b"DISPLAYTO": 6}
# What the kernels cost a message, in microseconds; measured (benches/bench_search.py).
RANK_US, ORDER_US = 0.05, 0.02
TURN_US = 500  # more is no turn of the loop


async def elsewhere(us: float, work: Callable[[], T]) -> T:
    """work(), in a thread when it takes long: it must leave the GIL alone."""
    if us <= TURN_US:
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, work)


async def order_of(
    account: Account, found: Found, criteria: tuple[tuple[bytes, bool], ...]
) -> bytes:
    """The positions (u32) of the found messages in the order that was asked for.  Raises StoreError."""
    keys = array("Q", found.pick(PICK_MESSAGE))
    columns = []
    for criterion, _ in criteria:
        if criterion in _OF_RECORD:
            columns.append(found.pick(_OF_RECORD[criterion]))
        elif criterion in _OF_TEXT:
            texts = await account.texts(SORT_KEYS, keys)
            which = _OF_TEXT[criterion]
            columns.append(await elsewhere(len(keys) * RANK_US, lambda: rank_texts(texts, which)))  # noqa: B023
        else:  # RELEVANCY: the best first
            columns.append(array("q", (-found.score(key) for key in keys)).tobytes())
    reverse = bytes(is_reverse for _, is_reverse in criteria)
    return await elsewhere(len(keys) * ORDER_US, lambda: sort_order(columns, reverse))
