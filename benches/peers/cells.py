"""Cells: one kind of load on several servers in turn, A B A B, and the medians.

Owns      Cell, run_cell(), Row
Errors    a server that fails in a cell is left out of it, with the reason in Row.failure
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from benches.peers.drive import CountingSink, drive
from benches.peers.servers import SERVERS, Missing, Server

FIRST_RUN = 300  # messages of the first run, which tells how many make one of the length asked for
WARM_UP_RUNS = 2  # the first and one of full length: V8 needs that
SMALLEST = 100


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    size_octets: int
    connections: int
    keep: bool = True  # the connection, over messages
    relay: bool = False  # to a smtp-sink; the clock stops when it has counted everything
    servers: tuple[str, ...]


class Row(msgspec.Struct, kw_only=True):
    server: str
    is_durable: bool = True
    rates: list[float] = []
    cpu_us: list[float] = []
    method: str = ""
    failure: str = ""

    @property
    def rate(self) -> float:
        return statistics.median(self.rates) if self.rates else 0.0

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_us) if self.cpu_us else 0.0


@contextmanager
def _running(name: str, where: Path, relay: bool) -> Iterator[tuple[Server, CountingSink | None]]:
    with ExitStack() as stack:
        sink = None
        if relay:
            sink = CountingSink()
            stack.callback(sink.stop)
        server = SERVERS[name](where, relay_port=sink.port if sink else 0)
        stack.callback(server.stop)
        yield server, sink


def run_cell(
    cell: Cell, where: Path, *, seconds: float, rounds: int, say: Callable[[str], None]
) -> list[Row]:
    """Medians over the rounds, one row a server; all servers run side by side, one at a time is loaded."""
    rows: list[Row] = []
    with ExitStack() as stack:
        ready: list[tuple[Row, Callable[[int], tuple[float, float]]]] = []
        for name in cell.servers:
            row = Row(server=name)
            rows.append(row)
            try:
                server, sink = stack.enter_context(_running(name, where / name, cell.relay))
            except Missing as missing:
                row.failure = str(missing)
                continue
            row.is_durable, row.method = server.is_durable, server.account.method
            ready.append((row, _measure(cell, server, sink)))
        batches: dict[str, int] = {}
        for number in range(1 - WARM_UP_RUNS, rounds + 1):
            for row, measure in ready:
                if row.failure:
                    continue
                say(
                    f"{cell.title}: {row.server}, {f'round {number} of {rounds}' if number > 0 else 'warm-up'}"
                )
                try:
                    rate, cpu_us = measure(batches.get(row.server, FIRST_RUN))
                except RuntimeError as error:
                    row.failure = str(error)
                    continue
                if number > 0:
                    row.rates.append(rate)
                    row.cpu_us.append(cpu_us)
                if row.server not in batches:
                    batches[row.server] = max(SMALLEST, cell.connections * 4, int(rate * seconds))
    return rows


def _measure(
    cell: Cell, server: Server, sink: CountingSink | None
) -> Callable[[int], tuple[float, float]]:
    def measure(messages: int) -> tuple[float, float]:
        before = sink.count() if sink else 0
        cpu_s = server.account.cpu_s()
        began = time.perf_counter()
        drive(
            server.port,
            connections=cell.connections,
            messages=messages,
            size_octets=cell.size_octets,
            keep=cell.keep,
        )
        if sink is not None:
            sink.wait(before + messages)
        seconds = time.perf_counter() - began
        return messages / seconds, 1e6 * (server.account.cpu_s() - cpu_s) / messages

    return measure
