"""The Python side of faults.c: compile it once, hand out its control block."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FIELDS = (
    "write_errno",
    "write_count",
    "sync_errno",
    "sync_count",
    "allocate_errno",
    "allocate_count",
    "unlink_errno",
    "unlink_count",
    "short_octets",
    "refuse_direct",
    "refuse_dsync",
    "kill_at",
    "kill_after",
    "calls",
)


class Control(ctypes.Structure):
    """struct control, shared with the process under test."""

    _fields_ = [(name, ctypes.c_int32) for name in FIELDS]

    def clear(self) -> None:
        for name in FIELDS:
            setattr(self, name, 0)


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
    path.write_bytes(bytes(4096))
    return open_control(path)


def open_control(path: Path) -> Control:
    with path.open("r+b") as file:
        return Control.from_buffer(mmap.mmap(file.fileno(), 4096))


def environment(library: Path, control: Path) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "FAULT_CONTROL": str(control),
        "PYTHONPATH": os.pathsep.join(
            (root, str(Path(root, "tests/unit")), str(Path(root, "tests/crash")))
        ),
    }
