"""Listening sockets: binding them, and turning accepted connections into sessions.

Owns      bind_all(), Listener, ProxyIntake
Flow      accept → (PROXY header) → (implicit TLS) → Connection(handler)
Limits    the accept queue (backlog); a PROXY header must be whole within PROXY_DEADLINE_S
Errors    OSError from binding names the address; a bad PROXY header closes that connection only
Security  a PROXY header is read only from the networks that may send one; from them it is demanded
Standards PROXY protocol 2.1; RFC 8314 §3 (implicit TLS)
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable
from typing import Any

from gateway.config_values import Address
from gateway.net.connection import Connection, DeadlineSweep, Handler, as_protocol
from gateway.net.proxy_header import ProxyError, ProxyHeader, parse

logger = logging.getLogger(__name__)

PROXY_DEADLINE_S = 10.0  # the load balancer sends it first and at once
PROXY_POLL_S = 0.01  # between looks at a header that came in pieces
PROXY_PEEK_OCTETS = 4112  # 16 octets and the bound proxy_header puts on what follows

UNKNOWN_CLIENT = ("0.0.0.0:0", "0.0.0.0")

# (client "ip:port", client ip) → the handler of one connection; "" when the socket itself tells
HandlerFactory = Callable[[str, str], Handler]


class Listener:
    """Accepts on one bound socket until it is closed."""

    def __init__(
        self,
        sock: socket.socket,
        factory: HandlerFactory,
        sweep: DeadlineSweep,
        *,
        backlog: int,
        tls: ssl.SSLContext | None = None,
        tls_handshake_s: float = 60.0,
        trusts_proxy: Callable[[str], bool] | None = None,
    ) -> None:
        """trusts_proxy: given the peer's ip, must it send a PROXY header?  None: nobody may."""
        self.sock = sock
        self._factory = factory
        self._sweep = sweep
        self._backlog = backlog
        self._tls = tls
        self._tls_handshake_s = tls_handshake_s
        self._trusts_proxy = trusts_proxy
        self._server: asyncio.AbstractServer | None = None
        self._intakes: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._trusts_proxy is not None:
            self.sock.setblocking(False)
            self.sock.listen(self._backlog)
            loop.add_reader(self.sock.fileno(), self._accept)
            return
        options: dict[str, Any] = {"backlog": self._backlog}
        if self._tls is not None:
            options |= {"ssl": self._tls, "ssl_handshake_timeout": self._tls_handshake_s}
        if self.sock.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(
                self._connection, sock=self.sock, **options
            )
        else:
            self._server = await loop.create_server(self._connection, sock=self.sock, **options)

    def close(self) -> None:
        """Accept no more; connections that stand go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
        elif self._trusts_proxy is not None:
            asyncio.get_running_loop().remove_reader(self.sock.fileno())
            self.sock.close()

    def _connection(self, client: str = "", client_ip: str = "") -> asyncio.Protocol:
        return as_protocol(Connection(self._factory(client, client_ip), self._sweep))

    # -- behind a load balancer --------------------------------------------------------------------------------------

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(64):  # leave the loop to the sessions after so many
            try:
                sock, address = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: the connection waits in the accept queue
                logger.error("accept: %s", error)
                return
            sock.setblocking(False)
            task = loop.create_task(self._take_in(sock, address))
            self._intakes.add(task)
            task.add_done_callback(self._intakes.discard)

    async def _take_in(self, sock: socket.socket, address: Any) -> None:
        peer = address[0] if isinstance(address, tuple) else ""
        try:
            client, client_ip = "", ""
            if self._trusts_proxy is not None and self._trusts_proxy(peer):
                header = await asyncio.wait_for(read_proxy_header(sock), PROXY_DEADLINE_S)
                if header.source is not None and not header.local:
                    client_ip, port = header.source[0], header.source[1]
                    client = f"[{client_ip}]:{port}" if ":" in client_ip else f"{client_ip}:{port}"
                elif not header.local:  # it does not say who: not the balancer, whom we may trust more
                    client, client_ip = UNKNOWN_CLIENT
            options: dict[str, Any] = {}
            if self._tls is not None:
                options = {"ssl": self._tls, "ssl_handshake_timeout": self._tls_handshake_s}
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._connection(client, client_ip), sock, **options
            )
        except (ProxyError, OSError, TimeoutError) as error:
            logger.warning("connection from %s closed: PROXY header: %s", peer or "unix", error)
            sock.close()


async def read_proxy_header(sock: socket.socket) -> ProxyHeader:
    """Takes exactly the header out of the socket: what follows (a TLS handshake maybe) stays in it.

    Raises ProxyError, or ConnectionResetError when the peer left before its header was whole.
    """
    seen = -1
    while True:
        try:
            data = sock.recv(PROXY_PEEK_OCTETS, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            data = None
        if data is not None:
            if not data or ((header := parse(data)) is None and len(data) == PROXY_PEEK_OCTETS):
                raise ConnectionResetError("closed before the header was whole")
            if header is not None:
                sock.recv(header.consumed)
                return header
            seen = len(data)
        await asyncio.sleep(PROXY_POLL_S if seen else 0)


def bind(address: Address, *, reuse_port: bool, mode: int = 0o660) -> socket.socket:
    """A bound socket, not listening yet.  The socket file of a process that is gone is replaced."""
    if address.path:
        return _bind_unix(address.path, mode)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(path: str, mode: int) -> socket.socket:
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode) and not _is_served(path):
            os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, mode)
    except OSError:
        sock.close()
        raise
    return sock


def _is_served(path: str) -> bool:
    """Somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) in (0, errno.EAGAIN)
