"""Clients that make trouble: they leave in the middle, send a trickle, talk nonsense, stay and say nothing.

Owns      Vandals
Flow      run() until stop(): HABITS by seed, a few at a time
Limits    AT_ONCE connections, each for HABIT_S at most
Errors    none: whatever the server does to them is what they came for; replies are counted by their first digit
Security  loopback only
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

AT_ONCE = 6
HABIT_S = 20.0
ENVELOPE = (
    b"EHLO vandal.example\r\nMAIL FROM:<vandal@example.test>\r\nRCPT TO:<sink@example.test>\r\n"
)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Vandals:
    """A thread with a loop of its own."""

    def __init__(self, port: int, *, seed: int, per_s: float) -> None:
        self.came: Counter[str] = Counter()  # by habit
        self.heard: Counter[str] = Counter()  # first digits of replies
        self._port = port
        self._random = random.Random(seed)
        self._pause_s = 1.0 / per_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(HABIT_S + 10.0)

    async def _run(self) -> None:
        running: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            if len(running) < AT_ONCE:
                habit = self._random.choice(HABITS)
                task = asyncio.create_task(self._visit(habit))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.sleep(self._random.expovariate(1.0 / self._pause_s))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _visit(self, habit: Callable[[Vandals, Streams], Awaitable[None]]) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(HABIT_S):
                streams = await asyncio.open_connection("127.0.0.1", self._port)
                self.came[habit.__name__.strip("_")] += 1
                try:
                    await habit(self, streams)
                finally:
                    streams[1].close()

    async def _say(self, streams: Streams, octets: bytes) -> bytes:
        reader, writer = streams
        writer.write(octets)
        await writer.drain()
        line = await reader.readline()
        self.heard[line[:1].decode("latin-1")] += 1
        return line

    # -- habits ------------------------------------------------------------------------------------------------------

    async def _come_and_go(self, streams: Streams) -> None:
        del streams

    async def _leave_within_data(self, streams: Streams) -> None:
        await self._say(streams, ENVELOPE + b"DATA\r\n" + b"x" * self._random.randrange(100_000))

    async def _reset_within_data(self, streams: Streams) -> None:
        await self._leave_within_data(streams)
        sock = streams[1].get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _leave_within_bdat(self, streams: Streams) -> None:
        await self._say(streams, ENVELOPE + b"BDAT 1000000\r\n" + b"y" * 30_000)

    async def _trickle(self, streams: Streams) -> None:
        for octet in ENVELOPE:
            streams[1].write(bytes([octet]))
            await streams[1].drain()
            await asyncio.sleep(HABIT_S / len(ENVELOPE) / 1.5)

    async def _stay(self, streams: Streams) -> None:
        await self._say(streams, b"EHLO vandal.example\r\n")
        await asyncio.sleep(self._random.random() * HABIT_S)

    async def _talk_nonsense(self, streams: Streams) -> None:
        for _ in range(30):
            await self._say(
                streams, self._random.randbytes(self._random.randrange(1, 3000)) + b"\r\n"
            )

    async def _half_a_handshake(self, streams: Streams) -> None:
        await self._say(streams, b"EHLO vandal.example\r\nSTARTTLS\r\n")
        await self._say(streams, b"\x16\x03\x01" + self._random.randbytes(200))

    async def _not_listen(self, streams: Streams) -> None:
        streams[1].write(b"EHLO vandal.example\r\n" + b"VRFY a\r\n" * 5000)
        await asyncio.sleep(self._random.random() * HABIT_S)

    async def _send_too_much(self, streams: Streams) -> None:
        await self._say(
            streams, ENVELOPE.replace(b"test>\r\nRCPT", b"test> SIZE=99999999999\r\nRCPT")
        )


HABITS: list[Callable[[Vandals, Streams], Awaitable[None]]] = [
    Vandals._come_and_go,
    Vandals._leave_within_data,
    Vandals._reset_within_data,
    Vandals._leave_within_bdat,
    Vandals._trickle,
    Vandals._stay,
    Vandals._talk_nonsense,
    Vandals._half_a_handshake,
    Vandals._not_listen,
    Vandals._send_too_much,
]
