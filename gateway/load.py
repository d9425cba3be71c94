"""How loaded a worker is, looked at ten times a second while mail comes in, and what it says when it refuses some.

Owns      LoadMeter
Flow      timer → a few turns of the loop are timed → Load → Overload.update(); waits of the routes → Backlog.update()
Files     /proc/thread-self/schedstat, kept open; without it (CONFIG_SCHED_INFO) the thread's CPU time serves
Limits    one look every INTERVAL_S costs some 50 us and, on an idle loop, TURNS empty turns: 2.5 ms of CPU a second;
          hence one every QUIET_S where nothing happens, until the next MAIL
Errors    none
Blocking  never
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from gateway.metrics import Sample
from gateway.policy.overload import BUSY, CALM, Load, Traffic
from gateway.queue.lanes import Lane

if TYPE_CHECKING:
    from gateway.app import Worker

INTERVAL_S = 0.1
QUIET_S = 5.0  # between two looks, after QUIET_LOOKS without anything to see
QUIET_LOOKS = 10
QUIET_BUSY = 0.1  # part of the time; other protocols may use it
TURNS = 4
KEEP = 0.8  # of what was counted, at each look: rates are those of the last half second
ACCEPT_LOOKS = 5  # a thousand clients at once are no overload: they are let in within the half second
TELL_S = 10.0  # how often it is said that mail is being refused


class Flow:
    """A rate over the last second or so."""

    __slots__ = ("_before", "_count", "_seconds")

    def __init__(self, total: int) -> None:
        self._before = total
        self._count = self._seconds = 0.0

    def update(self, total: int, seconds: float) -> float:
        """The rate in 1/s, or that of just now if it is higher: what was idle until now was not slow.

        total: counted since the start.
        """
        latest = (total - self._before) / seconds
        self._count = self._count * KEEP + total - self._before
        self._seconds = self._seconds * KEEP + seconds
        self._before = total
        return max(self._count / self._seconds, latest)


class LoadMeter:
    """Feeds the worker's Overload and Backlog."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.load = Load()
        self.traffic = Traffic()
        self.lag_s = 0.0  # how late the last timer ran
        self.busy = 0.0  # part of the time in which the loop ran or wanted to
        self._clock = ThreadClock()
        self._due = self._began = self._looked = 0.0
        self._turns = 0
        self._fullness = deque([0.0], ACCEPT_LOOKS)
        self._wait_is_ours = False
        self._wanted_s = 0.0
        self._writes = 0
        self._stalled_s = 0.0
        self._taken = Flow(0)
        self._refused = Flow(0)
        self._sent = Flow(0)
        self._flows: dict[Lane, Flow] = {}
        self._shedding_since = self._told = 0.0
        self._shed_before = 0
        self._quiet_looks = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._looked = time.monotonic()
        self._wanted_s = self._clock.wanted_s()
        self._again()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._clock.close()

    def samples(self) -> list[Sample]:
        """For /metrics."""
        overload, backlog = self._worker.doors.overload, self._worker.doors.backlog
        shed = {**overload.shed, ("rcpt", "route_s"): backlog.refused}
        help_ = "Connections, messages and recipients refused for too much load"
        samples = [
            Sample("gateway_shed_total", "counter", help_, {"stage": stage, "reason": reason}, count)
            for (stage, reason), count in sorted(shed.items())
        ]
        waits = "Messages of relay_from that waited for their turn under load"
        samples.append(Sample("gateway_turn_waits_total", "counter", waits, {}, overload.waits))
        for name, help_, value in (
            ("accept_limit", "Messages/s let in; 0: no limit", overload.limit if overload.limited else 0.0),
            ("loop_busy", "Part of the time in which the loop ran or wanted to", self.busy),
            ("loop_turn_seconds", "One turn of the event loop", self.load.turn_s),
            ("queue_wait_seconds", "Until what comes now is sent", self.load.queue_s),
        ):
            samples.append(Sample(f"gateway_{name}", "gauge", help_, {}, value))
        return samples

    # -- looking -----------------------------------------------------------------------------------------------------

    def _again(self) -> None:
        interval_s = INTERVAL_S
        if self._quiet_looks >= QUIET_LOOKS:
            interval_s = QUIET_S
            self._worker.doors.overload.wake_with(self._wake)
        self._due = time.monotonic() + interval_s
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._look)

    def _wake(self) -> None:
        """Mail comes in again."""
        self._quiet_looks = 0
        if self._timer is not None and not self._turns:  # else a look is going on
            self._timer.cancel()
            self._again()

    def _look(self) -> None:
        self.lag_s = max(0.0, time.monotonic() - self._due)
        self._worker.metrics.loop_lag_seconds.observe(self.lag_s)
        self._timer = None
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Called once in each turn: while something is to be called the loop does not wait for sockets."""
        now = time.monotonic()
        if not self._turns:
            self._began = now
        elif self._turns == TURNS or now - self._began >= INTERVAL_S:
            turns, self._turns = self._turns, 0
            try:
                self._judge((now - self._began) / turns, now)
            finally:
                self._again()
            return
        self._turns += 1
        asyncio.get_running_loop().call_soon(self._turn)

    def _judge(self, turn_s: float, now: float) -> None:
        doors = self._worker.doors
        seconds, self._looked = max(now - self._looked, 1e-6), now
        wanted_s = self._clock.wanted_s()
        self.busy, self._wanted_s = (wanted_s - self._wanted_s) / seconds, wanted_s
        self._fullness.append(doors.accept_fullness())
        waits = self._measure_waits(seconds)
        self.load = Load(
            accept_queue=min(self._fullness),
            memory=doors.memory.octets / doors.memory.limit_octets,
            turn_s=turn_s,
            commit_s=max(doors.commits.take(), self._stall_s(seconds)),
            queue_s=self._own_wait_s(max(waits.values(), default=0.0)),
        )
        self.traffic = self._measure_traffic(seconds)
        doors.overload.update(self.load, self.traffic)
        doors.backlog.update(waits)
        self._tell(now)
        self._quiet_looks = self._quiet_looks + 1 if self._is_quiet() else 0

    def _is_quiet(self) -> bool:
        """Nothing is received, waits or is refused."""
        doors, traffic = self._worker.doors, self.traffic
        return (
            self.busy < QUIET_BUSY
            and not doors.overload.limited
            and not doors.backlog.full
            and not doors.memory.octets
            and not self._worker.spool.log.pending_octets
            and traffic.taken + traffic.refused + traffic.sent < 1.0
            and not any(lane.ready for lane in self._worker.scheduler.lanes)
        )

    def _measure_waits(self, seconds: float) -> dict[object, float]:
        """For each route with mail waiting: the seconds until what comes now is sent."""
        waits: dict[object, float] = {}
        flows, self._flows = self._flows, {}
        for lane in self._worker.scheduler.lanes:
            if lane.is_down or lane.paused or lane.route.config.rate_per_s:
                continue
            flow = self._flows[lane] = flows.get(lane) or Flow(lane.begun)
            rate = flow.update(lane.begun, seconds)
            if lane.ready and rate:  # without a rate nothing is known: it may hang, or be about to begin
                waits[lane.route] = lane.ready / rate
        return waits

    def _measure_traffic(self, seconds: float) -> Traffic:
        metrics = self._worker.metrics
        return Traffic(
            taken=self._taken.update(metrics.accepted_fsync + metrics.accepted_memory, seconds),
            refused=self._refused.update(self._shed(), seconds),
            sent=self._sent.update(sum(lane.begun for lane in self._worker.scheduler.lanes), seconds),
            busy=self.busy,
        )

    def _own_wait_s(self, wait_s: float) -> float:
        """The part of the wait that is ours: all of it once the CPU was short while it was too long, until it is
        short again (then the disk may be what it waits for, which has to be read for what did not stay in memory)."""
        target = self._worker.doors.overload.targets.queue_s
        if wait_s < target * CALM:
            self._wait_is_ours = False
        elif self.busy >= BUSY and wait_s > target:
            self._wait_is_ours = True
        return wait_s if self._wait_is_ours or self.busy >= BUSY else 0.0

    def _stall_s(self, seconds: float) -> float:
        """Since when the disk has had something to write and has finished nothing."""
        log = self._worker.spool.log
        writes, self._writes = self._writes, log.writes
        stalls = log.pending_octets and writes == log.writes
        self._stalled_s = self._stalled_s + seconds if stalls else 0.0
        return self._stalled_s

    # -- telling -----------------------------------------------------------------------------------------------------

    def _tell(self, now: float) -> None:
        """When we begin to refuse mail, every TELL_S while we do, and when we stop: never a line for each refusal."""
        overload, backlog, log = self._worker.doors.overload, self._worker.doors.backlog, self._worker.log
        if overload.limited or backlog.full:
            if not self._shedding_since:
                self._shedding_since, self._shed_before = now, self._shed()
            elif now - self._told < TELL_S:
                return
            self._told = now
            log.warning(
                "shedding",
                reason=overload.reason or "route_s",
                limit=round(overload.limit, 1) if overload.limited else None,
                routes=len(backlog.full),
                refused=self._shed() - self._shed_before,
                busy=round(self.busy, 2),
                taken_per_s=round(self.traffic.taken),
                sent_per_s=round(self.traffic.sent),
                **{name: round(value, 4) for name, value in self.load._asdict().items()},
            )
        elif self._shedding_since:
            seconds, self._shedding_since = now - self._shedding_since, 0.0
            log.event("shedding_over", refused=self._shed() - self._shed_before, duration_s=round(seconds, 1))

    def _shed(self) -> int:
        return sum(self._worker.doors.overload.shed.values()) + self._worker.doors.backlog.refused


class ThreadClock:
    """Time that this thread ran or waited for a CPU.  One read of a file, 1 us."""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def wanted_s(self) -> float:
        if self._fd < 0:
            return time.thread_time()
        ran, waited, _ = os.pread(self._fd, 100, 0).split()
        return (int(ran) + int(waited)) / 1e9

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
