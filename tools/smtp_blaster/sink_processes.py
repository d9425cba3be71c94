"""A sink as a command: one process, or several at one port, and their results as one.

    Owns      serve()
    Flow      serve → the port is reserved → a process each with its own Sink and loop → results, merged
    Limits    with several processes a run ends within POLL_S of plan.messages or of a signal
    Errors    OSError: the address cannot be had, the ledger's disk failed, a process died
    Blocking  until the sink is done

Connections go to processes as the kernel likes: with several, a seed repeats the faults of the n-th
connection of a process, but which that is differs between runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
import uvloop

from smtp_blaster.ledger_file import Ledger, mark
from smtp_blaster.sink import Sink
from smtp_blaster.sink_plan import SinkPlan, SinkResult
from smtp_blaster.target import parse

POLL_S = 0.1
STOP_S = 10.0  # how long a process may take to end when told to

_Pipe = multiprocessing.connection.Connection


def serve(plan: SinkPlan, processes: int, ready: Callable[[int], None]) -> SinkResult:
    """Take mail until the plan's end or SIGINT or SIGTERM.  ready: gets the port once it listens."""
    if processes == 1:
        return uvloop.run(_serve(plan, ready))
    with _reserve(plan.address) as reserved:
        host, _ = parse(plan.address)
        port = reserved.getsockname()[1]
        group = str(os.getpid())
        if plan.ledger:
            Ledger(Path(plan.ledger), append=plan.append, group=group).close()
        plan = msgspec.structs.replace(
            plan,
            address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            shared_port=True,
            append=True,
            ledger_group=group,
        )
        return _Family(plan, processes).run(lambda: ready(port))


async def _serve(plan: SinkPlan, ready: Callable[[int], None]) -> SinkResult:
    sink = Sink(plan)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, sink.finished.set)
    await sink.start()
    ready(sink.port)
    try:
        async with asyncio.timeout(plan.duration_s or None):
            await sink.finished.wait()
    except TimeoutError:
        pass
    return await sink.stop()


def _reserve(address: str) -> socket.socket:
    """Bound to the address, so that it is ours, but not listening: no connection comes to it."""
    host, port = parse(address)
    family, kind, protocol, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    reserved = socket.socket(family, kind, protocol)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(found)
    except OSError:
        reserved.close()
        raise
    return reserved


class _Family:
    """The processes of one sink.  Each sends the messages it took so far, now and then, and its result."""

    def __init__(self, plan: SinkPlan, processes: int) -> None:
        self._plan = plan
        self._told = False
        self._taken = [0] * processes
        self._results: list[SinkResult] = []
        self._errors: list[str] = []
        # A fresh interpreter: a fork would share what the parent's libraries keep.
        fresh = multiprocessing.get_context("spawn")
        self._pipes: dict[_Pipe, int] = {}
        self._children: list[BaseProcess] = []
        for number in range(processes):
            ours, theirs = fresh.Pipe()
            own = msgspec.structs.replace(plan, messages=0, seed=plan.seed + number)
            child = fresh.Process(target=_child, args=(theirs, own), daemon=True)
            child.start()
            theirs.close()
            self._pipes[ours] = number
            self._children.append(child)

    def run(self, ready: Callable[[], None]) -> SinkResult:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._tell())
        waiting = len(self._children)
        while self._pipes:
            for pipe in multiprocessing.connection.wait(list(self._pipes), timeout=POLL_S):
                assert isinstance(pipe, _Pipe)
                said = self._hear(pipe)
                if said == 0 and waiting:
                    waiting -= 1
                    if not waiting:
                        ready()
            if self._plan.messages and sum(self._taken) >= self._plan.messages:
                self._tell()
        for child in self._children:
            child.join(STOP_S)
        if self._errors:
            raise OSError("; ".join(self._errors))
        return _merged(self._results, self._plan.seed)

    def _hear(self, pipe: _Pipe) -> int | None:
        """The count a process sent, if it was one."""
        number = self._pipes[pipe]
        try:
            said = pipe.recv()
        except EOFError:
            del self._pipes[pipe]
            self._died(number)
            return None
        if isinstance(said, int):
            self._taken[number] = said
            return said
        del self._pipes[pipe]
        if isinstance(said, str):
            self._errors.append(said)
            self._tell()
        else:
            self._results.append(said)
        return None

    def _died(self, number: int) -> None:
        child = self._children[number]
        child.join(STOP_S)
        self._errors.append(f"process {child.pid} of the sink ended with {child.exitcode}")
        if self._plan.ledger:
            mark(Path(self._plan.ledger), f"process {child.pid} of the sink")
        self._tell()

    def _tell(self) -> None:
        """All of them: stop."""
        if not self._told:
            self._told = True
            for pipe in self._pipes:
                pipe.send(None)


def _child(pipe: _Pipe, plan: SinkPlan) -> None:
    # Ctrl-C reaches all of the foreground group: only the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send(uvloop.run(_report(pipe, plan)))
    except OSError as error:
        with contextlib.suppress(OSError):  # the parent itself may be gone
            pipe.send(str(error))


async def _report(pipe: _Pipe, plan: SinkPlan) -> SinkResult:
    sink = Sink(plan)
    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), sink.finished.set)  # told to stop, or the parent is gone
    await sink.start()
    pipe.send(0)
    deadline = loop.time() + plan.duration_s if plan.duration_s else float("inf")
    while not sink.finished.is_set() and loop.time() < deadline:
        try:
            async with asyncio.timeout(POLL_S):
                await sink.finished.wait()
        except TimeoutError:
            pipe.send(sink.messages)
    loop.remove_reader(pipe.fileno())
    return await sink.stop()


def _merged(results: list[SinkResult], seed: int) -> SinkResult:
    commands: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for result in results:
        commands.update(result.commands)
        faults.update(result.faults)
    return SinkResult(
        messages=sum(result.messages for result in results),
        recipients=sum(result.recipients for result in results),
        octets=sum(result.octets for result in results),
        connections=sum(result.connections for result in results),
        connections_refused=sum(result.connections_refused for result in results),
        commands=dict(commands),
        faults=dict(faults),
        seconds=max((result.seconds for result in results), default=0.0),
        seed=seed,
    )
