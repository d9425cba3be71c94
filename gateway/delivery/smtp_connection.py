"""One connection to a next hop: drives the client machine over the network.

    Owns      SmtpConnection: connecting, TLS, deadlines, streaming; SmtpSettings, common to the connections of a route
    Flow      connect → greeting, EHLO, STARTTLS → agent.on_ready → begin() → … → agent.on_done → QUIT → agent.on_gone
    Limits    timeouts by state from the configuration; streamed content waits for the write buffer to fall
    Errors    nothing is raised: a delivery ends in agent.on_done or agent.on_returned, the connection in agent.on_gone
    Blocking  never: names, disk and long conversions are waited for off the loop
    Security  a name that TLS must verify is the one configured, never one from DNS
    Standards RFC 5321 §4.5.3.2 (timeouts), §5.1 (several addresses); RFC 3207; RFC 7435; RFC 8314
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gateway._native import DataEncoder
from gateway.config_model import DeliveryConfig
from gateway.delivery.avoid import PIPELINING, STARTTLS, Avoid
from gateway.delivery.budget import Budget
from gateway.delivery.negotiate import STREAM_OCTETS, Delivery, must_wait, prepare
from gateway.net.connection import Connection, DeadlineSweep, as_protocol
from gateway.net.dns import DnsError
from gateway.net.tls import TlsContexts, TlsError, describe
from gateway.protocol.smtp_client import (
    CLOSE,
    CONTENT,
    DONE,
    FAILED,
    MAYBE_TWICE,
    OUT_OF_STEP,
    READY,
    RETURNED,
    START_TLS,
    TRANSIENT,
    WAIT_NOTHING,
    Event,
    SmtpClientMachine,
    Transaction,
    Verdict,
)

if TYPE_CHECKING:
    from gateway.delivery.smtp import SmtpAgent

logger = logging.getLogger(__name__)

QUIT_S = 5.0  # the reply to QUIT is a courtesy
INTERNAL_ERROR: Verdict = (TRANSIENT, 0, "4.3.0", "internal error")
UNREADABLE: Verdict = (TRANSIENT, 0, "4.3.0", "content cannot be read")
LOST: Verdict = (TRANSIENT, 0, "4.4.2", "connection lost before the peer looked at the message")
LOST_SENT: Verdict = (TRANSIENT, 0, "4.4.2", "connection lost before the peer answered" + MAYBE_TWICE)

DEFAULTS = DeliveryConfig()

# (family, address as connect() takes it), as of net.dns.Resolver
Address = tuple[int, tuple[Any, ...]]
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class SmtpSettings:
    """What the connections of one route have in common."""

    __slots__ = (
        "avoid", "avoid_pipelining_s", "avoid_tls_s", "budget", "connect_s", "contexts", "data_block_s", "depth",
        "hostname", "idle_s", "messages_per_connection", "resolve", "source_address", "sweep", "timeouts", "tls",
        "tls_ca_file", "tls_handshake_s", "tls_name", "xclient",
    )  # fmt: skip

    def __init__(
        self,
        *,
        hostname: str,
        sweep: DeadlineSweep,
        resolve: Resolve,
        config: DeliveryConfig = DEFAULTS,
        tls: str = "off",
        tls_name: str = "",
        tls_ca_file: str = "",
        contexts: TlsContexts | None = None,
        avoid: Avoid | None = None,
        budget: Budget | None = None,
        source_address: Callable[[int], str | None] | None = None,
        messages_per_connection: int = 0,
        xclient: bool = False,
        depth: int = 2,
    ) -> None:
        self.hostname = hostname  # for EHLO
        self.sweep = sweep
        self.resolve = resolve
        self.connect_s = config.connect_s
        self.tls_handshake_s = config.tls_handshake_s
        self.idle_s = config.idle_s
        self.data_block_s = config.data_block_s
        # By smtp_client.WAIT_…
        self.timeouts = (
            config.greeting_s, config.helo_s, config.mail_s, config.rcpt_s, config.data_init_s, config.data_done_s,
            QUIT_S, config.tls_handshake_s,
        )  # fmt: skip
        self.avoid = Avoid() if avoid is None else avoid
        self.budget = Budget(config.max_connections) if budget is None else budget
        self.avoid_tls_s = config.avoid_tls_s
        self.avoid_pipelining_s = config.avoid_pipelining_s
        self.tls = tls  # off | opportunistic | required | verify
        self.tls_name = tls_name
        self.tls_ca_file = tls_ca_file
        self.contexts = contexts
        self.source_address = source_address  # our address to connect from, by family; None = none is up
        self.messages_per_connection = messages_per_connection
        self.xclient = xclient
        self.depth = depth  # transactions in flight on a connection


class SmtpConnection:
    """A Handler of net.connection (the public methods from on_connected on), as its agent sees it."""

    __slots__ = (
        "_address", "_addresses", "_agent", "_closing", "_connection", "_encoder", "_failure", "_handshaking",
        "_heard", "_in_clear", "_inside", "_left_octets", "_loop", "_pieces", "_preparing", "_reading", "_settings",
        "_streamed", "_tasks", "_unsent_octets", "_writable", "held", "is_ready", "is_retired", "machine", "peer",
        "slots", "tls",
    )  # fmt: skip

    def __init__(self, agent: SmtpAgent, settings: SmtpSettings) -> None:
        self._agent = agent
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None  # None: not yet, or no longer
        self._address: Address | None = None
        self._addresses: list[Address] | None = None  # still to be tried; None: not resolved yet
        self._in_clear = ""  # why the address being tried is spoken to in clear, though TLS would be better
        self._tasks: set[asyncio.Future[None]] = set()
        self._failure: Verdict | None = None  # why there will be no READY
        self._handshaking = False
        self._heard = 0  # replies, when the deadline was set
        self._closing = False  # on_closed() is still to come
        self._inside = False  # our caller will flush
        self._preparing = False  # a delivery is read or converted off the loop
        self._streamed: Transaction | None = None
        self._pieces: Iterator[bytes | memoryview] = iter(())
        self._encoder: DataEncoder | None = None  # None: the content goes out as it is
        self._left_octets = 0  # of the streamed content, not handed over yet
        self._reading = False  # a piece is read off the loop
        self._writable = True
        self._unsent_octets = 0  # in the write buffer when the deadline was set
        self.machine = self._new_machine()
        self.peer = agent.path or agent.host  # "host[address]:port" as soon as there is an address
        self.tls = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384"
        # The agent's:
        self.slots = 1  # deliveries it may have at once
        self.held = 0  # deliveries it has
        self.is_ready = False
        self.is_retired = False
        self._spawn(self._connect())

    @property
    def _who(self) -> object:
        """The peer, for what is remembered of it."""
        return self._agent.path or self._address

    def _new_machine(self) -> SmtpClientMachine:
        """For the address that is tried next."""
        agent, settings = self._agent, self._settings
        mode = settings.tls
        if mode == "opportunistic" and (
            agent.path or self._in_clear or settings.avoid.has(STARTTLS, self._who)
        ):
            mode = "off"
        return SmtpClientMachine(
            settings.hostname,
            lmtp=agent.lmtp,
            tls_mode="off" if agent.implicit_tls else mode,
            tls=agent.implicit_tls,
            pipelining=not settings.avoid.has(PIPELINING, self._who),
            depth=settings.depth,
            transactions_max=settings.messages_per_connection,
        )

    # -- what the agent asks and tells --------------------------------------------------------------------------------

    @property
    def can_begin(self) -> bool:
        return not self._preparing and self.machine.can_begin

    @property
    def is_idle(self) -> bool:
        return not self._preparing and self.machine.is_idle

    def begin(self, delivery: Delivery) -> None:
        """Start the transaction; can_begin must be true."""
        offered = self.machine.capabilities
        delivery.started_at = self._loop.time()
        try:
            delivery.body = delivery.job.body()
            if must_wait(delivery, offered):
                self._preparing = True
                self._spawn(self._prepare_off_loop(delivery))
                return
            prepare(delivery, offered, lmtp=self._agent.lmtp, xclient=self._settings.xclient)
        except Exception as error:
            self._cannot_prepare(delivery, error)
            return
        self._begin_prepared(delivery)

    def drain(self) -> None:
        """Finish what is in flight, then QUIT."""
        self.machine.drain()
        if not self._inside:
            self._flush()

    def abort(self) -> None:
        """Give up now; only for a connection that is not ready."""
        for task in list(self._tasks):
            task.cancel()
        if self._connection is not None:
            self._lose("4.3.2", "shutting down")
        elif not self._closing:
            self._agent.on_gone(self, None)

    # -- preparing ----------------------------------------------------------------------------------------------------

    async def _prepare_off_loop(self, delivery: Delivery) -> None:
        lmtp, xclient, offered = self._agent.lmtp, self._settings.xclient, self.machine.capabilities
        error: Exception | None = None
        try:
            await self._loop.run_in_executor(
                None, lambda: prepare(delivery, offered, lmtp=lmtp, xclient=xclient)
            )
        except Exception as caught:
            error = caught
        self._preparing = False
        if error is not None:
            self._cannot_prepare(delivery, error)
        elif delivery.transaction is not None and not self.machine.can_begin:  # the connection went meanwhile
            self._agent.on_returned(self, delivery, LOST)
        else:
            self._begin_prepared(delivery)
        self._go_on()

    def _cannot_prepare(self, delivery: Delivery, error: Exception) -> None:
        logger.warning("%s: content cannot be sent", delivery.job.queue_id, exc_info=error)
        self._agent.on_settled(self, delivery, UNREADABLE)

    def _begin_prepared(self, delivery: Delivery) -> None:
        transaction = delivery.transaction
        if transaction is None:  # all recipients are refused
            self._agent.on_settled(self, delivery, INTERNAL_ERROR)
        else:
            self.machine.begin(transaction)
            if not self._inside:
                self._flush()

    # -- connecting ---------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        agent, settings = self._agent, self._settings
        failure = "no address found"
        try:
            if agent.path:
                connecting = self._loop.create_unix_connection(self._make_connection, agent.path)
                await asyncio.wait_for(connecting, settings.connect_s)
                return
            if self._addresses is None:
                self._addresses = list(await settings.resolve(agent.host, agent.port))
            while self._addresses:
                self._address = self._addresses.pop(0)
                self.peer = f"{agent.host}[{self._address[1][0]}]:{self._address[1][1]}"
                self.machine = self._new_machine()
                try:
                    await self._connect_to(self._address)
                    return
                except (OSError, ValueError) as error:  # TimeoutError and ssl.SSLError are OSErrors
                    self._in_clear = ""
                    failure = f"cannot connect: {describe_error(error)}"
        except (OSError, DnsError, TlsError) as error:
            failure = f"cannot connect: {describe_error(error)}"
        except Exception as error:
            logger.exception("%s: cannot connect", self.peer)
            failure = f"cannot connect: {describe_error(error)}"
        self._failure = (TRANSIENT, 0, "4.4.1", failure)
        self._end()

    async def _connect_to(self, address: Address) -> None:
        settings = self._settings
        family, (host, port, *_) = address
        local = None
        if settings.source_address is not None:
            source = settings.source_address(family)
            if source is None:
                raise ValueError("no source address of this family is up")
            local = (source, 0)
        context = self._context() if self._agent.implicit_tls else None  # RFC 8314 §3: TLS comes before the greeting
        connecting = self._loop.create_connection(
            self._make_connection,
            host,
            port,
            family=family,
            local_addr=local,
            ssl=context,
            server_hostname=self._server_name() if context else None,
            ssl_handshake_timeout=settings.tls_handshake_s if context else None,
        )
        await asyncio.wait_for(connecting, settings.connect_s + (settings.tls_handshake_s if context else 0.0))

    def _make_connection(self) -> asyncio.Protocol:
        return as_protocol(Connection(self, self._settings.sweep))

    def _context(self) -> ssl.SSLContext:
        contexts = self._settings.contexts
        if contexts is None:
            raise TlsError("no TLS contexts")
        mode = self._settings.tls if self._settings.tls != "off" else "opportunistic"
        return contexts.client(mode, self._settings.tls_ca_file)

    def _server_name(self) -> str:
        return self._settings.tls_name or self._agent.host

    async def _start_tls(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            await connection.start_tls(
                self._context(),
                server_side=False,
                server_hostname=self._server_name(),
                timeout_s=self._settings.tls_handshake_s,
            )
        except (OSError, ValueError, TlsError) as error:
            self._tls_failed(describe_error(error))
            return
        self._handshaking = False
        self._note_tls(connection)
        self.machine.tls_started()
        self._flush()

    def _tls_failed(self, why: str) -> None:
        self._handshaking = False
        self._failure = (TRANSIENT, 0, "4.7.5", f"TLS handshake failed: {why}")
        if self._settings.tls == "opportunistic" and self._address is not None:
            self._in_clear = why  # RFC 7435 §3: better in clear than not at all
            self._addresses = [self._address, *(self._addresses or [])]
        self._end()

    def _note_ready(self) -> None:
        """Remember what went wrong on the way, now that it is known to have been TLS alone."""
        why, self._in_clear = self._in_clear, ""
        if why:
            seconds = self._settings.avoid_tls_s
            self._settings.avoid.add(STARTTLS, self._who, seconds)
            logger.warning("%s: TLS is broken there (%s): in clear for %g s", self.peer, why, seconds)

    def _note_out_of_step(self, reply: str) -> None:
        """One command at a time from now on, over another connection."""
        seconds = self._settings.avoid_pipelining_s
        self._settings.avoid.add(PIPELINING, self._who, seconds)
        logger.warning("%s: PIPELINING is broken there (%s): not used for %g s", self.peer, reply, seconds)
        self._agent.retire(self)

    def _note_tls(self, connection: Connection) -> None:
        if connection.tls is not None:
            version, cipher, _ = describe(connection.tls)
            self.tls = f"{version} {cipher}"

    def _end(self) -> None:
        """This network connection is over; _ended() follows when it is closed."""
        connection, self._connection = self._connection, None
        self._streamed = None
        if connection is None or connection.closed:
            self._ended()
        else:
            self._closing = True
            connection.abort()

    def _ended(self) -> None:
        """The next address, if this one was of no use (RFC 5321 §5.1)."""
        self._closing = False
        failure = self._failure
        if failure is not None and self._addresses and not self._agent.is_closing:
            logger.info("%s: %s; trying another way", self.peer, failure[3])
            self._failure = None
            self._writable = True
            self._spawn(self._connect())
        else:
            self._agent.on_gone(self, failure)

    # -- what net.connection calls ------------------------------------------------------------------------------------

    def on_connected(self, connection: Connection) -> None:
        self._connection = connection
        self._heard = 0
        self._note_tls(connection)
        self._set_deadline(connection)

    def receive(self, data: bytes) -> None:
        if self._connection is None:
            return
        self._inside = True
        try:
            events = self.machine.receive_data(data)
            if events:
                self._take(events)
        except Exception:
            logger.exception("%s: internal error", self.peer)
            self._lose("4.3.0", "internal error")
        self._inside = False
        self._go_on()

    def receive_eof(self) -> None:
        """on_closed() follows."""

    def on_closed(self, error: Exception | None) -> None:
        if self._closing:
            self._ended()
            return
        if self._connection is None or self._handshaking:  # then start_tls() fails, too
            return
        name = self.machine.waiting_name
        text = f"connection lost while waiting for {name}" if name else "connection lost"
        text = f"{text} ({describe_error(error)})" if error else text
        if self.machine.is_starting_tls:
            self._tls_failed(text)
        else:
            self._lose("4.4.2", text)

    def on_deadline(self) -> None:
        connection, machine = self._connection, self.machine
        if connection is None:
            return
        unsent = connection.write_buffer_octets
        if self.is_idle:
            self._agent.retire(self)
            self.drain()
        elif self._preparing or self._reading or (unsent and unsent != self._unsent_octets):
            self._set_deadline(connection)  # our own disk, or a peer that takes its time
        elif self._handshaking:
            self._set_deadline(connection)  # start_tls() has a deadline of its own
        elif machine.is_starting_tls:
            self._tls_failed(f"timed out waiting for {machine.waiting_name}")
        elif machine.is_quitting:
            self._lose("4.4.2", "timed out")
        else:
            self._lose("4.4.2", f"timed out waiting for {machine.waiting_name}")

    def on_write_ready(self, ready: bool) -> None:
        self._writable = ready
        if ready:
            self._pump()

    # -- inner parts --------------------------------------------------------------------------------------------------

    def _take(self, events: list[Event]) -> None:
        agent = self._agent
        if self.is_ready and self.machine.is_closed:
            agent.retire(self)
        for kind, value in events:
            if kind == DONE:
                agent.on_done(self, value.tag)
            elif kind == READY:
                self._note_ready()
                agent.on_ready(self)
            elif kind == CONTENT:
                self._streamed = value
                self._start_stream(value.tag, value.bdat)
            elif kind == START_TLS:
                self._handshaking = True
                self._spawn(self._start_tls())
            elif kind == RETURNED:
                agent.on_returned(self, value.tag, LOST_SENT if value.sent else LOST)
            elif kind == OUT_OF_STEP:
                self._note_out_of_step(value)
            elif kind == FAILED:
                self._failure, self._in_clear = value, ""
            elif kind == CLOSE:
                self._end()

    def _lose(self, enhanced: str, text: str) -> None:
        """The connection is lost, or is to be."""
        if self._connection is not None:
            self._take(self.machine.abandon(enhanced, text))

    def _go_on(self) -> None:
        """After whatever happened: take what waits, write what is ready, in one write."""
        if self._connection is None:
            return
        if not self._preparing and self.machine.can_begin:
            self._inside = True
            self._agent.on_room(self)
            self._inside = False
        self._flush()
        if self._streamed is not None:
            self._pump()

    def _flush(self) -> None:
        connection = self._connection
        if connection is not None:
            machine = self.machine
            out = machine.data_to_send()
            if out:
                connection.writelines(out)
            if out or machine.heard != self._heard:  # a part of a reply is no progress
                self._heard = machine.heard
                self._set_deadline(connection)

    def _set_deadline(self, connection: Connection) -> None:
        machine, settings = self.machine, self._settings
        self._unsent_octets = unsent = connection.write_buffer_octets
        waiting = machine.waiting_for
        if waiting == WAIT_NOTHING:
            seconds = settings.idle_s or 0.001
        elif unsent or self._streamed is not None:
            seconds = settings.data_block_s
        else:
            seconds = settings.timeouts[waiting]
        connection.deadline = time.monotonic() + seconds

    # -- streamed content ---------------------------------------------------------------------------------------------

    def _start_stream(self, delivery: Delivery, bdat: bool) -> None:
        body = delivery.body
        assert body is not None
        self._pieces = body.chunks(STREAM_OCTETS)
        self._left_octets = body.size
        self._encoder = None if bdat else DataEncoder(delivery.repair)

    def _pump(self) -> None:
        """Hand over the next piece, if the connection takes it: one at a time, others want the loop, too."""
        streamed = self._streamed
        if streamed is None or not self._writable or self._reading:
            return
        if not streamed.tag.body.in_memory:
            self._reading = True
            self._spawn(self._read_piece(streamed))
            return
        try:
            piece = next(self._pieces, b"")
        except Exception as error:
            self._cannot_read(error)
            return
        self._send_piece(piece)

    async def _read_piece(self, streamed: Transaction) -> None:
        piece: bytes | memoryview = b""
        error: Exception | None = None
        try:
            piece = await self._loop.run_in_executor(None, next, self._pieces, b"")
        except Exception as caught:
            error = caught
        self._reading = False
        if self._streamed is not streamed:
            return
        if error is not None:
            self._cannot_read(error)
        else:
            self._send_piece(piece)

    def _cannot_read(self, error: Exception) -> None:
        logger.warning("%s: content cannot be read", self.peer, exc_info=error)
        self._lose("4.3.0", UNREADABLE[3])

    def _send_piece(self, piece: bytes | memoryview) -> None:
        connection, streamed, encoder = self._connection, self._streamed, self._encoder
        assert connection is not None and streamed is not None
        self._left_octets -= len(piece)
        if self._left_octets < 0 or not piece:  # BDAT has told the size, and a final dot would make mail of a part
            self._cannot_read(ValueError("the content is not as long as it was said to be"))
            return
        out = [piece] if encoder is None else encoder.encode([piece])
        if self._left_octets:
            if out:
                connection.writelines(out)
            self._set_deadline(connection)
            self._loop.call_soon(self._pump)
            return
        if encoder is not None:
            out.append(encoder.finish())
        connection.writelines(out)
        self._streamed = None
        self.machine.content_sent(streamed)
        self._go_on()


def describe_error(error: BaseException) -> str:
    """The reason without the noise around it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verification failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, socket.gaierror):
        return error.strerror or "name not found"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
