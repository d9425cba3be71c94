"""Who may send to whom: the open-relay guard.

Owns      Access: may this client relay, and is this recipient ours to take
Limits    none; one dictionary look-up a recipient
Errors    none: each question is answered with None (go on) or the Reply that refuses
Security  a client outside relay_from reaches only domains that a route names; "*" is never for it
Standards RFC 5321 §3.6.1, §7.1; §4.5.1 (postmaster); RFC 7504 is not used: refusals are 550
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.config_values import Networks
from gateway.mail import replies
from gateway.mail.address import domain_of
from gateway.mail.reply import Reply

ACCEPTED_MAX = (
    65_536  # mailboxes remembered; then it starts anew: random ones must not fill the memory
)


class Access:
    """Answers for one configuration; sessions ask it, nobody else."""

    def __init__(
        self,
        *,
        relay_from: Networks,
        route_for: Callable[[str], object | None],
        names_domain: Callable[[str], bool],
        is_stored: Callable[[str], bool] = lambda _mailbox: False,
        postmaster: str = "",
    ) -> None:
        """relay_from: addresses that may send anywhere; route_for: the route of a mailbox;
        names_domain: a route names it, other than by "*"; is_stored: mail for it must be an account's;
        postmaster: whose mail the bare <Postmaster> is."""
        self._relay_from = relay_from
        self._route_for = route_for
        self._names_domain = names_domain
        self.is_stored = is_stored
        self.postmaster = postmaster  # "": nobody is
        self._accepted: tuple[set[str], set[str]] = (
            set(),
            set(),
        )  # from strangers, from clients that may relay

    def may_relay(self, client_ip: str) -> bool:
        """True for a client that may send to any domain.

        Local sockets are guarded by their file permissions: who may open them may relay.
        """
        return not client_ip or client_ip in self._relay_from

    def check_recipient(self, mailbox: str, may_relay: bool) -> Reply | None:
        """None when mail to the mailbox is taken from this client."""
        accepted = self._accepted[may_relay]
        if mailbox in accepted:
            return None
        refusal = self._judge(mailbox, may_relay)
        if refusal is None:
            if len(accepted) >= ACCEPTED_MAX:
                accepted.clear()
            accepted.add(mailbox)
        return refusal

    def _judge(self, mailbox: str, may_relay: bool) -> Reply | None:
        has_route = self._route_for(mailbox) is not None
        if may_relay and has_route:
            return None
        if not self._names_domain(domain_of(mailbox)):
            return replies.NO_ROUTE if may_relay else replies.RELAYING_DENIED
        # Ours, but a route with a list of recipients does not list this one.
        return None if has_route else replies.NO_SUCH_MAILBOX
