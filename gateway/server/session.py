"""What every session that reads mail has in common: POP3, POP2 and IMAP.

Owns      Machine (what such a protocol's state machine offers) and Session
Flow      receive() → machine.next_event() → on_event(); responses leave in one write a batch.  A decision that waits
          (a login, the disk, a TLS handshake) calls wait(), and resume() when it is made
Limits    unread input while waiting, output that the client does not read (flow control), a deadline by state
Errors    an exception in a handler is logged with its traceback; the session ends with the protocol's own word for
          "our fault, try again"
Blocking  never
Security  a session that is over the gate's limits is told so and closed; what was said before TLS is forgotten
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Coroutine, Generator
from typing import Any, Protocol

import msgspec

from gateway.config_model import LimitsConfig
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.net.connection import Connection
from gateway.net.tls import TlsContexts
from gateway.policy.gate import Gate
from gateway.server.service import peer_of, tls_text

logger = logging.getLogger(__name__)

UNREAD_OCTETS_MAX = 65_536  # input kept while a decision waits; reading pauses above it
FLUSH_OCTETS = 262_144  # output collected before it is written: what the kernel takes at once
JOIN_OCTETS = 16_384  # copying so much costs less than a list of buffers does on its way to the kernel
_EACH_PROTOCOL = "each protocol has its own"
LINGER_S = 10.0  # for a peer that does not read our last line


class Machine(Protocol):
    """The protocol's side of a session."""

    closing: bool
    errors: int

    @property
    def queued_octets(self) -> int: ...
    @property
    def unread_octets(self) -> int: ...
    @property
    def authenticated(self) -> bool: ...
    @property
    def listing(self) -> bool: ...
    def receive_data(self, data: bytes) -> None: ...
    def next_event(self) -> tuple[int, object, object] | None: ...
    def data_to_send(self) -> list[bytes | memoryview]: ...
    def stop(self, last: bytes = b"") -> None: ...
    def tls_started(self) -> None: ...


class Service(msgspec.Struct, kw_only=True):
    """What all sessions of one listener share; a reload replaces it, sessions that stand keep theirs."""

    name: str  # "pop3", "imap" …: as in the configuration, the log and the metrics
    hostname: str
    limits: LimitsConfig
    gate: Gate
    log: Log
    metrics: Metrics
    session_ids: Any  # Callable[[], str]
    tls: TlsContexts | None


