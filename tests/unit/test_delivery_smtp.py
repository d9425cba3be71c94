"""The SMTP agent over real sockets: against the model server, hostile scripts and Postfix's smtp-sink.

Standards RFC 5321 §4.5.3.2, §5.1; RFC 1047, RFC 2033, RFC 3207, RFC 7435, RFC 8314
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from unit.model_smtp_server import ModelServer, Plan
from unit.smtp_rig import CONTENT, PREFIX, agent_for, job, modelled, scripted, serving

from gateway.config_model import DeliveryConfig
from gateway.delivery.agent import BOUNCED, DEFERRED, DELIVERED, RELAYED
from gateway.delivery.budget import Budget
from gateway.net.connection import DeadlineSweep
from gateway.net.tls import TlsContexts

HELLO: tuple[str | bytes, ...] = (b"220 hi\r\n", "EHLO", b"250-hi\r\n250 PIPELINING\r\n")
SINK = shutil.which("smtp-sink", path="/usr/sbin:/usr/local/sbin:/usr/bin")


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs the test on uvloop, as the product does."""

    def run(*arguments: Any, **options: Any) -> None:
        uvloop.run(test(*arguments, **options))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__wrapped__ = test  # type: ignore[attr-defined]  # pytest reads the parameters there
    return run


def model(plans: list[Plan], *offers: str, **options: Any) -> tuple[ModelServer, Callable[[], ModelServer]]:
    """A model that sees what those of all connections see, and what makes one for a connection."""
    ledger = ModelServer(plans, offers=offers, **options)

    def make() -> ModelServer:
        server = ModelServer(plans, offers=offers, **options)
        server.received, server.commands = ledger.received, ledger.commands
        return server

    return ledger, make


# -- what goes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octetwise", [False, True])
@pytest.mark.parametrize("offers", [(), ("PIPELINING",), ("PIPELINING", "CHUNKING"), ("CHUNKING",)])
@on_loop
async def test_content_arrives_as_it_was(offers: tuple[str, ...], octetwise: bool) -> None:
    server, make = model([Plan(rcpts=(250, 550)) for _ in range(5)], *offers)
    async with (
        serving(modelled(make, octetwise=octetwise)) as port,
        agent_for(f"smtp://127.0.0.1:{port}") as (agent, lane),
    ):
        for number in range(5):
            agent.submit(job(number, 2), lane.done)
        answers = await lane.answers(5)
        assert [[o.state for o in outcomes] for outcomes in answers] == [[RELAYED, BOUNCED]] * 5
        assert answers[0][0].peer == f"127.0.0.1[127.0.0.1]:{port}"
    assert server.received == [(number, (0,), PREFIX + CONTENT) for number in range(5)]
    assert server.commands[-1] == "QUIT"


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("offers", [("PIPELINING",), ("PIPELINING", "CHUNKING")])
@on_loop
async def test_big_content_is_streamed(offers: tuple[str, ...], in_memory: bool) -> None:
    big = b"Subject: big\r\n\r\n" + b".dots\r\n" * 150_000
    server, make = model([Plan(), Plan(), Plan()], *offers)
    async with (
        serving(modelled(make)) as port,
        agent_for(f"smtp://127.0.0.1:{port}") as (agent, lane),
    ):
        agent.submit(job(0, content=big, in_memory=in_memory), lane.done)
        agent.submit(job(1, content=big, in_memory=in_memory), lane.done)
        agent.submit(job(2, in_memory=in_memory), lane.done)
        answers = await lane.answers(3)
        assert [outcomes[0].state for outcomes in answers] == [RELAYED] * 3
    assert [content for _, _, content in server.received] == [PREFIX + big, PREFIX + big, PREFIX + CONTENT]


@on_loop
async def test_line_ends_are_repaired_for_data() -> None:
    server, make = model([Plan()], "PIPELINING")
    async with serving(modelled(make)) as port, agent_for(f"smtp://127.0.0.1:{port}") as (agent, lane):
        agent.submit(job(content=b"Subject: x\n\n.\n\0.\0\nbody"), lane.done)
        await lane.answers(1)
    assert server.received == [(0, (0,), PREFIX + b"Subject: x\r\n\r\n.\r\n . \r\nbody\r\n")]


