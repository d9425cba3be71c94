"""Names to addresses and back, by the system's resolver, without blocking the loop.

Owns      Resolver: resolve() for next hops, client_name() for sessions that want it
Flow      resolve → cache → one getaddrinfo a name, shared by all who wait for it
Limits    dns.timeout_s a question; dns.cache_max answers, each for POSITIVE_S (no TTL is told);
          one question a name at once (all names share libuv's pool of 4 threads)
Errors    DnsError; .permanent says that the name does not exist
Blocking  never; getaddrinfo runs on the loop's thread pool
Security  a client's name counts only when it resolves to the client's address again
Standards RFC 5321 §2.3.5, §5.1 (address records; MX is not asked for here), RFC 8499 (FCrDNS)
Bugs      failures are not cached: the caller's backoff is the bound
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from ipaddress import ip_address
from typing import Any, Final

# Short, because getaddrinfo does not say how long: a next hop that moved is found again soon.
POSITIVE_S: Final = 60.0

# (family, address as connect() takes it)
SocketAddress = tuple[int, tuple[Any, ...]]

_PERMANENT = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class DnsError(Exception):
    """No addresses for this name."""

    def __init__(self, name: str, reason: str, *, permanent: bool = False) -> None:
        super().__init__(f"{name}: {reason}")
        self.permanent = permanent  # RFC 5321 §5.1: the domain does not exist, or has no address


class Resolver:
    """One for a worker."""

    def __init__(self, *, timeout_s: float = 5.0, cache_max: int = 10_000) -> None:
        self._timeout_s = timeout_s
        self._cache_max = cache_max
        self._cache: dict[tuple[str, int], tuple[float, list[SocketAddress]]] = {}
        self._asked: dict[tuple[str, int], asyncio.Task[list[SocketAddress]]] = {}

    async def resolve(self, host: str, port: int) -> list[SocketAddress]:
        """Where to connect, in the order of RFC 6724.  Raises DnsError."""
        with contextlib.suppress(ValueError):  # an address literal asks nobody
            ip = ip_address(host)
            if ip.version == 4:
                return [(socket.AF_INET, (host, port))]
            return [(socket.AF_INET6, (host, port, 0, 0))]
        key = host.lower(), port
        known = self._cache.get(key)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        task = self._asked.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(key))
            self._asked[key] = task
            task.add_done_callback(lambda _: self._asked.pop(key, None))
        try:
            # The question outlives who asks: others wait for it, and its answer is kept.
            return await asyncio.wait_for(asyncio.shield(task), self._timeout_s)
        except TimeoutError:
            raise DnsError(host, f"no answer in {self._timeout_s:g} s") from None

    async def _ask(self, key: tuple[str, int]) -> list[SocketAddress]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(*key, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            permanent = error.errno in _PERMANENT
            raise DnsError(key[0], error.strerror or "", permanent=permanent) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a label IDNA refuses
            raise DnsError(key[0], str(error)) from None
        answer: list[SocketAddress] = [(int(entry[0]), entry[4]) for entry in found]
        self._keep(key, answer)
        return answer

    def _keep(self, key: tuple[str, int], answer: list[SocketAddress]) -> None:
        if not self._cache_max:
            return
        while len(self._cache) >= self._cache_max:
            del self._cache[next(iter(self._cache))]  # the oldest answer
        self._cache.pop(key, None)
        self._cache[key] = time.monotonic() + POSITIVE_S, answer

    async def client_name(self, address: str) -> str:
        """The name of a client, forward-confirmed; "" when it has none, or not in time."""
        try:
            return await asyncio.wait_for(self._client_name(address), self._timeout_s)
        except (TimeoutError, DnsError, OSError, UnicodeError):
            return ""

    async def _client_name(self, address: str) -> str:
        loop = asyncio.get_running_loop()
        name, _ = await loop.getnameinfo((address, 0), socket.NI_NAMEREQD)
        confirmed = {str(ip_address(found[1][0])) for found in await self.resolve(name, 0)}
        return name.rstrip(".") if str(ip_address(address)) in confirmed else ""
