"""What a gateway uses while a campaign runs: memory, CPU, descriptors, threads, disk, queue, mail refused.

Owns      Sampler, a thread; Samples, its columns
Files     /proc/<pid>/{smaps_rollup,stat,fd,status}, the spool's directory; the rest from the control sockets
Limits    one row an interval, in memory; a gateway that is away leaves None in its columns
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from benches.campaigns.site import Site

TICKS = os.sysconf("SC_CLK_TCK")
UNITS = {
    "memory": "octets", "cpu": "%", "descriptors": "", "threads": "", "spool": "octets", "queue": "messages",
    "refused": "1/s", "limit": "1/s", "turn": "ms", "wait": "ms",
}  # fmt: skip


class Samples(msgspec.Struct):
    """Columns of equal length, by name: see UNITS; of single processes "memory of worker 0" …"""

    began_at: float  # time.monotonic()
    t: list[float] = []  # seconds since then
    columns: dict[str, list[float | None]] = {}
    marks: list[tuple[float, str]] = []

    def add(self, t: float, row: dict[str, float | None]) -> None:
        for name in row.keys() - self.columns.keys():
            self.columns[name] = [None] * len(self.t)
        self.t.append(t)
        for name, column in self.columns.items():
            column.append(row.get(name))

    def now(self) -> float:
        return time.monotonic() - self.began_at

    def mark(self, text: str) -> None:
        self.marks.append((self.now(), text))

    def between(self, name: str, begin: float, end: float) -> list[tuple[float, float]]:
        """(t, value) pairs."""
        rows = zip(self.t, self.columns.get(name, []), strict=False)
        return [(t, value) for t, value in rows if value is not None and begin <= t <= end]

    def as_server(self, begin: float = 0.0, end: float = float("inf")) -> dict[str, Any]:
        """Run.server: {"series": {name: {"t", "v", "unit"}}, "marks": [{"t", "text"}]}; t counts from begin."""
        series = {}
        for name in self.columns:
            pairs = self.between(name, begin, end)
            if pairs:
                unit = UNITS.get(name.partition(" of ")[0].partition(" (")[0], "")
                series[name] = {
                    "t": [t - begin for t, _ in pairs],
                    "v": [v for _, v in pairs],
                    "unit": unit,
                }
        marks = [{"t": t - begin, "text": text} for t, text in self.marks if begin <= t <= end]
        return {"series": series, "marks": marks}


class Sampler:
    """`with Sampler(site, 1.0) as sampler:`; sampler.samples is there while it runs."""

    def __init__(self, site: Site, interval_s: float) -> None:
        self.samples = Samples(time.monotonic())
        self._site = site
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._cpu_before: dict[int, float] = {}
        self._shed_before: Counter[str] = Counter()
        self._at = time.monotonic()

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            now = time.monotonic()
            row: dict[str, float | None] = {}
            seconds, self._at = now - self._at, now
            self._processes(row, seconds)
            self._workers(row, seconds)
            row["spool"] = spool_octets(self._site.state / "spool")
            self.samples.add(now - self.samples.began_at, row)

    def _processes(self, row: dict[str, float | None], seconds: float) -> None:
        pids = self._site.pids()
        names = ["supervisor", *(f"worker {index}" for index in range(len(pids) - 1))]
        cpu: dict[int, float] = {}
        for name, pid in zip(names, pids, strict=True):
            with contextlib.suppress(OSError, StopIteration, ValueError):
                of_this = {
                    "memory": own_octets(pid),
                    "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
                    "threads": threads(pid),
                }
                cpu[pid] = cpu_s(pid)
                for what, value in of_this.items():
                    row[what] = (row.get(what) or 0.0) + value
                    if what != "threads":
                        row[f"{what} of {name}"] = value
        used = sum(
            used - self._cpu_before[pid] for pid, used in cpu.items() if pid in self._cpu_before
        )
        self._cpu_before = cpu
        row["cpu"] = 100.0 * used / seconds

    def _workers(self, row: dict[str, float | None], seconds: float) -> None:
        answers = self._site.ask("top")
        if not answers:
            return
        row["queue"] = sum(answer["queue"]["messages"] for answer in answers)
        shed: Counter[str] = Counter()
        limit = turn_s = wait_s = 0.0
        for answer in answers:
            for name, _, _, labels, value in answer["metrics"]["samples"]:
                if name == "gateway_shed_total":
                    shed[f"refused ({labels['stage']}, {labels['reason']})"] += value
                elif name == "gateway_accept_limit":
                    limit += value
                elif name == "gateway_loop_turn_seconds":
                    turn_s = max(turn_s, value)
                elif name == "gateway_queue_wait_seconds":
                    wait_s = max(wait_s, value)
        row |= {"limit": limit, "turn": 1e3 * turn_s, "wait": 1e3 * wait_s}
        for name, count in shed.items():
            if count or name in self._shed_before:
                row[name] = max(0.0, count - self._shed_before[name]) / seconds
        self._shed_before = Counter({name: count for name, count in shed.items() if count})


def own_octets(pid: int) -> int:
    """Heap and stacks, swapped or not: what can leak.

    Not PSS: a process's part of the interpreter's pages grows when other programs of this machine end.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Anonymous:", "Swap:")))


def threads(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Threads:"))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def spool_octets(directory: Path) -> int:
    """On the disk."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
    return total