@on_loop
async def test_lmtp_by_socket_path(tmp_path: Path) -> None:
    server, make = model([Plan(rcpts=(250, 250, 250))], "PIPELINING", lmtp=True)
    server.plans[0].finals = (250, 452, 550)
    listener = await asyncio.start_unix_server(modelled(make), str(tmp_path / "lmtp"))
    async with agent_for(f"lmtp+unix:{tmp_path}/lmtp") as (agent, lane):
        agent.submit(job(0, 3), lane.done)
        (outcomes,) = await lane.answers(1)
        assert [o.state for o in outcomes] == [DELIVERED, DEFERRED, BOUNCED]
        assert outcomes[0].peer == f"{tmp_path}/lmtp"
    listener.close()


@on_loop
async def test_content_that_cannot_be_read_is_deferred() -> None:
    server, make = model([Plan() for _ in range(4)], "PIPELINING")
    async with serving(modelled(make)) as port, agent_for(f"smtp://127.0.0.1:{port}") as (agent, lane):
        agent.submit(job(0, broken=True), lane.done)
        agent.submit(job(1, broken=True, in_memory=False), lane.done)
        agent.submit(job(2, broken=True, content=b"x" * 600_000), lane.done)
        agent.submit(job(3), lane.done)
        answers = await lane.answers(4)
        assert [outcomes[0].state for outcomes in answers] == [DEFERRED] * 3 + [RELAYED]
        assert {outcomes[0].enhanced for outcomes in answers[:3]} == {"4.3.0"}
    assert [number for number, _, _ in server.received] == [3]  # nothing of the one that broke midway


# -- peers that misbehave ----------------------------------------------------------------------------------------------


async def one_job(*steps: str | bytes, rcpts: int = 1, **changes: Any) -> tuple[Any, Any]:
    """The outcomes of one job, and the connection failures."""
    async with (
        serving(scripted(*steps)) as port,
        agent_for(f"smtp://127.0.0.1:{port}", **changes) as (agent, lane),
    ):
        agent.submit(job(0, rcpts), lane.done)
        (outcomes,) = await lane.answers(1)
        return outcomes, lane.failures


@on_loop
async def test_drop_before_the_dot() -> None:
    outcomes, _ = await one_job(*HELLO, "DATA", b"250 ok\r\n250 ok\r\n", b"")
    assert outcomes[0].state == DEFERRED
    assert "connection lost while waiting for DATA" in outcomes[0].text
    assert "twice" not in outcomes[0].text


@on_loop
async def test_drop_behind_the_dot() -> None:
    replies = b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n"
    outcomes, _ = await one_job(*HELLO, "DATA", replies, ".\r\n", b"", rcpts=3)
    assert [o.state for o in outcomes] == [DEFERRED, BOUNCED, DEFERRED]
    assert "connection lost while waiting for end of data" in outcomes[0].text
    assert "may therefore arrive twice" in outcomes[0].text


@pytest.mark.parametrize(
    "steps",
    [
        ("DATA", b"421 4.3.2 bye\r\n"),
        ("DATA", b"250 ok\r\n421 4.3.2 bye\r\n"),
        ("DATA", b"250 ok\r\n250 ok\r\n421 4.3.2 bye\r\n"),
        ("DATA", b"250 ok\r\n250 ok\r\n354 go\r\n", ".", b"421 4.3.2 bye\r\n"),
    ],
)
@on_loop
async def test_shutdown_at_any_time(steps: tuple[str | bytes, ...]) -> None:
    outcomes, _ = await one_job(*HELLO, *steps, b"")
    assert (outcomes[0].state, outcomes[0].code, outcomes[0].text) == (DEFERRED, 421, "bye")


@on_loop
async def test_refused_mail_with_the_rest_behind_it() -> None:
    replies = b"550 5.1.8 who?\r\n503 5.5.1 no\r\n503 5.5.1 no\r\n503 5.5.1 no\r\n"
    outcomes, _ = await one_job(*HELLO, "DATA", replies, "QUIT", b"", rcpts=2)
    assert [(o.state, o.enhanced) for o in outcomes] == [(BOUNCED, "5.1.8")] * 2


