"""The world around a gateway, and how it goes wrong: next hops that are sinks with faults, time that passes at once.

Owns      World (makes sinks, next hops and gateways, takes them down), PassingClock
Limits    every wait ends after WAIT_S
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

from e2e.rig import WAIT_S, Gateway, Lab, wait_until
from interop_peers import RunningSink
from smtp_blaster.sink import SinkPlan
from smtp_blaster.sink_faults import Fault

from gateway.queue.timers import LoopClock

CONTENT = b"From: alice@sender.test\r\nSubject: faults\r\n\r\nbody\r\n"
BOB = "bob@rcpt.test"
DAY_S = 86_400.0
TIMEOUTS = """[delivery]
greeting_s = {0}
helo_s = {0}
tls_handshake_s = {0}
mail_s = {0}
rcpt_s = {0}
data_init_s = {0}
data_done_s = {0}
"""

__all__ = ["BOB", "CONTENT", "DAY_S", "TIMEOUTS", "WAIT_S", "Gateway", "PassingClock", "World", "wait_until"]


class PassingClock(LoopClock):
    """The clock of a worker, for which days pass in a moment: both its times are moved on together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.ahead_s = 0.0
        self.now = lambda: time.time_ns() + int(self.ahead_s * 1e9)
        self.monotonic = lambda: time.monotonic() + self.ahead_s


class World(Lab):
    """e2e.rig.Lab, with sinks that have faults."""

    def sink(self, *faults: str, **plan: Any) -> RunningSink:
        """A next hop of smtp-blaster, with faults as its --fault has them."""
        plan = SinkPlan(faults=tuple(map(Fault.parse, faults)), **plan)
        running = RunningSink(plan)
        self._stack.callback(running.stop)
        return running

    def gateway_to(self, next_hop: str | RunningSink, *more: str, queue: str = "", **settings: Any) -> Gateway:
        """Mail for rcpt.test goes there; `queue`: lines of [queue], `more`: further sections."""
        from e2e.rig import route

        url = next_hop if isinstance(next_hop, str) else f"smtp://127.0.0.1:{next_hop.port}"
        queue = queue or "retry_s = [1.0]\nconnect_retry_s = [0.2]"
        return self.gateway(route(url, "rcpt.test", **settings), extra=f"[queue]\n{queue}\n" + "\n".join(more))

    def blackhole(self) -> int:
        """A port where SYNs get no answer: somebody listens, does not accept, and its queue is full."""
        listener = socket.socket()
        self._stack.callback(listener.close)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = int(listener.getsockname()[1])
        for _ in range(2):  # the kernel queues one more than the backlog
            filler = socket.socket()
            self._stack.callback(filler.close)
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        return port


def pass_s(gateway: Gateway, seconds: float) -> None:
    """Time passes for the gateway's queue; what became due is under way afterwards."""

    def pass_on() -> None:
        scheduler = gateway.worker.scheduler
        scheduler.clock.ahead_s += seconds  # type: ignore[attr-defined]
        scheduler.timers._arm()  # what waits for the real clock is due by now

    gateway.call(pass_on)


def next_due_s(gateway: Gateway) -> float:
    """How far away the next attempt of a message is, or of a lane to connect."""

    def look() -> float:
        scheduler = gateway.worker.scheduler
        waits = [task.timer.at for task in scheduler.all_tasks() if task.timer is not None]
        waits += [hop.down_until for lane in scheduler.lanes for hop in lane.hops if hop.down_until]
        return float(min(waits) - scheduler.clock.monotonic()) if waits else 0.0

    return max(0.0, float(gateway.call(look)))


def attempts(gateway: Gateway, queue_id: str) -> list[float]:
    """When each attempt of the message was deferred, seconds after it came."""
    return [float(line["delay_s"]) for line in gateway.events("deferred", queue_id)]


def shown(gateway: Gateway, queue_id: str) -> dict[str, Any]:
    """The first recipient of a message, as `gateway queue show` has it."""
    message: dict[str, Any] = gateway.call(gateway.queue.show, queue_id)
    recipient: dict[str, Any] = message["recipients"][0]
    return recipient


def metric(gateway: Gateway, name: str, **labels: str) -> float:
    """One sample of /metrics; 0.0 when there is none."""
    wanted = name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else "")
    for sample in gateway.call(gateway.worker._samples):
        if sample.name == name and all(sample.labels.get(k) == v for k, v in labels.items()):
            return float(sample.value)
    raise AssertionError(f"there is no {wanted}")
