"""A run of one or more processes, each a Source of its own, and one that watches them.

Owns      run(): forks the processes, hears them, adds up
Flow      process: Source → Interval each second, Result at the end → pipe → run() → Watch
Limits    plan.processes; they begin at the same instant and end with this process, whatever ends it
Errors    the figures of a process that dies are lost but for its seconds; the outcome says so
Blocking  run() blocks until the end; it has no loop
Security  a process that enters another network namespace stays there
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType

import msgspec
import uvloop

from smtp_blaster.content import Mail
from smtp_blaster.crowd import Crowd
from smtp_blaster.ledger import Ledger
from smtp_blaster.plan import Plan
from smtp_blaster.source import Interval, Result, Source
from smtp_blaster.summary import merge

START_S = 0.05  # what it takes to fork a process and begin
TICK_S = 0.25  # how often Watch.tick() is called
INTERRUPTED_DRAIN_S = 5.0  # for transactions in flight after SIGINT; a second one leaves them
PR_SET_PDEATHSIG = 1
COLLECT_OBJECTS = 50_000  # made and not freed, between two looks for cycles; a connection has a few


class Watch:
    """Hears of a run while it lasts; this one says nothing of it."""

    def interval(self, interval: Interval) -> None:
        """A second of one process."""

    def tick(self) -> None:
        """TICK_S went by."""


class Outcome(msgspec.Struct):
    """What came of all processes."""

    result: Result
    died: int  # processes whose result is missing
    was_interrupted: bool


Inside = Callable[[], AbstractContextManager[None]]


def run(plan: Plan, *, watch: Watch | None = None, inside: Inside = contextlib.nullcontext) -> Outcome:
    """Runs the plan in processes of its own.

    inside: entered by each process before it makes sockets (a network namespace).  SIGINT and SIGTERM end the run
    and leave its result.  Raises what Source's constructor raises.
    """
    name = plan.run or f"{time.time_ns():x}"
    mail = Mail(plan, name)
    kind = Crowd if plan.mix == "idle" else Source
    sources = [kind(msgspec.structs.replace(plan, ledger=""), part, mail=mail) for part in range(plan.processes)]
    if plan.ledger:
        Path(plan.ledger).write_bytes(b"")
    context = multiprocessing.get_context("fork")
    start_ns = time.monotonic_ns() + int(START_S * plan.processes * 1e9)
    pipes: dict[Connection, int] = {}
    processes: list[ForkProcess] = []
    for source in sources:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_process, args=(source, plan.ledger, name, start_ns, theirs, inside, os.getpid())
        )
        process.start()
        theirs.close()
        pipes[ours] = len(processes)
        processes.append(process)
    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)

    with _handling(interrupt):
        results, intervals = _hear(pipes, watch or Watch())
        for process in processes:
            process.join()
    died = len(processes) - len(results)
    if died:
        results.append(Result(intervals=intervals))
    return Outcome(result=merge(results), died=died, was_interrupted=interrupts > 0)


def _hear(pipes: dict[Connection, int], watch: Watch) -> tuple[list[Result], list[Interval]]:
    """The results, and the intervals of processes that died without one."""
    results: list[Result] = []
    intervals: dict[int, list[Interval]] = {part: [] for part in pipes.values()}
    decode = msgspec.msgpack.Decoder(Interval | Result).decode
    while pipes:
        for pipe in wait(list(pipes), TICK_S):
            assert isinstance(pipe, Connection)
            try:
                said = decode(pipe.recv_bytes())
            except (EOFError, OSError):
                pipe.close()
                del pipes[pipe]
                continue
            part = pipes[pipe]
            if isinstance(said, Interval):
                intervals[part].append(said)
                watch.interval(said)
            else:
                said.intervals = intervals.pop(part, [])  # it sent them as they ended
                results.append(said)
        watch.tick()
    return results, [interval for left in intervals.values() for interval in left]


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _process(
    source: Source, ledger: str, name: str, start_ns: int, pipe: Connection, inside: Inside, parent: int
) -> None:
    """One process of the run, from its fork to its end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent says what it means
    gc.freeze()  # contents, mailboxes, modules: nothing that the collector need look at again
    gc.set_threshold(COLLECT_OBJECTS)
    encode = msgspec.msgpack.Encoder().encode
    if ledger:
        source.ledger = Ledger(Path(ledger), append=True, group=name)
    source.on_interval = lambda interval: pipe.send_bytes(encode(interval))
    with inside():
        result = uvloop.run(_until_told(source, start_ns))
    result.intervals = []
    pipe.send_bytes(encode(result))
    pipe.close()


async def _until_told(source: Source, start_ns: int) -> Result:
    times = 0

    def stop() -> None:
        nonlocal times
        times += 1
        source.stop(INTERRUPTED_DRAIN_S if times == 1 else 0.0)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    return await source.run(start_ns)