@on_loop
async def test_garbage_is_transient() -> None:
    outcomes, _ = await one_job(*HELLO, "DATA", b"\xff\xfe\r\n", "*")
    assert (outcomes[0].state, outcomes[0].enhanced) == (DEFERRED, "4.5.0")


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ((b"554 5.7.1 go away\r\n",), 554),
        ((b"421 busy\r\n",), 421),
        ((b"220 hi\r\n", "EHLO", b"450 later\r\n"), 450),
        ((b"220 hi\r\n", "EHLO", b"500 what\r\n", "HELO", b"550 no\r\n"), 550),
        ((b"HTTP/1.1 400 Bad Request\r\n",), 0),
        ((b"",), 0),
        ((b"220 hi\r\n", "EHLO", b""), 0),
    ],
)
@on_loop
async def test_no_connection_means_no_outcome(steps: tuple[str | bytes, ...], code: int) -> None:
    outcomes, failures = await one_job(*steps, b"")
    assert outcomes == ()
    assert [(failure.state, failure.code) for failure in failures] == [(DEFERRED, code)]
    assert failures[0].enhanced.startswith("4")


@on_loop
async def test_connection_refused() -> None:
    with socket.socket() as unused:  # bound, but not listening
        unused.bind(("127.0.0.1", 0))
        async with agent_for(f"smtp://127.0.0.1:{unused.getsockname()[1]}", concurrency=3) as (agent, lane):
            for number in range(3):
                agent.submit(job(number), lane.done)
            assert await lane.answers(3) == [(), (), ()]
            assert lane.failures[0].text == "cannot connect: Connection refused"
            assert lane.failures[0].enhanced == "4.4.1"
            assert agent.capacity == 3


@on_loop
async def test_unknown_host() -> None:
    async with agent_for("smtp://no-such-host.invalid") as (agent, lane):
        agent.submit(job(), lane.done)
        assert await lane.answers(1) == [()]
        assert lane.failures[0].text.startswith("cannot connect: no-such-host.invalid")


@on_loop
async def test_the_next_address_is_tried() -> None:
    _, make = model([Plan()], "PIPELINING")
    async with serving(modelled(make)) as port, serving(scripted(b"554 not here\r\n", b"")) as second:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            addresses = [(socket.AF_INET, ("127.0.0.1", p)) for p in (unused.getsockname()[1], second, port)]

            async def resolve(host: str, port: int) -> Any:
                return addresses

            async with agent_for("smtp://mx.example:25", resolve=resolve) as (agent, lane):
                agent.submit(job(), lane.done)
                (outcomes,) = await lane.answers(1)
                assert (outcomes[0].state, outcomes[0].peer) == (RELAYED, f"mx.example[127.0.0.1]:{port}")
                assert not lane.failures


@pytest.mark.parametrize(
    ("key", "steps", "expected"),
    [
        ("greeting_s", ("EHLO",), None),
        ("helo_s", (b"220 hi\r\n", "*"), None),
        ("mail_s", (*HELLO, "*"), "timed out waiting for MAIL"),
        ("rcpt_s", (*HELLO, "DATA", b"250 ok\r\n", "*"), "timed out waiting for RCPT"),
        ("data_init_s", (*HELLO, "DATA", b"250 ok\r\n250 ok\r\n", "*"), "timed out waiting for DATA"),
        (
            "data_done_s",
            (*HELLO, "DATA", b"250 ok\r\n250 ok\r\n354 go\r\n", "*"),
            "timed out waiting for end of data",
        ),
    ],
)
@on_loop
async def test_each_state_has_its_timeout(
    key: str, steps: tuple[str | bytes, ...], expected: str | None
) -> None:
    config = DeliveryConfig(**{key: 0.1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeadlineSweep, "INTERVAL_S", 0.02)
        outcomes, failures = await one_job(*steps, config=config)
    if expected is None:
        assert outcomes == () and "timed out" in failures[0].text
    else:
        assert outcomes[0].state == DEFERRED
        assert outcomes[0].text.startswith(expected)


@on_loop
async def test_a_peer_that_reads_nothing_is_given_up() -> None:
    config = DeliveryConfig(data_block_s=0.2)
    big = b"Subject: big\r\n\r\n" + b"x" * 70 * 400_000

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await scripted(*HELLO, "DATA", b"250 ok\r\n250 ok\r\n354 go\r\n")(reader, writer)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(30)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeadlineSweep, "INTERVAL_S", 0.02)
        async with (
            serving(handle) as port,
            agent_for(f"smtp://127.0.0.1:{port}", config=config) as (agent, lane),
        ):
            agent.submit(job(content=big), lane.done)
            (outcomes,) = await lane.answers(1)
            assert outcomes[0].state == DEFERRED and "twice" not in outcomes[0].text


