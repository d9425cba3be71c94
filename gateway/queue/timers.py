"""Time for the queue: one clock, and many due times on one timer of the loop.

    Owns      Clock, LoopClock, Timers
    Limits    due call-backs run in slices of SLICE, so that a million of them do not stop the loop;
              cancelled entries are swept out when they are the larger part
    Errors    what a call-back raises is logged; the others still run
    Blocking  never
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

logger = logging.getLogger(__name__)

SLICE = 500  # call-backs in one go: about 5 ms


Finished = Callable[[Any, BaseException | None], None]  # (result, error)


class Handle(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the queue knows of time.  Tests bring their own."""

    def now(self) -> int:
        """ns UTC: for what is stored and shown.  May jump."""

    def monotonic(self) -> float:
        """Seconds: for waits."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Handle: ...

    def offload(self, work: Callable[[], Any], done: Finished) -> None:
        """Run work (which may wait for the disk) elsewhere, then done(result, error) here."""


class LoopClock:
    """The clock of a running worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = time.time_ns
        self.monotonic = time.monotonic

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Handle:
        return self._loop.call_later(delay_s, callback)

    def offload(self, work: Callable[[], Any], done: Finished) -> None:
        def finished(future: asyncio.Future[Any]) -> None:
            error = asyncio.CancelledError() if future.cancelled() else future.exception()
            done(None if error else future.result(), error)

        self._loop.run_in_executor(None, work).add_done_callback(finished)


class Timer:
    """One due time.  cancel() may be called at any time, also when it is over."""

    __slots__ = ("_timers", "argument", "at", "callback")

    def __init__(self, timers: Timers, at: float, callback: Callable[[Any], None], argument: Any):
        self._timers = timers
        self.at = at
        self.callback: Callable[[Any], None] | None = callback
        self.argument = argument

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self.argument = None
            self._timers.forget_one()

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Timers:
    """A heap of Timers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[Timer] = []
        self._cancelled = 0
        self._handle: Handle | None = None
        self._wake_at = 0.0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def add(self, delay_s: float, callback: Callable[[Any], None], argument: Any = None) -> Timer:
        """Call callback(argument) in delay_s seconds."""
        timer = Timer(self, self._clock.monotonic() + delay_s, callback, argument)
        heapq.heappush(self._heap, timer)
        if self._handle is None or timer.at < self._wake_at:
            self._arm()
        return timer

    def forget_one(self) -> None:
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if timer.callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def close(self) -> None:
        """No call-back runs any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._heap.clear()
        self._cancelled = 0

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._heap:
            self._wake_at = self._heap[0].at
            delay_s = max(0.0, self._wake_at - self._clock.monotonic())
            self._handle = self._clock.call_later(delay_s, self._run)

    def _run(self) -> None:
        self._handle = None
        now = self._clock.monotonic()
        for _ in range(SLICE):
            if not self._heap or self._heap[0].at > now:
                break
            timer = heapq.heappop(self._heap)
            callback, argument = timer.callback, timer.argument
            if callback is None:
                self._cancelled -= 1
                continue
            timer.callback = timer.argument = None
            try:
                callback(argument)
            except Exception:
                logger.exception("a timer's call-back failed")
        if self._handle is None:
            self._arm()
