"""How many connections all next hops of a worker may have together.

    Owns      Budget, one for all agents of a worker
    Flow      agent → take() → connects → give(); refused: somebody's idle or next free connection is closed for it
    Limits    `limit` connections (queue.max_connections); agents without any are served first come, first served
    Blocking  never
"""

from __future__ import annotations

from typing import Protocol


class Spender(Protocol):
    """An agent, as the budget knows it."""

    @property
    def connections(self) -> int: ...

    @property
    def is_giving_up(self) -> bool:
        """It was told to give up a connection, and has not yet."""

    def give_up_idle(self) -> bool:
        """Close a connection that does nothing; False when there is none."""

    def give_up_next(self) -> None:
        """Close a connection as soon as it is done with what it has."""

    def on_budget(self) -> None:
        """There is room: take() now or be forgotten."""


class Budget:
    """Counts connections from the moment they are begun until they are closed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open = 0
        self._spenders: dict[Spender, None] = {}  # that have connections, or had
        self._waiting: dict[Spender, None] = {}  # that have none and want one

    def take(self, spender: Spender) -> bool:
        """True: open one connection, and give() it back.  False: on_budget() follows if it has none at all."""
        waiting = self._waiting
        if self.open < self.limit and (not waiting or next(iter(waiting)) is spender):
            waiting.pop(spender, None)
            self._spenders[spender] = None
            self.open += 1
            return True
        if spender not in waiting and not spender.connections:
            waiting[spender] = None
            self._make_room()
        return False

    def give(self) -> None:
        """A connection is closed."""
        self.open -= 1
        while self._waiting and self.open < self.limit:
            first = next(iter(self._waiting))
            first.on_budget()
            self._waiting.pop(first, None)  # it took what it wanted, or wants nothing any more
        if self._waiting:
            self._make_room()

    def forget(self, spender: Spender) -> None:
        """It opens none any more."""
        self._spenders.pop(spender, None)
        self._waiting.pop(spender, None)

    def _make_room(self) -> None:
        others = sorted(self._spenders, key=lambda spender: -spender.connections)
        if any(spender.give_up_idle() for spender in others):
            return
        for spender in others:
            if spender.connections and not spender.is_giving_up:
                spender.give_up_next()
                return
