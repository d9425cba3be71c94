"""What is not a rate of messages: handshakes, idle connections, and how long the loop stands
still."""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop
from smtp_blaster.source import Plan, Source

from benches.peers.servers import SERVERS, Gateway, Missing, find

IDLE = 1000
IDLE_SERVERS = (
    "gateway",
    "smtp-sink",
    "haraka",
)  # Postfix: a process each; 1.2 GB, see ARCHITECTURE.md
STREAMS, STREAM_OCTETS = 10, 20_000_000
PROBE_S = 0.002
PARSE = re.compile(r"^(\S+?)(?:\{.*\})? (\S+)$")


def tls_handshakes(
    where: Path, *, seconds: float, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """A new connection, STARTTLS and one message of 1 KiB each; beside what OpenSSL alone could do."""
    found: dict[str, Any] = {"servers": {}, "openssl_s": _openssl_limit(seconds)}
    servers = {}
    for name in ("gateway", "postfix"):
        try:
            servers[name] = SERVERS[name](where / name, tls=True)
        except Missing as missing:
            found["servers"][name] = {"failure": str(missing)}
    try:
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
        for number in range(rounds):
            for name, server in servers.items():
                say(f"STARTTLS per message: {name}, round {number + 1} of {rounds}")
                plan = Plan(
                    target=f"127.0.0.1:{server.port}",
                    connections=10,
                    duration_s=seconds,
                    per_connection=1,
                    size_octets=1024,
                    tls="starttls",
                )
                cpu_s = server.account.cpu_s()
                result = uvloop.run(Source(plan).run())
                cpu_us = 1e6 * (server.account.cpu_s() - cpu_s) / max(1, result.accepted)
                rates[name].append((result.messages_per_s, cpu_us))
        for name, pairs in rates.items():
            found["servers"][name] = {
                "handshakes_per_s": statistics.median(rate for rate, _ in pairs),
                "cpu_us": statistics.median(cpu for _, cpu in pairs),
            }
    finally:
        for server in servers.values():
            server.stop()
    return found


def _openssl_limit(seconds: float) -> float:
    """P-256 signatures a second on one core: the handshake's dearest part."""
    done = subprocess.run(
        [find("openssl"), "speed", "-seconds", str(max(1, round(seconds))), "ecdsap256"],
        capture_output=True,
        text=True,
        check=False,
    )
    numbers = re.findall(r"ecdsa \(nistp256\).*?([\d.]+)\s+[\d.]+\s*$", done.stdout, re.MULTILINE)
    return float(numbers[0]) if numbers else 0.0


def idle_connections(where: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """PSS of the server's processes, with and without IDLE connections that said EHLO."""
    found: dict[str, Any] = {}
    for name in IDLE_SERVERS:
        say(f"{IDLE} idle connections: {name}")
        try:
            server = SERVERS[name](where / name)
        except Missing as missing:
            found[name] = {"failure": str(missing)}
            continue
        sockets: list[socket.socket] = []
        try:
            plan = Plan(target=f"127.0.0.1:{server.port}", connections=20, messages=200)
            uvloop.run(Source(plan).run())
            time.sleep(0.5)
            before = server.account.pss_octets()
            for _ in range(IDLE):
                connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
                connection.recv(1000)
                connection.sendall(b"EHLO idle.example.test\r\n")
                connection.recv(4000)
                sockets.append(connection)
            time.sleep(0.5)
            after = server.account.pss_octets()
            found[name] = {
                "before_octets": before,
                "after_octets": after,
                "octets_per_connection": (after - before) / IDLE,
            }
        except OSError as error:
            found[name] = {"failure": str(error)}
        finally:
            for connection in sockets:
                connection.close()
            server.stop()
    return found


def loop_pause(where: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """The longest wait for a NOOP while STREAMS messages of STREAM_OCTETS come in, and the loop's own figures."""
    say(f"{STREAMS} messages of {STREAM_OCTETS // 10**6} MB at once")
    try:
        server = Gateway(where / "gateway")
    except Missing as missing:
        return {"failure": str(missing)}
    try:
        quiet = uvloop.run(_probe_during(server.port, asyncio.sleep(1.0)))
        plan = Plan(
            target=f"127.0.0.1:{server.port}",
            connections=STREAMS,
            messages=STREAMS,
            size_octets=STREAM_OCTETS,
        )
        loaded = uvloop.run(_probe_during(server.port, Source(plan).run()))
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics", timeout=20)
        lag = [
            line
            for line in metrics.read().decode().splitlines()
            if "loop_" in line and line[0] != "#"
        ]
        return {
            "noop_ms_quiet": quiet,
            "noop_ms_loaded": loaded,
            "loop_metrics": {found[1]: found[2] for line in lag if (found := PARSE.match(line))},
        }
    finally:
        server.stop()


async def _probe_during(port: int, work: Any) -> dict[str, float]:
    """Round-trip times of NOOP in ms on a connection of its own, while `work` runs."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b"EHLO probe.example.test\r\n")
    while (await reader.readline())[3:4] == b"-":
        pass
    task = asyncio.ensure_future(work)
    times = []
    while not task.done():
        began = time.perf_counter()
        writer.write(b"NOOP\r\n")
        await reader.readline()
        times.append(1e3 * (time.perf_counter() - began))
        await asyncio.sleep(PROBE_S)
    await task
    writer.close()
    times.sort()
    return {
        "median": statistics.median(times),
        "p99": times[int(len(times) * 0.99)],
        "max": times[-1],
        "probes": len(times),
    }
