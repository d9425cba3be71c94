"""CPU of the SMTP agent per message, against Postfix's smtp-sink.

    python benches/bench_relay.py [messages [connections]]

Prints two JSON lines.  The floor is a protocol that writes the same octets whenever something arrives.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import socket
import subprocess
import sys
import time

import uvloop

from gateway.delivery.agent import RELAYED, Job, Outcome
from gateway.delivery.smtp import SmtpAgent
from gateway.delivery.smtp_connection import SmtpSettings
from gateway.mail.envelope import Envelope, Facts, Recipient
from gateway.net.connection import DeadlineSweep
from gateway.net.dns import Resolver
from gateway.queue.routing import parse_next_hop

CONTENT = b"Subject: bench\r\n\r\n" + (b"x" * 78 + b"\r\n") * 128
PREFIX = b"Received: from client (client [192.0.2.1]) by gateway; Thu, 1 Jan 2026 00:00:00 +0000\r\n"


class MemoryBody:
    in_memory = True
    size = len(PREFIX) + len(CONTENT)

    def slices(self) -> list[memoryview]:
        return [memoryview(PREFIX), memoryview(CONTENT)]


BODY = MemoryBody()


class Stored:
    def __init__(self, number: int) -> None:
        self.queue_id = f"{number:012d}"
        self.envelope = Envelope(
            "sender@example.org",
            [Recipient("recipient@example.com")],
            0,
            facts=Facts(size_octets=len(CONTENT), header_octets=16),
        )


class Feeder:
    """Keeps the agent full: what a lane does, without its decisions."""

    def __init__(self, stored: list[Stored]) -> None:
        self.left = stored
        self.todo = len(stored)
        self.finished = asyncio.get_running_loop().create_future()
        self.agent: SmtpAgent

    def on_ready(self) -> None:
        self.pump()

    def on_connect_failed(self, outcome: Outcome) -> None:
        self.finished.set_exception(ConnectionError(outcome.text))

    def pump(self) -> None:
        while self.left and self.agent.capacity > 0:
            self.agent.submit(Job(self.left.pop(), [0], lambda stored: BODY), self.done)

    def done(self, job: Job, outcomes: list[Outcome]) -> None:
        assert outcomes[0].state == RELAYED, outcomes
        self.todo -= 1
        if not self.todo:
            self.finished.set_result(None)
        self.pump()


class Floor(asyncio.Protocol):
    """No machine, no agent: three segments of octets and a counter."""

    COMMANDS = (
        b"MAIL FROM:<sender@example.org> SIZE=10345\r\nRCPT TO:<recipient@example.com>\r\nDATA\r\n"
    )

    def __init__(self, messages: int) -> None:
        self.left = messages
        self.reads = 0
        self.finished = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        if self.reads == 1:
            self.transport.write(b"EHLO bench.example\r\n")
        elif self.reads == 2:
            self.transport.write(self.COMMANDS)
        elif self.left:
            self.left -= 1
            self.transport.writelines([PREFIX, CONTENT, b".\r\n", self.COMMANDS])
        elif not self.finished.done():
            self.finished.set_result(None)


def cpu_s() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


async def run_floor(port: int, messages: int, connections: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    user, system = cpu_s()
    protocols = []
    for _ in range(connections):
        share = messages // connections
        _, protocol = await loop.create_connection(lambda: Floor(share), "127.0.0.1", port)  # noqa: B023
        protocols.append(protocol)
    await asyncio.gather(*[protocol.finished for protocol in protocols])
    user_after, system_after = cpu_s()
    for protocol in protocols:
        protocol.transport.abort()
    return {"floor_us_per_message": round((user_after - user + system_after - system) / messages * 1e6, 2)}


async def run(port: int, messages: int, connections: int) -> dict[str, float]:
    sweep = DeadlineSweep()
    sweep.start()
    settings = SmtpSettings(hostname="bench.example", sweep=sweep, resolve=Resolver().resolve)
    feeder = Feeder([Stored(number) for number in range(messages)])
    agent = feeder.agent = SmtpAgent(parse_next_hop(f"smtp://127.0.0.1:{port}"), settings, feeder)
    agent.set_concurrency(connections)
    user, system = cpu_s()
    start = time.perf_counter()
    feeder.pump()
    await feeder.finished
    elapsed = time.perf_counter() - start
    user_after, system_after = cpu_s()
    agent.close()
    user, system = user_after - user, system_after - system
    return {
        "messages": messages,
        "connections": connections,
        "octets": BODY.size,
        "messages_per_s": round(messages / elapsed),
        "cpu_us_per_message": round((user + system) / messages * 1e6, 2),
        "user_us_per_message": round(user / messages * 1e6, 2),
    }


def wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    sys.exit("smtp-sink does not listen")


def main() -> None:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    connections = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    sink = shutil.which("smtp-sink", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if sink is None:
        sys.exit("smtp-sink not found: apt-get install postfix")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sink, "-u", "nobody", f"127.0.0.1:{port}", "128"])
    try:
        wait_for(port)
        print(json.dumps(uvloop.run(run_floor(port, messages, connections))))
        print(json.dumps(uvloop.run(run(port, messages, connections))))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
