"""A whole gateway that is killed and starved, load around it, and the ledgers that judge.

Owns      Rig: one gateway at a time on one state_dir, a sink behind it, bursts of load in front
Flow      burst() in threads → kill → start() → settle() → difference()
Limits    every wait ends; end() leaves no process
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from interop_peers import RunningGateway, RunningSink, listener, route
from smtp_blaster import ledger
from smtp_blaster.sink import SinkPlan
from smtp_blaster.source import Plan, Result, Source

# Small files, so that a short test sees many of them begin, fill up and go.
SPOOL = {"segment_octets": 4 * 1024 * 1024, "min_free_octets": 1024 * 1024}


class Burst:
    """Sources that run in a thread of their own."""

    def __init__(self, plans: list[Plan]) -> None:
        self.sources = [Source(plan) for plan in plans]
        self.results: list[Result] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        async def all_of_them() -> list[Result]:
            self._loop = asyncio.get_running_loop()
            return list(await asyncio.gather(*(source.run() for source in self.sources)))

        self.results = asyncio.run(all_of_them())

    @property
    def accepted(self) -> int:
        return sum(source.accepted for source in self.sources)

    def stop(self) -> list[Result]:
        """What was begun is brought to its end."""
        for source in self.sources:
            self._loop.call_soon_threadsafe(source.stop)
        return self.join()

    def join(self) -> list[Result]:
        self._thread.join(90)
        assert not self._thread.is_alive(), "the load did not end"
        return self.results


class Rig:
    """`with Rig(tmp_path) as rig:` a gateway that relays everything to rig.sink."""

    def __init__(self, where: Path, *, plan: dict[str, Any] | None = None, **sections: Any) -> None:
        self.where = where
        self.delivered = where / "delivered"
        self.sink = RunningSink(SinkPlan(ledger=str(self.delivered), **(plan or {})))
        config = {
            "workers": 2,
            "drain_s": 10.0,
            "queue": {"retry_s": [1.0], "connect_retry_s": [0.5]},
            "spool": SPOOL,
            "listen": [listener()],
            "route": [route(f"smtp://127.0.0.1:{self.sink.port}")],
            **sections,
        }
        self._ledgers: list[Path] = []
        self.gateway = RunningGateway(where, config)
        self._config = self.gateway.config.read_text()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.kill()
        self.sink.stop()

    # -- load --------------------------------------------------------------------------------------

    def burst(self, *plans: dict[str, Any]) -> Burst:
        """Begin to send; every plan's ledger counts for difference()."""
        return Burst([self._plan(**plan) for plan in plans])

    def _plan(self, **settings: Any) -> Plan:
        path = self.where / f"accepted-{len(self._ledgers)}"
        self._ledgers.append(path)
        target = f"127.0.0.1:{self.gateway.port}"
        run = f"{os.getpid():x}-{len(self._ledgers)}"
        return Plan(target=target, ledger=str(path), run=run, **settings)

    # -- processes ---------------------------------------------------------------------------------

    def configure(
        self, *, workers: int = 2, hold: bool = False, write_method: str = "auto"
    ) -> None:
        """What the next start reads."""
        text = self._config.replace("workers = 2", f"workers = {workers}")
        if hold:
            text = text.replace("[[route]]\n", "[[route]]\nhold = true\n")
        text = text.replace("[spool]\n", f'[spool]\nwrite_method = "{write_method}"\n')
        self.gateway.config.write_text(text)
        self.gateway.expect_workers(workers)

    def workers(self) -> list[int]:
        """Process ids of the workers that run."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return sorted(
                child.pid for child in psutil.Process(self.gateway.process.pid).children()
            )
        return []

    def kill_supervisor(self) -> list[int]:
        """SIGKILL for the supervisor alone; the workers that it left behind."""
        workers = self.workers()
        self.gateway.process.kill()
        self.gateway.process.wait()
        return workers

    # -- the verdict -------------------------------------------------------------------------------

    def promised(self) -> Iterator[ledger.Entry]:
        for path in self._ledgers:
            yield from ledger.read(path)

    def difference(self) -> ledger.Difference:
        """Now, while the sink still takes mail."""
        self.sink.flush()
        text = self.delivered.read_text()
        whole = self.where / "delivered-whole"
        whole.write_text(text[: text.rfind("\n") + 1])
        return ledger.compare(self.promised(), ledger.read(whole))

    def settle(self, timeout_s: float = 60.0) -> ledger.Difference:
        """What there is to say once all that was promised came out, or nothing more will."""
        difference = self.difference()

        def all_there() -> bool:
            nonlocal difference
            difference = self.difference()
            return not difference.lost

        poll(all_there, timeout_s)
        return difference

    def queued(self) -> int:
        """Messages in all partitions."""
        found = json.loads(self.gateway.command("queue", "list", "--limit", "0", "--json"))
        return int(found["total"])


def poll(condition: Callable[[], Any], timeout_s: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def gone(pids: list[int]) -> bool:
    """None of them runs (a dead one may still wait for its parent)."""
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
