"""One connection: octets in to a handler, octets out from it, with a deadline, flow control and STARTTLS.

Flow      transport → Connection.data_received → handler.receive; handler → Connection.write → transport
Limits    one deadline a connection, checked once a second for all of them by DeadlineSweep (a timer per command
          would cost more than the command); the write buffer's high-water mark pauses the handler
Errors    whatever a handler raises is its own to catch; what escapes closes the connection and is logged
Blocking  never
Bugs      a deadline may be kept up to one second late
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from typing import Protocol as Interface
from typing import cast

logger = logging.getLogger(__name__)


class Handler(Interface):
    """What drives a Connection: an SMTP session, an SMTP client, a POP3 session …"""

    def on_connected(self, connection: Connection) -> None:
        """The connection can be written to (after implicit TLS, when there is any)."""

    def receive(self, data: bytes) -> None:
        """Octets arrived.  Called only while reading is not paused."""

    def receive_eof(self) -> None:
        """The peer will send no more; the connection closes when this returns."""

    def on_closed(self, error: Exception | None) -> None:
        """The connection is gone.  Called exactly once, last."""

    def on_deadline(self) -> None:
        """The deadline passed: say good-bye and close."""

    def on_write_ready(self, ready: bool) -> None:
        """The write buffer rose above (False) or fell below (True) its water marks."""


START_TLS_MARGIN_S = 1.0  # the handshake's own timeout comes first, and says more
BULK_OCTETS = 200_000  # uvloop reads 256,000 at once: so much means that more is waiting


class Connection:
    """Drives one Handler over one transport.  An asyncio.Protocol in all but its base class."""

    __slots__ = ("_sweep", "_yielding", "closed", "deadline", "handler", "reading", "tls", "transport")

    def __init__(self, handler: Handler, sweep: DeadlineSweep) -> None:
        self.handler = handler
        self._sweep = sweep
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.deadline = 0.0  # time.monotonic(); 0 = none
        self.closed = False
        self.reading = True  # what the handler wants
        self._yielding = False  # the rest of this turn of the loop belongs to the others
        self.tls: ssl.SSLObject | None = None

    # -- what the transport calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self.tls = transport.get_extra_info("ssl_object")
        self._sweep.add(self)
        self.handler.on_connected(self)

    def data_received(self, data: bytes) -> None:
        self.handler.receive(data)
        if len(data) >= BULK_OCTETS and self.reading and not self.closed:
            # libuv would read on, up to 32 full buffers of a fast sender, before it looks at another socket.
            self._yielding = True
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._yielding = False
        if self.reading and not self.closed:
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        self.handler.receive_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self._sweep.discard(self)
            self.handler.on_closed(exc)
            self.handler = None  # type: ignore[assignment]  # the two know each other: no work for the collector

    def pause_writing(self) -> None:
        self.handler.on_write_ready(False)

    def resume_writing(self) -> None:
        self.handler.on_write_ready(True)

    # -- what the handler calls --------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """One system call at once when nothing is queued: collect what belongs together before calling."""
        self.transport.write(data)

    def writelines(self, buffers: list[bytes | memoryview]) -> None:
        self.transport.writelines(buffers)

    def set_deadline(self, seconds: float) -> None:
        """Call handler.on_deadline() when nothing renewed it for so long (0 = never)."""
        self.deadline = time.monotonic() + seconds if seconds else 0.0

    def pause_reading(self) -> None:
        if self.reading and not self.closed:
            self.reading = False
            if not self._yielding:
                self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.reading and not self.closed:
            self.reading = True
            if not self._yielding:
                self.transport.resume_reading()

    def close(self) -> None:
        """Send what is queued, then close."""
        if not self.closed:
            self.transport.close()

    def abort(self) -> None:
        """Close now; what is queued is dropped."""
        if not self.closed:
            self.transport.abort()

    @property
    def write_buffer_octets(self) -> int:
        return self.transport.get_write_buffer_size()

    async def start_tls(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Upgrade in place.  Raises ssl.SSLError, ConnectionError or TimeoutError; the connection is then closed.

        Octets that were received before the handshake are the handler's business: it must have refused or dropped
        them (RFC 3207 §6), they are not carried over.
        """
        if self.closed:  # uvloop would wait for ever
            raise ConnectionResetError("connection lost before the TLS handshake")
        loop = asyncio.get_running_loop()
        try:
            # Lost between here and the first octet of the handshake: nobody tells start_tls() then.  Not wait_for():
            # its task would let what follows the handshake in before self.transport is set.
            async with asyncio.timeout(timeout_s + START_TLS_MARGIN_S):
                transport = await loop.start_tls(
                    self.transport,
                    as_protocol(self),
                    context,
                    server_side=server_side,
                    server_hostname=server_hostname,
                    ssl_handshake_timeout=timeout_s,
                )
        except BaseException:
            self.abort()
            loop.call_soon(self.connection_lost, None)  # uvloop does not, when the peer was the one who closed
            raise
        if transport is None:
            raise ConnectionResetError("connection lost during the TLS handshake")
        self.transport = transport
        self.reading = True
        self.tls = transport.get_extra_info("ssl_object")


def as_protocol(connection: Connection) -> asyncio.Protocol:
    """For the type checker: the loop wants an asyncio.Protocol and looks at its methods only."""
    return cast(asyncio.Protocol, connection)


class DeadlineSweep:
    """All connections of a worker, looked through once a second for those whose deadline passed."""

    INTERVAL_S = 1.0

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.add = self.connections.add
        self.discard = self.connections.discard
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.INTERVAL_S, self._run)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        now = time.monotonic()
        for connection in [c for c in self.connections if 0.0 < c.deadline < now]:
            connection.deadline = 0.0
            try:
                connection.handler.on_deadline()
            except Exception:
                logger.exception("deadline handler failed")
                connection.abort()
        self.start()
