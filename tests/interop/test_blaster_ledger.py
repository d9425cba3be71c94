"""Accepted is delivered: the ledgers of source and sink around a gateway under load."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from interop_peers import RunningGateway, RunningSink, free_port, listener, route, wait_for
from smtp_blaster import ledger
from smtp_blaster.sink import Fault
from smtp_blaster.source import Plan, Result, Source

TOOLS = Path(ledger.__file__).parent.parent


def blast(gateway: RunningGateway, where, port: int | None = None, **plan) -> Result:
    settings = {
        "connections": 10,
        "size_octets": 5000,
        "dots": True,
        "ledger": str(where / "accepted"),
        **plan,
    }
    source = Source(Plan(target=f"127.0.0.1:{port or gateway.port}", **settings))
    return asyncio.run(source.run())


def arrived(sink: RunningSink, where, messages: int) -> ledger.Difference:
    """The difference once so many (message, recipient) pairs are in the sink's ledger."""

    def found() -> ledger.Difference | None:
        sink.flush()
        text = (where / "delivered").read_text()
        (where / "whole").write_text(text[: text.rfind("\n") + 1])
        difference = ledger.compare(ledger.read(where / "accepted"), ledger.read(where / "whole"))
        return difference if difference.delivered - difference.duplicated >= messages else None

    return wait_for(found, f"{messages} deliveries", timeout_s=60.0)


MODES = {
    "plain": {},
    "pipelining": {"pipelining": True},
    "chunking": {"chunking": True},
    "pipelining+chunking": {"pipelining": True, "chunking": True},
    "one a connection": {"per_connection": 1},
    "recipients": {"recipients": 5, "pipelining": True},
    "large": {"size_octets": 3_000_000, "messages": 12},
    "starttls": {"tls": "starttls", "per_connection": 10},
    "lmtp": {"protocol": "lmtp", "recipients": 2},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(gateway_factory, sink_factory, tmp_path, mode):
    sink = sink_factory(ledger=str(tmp_path / "delivered"))
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")],
        [
            listener(
                "lmtp" if mode == "lmtp" else "smtp",
                tls="starttls" if mode == "starttls" else "off",
            )
        ],
    )
    plan = {"messages": 300, **MODES[mode]}
    result = blast(gateway, tmp_path, **plan)
    assert (result.accepted, result.refused, result.broken) == (plan["messages"], 0, 0), (
        result.replies
    )
    difference = arrived(sink, tmp_path, result.recipients_accepted)
    assert (difference.lost, difference.altered, difference.duplicated, difference.unpromised) == (
        0,
        0,
        0,
        0,
    )


@pytest.mark.parametrize("durability", ["inline", "fsync", "memory"])
@pytest.mark.parametrize("next_hop", ["smtp", "lmtp"])
def test_every_durability(gateway_factory, sink_factory, tmp_path, durability, next_hop):
    sink = sink_factory(ledger=str(tmp_path / "delivered"))
    gateway = gateway_factory(
        [route(f"{next_hop}://127.0.0.1:{sink.port}")], [listener(durability=durability)]
    )
    result = blast(gateway, tmp_path, messages=200)
    assert result.accepted == 200
    assert arrived(sink, tmp_path, 200).is_clean


@pytest.mark.parametrize("workers", [1, 2])
def test_a_next_hop_that_fails_now_and_then(gateway_factory, sink_factory, tmp_path, workers):
    """Refusals and lost connections at every stage: late, perhaps twice, but never lost or altered."""
    faults = tuple(
        Fault(stage, code=code, drop=drop, probability=0.05)
        for stage in ("mail", "rcpt", "data", "content")
        for code, drop in ((451, False), (0, True))
    )
    sink = sink_factory(ledger=str(tmp_path / "delivered"), faults=faults)
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}")], workers=workers)
    result = blast(gateway, tmp_path, messages=100, recipients=2)
    assert result.accepted == 100
    difference = arrived(sink, tmp_path, 200)
    assert (difference.lost, difference.altered, difference.unpromised) == (0, 0, 0)


