"""A whole gateway as a subprocess, real peers around it, and sinks that show what came out.

Owns      RunningGateway, RunningSink, RunningPostfix and how to wait for them; conftest.py makes
fixtures of them
Limits    every wait ends after WAIT_S; a test leaves no process behind
Errors    a peer that is not installed skips the test, under CI=true it fails it
(tools/install_peers)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import CALM, WAIT_S, free_port
from smtp_blaster.sink import Receipt, Sink, SinkPlan

SERVE = "import sys; from gateway.cli import main; sys.exit(main())"
SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def need(program: str) -> str:
    """The program's path; skips the test without it, under CI=true fails it."""
    found = shutil.which(program, path=SEARCH_PATH) or (program if Path(program).exists() else None)
    if found is None:
        message = f"{program} is not installed (tools/install_peers)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first true value of condition(); fails the test when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s for {what}")
        time.sleep(0.02)
    return value


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- the sink -------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """As many different ones."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


class RunningSink:
    """A Sink on a loop of its own thread."""

    def __init__(self, plan: SinkPlan) -> None:
        self.receipts: list[Receipt] = []
        self.port = 0
        self._plan = plan
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(WAIT_S)

    def _run(self) -> None:
        async def serve() -> None:
            self.sink = Sink(self._plan, self.receipts.append)
            await self.sink.start()
            self.port = self.sink.port
            self._started.set()
            await self.sink.finished.wait()
            await self.sink.stop()

        self._loop.run_until_complete(serve())

    def wait(self, messages: int = 1, timeout_s: float = WAIT_S) -> list[Receipt]:
        wait_for(
            lambda: len(self.receipts) >= messages, f"{messages} messages at the sink", timeout_s
        )
        return self.receipts

    def flush(self) -> None:
        """The ledger so far will be in its file very soon."""
        assert self.sink.ledger is not None
        self._loop.call_soon_threadsafe(self.sink.ledger.flush)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.sink.finished.set)
            self._thread.join(WAIT_S)


# -- the gateway ----------------------------------------------------------------------------------


def toml(section: dict[str, Any]) -> str:
    """The section as TOML: plain keys first, then tables and arrays of tables."""
    lines, tables = [], []
    for key, value in section.items():
        if isinstance(value, dict):
            tables.append(f"[{key}]\n{toml(value)}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tables += [f"[[{key}]]\n{toml(entry)}" for entry in value]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines + tables) + "\n"


class RunningGateway:
    """`gateway serve` with a config of its own."""

    def __init__(self, where: Path, config: dict[str, Any]) -> None:
        self.config = where / "gateway.toml"
        self.state_dir = where / "state"
        self.log_file = where / "gateway.log"
        addresses = [entry["address"] for entry in config["listen"]]
        self.ports = [int(one.rpartition(":")[2]) for one in addresses if one[:5] != "unix:"]
        self.config.write_text(
            toml(
                {
                    "hostname": "mx.example.test",
                    "state_dir": str(self.state_dir),
                    "workers": 1,
                    "log": {"file": str(self.log_file), "format": "json", "flush_s": 0.0},
                    **config,
                    "limits": CALM | config.get("limits", {}),
                }
            )
        )
        self._output = where / "gateway.out"
        self._workers = config.get("workers", 1)
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """All its workers serve afterwards."""
        self.launch()
        try:
            wait_for(self.is_ready, "the gateway to be ready")
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Start it; it may take a while to serve, or die before."""
        self._ready_before = len(self.log("worker_ready"))
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, "serve", "--config", str(self.config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def expect_workers(self, workers: int) -> None:
        """The configuration was changed: start() waits for so many."""
        self._workers = workers

    def is_ready(self) -> bool:
        """So many workers serve as there should be; fails the test when it ended."""
        if self.process.poll() is not None:
            pytest.fail(f"the gateway ended with {self.process.returncode}:\n{self.output()}")
        return len(self.log("worker_ready")) - self._ready_before >= self._workers

    @property
    def port(self) -> int:
        return self.ports[0]

    def output(self) -> str:
        return self._output.read_text(errors="replace")[-4000:]

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log's lines so far, all or those of one event."""
        lines = self.log_file.read_bytes().splitlines() if self.log_file.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith(b"}")]
        return [entry for entry in entries if event in (None, entry.get("event"))]

    def words(self, *words: str) -> list[str]:
        """How a `gateway` command on this gateway is started."""
        return [sys.executable, "-c", SERVE, *words, "--config", str(self.config)]

    def command(self, *words: str) -> str:
        """The output of a `gateway` command on this gateway."""
        done = subprocess.run(
            self.words(*words),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def queue(self) -> list[dict[str, Any]]:
        """`gateway queue list --json`: one object a message."""
        return [json.loads(line) for line in self.command("queue", "list", "--json").splitlines()]

    def stop(self) -> None:
        """SIGTERM; fails the test when the gateway does not drain in time."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(WAIT_S)

    def kill(self) -> None:
        """SIGKILL for the whole session: supervisor and workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(WAIT_S)


def listener(service: str = "smtp", **settings: Any) -> dict[str, Any]:
    return {"service": service, "address": f"127.0.0.1:{free_port()}", **settings}


def route(next_hop: str | list[str], *domains: str, **settings: Any) -> dict[str, Any]:
    hops = [next_hop] if isinstance(next_hop, str) else next_hop
    return {"domains": list(domains) or ["*"], "next_hop": hops, **settings}


# -- Postfix --------------------------------------------------------------------------------------

MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {where}/queue
data_directory = {where}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {where}/postfix.log
maillog_file_prefixes = {where}
myhostname = postfix.example.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:{relay_port}
disable_dns_lookups = yes
alias_maps =
alias_database =
local_recipient_maps =
smtputf8_enable = yes
smtpd_tls_chain_files = {key}, {certificate}
smtpd_tls_security_level = may
smtpd_tls_received_header = yes
smtp_tls_security_level = may
smtpd_recipient_restrictions = permit_mynetworks, reject
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
{extra}
"""
MASTER_CF = """\
{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""


class RunningPostfix:
    """An instance of its own directories; port is its smtpd's."""

    def __init__(self, where: Path, relay_port: int, files: tuple[Path, Path], extra: str) -> None:
        self.port = free_port()
        self._where = where
        for name in ("config", "queue", "data"):
            (where / name).mkdir(parents=True)
        shutil.chown(where / "data", "postfix")
        certificate, key = files
        (where / "config" / "main.cf").write_text(
            MAIN_CF.format(
                where=where, relay_port=relay_port, certificate=certificate, key=key, extra=extra
            )
        )
        (where / "config" / "master.cf").write_text(MASTER_CF.format(port=f"127.0.0.1:{self.port}"))
        done = subprocess.run(
            [need("postfix"), "-c", str(where / "config"), "start"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, self.log()
        wait_for(lambda: listening(self.port), f"Postfix\n{self.log()}")

    def log(self) -> str:
        file = self._where / "postfix.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def stop(self) -> None:
        """SIGTERM to the master, which is what "postfix stop" does before it sleeps."""
        master = int((self._where / "queue" / "pid" / "master.pid").read_text())
        os.kill(master, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{master}").exists(), "Postfix to stop")
