"""Does the event loop of a worker still turn?

Owns      Heartbeats (the supervisor's judgement), interval_s() (how often both sides act)
Flow      worker: WorkerLink reports "alive" every interval_s → supervisor: beat(); tick() every interval_s → who hangs
Limits    limits.heartbeat_s without a beat, TICKS looks in a row
Security  /proc/<pid>/stat of our own children is all that is read

Looks are counted, not seconds: a look that comes late says that we ourselves did not run (a stopped or suspended
machine, no CPU), and does not count.  Neither does one at a worker that somebody stopped (SIGSTOP, a debugger) or that
waits for a disk (state D): killing it would not help, nor be heard.  All time is monotonic: setting the clock changes
nothing.
"""

from __future__ import annotations

import time
from pathlib import Path

TICKS = 6
LATE = 2.0  # intervals after which a look is late
EXCUSED = frozenset("TtD")  # proc(5): stopped, traced, waiting for a disk


def interval_s(heartbeat_s: float) -> float:
    """Between two beats, and between two looks at them; 0.0 = none."""
    return heartbeat_s / TICKS


def state_of(pid: int) -> str:
    """The letter of proc(5) for the main thread, which runs the loop; "" when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


class Heartbeats:
    """What the supervisor knows of its workers' loops."""

    def __init__(self) -> None:
        self.next_at = 0.0  # time.monotonic() of the next look; 0.0 = nobody is to be looked at
        self._interval_s = 0.0
        self._missed: dict[int, int] = {}  # looks without a beat in a row, by process id

    def beat(self, pid: int) -> None:
        """The loop of this process turns; from the first beat on it is looked at."""
        self._missed[pid] = -1  # up to the next look

    def forget(self, pid: int) -> None:
        """The process is dead, or given up."""
        self._missed.pop(pid, None)

    def tick(self, heartbeat_s: float) -> list[int]:
        """Look, if it is time to: processes without a beat for heartbeat_s, which are looked at no more."""
        now = time.monotonic()
        if interval_s(heartbeat_s) != self._interval_s or not self._missed:
            self._interval_s = interval_s(heartbeat_s)
            self._missed = dict.fromkeys(self._missed, 0)
            self.next_at = now + self._interval_s if self._missed and self._interval_s else 0.0
            return []
        if not self.next_at:
            self.next_at = now + self._interval_s
        if now < self.next_at:
            return []
        late = now - self.next_at > (LATE - 1.0) * self._interval_s
        self.next_at = now + self._interval_s
        for pid, missed in self._missed.items():
            if missed < 0 or not (late or state_of(pid) in EXCUSED):
                self._missed[pid] = missed + 1
        hanging = [pid for pid, missed in self._missed.items() if missed >= TICKS]
        for pid in hanging:
            self.forget(pid)
        return hanging
