"""A whole worker inside the test process: real sockets, real spool, its own uvloop in a thread."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import uvloop

from gateway.app import Worker
from gateway.config import load
from gateway.net.listener import bind

BASE = """
hostname = "mx.example.test"
state_dir = "{state}"
workers = 1
drain_s = 2.0
[log]
file = "{state}/log.json"
format = "json"
flush_s = 0.0
[spool]
segment_octets = 4194304
min_free_octets = 1048576
[limits]
{calm}
"""
# The machine may have too much else to do; who tests that mail is refused for it says so.
CALM = dict.fromkeys(("shed_backlog", "shed_turn_s", "shed_commit_s", "shed_queue_s"), 0.0)
WAIT_S = 60.0


def is_free(port: int) -> bool:
    """Nobody listens there, and we may."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port nobody uses, below those that the system gives to clients: nobody will before we do."""
    numbers = random.SystemRandom()
    while not is_free(port := numbers.randint(15000, 32000)):
        pass
    return port


class RunningWorker:
    """`with RunningWorker(tmp_path, toml) as worker:`; toml is appended to BASE.

    Every "PORT" in toml becomes a free port; worker.ports lists them in order.
    """

    def __init__(self, directory: Path, toml: str, base: str = BASE) -> None:
        state = directory / "state"
        state.mkdir(parents=True, exist_ok=True)
        self.state = state
        self.ports: list[int] = []
        while "PORT" in toml:
            self.ports.append(free_port())
            toml = toml.replace("PORT", str(self.ports[-1]), 1)
        path = directory / "edge.toml"
        # Keys of the top level come first in TOML; sections given twice are merged by hand.
        calm = "\n".join(f"{key} = {value}" for key, value in CALM.items())
        path.write_text(merge(base.format(state=state, calm=calm), toml))
        self.config = load(path)
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self.worker: Worker = None  # type: ignore[assignment]
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> RunningWorker:
        self._thread.start()
        assert self._ready.wait(WAIT_S), "the worker did not start"
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the worker did not stop"

    def _run(self) -> None:
        uvloop.run(self._main())

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            sockets = {
                index: [bind(listen.address, reuse_port=True, mode=listen.mode)]
                for index, listen in enumerate(self.config.listen)
            }
            self.worker = Worker(self.config, sockets)
            await self.worker.start()
        except BaseException as error:
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        await self._stop.wait()
        await self.worker.stop()

    def call(self, function: Any, *args: Any) -> Any:
        """Run something on the worker's loop and wait for its result."""

        async def run() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(WAIT_S)

    def log(self) -> list[dict[str, Any]]:
        import orjson

        path = self.state / "log.json"
        return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def wait_for(self, event: str, count: int = 1, timeout_s: float = WAIT_S) -> list[dict[str, Any]]:
        """The log lines of this event, as soon as there are `count` of them."""
        end = time.monotonic() + timeout_s
        while True:
            found = [line for line in self.log() if line["event"] == event]
            if len(found) >= count:
                return found
            assert time.monotonic() < end, f"{len(found)} of {count} {event!r} lines"
            time.sleep(0.02)


def merge(base: str, extra: str) -> str:
    """base with extra behind it, where a [section] that both have becomes one."""
    head, *sections = ("\n" + base).split("\n[")
    extra_head, *extra_sections = ("\n" + extra).split("\n[")
    merged: dict[str, str] = {}
    arrays: list[str] = []
    for section in sections + extra_sections:
        if section.startswith("["):
            arrays.append(section)
            continue
        name, _, body = section.partition("]")
        merged[name] = merged.get(name, "") + body
    text = head + extra_head
    text += "".join(f"\n[{name}]{body}" for name, body in merged.items())
    return text + "".join(f"\n[{section}" for section in arrays)


class Client:
    """A plain SMTP client that shows every octet."""

    def __init__(self, port: int, timeout_s: float = WAIT_S) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def reply(self) -> list[str]:
        """The lines of the next reply; [] when the server closed instead."""
        lines: list[str] = []
        while True:
            while b"\r\n" not in self.buffer:
                try:
                    data = self.sock.recv(65536)
                except ConnectionResetError:
                    data = b""
                if not data:
                    return lines
                self.buffer += data
            line, _, self.buffer = self.buffer.partition(b"\r\n")
            lines.append(line.decode())
            if line[3:4] != b"-":
                return lines

    def code(self) -> int:
        lines = self.reply()
        return int(lines[-1][:3]) if lines else 0

    def command(self, text: str) -> list[str]:
        self.send(text.encode() + b"\r\n")
        return self.reply()

    def hello(self) -> None:
        assert self.code() == 220
        assert self.command("EHLO client.example")[-1].startswith("250")

    def message(self, content: bytes, sender: str = "a@example.org", to: str = "b@example.test") -> list[str]:
        """One transaction; the reply to its content (which must be stuffed already)."""
        self.command(f"MAIL FROM:<{sender}>")
        self.command(f"RCPT TO:<{to}>")
        assert self.command("DATA")[-1].startswith("354")
        self.send(content + b".\r\n")
        return self.reply()

    def closed(self) -> bool:
        """True when the server closed, and said nothing that was not read."""
        return not self.reply()
