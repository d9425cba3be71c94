"""What the kernel knows about our network: which addresses are up, and how full the accept queues are.

Owns      Netlink (questions), AddressWatch (events), accept_queue() of one socket
Flow      rtnetlink event → coalesced → one dump → AddressWatch.up → on_change
Limits    one dump at a time, at most one every SETTLE_S; one diag dump a poll
Errors    NetlinkError; a watch that cannot look again keeps what it knew and tries again
Blocking  questions are asked on a thread of their own: pyroute2's sockets bring their own loop, and
          the one they could share with us cannot open netlink sockets under uvloop
Security  needs no privilege; sock_diag shows the sockets of this network namespace
Standards rtnetlink(7), sock_diag(7), RFC 2863 §3.1.14 (operational state)
Bugs      an address that only a "local" route gives (AnyIP) counts as absent
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")

SETTLE_S = 0.05  # a link that comes up sends a dozen events
RETRY_S = 5.0  # after a dump that failed

# linux/rtnetlink.h, linux/if.h, linux/if_addr.h
RTMGRP = 0x1 | 0x10 | 0x100  # LINK, IPV4_IFADDR, IPV6_IFADDR
IFF_UP_RUNNING = 0x1 | 0x40  # configured up, and operationally (RFC 2863): with carrier
IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x04, 0x08, 0x40

TCP_INFO_UNACKED = 24  # offset of tcpi_unacked in struct tcp_info; tcpi_sacked follows
SS_LISTEN = 10
INET_DIAG_SKMEMINFO = 7
SK_MEMINFO_DROPS = 32  # offset of the ninth counter, sk_drops
UDIAG_SHOW_RQLEN = 0x10


class NetlinkError(Exception):
    """The kernel or pyroute2 did not answer."""


class AcceptQueue(NamedTuple):
    """The accept queue of one listening socket."""

    depth: int  # connections that wait for accept()
    limit: int  # the backlog: one more than this may wait, then they are dropped
    drops: int | None  # connections dropped since it listens; None: not known


def accept_queue(sock: socket.socket) -> AcceptQueue:
    """The queue of a listening TCP socket, by one getsockopt (0.7 µs); empty for any other socket."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_UNACKED + 8)
    except OSError:
        return AcceptQueue(0, 0, None)
    # Linux uses these two fields of a listening socket for its queue (tcp_get_info).
    depth, limit = struct.unpack_from("II", info, TCP_INFO_UNACKED)
    return AcceptQueue(depth, limit, None)


def fullness(sockets: Iterable[socket.socket]) -> float:
    """The fullest accept queue as a part of its backlog; for policy.overload."""
    fullest = 0.0
    for sock in sockets:
        queue = accept_queue(sock)
        if queue.limit:
            fullest = max(fullest, queue.depth / queue.limit)
    return fullest


