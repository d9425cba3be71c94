"""Change notices of the store between the workers, and from command-line tools to them.

Owns      NoticeLink, send_notices()
Flow      Notices.publish() → NoticeLink.send() → a datagram to each other worker → Notices.receive()
Files     state_dir/control/<worker>.notices, a Unix datagram socket a worker
Limits    DATAGRAMS_PER_TURN read in one turn of the loop; net.unix.max_dgram_qlen bounds what waits
Errors    a worker that is gone gets nothing; one that does not read now is told later that it has missed something
Blocking  nothing: sockets are non-blocking
Security  file permissions (0660 in a directory 0750); a notice carries names and numbers, no mail
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from gateway.store.notices import DATAGRAM_OCTETS_MAX, LOST

SUFFIX = ".notices"
DATAGRAMS_PER_TURN = 64
RETRY_S = 0.05  # a worker that does not read: its loop is busy for the moment


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
        self._behind: set[str] = set()  # sockets that were full
        self._timer: asyncio.TimerHandle | None = None

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
        if self._socket is None:
            return
        for path in self._others:
            if not _send(self._socket, payload, path):
                self._behind.add(path)
        if self._behind and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RETRY_S, self._catch_up)

    def _catch_up(self) -> None:
        """Those whose socket was full get one notice for all that they have missed."""
        self._timer = None
        if self._socket is not None:
            self._behind = {path for path in self._behind if not _send(self._socket, LOST, path)}
            if self._behind:
                self._timer = asyncio.get_running_loop().call_later(RETRY_S, self._catch_up)

    def poll(self) -> None:
        """Read what other workers have sent so far."""
        if self._others and self._socket is not None:
            self._readable()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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
            for path in paths:
                if not _send(sock, payload, path):
                    time.sleep(RETRY_S)
                    _send(sock, LOST, path)


def _send(sock: socket.socket, payload: bytes, path: str) -> bool:
    """False: it did not fit now.  A worker that is gone needs none."""
    try:
        sock.sendto(payload, path)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
