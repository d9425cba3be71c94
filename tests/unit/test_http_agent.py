"""Web hooks against a real HTTP server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from aiohttp import web
from queue_lab import FakeBody, envelope_to

from gateway.delivery.agent import BOUNCED, DEFERRED, DELIVERED, Job
from gateway.delivery.http import HttpAgent, HttpSession, retry_after, sign
from gateway.mail.envelope import Recipient

CONTENT = b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\nFrom: a@example.org\r\n\r\nhello\r\n"


class Hook:
    """A receiver that notes what it gets and answers what it is told."""

    def __init__(self):
        self.requests = []
        self.answers = []
        self.wait = None
        self.together = self.most = 0

    async def receive(self, request):
        self.together += 1
        self.most = max(self.most, self.together)
        body = await request.read()
        self.requests.append((request, body))
        if self.wait is not None:
            await self.wait.wait()
        self.together -= 1
        return self.answers.pop(0) if self.answers else web.Response(text="thanks")


class Ear:
    def __init__(self):
        self.failures = []

    def on_ready(self):
        pass

    def on_connect_failed(self, outcome):
        self.failures.append(outcome)


@asynccontextmanager
async def receiver(**options):
    hook, ear, session = Hook(), Ear(), HttpSession(1000)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/in", hook.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    agent = HttpAgent(f"http://127.0.0.1:{port}/in", session=session, listener=ear, **options)
    agent.set_concurrency(4)
    try:
        yield SimpleNamespace(hook=hook, ear=ear, agent=agent, port=port)
    finally:
        if hook.wait is not None:
            hook.wait.set()
        await session.close()
        await runner.cleanup()


def job(*mailboxes, content=CONTENT, in_memory=True, **keys):
    envelope = envelope_to(*(mailboxes or ("bob@example.org",)), **keys)
    stored = SimpleNamespace(queue_id="ID1", envelope=envelope)
    recipients = list(range(len(envelope.recipients)))
    return Job(stored, recipients, lambda _: FakeBody(content, in_memory), None)


async def post(agent, one):
    future = asyncio.get_running_loop().create_future()
    agent.submit(one, lambda job, outcomes: future.set_result(outcomes))
    return await asyncio.wait_for(future, 60)


def test_raw_message():
    async def run():
        async with receiver(headers={"Authorization": "Bearer x"}) as r:
            outcomes = await post(r.agent, job("bob@example.org", "grüße@example.org", sender=""))
            assert [o.state for o in outcomes] == [DELIVERED] * 2
            assert outcomes[0].code == 0
            assert "HTTP 200 OK thanks" in outcomes[0].text
            (request, body), = r.hook.requests
            assert body == CONTENT
            assert request.headers["Content-Type"] == "message/rfc822"
            assert request.headers["Authorization"] == "Bearer x"
            assert request.headers["X-Reverse-Path"] == ""
            assert request.headers.getall("X-Forward-Path") == ["bob@example.org", "grüße@example.org"]
            assert request.headers["Idempotency-Key"] == "ID1-0"
            assert "X-Signature" not in request.headers
            assert r.agent.capacity == 4

    asyncio.run(run())


def test_json():
    async def run():
        async with receiver(json=True) as r:
            one = job(Recipient("bob@example.org", orcpt="rfc822;b@x"), envid="E1")
            assert (await post(r.agent, one))[0].state == DELIVERED
            (request, body), = r.hook.requests
            assert request.headers["Content-Type"] == "application/json"
            message = json.loads(body)
            assert message["envelope"]["recipients"] == [
                {"forward_path": "bob@example.org", "orcpt": "rfc822;b@x"}
            ]
            assert message["envelope"]["reverse_path"] == "alice@example.org"
            assert ["Subject", "grüße"] in message["headers"]
            assert message["parts"][0]["text"].rstrip() == "hello"
            assert message["size_octets"] == len(CONTENT)

    asyncio.run(run())


@pytest.mark.parametrize("in_memory", [True, False])
def test_large_bodies_are_streamed_and_signed(in_memory):
    content = CONTENT + b"x" * 998 + b"\r\n" * 600_000

    async def run():
        async with receiver(secret="s3cret") as r:
            outcomes = await post(r.agent, job(content=content, in_memory=in_memory))
            assert outcomes[0].state == DELIVERED
            (request, body), = r.hook.requests
            assert body == content
            assert request.headers["Content-Length"] == str(len(content))
            at, digest = request.headers["X-Signature"].split(",")
            signed = at.removeprefix("t=").encode() + b"." + content
            expected = hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
            assert digest == f"v1={expected}"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "state", "enhanced"),
    [
        (204, DELIVERED, "2.0.0"),
        (302, DEFERRED, "4.3.2"),
        (400, BOUNCED, "5.3.0"),
        (401, DEFERRED, "4.3.2"),
        (404, BOUNCED, "5.3.0"),
        (408, DEFERRED, "4.3.2"),
        (413, BOUNCED, "5.3.4"),
        (429, DEFERRED, "4.3.2"),
        (500, DEFERRED, "4.3.0"),
        (503, DEFERRED, "4.3.0"),
    ],
)
def test_what_a_status_means(status, state, enhanced):
    async def run():
        async with receiver() as r:
            headers = {"Location": "/in", "Retry-After": "77"}
            r.hook.answers.append(web.Response(status=status, headers=headers))
            (outcome,) = await post(r.agent, job())
            assert (outcome.state, outcome.enhanced) == (state, enhanced)
            assert outcome.retry_after_s == (77.0 if state == DEFERRED else 0.0)
            assert len(r.hook.requests) == 1  # no redirect was followed

    asyncio.run(run())


def test_no_connection_gives_the_job_back():
    async def run():
        async with receiver() as r:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{taken.getsockname()[1]}/in"
                agent = HttpAgent(url, session=HttpSession(1000), listener=r.ear)
                agent.set_concurrency(1)
                assert await post(agent, job()) == []
                await agent._session.close()
            assert r.ear.failures[0].state == DEFERRED
            assert agent.capacity == 1

    asyncio.run(run())


def test_a_receiver_that_does_not_answer():
    async def run():
        async with receiver(timeout_s=0.2) as r:
            r.hook.wait = asyncio.Event()
            (outcome,) = await post(r.agent, job())
            assert (outcome.state, outcome.text) == (DEFERRED, "no answer in time")
            assert not r.ear.failures

    asyncio.run(run())


def test_a_receiver_that_hangs_up():
    async def run():
        async def hang_up(reader, writer):
            await reader.read(100)
            writer.transport.abort()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        session = HttpSession(1000)
        agent = HttpAgent(f"http://127.0.0.1:{port}/", session=session, listener=Ear())
        (outcome,) = await post(agent, job())
        assert outcome.state == DEFERRED
        await session.close()
        server.close()

    asyncio.run(run())


def test_a_body_that_cannot_be_read():
    async def run():
        async with receiver() as r:
            one = job()

            def read(_):
                raise OSError("I/O error")

            one.read = read
            (outcome,) = await post(r.agent, one)
            assert outcome.state == DEFERRED
            assert "I/O error" in outcome.text

    asyncio.run(run())


def test_capacity_and_close():
    async def run():
        async with receiver() as r:
            r.hook.wait = asyncio.Event()
            done = []
            for _ in range(4):
                r.agent.submit(job(), lambda job, outcomes: done.append((r.agent.capacity, outcomes)))
            assert r.agent.capacity == 0
            assert r.agent.connections == 4
            r.agent.close()
            r.hook.wait.set()
            while len(done) < 4:
                await asyncio.sleep(0.01)
            assert r.agent.capacity == 0
            assert all(outcomes[0].state == DELIVERED for _, outcomes in done)

    asyncio.run(run())


def test_retry_after():
    assert retry_after("120", 0) == 120.0
    assert retry_after("Thu, 01 Jan 1970 00:02:00 GMT", 60) == 60.0
    assert retry_after("Thu, 01 Jan 1970 00:02:00 GMT", 600) == 0.0
    assert retry_after("soon", 0) == 0.0
    assert retry_after("", 0) == 0.0


def test_sign_is_the_same_for_pieces():
    assert sign(b"k", 5, b"abcdef") == sign(b"k", 5, [b"abc", memoryview(b"def")])
