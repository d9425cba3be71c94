"""How long to wait before trying again.

    Owns      wait_s(), TokenBucket
    Standards RFC 5321 §4.5.4.1
"""

from __future__ import annotations

import random
from collections.abc import Sequence

# Each wait is up to so much longer: what was deferred together must not come back together.
JITTER = 0.1


def wait_s(waits: Sequence[float], attempt: int, spread: float | None = None) -> float:
    """The wait after this attempt (1 for the first); the last of the list repeats."""
    if spread is None:
        spread = random.random()
    return waits[min(max(attempt, 1), len(waits)) - 1] * (1.0 + JITTER * spread)


class TokenBucket:
    """A rate: up to `burst` at once, `rate_per_s` in the long run."""

    __slots__ = ("_at", "_tokens", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, now: float) -> None:
        self.rate_per_s = rate_per_s
        self.burst = max(1.0, rate_per_s)  # one second's worth
        self._tokens = self.burst
        self._at = now

    def take(self, now: float) -> float:
        """0.0 and one token is taken, or the seconds until there is one."""
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate_per_s)
        self._at = now
        # The millionth is for rounding: who waits as long as was said finds his token.
        if self._tokens >= 1.0 - 1e-6:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self.rate_per_s
