"""Which agent serves which next hop.

Owns      AgentFactory
Flow      Lane → make(route, next_hop, listener) → an Agent of delivery/
Limits    each agent's own; see its module
Errors    ValueError for a next hop without an agent (the configuration refuses those)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.accounts.build import Accounts
from gateway.accounts.model import Resolution, Unavailable, Unknown
from gateway.config_model import Config
from gateway.delivery.agent import BOUNCED, Agent, Listener, Outcome, failed
from gateway.delivery.avoid import Avoid
from gateway.delivery.budget import Budget
from gateway.delivery.discard import DiscardAgent
from gateway.delivery.local import MaildirAgent
from gateway.delivery.smtp import SmtpAgent
from gateway.delivery.smtp_connection import SmtpSettings
from gateway.delivery.store import Resolved, StoreAgent, Target
from gateway.net.connection import DeadlineSweep
from gateway.net.dns import Resolver
from gateway.net.egress import Egress
from gateway.net.tls import VERIFY, TlsContexts
from gateway.queue.routing import NextHop, Route
from gateway.store.model import Quota
from gateway.store.store import Store

if TYPE_CHECKING:
    from gateway.delivery.http import HttpSession


class AgentFactory:
    """Makes agents for the lanes of one worker; what they share is here."""

    def __init__(
        self,
        config: Config,
        *,
        sweep: DeadlineSweep,
        resolver: Resolver,
        contexts: TlsContexts,
        egress: Egress,
        accounts: Accounts,
        store: Store,
    ) -> None:
        self._config = config
        self._accounts = accounts
        self._store = store
        self._sweep = sweep
        self._resolver = resolver
        self._contexts = contexts
        self._egress = egress
        self._avoid = Avoid()
        self._budget = Budget(config.queue.max_connections)
        self._http: HttpSession | None = None  # made by the first http next hop

    def reload(self, config: Config) -> None:
        """Agents made from now on follow the new configuration."""
        self._config = config
        self._budget.limit = config.queue.max_connections

    def make(self, route: Route, next_hop: NextHop, listener: Listener) -> Agent:
        """The agent for one next hop of one lane."""
        scheme = next_hop.scheme
        if scheme in ("smtp", "smtps", "lmtp", "lmtp+unix"):
            return SmtpAgent(next_hop, self._smtp_settings(route), listener)
        if scheme == "store":
            reject = self._config.store.over_quota == "reject"
            return StoreAgent(self._store, self._resolve, reject_over_quota=reject)
        if scheme == "maildir":
            return MaildirAgent(next_hop.path, hostname=self._config.hostname)
        if scheme in ("http", "https"):
            return self._http_agent(route, next_hop, listener)
        if scheme == "discard":
            return DiscardAgent()
        raise ValueError(f"{next_hop.url}: no agent serves this next hop")

    def _resolve(self, forward_path: str, done: Callable[[Resolved], None]) -> None:
        """Whose mailboxes the mail goes to, as the accounts say now."""
        self._accounts.directory.resolve(forward_path, lambda found: done(_targets(found)))

    def _http_agent(self, route: Route, next_hop: NextHop, listener: Listener) -> Agent:
        from gateway.delivery.http import HttpAgent, HttpSession  # brings aiohttp: 13 MB

        if self._http is None:
            self._http = HttpSession(self._config.queue.max_connections)
        return HttpAgent(
            next_hop.url,
            session=self._http,
            listener=listener,
            json=route.config.http_format == "json",
            headers=route.config.http_headers,
            secret=route.config.http_secret,
            connect_s=route.delivery.connect_s,
            timeout_s=route.delivery.http_s,
            context=lambda: self._contexts.client(VERIFY, str(self._config.tls.ca_file or "")),
            tls_name=route.config.tls_name,
        )

    async def close(self) -> None:
        """After the last agent is done."""
        if self._http is not None:
            await self._http.close()

    def _smtp_settings(self, route: Route) -> SmtpSettings:
        config = self._config
        pool = self._egress.pool(route.config.source_addresses)
        return SmtpSettings(
            hostname=config.hostname,
            sweep=self._sweep,
            resolve=self._resolver.resolve,
            config=route.delivery,
            tls=route.config.tls,
            tls_name=route.config.tls_name,
            tls_ca_file=str(config.tls.ca_file or ""),
            contexts=self._contexts,
            avoid=self._avoid,
            budget=self._budget,
            source_address=pool.next if pool is not None else None,
            messages_per_connection=route.messages_per_connection,
            xclient=route.config.xclient,
        )


def _targets(found: Resolution) -> Resolved:
    if isinstance(found, Unknown):
        if found.disabled:
            return Outcome(BOUNCED, 550, "5.2.1", "mailbox disabled")
        return Outcome(BOUNCED, 550, "5.1.1", "no such mailbox here")
    if isinstance(found, Unavailable):
        return failed(found.reason, "4.3.0")
    if found.forward:  # the alias was another one when the mail was taken
        return failed("the alias leads to other hosts now", "4.3.5")
    return [
        Target(
            one.account.name,
            one.mailbox,
            Quota(one.account.quota_octets or 0, one.account.quota_messages or 0),
        )
        for one in found.local
    ]
