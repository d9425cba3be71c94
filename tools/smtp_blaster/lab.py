"""A laboratory of hosts: network namespaces on one switch, with delay and loss on their links.

Owns      Lab, Host, Link, Network
Flow      Lab → namespace a host → its eth0 and a port of the bridge in the switch's namespace
Limits    one Lab a process at a time; IPv4, up to 250 links
Errors    LabError when this machine cannot have one; whatever is left of a lab whose process is gone
          is removed when the next one begins
Security  needs root; nothing in a lab reaches another network
Bugs      a wire made of TAP devices (a kernel without netem) carries about 50,000 frames a second

Delay and loss count for each direction of a link: delay_s=0.025 makes the round trip 50 ms longer.
Where the kernel has netem a link is a veth pair; else two TAP devices, and a process between them that
holds the frames back.

    with Lab("sender", "gateway") as lab:
        lab["gateway"].link.shape(delay_s=0.025, loss=0.01)
        server = lab["gateway"].popen(["gateway", "serve", …])
        lab["sender"].run(["swaks", "--server", lab["gateway"].address, …])
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

PREFIX = "maillab"
NETWORK = "10.213.77.{}"
PREFIX_LENGTH = 24
RUN_DIR = "/run/netns"

# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TAP_NO_PI = 0x0002 | 0x1000
FRAMES_MAX = 1000  # held back in one direction, as netem's default limit


CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """This machine cannot have a lab: no root, no namespaces, no TAP devices."""


class Network:
    """A network namespace with a name in RUN_DIR."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = Path(RUN_DIR, name)
        # pyroute2 would fork for this, which a process with threads should not do.
        try:
            self._path.parent.mkdir(exist_ok=True)
            self._path.touch()
            subprocess.run(
                ["unshare", f"--net={self._path}", "true"], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            self._path.unlink(missing_ok=True)
            raise LabError(f"no network namespaces: {error}") from None

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the namespace: sockets it makes belong there for good."""
        with open("/proc/thread-self/ns/net") as before:
            with self._path.open() as there:
                _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of pyroute2's IPRoute in the namespace; also while this thread runs a loop."""

        def question() -> Any:
            with self.inside(), IPRoute() as route:
                return getattr(route, method)(*arguments, **options)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(question).result()

    def index(self, interface: str) -> int:
        return int(self.ask("link_lookup", ifname=interface)[0])

    def close(self) -> None:
        netns.remove(self.name)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Link:
    """One network interface of a host, and its port on the switch."""

    def __init__(self, lab: Lab, host: Host, number: int, name: str) -> None:
        self.name = name
        self.address = NETWORK.format(number)
        self._host = host
        self._lab = lab
        self._port = f"port{number}"
        self._wire: subprocess.Popen[bytes] | None = None
        if lab.netem:
            peer = {"ifname": name, "net_ns_fd": host.namespace}
            lab.switch.ask("link", "add", ifname=self._port, kind="veth", peer=peer)
        else:
            self._wire = _start_wire(lab.switch, self._port, host.network, name)
        self._index = host.network.index(name)
        self._port_index = lab.switch.index(self._port)
        bridge = lab.switch.index("bridge")
        lab.switch.ask("link", "set", index=self._port_index, master=bridge, state="up")
        host.network.ask(
            "addr", "add", index=self._index, address=self.address, prefixlen=PREFIX_LENGTH
        )
        self.up()

    def up(self) -> None:
        self._host.network.ask("link", "set", index=self._index, state="up")

    def down(self) -> None:
        """As if an operator took the interface down; its addresses stay configured."""
        self._host.network.ask("link", "set", index=self._index, state="down")

    def shape(self, *, delay_s: float = 0.0, loss: float = 0.0, rate_bits_s: float = 0.0) -> None:
        """From now on, in each direction; loss is a part of 1, a rate of 0 is no limit."""
        if self._wire is not None:
            assert self._wire.stdin is not None
            self._wire.stdin.write(b"%g %g %g\n" % (delay_s, loss, rate_bits_s))
            self._wire.stdin.flush()
            return
        options = {"delay": int(delay_s * 1e6), "loss": loss * 100, "limit": FRAMES_MAX}
        if rate_bits_s:
            options["rate"] = int(rate_bits_s / 8)  # netem counts octets
        for network, index in (
            (self._host.network, self._index),
            (self._lab.switch, self._port_index),
        ):
            network.ask("tc", "replace", "netem", index, "1:", **options)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.kill()
            self._wire.wait()
            assert self._wire.stdin is not None
            self._wire.stdin.close()


class Host:
    """A network namespace with a link to the switch."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.namespace = lab.namespace(name)
        self.network = Network(self.namespace)
        self.network.ask("link", "set", index=1, state="up")  # lo
        # Linux answers ARP for an address at any of its interfaces: the neighbours would send to one that is down.
        with self.network.inside(), contextlib.suppress(OSError):
            for key, value in (("arp_ignore", "1"), ("arp_announce", "2")):
                Path("/proc/sys/net/ipv4/conf/all", key).write_text(value)
        self.links: list[Link] = []
        self._lab = lab
        self._children: list[subprocess.Popen[Any]] = []

    @property
    def link(self) -> Link:
        """The first one."""
        return self.links[0]

    @property
    def address(self) -> str:
        """Of the first link."""
        return self.links[0].address

    def add_link(self) -> Link:
        """One more interface on the same switch, with an address of its own."""
        link = Link(self._lab, self, self._lab.next_number(), f"eth{len(self.links)}")
        self.links.append(link)
        return link

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A process on this host; killed with the lab, and with the thread that started it."""
        where = ["nsenter", f"--net={RUN_DIR}/{self.namespace}", "setpriv", "--pdeathsig", "KILL"]
        child: subprocess.Popen[Any] = subprocess.Popen([*where, *argv], **options)
        self._children.append(child)
        return child

    def run(
        self, argv: Sequence[str], timeout_s: float = 60.0, **options: Any
    ) -> tuple[int, str, str]:
        """(exit status, standard output, standard error) of a program on this host."""
        child = self.popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        out, err = child.communicate(timeout=timeout_s)
        return child.returncode, out, err

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is on the host: sockets it makes belong to it for good."""
        with self.network.inside():
            yield

    def close(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for link in self.links:
            link.close()
        self.network.close()


class Lab:
    """Named hosts on one switch; a context manager."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.hosts: dict[str, Host] = {}
        self._numbers = iter(range(1, 251))

    @staticmethod
    def namespace(name: str) -> str:
        return f"{PREFIX}-{os.getpid()}-{name}"

    def next_number(self) -> int:
        return next(self._numbers)

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Lab:
        if os.geteuid() != 0:
            raise LabError("needs root")
        remove_stale()
        self.switch = Network(self.namespace("switch"))
        try:
            self.netem = _has_netem(self.switch)
            try:
                self.switch.ask("link", "add", ifname="bridge", kind="bridge")
            except NetlinkError as error:
                raise LabError(f"no bridge: {error}") from None
            self.switch.ask("link", "set", index=self.switch.index("bridge"), state="up")
            for name in self._names:
                self.hosts[name] = Host(self, name)
                self.hosts[name].add_link()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for host in self.hosts.values():
            host.close()
        self.hosts.clear()
        self.switch.close()


def remove_stale() -> list[str]:
    """Removes the namespaces of labs whose process is gone, with all that is in them."""
    removed = []
    with contextlib.suppress(FileNotFoundError):
        for namespace in os.listdir(RUN_DIR):
            prefix, _, rest = namespace.partition("-")
            pid = rest.partition("-")[0]
            if prefix == PREFIX and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                for left_over in netns.ns_pids().get(namespace, ()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(left_over, signal.SIGKILL)
                netns.remove(namespace)
                removed.append(namespace)
    return removed


def _has_netem(network: Network) -> bool:
    try:
        network.ask("tc", "add", "netem", 1, "1:", delay=0)  # on lo
    except NetlinkError as error:
        if error.code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    network.ask("tc", "del", "netem", 1, "1:")
    return True


# -- a wire where the kernel has no netem -----------------------------------------------------------


def _start_wire(
    left: Network, left_name: str, right: Network, right_name: str
) -> subprocess.Popen[bytes]:
    """Two TAP devices in their namespaces, and the process that carries frames between them."""
    ends = []
    for network, name in ((left, left_name), (right, right_name)):
        with network.inside():  # the device belongs to where its file was opened
            try:
                descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            except OSError as error:
                raise LabError(f"neither netem nor TAP devices: {error}") from None
            ends.append(descriptor)
            fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP_NO_PI))
    wire = subprocess.Popen(
        [sys.executable, "-P", __file__, *map(str, ends)], stdin=subprocess.PIPE, pass_fds=ends
    )
    for descriptor in ends:
        os.close(descriptor)
    return wire


