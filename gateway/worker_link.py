"""What a worker gets from the supervisor: its context at the start, and a link for what changes later.

Flow      supervisor forks → WorkerContext → WorkerLink.attach() ⇄ send_to_worker()/WorkerReports
Owns      WorkerContext, Reload; both ends of the link (a socket pair)
Limits    a message is at most MESSAGE_MAX octets and brings at most 250 sockets (SCM_MAX_FD 253)
Errors    a link that ends means that the supervisor died: the worker drains and leaves
Security  to the worker: pickled, from the process that forked it, with descriptors (SCM_RIGHTS);
          to the supervisor, which may be root: JSON of a fixed shape, everything else is ignored
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from gateway.config_model import Config
from gateway.heartbeat import interval_s
from gateway.log import Log, wants_text
from gateway.log_sink import Sink
from gateway.net.tls import KeyPair

MESSAGE_MAX = 64 * 1024 * 1024  # a configuration with ten thousand certificates
SEND_S = 10.0  # a worker that does not read for so long hangs

_HEADER = struct.Struct("!IH")  # octets that follow, descriptors that come along

Kind = Literal["ready", "alive", "reloaded", "failed"]
Sockets = dict[int, list[socket.socket]]  # by index in config.listen


class KeyMaterial(msgspec.Struct, frozen=True):
    """Certificates and keys, read by the supervisor: the worker may not be allowed to."""

    default: KeyPair | None = None
    sni: tuple[KeyPair, ...] = ()

    @classmethod
    def read(cls, config: Config) -> KeyMaterial:
        """What [tls] names.  Raises TlsError."""
        tls = config.tls
        if tls.certificate is None or tls.key is None:
            return cls()
        sni = tuple(KeyPair.read(pair.certificate, pair.key, pair.names) for pair in tls.sni)
        return cls(KeyPair.read(tls.certificate, tls.key), sni)


class Reload(msgspec.Struct):
    """A new configuration, with the sockets it listens on: a socket that the worker had is the same
    object, so what is not in here any more can be told and closed."""

    config: Config
    keys: KeyMaterial
    sockets: Sockets


class WorkerContext:
    """Everything a worker starts with."""

    __slots__ = ("config", "index", "keys", "link", "log_fd", "orphans", "restarts", "sockets")

    def __init__(
        self,
        *,
        index: int,
        config: Config,
        keys: KeyMaterial,
        sockets: Sockets,
        link: WorkerLink,
        log_fd: int,
        orphans: list[int] | None = None,
        restarts: int = 0,
    ) -> None:
        self.index = index
        self.config = config
        self.keys = keys
        self.sockets = sockets  # bound, not yet listening
        self.link = link
        self.log_fd = log_fd
        self.orphans = orphans or []  # spool partitions that no worker owns any more: adopt them
        self.restarts = restarts  # how often this worker died before

    def open_log(self, history: Callable[[list[bytes]], None] | None = None) -> Log:
        """The worker's log, on the descriptor that the supervisor opened."""
        settings = self.config.log
        return Log(
            Sink(self.log_fd, backlog_octets=settings.backlog_octets),
            worker=self.index,
            level=settings.level,
            text=wants_text(settings.format, self.log_fd),
            flush_s=settings.flush_s,
            history=history,
        )


