"""One worker: every object it is made of, in the order in which it is built and taken down.  Read this first.

Owns      run_worker(), Worker
Flow      supervisor forks → run_worker() → recover the spool → open the doors → serve → drain → exit
Files     everything below state_dir: spool/, history.py, control.py
Errors    what prevents a start is logged and ends the process with status 1; the supervisor tries again later
Blocking  recovery reads the whole log before the first connection is accepted
Security  runs with the privileges the supervisor left it; opens no port of its own
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

import uvloop

from gateway.accounts.build import Accounts
from gateway.accounts.model import SourceError
from gateway.agents import AgentFactory
from gateway.config_model import Config
from gateway.control import ControlServer, ask_siblings
from gateway.doors import Doors
from gateway.history import History
from gateway.load import LoadMeter
from gateway.log import Log, bridge_logging, wants_text
from gateway.log_sink import Sink
from gateway.metrics import Meter, Sample, render
from gateway.net.connection import DeadlineSweep
from gateway.net.dns import Resolver
from gateway.net.egress import Egress
from gateway.net.netlink import Netlink, QueuePoll
from gateway.net.tls import ServerOptions, TlsContexts
from gateway.notice_link import NoticeLink
from gateway.queue.operations import Operations
from gateway.queue.routing import Router
from gateway.queue.scheduler import Scheduler
from gateway.queue.timers import LoopClock
from gateway.server.session import Session, all_settled
from gateway.server.smtp import SmtpSession
from gateway.spool.errors import SpoolError
from gateway.spool.spool import Spool
from gateway.store.notices import Notices
from gateway.store.store import Store
from gateway.worker_link import KeyMaterial, Reload, Sockets, WorkerContext

logger = logging.getLogger(__name__)

DRAIN_POLL_S = 0.05

GIL_SWITCH_S = 0.0005  # the loop must not wait Python's 5 ms for a thread that prepares a segment or reads a body

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BLOCK_OCTETS = 4 << 20  # above the largest block of ours: a group of records, 1 MiB
KEPT_OCTETS = 32 << 20  # at the end of the heap; what is more goes back to the kernel
# The objects of a message live for milliseconds and die by reference count; the collector is only there for what errors
# leave behind.  With Python's own thresholds it took 7 % of the time and 20 ms pauses on a long queue.
GC_THRESHOLDS = (200_000, 50, 100)


class Worker:
    """Everything one worker process runs."""

    def __init__(
        self,
        config: Config,
        sockets: Sockets,
        *,
        index: int = 0,
        keys: KeyMaterial | None = None,
        log: Log | None = None,
        history: History | None = None,
        orphans: Iterable[int] = (),
        restarts: int = 0,
    ) -> None:
        """keys, log, history: the supervisor's; without one the worker makes its own (tests, embedding)."""
        self.config = config
        self.index = index
        self.keys = keys or KeyMaterial.read(config)
        self.history = history or open_history(config, index)
        self.log = log or open_log(config, index, self.history)
        self.meter = Meter(index)
        self.metrics = self.meter.metrics
        self.meter.add_source(self._samples)
        self._sockets = sockets
        self._orphans = tuple(orphans)
        self._restarts = restarts
        self._started_at = time.time()

    async def start(self) -> None:
        """Recover, then open the doors.  Raises OSError, SpoolError or SourceError."""
        config = self.config
        loop = asyncio.get_running_loop()
        self.log.attach(loop)
        bridge_logging(self.log)
        self.sweep = DeadlineSweep()
        dns = config.dns
        self.resolver = Resolver(
            timeout_s=dns.timeout_s,
            cache_max=dns.cache_max,
            stale_s=dns.stale_s,
            threads=dns.threads,
        )
        self.netlink = Netlink()
        self.egress = Egress(self.netlink)
        self.tls = TlsContexts(
            self.keys.default,
            self.keys.sni,
            ServerOptions(
                minimum_version=config.tls.min_version.removeprefix("TLSv"),
                client_ca_file=str(config.tls.client_ca_file or ""),
            ),
        )
        self.accounts = Accounts(
            config.accounts,
            config.auth,
            config.accounts_file,
            hostname=config.hostname,
            is_local=self._is_local,
            log=self.log,
        )
        self.meter.add_source(self.accounts.auth.samples)
        self.notice_link = NoticeLink(config.control_dir, self.index, config.worker_count)
        others = (self.notice_link.send, self.notice_link.poll) if config.worker_count > 1 else ()
        self.store = Store(config.store_dir, config.store, Notices(*others))
        self.notice_link.open(self.store.notices.receive)
        self._recover(loop)
        self.doors = Doors(self)
        await self.doors.open(self._sockets)
        await self.egress.start()
        self.load = LoadMeter(self)
        self.queue_poll = QueuePoll(self.netlink, self.doors.sockets)
        if any(listen.service == "http" for listen in config.listen):
            self.queue_poll.start()  # only /metrics shows it, and pyroute2 costs 14 MB
        self.control = ControlServer(config.control_dir, self.index, self.log)
        self._register_control()
        config.control_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        await self.control.start()
        self.sweep.start()
        self.load.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self.log.event("worker_ready", restarts=self._restarts, messages=len(self.scheduler.tasks))

    def _recover(self, loop: asyncio.AbstractEventLoop) -> None:
        """The spool's messages come back to the queue before anybody can add to it."""
        config = self.config
        self.spool = Spool(
            config.spool_dir,
            worker=self.index,
            settings=config.spool,
            on_health=self._on_spool_health,
        )
        recovery = self.spool.recover()
        messages = list(recovery.messages)
        for damage in recovery.damaged:
            self.log.error("spool_damaged", detail=str(damage))
        for orphan in self._orphans:
            adopted = self.spool.adopt(config.spool_dir / str(orphan))
            messages += adopted.messages
            for damage in adopted.damaged:
                self.log.error("spool_damaged", detail=str(damage))
        self.spool.attach(loop)
        self.agents = AgentFactory(
            config,
            sweep=self.sweep,
            resolver=self.resolver,
            contexts=self.tls,
            egress=self.egress,
            accounts=self.accounts,
            store=self.store,
        )
        self.scheduler = Scheduler(
            hostname=config.hostname,
            config=config.queue,
            router=Router(config.route, config.delivery, config.hostname),
            spool=self.spool,
            make_agent=self.agents.make,
            log=self.log,
            metrics=self.metrics,
            clock=LoopClock(loop),
            workers=config.worker_count,
        )
        if messages:
            self.log.event("recovered", messages=len(messages))
        self.scheduler.recover(messages)

    def _is_local(self, domain: str) -> bool:
        return self.scheduler.router.is_local(domain)

    # -- changes while it runs ---------------------------------------------------------------------------------------

    def reload(self, reload: Reload) -> str | None:
        """New configuration, certificates and sockets; sessions that stand go on as they began.

        Returns why it failed; the old configuration is then still in use.
        """
        error = self.tls.reload(reload.keys.default, reload.keys.sni)
        if error is not None:
            return str(error)
        try:
            self.accounts.reload(
                reload.config.accounts, reload.config.auth, is_local=self._is_local
            )
        except SourceError as unusable:
            return str(unusable)
        self.config = reload.config
        self.keys = reload.keys
        self.agents.reload(reload.config)
        self.scheduler.reload(
            reload.config.queue,
            Router(reload.config.route, reload.config.delivery, reload.config.hostname),
        )
        self.doors.reload(reload.sockets)
        self.log.event("reloaded")
        return None

    async def stop(self) -> None:
        """Close the doors, let sessions and deliveries finish within drain_s, write everything, go."""
        end = time.monotonic() + self.config.drain_s
        self.log.event("draining", sessions=self.metrics.sessions_open)
        self.doors.close()
        while True:
            sessions = self._sessions()
            busy = sum(1 for session in sessions if not session.drain())
            if not busy or time.monotonic() >= end:
                break
            await asyncio.sleep(DRAIN_POLL_S)
        await self.scheduler.close(max(0.0, end - time.monotonic()))
        await self.agents.close()
        await self.accounts.close()
        await self.doors.close_http()
        await self.control.close()
        for connection in list(self.sweep.connections):
            connection.close()
        await asyncio.sleep(0)  # what was closed may still write its last reply
        await all_settled()
        await self.store.close()
        self.notice_link.close()
        self.sweep.stop()
        self.queue_poll.close()
        self.egress.close()
        self.netlink.close()
        self.resolver.close()
        self.load.stop()
        self.spool.close()
        self.log.event("worker_stopped")
        self.log.close()
        self.history.close()

    def _sessions(self) -> list[SmtpSession | Session]:
        return [
            c.handler
            for c in self.sweep.connections
            if isinstance(c.handler, SmtpSession | Session)
        ]

    # -- what it tells of itself -------------------------------------------------------------------------------------

    def unhealthy(self) -> list[str]:
        """Why this worker should get no mail now; empty when all is well."""
        reasons = []
        if self.spool.health is not None:
            reasons.append(f"spool: {self.spool.health}")
        if self.doors.gate.draining:
            reasons.append("shutting down")
        return reasons

    async def metrics_text(self) -> bytes:
        """/metrics for the whole gateway, whichever worker was asked."""
        siblings = await ask_siblings(self.config.control_dir, "metrics", skip=self.index)
        return render([self._snapshot(), *siblings])

    def _snapshot(self) -> dict[str, Any]:
        """What all workers exchange; the gauges that others keep are read now."""
        self.metrics.spool_syncs_total = self.spool.log.writes
        self.metrics.connections_open = sum(
            hop.agent.connections
            for lane in self.scheduler.lanes
            for hop in lane.hops
            if hop.agent is not None
        )
        self.metrics.log_lost_lines_total = self.log.lost_lines
        return self.meter.snapshot()

    def _samples(self) -> list[Sample]:
        spool = self.spool
        samples = [
            Sample("gateway_queue_messages", "gauge", "Messages in the spool", {}, spool.count),
            Sample("gateway_spool_free_octets", "gauge", "Room for mail", {}, spool.free_octets),
            Sample(
                "gateway_spool_healthy",
                "gauge",
                "1: mail is taken",
                {},
                float(spool.health is None),
            ),
            Sample("gateway_worker_restarts_total", "counter", "Restarts", {}, self._restarts),
            Sample(
                "gateway_trace_lost_lines_total",
                "counter",
                "Lines that `gateway trace` lacks",
                {},
                self.history.lost_lines,
            ),
            Sample(
                "gateway_memory_octets",
                "gauge",
                "Mail data in memory",
                {},
                self.doors.memory.octets,
            ),
            *self.load.samples(),
        ]
        for address, queue in self.doors.accept_queues(self.queue_poll.queues):
            labels = {"listener": address}
            samples.append(
                Sample(
                    "gateway_accept_queue", "gauge", "Connections that wait", labels, queue.depth
                )
            )
            if queue.drops is not None:
                samples.append(
                    Sample("gateway_accept_drops_total", "counter", "Dropped", labels, queue.drops)
                )
        lanes: dict[str, list[int]] = {}  # several routes may have the same next hops
        for lane in self.scheduler.lanes:
            row = lanes.setdefault(lane.name, [0, 0, 1])
            row[0] += lane.ready
            row[1] += lane.running
            row[2] &= not lane.is_down
        for name, (ready, running, up) in lanes.items():
            labels = {"next_hop": name}
            samples += [
                Sample("gateway_lane_ready", "gauge", "Waiting to be sent", labels, ready),
                Sample("gateway_lane_running", "gauge", "Being sent", labels, running),
                Sample("gateway_lane_up", "gauge", "0: cannot be connected to", labels, up),
            ]
        for pair in self.tls.pairs():
            labels = {"file": pair.certificate_file}
            expires = pair.expires_at / 1e9
            samples.append(
                Sample("gateway_certificate_expires_seconds", "gauge", "Unix time", labels, expires)
            )
        return samples

    def _register_control(self) -> None:
        register = self.control.register
        register("metrics", self._snapshot)
        register("top", self._top)
        register("health", self.unhealthy)
        operations = Operations(self.scheduler)
        for name in (
            "list",
            "show",
            "hold",
            "release",
            "retry",
            "expire",
            "delete",
            "reroute",
            "stats",
            "ages",
        ):
            register(f"queue.{name}", getattr(operations, name))

    def _top(self) -> dict[str, object]:
        """One sample of everything that `gateway top` shows."""
        return {
            "at": time.time(),
            "started_at": self._started_at,
            "restarts": self._restarts,
            "unhealthy": self.unhealthy(),
            "metrics": self._snapshot(),
            "loop_lag_s": self.load.lag_s,
            "queue": {"messages": self.spool.count},
        }

    def _on_spool_health(self, reason: str | None) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.on_spool_health(reason)


