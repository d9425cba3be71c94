"""CPU of the SMTP agent per message, against Postfix's smtp-sink: python benches/bench_relay.py [messages] [connections].

Prints one JSON line.  Floor: the same octets written and the replies read by bare sockets are in benches/peers.
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


async def run(port: int, messages: int, connections: int) -> dict[str, float]:
    sweep = DeadlineSweep()
    sweep.start()
    settings = SmtpSettings(hostname="bench.example", sweep=sweep, resolve=Resolver().resolve)
    feeder = Feeder([Stored(number) for number in range(messages)])
    agent = feeder.agent = SmtpAgent(parse_next_hop(f"smtp://127.0.0.1:{port}"), settings, feeder)
    agent.set_concurrency(connections)
    cpu, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    feeder.pump()
    await feeder.finished
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    agent.close()
    user, system = after.ru_utime - cpu.ru_utime, after.ru_stime - cpu.ru_stime
    return {
        "messages": messages,
        "connections": connections,
        "octets": BODY.size,
        "messages_per_s": round(messages / elapsed),
        "cpu_us_per_message": round((user + system) / messages * 1e6, 2),
        "user_us_per_message": round(user / messages * 1e6, 2),
    }


def main() -> None:
    messages, connections = [int(argument) for argument in (*sys.argv[1:], "20000", "20")][:2]
    sink = shutil.which("smtp-sink", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if sink is None:
        sys.exit("smtp-sink not found: apt-get install postfix")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sink, "-u", "nobody", f"127.0.0.1:{port}", "128"])
    try:
        time.sleep(0.3)
        print(json.dumps(uvloop.run(run(port, messages, connections))))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
