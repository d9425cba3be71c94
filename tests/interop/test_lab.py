"""Hosts of our own: delay and loss on a link, links that go down, and addresses that follow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from interop_peers import RunningGateway, RunningSink, route, wait_for
from smtp_blaster import lab as lab_module
from smtp_blaster import ledger
from smtp_blaster.lab import NETWORK, PREFIX_LENGTH, Host, Lab, LabError
from smtp_blaster.sink import SinkPlan
from smtp_blaster.source import Plan, Result, Source

from gateway.net.egress import Egress
from gateway.net.netlink import Netlink

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.netns


@pytest.fixture
def lab() -> Iterator[Lab]:
    laboratory = Lab("sender", "gateway", "nexthop")
    try:
        laboratory.__enter__()
    except LabError as error:
        pytest.skip(f"no lab: {error}")
    yield laboratory
    laboratory.__exit__(None, None, None)


@contextlib.contextmanager
def echo_server(host: Host) -> Iterator[tuple[tuple[str, int], list[str]]]:
    """(address, who connected): a server on the host that gives back what it reads."""
    peers: list[str] = []
    with host.inside():
        server = socket.create_server((host.address, 0))

    def serve() -> None:
        while True:
            try:
                sock, peer = server.accept()
            except OSError:
                return
            peers.append(peer[0])
            sock.settimeout(20)  # a client whose link went down may never end
            with sock, contextlib.suppress(OSError):
                while data := sock.recv(65536):
                    sock.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    with server:
        try:
            yield server.getsockname(), peers
        finally:
            server.shutdown(socket.SHUT_RDWR)  # wakes accept()
            thread.join()


def round_trips(sock: socket.socket, count: int) -> list[float]:
    times = []
    for _ in range(count):
        begun = time.monotonic()
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        times.append(time.monotonic() - begun)
    return times


def test_delay_and_loss_are_real_and_tcp_lives_with_them(lab: Lab) -> None:
    host, peer = lab["gateway"], lab["nexthop"]
    with host.inside():
        sock = socket.socket()
    sock.settimeout(60)
    with echo_server(peer) as (address, _), sock:
        sock.connect(address)
        round_trips(sock, 1)
        host.link.shape(delay_s=0.02)
        round_trips(sock, 1)  # the change has arrived
        # No upper bound: this host may be busy.  A frame waits 20 ms on each of its two ways.
        assert min(round_trips(sock, 3)) >= 0.039
        host.link.shape(delay_s=0.005, loss=0.05)
        content = os.urandom(300_000)
        sender = threading.Thread(target=sock.sendall, args=(content,))
        sender.start()
        received = bytearray()
        while len(received) < len(content):
            received += sock.recv(65536)
        sender.join()
        assert received == content
        host.link.shape()
        round_trips(sock, 1)


def test_hosts_reach_each_other_and_nothing_else(lab: Lab) -> None:
    script = (
        "import socket, sys\n"
        "for address in sys.argv[1:]:\n"
        "    sock = socket.socket(); sock.settimeout(5)\n"
        "    print(sock.connect_ex((address, 9)))\n"
    )
    status, out, err = lab["sender"].run(
        [sys.executable, "-c", script, lab["nexthop"].address, "192.0.2.1"]
    )
    # ECONNREFUSED from the neighbour, ENETUNREACH for all beyond the switch
    assert (status, out.split()) == (0, ["111", "101"]), err


def test_egress_addresses_follow_their_links(lab: Lab) -> None:
    host, peer = lab["gateway"], lab["nexthop"]
    first, second = host.link, host.add_link()

    async def connect(egress: Egress, address: tuple[str, int], count: int) -> set[str | None]:
        pool = egress.pool([first.address, second.address])
        assert pool is not None
        peers.clear()
        asked = set()
        for _ in range(count):
            source = pool.next(socket.AF_INET)
            asked.add(source)
            if source is not None:
                loop = asyncio.get_running_loop()
                transport, _ = await loop.create_connection(
                    asyncio.Protocol, *address, local_addr=(source, 0)
                )
                transport.close()
        while len(peers) < count - (None in asked):
            await asyncio.sleep(0.01)
        return asked

    async def settled(egress: Egress, down: set[str]) -> None:
        for _ in range(500):
            if egress.down == down:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{down} expected to be down, found {egress.down}")

    async def main(address: tuple[str, int]) -> None:
        asker = Netlink()
        egress = Egress(asker)
        egress.pool([first.address, second.address])
        await egress.start()
        await settled(egress, set())
        assert await connect(egress, address, 4) == {first.address, second.address}
        assert set(peers) == {first.address, second.address}
        second.down()
        await settled(egress, {second.address})
        assert await connect(egress, address, 4) == {first.address}
        assert set(peers) == {first.address}
        second.up()
        await settled(egress, set())
        assert await connect(egress, address, 4) == {first.address, second.address}
        first.down()
        second.down()
        await settled(egress, {first.address, second.address})
        assert await connect(egress, address, 1) == {None}
        first.up()  # the last connections may end
        second.up()
        egress.close()
        asker.close()

    # The loop, its netlink thread and its sockets all begin inside the host's namespace.
    with (
        echo_server(peer) as (address, peers),
        host.inside(),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(asyncio.wait_for(main(address), 60))


def test_a_lab_whose_process_died_is_cleared_away(lab: Lab) -> None:
    script = (
        "import os, sys; from smtp_blaster.lab import Lab\n"
        "lab = Lab('a').__enter__(); child = lab['a'].popen(['sleep', '600'], stdout=-3, stderr=-3)\n"
        "print(os.getpid(), child.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.stdout, child.stderr
    pid, sleeper = child.stdout.split()
    left = [name for name in os.listdir(lab_module.RUN_DIR) if f"-{pid}-" in name]
    assert len(left) == 2
    assert sorted(lab_module.remove_stale()) == sorted(left)
    assert lab["sender"].namespace in os.listdir(lab_module.RUN_DIR)
    wait_for(lambda: not Path("/proc", sleeper, "exe").exists(), "the end of the lab's process")


# -- the whole gateway between two other hosts ----------------------------------------------------


@pytest.fixture
def sink(lab: Lab, tmp_path: Path) -> Iterator[RunningSink]:
    host = lab["nexthop"]
    with host.inside():  # and so is the thread it starts
        plan = SinkPlan(address=f"{host.address}:0", ledger=str(tmp_path / "delivered"))
        running = RunningSink(plan)
    yield running
    running.stop()


@pytest.fixture
def serve(lab: Lab, sink: RunningSink, tmp_path: Path) -> Iterator[Callable[..., RunningGateway]]:
    """serve(**settings of the route): the gateway on its host, relaying to the sink."""
    running: list[RunningGateway] = []

    def make(**settings: object) -> RunningGateway:
        config = {
            "listen": [{"service": "smtp", "address": "0.0.0.0:25"}],
            "route": [route(f"smtp://{lab['nexthop'].address}:{sink.port}", **settings)],
            "access": {"relay_from": [NETWORK.format(0) + f"/{PREFIX_LENGTH}"]},
            "queue": {"retry_s": [1.0], "connect_retry_s": [0.5]},
        }
        with lab["gateway"].inside():
            running.append(RunningGateway(tmp_path, config))
        return running[-1]

    yield make
    for gateway in running:
        gateway.kill()


def blast(lab: Lab, where: Path, **plan: object) -> Source:
    target = f"{lab['gateway'].address}:25"
    return Source(Plan(target=target, owned=True, ledger=str(where / "accepted"), **plan))


def arrived(sink: RunningSink, where: Path, messages: int) -> ledger.Difference:
    """The difference of the ledgers, once so many messages are in the sink's."""
    wait_for(lambda: len(sink.receipts) >= messages, f"{messages} deliveries", timeout_s=60.0)
    sink.stop()
    return ledger.compare(ledger.read(where / "accepted"), ledger.read(where / "delivered"))


