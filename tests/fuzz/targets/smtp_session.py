"""Whole sessions over the real spool: no 250 before its message is on disk, nothing left behind when they end."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.config_model import SpoolConfig
from gateway.log import Log
from gateway.log_sink import Sink
from gateway.metrics import Metrics
from gateway.net.connection import Connection, DeadlineSweep
from gateway.policy.overload import Overload
from gateway.protocol.smtp_server import Settings
from gateway.server.service import Memory, SmtpService
from gateway.server.smtp import SmtpSession
from gateway.spool.recover import recover_partition
from gateway.spool.spool import Spool, Stored
from tests.fuzz.octets import cut, options
from tests.fuzz.one_worker import LOOP, wait_for, worker
from tests.fuzz.smtp_step import Step, split_replies
from tests.fuzz.targets import smtp_server

CODE = ("gateway.policy", "gateway.spool.incoming", "gateway.spool.log", "gateway.protocol.esmtp")
MAX_OCTETS = 2000
RUNS = 200
WORDS = (*smtp_server.WORDS, b"<Postmaster>", b"Received: x\r\n", b"Message-ID: <x@y>\r\n")


def seeds() -> list[bytes]:
    found = [seed[:1] + seed[2:3] + bytes(2) + seed[3:] for seed in smtp_server.seeds()]
    two = (
        b"EHLO a\r\n" + b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\n" * 2 + b"QUIT\r\n"
    )
    large = two.replace(b"x\r\n", b"y" * 300 + b"\r\n")
    events = [bytes([flags, 60, event, 3]) for flags in (0, TIGHT, MEMORY) for event in range(7)]
    return found + [head + sent for head in events for sent in (two, large)]


LMTP, TLS, XCLIENT, REJECT, TIGHT, STRANGER, MEMORY = 1, 2, 4, 8, 16, 32, 64
# What happens to the session before one of its reads, besides octets.
NOTHING, EOF, LOST, DEADLINE, DRAIN, UNREADY, READY = range(7)

RECEIVED = re.compile(rb"Received: [^\r\n]*\r\n(?:\t[^\r\n]*\r\n)+")
QUEUED = re.compile(rb"250 2\.0\.0 Ok: queued as ([0-9A-Z]{12}) ")
SPOOL = SpoolConfig(
    segment_octets=64 * 1024,
    spare_segments=1,
    chunk_octets=1024,
    group_octets=16 * 1024,
    message_pending_octets=2048,
    pending_octets=256 * 1024,
    memory_octets=4096,
    min_free_octets=0,
)
LOG = Log(Sink(os.open(os.devnull, os.O_WRONLY), own=True))


@functools.cache
def service(lmtp: bool) -> SmtpService:
    """As a listener's doors make it: a session gets its own spool and counters in it."""
    made = worker()
    found = made.doors._service(made.config.listen[lmtp])
    # This machine may well have too much to do: no refusals, and none that have to wait for their turn.
    found.gate._overloaded = lambda *_: None
    return msgspec.structs.replace(found, overload=Overload(found.overload.targets))


class Transport:
    """The other end of a Connection: what was written, and whether the client is read."""

    def __init__(self, session: Session, peer: str) -> None:
        self.session = session
        self.peer = peer
        self.reading = True
        self.closing = False
        self.written = b""

    def get_extra_info(self, name: str) -> object:
        return (self.peer, 4711) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        assert not self.closing, "written after close"
        self.session.on_written(data)
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.session.connection.connection_lost, None)

    abort = close


