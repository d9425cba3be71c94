"""The history of messages: the log's lines about them, kept for `gateway trace`.

Flow      Log → History.write(lines) → a file of this worker; find() reads the files of all
Files     <directory>/<worker>-<UTC start>.jsonl; a new one every day and at trace.file_octets
Limits    trace.keep_s and trace.keep_octets (per worker): the oldest files go first
Errors    none: lines that cannot be written are counted in lost_lines
Blocking  write() is one write(2) a group of lines; find() maps whole files: not for workers
Bugs      a line that was being written when the host crashed is skipped
"""

from __future__ import annotations

import mmap
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

SUFFIX = ".jsonl"
RETRY_S = 10.0  # after an error, before the next try to open a file
CLEAN_S = 600.0  # how often old files are looked for


class History:
    """The writing end: one for each worker."""

    def __init__(
        self,
        directory: Path,
        worker: int,
        *,
        file_octets: int,
        keep_s: float,
        keep_octets: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._worker = worker
        self._file_octets = file_octets
        self._keep_s = keep_s
        self._keep_octets = keep_octets
        self._clock = clock
        self._fd = -1
        self._size = 0
        self._day = -1
        self._retry_at = 0.0
        self._clean_at = 0.0
        self.lost_lines = 0

    def write(self, lines: list[bytes]) -> None:
        """Append the lines."""
        now = self._clock()
        if self._fd < 0 or self._size >= self._file_octets or int(now // 86400) != self._day:
            self._begin_file(now)
        if not now < self._clean_at <= now + CLEAN_S:  # the clock may have been set back
            self._clean_at = now + CLEAN_S
            self._clean(now)
        data = b"".join(lines)
        try:
            written = os.write(self._fd, data) if self._fd >= 0 else -1
        except OSError:
            written = -1
        if written < len(data):  # disk full: the torn line is skipped when it is read
            self.lost_lines += len(lines)
            self.close()
            self._retry_at = now + RETRY_S
        self._size += max(written, 0)

    def _begin_file(self, now: float) -> None:
        if now < self._retry_at <= now + RETRY_S:
            return
        self.close()
        start = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}"
        path = self._directory / f"{self._worker}-{start}{SUFFIX}"
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._fd).st_size
        except OSError:
            self._retry_at = now + RETRY_S
        self._day = int(now // 86400)

    def _clean(self, now: float) -> None:
        """Remove what is too old or too much; the file being written stays."""
        files = files_of(self._directory, self._worker)[:-1]
        total = self._size
        for path in reversed(files):
            try:
                found = path.stat()
                total += found.st_size
                if total > self._keep_octets or now - found.st_mtime > self._keep_s:
                    path.unlink()
            except OSError:
                continue  # gone already, or not ours to remove

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def files_of(directory: Path, worker: int | None = None) -> list[Path]:
    """The files of one worker or of all, the oldest first."""
    prefix = "*" if worker is None else str(worker)
    return sorted(
        directory.glob(f"{prefix}-*{SUFFIX}"), key=lambda path: path.name.partition("-")[2]
    )


def find(
    directory: Path, needle: str, *, after: float = 0.0, worker: int | None = None
) -> Iterator[dict[str, Any]]:
    """Every line that contains the text (as JSON writes it, case ignored), oldest first.

    after: skip files that were not written to since (seconds since 1970).
    """
    pattern = re.compile(re.escape(orjson.dumps(needle)[1:-1]), re.IGNORECASE)
    for path in files_of(directory, worker):
        try:
            if path.stat().st_mtime < after:
                continue
            with (
                open(path, "rb") as file,
                mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as octets,
            ):
                yield from _lines_with(octets, pattern)
        except (OSError, ValueError):  # removed meanwhile; empty files cannot be mapped
            continue


def _lines_with(octets: mmap.mmap, pattern: re.Pattern[bytes]) -> Iterator[dict[str, Any]]:
    at = 0
    while (match := pattern.search(octets, at)) is not None:
        start = octets.rfind(b"\n", 0, match.start()) + 1
        end = octets.find(b"\n", match.end())
        if end < 0:
            return  # torn, or being written
        at = end + 1
        try:
            line = orjson.loads(octets[start:end])
        except orjson.JSONDecodeError:
            continue
        if isinstance(line, dict):
            yield line


def lines_about(directory: Path, queue_id: str, *, after: float = 0.0) -> list[dict[str, Any]]:
    """The life of one message, and of the reports about it, in order."""
    found = find(directory, queue_id, after=after)
    mine = [line for line in found if queue_id in _ids_in(line)]
    return sorted(mine, key=lambda line: str(line.get("time", "")))


def _ids_in(line: dict[str, Any]) -> Iterable[object]:
    return (line.get("queue_id"), line.get("report"), line.get("report_of"))


def queue_ids(directory: Path, needle: str, keys: Iterable[str], limit: int) -> list[str]:
    """The latest messages with this text in one of these fields, the newest last."""
    wanted = needle.casefold()
    found: dict[str, None] = {}
    for line in find(directory, needle):
        queue_id = line.get("queue_id")
        if isinstance(queue_id, str) and any(_holds(line.get(key), wanted) for key in keys):
            found.pop(queue_id, None)
            found[queue_id] = None
    return list(found)[-limit:]


def _holds(value: object, wanted: str) -> bool:
    if isinstance(value, list):
        return any(_holds(element, wanted) for element in value)
    return isinstance(value, str) and wanted in value.casefold()
