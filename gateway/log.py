"""The log: one line an event, JSON for machines and text for terminals.

    Flow      event() → list → (flush_s or FLUSH_EVENTS) encode → Sink → fd
                                                              └→ history: lines about messages
    Files     standard output or log.file; reopen() after rotation
    Limits    log.backlog_octets of lines that nobody reads; more are dropped and counted, and the
              count is a line of its own once there is room
    Errors    never raises into the caller: a line that cannot be written is a lost line
    Threads   say() from any; all else belongs to the loop's thread
    Blocking  never, for pipes, sockets and terminals; a regular file is written as files are
    Bugs      lines longer than PIPE_BUF may mingle when several workers share one pipe

Field order of a JSON line: time, level, event, worker, then what the caller gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import orjson

from gateway.log_sink import Sink

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
LEVEL_NAMES = {number: name for name, number in LEVELS.items()}

# Events waiting for the timer: about 300 KiB of JSON, encoded in about 1 ms.
FLUSH_EVENTS = 1024

_COLOURS = {DEBUG: "\x1b[2m", INFO: "\x1b[36m", WARNING: "\x1b[33m", ERROR: "\x1b[31m"}
_RESET = "\x1b[0m"


class Log:
    """What happened.  `event` is the hot call; the other levels are for people."""

    __slots__ = (
        "_events",
        "_flush_s",
        "_heads",
        "_history",
        "_loop",
        "_millisecond",
        "_prefix",
        "_second",
        "_second_text",
        "_sink",
        "_thread",
        "_time_text",
        "_timer",
        "level",
        "text",
        "worker",
    )

    def __init__(
        self,
        sink: Sink,
        *,
        worker: int | None = None,
        level: str = "info",
        text: bool = False,
        flush_s: float = 0.1,
        history: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self._sink = sink
        self._history = history
        self._flush_s = flush_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0  # the loop's
        self._timer: asyncio.TimerHandle | None = None
        self._events: list[tuple[float, int, str, dict[str, Any]]] = []
        self._millisecond = -1
        self._time_text = b""
        self._second = -1
        self._second_text = b""
        self._heads: dict[tuple[int, str], bytes] = {}
        self._prefix = b"" if worker is None else b',"worker":%d' % worker
        self.worker = worker
        self.level = LEVELS[level]
        self.text = text

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on lines are written by a timer of this loop; before, each at once."""
        self._loop = loop
        self._thread = threading.get_ident()
        self._sink.attach(loop)

    # -- what callers say --------------------------------------------------------------------------

    def event(self, name: str, **fields: Any) -> None:
        """Something ordinary happened.  About 1 us; encoding and writing come later, in groups.

        Fields are plain values (str, int, float, bool, None, list, dict); they must not change
        afterwards.  A line with queue_id belongs to a message and is kept for `gateway trace`.
        """
        events = self._events
        events.append((time.time(), INFO, name, fields))
        if self._timer is None or len(events) >= FLUSH_EVENTS:
            self._schedule()

    def debug(self, name: str, **fields: Any) -> None:
        if self.level <= DEBUG:
            self._add(DEBUG, name, fields)

    def warning(self, name: str, **fields: Any) -> None:
        self._add(WARNING, name, fields)

    def error(self, name: str, **fields: Any) -> None:
        self._add(ERROR, name, fields)

    def exception(self, name: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        fields["traceback"] = traceback.format_exc()
        self._add(ERROR, name, fields)

    def _add(self, level: int, name: str, fields: dict[str, Any]) -> None:
        self._events.append((time.time(), level, name, fields))
        self._schedule()

    # -- writing -----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._loop is None or len(self._events) >= FLUSH_EVENTS:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._flush_s, self.flush)

    def flush(self) -> None:
        """Hand everything that waits to the sink."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        events, self._events = self._events, []
        if events:
            self._write(events)

    def _write(self, events: list[tuple[float, int, str, dict[str, Any]]]) -> None:
        lines: list[bytes] = []
        kept: list[bytes] = []
        keep = self._history is not None
        level, text = self.level, self.text
        for event in events:
            history = keep and "queue_id" in event[3]
            wanted = event[1] >= level
            if history or (wanted and not text):
                line = self._json(event)
                if history:
                    kept.append(line)
                if wanted and not text:
                    lines.append(line)
            if wanted and text:
                lines.append(self._text(event))
        if lines:
            self._sink.write(lines)
        if kept and self._history is not None:
            self._history(kept)

    def _json(self, event: tuple[float, int, str, dict[str, Any]]) -> bytes:
        at, level, name, fields = event
        try:
            body = orjson.dumps(fields)
        except TypeError:  # not a plain value: show it rather than lose the line
            body = orjson.dumps(_plain(fields))
        head = self._heads.get((level, name))
        if head is None:
            head = b'","level":"%b","event":"%b"%b' % (
                LEVEL_NAMES[level].encode(),
                name.encode(),
                self._prefix,
            )
            self._heads[level, name] = head
        comma = b"," if fields else b""
        return b"".join((self._time(at), head, comma, body[1:], b"\n"))

    def _text(self, event: tuple[float, int, str, dict[str, Any]]) -> bytes:
        at, level, name, fields = event
        clock = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
        worker = "" if self.worker is None else f" {self.worker}"
        words = [f"{clock}{worker} {_COLOURS[level]}{name:<12}{_RESET}"]
        tail = ""
        for key, value in fields.items():
            if key == "traceback":
                tail = "\n" + str(value).rstrip()
                continue
            shown = str(value) if not isinstance(value, str) else _printable(value)
            words.append(f"{key}={shown}")
        return (" ".join(words) + tail + "\n").encode("utf-8", "backslashreplace")

    def _time(self, at: float) -> bytes:
        """The beginning of a line up to its time: RFC 3339 with milliseconds, UTC; made once each."""
        millisecond = int(at * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
            self._time_text = b'{"time":"%b.%03dZ' % (self._second_text, rest)
        return self._time_text

    def reopen(self, fd: int) -> None:
        """Write to another descriptor, which is ours from now on (the file was rotated)."""
        self.flush()
        self._sink.replace(fd)

    def close(self) -> None:
        """Write what can be written now; what comes later is lost."""
        self.flush()
        self._loop = None
        self._sink.close()

    def say(self, level: int, name: str, fields: dict[str, Any]) -> None:
        """Any level, from any thread."""
        if level < self.level:
            return
        if self._loop is None or threading.get_ident() == self._thread:
            self._add(level, name, fields)
        else:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self._add, level, name, fields)

    @property
    def lost_lines(self) -> int:
        """Lines dropped since the start, because nobody read our output or the disk was full."""
        return self._sink.lost_lines


def _plain(value: object) -> object:
    """The value with whatever JSON cannot say written out (objects, lone surrogates, octets)."""
    if isinstance(value, dict):
        return {str(key): _plain(element) for key, element in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(element) for element in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def _printable(value: str) -> str:
    """The value, quoted when it would not read as one word (peers choose some of these octets)."""
    if value and value.isprintable() and " " not in value and '"' not in value:
        return value
    return orjson.dumps(value).decode("utf-8", "replace")


class LoggingBridge(logging.Handler):
    """Lines of the logging module (asyncio, aiohttp, our own modules without a Log) in our log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage()}
            if hasattr(record, "queue_id"):  # extra={"queue_id": …}: for `gateway trace`, too
                fields["queue_id"] = record.queue_id
            if record.exc_info and record.exc_info[0] is not None:
                fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        except Exception:  # a wrong format string in a library must not stop us
            fields = {"logger": record.name, "message": str(record.msg)}
        level = max((n for n in LEVEL_NAMES if n <= record.levelno), default=DEBUG)
        self._log.say(level, "log", fields)


def bridge_logging(log: Log) -> None:
    """Send everything that the logging module is told into this log."""
    root = logging.getLogger()
    root.handlers[:] = [LoggingBridge(log)]
    root.setLevel(log.level if log.level > DEBUG else INFO)
    logging.captureWarnings(True)


def wants_text(format_: str, fd: int) -> bool:
    """What log.format means for this descriptor."""
    return format_ == "text" or (format_ == "auto" and os.isatty(fd))
