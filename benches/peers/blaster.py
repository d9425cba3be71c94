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


def sources(*, seconds: float, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """CPU of the whole process tree a message, in turn (A B A B); start and end of the process included."""
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
    rate, _ = _run(tools["smtp-source"](FIRST_RUN), FIRST_RUN)
    messages = int(rate * seconds)
    cpu_us: dict[str, list[float]] = {name: [] for name in tools}
    rates: dict[str, list[float]] = {name: [] for name in tools}
    for number in range(rounds):
        for name, command in tools.items():
            say(f"{name}, {size_octets} octets, {connections} connections: round {number + 1} of {rounds}")
            rate, cpu = _run(command(messages), messages)
            rates[name].append(rate)
            cpu_us[name].append(cpu)
    middle = {name: statistics.median(values) for name, values in cpu_us.items()}
    return {
        **{f"{name}, µs CPU a message": value for name, value in middle.items()},
        **{f"{name}, messages/s": statistics.median(values) for name, values in rates.items()},
        "messages for a second of CPU, to smtp-source": middle["smtp-source"] / middle["smtp-blaster"],
    }


def _run(command: list[str], messages: int) -> tuple[float, float]:
    """Messages/s, and µs of CPU a message."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return messages / took, 1e6 * cpu_s / messages