class Session:
    """One session of a listener of its own, with a spool that is read back afterwards."""

    def __init__(self, flags: int, directory: Path) -> None:
        tight = bool(flags & TIGHT)
        self.settings = Settings(
            hostname="mx.test",
            lmtp=bool(flags & LMTP),
            starttls=bool(flags & TLS),  # offered, but there is no certificate: 454
            xclient=bool(flags & XCLIENT),
            normalize=not flags & REJECT,
            max_message_octets=200 if tight else 1 << 20,
            recipients_max=2 if tight else 100,
            transactions_max=3 if tight else 0,
            errors_max=6 if tight else 1000,
            chunk_octets=64 if tight else 1024,
        )
        self.stored: dict[str, Stored] = {}
        self.unready = False
        self.spool = Spool(directory, worker=0, settings=SPOOL)
        self.spool.recover()
        self.spool.attach(LOOP)
        self.metrics = Metrics()
        self.service: SmtpService = msgspec.structs.replace(
            service(bool(flags & LMTP)),
            settings=self.settings,
            spool=self.spool,
            enqueue=self.enqueue,
            durability="memory" if flags & MEMORY else "fsync",
            log=LOG,
            metrics=self.metrics,
            reject_bare=bool(flags & REJECT),
            memory=Memory(500 if tight else 1 << 30),
        )
        self.service.gate.draining = False
        peer = "198.51.100.7" if flags & STRANGER else "192.0.2.7"
        self.transport = Transport(self, peer)
        self.handler = SmtpSession(self.service)
        self.connection = Connection(self.handler, DeadlineSweep())
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def enqueue(self, stored: Stored) -> None:
        assert stored.queue_id not in self.stored, "queued twice"
        self.stored[stored.queue_id] = stored

    def on_written(self, data: bytes) -> None:
        """A 250 is a promise: the record is in the file, whole, before it leaves."""
        for queue_id in QUEUED.findall(data):
            stored = self.stored[queue_id.decode()]
            if self.service.durability == "fsync":
                for segment, offset, length in stored.records():
                    segment.read_record(offset, length, stored.queue_id)

    async def run(self, sent: bytes, how: int, event: int, when: int) -> None:
        for number, piece in enumerate(cut(sent, how)):
            if number == when:
                self.happen(event)
            await self.until(lambda: self.transport.reading)
            if self.transport.closing:
                break
            self.connection.data_received(piece)
        await self.settle_down()
        self.transport.close()
        await self.settle_down()
        assert self.connection.closed

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the writer do its work.  A client that does not read its replies begins to."""
        await asyncio.sleep(0)
        if self.unready and not self.connection.closed:
            self.happen(READY)
        await wait_for(lambda: condition() or self.connection.closed)

    async def settle_down(self) -> None:
        """Until nothing more comes of what was sent: a commit may let the next command go on."""
        await self.until(lambda: True)
        for _ in range(4):
            await wait_for(lambda: not self.spool.busy)
            await asyncio.sleep(0)

    def happen(self, event: int) -> None:
        connection = self.connection
        if event == EOF:
            connection.eof_received()
            self.transport.close()
        elif event == LOST:
            self.transport.closing = True
            connection.connection_lost(ConnectionResetError("reset by peer"))
        elif event == DEADLINE:
            self.handler.on_deadline()
        elif event == DRAIN:
            self.service.gate.draining = True
            self.handler.drain()
        elif event == UNREADY:
            self.unready = True
            connection.pause_writing()
        elif event == READY:
            self.unready = False
            connection.resume_writing()

    def check(self, sent: bytes, *, told: bool) -> dict[str, bytes]:
        """What was promised is what was kept; told: every reply could be sent.  {queue id: message}"""
        step = Step(
            sent,
            lmtp=self.settings.lmtp,
            line_octets=self.settings.line_octets,
            normalize=self.settings.normalize,
        )
        greeting, *replies = split_replies(self.transport.written)
        assert greeting[0] == 220
        step.check(replies, all_answered=told)
        kept = {
            queue_id: b"".join(bytes(piece) for piece in self.spool.body(stored).slices())
            for queue_id, stored in self.stored.items()
        }
        promised = set()
        for recipients, content, reply in step.accepted:
            queue_id = QUEUED.match(reply)[1].decode()  # type: ignore[index]
            promised.add(queue_id)
            message, envelope = kept[queue_id], self.stored[queue_id].envelope
            assert message.endswith(content) and envelope.facts.size_octets == len(content)
            assert RECEIVED.fullmatch(message[: len(message) - len(content)])
            assert [r.forward_path for r in envelope.recipients] == [
                "postmaster@d" if "@" not in path else path for path in recipients
            ]
        assert promised == set(kept) or (not told and promised < set(kept))
        return kept

    def check_nothing_is_left(self) -> None:
        service = self.service
        assert service.memory.octets == 0, f"{service.memory.octets} octets are still counted"
        assert service.gate.sessions == 0 and not service.gate._by_client
        assert self.metrics.sessions_open == 0
        assert self.spool.log.expecting == 0 and not self.spool.paused
        assert self.metrics.accepted_fsync + self.metrics.accepted_memory == len(self.stored)


class Errors(logging.Handler):
    """What is logged with a traceback is a bug, though the session survives it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and self.first is None:
            self.first = record.exc_info[1]


def check(data: bytes) -> None:
    (flags, how, event, when), sent = options(data, 4)
    worker()
    event %= 6
    errors = Errors()
    logging.getLogger("gateway").addHandler(errors)
    try:
        with tempfile.TemporaryDirectory() as root:
            run(sent, flags, how, event, when, Path(root))
    finally:
        logging.getLogger("gateway").removeHandler(errors)
    if errors.first is not None:
        raise errors.first


def run(sent: bytes, flags: int, how: int, event: int, when: int, root: Path) -> None:
    async def session() -> dict[str, bytes]:
        talk = Session(flags, root)
        await talk.run(sent, how, event, when)
        kept = talk.check(sent, told=event == NOTHING)
        talk.check_nothing_is_left()
        talk.spool.close()
        return kept

    kept = LOOP.run_until_complete(session())
    recovery = recover_partition(root / "0", root / "damaged")
    assert not recovery.damaged
    found = {}
    for stored in recovery.messages:
        pieces = [segment.read_record(at, size, "") for segment, at, size in stored.records()]
        found[stored.queue_id] = b"".join(map(bytes, pieces))
    for segment in recovery.segments:
        segment.close()
    assert found.keys() == kept.keys(), "what is on disk is not what was promised"
    for queue_id, message in kept.items():
        assert message[-10:] in found[queue_id]
