"""Backlog: mail for a next hop that takes less than we are given is better kept by its senders.

Owns      Backlog
Flow      LoadMeter → update(waits) → RCPT → check()
Limits    limit_s; a next hop is left alone again when its mail waits less than CALM of that
Errors    none: None or the Reply that refuses
Standards RFC 5321 §4.5.4.1 (a client tries again after 30 minutes), RFC 3463 §3.5 (4.4.5)

Not for clients that may relay: what they hand over is ours to keep, up to the bounds of the spool.  Nor for a next hop
that cannot be reached (its mail is what a queue is for), nor for one whose route sets a rate (the operator's queue).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.mail import replies
from gateway.mail.reply import Reply

CALM = 0.5


class Backlog:
    """Which routes have so much waiting that no more is taken for them."""

    def __init__(self, route_for: Callable[[str], object | None], limit_s: float) -> None:
        """limit_s: mail may have to wait so long; 0.0: any time."""
        self.route_for = route_for
        self.limit_s = limit_s
        self.full: frozenset[object] = frozenset()
        self.refused = 0

    def update(self, waits: Mapping[object, float]) -> None:
        """waits: for each route with mail waiting, the seconds until what comes now is sent."""
        limit_s = self.limit_s
        full = {
            route
            for route, wait_s in waits.items()
            if limit_s and wait_s > (limit_s * CALM if route in self.full else limit_s)
        }
        if full != self.full:
            self.full = frozenset(full)

    def check(self, mailbox: str) -> Reply | None:
        """The 450 for this recipient, or None.  Only while `full` is not empty."""
        if self.route_for(mailbox) not in self.full:
            return None
        self.refused += 1
        return replies.BACKED_UP