def test_killed_while_under_load(gateway_factory, sink_factory, tmp_path):
    """SIGKILL for everything, start again: all that was acknowledged comes out."""
    sink = sink_factory(ledger=str(tmp_path / "delivered"))
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}", hold=False)])

    async def load_and_kill() -> Result:
        plan = Plan(
            target=f"127.0.0.1:{gateway.port}",
            connections=10,
            duration_s=3.0,
            size_octets=5000,
            ledger=str(tmp_path / "accepted"),
        )
        source = Source(plan)
        run = asyncio.create_task(source.run())
        while source.accepted < 200 and not run.done():
            await asyncio.sleep(0.005)
        await asyncio.to_thread(gateway.kill)
        return await run

    result = asyncio.run(load_and_kill())
    assert result.accepted >= 200
    gateway.start()
    difference = arrived(sink, tmp_path, result.accepted)
    assert (difference.lost, difference.altered) == (0, 0)


def test_sigterm_under_load_loses_nothing(gateway_factory, sink_factory, tmp_path):
    sink = sink_factory(ledger=str(tmp_path / "delivered"))
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}")])

    async def load_and_stop() -> Result:
        plan = Plan(
            target=f"127.0.0.1:{gateway.port}",
            connections=10,
            duration_s=3.0,
            ledger=str(tmp_path / "accepted"),
        )
        source = Source(plan)
        run = asyncio.create_task(source.run())
        while source.accepted < 100 and not run.done():
            await asyncio.sleep(0.005)
        gateway.process.send_signal(signal.SIGTERM)
        return await run

    result = asyncio.run(load_and_stop())
    assert result.accepted >= 100
    gateway.process.wait(60)
    gateway.start()
    difference = arrived(sink, tmp_path, result.accepted)
    assert (difference.lost, difference.altered) == (0, 0)


def sink_command(port: int, where) -> subprocess.Popen[bytes]:
    """The sink as a process of its own, that goes on in its ledger; it listens afterwards."""
    faults = ("content=delay:~5ms", "content=drop@0.02")
    words = ["--ledger", str(where / "delivered"), "--append", *(f"--fault={fault}" for fault in faults)]
    process = subprocess.Popen(
        [sys.executable, "-m", "smtp_blaster", "sink", f"127.0.0.1:{port}", *words],
        cwd=TOOLS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"listening")
    return process


def test_everything_killed_in_turn_and_nothing_lost(gateway_factory, tmp_path):
    """The sink, the gateway and the source, each killed under load: the proof holds, and says why mail came twice."""
    port = free_port()
    sink = sink_command(port, tmp_path)
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{port}", hold=False)])

    def send(number: int, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "smtp_blaster", "smtp", f"127.0.0.1:{gateway.port}"),
                *("--connections", "5", "--size", "3000", "--ledger", str(tmp_path / f"accepted-{number}"), *words),
            ],
            cwd=TOOLS,
            stdout=subprocess.DEVNULL,
        )

    def entries(path) -> int:
        return path.read_text().count("@blaster.invalid") if path.exists() else 0

    first = send(1, "--duration", "30")
    wait_for(lambda: entries(tmp_path / "delivered") > 100, "load at the sink")
    sink.kill()
    sink.wait()
    sink = sink_command(port, tmp_path)
    seen = entries(tmp_path / "delivered")
    wait_for(lambda: entries(tmp_path / "delivered") > seen + 100, "load at the sink again")
    ledger.mark(tmp_path / "kills", "the gateway")
    gateway.kill()
    first.kill()
    first.wait()
    gateway.start()
    send(2, "--messages", "100").wait()
    accepted = [tmp_path / "accepted-1", tmp_path / "accepted-2"]

    def settled() -> ledger.Difference | None:
        found = ledger.prove(accepted, [tmp_path / "delivered"], kills=[tmp_path / "kills"])
        return found if not found.lost else None

    found = wait_for(settled, "all that was accepted", timeout_s=60.0)
    sink.terminate()
    sink.wait()
    assert found.accepted > 200
    assert found.altered == 0
    assert found.kills == 2  # the one that is marked, and the sink's
    assert found.duplicated_unexplained == 0, (found.unexplained_ids, found.duplicated_explained)
    assert found.is_clean
