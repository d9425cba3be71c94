"""A gateway and what is around it, each a process of its own: the sink behind it, the sources before it.

Owns      Site (directory, gateway, tools), Tool (one smtp-blaster process)
Flow      Site → start() → tool(...) → kill_worker(), restart(), reload() → close()
Files     everything below one directory on a real disk: configuration, log, spool, ledgers, results
Limits    every wait ends; close() leaves no process
Errors    SiteError says what did not happen, with the end of the output
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.control import ControlClient, ControlError

WAIT_S = 60.0
SERVE = "import sys; from gateway.cli import main; sys.exit(main())"


class SiteError(Exception):
    """The campaign cannot go on."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first true value of condition().  Raises SiteError."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SiteError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)
    return value


def split_cpus() -> tuple[set[int], set[int]]:
    """CPUs for the gateway and for the tools: half of them each, so that what is offered does not depend on who is
    quicker; with a single one both share it."""
    cpus = sorted(os.sched_getaffinity(0))
    half = (len(cpus) + 1) // 2
    return set(cpus[:half]), set(cpus[half:] or cpus)


class Tool:
    """One smtp-blaster process; its standard output is its result."""

    def __init__(self, where: Path, name: str, words: list[str], cpus: set[int]) -> None:
        self.name = name
        self._output = where / f"{name}.out"
        self._errors = where / f"{name}.err"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "smtp_blaster", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                process_group=0,  # Ctrl-C is the campaign's: the sinks take mail until the queue is empty
            )
        os.sched_setaffinity(self.process.pid, cpus)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def tell(self) -> None:
        """It ends soon, and leaves its result."""
        if self.is_running:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ends it; its ledger is complete afterwards."""
        self.tell()
        self.wait()

    def wait(self, timeout_s: float = WAIT_S) -> bytes:
        """What it printed.  Raises SiteError."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise SiteError(f"{self.name} did not end:\n{self.trouble}") from None
        return self._output.read_bytes()

    @property
    def trouble(self) -> str:
        return self._errors.read_text(errors="replace")[-2000:]


class Site:
    """Port numbers are chosen by the caller and are in the configuration that it gives."""

    def __init__(self, where: Path, *, cpus: tuple[set[int], set[int]] | None = None) -> None:
        self.where = where
        where.mkdir(parents=True, exist_ok=True)
        self.gateway_cpus, self.tool_cpus = cpus or split_cpus()
        self.config = where / "gateway.toml"
        self.state = where / "state"
        self.log_file = where / "gateway.log"
        self.tools: list[Tool] = []
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the gateway ---------------------------------------------------------------------------------------------

    def configure(self, body: str) -> None:
        """body: everything but hostname, state_dir and log."""
        self.config.write_text(
            f'hostname = "mx.example.test"\nstate_dir = "{self.state}"\n'
            f'log = {{ file = "{self.log_file}", format = "json" }}\n{body}'
        )

    def start(self) -> None:
        """All its workers serve afterwards.  Raises SiteError."""
        ready = self._count_ready()
        output = (self.where / "gateway.out").open("ab")
        with output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        os.sched_setaffinity(
            self.process.pid, self.gateway_cpus
        )  # before it has asked how many there are

        def serves() -> bool:
            if self.process.poll() is not None:
                text = (self.where / "gateway.out").read_text(errors="replace")[-2000:]
                raise SiteError(f"the gateway ended with {self.process.returncode}:\n{text}")
            return len(self.workers()) > 0 and self._count_ready() - ready >= len(self.workers())

        wait_for(serves, "the gateway to be ready")

    def _count_ready(self) -> int:
        return self.log_text('"event":"worker_ready"')

    def stop(self) -> None:
        """SIGTERM; it drains.  Raises SiteError."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            raise SiteError("the gateway did not drain in time") from None

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def workers(self) -> list[int]:
        """Process ids by the index of the worker; processes that were just forked may still lack their name."""
        found = {}
        with contextlib.suppress(OSError):
            children = Path(
                f"/proc/{self.process.pid}/task/{self.process.pid}/children"
            ).read_text()
            for pid in map(int, children.split()):
                with contextlib.suppress(OSError, ValueError):
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                    found[int(name.rpartition("-")[2])] = pid
        return [found[index] for index in sorted(found)]

    def pids(self) -> list[int]:
        """The supervisor and its workers."""
        return [self.process.pid, *self.workers()]

    def ask(self, cmd: str) -> list[dict[str, Any]]:
        """Every worker's answer; nothing while none answers."""
        try:
            answers = ControlClient(self.state / "control", timeout_s=5.0).ask_all(cmd)
            return [answer.result for answer in answers if answer.result is not None]
        except (ControlError, OSError):
            return []

    def queued(self) -> int:
        """Messages in the spool; -1 while nobody can say."""
        answers = self.ask("top")
        return sum(int(answer["queue"]["messages"]) for answer in answers) if answers else -1

    def wait_until_empty(self, timeout_s: float = WAIT_S) -> float:
        """Seconds until the queue was empty.  Raises SiteError."""
        began = time.monotonic()
        wait_for(lambda: self.queued() == 0, "the queue to be empty", timeout_s)
        return time.monotonic() - began

    def log_text(self, text: str) -> int:
        """How often this stands in the log."""
        return self.log_file.read_bytes().count(text.encode()) if self.log_file.exists() else 0

    # -- tools -------------------------------------------------------------------------------------------------------

    def tool(self, name: str, *words: object) -> Tool:
        """Start `smtp-blaster words...`."""
        tool = Tool(self.where, name, [str(word) for word in words], self.tool_cpus)
        self.tools.append(tool)
        return tool

    def sink(self, name: str, port: int, *words: object) -> Tool:
        """A sink with a ledger, <name>.tsv; it listens afterwards.  Raises SiteError."""
        ledger = self.where / f"{name}.tsv"
        tool = self.tool(
            name,
            "sink",
            f"127.0.0.1:{port}",
            "--duration",
            86400,
            "--ledger",
            ledger,
            "--json",
            *words,
        )

        def listens() -> bool:
            if not tool.is_running:
                raise SiteError(f"{name} ended:\n{tool.trouble}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_for(listens, f"{name} to listen")
        return tool

    def close(self) -> None:
        """Ends everything, at once."""
        for tool in self.tools:
            if tool.is_running:
                tool.process.kill()
                tool.process.wait()
        if hasattr(self, "process"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
