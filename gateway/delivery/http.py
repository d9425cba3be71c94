"""Delivery to a web hook: one POST for one transaction.

    Owns      HttpSession (shared by a worker's agents), HttpAgent, sign()
    Flow      submit → task: body, signature → POST → status → outcomes → done
    Limits    set_concurrency() requests at once; REPLY_OCTETS of an answer are read; a raw message
              is sent in pieces, format "json" has the whole message in memory
    Errors    2xx DELIVERED; 408, 425, 429, 5xx, 3xx, 401, 407 and every failure of the network
              DEFERRED (Retry-After is honoured); other 4xx BOUNCED
    Blocking  bodies on disk, JSON and signatures of large bodies are made in the thread pool
    Security  redirects are not followed: the configuration names the receiver.  The signature
              covers the time, so that a receiver can refuse what is replayed.  https: always verifies
    Standards RFC 9110 §9.3.3, §10.2.3 (Retry-After), §15; RFC 2104 (HMAC)

401 and 407 mean our token, not the message: it waits until the operator has put that right.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict

from gateway.delivery.agent import (
    BOUNCED,
    DEFERRED,
    DELIVERED,
    Body,
    Done,
    Job,
    Listener,
    Outcome,
    failed,
)
from gateway.mail.structure import parsed

logger = logging.getLogger(__name__)

REPLY_OCTETS = 1024  # enough of an answer for people
TEXT_MAX = 300
SMALL_OCTETS = 256 * 1024  # up to here a body is joined and signed on the loop: below 1 ms
CHUNK_OCTETS = 256 * 1024
DEFERRED_STATUS = frozenset({401, 407, 408, 425, 429})


class HttpSession:
    """The connection pool that all web hooks of a worker share."""

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    def get(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Each agent keeps its own limit, too.  No cookies: requests are independent.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_connections),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class HttpAgent:
    """An Agent for http: and https:."""

    recipients_max = 0

    def __init__(
        self,
        url: str,
        *,
        session: HttpSession,
        listener: Listener,
        json: bool = False,
        headers: Mapping[str, str] | None = None,
        secret: str = "",
        connect_s: float = 30.0,
        timeout_s: float = 300.0,
        context: Callable[[], ssl.SSLContext] | None = None,
        tls_name: str = "",
    ) -> None:
        """context: for https, asked for each request (a reload may change it); tls_name: the certificate's."""
        self._url = url
        self._session = session
        self._listener = listener
        self._json = json
        self._headers = dict(headers or {})
        self._secret = secret.encode()
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_s)
        self._context = context if url.lower().startswith("https:") else None
        self._tls_name = tls_name or None
        self._concurrency = 1
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    @property
    def capacity(self) -> int:
        return 0 if self._closing else max(0, self._concurrency - len(self._tasks))

    @property
    def connections(self) -> int:
        return len(self._tasks)

    def set_concurrency(self, connections: int) -> None:
        self._concurrency = connections

    def submit(self, job: Job, done: Done) -> None:
        task = self._loop.create_task(self._run(job, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        self._closing = True

    async def _run(self, job: Job, done: Done) -> None:
        started = time.monotonic()
        outcome: Outcome | None
        try:
            outcome = await self._post(job, started)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            outcome = None
            self._listener.on_connect_failed(failed(f"no connection: {error}", "4.4.1"))
        except TimeoutError:
            outcome = failed("no answer in time", "4.4.2", duration_s=time.monotonic() - started)
        except (aiohttp.ClientError, OSError) as error:
            text = f"{type(error).__name__}: {error}"
            outcome = failed(text, "4.4.2", duration_s=time.monotonic() - started)
        except Exception as error:
            logger.exception("%s: %s", job.queue_id, self._url)
            outcome = failed(f"{type(error).__name__}: {error}")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.discard(task)  # before done(): it asks for our capacity
        done(job, [] if outcome is None else [outcome] * len(job.recipients))

    async def _post(self, job: Job, started: float) -> Outcome:
        body = job.body()
        small = body.in_memory and body.size <= SMALL_OCTETS
        data: bytes | AsyncIterator[bytes]
        if self._json:
            data = await self._loop.run_in_executor(None, envelope_json, job)
            digest = self._sign(data)
        elif small:
            data = b"".join(body.slices())
            digest = self._sign(data)
        else:
            digest = await self._loop.run_in_executor(None, self._sign_body, body)
            data = self._stream(body)
        headers = self._request_headers(job, body.size if not self._json else None)
        if digest:
            headers["X-Signature"] = digest
        async with self._session.get().post(
            self._url,
            data=data,
            headers=headers,
            timeout=self._timeout,
            allow_redirects=False,
            ssl=True if self._context is None else self._context(),
            server_hostname=self._tls_name,
        ) as response:
            # The first piece is enough; a long answer is cut off with the connection.
            text = (await response.content.read(REPLY_OCTETS)).decode("utf-8", "replace")
            return self._outcome(response, text, time.monotonic() - started)

    def _request_headers(self, job: Job, size: int | None) -> CIMultiDict[str]:
        headers: CIMultiDict[str] = CIMultiDict(self._headers)
        headers["Content-Type"] = "application/json" if self._json else "message/rfc822"
        headers["Idempotency-Key"] = f"{job.queue_id}-{job.recipients[0]}"
        headers["X-Queue-Id"] = job.queue_id
        if size is not None:
            headers["Content-Length"] = str(size)
            headers["X-Reverse-Path"] = job.envelope.reverse_path
            for index in job.recipients:
                headers.add("X-Forward-Path", job.envelope.recipients[index].forward_path)
        return headers

    def _sign(self, data: bytes) -> str:
        return sign(self._secret, int(time.time()), data) if self._secret else ""

    def _sign_body(self, body: Body) -> str:
        return sign(self._secret, int(time.time()), body.chunks(CHUNK_OCTETS)) if self._secret else ""

    async def _stream(self, body: Body) -> AsyncIterator[bytes]:
        chunks = body.chunks(CHUNK_OCTETS)
        while True:
            if body.in_memory:
                piece = next(chunks, None)
            else:
                piece = await self._loop.run_in_executor(None, next, chunks, None)
            if piece is None:
                return
            yield bytes(piece)

    def _outcome(self, response: aiohttp.ClientResponse, text: str, duration_s: float) -> Outcome:
        status = response.status
        words = " ".join(f"HTTP {status} {response.reason or ''} {text}".split())[:TEXT_MAX]
        peer = _peer(response)
        retry_after_s = 0.0
        if 200 <= status < 300:
            state, enhanced = DELIVERED, "2.0.0"
        elif status in DEFERRED_STATUS or not 400 <= status < 500:
            state, enhanced = DEFERRED, "4.3.0" if status >= 500 else "4.3.2"
            retry_after_s = retry_after(response.headers.get("Retry-After", ""), time.time())
        else:
            state, enhanced = BOUNCED, "5.3.4" if status == 413 else "5.3.0"
        return Outcome(
            state,
            0,  # an HTTP status is no SMTP reply code
            enhanced,
            words,
            peer,
            duration_s=duration_s,
            retry_after_s=retry_after_s,
        )


def sign(secret: bytes, at: int, data: Any) -> str:
    """t=<seconds>,v1=<hex>: HMAC-SHA256 over the decimal time, ".", and the body."""
    digest = hmac.new(secret, b"%d." % at, hashlib.sha256)
    for piece in (data,) if isinstance(data, bytes) else data:
        digest.update(piece)
    return f"t={at},v1={digest.hexdigest()}"


def retry_after(value: str, now: float) -> float:
    """RFC 9110 §10.2.3: seconds, or a date; 0.0 for what is neither."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0


def envelope_json(job: Job) -> bytes:
    """Envelope, header fields and decoded parts; attachments in base64."""
    envelope = job.envelope
    content = b"".join(job.body().chunks(CHUNK_OCTETS))
    message: dict[str, Any] = {
        "queue_id": job.queue_id,
        "attempt": job.attempt,
        "envelope": {
            "reverse_path": envelope.reverse_path,
            "recipients": [
                {
                    "forward_path": envelope.recipients[index].forward_path,
                    "orcpt": envelope.recipients[index].orcpt,
                }
                for index in job.recipients
            ],
            "received_at": envelope.received_at,
            "client_address": envelope.client_address,
            "client_name": envelope.client_name,
            "protocol": envelope.protocol,
            "smtputf8": envelope.smtputf8,
            "envid": envelope.envid,
        },
        "size_octets": len(content),
        **parsed(content, attachments=True),
    }
    try:
        return orjson.dumps(message)
    except TypeError:  # text that is not valid Unicode: the receiver gets the octets instead
        del message["headers"], message["parts"]
        message["content"] = b64encode(content).decode()
        return orjson.dumps(message)


def _peer(response: aiohttp.ClientResponse) -> str:
    url = response.url
    return f"{url.host}:{url.port}"
