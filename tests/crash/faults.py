"""The Python side of faults.c: the named points, the control block, and the environment of who is preloaded.

Owns      POINTS (where a process can be made to die), Control (shared with it), Settled (what it recorded)
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# In the order of faults.c.  "any" is whichever comes next.
POINTS = {
    "any": "whichever comes next",
    "partition lock": "open of a partition's lock by its worker",
    "segment create": "open of a segment that is not there yet",
    "segment allocate": "posix_fallocate of its whole length",
    "segment probe": "first write of its last block, to learn which way of writing the disk takes",
    "segment fill": "zeros written through it once",
    "header copy": "its header, written as last block",
    "header": "its header, written as first block: from now on it is part of the log",
    "header reuse": "the same over a segment that was used before: its old records are gone",
    "directory sync": "fsync of the partition's directory",
    "group: message": "write of a group with a new message",
    "group: chunk": "write of a group with a piece of a large message",
    "group: end of chunks": "write of a group with the record that makes a large message whole",
    "group sync": "fdatasync of a group (write_method fdatasync)",
    "completion signalled": "the writer tells the loop that a group is on disk",
    "reply": "250 to the client",
    "next hop's reply": "250 from the next hop is read: RFC 1047's window is open",
    "group: result": "write of a group that says what became of some recipients",
    "group: update": "write of a group that says when to try again",
    "group: settled": "write of a group that says a message is done: the window is closed",
    "group: cut": "write of a group that says where a failed segment ends",
    "record read": "a record is read back, to be copied or delivered",
    "compaction copy": "write of a group with a message's copy; once it is told, the copy is the message",
    "segment remove": "unlink of a segment that nobody needs",
    "recovery: open": "a segment is opened at start",
    "recovery: read": "a segment is read at start",
    "recovery: set aside": "damaged octets are kept in damaged/",
    "recovery: remove": "unlink of a segment that was never finished",
    "adoption: lock": "open of the lock of a partition that nobody owns any more",
    "adoption: copy": "write of a group with its messages to the adopter's log",
    "adoption: settle": "write of a group that says so to the old log",
    "adoption: remove": "unlink of a segment of the old log",
    "adoption: lock removed": "unlink of the old lock",
    "adoption: end": "rmdir of the old partition",
}
NAMES = tuple(POINTS)
WHENS = ("before", "after", "midway")
SCOPES = ("worker", "supervisor", "everything")
DEATHS = 4096

ERRORS = ("write", "sync", "allocate", "unlink", "rename", "open", "read")
FIELDS = (
    *(f"{name}_{what}" for name in ERRORS for what in ("errno", "count")),
    *("short_octets", "refuse_direct", "refuse_dsync"),
    *("point", "when", "scope", "countdown"),
)


class Death(ctypes.Structure):
    """One SIGKILL that a process sent at a point."""

    _fields_ = [
        ("at_ns", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("pid", "point", "when", "scope")),
    ]


class Control(ctypes.Structure):
    """struct control, shared with the process under test."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in FIELDS),
        ("hits", ctypes.c_int32 * (len(POINTS) + 1)),
        ("kills", (ctypes.c_int32 * len(WHENS)) * (len(POINTS) + 1)),
        ("deaths", ctypes.c_int32),
        ("death", Death * DEATHS),
    ]

    def clear(self) -> None:
        """Leave everything alone; what was counted stays."""
        for name in FIELDS:
            setattr(self, name, 0)

    def arm(
        self, point: str, when: str = "before", scope: str = "worker", countdown: int = 1
    ) -> None:
        """SIGKILL at the countdown-th time that the point is reached."""
        self.countdown, self.when, self.scope = countdown, WHENS.index(when), SCOPES.index(scope)
        self.point = NAMES.index(point) + 1

    @property
    def armed(self) -> bool:
        return bool(self.point)

    def hits_of(self, point: str) -> int:
        return int(self.hits[NAMES.index(point) + 1])

    def kills_of(self, point: str, when: str) -> int:
        return int(self.kills[NAMES.index(point) + 1][WHENS.index(when)])


class Settled(NamedTuple):
    """A RESULT or SETTLED record when it was on disk."""

    at_ns: int  # time.monotonic_ns()
    number: int  # of the message; of SETTLED: see the payload
    kind: int
    payload: bytes


_SETTLED = struct.Struct("<8sqQII")  # struct settled
_MAGIC = b"SETTLED\0"


def read_settled(path: Path) -> Iterator[Settled]:
    """All of a file of struct settled; one that a kill cut short is left out: it was hardly on disk."""
    octets = path.read_bytes() if path.exists() else b""
    at = octets.find(_MAGIC)
    while at >= 0:
        following = octets.find(_MAGIC, at + 8)
        record = octets[at:following] if following >= 0 else octets[at:]
        if len(record) >= _SETTLED.size:
            _, at_ns, number, kind, length = _SETTLED.unpack_from(record)
            payload = record[_SETTLED.size :]
            if len(payload) == length:
                yield Settled(at_ns, number, kind, payload)
        at = following


def build(directory: Path) -> Path:
    """The preloaded library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")
    library = directory / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def make_control(path: Path) -> Control:
    """A fresh control block in a file."""
    path.write_bytes(bytes(ctypes.sizeof(Control)))
    return open_control(path)


def open_control(path: Path) -> Control:
    with path.open("r+b") as file:
        return Control.from_buffer(mmap.mmap(file.fileno(), 0))


def environment(library: Path, control: Path, settled: Path | None = None) -> dict[str, str]:
    """For a program that is to be preloaded and to import what is here."""
    root = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "FAULT_CONTROL": str(control),
        **({"FAULT_SETTLED": str(settled)} if settled is not None else {}),
        "PYTHONPATH": os.pathsep.join(
            (root, str(Path(root, "tests/unit")), str(Path(root, "tests/crash")))
        ),
    }
