"""A timer that keeps microseconds: an event loop's own knows milliseconds.

Owns      Timer
Limits    one instant at a time; setting it again replaces it
Errors    OSError where the kernel has no timerfd
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable

TFD_TIMER_ABSTIME = 1
_libc = ctypes.CDLL(None, use_errno=True)


class _Setting(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2)."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Timer:
    """Calls back on the running loop."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._callback = callback
        self._setting = _Setting()
        self._due_ns = 0  # 0 = not set
        asyncio.get_running_loop().add_reader(self._fd, self._on_due)

    def set(self, due_ns: int) -> None:
        """Call back at this time.monotonic_ns(), at once when it is past; an earlier instant stands."""
        due_ns = max(due_ns, 1)  # zero would disarm
        if self._due_ns and self._due_ns <= due_ns:
            return
        self._due_ns = due_ns
        self._setting.value_s, self._setting.value_ns = divmod(due_ns, 10**9)
        _libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(self._setting), None)

    def _on_due(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        self._due_ns = 0
        self._callback()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
