"""The trace of a message's delivery ends with its first reader.

Owns      tell_first_read(), Trace
Errors    those of the store
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gateway.mail.imap_facts import ORIGIN, section
from gateway.store.store import Account

LOG_MESSAGES = 1000  # looked up at once


class Trace(Protocol):
    """Told of a message that was fetched for the first time."""

    def __call__(self, **fields: Any) -> None: ...


async def tell_first_read(
    account: Account, mailbox: str, uids: Sequence[int], keys: Sequence[int], trace: Trace
) -> None:
    """Tell of those of the messages that came by mail; keys: Record.message of each UID."""
    for start in range(0, len(keys), LOG_MESSAGES):
        end = start + LOG_MESSAGES
        facts = await account.facts(keys[start:end])
        for uid, packed in zip(uids[start:end], facts, strict=True):
            if isinstance(packed, bytes) and (origin := section(packed, ORIGIN)):
                queue_id = origin.decode().partition(" ")[0]
                trace(queue_id=queue_id, account=account.name, mailbox=mailbox, uid=uid)