class Session:
    """Drives one Machine over one Connection; a protocol adds what its events mean and its last words."""

    __slots__ = (
        "_connection",
        "_counted",
        "_pumping",
        "_reason",
        "_service",
        "_started",
        "_tasks",
        "_tls_text",
        "_until_read",
        "_waiting",
        "_writable",
        "account_name",
        "client",
        "client_ip",
        "machine",
        "session_id",
    )

    machine: Any

    def __init__(self, service: Service, client: str = "", client_ip: str = "") -> None:
        """client, client_ip: from a PROXY header; else taken from the socket."""
        self._service = service
        self.client = client
        self.client_ip = client_ip
        self.session_id = ""
        self.account_name = ""  # whose mail is read, "" before the login
        self._connection: Connection = None  # type: ignore[assignment]  # set in on_connected()
        self._counted = False
        self._pumping = False
        self._waiting = False
        self._writable = True
        self._reason = "quit"
        self._tls_text = ""
        self._until_read: asyncio.Event | None = None  # write_out() waits for the client
        self._started = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what a protocol fills in (no ABC: a compiled class has no metaclass) ------------------------------------------

    def open(self, *, tls: bool, refusal: str) -> None:
        """Make the machine and greet; refusal: why the session ends at once, "" when it does not."""
        raise AssertionError(_EACH_PROTOCOL)

    def on_event(self, kind: int, a: Any, b: Any) -> None:
        """Answer one event of the machine, now or, after wait(), later."""
        raise AssertionError(_EACH_PROTOCOL)

    def last_words(self, reason: str) -> bytes:
        """The line that says why we close: "timeout", "shutdown", "error"."""
        raise AssertionError(_EACH_PROTOCOL)

    def idle_s(self) -> float:
        """How long the client may say nothing in this state; 0: for ever."""
        raise AssertionError(_EACH_PROTOCOL)

    def closed(self) -> None:
        """Give back what the session holds: the maildrop's lock, open files."""
        raise AssertionError(_EACH_PROTOCOL)

    def tls_started(self) -> None:
        """The upgrade is done: what was said before is forgotten."""
        self.machine.tls_started()

    # -- what the connection calls -----------------------------------------------------------------------------------

    def on_connected(self, connection: Connection) -> None:
        service = self._service
        self._connection = connection
        self._started = time.monotonic()
        self.session_id = service.session_ids()
        if not self.client:
            self.client, self.client_ip = peer_of(connection)
        tls = connection.tls is not None
        if tls:
            self._tls_text = tls_text(connection)
            service.metrics.tls_handshakes_total += 1
        service.metrics.sessions_total += 1
        service.metrics.sessions_open += 1
        refusal = service.gate.enter(self.client_ip, unlimited=False)
        if refusal is None:
            self._counted = True
        else:
            service.metrics.sessions_refused_total += 1
            self._reason = refusal.text
        self.open(tls=tls, refusal=refusal.text if refusal is not None else "")
        self.flush()

    def receive(self, data: bytes) -> None:
        machine = self.machine
        if machine.closing:
            return
        machine.receive_data(data)
        if not self._waiting:
            self.pump()
        elif machine.unread_octets > UNREAD_OCTETS_MAX:
            self._connection.pause_reading()

    def receive_eof(self) -> None:
        if self._reason == "quit" and not self.machine.closing:
            self._reason = "lost"

    def on_closed(self, error: Exception | None) -> None:
        service = self._service
        for task in self._tasks:
            task.cancel()
        if self._counted:
            self._counted = False
            service.gate.leave(self.client_ip)
        service.metrics.sessions_open -= 1
        service.metrics.command_errors_total += self.machine.errors
        self.closed()
        service.log.event(
            "disconnected",
            session=self.session_id,
            service=service.name,
            client=self.client,
            account=self.account_name,
            reason=str(error) if error else self._reason,
            errors=self.machine.errors,
            duration_s=round(time.monotonic() - self._started, 3),
            tls=self._tls_text,
        )

    def on_deadline(self) -> None:
        if self.machine.closing or not self._writable:
            self._connection.abort()
            return
        self._service.metrics.timeouts_total += 1
        self.end("timeout")

    def on_write_ready(self, ready: bool) -> None:
        # A client that does not read its responses gets no more of them, and is not read either.
        self._writable = ready
        if ready:
            self._connection.deadline = 0.0
            if self._until_read is not None:
                self._until_read.set()
                self._until_read = None
            if not self._waiting:
                self.pump()
        else:
            self._connection.pause_reading()
            self._connection.set_deadline(self._service.limits.write_s)

    def drain(self) -> bool:
        """The worker is stopping: True when the session is told to go."""
        if self._waiting:
            return False
        self.end("shutdown")
        return True

    # -- the pump ----------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Work through what the client sent, as far as it waits for nothing."""
        machine = self.machine
        self._pumping = True
        try:
            while not self._waiting and self._writable and not machine.closing:
                event = machine.next_event()
                if event is not None:
                    kind, a, b = event
                    self.on_event(kind, a, b)
                    if machine.queued_octets > FLUSH_OCTETS:
                        self._write()
                elif machine.listing:
                    self._write()
                else:
                    break
        except Exception:
            logger.exception("session %s: unexpected error", self.session_id)
            self._waiting = False
            self._reason = "internal error"
            machine.stop(self.last_words("error"))
        self._pumping = False
        self.flush()

    def wait(self) -> None:
        """A decision is being made elsewhere: no event until resume()."""
        self._waiting = True

    def resume(self) -> None:
        """The event that waited has its answer."""
        self._waiting = False
        if not self._pumping and not self._connection.closed:
            self.pump()

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work, which answers the event that waits; then the session goes on.  It is cancelled with the session."""
        self.wait()
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._worked)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """The same, begun at once: work that need not wait at all takes no task and no turn of the loop."""
        self.wait()
        try:
            first = work.send(None)
        except StopIteration:
            if not self._tasks:
                self.resume()
        else:
            self.later(_Begun(work, first))

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._connection.closed or task.cancelled():
            return
        error = task.exception()
        if error is not None:
            logger.error("session %s: unexpected error", self.session_id, exc_info=error)
            self._reason = "internal error"
            self.machine.stop(self.last_words("error"))
        if not self._tasks:
            self.resume()

    def flush(self) -> None:
        """Send what was collected, set the next deadline, close when it is time."""
        connection = self._connection
        wrote = self._write()
        if self.machine.closing:
            connection.close()
            connection.set_deadline(LINGER_S)
        elif not self._writable:
            pass  # on_write_ready() has set the deadline for a client that does not read
        elif self._waiting:
            connection.deadline = 0.0
        else:
            if wrote or not connection.deadline:  # half a command is no progress
                connection.set_deadline(self.idle_s())
            if not connection.reading:
                connection.resume_reading()

    def _write(self) -> bool:
        """True when there was anything to send."""
        machine = self.machine
        is_small = machine.queued_octets <= JOIN_OCTETS and not machine.listing
        out = machine.data_to_send()
        if is_small and out:
            self._connection.write(b"".join(out))
        elif out:
            self._connection.writelines(out)
        return bool(out)

    async def write_out(self) -> None:
        """Send what was collected; goes on when the client has taken most of it.  For later() only."""
        self._write()
        if not self._writable and not self._connection.closed:
            if self._until_read is None:
                self._until_read = asyncio.Event()
            await self._until_read.wait()

    def end(self, reason: str) -> None:
        """Say why, and close."""
        self._reason = reason
        self.machine.stop(self.last_words(reason))
        self.flush()

    # -- TLS ---------------------------------------------------------------------------------------------------------

    def start_tls(self) -> bool:
        """The upgrade begins once the answer is out; False: there is no certificate."""
        context = self._service.tls.server if self._service.tls is not None else None
        if context is None:
            return False
        self.wait()
        self._connection.pause_reading()  # the handshake is for the upgrade to read
        self.flush()
        self.later(self._upgrade(context))
        return True

    async def _upgrade(self, context: ssl.SSLContext) -> None:
        service = self._service
        try:
            await self._connection.start_tls(
                context, server_side=True, timeout_s=service.limits.tls_handshake_s
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            service.metrics.tls_failures_total += 1
            self._reason = f"TLS handshake failed: {error}"
            self._connection.abort()
            return
        if self._connection.closed:
            return
        service.metrics.tls_handshakes_total += 1
        self._tls_text = tls_text(self._connection)
        self.tls_started()


class _Begun(Coroutine[Any, Any, None]):
    """Work that waits for something after its first step, for a task to go on with."""

    __slots__ = ("_first", "_work")

    def __init__(self, work: Coroutine[Any, Any, None], first: object) -> None:
        self._work = work
        self._first: object = first  # what the work waits for

    def send(self, value: None) -> Any:
        if self._first is not _TAKEN:
            first, self._first = self._first, _TAKEN
            return first
        return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        self._first = _TAKEN
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._work.__await__()


_TAKEN = object()

_afterwards: set[asyncio.Task[None]] = set()  # the loop keeps only weak references to tasks


def afterwards(work: Coroutine[Any, Any, None]) -> None:
    """Do what a session leaves behind when it is gone, or does not wait for; work handles its errors."""
    task = asyncio.get_running_loop().create_task(work)
    _afterwards.add(task)
    task.add_done_callback(_afterwards.discard)


async def all_settled() -> None:
    """What sessions left to be written is written."""
    await asyncio.gather(*_afterwards)
