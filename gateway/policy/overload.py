"""Overload: when new connections get 421 at once, before the kernel must drop them.

    Owns      Gauges, Overload
    Flow      Gate.enter → Overload.check → read() → judge()
    Limits    each threshold says its unit; shedding ends when every gauge is below CALM of its own
    Errors    none: None or the Reply that refuses
    Standards RFC 5321 §3.1 (421 instead of the greeting), RFC 3463 §3.4 (4.3.2)

A sick spool is no overload: sessions are let in, and MAIL is answered with the spool's own reply (452
4.3.1 or 451 4.3.0), so that the client learns the reason and listeners that need no spool go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gateway.mail import replies
from gateway.mail.reply import Reply

CALM = 0.5  # a client that was told to wait comes back in minutes: do not flap meanwhile


class Gauges(NamedTuple):
    """How loaded we are right now; also the form of the thresholds, where 0.0 means "never"."""

    accept_queue: float = 0.0  # part of the backlog that waits in the kernel; 1.0 = it drops
    memory: float = 0.0  # part of limits.memory_octets that mail data uses
    loop_lag_s: float = 0.0  # how late the event loop's last timer ran


# 0.75: a quarter of the backlog is left for what arrives while we refuse.  Memory: at its bound reading
# stops anyway, so more sessions only wait.  Lag: a greeting later than this finds impatient clients gone.
THRESHOLDS = Gauges(accept_queue=0.75, memory=1.0, loop_lag_s=5.0)


def judge(gauges: Gauges, thresholds: Gauges, shedding: bool) -> str:
    """The name of the gauge that is too high, or "".  While shedding, CALM of each is too high."""
    for name, value, threshold in zip(Gauges._fields, gauges, thresholds, strict=True):
        if threshold and value >= (threshold * CALM if shedding else threshold):
            return name
    return ""


class Overload:
    """Asked once for each new connection."""

    def __init__(self, read: Callable[[], Gauges], thresholds: Gauges = THRESHOLDS) -> None:
        self.thresholds = thresholds
        self.reason = ""  # of the last verdict, for the log; "" = not shedding
        self.shed_total = 0
        self._read = read

    def check(self) -> Reply | None:
        """The 421 for this connection, or None."""
        self.reason = judge(self._read(), self.thresholds, bool(self.reason))
        if not self.reason:
            return None
        self.shed_total += 1
        return replies.TOO_BUSY
