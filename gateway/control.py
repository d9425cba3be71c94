"""The control channel: operators' questions and orders to running workers.

    Flow      CLI → ControlClient → state_dir/control/<worker>.sock → ControlServer → handler
    Files     one unix socket a worker; a dead worker's is replaced when it comes back
    Limits    REQUEST_MAX octets a request, ANSWER_MAX an answer, CLIENTS_MAX connections, IDLE_S
    Errors    ControlError for what an operator can repair; a handler's own bug is logged and answered
    Security  file permissions (0660 in a directory 0750) decide who may ask; no network

A request is a line {"cmd": name, …arguments}, its answer a line {"ok": true, "result": …} or
{"ok": false, "error": text}.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec
import orjson

from gateway.log import Log

REQUEST_MAX = 4 * 1024 * 1024  # a hundred thousand queue ids
ANSWER_MAX = 512 * 1024 * 1024
CLIENTS_MAX = 64
IDLE_S = 300.0
ANSWER_S = 30.0  # a worker that is alive and does not answer hangs

Handler = Callable[..., Any]


class ControlError(Exception):
    """The request cannot be done; str() tells the operator why."""


class ControlServer:
    """The worker's end.  Handlers get the arguments as keywords and return (or await) JSON values."""

    def __init__(self, directory: Path, worker: int, log: Log) -> None:
        self.path = directory / f"{worker}.sock"
        self._worker = worker
        self._log = log
        self._handlers: dict[str, tuple[Handler, type[msgspec.Struct]]] = {}
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    def register(self, name: str, handler: Handler) -> None:
        self._handlers[name] = handler, _arguments_of(handler)

    async def start(self) -> None:
        """Listen.  Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(self.path))
            os.chmod(self.path, 0o660)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=sock, limit=REQUEST_MAX, backlog=CLIENTS_MAX
            )
        except OSError:
            sock.close()
            raise

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self._clients):
            client.cancel()
        with contextlib.suppress(OSError):
            self.path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while len(self._clients) <= CLIENTS_MAX:
                async with asyncio.timeout(IDLE_S):
                    line = await reader.readline()
                if not line:
                    return
                writer.write(await self._answer(line) + b"\n")
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
        except (OSError, TimeoutError, ValueError):  # gone, asleep, or a line above the limit
            return
        except asyncio.CancelledError:
            return  # close(); the stream server would report the cancellation as an error
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = orjson.loads(line)
            known = self._handlers.get(request.pop("cmd"))
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            return _refusal("not a request")
        if known is None:
            return _refusal("unknown command")
        handler, kind = known
        try:
            result = handler(**msgspec.structs.asdict(msgspec.convert(request, kind)))
            if inspect.isawaitable(result):
                result = await result
            return orjson.dumps({"ok": True, "result": result})
        except msgspec.ValidationError as error:
            return _refusal(f"arguments: {error}")
        except (ControlError, ValueError) as error:
            return _refusal(str(error))
        except Exception:
            self._log.exception("control_failed", request=line[:200].decode("utf-8", "replace"))
            return _refusal("internal error; the gateway's log has the traceback")


def _arguments_of(handler: Handler) -> type[msgspec.Struct]:
    """What the handler takes, by its annotations: a request of other names or types is refused."""
    hints = get_type_hints(handler)
    fields = [
        (name, hints.get(name, Any))
        if parameter.default is parameter.empty
        else (name, hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(handler).parameters.items()
    ]
    return msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True, kw_only=True)


def _refusal(text: str) -> bytes:
    return orjson.dumps({"ok": False, "error": text})


# -- asking ----------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What one worker said."""

    worker: int
    result: Any  # None with an error
    error: str = ""


def workers_in(directory: Path) -> list[int]:
    """The workers that have a control socket, running or not."""
    return sorted(int(path.stem) for path in directory.glob("*.sock") if path.stem.isdigit())


class ControlClient:
    """The operator's end: plain blocking sockets, one connection a worker, kept for its life."""

    def __init__(self, directory: Path, timeout_s: float = ANSWER_S) -> None:
        self._directory = directory
        self._timeout_s = timeout_s
        self._sockets: dict[int, socket.socket] = {}

    def ask_all(self, cmd: str, **arguments: Any) -> list[Answer]:
        """Every running worker's answer; ControlError when none runs."""
        asked: list[int] = []
        answers: list[Answer] = []
        request = orjson.dumps({"cmd": cmd, **arguments}) + b"\n"
        for worker in workers_in(self._directory):
            try:
                self._connection(worker).sendall(request)
                asked.append(worker)
            except (FileNotFoundError, ConnectionRefusedError):
                self._drop(worker)  # left by a worker that is gone
            except PermissionError:
                raise ControlError(
                    f"{self._directory}: permission denied; be root or in the gateway's group"
                ) from None
            except OSError as error:
                self._drop(worker)
                answers.append(Answer(worker, None, str(error)))
        if not asked and not answers:
            raise ControlError(
                f"no gateway runs with its control sockets in {self._directory}; "
                "start it with: gateway serve --config FILE"
            )
        answers += [self._receive(worker) for worker in asked]
        return sorted(answers)

    def _connection(self, worker: int) -> socket.socket:
        sock = self._sockets.get(worker)
        if sock is None:
            sock = self._sockets[worker] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(self._timeout_s)
            sock.connect(str(self._directory / f"{worker}.sock"))
        return sock

    def _receive(self, worker: int) -> Answer:
        deadline = time.monotonic() + self._timeout_s
        parts: list[bytes] = []
        size = 0
        try:
            while not parts or not parts[-1].endswith(b"\n"):
                self._sockets[worker].settimeout(max(0.001, deadline - time.monotonic()))
                data = self._sockets[worker].recv(1 << 20)
                size += len(data)
                if not data or size > ANSWER_MAX:
                    raise ConnectionResetError("closed the control connection")
                parts.append(data)
            answer = orjson.loads(b"".join(parts))
        except TimeoutError:
            self._drop(worker)
            return Answer(worker, None, f"no answer within {self._timeout_s:g} s")
        except (OSError, orjson.JSONDecodeError) as error:
            self._drop(worker)
            return Answer(worker, None, str(error))
        if answer["ok"]:
            return Answer(worker, answer["result"])
        return Answer(worker, None, answer["error"])

    def _drop(self, worker: int) -> None:
        sock = self._sockets.pop(worker, None)
        if sock is not None:
            sock.close()

    def close(self) -> None:
        for worker in list(self._sockets):
            self._drop(worker)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def ask_siblings(
    directory: Path, cmd: str, *, skip: int, timeout_s: float = 2.0, **arguments: Any
) -> list[Any]:
    """The results of all other workers that answer in time (for /metrics in any of them)."""
    request = orjson.dumps({"cmd": cmd, **arguments}) + b"\n"

    async def ask(worker: int) -> Any:
        path = str(directory / f"{worker}.sock")
        reader, writer = await asyncio.open_unix_connection(path, limit=ANSWER_MAX)
        try:
            writer.write(request)
            return orjson.loads(await reader.readline()).get("result")
        finally:
            writer.close()

    def siblings() -> Iterator[Any]:
        for worker in workers_in(directory):
            if worker != skip:
                yield asyncio.wait_for(ask(worker), timeout_s)

    answers = await asyncio.gather(*siblings(), return_exceptions=True)
    return [answer for answer in answers if answer and not isinstance(answer, BaseException)]
