"""What is not a rate of messages: handshakes, idle connections, and how long the loop stands
still."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import statistics
import subprocess
import sys
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
STREAMS, STREAM_OCTETS, STREAM_MESSAGES = 10, 20_000_000, 50
PROBE_S = 0.002
LAG = re.compile(r'^gateway_loop_lag_seconds_bucket\{.*le="([^"]+)".*\} (\S+)$')


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
    """The longest wait for a NOOP while messages of STREAM_OCTETS stream in, and the loop's own figures.

    The load comes from a process of its own.  On two CPUs the prober waits for its turn, too: "quiet" and the
    loop's own histogram tell how much of it is the gateway's.
    """
    say(f"{STREAMS} messages of {STREAM_OCTETS // 10**6} MB at once")
    try:
        server = Gateway(where / "gateway")
    except Missing as missing:
        return {"failure": str(missing)}
    try:
        quiet = uvloop.run(_probe_during(server.port, asyncio.sleep(1.0)))
        before = _lag_buckets(server.http_port)
        loaded = uvloop.run(_probe_during(server.port, _stream(server.port)))
        after = _lag_buckets(server.http_port)
        lag = {le: after[le] - before.get(le, 0.0) for le in after}
        lag = {le: count for le, count in lag.items() if count < lag["+Inf"] or le == "+Inf"}
        return {
            "noop_ms_quiet": quiet,
            "noop_ms_loaded": loaded,
            "loop_lag_samples_up_to_s": lag,
        }
    finally:
        server.stop()


async def _stream(port: int) -> None:
    load = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "smtp_blaster", "smtp", f"127.0.0.1:{port}", "--connections", str(STREAMS),
        "--messages", str(STREAM_MESSAGES), "--size", str(STREAM_OCTETS), "--json",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await load.communicate()
    if load.returncode or json.loads(out)["totals"]["accepted"] != STREAM_MESSAGES:
        raise RuntimeError(f"the load failed: {out.decode()}")


def _lag_buckets(http_port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return {found[1]: float(found[2]) for line in lines if (found := LAG.match(line))}


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
