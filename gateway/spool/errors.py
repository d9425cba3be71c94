"""What can go wrong in the spool, each with the reply the client gets.

Standards RFC 5321 §4.2.2, RFC 3463 §3.4
"""

from __future__ import annotations

from gateway.mail.reply import Reply


class SpoolError(Exception):
    """The spool could not do it now; nothing was accepted."""

    reply = Reply(451, "4.3.0", "Queue file write error, try again later")


class SpoolFull(SpoolError):
    """No room: on the disk, in memory, or in the number of messages."""

    reply = Reply(452, "4.3.1", "Insufficient system storage, try again later")


class SpoolCorrupt(SpoolError):
    """Stored octets are not what was written.  The message must not be delivered."""

    def __init__(self, queue_id: str, what: str) -> None:
        super().__init__(f"{queue_id}: {what}")
        self.queue_id = queue_id
        self.what = what


class SpoolLocked(SpoolError):
    """Another process owns this partition."""