def test_every_message_arrives_over_long_and_lossy_lines(
    lab: Lab, sink: RunningSink, serve: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    serve()
    for name in ("sender", "nexthop"):  # 50 ms there and back on each line
        lab[name].link.shape(delay_s=0.025, loss=0.01)
    with lab["sender"].inside():
        source = blast(
            lab, tmp_path, connections=10, messages=200, size_octets=8000, pipelining=True
        )
        result = asyncio.run(source.run())
    assert result.accepted == 200
    difference = arrived(sink, tmp_path, 200)
    assert (difference.lost, difference.altered, difference.unpromised) == (0, 0, 0)


def test_relaying_goes_on_when_a_source_address_goes_down(
    lab: Lab, sink: RunningSink, serve: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    first, second = lab["gateway"].link, lab["gateway"].add_link()
    gateway = serve(
        source_addresses=[first.address, second.address],
        messages_per_connection=1,
        max_connections=4,
    )

    def peers(since: int) -> set[str]:
        return {receipt.client.rpartition(":")[0] for receipt in sink.receipts[since:]}

    def send(messages: int) -> Result:
        with lab["sender"].inside():
            source = blast(lab, tmp_path, connections=2, messages=messages, size_octets=1000)
            return asyncio.run(source.run())

    def said(word: str) -> bool:
        return any(word in str(e) and second.address in str(e) for e in gateway.log())

    assert send(20).accepted == 20
    wait_for(lambda: len(sink.receipts) == 20, "the first 20")
    assert peers(0) == {first.address, second.address}
    second.down()
    wait_for(lambda: said("left out"), "the gateway to notice")
    assert send(20).accepted == 20
    wait_for(lambda: len(sink.receipts) == 40, "the next 20")
    assert peers(20) == {first.address}
    second.up()
    wait_for(lambda: said("up again"), "the gateway to notice")
    assert send(20).accepted == 20
    wait_for(lambda: len(sink.receipts) == 60, "the last 20")
    assert peers(40) == {first.address, second.address}
