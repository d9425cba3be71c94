"""The sink: takes SMTP and LMTP mail at speed, counts it, and fails in the ways it is told to.

    Owns      Sink (a listening server), keyed by SinkPlan; Fault and Receipt are given on from here
    Flow      SinkSession → receive() → ledger, on_message; the plan's clock → pause(), go_down()
    Limits    a run ends after plan.messages, plan.duration_s or finished.set()
    Errors    ValueError for a plan that cannot be meant; OSError from stop() when the ledger's disk failed
    Standards RFC 5321, RFC 2033, RFC 2920, RFC 3030, RFC 3207, RFC 4954
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from smtp_blaster.ledger_file import Ledger
from smtp_blaster.sink_auth import Accounts
from smtp_blaster.sink_content import EOD_RULES
from smtp_blaster.sink_faults import Fault, Faults
from smtp_blaster.sink_plan import Receipt, SinkPlan, SinkResult
from smtp_blaster.sink_session import HOSTNAME, SinkSession
from smtp_blaster.target import parse

__all__ = ["EOD_RULES", "EXTENSIONS", "Fault", "Receipt", "Sink", "SinkPlan", "SinkResult"]

EXTENSIONS = (
    "PIPELINING",
    "8BITMIME",
    "SMTPUTF8",
    "CHUNKING",
    "BINARYMIME",
    "ENHANCEDSTATUSCODES",
    "DSN",
)


class Sink:
    """A listening sink.  on_message gets each Receipt (contents are only put together when somebody wants them)."""

    def __init__(self, plan: SinkPlan, on_message: Callable[[Receipt], None] | None = None) -> None:
        if plan.eod not in EOD_RULES:
            raise ValueError(f"eod {plan.eod!r}: expected one of {', '.join(EOD_RULES)}")
        if plan.tls not in ("starttls", "implicit"):
            raise ValueError(f"tls {plan.tls!r}: expected starttls or implicit")
        if plan.tls == "implicit" and not plan.certificate:
            raise ValueError("implicit TLS needs a certificate")
        if plan.require_auth and not plan.auth:
            raise ValueError("require_auth: say who may come in (auth)")
        self.plan = plan
        self.on_message = on_message
        self.faults = Faults(plan.faults)
        self.has_faults = bool(plan.faults)
        self.accounts = Accounts(plan.auth)
        self.identifies = bool(plan.ledger) or self.faults.counts_content
        self.keeps_content = on_message is not None or self.identifies
        self.messages = self.recipients = self.octets = 0
        self.connections = self.connections_refused = 0
        self.commands: Counter[str] = Counter()
        self.sessions: set[SinkSession] = set()
        self.finished = asyncio.Event()
        self.port = 0
        self.paused = False
        self.tls: ssl.SSLContext | None = None
        if plan.certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(plan.certificate, plan.key or None)
        self.offers_starttls = self.tls is not None and plan.tls == "starttls"
        offered = [word for word in EXTENSIONS if word not in plan.without]
        if "SIZE" not in plan.without:
            offered.append(f"SIZE {plan.max_message_octets}")
        if self.accounts.mechanisms:
            offered.append(f"AUTH {' '.join(self.accounts.mechanisms)}")
        self._offered = [HOSTNAME, *offered]
        self.ledger: Ledger | None = None
        if plan.ledger:
            self.ledger = Ledger(Path(plan.ledger), append=plan.append, group=plan.ledger_group)
        self._error: OSError | None = None  # of the ledger
        self._socket: socket.socket | None = None  # keeps the port while nobody accepts
        self._server: asyncio.Server | None = None
        self._beside: set[asyncio.Task[None]] = set()
        self._until = 0.0  # the end of a pause or of being down (monotonic)
        self._started = 0.0

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listening at self.port afterwards."""
        self._listen()
        await self._accept()
        self._started = time.monotonic()
        self.faults.start()
        for number, fault in enumerate(self.faults.by_clock):
            self.keep(self._by_clock(fault, random.Random(f"{self.plan.seed}/clock/{number}")))

    async def run(self) -> SinkResult:
        """Start, take mail until the plan's end or finished.set(), stop."""
        await self.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.plan.duration_s or None):
                await self.finished.wait()
        return await self.stop()

    async def stop(self) -> SinkResult:
        """Raises OSError when the ledger could not be written."""
        for task in self._beside:
            task.cancel()
        self.paused = False
        self._close()
        for session in list(self.sessions):
            session.transport.abort()
        await asyncio.sleep(0)  # the sessions hear of their end
        ledger, self.ledger = self.ledger, None  # some may hear of it later
        if ledger is not None and self._error is None:
            ledger.close()
        if self._error is not None:
            raise self._error
        return self.result()

    def result(self) -> SinkResult:
        """So far."""
        return SinkResult(
            messages=self.messages,
            recipients=self.recipients,
            octets=self.octets,
            connections=self.connections,
            connections_refused=self.connections_refused,
            commands=dict(self.commands),
            faults=dict(self.faults.counts),
            seconds=time.monotonic() - self._started,
            seed=self.plan.seed,
        )

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside the sessions; asyncio itself holds tasks only weakly."""
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    # -- for the sessions --------------------------------------------------------------------------

    def enter(self, session: SinkSession) -> int:
        """The number of the connection, from 1; 0 when there are too many."""
        if self.plan.max_connections and len(self.sessions) >= self.plan.max_connections:
            self.connections_refused += 1
            return 0
        self.connections += 1
        self.sessions.add(session)
        return self.connections

    def receive(self, rcpts: list[str], octets: int, message_id: str, digest: str) -> None:
        """One message was taken for these."""
        self.messages += 1
        self.recipients += len(rcpts)
        self.octets += octets
        if self.ledger is not None:
            self.ledger.add(message_id, digest, rcpts)
        if self.messages == self.plan.messages:
            self.finished.set()

    def keep_ledger(self) -> bool:
        """What was taken so far outlives a kill; False when the disk does not take it."""
        if self.ledger is not None:
            try:
                self.ledger.flush()
            except OSError as error:
                self._error = error
                self.finished.set()
                return False
        return True

    def hello_reply(self, tls: bool) -> bytes:
        lines = self._offered + (["STARTTLS"] if self.offers_starttls and not tls else [])
        return "".join(
            f"250{' ' if line is lines[-1] else '-'}{line}\r\n" for line in lines
        ).encode()

    # -- the faults of the whole sink --------------------------------------------------------------

    def pause(self, seconds: float) -> None:
        """Neither answer nor accept for so long; the kernel still takes connections into its queue."""
        until = time.monotonic() + seconds
        if self._until < until:
            self._until = until
            if not self.paused:
                self.paused = True
                self.keep(self._pause())

    def go_down(self, seconds: float) -> None:
        """Reset all connections and close the port, for so long."""
        self._until = max(self._until, time.monotonic() + seconds)
        for session in list(self.sessions):
            session.reset()
        if self._socket is not None:
            self._close()
            self.keep(self._come_back())

    async def _pause(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._wait()
        self.paused = False
        if self._socket is not None:
            await self._accept()
        for session in list(self.sessions):
            session.resume()

    async def _come_back(self) -> None:
        await self._wait()
        self._listen()
        if not self.paused:
            await self._accept()

    async def _wait(self) -> None:
        while (left_s := self._until - time.monotonic()) > 0:
            await asyncio.sleep(left_s)

    async def _by_clock(self, fault: Fault, chance: random.Random) -> None:
        at_s = fault.from_s or fault.every_s
        while not fault.until_s or at_s < fault.until_s:
            await asyncio.sleep(self._started + at_s - time.monotonic())
            if fault.probability >= 1.0 or chance.random() < fault.probability:
                self.faults.counts[str(fault)] += 1
                if fault.does == "pause":
                    self.pause(fault.draw_s(chance))
                elif fault.does == "down":
                    self.go_down(fault.draw_s(chance))
                else:
                    for session in list(self.sessions):
                        session.reset() if fault.does == "reset" else session.transport.abort()
            if not fault.every_s:
                return
            at_s += fault.every_s

    # -- the port ----------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Bound and listening; nobody accepts yet."""
        host, port = parse(self.plan.address)
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, self.port or port, type=socket.SOCK_STREAM
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.plan.shared_port:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self.plan.receive_buffer_octets:  # accepted sockets inherit it: their first window is small
                size = self.plan.receive_buffer_octets
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            listening.bind(address)
            listening.listen(self.plan.backlog)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self.port = listening.getsockname()[1]

    async def _accept(self) -> None:
        assert self._socket is not None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: SinkSession(self),
            sock=self._socket.dup(),  # a server closes its socket, and a pause must not close the port
            ssl=self.tls if self.plan.tls == "implicit" else None,
            backlog=self.plan.backlog,
        )

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._socket is not None:
            with contextlib.suppress(OSError):  # no longer listening, also where the server has a copy
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
