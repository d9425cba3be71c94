"""Who may send to whom: the open-relay guard.

Owns      Access: may this client relay, and is this recipient ours to take
Limits    none; one dictionary look-up a recipient
Errors    none: each question is answered with None (go on) or the Reply that refuses
Security  a client outside relay_from reaches only domains that a route names; "*" is never for it
Standards RFC 5321 §3.6.1, §7.1; §4.5.1 (postmaster); RFC 7504 is not used: refusals are 550
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

from gateway.mail import replies
from gateway.mail.reply import Reply

Network = IPv4Network | IPv6Network


def in_networks(address: str, networks: Iterable[Network]) -> bool:
    """True when the textual address lies in one of the networks; "" (a Unix socket) lies in none."""
    if not address:
        return False
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)  # ::ffff:192.0.2.1 on a dual-stack socket
    if mapped is not None:
        ip = mapped
    return any(ip.version == net.version and ip in net for net in networks)


class Access:
    """Answers for one configuration; sessions ask it, nobody else."""

    def __init__(
        self,
        *,
        relay_from: Iterable[Network],
        is_ours: Callable[[str], bool],
        has_route: Callable[[str], bool],
        postmaster: str = "",
    ) -> None:
        """is_ours: a route names the domain (not by "*"); has_route: any route takes it, "*" included."""
        self._relay_from = tuple(relay_from)
        self._is_ours = is_ours
        self._has_route = has_route
        self._postmaster = postmaster

    def may_relay(self, client_ip: str) -> bool:
        """True for a client that may send to any domain.  Local sockets are under file permissions: they may."""
        return not client_ip or in_networks(client_ip, self._relay_from)

    def forward_path(self, mailbox: str) -> str | Reply:
        """The mailbox to deliver to: the bare <Postmaster> becomes the configured one (RFC 5321 §4.5.1)."""
        if "@" in mailbox:
            return mailbox
        return self._postmaster or replies.NO_POSTMASTER

    def check_recipient(self, domain: str, may_relay: bool) -> Reply | None:
        """None when mail to the domain is taken from this client."""
        if self._is_ours(domain):
            return None
        if not may_relay:
            return replies.RELAYING_DENIED
        return None if self._has_route(domain) else replies.NO_ROUTE
