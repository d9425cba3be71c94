"""The two value types of the configuration that TOML does not have.

Owns      Address (where a listener waits), Networks (a set of networks)
Errors    ValueError from parse(), with what is allowed
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec


class Address(msgspec.Struct, frozen=True):
    """Where a listener waits: host and port, or the path of a unix socket."""

    host: str = ""  # an IPv4 or IPv6 address without brackets
    port: int = 0  # 0: the system chooses
    path: str = ""  # unix socket; then host and port are empty

    @classmethod
    def parse(cls, text: str, base: Path = Path()) -> Address:
        """What "host:port", "[v6]:port" or "unix:/path" means; a relative path starts at base."""
        if text.startswith("unix:"):
            if len(text) == 5:
                raise ValueError('"unix:" needs a path')
            path = str(base / text[5:])
            if len(os.fsencode(path)) > 107:  # sun_path of struct sockaddr_un, with its final zero
                raise ValueError(f"{path!r} is longer than the 107 octets of a unix socket's path")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        allowed = (
            f'"{text}" is no address; use host:port, [v6]:port or unix:/path with a numeric host'
        )
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(allowed)
        bracketed = host.startswith("[") and host.endswith("]")
        try:
            ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
        except ValueError:
            raise ValueError(allowed) from None
        if bracketed != (ip.version == 6):
            raise ValueError(allowed)
        return cls(host=str(ip), port=int(port))

    @property
    def is_loopback(self) -> bool:
        """True when only this host can reach it."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Networks:
    """A set of networks: `"192.0.2.1" in networks` is a dictionary look-up the second time."""

    CACHE_MAX = 4096

    __slots__ = ("_known", "networks")

    def __init__(
        self, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network] = ()
    ) -> None:
        self.networks = tuple(networks)
        self._known: dict[str, bool] = {}

    @classmethod
    def parse(cls, texts: Iterable[object]) -> Networks:
        """The set that a list of "address/prefix" means; an address alone is a network of one."""
        networks = []
        for text in texts:
            try:
                networks.append(ipaddress.ip_network(str(text)))
            except ValueError as error:
                raise ValueError(f'"{text}" is no network ({error}); use address/prefix') from None
        return cls(networks)

    def __contains__(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            known = self._find(address)
            if len(self._known) >= self.CACHE_MAX:
                self._known.clear()
            self._known[address] = known
        return known

    def _find(self, address: str) -> bool:
        try:
            ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
        except ValueError:
            return False  # "unix:" and the like
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.networks)

    def __bool__(self) -> bool:
        return bool(self.networks)

    def __iter__(self) -> Iterator[str]:
        return iter(str(network) for network in self.networks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and self.networks == other.networks

    def __hash__(self) -> int:
        return hash(self.networks)

    def __reduce__(self) -> tuple[type[Networks], tuple[object, ...]]:
        return Networks, (self.networks,)

    def __repr__(self) -> str:
        return f"Networks({[str(network) for network in self.networks]})"
