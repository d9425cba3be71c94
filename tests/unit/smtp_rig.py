"""What the tests of the SMTP agent share: messages that are no spool's, a lane that records, scripted servers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from unit.model_smtp_server import ModelServer

from gateway.config_model import DeliveryConfig
from gateway.delivery.agent import Job, Outcome
from gateway.delivery.smtp import SmtpAgent
from gateway.delivery.smtp_connection import SmtpSettings
from gateway.mail.envelope import Envelope, Facts, Recipient
from gateway.net.connection import DeadlineSweep
from gateway.net.dns import Resolver
from gateway.queue.routing import parse_next_hop

PREFIX = b"Received: by gateway\r\n"
CONTENT = b"Subject: hi\r\n\r\n.dot\r\nbody\r\n"

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def facts_of(content: bytes) -> Facts:
    lines = content.split(b"\r\n")
    return Facts(
        size_octets=len(content),
        header_octets=content.find(b"\r\n\r\n") + 2,
        lines=len(lines),
        longest_line=max(map(len, lines)),
        dot_lines=sum(line.startswith(b".") for line in lines),
        has_8bit=not content.isascii(),
        has_nul=b"\0" in content,
        bare_cr=len(re.findall(rb"\r(?!\n)", content)),
        bare_lf=len(re.findall(rb"(?<!\r)\n", content)),
        ends_with_crlf=content.endswith(b"\r\n"),
    )


class FakeBody:
    """A Body in memory, or one that claims to be on disk; `broken` fails at the octet where it stands."""

    def __init__(self, content: bytes, *, in_memory: bool = True, broken: bool = False) -> None:
        self.content = content
        self.in_memory = in_memory
        self.broken = broken
        self.size = len(PREFIX) + len(content)

    def slices(self) -> Sequence[bytes | memoryview]:
        if self.broken:
            raise OSError(5, "Input/output error")
        return [memoryview(PREFIX), memoryview(self.content)]

    def chunks(self, size: int) -> Iterator[bytes | memoryview]:
        whole = PREFIX + self.content
        for start in range(0, len(whole), size):
            if self.broken and start:
                raise OSError(5, "Input/output error")
            yield memoryview(whole)[start : start + size]


class FakeStored:
    def __init__(self, number: int, body: FakeBody, envelope: Envelope) -> None:
        self.queue_id = f"Q{number}"
        self.body = body
        self.envelope = envelope


def job(
    number: int = 0,
    rcpts: int = 1,
    *,
    content: bytes = CONTENT,
    in_memory: bool = True,
    broken: bool = False,
    recipients: list[Recipient] | None = None,
    **envelope: Any,
) -> Job:
    """Message m<number>@a to r0.m<number>@b …, as ModelServer knows them."""
    if recipients is None:
        recipients = [Recipient(f"r{index}.m{number}@b") for index in range(rcpts)]
    envelope.setdefault("reverse_path", f"m{number}@a")
    envelope.setdefault("facts", facts_of(content))
    body = FakeBody(content, in_memory=in_memory, broken=broken)
    stored = FakeStored(number, body, Envelope(recipients=recipients, received_at=0, **envelope))
    return Job(stored, list(range(len(recipients))), lambda kept: kept.body)


class Recorder:
    """Stands for the lane."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Sequence[Outcome]] = {}
        self.failures: list[Outcome] = []
        self.ready = 0
        self._changed = asyncio.Event()

    def on_ready(self) -> None:
        self.ready += 1
        self._changed.set()

    def on_connect_failed(self, outcome: Outcome) -> None:
        self.failures.append(outcome)
        self._changed.set()

    def done(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        assert job.queue_id not in self.outcomes, "two answers"
        assert len(outcomes) in (0, len(job.recipients))
        self.outcomes[job.queue_id] = outcomes
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.02)

    async def answers(self, count: int) -> list[Sequence[Outcome]]:
        await self.until(lambda: len(self.outcomes) >= count)
        return [self.outcomes[queue_id] for queue_id in sorted(self.outcomes, key=lambda q: int(q[1:]))]


def settings(sweep: DeadlineSweep, *, config: DeliveryConfig | None = None, **changes: Any) -> SmtpSettings:
    changes.setdefault("resolve", Resolver().resolve)
    return SmtpSettings(hostname="me.example", sweep=sweep, config=config or DeliveryConfig(), **changes)


@contextlib.asynccontextmanager
async def agent_for(url: str, *, concurrency: int = 1, **changes: Any) -> AsyncIterator[tuple[SmtpAgent, Recorder]]:
    sweep = DeadlineSweep()
    sweep.start()
    recorder = Recorder()
    agent = SmtpAgent(parse_next_hop(url), settings(sweep, **changes), recorder)
    agent.set_concurrency(concurrency)
    try:
        yield agent, recorder
        agent.close()
        await recorder.until(lambda: agent.connections == 0)
        assert not sweep.connections
    finally:
        sweep.stop()


@contextlib.asynccontextmanager
async def serving(handle: Handle, *, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that gives each connection to `handle`; handlers are done when this returns."""
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def modelled(model: Callable[[], ModelServer], *, octetwise: bool = False) -> Handle:
    """Each connection talks to a new ModelServer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = model()
        writer.write(b"220 model.example\r\n")
        while data := await reader.read(65536):
            replies = server.feed(data)
            if octetwise:
                for octet in replies:
                    writer.write(bytes([octet]))
                    await writer.drain()
                    await asyncio.sleep(0)
            else:
                writer.write(replies)
                await writer.drain()
            if server.commands[-1:] == ["QUIT"]:
                return

    return handle


def scripted(*steps: str | bytes) -> Handle:
    """str: read until a line begins with it; bytes: write them; b"": close; "*": read until the peer closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for step in steps:
            if step == "*":
                while await reader.read(65536):
                    pass
            elif isinstance(step, str):
                while not (line := await reader.readline()).startswith(step.encode()):
                    if not line:
                        return
            elif step:
                writer.write(step)
                await writer.drain()
            else:
                return

    return handle
