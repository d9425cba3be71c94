"""What a server costs: CPU and memory of its processes, those that come and go included.

Owns      Account: a control group, or where there is none to be had the tree under one process
Files     /sys/fs/cgroup (version 1 cpuacct, or version 2), /proc
Bugs      without a control group, processes that leave the tree (double fork) are not seen;
          kernel threads (writeback) are never counted
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

V1 = Path("/sys/fs/cgroup/cpuacct")
V2 = Path("/sys/fs/cgroup")
TICKS = os.sysconf("SC_CLK_TCK")


class Account:
    """CPU and memory of what is started through command()."""

    def __init__(self, name: str) -> None:
        base = V1 if V1.is_dir() else V2
        self._group: Path | None = base / f"bench-{os.getpid()}-{name}"
        self._root = 0
        try:
            self._group.mkdir()
        except OSError:
            self._group = None

    @property
    def method(self) -> str:
        if self._group is None:
            return "/proc"
        return "cpuacct" if self._group.is_relative_to(V1) else "cpu.stat"

    def command(self, words: list[str]) -> list[str]:
        """The command that joins the group, then becomes `words`."""
        if self._group is None:
            return words
        return [
            "sh",
            "-c",
            'echo $$ > "$0" && exec "$@"',
            str(self._group / "cgroup.procs"),
            *words,
        ]

    def started(self, pid: int) -> None:
        self._root = pid

    def cpu_s(self) -> float:
        if self._group is None:
            return sum(_cpu_ticks(pid) for pid in self.pids()) / TICKS
        if self.method == "cpuacct":
            return int((self._group / "cpuacct.usage").read_text()) / 1e9
        line = (self._group / "cpu.stat").read_text().split("\n", 1)[0]
        return int(line.split()[1]) / 1e6

    def pids(self) -> list[int]:
        if self._group is not None:
            return [int(pid) for pid in (self._group / "cgroup.procs").read_text().split()]
        found, todo = [], [self._root]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    todo += [int(child) for child in (task / "children").read_text().split()]
        return found

    def pss_octets(self) -> int:
        """Proportional set size of all its processes; kernel socket memory is not in it."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        return total

    def close(self) -> None:
        """Ends what is left of the group's own processes."""
        if self._group is None:
            return
        for number in (15, 9):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 5
            while self.pids() and time.monotonic() < deadline:
                time.sleep(0.02)
        with contextlib.suppress(OSError):
            self._group.rmdir()


def _cpu_ticks(pid: int) -> int:
    """User and system time, of children that ended too."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])
