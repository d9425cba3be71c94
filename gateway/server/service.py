"""What all SMTP and LMTP sessions of one listener share.

    Owns      Memory, the bound on mail data in memory; Commits, how long the disk takes; SmtpService, the listener's
              settings and the parts of the worker that its sessions use
    Limits    limits is the [limits] section; inline listeners take one recipient a transaction (see app.py)
    Errors    none
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounts.model import Resolution
from gateway.config_model import LimitsConfig
from gateway.config_values import Networks
from gateway.log import Log
from gateway.mail import envelope as env
from gateway.mail.reply import Reply
from gateway.metrics import Metrics
from gateway.net.connection import Connection
from gateway.net.tls import TlsContexts, describe
from gateway.policy.access import Access
from gateway.policy.backlog import Backlog
from gateway.policy.gate import Gate
from gateway.policy.overload import Overload
from gateway.protocol.smtp_server import Settings
from gateway.spool.spool import Spool, Stored

if TYPE_CHECKING:
    from gateway.server.submission import Rules

# One answer a recipient, when the next hop has spoken.
Answered = Callable[[str, env.Envelope, list[Reply]], None]
# (queue_id, envelope, content with our Received field in front, answered)
Inline = Callable[[str, env.Envelope, list[Any], Answered], None]
# (forward_path, done): done(resolution), before it returns unless somebody has to be asked
Resolve = Callable[[str, Callable[[Resolution], None]], None]


NEVER_S = float("inf")


class Memory:
    """Octets of mail data that all sessions of a worker hold and the spool does not have yet."""

    __slots__ = ("limit_octets", "octets")

    def __init__(self, limit_octets: int) -> None:
        self.limit_octets = limit_octets
        self.octets = 0


class Commits:
    """The shortest wait for the disk since somebody looked: a long one may be chance, the shortest is a queue."""

    __slots__ = ("least_s",)

    def __init__(self) -> None:
        self.least_s = NEVER_S

    def take(self) -> float:
        """That wait; 0.0 when there was none."""
        least_s, self.least_s = self.least_s, NEVER_S
        return least_s if least_s < NEVER_S else 0.0


class SmtpService(msgspec.Struct, kw_only=True):
    """Given to each session of the listener; a reload replaces it, sessions that stand keep theirs."""

    hostname: str
    greeting: Reply
    settings: Settings
    limits: LimitsConfig
    access: Access
    gate: Gate
    overload: Overload
    backlog: Backlog
    commits: Commits
    spool: Spool
    enqueue: Callable[[Stored], None]
    inline: Inline | None  # durability "inline": deliver before the 250; None for the others
    durability: str
    log: Log
    metrics: Metrics
    session_ids: Callable[[], str]
    tls: TlsContexts | None
    greeting_delay_s: float
    xclient_from: Networks
    reject_bare: bool
    memory: Memory
    submission: Rules | None = None  # a submission service: who may send, and as whom
    resolve: Resolve | None = None  # where mail for accounts goes; None: no route leads to the store

    def count_accepted(self, envelope: env.Envelope, waited_s: float) -> None:
        """waited_s: from the end of data to the verdict."""
        metrics = self.metrics
        if self.durability == "fsync":
            metrics.accepted_fsync += 1
            if waited_s < self.commits.least_s:  # noqa: PLR1730 (min() would be a call and a store for each message)
                self.commits.least_s = waited_s
        elif self.durability == "memory":
            metrics.accepted_memory += 1
        else:
            metrics.accepted_inline += 1
        size = envelope.facts.size_octets
        metrics.recipients_accepted_total += len(envelope.recipients)
        metrics.received_octets_total += size
        metrics.message_octets.observe(size)
        metrics.accept_seconds.observe(waited_s)

    def count_rejected(self, reply: Reply) -> None:
        """Content was sent and not taken."""
        if reply.is_permanent:
            self.metrics.rejected_permanent += 1
        else:
            self.metrics.rejected_transient += 1


def tls_text(connection: Connection) -> str:
    """ "TLSv1.3 TLS_AES_128_GCM_SHA256", for the log and the Received field."""
    assert connection.tls is not None
    version, cipher, _bits = describe(connection.tls)
    return f"{version} {cipher}"


def peer_of(connection: Connection) -> tuple[str, str]:
    """("192.0.2.1:4711", "192.0.2.1"); ("unix:", "") for a local socket."""
    peer = connection.transport.get_extra_info("peername")
    if not isinstance(peer, tuple) or not peer:
        return "unix:", ""
    ip, port = peer[0], peer[1]
    if ip.startswith("::ffff:") and "." in ip:
        ip = ip[7:]
    return (f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"), ip
