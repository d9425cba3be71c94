"""net/netlink.py on the real kernel: the accept queues of this host, the addresses of a network of our own."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from gateway.net import netlink
from gateway.net.netlink import AcceptQueue, Netlink, QueuePoll

ROOT = Path(__file__).parent.parent.parent


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 60)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


def waiting(address: tuple[str, int], count: int) -> list[socket.socket]:
    """Connections nobody accepts; they end with their objects."""
    sockets = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(address)
        sockets.append(sock)
    return sockets


def test_the_depth_of_an_accept_queue() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        assert netlink.accept_queue(server) == AcceptQueue(0, 8, None)
        clients = waiting(server.getsockname(), 6)
        assert netlink.accept_queue(server).depth == 6
        assert netlink.fullness([server]) == 0.75
        server.accept()[0].close()
        assert netlink.accept_queue(server).depth == 5
        assert len(clients) == 6


def test_no_queue_without_listening_tcp() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        assert netlink.accept_queue(sock) == AcceptQueue(0, 0, None)
        assert netlink.fullness([sock]) == 0.0
    assert netlink.fullness([]) == 0.0


def test_sock_diag_tells_drops_and_unix_sockets(tmp_path: Path) -> None:
    async def main() -> None:
        asker = Netlink()
        with (
            socket.create_server(("127.0.0.1", 0), backlog=1) as v4,
            socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=4) as v6,
            socket.socket(socket.AF_UNIX) as unix,
            socket.socket(socket.AF_UNIX) as client,
        ):
            unix.bind(str(tmp_path / "s"))
            unix.listen(3)
            client.connect(str(tmp_path / "s"))
            clients = waiting(v4.getsockname(), 8)
            queues = await asker.accept_queues([v4, v6, unix])
            assert queues[v4.fileno()][:2] == (2, 1)
            drops = queues[v4.fileno()].drops
            assert drops is not None and drops >= 1
            assert queues[v6.fileno()] == AcceptQueue(0, 4, 0)
            assert queues[unix.fileno()] == AcceptQueue(1, 3, None)
            assert len(clients) == 8
        asker.close()

    run(main)


def test_siblings_on_one_port_are_told_apart() -> None:
    async def main() -> None:
        asker = Netlink()
        first = socket.create_server(("127.0.0.1", 0), backlog=16, reuse_port=True)
        second = socket.create_server(first.getsockname(), backlog=32, reuse_port=True)
        with first, second:
            queues = await asker.accept_queues([second])
            assert queues == {second.fileno(): AcceptQueue(0, 32, 0)}
        asker.close()

    run(main)


def test_the_poll_falls_back_on_tcp_info_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(93, "Protocol not supported")

    async def main() -> None:
        monkeypatch.setattr(Netlink, "_accept_queues", broken)
        asker = Netlink()
        with socket.create_server(("127.0.0.1", 0), backlog=5) as server:
            clients = waiting(server.getsockname(), 2)
            poll = QueuePoll(asker, lambda: [server], interval_s=0.01)
            poll.start()
            await asyncio.sleep(0.1)
            assert poll.queues == {server.fileno(): AcceptQueue(2, 5, None)}
            poll.close()
            assert len(clients) == 2
        asker.close()

    with caplog.at_level(logging.WARNING):
        run(main)
    assert len([r for r in caplog.records if "sock_diag" in r.message]) == 1


def test_addresses_of_this_host() -> None:
    assert "127.0.0.1" in netlink.host_addresses()

    async def main() -> None:
        asker = Netlink()
        assert "127.0.0.1" in await asker.addresses()
        asker.close()

    run(main)


WATCH = """
import asyncio, sys, uvloop
from pyroute2 import IPRoute
from gateway.net.egress import Egress
from gateway.net.netlink import Netlink

async def until(pool, expected):
    for _ in range(500):
        if {pool.next(2) for _ in range(4)} == expected:
            return
        await asyncio.sleep(0.01)
    sys.exit(f"expected {expected}")

async def main():
    egress = Egress(Netlink())
    pool = egress.pool(["192.0.2.1", "192.0.2.2", "198.51.100.1"])
    await egress.start()
    assert pool.next(2) is None and egress.down == set(pool.addresses)
    async def change(action, *args, **kwargs):  # off the loop: pyroute2 runs its own
        await asyncio.to_thread(lambda: getattr(IPRoute(), action)(*args, **kwargs))
    def index(name):
        with IPRoute() as ip:
            return ip.link_lookup(ifname=name)[0]
    await change("link", "add", ifname="a0", kind="veth", peer={"ifname": "b0"})
    a, b = await asyncio.to_thread(index, "a0"), await asyncio.to_thread(index, "b0")
    for address in ("192.0.2.1", "192.0.2.2"):
        await change("addr", "add", index=a, address=address, prefixlen=24)
    await change("addr", "add", index=b, address="198.51.100.1", prefixlen=24)
    await change("link", "set", index=a, state="up")
    await asyncio.sleep(0.2)
    assert pool.next(2) is None  # no carrier: the other end is down
    await change("link", "set", index=b, state="up")
    await until(pool, {"192.0.2.1", "192.0.2.2", "198.51.100.1"})
    assert pool.next(10) is None
    await change("addr", "del", index=a, address="192.0.2.2", prefixlen=24)
    await until(pool, {"192.0.2.1", "198.51.100.1"})
    assert egress.down == {"192.0.2.2"}
    await change("link", "set", index=b, state="down")
    await until(pool, {None})
    await change("link", "set", index=b, state="up")
    await until(pool, {"192.0.2.1", "198.51.100.1"})
    late = egress.pool(["192.0.2.2", "192.0.2.1"])
    assert {late.next(2) for _ in range(4)} == {"192.0.2.1"}
    egress.close()
    print("done")

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


def test_addresses_leave_rotation_and_come_back(tmp_path: Path) -> None:
    namespace = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "-r", "--net"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace for us: needs root, or user namespaces")
    script = tmp_path / "watch.py"
    script.write_text(WATCH)
    child = subprocess.run(
        [*namespace, sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (child.returncode, child.stdout) == (0, "done\n"), child.stderr
