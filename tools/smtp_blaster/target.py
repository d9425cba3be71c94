"""Where a load may go.

Errors    TargetRefused says why and what to do about it; ValueError for what is not HOST:PORT
Security  a load tool is a weapon when it is pointed at somebody else: loopback, this host and
network namespaces
          of one's own are free, everything else needs a deliberate word
"""

from __future__ import annotations

import ipaddress
import os
import socket


class TargetRefused(Exception):
    """The address is not obviously the user's own."""


def parse(target: str) -> tuple[str, int]:
    """host and port of "host:port" or "[v6]:port"."""
    host, colon, port = target.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{target!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def resolve(target: str, *, owned: bool) -> tuple[str, int]:
    """The numeric address to connect to.  Raises TargetRefused unless it is ours or the user says it is."""
    host, port = parse(target)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    numeric = str(address[0])
    address_value = ipaddress.ip_address(numeric)
    ours = (
        owned
        or address_value.is_loopback
        or _is_this_host(family, numeric)
        or (address_value.is_private and _in_own_namespace())
    )
    if not ours:
        raise TargetRefused(
            f"{numeric} is neither loopback nor this host: a load on somebody else's server is an attack. "
            "If it is yours, say so: --i-own-this-target"
        )
    return numeric, port


def _is_this_host(family: int, address: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _in_own_namespace() -> bool:
    """True inside a network namespace that somebody with the right to do so made beside the system's."""
    try:
        return os.readlink("/proc/self/ns/net") != os.readlink("/proc/1/ns/net")
    except OSError:
        return False
