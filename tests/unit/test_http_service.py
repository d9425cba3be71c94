"""server/http.py: real requests over real sockets under uvloop."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import uvloop

from gateway.config_values import Networks
from gateway.server import http
from gateway.server.http import HttpService

ALL = Networks.parse(["127.0.0.0/8", "::1"])


async def text() -> bytes:
    return b"gateway_sessions_total 1.0\n"


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 60)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


def bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def url(service: HttpService, path: str) -> str:
    return f"http://127.0.0.1:{service.sock.getsockname()[1]}{path}"


def test_metrics_and_health() -> None:
    reasons: list[str] = []

    async def main() -> None:
        service = HttpService(
            bound(), metrics=text, health=lambda: reasons, allows=ALL.__contains__
        )
        await service.start()
        async with aiohttp.ClientSession() as client:
            async with client.get(url(service, "/metrics")) as answer:
                assert answer.status == 200
                assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert await answer.read() == await text()
            async with client.get(url(service, "/healthz")) as answer:
                assert answer.status == 200
                assert await answer.json() == {"healthy": True, "reasons": []}
            reasons.append("spool: disk full")
            async with client.get(url(service, "/healthz")) as answer:
                assert answer.status == 503
                assert (await answer.json())["reasons"] == ["spool: disk full"]
            async with client.get(url(service, "/")) as answer:
                assert answer.status == 404
            async with client.post(url(service, "/metrics"), data=b"x" * 100_000) as answer:
                assert answer.status == 405
        await service.close()

    run(main)


def test_other_networks_are_refused() -> None:
    async def main() -> None:
        service = HttpService(
            bound(), metrics=text, health=list, allows=Networks.parse(["192.0.2.0/24"]).__contains__
        )
        await service.start()
        async with aiohttp.ClientSession() as client:
            for path in ("/metrics", "/healthz", "/x"):
                async with client.get(url(service, path)) as answer:
                    assert answer.status == 403
        await service.close()

    run(main)


def test_a_unix_socket_is_guarded_by_its_permissions(tmp_path: Path) -> None:
    async def main() -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "http"))
        service = HttpService(sock, metrics=text, health=list, allows=Networks().__contains__)
        await service.start()
        connector = aiohttp.UnixConnector(str(tmp_path / "http"))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.get("http://gateway/metrics") as answer,
        ):
            assert answer.status == 200
        await service.close()

    run(main)


def test_an_error_or_a_slow_sibling_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ANSWER_S", 0.05)

    async def broken() -> bytes:
        raise RuntimeError("a bug")

    async def slow() -> bytes:
        await asyncio.sleep(10)
        return b""

    async def main() -> None:
        for metrics, status in ((broken, 500), (slow, 503)):
            service = HttpService(bound(), metrics=metrics, health=list, allows=ALL.__contains__)
            await service.start()
            async with (
                aiohttp.ClientSession() as client,
                client.get(url(service, "/metrics")) as answer,
            ):
                assert answer.status == status
                assert b"a bug" not in await answer.read()
            await service.close()

    run(main)


def test_who_only_stays_connected_does_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ANSWER_S", 3600.0)

    async def main() -> None:
        service = HttpService(bound(), metrics=text, health=list, allows=ALL.__contains__)
        await service.start()
        async with aiohttp.ClientSession() as client:
            async with client.get(url(service, "/healthz")) as answer:
                await answer.read()
            await service.close()

    run(main)


def test_connections_that_say_nothing_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 8)

    async def main() -> None:
        service = HttpService(bound(), metrics=text, health=list, allows=ALL.__contains__)
        await service.start()
        silent = [await asyncio.open_connection(*service.sock.getsockname()[:2]) for _ in range(40)]
        async with aiohttp.ClientSession() as client:
            async with client.get(url(service, "/metrics")) as answer:
                assert answer.status == 200
            assert await silent[0][0].read() == b""
            assert service._aiohttp is not None
            assert len(service._aiohttp.connections) <= 8
        for _, writer in silent:
            writer.close()
        await service.close()

    run(main)