# -- the pool ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_message_that_was_not_looked_at_goes_elsewhere() -> None:
    connections = 0
    _, make = model([Plan(), Plan(), Plan()], "PIPELINING")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            one = (*HELLO, "DATA", b"250 ok\r\n250 ok\r\n354 go\r\n", ".\r\n", b"250 ok\r\n", "MAIL", b"")
            await scripted(*one)(reader, writer)
        else:
            await modelled(make)(reader, writer)

    async with serving(handle) as port, agent_for(f"smtp://127.0.0.1:{port}") as (agent, lane):
        for number in range(3):
            agent.submit(job(number), lane.done)
        answers = await lane.answers(3)
        assert [outcomes[0].state for outcomes in answers] == [RELAYED] * 3
    assert connections == 2


@on_loop
async def test_concurrency_and_capacity() -> None:
    open_now = most = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            await modelled(lambda: ModelServer([Plan()] * 200, offers=("PIPELINING",)))(reader, writer)
        finally:
            open_now -= 1

    async with serving(handle) as port, agent_for(f"smtp://127.0.0.1:{port}", concurrency=4) as (agent, lane):
        assert agent.capacity == 4
        number = 0

        def pump() -> None:
            nonlocal number
            while number < 200 and agent.capacity > 0:
                agent.submit(job(number), done)
                number += 1

        def done(finished: Any, outcomes: Any) -> None:
            lane.done(finished, outcomes)
            if len(lane.outcomes) == 100:
                agent.set_concurrency(2)
            pump()

        pump()
        assert agent.capacity == 0 and agent.connections == 4
        answers = await lane.answers(200)
        assert {outcomes[0].state for outcomes in answers} == {RELAYED}
        await lane.until(lambda: agent.connections == 2)
        assert agent.capacity == 4  # two connections, each with one behind the running one
        assert lane.ready == 4
    assert most == 4


@on_loop
async def test_messages_per_connection() -> None:
    connections: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = ModelServer([Plan()] * 9, offers=("PIPELINING",))
        await modelled(lambda: server)(reader, writer)
        connections.append(len(server.received))

    async with (
        serving(handle) as port,
        agent_for(f"smtp://127.0.0.1:{port}", messages_per_connection=4) as (agent, lane),
    ):
        for number in range(9):
            agent.submit(job(number), lane.done)
        await lane.answers(9)
    assert sorted(connections) == [1, 4, 4]


@on_loop
async def test_idle_connections_say_good_bye() -> None:
    server, make = model([Plan()], "PIPELINING")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeadlineSweep, "INTERVAL_S", 0.02)
        async with (
            serving(modelled(make)) as port,
            agent_for(f"smtp://127.0.0.1:{port}", config=DeliveryConfig(idle_s=0.1)) as (agent, lane),
        ):
            agent.submit(job(), lane.done)
            await lane.answers(1)
            assert agent.connections == 1
            await lane.until(lambda: agent.connections == 0)
            assert server.commands[-1] == "QUIT"
            assert agent.capacity == 1


@on_loop
async def test_close_gives_back_what_was_not_begun() -> None:
    _, make = model([Plan()] * 4, "PIPELINING")
    async with (
        serving(modelled(make)) as port,
        agent_for(f"smtp://127.0.0.1:{port}") as (agent, lane),
    ):
        agent.submit(job(0), lane.done)
        await lane.until(lambda: lane.ready == 1)
        for number in range(1, 4):
            agent.submit(job(number), lane.done)
        agent.close()
        assert agent.capacity == 0
        agent.submit(job(4), lane.done)
        answers = await lane.answers(5)
        assert answers[0][0].state == RELAYED
        assert answers[-1] == answers[-2] == ()


