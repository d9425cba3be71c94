"""The http service: /metrics for Prometheus and /healthz for whoever balances load.

Owns      HttpService
Flow      GET → allowed network? → metrics() or health() of the worker that got the connection
Limits    CONNECTIONS_MAX (and one batch of accepts), the oldest gives way; ANSWER_S; no request bodies
Errors    403 outside the allowed networks, 503 when unhealthy or too slow, 500 logged
Blocking  never
Security  tells counts and reasons, no addresses of mail; nothing can be changed through it
Standards RFC 9110; Prometheus text format 0.0.4
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from aiohttp import web

logger = logging.getLogger(__name__)

CONNECTIONS_MAX = 64  # a worker; scrapers and probes are few
ANSWER_S = 9.0  # Prometheus gives up after 10 s by default
KEEP_ALIVE_S = 75.0  # longer than the usual scrape interval of 60 s
REQUEST_OCTETS = 8192


class HttpService:
    """Serves one bound socket on the running loop.  aiohttp (13 MB) is imported by start()."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        metrics: Callable[[], Awaitable[bytes]],
        health: Callable[[], list[str]],
        allows: Callable[[str], bool],
        tls: ssl.SSLContext | None = None,
        backlog: int = 128,
    ) -> None:
        """metrics: the text, all workers merged; health: the reasons why we are not, none = healthy."""
        self.sock = sock
        self._metrics = metrics
        self._health = health
        self._allows = allows
        self._tls = tls
        self._backlog = backlog
        self._aiohttp: web.Server | None = None
        self._handlers: dict[str, Callable[[], Awaitable[web.Response]]] = {}
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        from aiohttp import web

        self._handlers = {"/metrics": self._on_metrics, "/healthz": self._on_healthz}
        self._aiohttp = web.Server(
            self._answer,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=REQUEST_OCTETS,
            max_field_size=REQUEST_OCTETS,
        )
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"sock": self.sock, "backlog": self._backlog, "ssl": self._tls}
        if self.sock.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self._connection, **options)
        else:
            self._server = await loop.create_server(self._connection, **options)

    async def close(self) -> None:
        """Answers what is being asked, then ends."""
        if self._server is not None:
            self._server.close()
        if self._aiohttp is not None:
            self._aiohttp.pre_shutdown()  # those that only keep their connection open
            await self._aiohttp.shutdown(ANSWER_S)

    def _connection(self) -> asyncio.Protocol:
        # aiohttp waits for a first request without bound; so the oldest connection makes room.
        assert self._aiohttp is not None
        connections = self._aiohttp.connections
        for oldest in connections[: max(0, len(connections) + 1 - CONNECTIONS_MAX)]:
            if oldest.transport is not None:
                oldest.transport.abort()
        return self._aiohttp()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        # A Unix socket has no remote address: its file's permissions guard it.
        if request.remote and not self._allows(request.remote):
            return web.Response(status=403, text="not for your network; see metrics.allow_from\n")
        handler = self._handlers.get(request.path)
        if handler is None:
            return web.Response(status=404, text="/metrics or /healthz\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="GET only\n", headers={"Allow": "GET, HEAD"})
        try:
            return await asyncio.wait_for(handler(), ANSWER_S)
        except TimeoutError:
            return web.Response(status=503, text="too slow\n")
        except Exception:
            logger.exception("answer to %s failed", request.path)
            return web.Response(status=500, text="see the log\n")

    async def _on_metrics(self) -> web.Response:
        from aiohttp import web

        body = await self._metrics()
        return web.Response(
            body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _on_healthz(self) -> web.Response:
        from aiohttp import web

        reasons = self._health()
        return web.Response(
            status=503 if reasons else 200,
            body=orjson.dumps({"healthy": not reasons, "reasons": reasons}) + b"\n",
            content_type="application/json",
        )
