"""discard: takes everything and keeps nothing, for tests, benches and addresses nobody reads.

    Owns      DiscardAgent
"""

from __future__ import annotations

from gateway.delivery.agent import DISCARDED, Done, Job, Outcome

GONE = Outcome(DISCARDED, 0, "2.0.0", "discarded by the route")


class DiscardAgent:
    """An Agent that is always ready."""

    recipients_max = 0
    connections = 0

    def __init__(self) -> None:
        self.capacity = 1_000_000

    def submit(self, job: Job, done: Done) -> None:
        done(job, [GONE] * len(job.recipients))

    def set_concurrency(self, connections: int) -> None:
        """There is nothing to open."""

    def close(self) -> None:
        self.capacity = 0
