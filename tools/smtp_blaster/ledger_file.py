"""Ledger files: what the source was promised and what the sink got, written so that a kill costs nothing.

    Owns      Ledger (writing), rows() and read() (reading), mark() (one remark from outside)
    Files     text, one line a message and recipient, tab separated: Message-ID, SHA-256, forward-path,
              time (Unix, ns).  A line that begins with "#" is a remark: "#", word, time, what about.
    Limits    lines wait in memory until flush() or LINES_WAITING
    Errors    ValueError names the line that is not a ledger's; OSError when the disk takes no more
    Security  tabs and line ends inside a field are written as spaces: a sender cannot forge a line

The remarks:
started, stopped    a writer, or several of one group: another start without a stop between is a kill
torn                the line above was cut short by a kill
killed              somebody says: now
refused, unknown    the source had a negative reply; had none at all behind the content
unconfirmed         the sink's connection ended before the client can be known to have its 250 (RFC 1047)

One write(2) in append mode carries whole lines, so several processes may share a file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

Entry = tuple[str, str, str]  # Message-ID, digest, forward-path
Row = tuple[str, str, str, str, int]  # kind, Message-ID, digest, forward-path, time (ns; 0 = not known)

ENTRY, REFUSED, UNKNOWN, UNCONFIRMED, KILLED, TORN = (
    "entry", "refused", "unknown", "unconfirmed", "killed", "torn"
)  # fmt: skip
STARTED, STOPPED = "started", "stopped"
REMARKS = {REFUSED, UNKNOWN, UNCONFIRMED, KILLED, STARTED, STOPPED}
ABOUT = {REFUSED: 5, UNKNOWN: 5, UNCONFIRMED: 5, STARTED: 4}  # fields, where they are not three
LINES_WAITING = 256


class Ledger:
    """Writes entries to a file; they are in it after flush(), also when this process is killed then."""

    def __init__(self, path: Path, *, append: bool = False, group: str = "") -> None:
        """append: go on behind what is there, as after a kill, or beside other processes.
        group: the same word for all processes that write beside each other; "" = alone."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (0 if append else os.O_TRUNC)
        self._fd = os.open(path, flags, 0o644)
        self._lines: list[str] = []
        if _is_torn(self._fd):
            self._lines.append(f"\n#\t{TORN}\t{time.time_ns()}\n")
        self._group = _field(group) or str(os.getpid())
        self._remark(STARTED, self._group)
        self.flush()

    def add(self, message_id: str, digest: str, forward_paths: Iterable[str]) -> None:
        """Accepted (the source) or taken (the sink)."""
        now = time.time_ns()
        name = _field(message_id)
        self._lines += [f"{name}\t{digest}\t{_field(path)}\t{now}\n" for path in forward_paths]
        if len(self._lines) >= LINES_WAITING:
            self.flush()

    def refuse(self, message_id: str, forward_paths: Iterable[str]) -> None:
        """The source had a negative reply for these."""
        self._about(REFUSED, message_id, forward_paths)

    def unknown(self, message_id: str, forward_paths: Iterable[str]) -> None:
        """The source sent the content, and the connection ended before a reply came."""
        self._about(UNKNOWN, message_id, forward_paths)

    def unconfirmed(self, message_id: str, forward_paths: Iterable[str]) -> None:
        """The sink took it, and the connection ended before the client can be known to have the reply."""
        self._about(UNCONFIRMED, message_id, forward_paths)

    def _about(self, word: str, message_id: str, forward_paths: Iterable[str]) -> None:
        for path in forward_paths:
            self._remark(word, f"{_field(message_id)}\t{_field(path)}")

    def _remark(self, word: str, about: str) -> None:
        self._lines.append(f"#\t{word}\t{time.time_ns()}\t{about}\n")

    def flush(self) -> None:
        if self._lines and self._fd >= 0:
            octets = memoryview("".join(self._lines).encode("utf-8", "surrogateescape"))
            self._lines.clear()
            while octets:
                octets = octets[os.write(self._fd, octets) :]

    def close(self) -> None:
        """Closed for good; again is nothing."""
        if self._fd >= 0:
            self._remark(STOPPED, self._group)
            self.flush()
            os.close(self._fd)
            self._fd = -1


def mark(path: Path, what: str) -> None:
    """Append "killed now" to a file of marks: duplicates around this instant are explained."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"#\t{KILLED}\t{time.time_ns()}\t{_field(what)}\n")


def read(path: Path) -> Iterator[Entry]:
    """The entries alone.  Raises ValueError."""
    for kind, message_id, digest, forward_path, _ in rows(path):
        if kind == ENTRY:
            yield message_id, digest, forward_path


def rows(path: Path) -> Iterator[Row]:
    """All of a file that means something.  A kill of its writer comes as a KILLED row, a line that a
    kill cut short as a TORN row.  Raises ValueError."""
    with path.open("rb") as file:
        yield from _rows(path, file)


def _rows(path: Path, file: BinaryIO) -> Iterator[Row]:
    state = _Reader(path)
    held: tuple[int, list[str]] | None = None  # a line is whole unless the next one says it is torn
    for number, octets in enumerate(file, 1):
        fields = octets[:-1].decode("utf-8", "surrogateescape").split("\t")
        if fields[:2] == ["#", TORN] or not octets.endswith(b"\n"):
            # The last line of all, or the one before the remark.
            torn = number - 1 if fields[:2] == ["#", TORN] else number
            if held is not None and held[0] != torn:
                yield from state.row(*held)
            held = None
            yield TORN, "", "", f"{path}:{torn}", 0
            continue
        if held is not None:
            yield from state.row(*held)
        held = number, fields
    if held is not None:
        yield from state.row(*held)


class _Reader:
    """Knows what the lines before mean for the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_at = 0  # the last sign of life, for kills that nobody marked
        self._group = ""  # of the writers that started and did not stop

    def row(self, number: int, fields: list[str]) -> Iterator[Row]:
        if fields[0] != "#":
            at = self._time(number, fields)
            yield ENTRY, fields[0], fields[1], fields[2], at
        else:
            word, at = self._remark(number, fields)
            if word == STARTED:
                if self._group not in ("", fields[3]):
                    what = f"{self._path}:{number}: its writer was killed"
                    yield KILLED, "", "", what, self._last_at or at
                self._group = fields[3]
            elif word == STOPPED:
                self._group = ""
            elif word == KILLED:
                yield KILLED, "", "", " ".join(fields[3:]), at
            else:
                yield word, fields[3], "", fields[4], at
        self._last_at = max(self._last_at, at)

    def _time(self, number: int, fields: list[str]) -> int:
        if len(fields) == 4 and fields[3].isdecimal():
            return int(fields[3])
        if len(fields) != 3:
            raise ValueError(f"{self._path}:{number}: not a ledger entry: {fields}")
        return 0

    def _remark(self, number: int, fields: list[str]) -> tuple[str, int]:
        if len(fields) < 3 or fields[1] not in REMARKS or not fields[2].isdecimal():
            raise ValueError(f"{self._path}:{number}: not a remark of a ledger: {fields}")
        if len(fields) < ABOUT.get(fields[1], 3):
            raise ValueError(f"{self._path}:{number}: a remark cut short: {fields}")
        return fields[1], int(fields[2])


def _field(text: str) -> str:
    return " ".join(text.split("\t")).replace("\n", " ") if "\t" in text or "\n" in text else text


def _is_torn(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
