"""Changes of flags reach the disk together, a short while after they were answered.

    Owns      FlagSync
    Flow      note(account) → after flags_sync_s → AccountFile.sync() of each account noted
    Errors    a disk that fails is logged; the next delivery to the account fails for the same reason
    Blocking  nothing; threads of the pool sync

A process that is killed loses none of them: they are in the system's memory.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gateway.store.account import AccountFile
from gateway.store.errors import StoreError

if TYPE_CHECKING:
    from gateway.store.pool import Pool

logger = logging.getLogger(__name__)


class FlagSync:
    """The accounts of one worker that have something to be synced."""

    def __init__(self, pool: Pool, after_s: float) -> None:
        """after_s: 0: every change is synced before it is answered, and there is nothing to do here."""
        self._pool = pool
        self._after_s = after_s
        self._accounts: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, account: str) -> None:
        """Flags of this account were changed."""
        if self._after_s:
            self._accounts.add(account)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._after_s, self._sync)

    def close(self) -> None:
        """Closing the files syncs them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sync(self) -> None:
        self._timer = None
        accounts, self._accounts = self._accounts, set()
        for account in accounts:
            self._pool.submit(account, AccountFile.sync, _synced, create=False, notices=_nothing)


def _synced(_: None, error: StoreError | None) -> None:
    if error is not None:
        logger.error("flags could not be synced: %s", error)


def _nothing(_: object) -> list[tuple[int, int]]:
    return []
