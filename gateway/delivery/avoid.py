"""What is better not used with a peer for a while: extensions that it offers and breaks.

    Owns      Avoid, one for all agents of a worker
    Flow      a connection that an extension broke → add(); the next one to the same peer → has()
    Limits    PEERS_MAX entries, the oldest go first; each ends after the seconds it was added with
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

STARTTLS = "STARTTLS"
PIPELINING = "PIPELINING"

PEERS_MAX = 10_000  # as dns.cache_max: more next hops than are resolved need not be remembered


class Avoid:
    """Extensions by peer.  A peer is whatever names it: an address as connect() takes it, or a path."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._until: dict[tuple[str, Any], float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, extension: str, peer: Any, seconds: float) -> None:
        """The extension is not used with this peer for so long; 0 forgets."""
        self._until.pop((extension, peer), None)
        if seconds > 0.0:
            while len(self._until) >= PEERS_MAX:
                del self._until[next(iter(self._until))]
            self._until[extension, peer] = self._now() + seconds

    def has(self, extension: str, peer: Any) -> bool:
        """Is it to be avoided now?"""
        until = self._until.get((extension, peer))
        if until is None:
            return False
        if until > self._now():
            return True
        del self._until[extension, peer]
        return False
