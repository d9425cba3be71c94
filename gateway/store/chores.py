"""What is done to accounts a while after it became due, so that what comes in between shares it.

    Owns      Chore
    Flow      note(account) → after_s → work on each account noted, in the pool; again while it returns True
    Errors    logged: whoever asks the account next hears of the same trouble
    Blocking  nothing; threads of the pool work
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.store.account import AccountFile
from gateway.store.errors import StoreError

if TYPE_CHECKING:
    from gateway.store.pool import Pool

logger = logging.getLogger(__name__)


class Chore:
    """One kind of it, for all accounts of one worker."""

    def __init__(
        self, pool: Pool, work: Callable[[AccountFile], bool | None], after_s: float, *, aside: bool = False
    ) -> None:
        """aside: once, while others may work on the same account."""
        self._pool = pool
        self._work = work
        self._after_s = after_s
        self._aside = aside
        self._accounts: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, account: str) -> None:
        """There is something to be done to this account."""
        self._accounts.add(account)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._begin)

    def close(self) -> None:
        """Begin nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._timer = None
        accounts, self._accounts = self._accounts, set()
        for account in accounts:
            if self._aside:
                self._pool.aside(account, self._work)
            else:
                self._submit(account)

    def _submit(self, account: str) -> None:
        def done(more: bool | None, error: StoreError | None) -> None:
            if error is not None:
                logger.error("account %s: %s", account, error)
            elif more:
                self._submit(account)

        self._pool.submit(account, self._work, done, create=False, notices=_nothing)


def _nothing(_: object) -> list[tuple[int, int]]:
    return []