class WorkerLink:
    """The worker's end."""

    def __init__(
        self,
        sock: socket.socket,
        addresses: dict[str, list[socket.socket]],
        heartbeat_s: float = 0.0,
    ) -> None:
        self._socket = sock
        self._heartbeat_s = heartbeat_s  # limits.heartbeat_s
        self._next_beat: asyncio.TimerHandle | None = None
        self._addresses = addresses  # what we listen on, by the supervisor's name for it
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_reload: Callable[[Reload], str | None] = lambda _: None
        self._on_stop: Callable[[], None] = lambda: None
        self._on_reopen: Callable[[int], None] = os.close

    def attach(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_reload: Callable[[Reload], str | None],
        on_stop: Callable[[], None],
        on_reopen: Callable[[int], None],
    ) -> None:
        """Call these from the loop.  on_stop: drain within config.drain_s, maybe called twice;
        on_reload returns why it failed, or None; on_reopen gets a descriptor of the log to keep."""
        self._loop = loop
        self._on_reload, self._on_stop, self._on_reopen = on_reload, on_stop, on_reopen
        self._socket.setblocking(False)
        loop.add_reader(self._socket.fileno(), self._readable)
        loop.add_signal_handler(signal.SIGTERM, on_stop)

    def report(self, kind: Kind, text: str = "") -> None:
        """Tell the supervisor: doors are open (and from now on that the loop turns), or how a reload went."""
        if kind == "ready":
            self._beat()
        line = msgspec.json.encode({"kind": kind, "text": text[:4096]}) + b"\n"
        with contextlib.suppress(OSError):  # it died, or is as good as dead
            self._socket.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _beat(self) -> None:
        if self._next_beat is not None:
            self._next_beat.cancel()
            self._next_beat = None
        if self._heartbeat_s and self._loop is not None:
            self.report("alive")
            self._next_beat = self._loop.call_later(interval_s(self._heartbeat_s), self._beat)

    def close(self) -> None:
        if self._next_beat is not None:
            self._next_beat.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 1 << 16, 253)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        self._buffer += data
        self._fds += fds
        while len(self._buffer) >= _HEADER.size:
            size, count = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + size
            if len(self._buffer) < end:
                break
            kind, payload = pickle.loads(self._buffer[_HEADER.size : end])
            fds, self._fds = self._fds[:count], self._fds[count:]
            del self._buffer[:end]
            self._take(kind, payload, fds)
        if not data:
            assert self._loop is not None
            self._loop.remove_reader(self._socket.fileno())
            self._on_stop()

    def _take(self, kind: str, payload: Any, fds: list[int]) -> None:
        if kind == "stop":
            self._on_stop()
        elif kind == "reopen":
            self._on_reopen(fds[0])
        elif kind == "reload":
            config, keys, names, new = payload
            fresh = {name: socket.socket(fileno=fd) for name, fd in zip(new, fds, strict=True)}
            known = self._addresses
            self._addresses = {n: [fresh[n]] if n in fresh else known[n] for n in names}
            sockets = {index: self._addresses[name] for index, name in enumerate(names)}
            self._heartbeat_s = config.limits.heartbeat_s
            self._beat()
            failed = self._on_reload(Reload(config, keys, sockets))
            self.report("failed" if failed else "reloaded", failed or "")


def send_to_worker(
    sock: socket.socket, kind: str, payload: Any = None, fds: list[int] | None = None
) -> None:
    """The supervisor's end.  Raises OSError (TimeoutError too) when the worker does not listen."""
    body = pickle.dumps((kind, payload), pickle.HIGHEST_PROTOCOL)
    if len(body) > MESSAGE_MAX:
        raise OSError(f"{len(body)} octets are too many for one message")
    sock.settimeout(SEND_S)
    data = _HEADER.pack(len(body), len(fds or [])) + body
    sent = socket.send_fds(sock, [data], fds) if fds else sock.send(data)
    sock.sendall(data[sent:])


class _Report(msgspec.Struct):
    kind: Kind
    text: str = ""


class WorkerReports:
    """Reads what a worker reports."""

    LINE_MAX = 65536

    def __init__(self) -> None:
        self._buffer = b""

    def read(self, sock: socket.socket) -> list[tuple[str, str]] | None:
        """(kind, text) of what arrived; None when the worker closed its end."""
        try:
            data = sock.recv(self.LINE_MAX, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, rest = (self._buffer + data).split(b"\n")
        self._buffer = rest[: self.LINE_MAX]
        found: list[tuple[str, str]] = []
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError):
                report = msgspec.json.decode(line, type=_Report)
                found.append((report.kind, report.text))
        return found
