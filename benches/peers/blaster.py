"""The load tool beside Postfix's: messages for a second of CPU, both against the same smtp-sink.

Owns      sources()
Bugs      smtp-sink shares the machine; it is the same for both, and not counted
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches.peers.servers import Missing, find, free_port

KIB = 1024
CELLS = [(size, connections) for size in (1, 10) for connections in (1, 20)]
FIRST_RUN = 2000
SMALLEST = 20_000  # a start is to weigh little, however slow the machine is just now


def sources(*, seconds: float, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """CPU of the whole process tree a message, in turn (A B A B).

    Each tool's start and end is what a run of one message costs; it is shown, and taken off the longer runs.
    """
    try:
        sink = _smtp_sink()
    except Missing as missing:
        return {"failure": str(missing)}
    try:
        return {
            f"{size} KiB, {connections} connections": _cell(
                sink[1], size * KIB, connections, seconds=seconds, rounds=rounds, say=say
            )
            for size, connections in CELLS
        }
    finally:
        sink[0].kill()
        sink[0].wait()


def _smtp_sink() -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    user = ["-u", "postfix"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [find("smtp-sink"), *user, f"127.0.0.1:{port}", "1024"], stderr=subprocess.DEVNULL, cwd=Path("/")
    )
    time.sleep(0.5)
    return process, port


def _cell(
    port: int, size_octets: int, connections: int, *, seconds: float, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    tools = {
        "smtp-source": lambda messages: [
            find("smtp-source"), "-d", "-s", str(connections), "-m", str(messages), "-l", str(size_octets),
            "-f", "alice@example.test", "-t", "bob@example.test", f"127.0.0.1:{port}",
        ],
        "smtp-blaster": lambda messages: [
            sys.executable, "-m", "smtp_blaster", "smtp", f"127.0.0.1:{port}", "--connections", str(connections),
            "--messages", str(messages), "--size", str(size_octets), "--from", "alice@example.test",
            "--to", "bob@example.test", "--json",
        ],
    }  # fmt: skip
    took, _ = _run(tools["smtp-source"](FIRST_RUN))
    messages = max(SMALLEST, int(FIRST_RUN / took * seconds))
    start_s: dict[str, list[float]] = {name: [] for name in tools}
    cpu_s: dict[str, list[float]] = {name: [] for name in tools}
    for number in range(rounds):
        for name, command in tools.items():
            say(f"{name}, {size_octets} octets, {connections} connections: round {number + 1} of {rounds}")
            start_s[name].append(_run(command(1))[1])
            cpu_s[name].append(_run(command(messages))[1])
    found: dict[str, Any] = {"messages": messages}
    cpu_us = {}
    for name in tools:
        start = statistics.median(start_s[name])
        cpu_us[name] = 1e6 * (statistics.median(cpu_s[name]) - start) / messages
        found[f"{name}, µs CPU a message"] = cpu_us[name]
        found[f"{name}, ms CPU to start and end"] = 1e3 * start
    found["messages for a second of CPU, to smtp-source"] = cpu_us["smtp-source"] / cpu_us["smtp-blaster"]
    return found


def _run(command: list[str]) -> tuple[float, float]:
    """Seconds by the clock, and of CPU."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
