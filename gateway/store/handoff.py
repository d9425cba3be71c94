"""From the loop to the threads: the one that was idle last works next.

Owns      Handoff, Waiter
Limits    none of its own: what waits is what the pool has taken
Blocking  take() does; put() does not

queue.SimpleQueue wakes a second thread for nothing with each item, and the threads in turn: where an item is little
work, most of its cost.  Here one sleeps until it is meant, and the same few threads, whose caches are warm, do it all.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiter(Generic[T]):
    """One thread's place to sleep."""

    __slots__ = ("awake", "item")

    def __init__(self) -> None:
        self.awake = Lock()
        self.awake.acquire()
        self.item: list[T] = []


class Handoff(Generic[T]):
    """Any thread may put; each thread that takes has a Waiter of its own."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._items: deque[T] = deque()
        self._idle: list[Waiter[T]] = []

    def put(self, item: T) -> None:
        with self._lock:
            if not self._idle:
                self._items.append(item)
                return
            waiter = self._idle.pop()
        waiter.item.append(item)
        waiter.awake.release()

    def take(self, waiter: Waiter[T]) -> T:
        """The next item, as soon as there is one."""
        with self._lock:
            if self._items:
                return self._items.popleft()
            self._idle.append(waiter)
        waiter.awake.acquire()
        return waiter.item.pop()