class Netlink:
    """Asks the kernel by pyroute2, on one thread.  pyroute2 (14 MB) is imported by the first question."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netlink")
        self._route: Any = None
        self._diag: Any = None

    async def addresses(self) -> frozenset[str]:
        """Addresses of this host on links that are up.  Raises NetlinkError."""
        return await self._ask(self._addresses)

    async def accept_queues(self, sockets: Iterable[socket.socket]) -> dict[int, AcceptQueue]:
        """By file descriptor, for TCP and Unix sockets that listen.  Raises NetlinkError.

        sock_diag tells more than TCP_INFO: connections dropped, and Unix sockets.
        """
        inodes = {os.fstat(sock.fileno()).st_ino: sock.fileno() for sock in sockets}
        families: set[int] = {sock.family for sock in sockets}
        return await self._ask(lambda: self._accept_queues(inodes, families))

    def close(self) -> None:
        """Ends the thread, after the question it is asking."""
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    async def _ask(self, question: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, question)
        except Exception as error:  # pyroute2 raises what it finds: struct.error, KeyError …
            raise NetlinkError(f"{type(error).__name__}: {error}") from error

    # -- on the thread -------------------------------------------------------------------------

    def _addresses(self) -> frozenset[str]:
        from pyroute2 import IPRoute

        if self._route is None:
            self._route = IPRoute()
        return _read_addresses(self._route)

    def _accept_queues(self, inodes: dict[int, int], families: set[int]) -> dict[int, AcceptQueue]:
        from pyroute2 import DiagSocket

        if self._diag is None:
            self._diag = DiagSocket()
            self._diag.bind()
        found = {}
        for family in families:
            unix = family == socket.AF_UNIX
            for message in self._diag.get_sock_stats(
                family=family,
                states=1 << SS_LISTEN,
                show=UDIAG_SHOW_RQLEN,
                extensions=1 << (INET_DIAG_SKMEMINFO - 1),
            ):
                fd = inodes.get(message["udiag_ino" if unix else "idiag_inode"])
                if fd is not None:
                    found[fd] = _read_unix_queue(message) if unix else _read_queue(message)
        return found

    def _close(self) -> None:
        for sock in (self._route, self._diag):
            if sock is not None:
                sock.close()


def host_addresses() -> frozenset[str]:
    """Addresses of this host on links that are up, now.  Blocking.  Raises NetlinkError."""
    try:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            return _read_addresses(route)
    except Exception as error:
        raise NetlinkError(f"{type(error).__name__}: {error}") from error


def _read_addresses(route: Any) -> frozenset[str]:
    up = {
        link["index"]
        for link in route.get_links()
        if link["flags"] & IFF_UP_RUNNING == IFF_UP_RUNNING
    }
    found = set()
    for address in route.get_addr():
        flags = address.get_attr("IFA_FLAGS") or 0
        if address["index"] not in up or flags & IFA_F_DADFAILED:
            continue
        if flags & IFA_F_TENTATIVE and not flags & IFA_F_OPTIMISTIC:
            continue  # RFC 4862 §5.4: may not be used yet; an event tells when it may
        # On a point-to-point link IFA_ADDRESS is the peer's.
        text = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
        if text:
            found.add(str(ip_address(text)))
    return frozenset(found)


def _read_queue(message: Any) -> AcceptQueue:
    drops = None
    memory = message.get_attr("INET_DIAG_SKMEMINFO")
    if memory:
        drops = struct.unpack_from("I", bytes.fromhex(memory.replace(":", "")), SK_MEMINFO_DROPS)[0]
    return AcceptQueue(message["idiag_rqueue"], message["idiag_wqueue"], drops)


def _read_unix_queue(message: Any) -> AcceptQueue:
    queue = message.get_attr("UNIX_DIAG_RQLEN")
    return AcceptQueue(queue["udiag_rqueue"], queue["udiag_wqueue"], None)


class AddressWatch:
    """Keeps `up`, the addresses of this host on links that are up, by rtnetlink events.

    An event is a hint and nothing more: each one leads to a dump, so a queue that overran loses nothing.
    """

    def __init__(self, netlink: Netlink, on_change: Callable[[frozenset[str]], None]) -> None:
        self.up: frozenset[str] = frozenset()
        self._netlink = netlink
        self._on_change = on_change
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._again = False

    async def start(self) -> None:
        """`up` is true when this returns.  Raises NetlinkError."""
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            sock.bind((0, RTMGRP))
            self.up = await self._netlink.addresses()
        except OSError as error:
            sock.close()
            raise NetlinkError(str(error)) from error
        except NetlinkError:
            sock.close()
            raise
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._on_event)
        self._on_change(self.up)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _on_event(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                try:
                    self._socket.recv(65536)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # overrun: the dump makes up for it
                        raise
        self._look_in(SETTLE_S)

    def _look_in(self, delay_s: float) -> None:
        if self._looking is not None:
            self._again = True
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        delay_s = SETTLE_S
        try:
            up = await self._netlink.addresses()
            if up != self.up:
                self.up = up
                self._on_change(up)
        except NetlinkError as error:
            logger.error("addresses of this host: %s", error)
            self._again, delay_s = True, RETRY_S
        finally:
            self._looking = None
        if self._again:
            self._again = False
            self._look_in(delay_s)


class QueuePoll:
    """The accept queues of our listening sockets, looked at every interval_s by sock_diag.

    Without sock_diag (a kernel without it) TCP_INFO serves: no drops, no Unix sockets; said once.
    """

    def __init__(
        self, netlink: Netlink, sockets: Callable[[], list[socket.socket]], interval_s: float = 10.0
    ) -> None:
        """sockets: those that listen now, asked at every look.

        interval_s: who scrapes /metrics comes every 10 to 60 s; a dump by pyroute2 leaves 0.1 MiB of cyclic garbage.
        """
        self.queues: dict[int, AcceptQueue] = {}  # by file descriptor
        self._netlink = netlink
        self._sockets = sockets
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        diag = True
        while True:
            sockets = self._sockets()
            if diag:
                try:
                    self.queues = await self._netlink.accept_queues(sockets)
                except NetlinkError as error:
                    diag = False
                    logger.warning("no sock_diag (%s): dropped connections are not known", error)
            if not diag:
                self.queues = {sock.fileno(): accept_queue(sock) for sock in sockets}
            await asyncio.sleep(self._interval_s)
