"""The control channel between operators and workers."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control import ControlClient, ControlError, ControlServer, ask_siblings
from gateway.log import Log
from gateway.log_sink import Sink


class Workers:
    """Control servers on a loop of their own thread."""

    def __init__(self, directory: Path, count: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.null = os.open(os.devnull, os.O_WRONLY)
        log = Log(Sink(self.null))
        self.servers = [ControlServer(directory, number, log) for number in range(count)]
        for server in self.servers:
            self.run(server.start())

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def register(self, name: str, handler: Callable[..., Any]) -> None:
        for server in self.servers:
            server.register(name, handler)

    def close(self) -> None:
        for server in self.servers:
            self.run(server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        os.close(self.null)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    running = Workers(tmp_path, 2)
    yield running
    running.close()


def test_all_workers_answer(workers: Workers, tmp_path: Path) -> None:
    for number, server in enumerate(workers.servers):
        server.register("who", lambda suffix, number=number: f"{number}{suffix}")
    with ControlClient(tmp_path) as client:
        assert [answer.result for answer in client.ask_all("who", suffix="!")] == ["0!", "1!"]
        assert [answer.worker for answer in client.ask_all("who", suffix="?")] == [0, 1]


def test_handlers_may_wait_and_answer_much(workers: Workers, tmp_path: Path) -> None:
    async def much(count: int) -> list[str]:
        await asyncio.sleep(0)
        return ["x" * 1000] * count

    workers.register("much", much)
    with ControlClient(tmp_path) as client:
        assert [len(answer.result) for answer in client.ask_all("much", count=3000)] == [3000, 3000]


def test_arguments_are_what_the_handler_takes(workers: Workers, tmp_path: Path) -> None:
    def shorten(text: str, limit: int = 3) -> str:
        return text[:limit]

    workers.register("shorten", shorten)
    with ControlClient(tmp_path) as client:
        answers = [client.ask_all("shorten", **arguments)[0] for arguments in (
            {"text": "abcde"}, {"text": "abcde", "limit": "2"}, {"text": 1}, {}, {"text": "a", "x": 1}
        )]  # fmt: skip
    assert [answer.result for answer in answers] == ["abc", None, None, None, None]
    assert all(answer.error.startswith("arguments: ") for answer in answers[1:])


def test_errors_are_told_and_the_connection_goes_on(workers: Workers, tmp_path: Path) -> None:
    def refuse() -> None:
        raise ControlError("no message 01ABC is queued here")

    def fail() -> None:
        raise RuntimeError("a bug")

    workers.register("refuse", refuse)
    workers.register("fail", fail)
    workers.register("well", lambda: 1)
    with ControlClient(tmp_path) as client:
        assert client.ask_all("refuse")[0].error == "no message 01ABC is queued here"
        assert "traceback" in client.ask_all("fail")[0].error
        assert client.ask_all("absent")[0].error == "unknown command"
        assert client.ask_all("well")[1].result == 1


def test_what_is_not_a_request(workers: Workers, tmp_path: Path) -> None:
    for octets in (b"\n", b"[]\n", b"{}\n", b'{"cmd":[]}\n', b"\xff\n", b'"x"\n'):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(tmp_path / "0.sock"))
            sock.sendall(octets)
            assert b'"ok":false' in sock.recv(1000)


def test_an_endless_line_ends_the_connection(workers: Workers, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(tmp_path / "0.sock"))
        with pytest.raises(OSError):
            while True:
                sock.sendall(b"x" * 1_000_000)


def test_a_worker_that_hangs_is_told_apart(workers: Workers, tmp_path: Path) -> None:
    async def hang() -> None:
        await asyncio.sleep(3600)

    workers.servers[0].register("state", lambda: "well")
    workers.servers[1].register("state", hang)
    with ControlClient(tmp_path, timeout_s=0.3) as client:
        first, second = client.ask_all("state")
    assert first.result == "well"
    assert "no answer within 0.3 s" in second.error


def test_without_a_gateway_the_client_says_so(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "0.sock"))
    stale.close()
    with ControlClient(tmp_path) as client, pytest.raises(ControlError, match="gateway serve"):
        client.ask_all("x")


def test_only_owner_and_group_may_ask(workers: Workers, tmp_path: Path) -> None:
    assert (tmp_path / "0.sock").stat().st_mode & 0o777 == 0o660


def test_a_dead_worker_s_socket_is_replaced(workers: Workers, tmp_path: Path) -> None:
    workers.run(workers.servers[0].close())
    assert not (tmp_path / "0.sock").exists()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "0.sock"))
    stale.close()
    workers.servers[0].register("state", lambda: "back")
    workers.servers[1].register("state", lambda: "here")
    workers.run(workers.servers[0].start())
    with ControlClient(tmp_path) as client:
        assert [answer.result for answer in client.ask_all("state")] == ["back", "here"]


def test_siblings_are_asked_and_silent_ones_left_out(workers: Workers, tmp_path: Path) -> None:
    async def hang() -> None:
        await asyncio.sleep(3600)

    (tmp_path / "7.sock").touch()
    workers.servers[1].register("metrics", lambda: {"worker": 1})
    assert workers.run(ask_siblings(tmp_path, "metrics", skip=0)) == [{"worker": 1}]
    workers.servers[0].register("metrics", hang)
    assert workers.run(ask_siblings(tmp_path, "metrics", skip=1, timeout_s=0.05)) == []
