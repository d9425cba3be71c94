"""Where log lines go: a file, a pipe, a socket or a terminal, without ever waiting for its reader.

Owns      Sink: the descriptor and the lines that wait for it
Limits    backlog_octets; what does not fit is dropped and counted
Errors    OSError never leaves; a line that could not be written is a lost line
Blocking  never, except that a regular file is written as files are
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import stat
from collections import deque

# write(2) of at most PIPE_BUF octets to a pipe is all or nothing and does not mingle with the lines
# of our sibling workers (pipe(7)).
PIPE_BUF = select.PIPE_BUF

RETRY_S = 0.05  # how soon a full pipe is tried again


class Sink:
    """One output for lines."""

    __slots__ = ("_backlog", "_chunk", "_fd", "_limit", "_loop", "_own", "_poll", "_reported",
                 "_retry", "_socket", "_waiting", "lost_lines")  # fmt: skip

    def __init__(
        self, fd: int, *, backlog_octets: int = 8 * 1024 * 1024, own: bool = False
    ) -> None:
        self._limit = backlog_octets
        self._backlog: deque[bytes] = deque()
        self._waiting = 0  # octets in the backlog
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._poll: select.poll | None = None
        self._chunk = 1 << 20
        self._fd = -1
        self._own = False
        self.lost_lines = 0
        self._reported = 0
        self._open(fd, own)

    def _open(self, fd: int, own: bool) -> None:
        self._fd, self._own = fd, own
        self._socket = self._poll = None
        self._chunk = 1 << 20
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return
        self._chunk = PIPE_BUF
        if stat.S_ISSOCK(mode):  # journald's
            self._socket = socket.socket(fileno=os.dup(fd))
            return
        # A description of our own: O_NONBLOCK on the inherited one would change it for the shell
        # that started us.  Where it cannot be had, poll(2) tells whether PIPE_BUF octets fit.
        try:
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)
        else:
            if own:
                os.close(fd)
            self._own = True

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Retry a full pipe by a timer of this loop."""
        self._loop = loop

    def write(self, lines: list[bytes]) -> None:
        """Write the lines now, or keep them while there is room."""
        if self._waiting > self._limit:
            self.lost_lines += len(lines)
        else:
            self._backlog.extend(lines)
            self._waiting += sum(map(len, lines))
        self._drain()

    def _drain(self) -> None:
        backlog = self._backlog
        while backlog:
            block = [backlog.popleft()]
            size = len(block[0])
            while backlog and size + len(backlog[0]) <= self._chunk:
                line = backlog.popleft()
                block.append(line)
                size += len(line)
            data = b"".join(block)
            written = self._send(data)
            if (
                written < 0
            ):  # disk full, reader gone: these lines are lost, the next ones may not be
                self.lost_lines += len(block)
                self._waiting -= size
                continue
            self._waiting -= written
            if written < size:
                backlog.appendleft(data[written:])
                self._try_later()
                return
        if self._reported != self.lost_lines:
            self._report_lost()

    def _send(self, data: bytes) -> int:
        """Octets written; 0 when the reader has no room; -1 when this output does not work."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if self._poll is not None and not self._poll.poll(0):
                return 0
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            return -1

    def _report_lost(self) -> None:
        lost, self._reported = self.lost_lines - self._reported, self.lost_lines
        line = b'{"level":"warning","event":"log_lost","lines":%d}\n' % lost
        if self._send(line) != len(line):
            self._reported -= lost  # again with the next lines

    def _try_later(self) -> None:
        if self._loop is not None and self._retry is None:
            self._retry = self._loop.call_later(RETRY_S, self._on_retry)

    def _on_retry(self) -> None:
        self._retry = None
        self._drain()

    def replace(self, fd: int) -> None:
        """Write to this descriptor from now on; it is ours to close."""
        self._drain()
        self._release()
        self._open(fd, True)
        self._drain()

    def close(self) -> None:
        """Write what can be written now; the rest is lost."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._drain()
        self._release()

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._own:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd, self._own = -1, False  # the number may soon be somebody else's
