"""The contract between the queue and whatever takes mail to a next hop.

    Owns      Outcome, Job; the Agent and Listener interfaces
    Flow      lane → Agent.submit(job, done) → … → done(job, outcomes) → lane → scheduler → spool
    Limits    a lane never submits more than `capacity` jobs; set_concurrency() bounds connections
    Errors    an agent raises nothing out of submit(): what went wrong is an Outcome.  An error it
              did not foresee is DEFERRED with 4.3.0, never BOUNCED
    Standards RFC 5321 §4.5.4, RFC 3463, RFC 3461 §5
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from gateway.mail.envelope import Envelope

# What became of one recipient.  The positive values are those the spool records.
DEFERRED = -1  # try again later
DELIVERED = 1  # final delivery: the next hop is the mailbox (LMTP, Maildir, HTTP)
RELAYED = 2  # another MTA has taken responsibility (RFC 5321 §4.2.5)
BOUNCED = 3  # permanent failure
DISCARDED = 5  # thrown away because the route says so


class Outcome(msgspec.Struct, frozen=True):
    """The verdict on one recipient after one attempt.  One object may stand for many recipients."""

    state: int  # DELIVERED | RELAYED | BOUNCED | DISCARDED | DEFERRED
    code: int = 0  # the peer's reply code; 0 = no reply (network failure, local reason)
    enhanced: str = ""  # RFC 3463 status; ours when the peer gave none
    text: str = ""  # the peer's words, without code and status; ours when code is 0
    peer: str = ""  # "host[address]:port"
    tls: str = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384"; "" in clear
    duration_s: float = 0.0  # from the start of the transaction to its verdict
    dsn: bool = False  # the peer offers DSN and was told NOTIFY: success is its duty to report now
    retry_after_s: float = 0.0  # the peer named a time before which it is no use (Retry-After)


class Body(Protocol):
    """The content to be sent, our own trace header lines included."""

    @property
    def size(self) -> int:
        """Octets."""

    @property
    def in_memory(self) -> bool:
        """True when slices() does not wait for the disk."""

    def slices(self) -> Sequence[bytes | memoryview]:
        """All of it.  May read from disk: call it off the loop when the body is not in memory."""

    def chunks(self, size: int) -> Iterator[bytes | memoryview]:
        """All of it in pieces of at most `size` octets; next() may read from disk."""


class Message(Protocol):
    """What an agent needs of a stored message."""

    @property
    def queue_id(self) -> str: ...

    @property
    def envelope(self) -> Envelope: ...


class Job:
    """One transaction: one message to some of its recipients at one next hop."""

    __slots__ = ("attempt", "lane", "read", "recipients", "stored")

    def __init__(
        self,
        stored: Message,
        recipients: list[int],
        read: Callable[..., Body],
        lane: Any = None,
        attempt: int = 1,
    ) -> None:
        self.stored: Any = stored  # what `read` takes; to an agent it is a Message
        self.recipients = recipients  # indices into stored.envelope.recipients
        self.read = read  # Spool.body, or what stands for it
        self.lane = lane  # whose job it is; agents do not look at it
        self.attempt = attempt  # 1 for the first

    @property
    def envelope(self) -> Envelope:
        envelope: Envelope = self.stored.envelope
        return envelope

    @property
    def queue_id(self) -> str:
        queue_id: str = self.stored.queue_id
        return queue_id

    def body(self) -> Body:
        """The content; OSError or the spool's error when it cannot be read (that is: DEFERRED)."""
        return self.read(self.stored)


# outcomes: one for each of job.recipients, in that order.  Empty: the transaction was never begun,
# because no connection could be had; the lane was told by on_connect_failed() before and takes the
# job back.
Done = Callable[[Job, Sequence[Outcome]], None]


class Listener(Protocol):
    """What an agent tells the lane it serves, beside the outcomes."""

    def on_ready(self) -> None:
        """`capacity` grew without a job being done (connected, the peer offers PIPELINING …)."""

    def on_connect_failed(self, outcome: Outcome) -> None:
        """No connection: refused, timed out, TLS failed, greeting or EHLO not 2xx; DEFERRED."""


class Agent(Protocol):
    """Serves one next hop of one lane.  All calls, in and out, happen on the worker's loop."""

    @property
    def capacity(self) -> int:
        """Jobs that submit() takes now; the lane asks again after each done() and on_ready()."""

    @property
    def recipients_max(self) -> int:
        """Recipients the peer takes in one transaction (RFC 9422 RCPTMAX); 0 = not known."""

    @property
    def connections(self) -> int:
        """Open now, or being opened."""

    def submit(self, job: Job, done: Done) -> None:
        """Begin or line up the transaction; done is called once, maybe before submit() returns."""

    def set_concurrency(self, connections: int) -> None:
        """At most so many connections from now on; those above it close when their job is done."""

    def close(self) -> None:
        """Take no more (capacity is 0), finish the transactions that run, then disconnect."""


def failed(
    text: str, enhanced: str = "4.3.0", *, peer: str = "", duration_s: float = 0.0
) -> Outcome:
    """A transient failure that no reply tells of: ours, or the network's."""
    return Outcome(DEFERRED, 0, enhanced, text, peer, duration_s=duration_s)
