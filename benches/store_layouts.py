"""Where bodies should be: rows of the account's database, an append-only pack, or a file each.

    Owns      the three layouts, reduced to what differs; the table of ARCHITECTURE.md ("The store")
    Flow      python benches/store_layouts.py [MESSAGES] → each layout in turn, ROUNDS times → medians
    Files     a scratch directory on the disk that is measured (TMPDIR)
    Errors    skips nothing: the corpus must be there

Everything else is the same: one SQLite database in WAL mode, synchronous = FULL, with the index and the headers.
CPU is the process's own, user and system.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apsw
from corpus import fetch

ROUNDS = 5
SINGLES = 500
BATCH = 50
PACK_LIVE_MIN = 0.5  # a pack with less is copied


class Rows:
    """A row a message, body included."""

    name = "rows"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.db = apsw.Connection(str(directory / "store.db"))
        for name, value in (
            ("auto_vacuum", 2), ("journal_mode", "wal"), ("synchronous", 2), ("mmap_size", 2**40),
            ("wal_autocheckpoint", 256),
        ):  # fmt: skip
            self.db.pragma(name, value)
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS message(id INTEGER PRIMARY KEY, place INTEGER, size INTEGER, header BLOB,"
            " body BLOB); CREATE TABLE IF NOT EXISTS mailbox(id INTEGER PRIMARY KEY, tail BLOB);"
            "INSERT OR IGNORE INTO mailbox VALUES(1, x'')"
        )

    def deliver(self, first: int, contents: Sequence[bytes]) -> None:
        places = self.write(first, contents)
        self.db.execute("BEGIN IMMEDIATE")
        for key, (place, content) in enumerate(zip(places, contents, strict=True), first):
            at = content.find(b"\r\n\r\n") + 4
            body = content[at:] if place is None else None
            self.db.execute(
                "INSERT INTO message VALUES(?,?,?,?,?)",
                (key, place, len(content) - at, content[:at], body),
            )
        tail = bytes(48 * (first % 32))
        self.db.execute("UPDATE mailbox SET tail=? WHERE id=1", (tail,))
        self.db.execute("COMMIT")

    def write(self, first: int, contents: Sequence[bytes]) -> list[int | None]:
        """Bodies that are not rows, durable; where they are."""
        return [None] * len(contents)

    def fetch(self) -> int:
        return sum(
            len(header) + len(body)
            for header, body in self.db.execute("SELECT header, body FROM message ORDER BY id")
        )

    def expunge(self, keys: Sequence[int]) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("DELETE FROM message WHERE id=?", ((key,) for key in keys))
        self.db.execute("COMMIT")
        self.reclaim()

    def reclaim(self) -> None:
        """Space goes back to the file system."""
        self.db.execute("PRAGMA incremental_vacuum").fetchall()
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        self.db.close()


class Packs(Rows):
    """Bodies one behind the other in a file."""

    name = "packs"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.fd = os.open(directory / "pack", os.O_RDWR | os.O_CREAT)
        self.end = os.fstat(self.fd).st_size

    def write(self, first: int, contents: Sequence[bytes]) -> list[int | None]:
        places: list[int | None] = []
        pieces = []
        for content in contents:
            body = content[content.find(b"\r\n\r\n") + 4 :]
            places.append(self.end)
            pieces.append(body)
            self.end += len(body)
        joined = b"".join(pieces)
        os.pwrite(self.fd, joined, self.end - len(joined))
        os.fdatasync(self.fd)
        return places

    def fetch(self) -> int:
        return sum(
            len(header) + len(os.pread(self.fd, size, place))
            for header, place, size in self.db.execute(
                "SELECT header, place, size FROM message ORDER BY id"
            )
        )

    def reclaim(self) -> None:
        rows = self.db.execute("SELECT id, place, size FROM message ORDER BY place").fetchall()
        live = sum(size for _, _, size in rows)
        if live < PACK_LIVE_MIN * self.end:
            new = os.open(self.directory / "pack.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            at = 0
            moved = []
            for key, place, size in rows:
                os.pwrite(new, os.pread(self.fd, size, place), at)
                moved.append((at, key))
                at += size
            os.fdatasync(new)
            self.db.execute("BEGIN IMMEDIATE")
            self.db.executemany("UPDATE message SET place=? WHERE id=?", moved)
            self.db.execute("COMMIT")
            os.rename(self.directory / "pack.new", self.directory / "pack")
            os.close(self.fd)
            self.fd, self.end = new, at
        super().reclaim()

    def close(self) -> None:
        os.close(self.fd)
        super().close()


class Files(Rows):
    """A file a body."""

    name = "files"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.bodies = directory / "bodies"
        self.bodies.mkdir(exist_ok=True)

    def write(self, first: int, contents: Sequence[bytes]) -> list[int | None]:
        for key, content in enumerate(contents, first):
            fd = os.open(self.bodies / str(key), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, content[content.find(b"\r\n\r\n") + 4 :])
            os.fdatasync(fd)
            os.close(fd)
        fd = os.open(self.bodies, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)
        return list(range(first, first + len(contents)))

    def fetch(self) -> int:
        octets = 0
        for header, place in self.db.execute("SELECT header, place FROM message ORDER BY id"):
            octets += len(header) + len((self.bodies / str(place)).read_bytes())
        return octets

    def expunge(self, keys: Sequence[int]) -> None:
        super().expunge(keys)
        for key in keys:
            (self.bodies / str(key)).unlink()


LAYOUTS: tuple[type[Rows], ...] = (Rows, Packs, Files)


def cpu_us(work: Callable[[], Any], count: int) -> tuple[float, float]:
    """(CPU, elapsed) microseconds each."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return (
        (time.process_time() - cpu) / count * 1e6,
        (time.perf_counter() - wall) / count * 1e6,
    )


