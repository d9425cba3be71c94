"""Routes: which next hops the mail for a recipient goes to.

    Owns      NextHop (the URLs of next_hop = […]), Route, Router
    Flow      RouteConfig → Route → Router.route_for(forward_path), once for each recipient
    Limits    a bounded cache of domains: a domain seen before costs one dictionary access
    Errors    ValueError that names what is allowed, for the config to show
    Standards RFC 5321 §2.3.5, §4.1.3 (address literals), RFC 2033 (LMTP), RFC 8314 (smtps)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import unquote, urlsplit

import msgspec

from gateway.config_model import DeliveryConfig, RouteConfig
from gateway.mail.address import normal_domain, normal_mailbox

ALLOWED = (
    "smtp://host[:25], smtps://host[:465], lmtp://host[:24], lmtp+unix:/path, http(s)://host/path, "
    "maildir:/path, store:, discard:, mx:"
)
DEFAULT_PORTS = {"smtp": 25, "smtps": 465, "lmtp": 24, "http": 80, "https": 443}

DOMAIN_CACHE_ENTRIES = 65_536  # then it starts anew: random subdomains must not fill the memory


class NextHop(msgspec.Struct, frozen=True):
    """One parsed URL of next_hop."""

    url: str  # canonical, for logs and keys: "smtp://mx.example.org:25"
    scheme: str  # mx | smtp | smtps | lmtp | lmtp+unix | http | https | store | maildir | discard
    host: str = ""  # name or address, without the brackets of an IPv6 literal
    port: int = 0
    path: str = ""  # of the socket, of the Maildirs ("{domain}" and "{local_part}" are filled in)

    def __str__(self) -> str:
        return self.url


def parse_next_hop(url: str) -> NextHop:
    """The next hop that the URL names.  Raises ValueError."""
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if not colon:
        raise ValueError(f"{url!r} is not a next hop: allowed are {ALLOWED}")
    if scheme in ("mx", "store", "discard"):
        if rest:
            raise ValueError(f"{url!r}: {scheme}: takes nothing behind the colon")
        return NextHop(f"{scheme}:", scheme)
    if scheme in ("lmtp+unix", "maildir"):
        if not rest.startswith("/"):
            raise ValueError(f"{url!r}: expected {scheme}:/absolute/path")
        path = "/" + unquote(rest).strip("/")
        if "\0" in path or ".." in path.split("/"):
            raise ValueError(f"{url!r}: the path must not contain '..' or NUL")
        return NextHop(f"{scheme}:{path}", scheme, path=path)
    if scheme not in DEFAULT_PORTS:
        raise ValueError(f"{url!r}: unknown scheme {scheme!r}; allowed are {ALLOWED}")
    return _parse_network_url(url, scheme)


def _parse_network_url(url: str, scheme: str) -> NextHop:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[scheme]
    except ValueError as error:  # a port that is no number, unbalanced brackets
        raise ValueError(f"{url!r}: {error}; expected {scheme}://host[:port]") from None
    if not host or not parts.netloc or any(c.isspace() or c == "\0" for c in url):
        raise ValueError(f"{url!r}: expected {scheme}://host[:port]")
    if parts.username is not None:
        raise ValueError(f"{url!r}: user name and password in a next hop are not supported")
    if scheme in ("http", "https"):
        if parts.fragment:
            raise ValueError(f"{url!r}: '#…' has no meaning for a next hop")
        return NextHop(url, scheme, host, port, parts.path or "/")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: nothing may follow the port; expected {scheme}://host[:port]")
    shown = f"[{host}]" if ":" in host else host
    return NextHop(f"{scheme}://{shown}:{port}", scheme, host, port)


class Route:
    """One [[route]], ready for use.  Compared by identity."""

    __slots__ = (
        "config",
        "delivery",
        "domains",
        "index",
        "initial_connections",
        "max_connections",
        "messages_per_connection",
        "name",
        "next_hops",
        "recipients",
        "recipients_per_transaction",
    )

    def __init__(self, config: RouteConfig, delivery: DeliveryConfig, index: int = 0) -> None:
        self.config = config
        self.delivery = delivery
        self.index = index  # place in the config: the lower wins
        self.next_hops = tuple(parse_next_hop(url) for url in config.next_hop)
        self.name = ", ".join(hop.url for hop in self.next_hops)
        self.max_connections = config.max_connections or delivery.max_connections
        self.initial_connections = min(delivery.initial_connections, self.max_connections)
        self.recipients_per_transaction = config.recipients_per_transaction or delivery.recipients
        self.messages_per_connection = (
            config.messages_per_connection or delivery.messages_per_connection
        )
        self.domains = tuple(normal_pattern(domain) for domain in config.domains)
        listed = {normal_mailbox(mailbox) for mailbox in config.recipients}
        if listed:  # RFC 5321 §4.5.1: whoever takes mail for a domain takes it for its postmaster
            listed |= {f"postmaster@{domain}" for domain in self.domains if domain[0] not in "*."}
        self.recipients = frozenset(listed)
        for mailbox in config.recipients:
            if not mailbox.rpartition("@")[0]:
                raise ValueError(f"recipients: {mailbox!r} is not local-part@domain")
        for hop in self.next_hops:
            if hop.scheme == "mx":
                raise ValueError(
                    "next_hop: mx: delivery is not in this version; name a next hop "
                    "(smtp://host, lmtp://host …)"
                )

    def with_next_hop(self, hop: NextHop) -> Route:
        """The same route to another place, for mail that an operator reroutes."""
        return Route(msgspec.structs.replace(self.config, next_hop=(hop.url,)), self.delivery)

    def __repr__(self) -> str:
        return f"Route({self.index}, {self.domains!r} → {self.name})"


class Router:
    """All routes of a config.  Immutable but for its cache; a reload makes a new one."""

    def __init__(
        self, routes: Iterable[RouteConfig], delivery: DeliveryConfig, hostname: str
    ) -> None:
        self.hostname = normal_domain(hostname)
        self.routes: list[Route] = []
        self._patterns: dict[str, list[Route]] = {}
        self._cache: dict[str, tuple[Route, ...]] = {}
        for index, config in enumerate(routes):
            route = Route(config, delivery, index)
            self.routes.append(route)
            for pattern in route.domains:
                self._patterns.setdefault(pattern, []).append(route)

    def route_for(self, forward_path: str) -> Route | None:
        """The first route that takes this mailbox; None: we have nowhere to send it."""
        # The bare <Postmaster> of RFC 5321 §4.1.1.3 is this host's.
        domain = forward_path.rpartition("@")[2] if "@" in forward_path else self.hostname
        candidates = self._cache.get(domain)
        if candidates is None:
            candidates = self._candidates(domain)
        for route in candidates:
            if not route.recipients or normal_mailbox(forward_path) in route.recipients:
                return route
        return None

    def names_domain(self, domain: str) -> bool:
        """True when a route names the domain (or its parent, ".parent"): mail for it is ours to
        take from anybody.  "*" does not count: that is only for those who may relay."""
        domain = normal_domain(domain) if domain else self.hostname
        return any(pattern in self._patterns for pattern in patterns_of(domain))

    def is_local(self, domain: str) -> bool:
        """True when mail for the domain, or some of it, goes into our own store."""
        domain = normal_domain(domain)
        candidates = self._cache.get(domain)
        if candidates is None:
            candidates = self._candidates(domain)
        return any(hop.scheme == "store" for route in candidates for hop in route.next_hops)

    @property
    def has_store(self) -> bool:
        """True when some mail goes into our own store."""
        return any(hop.scheme == "store" for route in self.routes for hop in route.next_hops)

    def is_stored(self, forward_path: str) -> bool:
        """True when mail for this mailbox goes into our own store: then it must be an account's."""
        route = self.route_for(forward_path)
        return route is not None and any(hop.scheme == "store" for hop in route.next_hops)

    def _candidates(self, domain: str) -> tuple[Route, ...]:
        found: dict[int, Route] = {}
        for pattern in patterns_of(normal_domain(domain)):
            for route in self._patterns.get(pattern, ()):
                found[route.index] = route
        # A mailbox that a route for its own domain does not list does not exist: "*" is for other domains.
        first = min(found, default=len(self.routes))
        for route in self._patterns.get("*", ()):
            if route.index < first:
                found[route.index] = route
        candidates = tuple(found[index] for index in sorted(found))
        if len(self._cache) >= DOMAIN_CACHE_ENTRIES:
            self._cache.clear()
        self._cache[domain] = candidates
        return candidates


def patterns_of(domain: str) -> Sequence[str]:
    """The keys under which a domain may be routed: "a.b.c" → "a.b.c", ".b.c", ".c"."""
    if domain.startswith("["):  # RFC 5321 §4.1.3: an address literal has no parents
        return (domain,)
    patterns = [domain]
    dot = domain.find(".")
    while dot >= 0:
        patterns.append(domain[dot:])
        dot = domain.find(".", dot + 1)
    return patterns


def normal_pattern(pattern: str) -> str:
    """A domain, ".domain" or "*" of a route, in the form in which it is looked up."""
    bare = pattern.removeprefix(".")
    if pattern == "*":
        return pattern
    if not bare or bare.startswith(".") or any(c in bare for c in "*@/ \t"):
        raise ValueError(
            f'domains: {pattern!r}: allowed are "example.org", ".example.org" (its subdomains), "*"'
        )
    return ("." if pattern != bare else "") + normal_domain(bare)