@on_loop
async def test_close_while_connecting() -> None:
    async with serving(scripted("*")) as port, agent_for(f"smtp://127.0.0.1:{port}") as (agent, lane):
        agent.submit(job(0), lane.done)
        agent.close()
        assert await lane.answers(1) == [()]


@on_loop
async def test_source_address() -> None:
    seen: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[0])
        await modelled(lambda: ModelServer([Plan()]))(reader, writer)

    async with serving(handle) as port:
        url = f"smtp://127.0.0.1:{port}"
        async with agent_for(url, source_address=lambda family: "127.0.0.9") as (agent, lane):
            agent.submit(job(), lane.done)
            assert (await lane.answers(1))[0][0].state == RELAYED
        async with agent_for(url, source_address=lambda family: None) as (agent, lane):
            agent.submit(job(), lane.done)
            assert await lane.answers(1) == [()]
            assert "no source address" in lane.failures[0].text
    assert seen == ["127.0.0.9"]


# -- TLS ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def tls_server(pair: tuple[Path, Path], *, broken: bool = False) -> AsyncIterator[int]:
    """Offers STARTTLS; broken: answers the handshake with nonsense."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"250-hi\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
        if not (line := await reader.readline()).startswith(b"STARTTLS"):
            server = ModelServer([Plan()], offers=("PIPELINING",))
            writer.write(server.feed(line))
            while data := await reader.read(65536):
                writer.write(server.feed(data))
            return
        writer.write(b"220 go\r\n")
        if broken:
            await reader.read(100)
            writer.write(b"no TLS here\r\n")
            return
        await writer.start_tls(context)
        server = ModelServer([Plan()], offers=("PIPELINING",))
        while data := await reader.read(65536):
            writer.write(server.feed(data))

    async with serving(handle) as port:
        yield port


@pytest.mark.parametrize("mode", ["opportunistic", "required", "verify"])
@on_loop
async def test_starttls(mode: str, certificate: tuple[Path, Path]) -> None:
    async with (
        tls_server(certificate) as port,
        agent_for(
            f"smtp://127.0.0.1:{port}",
            tls=mode,
            tls_ca_file=str(certificate[0]),
            tls_name="mx.example.test",
            contexts=TlsContexts(),
        ) as (agent, lane),
    ):
        agent.submit(job(), lane.done)
        (outcomes,) = await lane.answers(1)
        assert outcomes[0].state == RELAYED
        assert outcomes[0].tls.startswith("TLSv1.3 TLS_")


@on_loop
async def test_verify_refuses_another_name(certificate: tuple[Path, Path]) -> None:
    async with (
        tls_server(certificate) as port,
        agent_for(
            f"smtp://127.0.0.1:{port}",
            tls="verify",
            tls_ca_file=str(certificate[0]),
            tls_name="other.example",
            contexts=TlsContexts(),
        ) as (agent, lane),
    ):
        agent.submit(job(), lane.done)
        assert await lane.answers(1) == [()]
        assert lane.failures[0].enhanced == "4.7.5"
        assert "certificate verification failed" in lane.failures[0].text


@pytest.mark.parametrize(("mode", "state"), [("opportunistic", RELAYED), ("required", None)])
@on_loop
async def test_broken_handshake(mode: str, state: int | None, certificate: tuple[Path, Path]) -> None:
    tries = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        server = ModelServer([Plan()], offers=("PIPELINING", "STARTTLS"))
        writer.write(b"220 hi\r\n")
        while data := await reader.read(65536):
            if data.startswith(b"STARTTLS"):
                writer.write(b"220 go\r\n")
                await reader.read(100)
                writer.write(b"no TLS here\r\n")
                return
            writer.write(server.feed(data))

    async with (
        serving(handle) as port,
        agent_for(f"smtp://127.0.0.1:{port}", tls=mode, contexts=TlsContexts()) as (agent, lane),
    ):
        agent.submit(job(), lane.done)
        (outcomes,) = await lane.answers(1)
        if state is None:
            assert outcomes == () and "TLS handshake failed" in lane.failures[0].text
        else:
            assert (outcomes[0].state, outcomes[0].tls) == (state, "")
            assert tries == 2 and not lane.failures


@on_loop
async def test_tls_from_the_first_octet(certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server, make = model([Plan()], "PIPELINING")
    async with (
        serving(modelled(make), context=context) as port,
        agent_for(
            f"smtps://localhost:{port}",
            tls="verify",
            tls_ca_file=str(certificate[0]),
            contexts=TlsContexts(),
        ) as (agent, lane),
    ):
        agent.submit(job(), lane.done)
        (outcomes,) = await lane.answers(1)
        assert outcomes[0].state == RELAYED and outcomes[0].tls
    assert server.received


# -- smtp-sink ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def smtp_sink(*options: str) -> AsyncIterator[int]:
    if SINK is None:
        pytest.skip("smtp-sink is not installed: apt-get install postfix")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([SINK, "-u", "nobody", *options, f"127.0.0.1:{port}", "64"])
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.interop
@pytest.mark.parametrize(
    ("options", "scheme", "state", "code"),
    [
        ((), "smtp", RELAYED, 250),
        (("-p",), "smtp", RELAYED, 250),  # no PIPELINING
        (("-e",), "smtp", RELAYED, 250),  # no EHLO
        (("-L",), "lmtp", DELIVERED, 250),
        (("-f", "mail"), "smtp", BOUNCED, 500),
        (("-f", "rcpt"), "smtp", BOUNCED, 500),
        (("-f", "data"), "smtp", BOUNCED, 500),
        (("-f", "."), "smtp", BOUNCED, 500),
        (("-r", "mail"), "smtp", DEFERRED, 450),
        (("-r", "rcpt"), "smtp", DEFERRED, 450),
        (("-r", "data"), "smtp", DEFERRED, 450),
        (("-r", "."), "smtp", DEFERRED, 450),
        (("-q", "mail"), "smtp", DEFERRED, 0),
        (("-q", "."), "smtp", DEFERRED, 0),
        (("-Q", "rcpt"), "smtp", DEFERRED, 421),
        (("-Q", "."), "smtp", DEFERRED, 421),
    ],
)
@on_loop
async def test_smtp_sink(options: tuple[str, ...], scheme: str, state: int, code: int) -> None:
    async with (
        smtp_sink(*options) as port,
        agent_for(f"{scheme}://127.0.0.1:{port}", concurrency=3) as (agent, lane),
    ):
        for number in range(20):
            agent.submit(job(number, 2), lane.done)
        answers = await lane.answers(20)
        states = {(o.state, o.code) for outcomes in answers for o in outcomes}
        assert states == {(state, code)}


# -- all next hops together --------------------------------------------------------------------------------------------


class Counted:
    """Servers that know how many connections all of them have."""

    def __init__(self) -> None:
        self.open = self.most = 0

    def around(self, make: Callable[[], ModelServer]) -> Any:
        serve = modelled(make)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.open += 1
            self.most = max(self.most, self.open)
            try:
                await serve(reader, writer)
            finally:
                self.open -= 1

        return handle


@pytest.mark.parametrize("limit", [1, 2, 3])
@on_loop
async def test_agents_share_a_budget_of_connections(limit: int) -> None:
    """Idle ones give way at once, busy ones between two messages; nobody starves, the limit holds."""
    count, budget = Counted(), Budget(limit)
    plans = [Plan() for _ in range(90)]
    async with contextlib.AsyncExitStack() as stack:
        lanes = []
        for _ in range(3):
            _, make = model(plans, "PIPELINING")
            port = await stack.enter_async_context(serving(count.around(make)))
            url = f"smtp://127.0.0.1:{port}"
            lanes.append(
                await stack.enter_async_context(agent_for(url, concurrency=2, budget=budget))
            )
        for number, (agent, lane) in enumerate(lanes):  # one after the other: the last ones' idle ones are closed
            agent.submit(job(number), lane.done)
            await lane.answers(1)
        for number in range(3, 33):
            for agent, lane in lanes:
                agent.submit(job(number), lane.done)
        for _, lane in lanes:
            assert all(o[0].state == RELAYED for o in await lane.answers(31))
            assert not lane.failures
        # A peer may see our next connection before it sees the end of the last.
        assert budget.open <= limit
        assert count.most <= limit + 2
    assert budget.open == 0
