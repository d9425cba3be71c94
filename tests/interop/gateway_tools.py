"""What the tests of processes and commands share: sessions that stay open, commands, changed configs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from harness import Client
from interop_peers import SERVE, WAIT_S, RunningGateway, wait_for


class UnixClient(Client):
    """A Client on a unix socket."""

    def __init__(self, path: str | Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(str(path))
        self.buffer = b""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    error: str

    def json(self) -> Any:
        return json.loads(self.out)


def run(gateway: RunningGateway | None, *words: str, config: Path | None = None) -> Done:
    """`gateway WORDS` on this gateway's configuration, or another."""
    file = config or (gateway.config if gateway else None)
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *words, *(["--config", str(file)] if file else [])],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def worker_pids(gateway: RunningGateway) -> dict[int, int]:
    """Process ids by worker, of those that were started last."""
    return {line["worker_index"]: line["pid"] for line in gateway.log("worker_started")}


def workers(gateway: RunningGateway) -> int:
    return len(worker_pids(gateway))


def worker_of(client: Client, gateway: RunningGateway) -> int:
    """Which worker serves this session: /proc tells whose socket that is."""
    port = client.sock.getsockname()[1]
    ends = [client.sock.getpeername()[1], port]
    inode = ""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if [int(end.rpartition(":")[2], 16) for end in fields[1:3]] == ends and fields[3] == "01":
            inode = fields[9]
    for index, pid in worker_pids(gateway).items():
        with contextlib.suppress(FileNotFoundError):  # dead
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    if os.readlink(descriptor) == f"socket:[{inode}]":
                        return index
    raise AssertionError(f"nobody serves the session from port {port}")


def one_session_each(gateway: RunningGateway, port: int | None = None) -> dict[int, Client]:
    """A session with every worker, greeted and with EHLO said."""
    found: dict[int, Client] = {}
    for _ in range(200):
        client = Client(port or gateway.port)
        client.hello()
        index = worker_of(client, gateway)
        if index in found:
            client.sock.close()
        else:
            found[index] = client
        if len(found) == workers(gateway):
            return found
    raise AssertionError(f"200 connections, and none to each of {worker_pids(gateway)}")


def reload(gateway: RunningGateway, *changes: tuple[str, str], more: str = "") -> None:
    """SIGHUP with a configuration in which every (old, new) is replaced; served by all afterwards."""
    change(gateway, *changes, more=more)
    before = len(gateway.log("worker_reloaded"))
    gateway.process.send_signal(signal.SIGHUP)
    wait_for(
        lambda: len(gateway.log("worker_reloaded")) == before + workers(gateway),
        "all workers to reload",
    )


def change(gateway: RunningGateway, *changes: tuple[str, str], more: str = "") -> None:
    """Rewrite the configuration file."""
    text = gateway.config.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    gateway.config.write_text(text + more)


def set_certificate(pair: tuple[Path, Path], gateway: RunningGateway) -> None:
    """Put another certificate where the configuration points to."""
    text = gateway.config.read_text()
    for key, path in zip(("certificate", "key"), pair, strict=True):
        found = re.search(rf'^{key} = "(.*)"$', text, re.MULTILINE)
        assert found is not None
        shutil.copy(path, found[1])


def scrape(port: int, path: str = "/metrics") -> tuple[int, str]:
    """(status, body) of an HTTP request."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b""
        while data := sock.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def samples(text: str) -> dict[str, float]:
    """A scrape as {"name{labels}": value}; nothing in it may be told twice."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert len(found) == len(lines), "Prometheus refuses a page with the same series twice"
    return found