def open_history(config: Config, index: int) -> History:
    config.history_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    trace = config.trace
    return History(
        config.history_dir,
        index,
        file_octets=trace.file_octets,
        keep_s=trace.keep_s,
        keep_octets=trace.keep_octets,
    )


def open_log(config: Config, index: int, history: History) -> Log:
    """A log of the worker's own, for a worker without a supervisor."""
    fd = sys.stdout.fileno()
    if config.log.file is not None:
        fd = os.open(config.log.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    return Log(
        Sink(fd, backlog_octets=config.log.backlog_octets, own=config.log.file is not None),
        worker=index,
        level=config.log.level,
        text=wants_text(config.log.format, fd),
        flush_s=config.log.flush_s,
        history=history.write if config.trace.enabled else None,
    )


def keep_freed_memory() -> None:
    """Have malloc keep what large blocks leave behind, for the next ones.

    glibc unmaps or trims freed blocks of 128 KiB and more; mail of 100 KiB spent 17 % of its time on page faults.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has its own ways
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_OCTETS)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_OCTETS)


def run_worker(context: WorkerContext) -> int:
    """The whole life of a worker process; its exit status."""
    keep_freed_memory()
    sys.setswitchinterval(GIL_SWITCH_S)
    history = open_history(context.config, context.index)
    log = context.open_log(history.write if context.config.trace.enabled else None)
    try:
        uvloop.run(_serve(context, log, history))
    except (OSError, SpoolError, SourceError) as error:
        log.error("worker_failed", error=str(error))
        log.close()
        return 1
    return 0


async def _serve(context: WorkerContext, log: Log, history: History) -> None:
    worker = Worker(
        context.config,
        context.sockets,
        index=context.index,
        keys=context.keys,
        log=log,
        history=history,
        orphans=context.orphans,
        restarts=context.restarts,
    )
    stop = asyncio.Event()
    context.link.attach(
        asyncio.get_running_loop(),
        on_reload=worker.reload,
        on_stop=stop.set,
        on_reopen=log.reopen,
    )
    await worker.start()
    context.link.report("ready")
    await stop.wait()
    await worker.stop()
