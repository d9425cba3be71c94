"""Network conditions for a run: its clients sit in a laboratory, and come to the target over a shaped link.

Owns      Conditions, parse_conditions(), through()
Flow      client's namespace → its link (delay, loss, rate) → the switch → the door's namespace → relay → target
Limits    one lab a process; RELAY_OCTETS wait in each direction of a connection
Errors    ValueError for what is no condition; lab.LabError when this machine cannot have one
Security  needs root.  The relay takes connections from the lab's own namespace only
Bugs      the relay has accepted before the target has: a target that is down is a connection that ends
          before its greeting, and "connect" is the time over the link alone

The target sees connections from this host: what the link does to them it does between the client and
the relay, and TCP's answer to it (retransmissions, windows) is the kernel's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import re
import signal
import socket
import time
from collections.abc import Iterator

import msgspec
import uvloop

from smtp_blaster.lab import Lab, LabError
from smtp_blaster.workers import Inside

RELAY_OCTETS = 256 * 1024
LINK_S = 30.0  # until the first answer has come over it
_NUMBER = re.compile(r"([\d.]+)(ms|s|%|kbit|mbit|gbit)")
_UNITS = {"ms": 1e-3, "s": 1.0, "%": 1e-2, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_ALLOWED = {"delay": ("ms", "s"), "loss": ("%",), "rate": ("kbit", "mbit", "gbit")}


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """Of the link, in each direction."""

    delay_s: float = 0.0  # one way: a round trip takes twice that
    loss: float = 0.0  # part of 1
    rate_bits_s: float = 0.0  # 0 = no limit


def parse_conditions(text: str) -> Conditions:
    """ "delay=50ms,loss=1%,rate=10mbit".  Raises ValueError."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        found = _NUMBER.fullmatch(value)
        if name not in _ALLOWED or found is None or found[2] not in _ALLOWED[name]:
            raise ValueError(f'{part!r}: expected "delay=50ms,loss=1%,rate=10mbit", or some of these')
        values[name] = float(found[1]) * _UNITS[found[2]]
    if values.get("loss", 0.0) >= 1.0:
        raise ValueError(f"{text!r}: nothing would arrive")
    return Conditions(
        delay_s=values.get("delay", 0.0), loss=values.get("loss", 0.0), rate_bits_s=values.get("rate", 0.0)
    )


@contextlib.contextmanager
def through(conditions: Conditions, address: tuple[str, int]) -> Iterator[tuple[str, Inside]]:
    """HOST:PORT that leads to the address, and where it has to be used.  Raises LabError."""
    with Lab("client", "door") as lab:
        lab["client"].link.shape(**msgspec.structs.asdict(conditions))
        with lab["door"].inside():
            listening = socket.create_server((lab["door"].address, 0), backlog=1024)
        process = multiprocessing.get_context("fork").Process(
            target=_relay, args=(listening, address), daemon=True
        )
        process.start()
        _await_link(lab)
        try:
            yield f"{lab['door'].address}:{listening.getsockname()[1]}", lab["client"].inside
        finally:
            process.kill()
            process.join()
            listening.close()


def _await_link(lab: Lab) -> None:
    """The link carries, and both ends know each other's hardware addresses."""
    deadline = time.monotonic() + LINK_S
    while time.monotonic() < deadline:
        with lab["client"].inside(), socket.socket() as probe:
            probe.settimeout(1.0)
            try:
                probe.connect((lab["door"].address, 1))
            except ConnectionRefusedError:  # an answer
                return
            except OSError:
                time.sleep(0.05)
    raise LabError(f"nothing came through the link in {LINK_S:g} s: its conditions are too hard")


def _relay(listening: socket.socket, address: tuple[str, int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the run's end is ours
    uvloop.run(_serve(listening, address))


async def _serve(listening: socket.socket, address: tuple[str, int]) -> None:
    beside: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(_join(reader, writer, address))
        beside.add(task)
        task.add_done_callback(beside.discard)

    server = await asyncio.start_server(accepted, sock=listening, limit=RELAY_OCTETS)
    async with server:
        await server.serve_forever()


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: tuple[str, int]
) -> None:
    """Carry octets both ways until both sides are done."""
    try:
        target_reader, target_writer = await asyncio.open_connection(*address, limit=RELAY_OCTETS)
    except OSError:
        writer.transport.abort()
        return
    try:
        await asyncio.gather(_carry(reader, target_writer), _carry(target_reader, writer))
    except OSError:
        pass
    finally:
        for each in (writer, target_writer):
            each.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while octets := await reader.read(65536):
        writer.write(octets)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