def measure(layout: type[Rows], contents: list[bytes], scratch: Path) -> dict[str, float]:
    directory = scratch / layout.name
    shutil.rmtree(directory, ignore_errors=True)
    box = layout(directory)
    found: dict[str, float] = {}

    def singles() -> None:
        for key in range(SINGLES):
            box.deliver(key + 1, contents[key : key + 1])

    def batches() -> None:
        for at in range(SINGLES, len(contents), BATCH):
            box.deliver(at + 1, contents[at : at + BATCH])

    found["deliver, CPU us"], found["deliver, us"] = cpu_us(singles, SINGLES)
    found["deliver 50, CPU us"], found["deliver 50, us"] = cpu_us(batches, len(contents) - SINGLES)
    found["fetch all, CPU us"], _ = cpu_us(box.fetch, len(contents))
    keys = [key for key in range(1, len(contents) + 1) if key % 4]
    found["expunge 3 of 4, CPU us"], _ = cpu_us(lambda: box.expunge(keys), len(keys))
    live = sum(len(content) for key, content in enumerate(contents, 1) if not key % 4)
    found["space to content left"] = space(directory) / live
    box.close()
    # What a kill leaves is a log to be read again: SQLite's work, and whatever the layout has to look at.
    victim = subprocess.run(
        [sys.executable, __file__, "--die", layout.name, str(directory), str(len(contents) + 1)],
        check=False,
    )
    assert victim.returncode == -9

    def recover() -> None:
        again = layout(directory)
        again.db.execute("SELECT count(*) FROM message").fetchall()
        again.close()

    found["open after a kill, us"] = cpu_us(recover, 1)[1]
    return found


def space(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*"))


def die(layout: str, directory: Path, first: int) -> None:
    """Deliver a little, then be gone."""
    (kind,) = (one for one in LAYOUTS if one.name == layout)
    box = kind(directory)
    for key in range(first, first + 30):
        box.deliver(key, [b"A: b\r\n\r\n" + bytes(3000)])
    os.kill(os.getpid(), 9)


def mail(count: int) -> list[bytes]:
    found = []
    for path in fetch():
        content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if len(content) < 24_000 and b"\r\n\r\n" in content:
            found.append(content)
    return (found * (count // len(found) + 1))[:count]


def main() -> None:
    contents = mail(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
    rounds: dict[str, list[dict[str, float]]] = {layout.name: [] for layout in LAYOUTS}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(ROUNDS):
            for layout in LAYOUTS:
                rounds[layout.name].append(measure(layout, contents, Path(scratch)))
    names = list(rounds["rows"][0])
    print(f"| {len(contents)} messages | " + " | ".join(rounds) + " |")
    print("|---|" + "---:|" * len(rounds))
    for name in names:
        medians = [statistics.median(one[name] for one in found) for found in rounds.values()]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in medians) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--die"]:
        die(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
