"""The simulator itself: on programs of a few lines whose every outcome is known."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from powerloss import Trace, record, states

pytestmark = pytest.mark.crash

PREAMBLE = """
import os, sys
from powerloss import tell
os.chdir(sys.argv[1])

def write(path, data, how=0):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | how)
    os.write(fd, data)
    return fd

def sync_directory(path="."):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
"""


def run(tmp_path: Path, program: str, before: dict[str, bytes] | None = None, **how: Any) -> Trace:
    directory = tmp_path / "tree"
    directory.mkdir()
    for path, content in (before or {}).items():
        (directory / path).write_bytes(content)
    script = tmp_path / "program.py"
    script.write_text(PREAMBLE + program)
    command = [sys.executable, str(script), str(directory)]
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    return record(command, directory, tmp_path / "record", env=env, **how)


def found(tmp_path: Path, trace: Trace, sector: int = 512) -> set[tuple[str, ...]]:
    """What every state holds, and whether "done" had been told by then."""
    seen = set()
    for state in states(trace, limit=100_000, sector=sector, scratch=tmp_path / "states"):
        files = [
            f"{path.name}={path.read_text(errors='replace')}"
            for path in sorted(state.directory.iterdir())
        ]
        seen.add((*files, *(["told"] if state.told else [])))
    return seen


REPLACE = """
fd = write("new", b"2")
os.fsync(fd)
os.rename("new", "file")
sync_directory()
tell(b"done")
"""


def test_a_file_replaced_by_the_book(tmp_path: Path):
    trace = run(tmp_path, REPLACE, {"file": b"1"})
    assert found(tmp_path, trace) == {
        ("file=1",),
        ("file=1", "new="),
        ("file=1", "new=2"),
        ("file=1", "new=\0"),
        ("file=2",),
        ("file=2", "told"),
    }


@pytest.mark.parametrize(
    "left_out, loss", [("datasync", ("file=", "told")), ("dirsync", ("file=1", "told"))]
)
def test_what_leaving_out_a_sync_costs(tmp_path: Path, left_out: str, loss: tuple[str, ...]):
    trace = run(tmp_path, REPLACE, {"file": b"1"}).without(left_out)
    assert loss in found(tmp_path, trace)


def test_names_are_lost_and_kept_in_any_order(tmp_path: Path):
    trace = run(tmp_path, 'write("a", b"")\nwrite("b", b"")\nos.unlink("c")', {"c": b""})
    assert len(found(tmp_path, trace)) == 8


def test_a_write_is_torn_between_its_sectors(tmp_path: Path):
    program = 'os.pwrite(os.open("file", os.O_WRONLY), b"2" * 2048, 0)'
    trace = run(tmp_path, program, {"file": b"1" * 2048})
    assert len(found(tmp_path, trace, sector=512)) == 16
    assert len(found(tmp_path, trace, sector=4096)) == 2


def test_a_later_write_may_overtake_an_earlier_one(tmp_path: Path):
    program = """
fd = os.open("file", os.O_WRONLY)
os.pwrite(fd, b"2", 0)
os.pwrite(fd, b"3", 0)
os.pwrite(fd, b"4", 4096)
"""
    trace = run(tmp_path, program, {"file": b"1" + bytes(4095) + b"1"})
    outcomes = {(line[0][5], line[0][-1]) for line in found(tmp_path, trace)}
    assert outcomes == {(a, b) for a in "123" for b in "14"}


def test_dsync_writes_are_durable_when_they_return(tmp_path: Path):
    program = 'fd = write("file", b"2", os.O_DSYNC)\ntell(b"done")\nos.pwrite(fd, b"3", 0)'
    trace = run(tmp_path, program, {"file": b"1"})
    told = {line for line in found(tmp_path, trace) if "told" in line}
    assert told == {("file=2", "told"), ("file=3", "told")}
    assert ("file=1", "told") in found(tmp_path, trace.without("dsync"))


def test_only_what_ended_before_a_sync_began_is_covered(tmp_path: Path):
    program = """
fd = os.open("file", os.O_WRONLY)
os.pwrite(fd, b"2", 0)
os.fdatasync(fd)
os.pwrite(fd, b"3", 0)
tell(b"done")
"""
    trace = run(tmp_path, program, {"file": b"1"})
    told = {line for line in found(tmp_path, trace) if "told" in line}
    assert told == {("file=2", "told"), ("file=3", "told")}


def test_after_a_failed_sync_a_second_one_covers_nothing(tmp_path: Path):
    program = """
fd = os.open("file", os.O_WRONLY)
os.pwrite(fd, b"2", 0)
os.fdatasync(fd)
os.fdatasync(fd)
tell(b"done")
"""
    trace = run(tmp_path, program, {"file": b"1"})
    assert ("file=1", "told") not in found(tmp_path, trace)
    first = next(event for event in trace.events if event.kind == 3 and event.ended)
    first.result = -5  # EIO
    assert ("file=1", "told") in found(tmp_path, trace)


def test_a_trace_that_does_not_explain_the_directory_is_refused(tmp_path: Path):
    program = """
import mmap
fd = os.open("file", os.O_RDWR)
with mmap.mmap(fd, 4096) as view:
    view[0] = 50
"""
    with pytest.raises(RuntimeError, match="file"):
        run(tmp_path, program, {"file": bytes(4096)})


SQLITE = """
import sqlite3
db = sqlite3.connect("db")
db.execute("pragma journal_mode = JOURNAL")
db.execute("pragma synchronous = SYNCHRONOUS")
for number in range(4):
    with db:
        db.execute("insert into t values (?)", (number,))
    tell(b"%d" % number)
os._exit(0)
"""


@pytest.mark.parametrize(
    "journal, synchronous, durable",
    [("delete", "extra", True), ("delete", "full", False), ("wal", "full", True)],
)
def test_sqlite_keeps_what_it_says(tmp_path: Path, journal: str, synchronous: str, durable: bool):
    """Its documentation: FULL does not sync the directory after the journal was removed, EXTRA does."""
    first = tmp_path / "first"
    db = sqlite3.connect(first)
    db.execute(f"pragma journal_mode = {journal}")
    db.execute("create table t (n)")
    db.close()
    program = SQLITE.replace("JOURNAL", journal).replace("SYNCHRONOUS", synchronous)
    trace = run(tmp_path, program, {"db": first.read_bytes()}, ignore=("*-shm",))
    lost = 0
    tried = states(trace, limit=300, scratch=tmp_path / "states")
    for state in tried:
        db = sqlite3.connect(state.directory / "db")
        rows = [n for (n,) in db.execute("select n from t order by n")]
        db.close()
        assert rows == list(range(len(rows))), state.what
        lost += len(rows) < len(state.told)
    assert tried.summary.tried > 50
    assert (lost == 0) == durable
