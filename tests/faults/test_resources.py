"""What our own host runs out of: descriptors, and the disk that the log and the history are on.

Standards RFC 5321 §4.2.2 (421, 451, 452)
"""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.rig import Sender
from fault_world import CONTENT, World
from gateway_tools import samples, scrape, worker_pids
from interop_peers import RunningGateway, listener, need_root, route, wait_for


@pytest.fixture
def gateway(world: World, tmp_path: Path) -> Iterator[RunningGateway]:
    hop = world.hop()
    config = {
        "listen": [listener(), listener("http")],
        "route": [route(hop.url)],
        "queue": {"retry_s": [1.0], "connect_retry_s": [0.5]},
        "spool": {"segment_octets": 1 << 22, "min_free_octets": 1 << 20, "probe_interval_s": 0.2},
    }
    running = RunningGateway(tmp_path, config)
    running.hop = hop  # type: ignore[attr-defined]
    yield running
    running.kill()


def test_no_descriptors(gateway: RunningGateway) -> None:
    """A worker has no file descriptor left: a hundred clients took them all.

    Client   those that have a session are served; new connections are closed at once, or wait until one is free
    Queue    no connection to a next hop can be made: the lane is down and tries on; nothing is lost
    Shown    lane_down "Too many open files"
    Arrives  by queue.connect_retry_s after descriptors are free again
    """
    hop = gateway.hop  # type: ignore[attr-defined]
    pid = worker_pids(gateway)[0]
    inside = Sender(gateway.port)
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
    clients = []
    for _ in range(100):
        clients.append(socket.create_connection(("127.0.0.1", gateway.port), timeout=60))
    wait_for(
        lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) >= used + 18, "descriptors to be used up"
    )
    accepted = [inside.submit(CONTENT + b"%d\r\n" % number).startswith("250") for number in range(20)]
    assert all(accepted)
    wait_for(lambda: gateway.log("lane_down"), "the lane to be down")
    assert "Too many open files" in gateway.log("lane_down")[0]["reply"]
    for client in clients:
        client.close()
    hop.wait(20)
    wait_for(
        lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) < used + 10, "descriptors to be free again"
    )
    with Sender(gateway.port) as sender:
        assert sender.submit(CONTENT).startswith("250")
    hop.wait(21)
    assert len(hop.received) == 21
    inside.sock.close()
    assert not gateway.log("worker_died")


def lost_lines(gateway: RunningGateway, what: str) -> float:
    found = samples(scrape(gateway.ports[1])[1])
    return sum(v for k, v in found.items() if k.startswith(f"gateway_{what}_lost_lines_total"))


def test_log_disk_full(gateway: RunningGateway, tmp_path: Path) -> None:
    """The disk of the log is full, and that of the history.

    Client   250: mail does not depend on either
    Queue    goes on
    Shown    gateway_log_lost_lines_total and gateway_trace_lost_lines_total count what is not written; a log_lost line
             says so when there is room again
    Arrives  at once
    """
    need_root()  # to mount a small disk
    hop = gateway.hop  # type: ignore[attr-defined]
    history = gateway.state_dir / "history"
    text = gateway.log_file.read_bytes()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", history], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        gateway.kill()
        (history / "foreign").write_bytes(bytes(16384))
        gateway.start()
        gateway.log_file.unlink()
        gateway.log_file.symlink_to("/dev/full")
        gateway.process.send_signal(signal.SIGUSR1)
        with Sender(gateway.port) as sender:
            for _ in range(50):
                assert sender.submit(CONTENT).startswith("250")
        hop.wait(50)
        wait_for(lambda: lost_lines(gateway, "log") > 0, "lines that the log lost")
        wait_for(lambda: lost_lines(gateway, "trace") > 0, "lines that the history lost")
        gateway.log_file.unlink()
        gateway.log_file.write_bytes(text)
        gateway.process.send_signal(signal.SIGUSR1)
        with Sender(gateway.port) as sender:
            assert sender.submit(CONTENT).startswith("250")
        hop.wait(51)
        wait_for(lambda: gateway.log("log_lost"), "the log to tell")
        assert not gateway.log("worker_died")
    finally:
        gateway.kill()
        subprocess.run(["umount", "-l", history], check=True)
