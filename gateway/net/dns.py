"""Names to addresses and back, by the system's resolver, without blocking the loop.

Owns      Resolver: resolve() for next hops, client_name() for sessions that want it
Flow      resolve → cache → one getaddrinfo a name, shared by all who wait for it
Limits    dns.timeout_s a question; dns.cache_max answers, each for POSITIVE_S (no TTL is told) and, while name
          servers fail, for dns.stale_s; dns.threads questions at once, the others wait their turn
Errors    DnsError; .permanent says that the name does not exist
Blocking  never; getaddrinfo runs on threads of its own: a silent name server keeps one for 10 s and more, and neither
          the disk's threads nor (below dns.threads names) other names may wait for it
Security  a client's name counts only when it resolves to the client's address again
Standards RFC 5321 §2.3.5, §5.1 (address records; MX is not asked for here), RFC 8499 (FCrDNS), RFC 8767 (stale answers)
Bugs      failures are not cached: the caller's backoff is the bound
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

logger = logging.getLogger(__name__)

# Short, because getaddrinfo does not say how long: a next hop that moved is found again soon.
POSITIVE_S: Final = 60.0
STALE_AGAIN_S: Final = 30.0  # RFC 8767 §5: how long a stale answer stands before the servers are asked again

# (family, address as connect() takes it)
SocketAddress = tuple[int, tuple[Any, ...]]

_PERMANENT = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class DnsError(Exception):
    """No addresses for this name."""

    def __init__(self, name: str, reason: str, *, permanent: bool = False) -> None:
        super().__init__(f"{name}: {reason}")
        self.permanent = permanent  # RFC 5321 §5.1: the domain does not exist, or has no address


class _Answer(NamedTuple):
    addresses: list[SocketAddress]
    fresh_until: float  # monotonic, as the other
    stale_until: float


class Resolver:
    """One for a worker."""

    def __init__(
        self,
        *,
        timeout_s: float = 5.0,
        cache_max: int = 10_000,
        stale_s: float = 86_400.0,
        threads: int = 16,
    ) -> None:
        self._timeout_s = timeout_s
        self._cache_max = cache_max
        self._stale_s = stale_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="dns")
        self._cache: dict[tuple[str, int], _Answer] = {}
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
        if known is not None and known.fresh_until > time.monotonic():
            return known.addresses
        task = self._asked.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(key))
            self._asked[key] = task
            task.add_done_callback(lambda _: self._asked.pop(key, None))
        try:
            # The question outlives who asks: others wait for it, and its answer is kept.
            return await asyncio.wait_for(asyncio.shield(task), self._timeout_s)
        except TimeoutError:
            failure = DnsError(host, f"no answer in {self._timeout_s:g} s")
        except DnsError as error:
            failure = error
        return self._stale(key, failure)

    def _stale(self, key: tuple[str, int], failure: DnsError) -> list[SocketAddress]:
        """RFC 8767 §4: better an old answer than none; "it does not exist" is an answer."""
        known = self._cache.get(key)
        now = time.monotonic()
        if failure.permanent or known is None or known.stale_until < now:
            raise failure
        if known.fresh_until < now:
            logger.warning("%s; the addresses known before are used", failure)
            self._cache[key] = known._replace(fresh_until=now + STALE_AGAIN_S)
        return known.addresses

    def close(self) -> None:
        """Questions that run end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, key: tuple[str, int]) -> list[SocketAddress]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._threads, lambda: socket.getaddrinfo(*key, type=socket.SOCK_STREAM)
            )
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
        self._cache.pop(key, None)
        while len(self._cache) >= self._cache_max:
            del self._cache[next(iter(self._cache))]  # the oldest answer
        fresh_until = time.monotonic() + POSITIVE_S
        self._cache[key] = _Answer(answer, fresh_until, fresh_until + self._stale_s)

    async def client_name(self, address: str) -> str:
        """The name of a client, forward-confirmed; "" when it has none, or not in time."""
        try:
            return await asyncio.wait_for(self._client_name(address), self._timeout_s)
        except (TimeoutError, DnsError, OSError, UnicodeError):
            return ""

    async def _client_name(self, address: str) -> str:
        loop = asyncio.get_running_loop()
        name, _ = await loop.run_in_executor(
            self._threads, socket.getnameinfo, (address, 0), socket.NI_NAMEREQD
        )
        confirmed = {str(ip_address(found[1][0])) for found in await self.resolve(name, 0)}
        return name.rstrip(".") if str(ip_address(address)) in confirmed else ""
