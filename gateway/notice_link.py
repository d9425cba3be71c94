"""Change notices of the store between the workers, and from command-line tools to them.

Owns      NoticeLink, send_notices()
Flow      Notices.publish() → NoticeLink.send() → a datagram to each other worker → Notices.receive()
Files     state_dir/control/<worker>.notices, a Unix datagram socket a worker
Limits    DATAGRAMS_PER_TURN read in one turn of the loop; net.unix.max_dgram_qlen bounds what waits
Errors    a worker that is gone or does not read gets nothing: a session there looks again at its next command
Blocking  nothing: sockets are non-blocking
Security  file permissions (0660 in a directory 0750); a notice carries names and numbers, no mail
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from gateway.store.notices import DATAGRAM_OCTETS_MAX

SUFFIX = ".notices"
DATAGRAMS_PER_TURN = 64


class NoticeLink:
    """One worker's end."""

    def __init__(self, directory: Path, worker: int, workers: int) -> None:
        """directory: of the control sockets; workers: how many there are."""
        self._path = directory / f"{worker}{SUFFIX}"
        self._others = [
            str(directory / f"{other}{SUFFIX}") for other in range(workers) if other != worker
        ]
        self._socket: socket.socket | None = None
        self._receive: Callable[[bytes], None] = lambda _: None

    def open(self, receive: Callable[[bytes], None]) -> None:
        """receive gets each datagram, on the running loop.  Raises OSError."""
        self._receive = receive
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(str(self._path))
            os.chmod(self._path, 0o660)
        except OSError:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def send(self, payload: bytes) -> None:
        """To every other worker that reads."""
        if self._socket is not None and self._others:
            _send(self._socket, payload, self._others)

    def poll(self) -> None:
        """Read what other workers have sent so far."""
        if self._others and self._socket is not None:
            self._readable()

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)

    def _readable(self) -> None:
        assert self._socket is not None
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                payload = self._socket.recv(DATAGRAM_OCTETS_MAX)
            except OSError:  # nothing more
                return
            self._receive(payload)


def send_notices(directory: Path, payloads: Iterable[bytes]) -> None:
    """From outside of the workers: tell all of them."""
    paths = [str(path) for path in directory.glob(f"*{SUFFIX}")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        for payload in payloads:
            _send(sock, payload, paths)


def _send(sock: socket.socket, payload: bytes, paths: list[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            sock.sendto(payload, path)