def _carry(left: int, right: int) -> None:
    """Frames from each end to the other; a line "delay_s loss rate_bits_s" on standard input changes both."""
    other = {left: right, right: left}
    held: list[tuple[float, int, int, bytes]] = []  # (due, order, to, frame)
    waiting = {left: 0, right: 0}
    chance = random.Random(left * 1000 + right)
    idle_at = {left: 0.0, right: 0.0}  # when the last frame to there has left a link with a rate
    delay_s = loss = rate_bits_s = 0.0
    order = 0
    while True:
        timeout = max(0.0, held[0][0] - time.monotonic()) if held else None
        for source in select.select([left, right, 0], [], [], timeout)[0]:
            if source == 0:
                line = os.read(0, 4096)
                if not line:
                    return  # the lab is gone
                delay_s, loss, rate_bits_s = map(float, line.splitlines()[-1].split())
                continue
            with contextlib.suppress(OSError):  # EAGAIN; EIO while the device is down
                for _ in range(64):
                    frame = os.read(source, 65536)
                    to = other[source]
                    if chance.random() >= loss and waiting[to] < FRAMES_MAX:
                        order += 1
                        waiting[to] += 1
                        leaves = time.monotonic()
                        if rate_bits_s:
                            leaves = max(leaves, idle_at[to]) + 8 * len(frame) / rate_bits_s
                            idle_at[to] = leaves
                        heapq.heappush(held, (leaves + delay_s, order, to, frame))
        now = time.monotonic()
        while held and held[0][0] <= now:
            _, _, to, frame = heapq.heappop(held)
            waiting[to] -= 1
            with contextlib.suppress(OSError):  # the device is down: a lost frame
                os.write(to, frame)


if __name__ == "__main__":
    _carry(int(sys.argv[1]), int(sys.argv[2]))
