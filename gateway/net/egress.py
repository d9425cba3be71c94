"""Our addresses to connect from: in turn, and only those that are up.

Owns      EgressPool (one route's addresses), Egress (all pools, fed by one AddressWatch)
Flow      AddressWatch → Egress.set_up → EgressPool; delivery → EgressPool.next
Errors    none; an address that is not up is left out and comes back by itself
Blocking  never
Security  a route with addresses never connects from another one: SPF and the peer's list name these
Bugs      in turn only; an address given twice has twice the share
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from ipaddress import ip_address

from gateway.net.netlink import AddressWatch, Netlink, NetlinkError

logger = logging.getLogger(__name__)


class EgressPool:
    """Configured source addresses of one route."""

    def __init__(self, addresses: Iterable[str]) -> None:
        """All count as up until the first set_up().  Raises ValueError for what is no IP address."""
        self.addresses = tuple(str(ip_address(address)) for address in addresses)
        self._turn = {socket.AF_INET: 0, socket.AF_INET6: 0}
        self._by_family: dict[int, tuple[str, ...]] = {}
        self.set_up(frozenset(self.addresses))

    def set_up(self, up: frozenset[str]) -> None:
        """Only these are given out from now on."""
        usable = [address for address in self.addresses if is_up(address, up)]
        self._by_family = {
            socket.AF_INET: tuple(a for a in usable if ":" not in a),
            socket.AF_INET6: tuple(a for a in usable if ":" in a),
        }

    def next(self, family: int) -> str | None:
        """The address whose turn it is; None: no address of this family is up, so do not connect."""
        usable = self._by_family.get(family)
        if not usable:
            return None
        turn = self._turn[socket.AddressFamily(family)]
        self._turn[socket.AddressFamily(family)] = turn + 1
        return usable[turn % len(usable)]


class Egress:
    """The pools of all routes."""

    def __init__(self, netlink: Netlink) -> None:
        self._pools: dict[tuple[str, ...], EgressPool] = {}
        self._watch = AddressWatch(netlink, self._set_up)
        self._down: frozenset[str] = frozenset()
        self._may_watch = False
        self._beginning: asyncio.Task[None] | None = None

    def pool(self, addresses: Iterable[str]) -> EgressPool | None:
        """The pool of these addresses, one for all who name the same; None for no addresses."""
        key = tuple(addresses)
        if not key:
            return None
        found = self._pools.get(key)
        if found is None:
            found = self._pools[key] = EgressPool(key)
            if self._watch.up:
                self._set_up(self._watch.up)
            elif self._may_watch:
                self._beginning = asyncio.get_running_loop().create_task(self._begin())
        return found

    async def start(self) -> None:
        """The addresses are watched from now on, or from the first pool on (a reload may bring it).

        When watching is not possible all addresses are used; said once.
        """
        self._may_watch = True
        if self._pools:
            await self._begin()

    async def _begin(self) -> None:
        self._may_watch = False
        try:
            await self._watch.start()
        except NetlinkError as error:
            logger.warning("source addresses are not watched: %s", error)

    def close(self) -> None:
        if self._beginning is not None:
            self._beginning.cancel()
        self._watch.close()

    @property
    def down(self) -> frozenset[str]:
        """Configured addresses that are out of rotation (for the metric)."""
        return self._down

    def _set_up(self, up: frozenset[str]) -> None:
        for pool in self._pools.values():
            pool.set_up(up)
        down = frozenset(missing((a for p in self._pools.values() for a in p.addresses), up))
        for address in sorted(down - self._down):
            logger.warning("source address %s is not up: left out", address)
        for address in sorted(self._down - down):
            logger.warning("source address %s is up again", address)
        self._down = down


def missing(addresses: Iterable[str], up: frozenset[str]) -> list[str]:
    """Those of the addresses that are not up, in their order; `gateway check` lists them."""
    return [address for address in addresses if not is_up(address, up)]


def is_up(address: str, up: frozenset[str]) -> bool:
    """RFC 1122 §3.2.1.3: all of 127.0.0.0/8 is this host, though no interface names it."""
    ip = ip_address(address)
    return ip.is_loopback or str(ip) in up
