"""Power loss, replayed: every state in which a disk may be left, from a record of what was done to it.

    Owns      Trace (what happened, and what was told to whom by then), States (the disks that may be left)
    Flow      record(command, directory) → Trace → states(trace) → State.directory, to be recovered and judged
    Files     recorder.c is preloaded into the command and writes the trace
    Limits    exhaustive where a stretch of the trace leaves few states, sampled by seed where it leaves many;
              States.summary() tells how many of how many
    Errors    RuntimeError when the trace does not explain the directory that is really there
    Bugs      stores through mmap and stdio's own writes are not recorded; Trace.verify() finds out

    trace = record([sys.executable, "victim.py"], directory, scratch)   # victim: tell(b"A 17") after an acknowledgement
    for state in states(trace, seed=1, limit=10_000, scratch=elsewhere):
        recover(state.directory)
        assert ... state.told, state.told_first

The disk that is assumed promises this and no more:

* A write is durable when its call returned and the file was opened with O_DSYNC (or O_SYNC, or RWF_DSYNC was given), or
  when an fdatasync or fsync of the file that began after it returned 0.  With the data its file's length is durable.
* A name (created, renamed, linked, removed) is durable when an fsync of its directory that began after the call
  returned 0; for a rename from one directory to another: of both.  An fsync of the file itself makes no name durable.
* After a sync that failed nothing it should have covered is ever made durable by a later sync, only by writing it
  again; it may reach the disk all the same.  The same for a write that failed.
* Whatever else was begun may be on the disk or not, each on its own: any subset of calls, in any order, and of one
  write any subset of its sectors.  A file may have a new length without its data, which then reads as zeros.
* A sector (512 or 4096 octets) is old or new, never a mixture.  A rename is done or not, never half.

Not assumed, though ext4, XFS and btrfs give some of it: that a synced file has its name, that a directory shows changes
in their order, that data comes before the length that makes it visible, that what was written first arrives first.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

OPEN, WRITE, DATASYNC, SYNC, TRUNCATE, ALLOCATE, RENAME, UNLINK, MKDIR, RMDIR, LINK, MARK = range(
    1, 13
)
DURABLE, ZEROS, EMPTIED = 1, 2, 4
EVENT = struct.Struct("<IBBHQQqqiI")  # struct event of recorder.c

DIRECTORY = -1  # in place of a file's number

MARKS = "POWERLOSS_MARKS"


def tell(mark: bytes) -> None:
    """In the recorded program: this was told to somebody now.  One line; without a recorder nothing happens."""
    path = os.environ.get(MARKS)
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, mark + b"\n")
        finally:
            os.close(fd)


# -- the trace -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Event:
    kind: int
    ended: bool  # False: the call begins
    flags: int
    call: int
    file: int  # inode
    offset: int
    length: int
    result: int
    paths: tuple[str, ...]  # relative to the directory, "" for itself
    data: bytes


@dataclass
class Trace:
    """What was done to a directory."""

    base: dict[str, bytes | None]  # before: path → content, None for a directory
    events: list[Event]
    inodes: dict[int, str]  # of the files of base
    final: dict[str, bytes | None] = field(default_factory=dict)

    @property
    def marks(self) -> list[bytes]:
        return [line for _, line in self.told()]

    def told(self) -> list[tuple[int, bytes]]:
        """(position of the event, line) of every mark."""
        return [
            (at, line)
            for at, event in enumerate(self.events)
            if event.kind == MARK and not event.ended
            for line in event.data.splitlines()
        ]

    def without(self, *kinds: str) -> Trace:
        """The trace of a program that leaves something out: to show that states() finds what that loses.

        "datasync" (fdatasync, and fsync of files), "dsync" (O_DSYNC, RWF_DSYNC), "dirsync" (fsync of directories).
        """
        directories = self._directories_synced()
        events = []
        for event in self.events:
            if event.kind in (DATASYNC, SYNC):
                left_out = "dirsync" if event.call in directories else "datasync"
                if left_out in kinds:
                    continue
            if event.kind == WRITE and "dsync" in kinds:
                event = replace(event, flags=event.flags & ~DURABLE)
            events.append(event)
        return Trace(self.base, events, self.inodes, self.final)

    def _directories_synced(self) -> set[int]:
        disk = _Disk(self)
        found = set()
        for at, event in enumerate(self.events):
            if event.kind in (DATASYNC, SYNC) and not event.ended and disk.is_directory(event):
                found.add(event.call)
            disk.apply(at, event)
        return found

    def verify(self, ignore: Collection[str] = ()) -> None:
        """The trace, replayed whole, gives the directory that was found at the end.  RuntimeError when not."""
        disk = _Disk(self)
        for at, event in enumerate(self.events):
            disk.apply(at, event)
        image = disk.image(unit for unit in disk.units() if not unit[0].failed)
        wrong = [
            path
            for path in sorted({*image, *self.final})
            if image.get(path, b"-") != self.final.get(path, b"-")
            and not any(PurePosixPath(path).match(pattern) for pattern in ignore)
        ]
        if wrong:
            raise RuntimeError(f"not explained by the calls that were recorded: {wrong}")


def snapshot(directory: Path) -> dict[str, bytes | None]:
    """path → content of everything below directory."""
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
    }


def build(directory: Path) -> Path:
    """The preloaded recorder.  RuntimeError without a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler: apt-get install gcc")
    library = directory / "recorder.so"
    source = Path(__file__).with_name("recorder.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Recording:
    """The environment in which a program's changes to directory are written down; trace() when it is over."""

    def __init__(self, directory: Path, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.directory = directory.resolve()
        self._events = scratch / "trace"
        self._events.unlink(missing_ok=True)
        marks = scratch / "marks"
        marks.write_bytes(b"")
        self.environment = {
            "LD_PRELOAD": str(build(scratch)),
            "POWERLOSS_DIRECTORY": str(self.directory),
            "POWERLOSS_TRACE": str(self._events),
            MARKS: str(marks.resolve()),
        }
        self._base = snapshot(self.directory)
        self._inodes = {
            (self.directory / path).stat().st_ino: path
            for path, content in self._base.items()
            if content is not None
        }

    def trace(self) -> Trace:
        octets = self._events.read_bytes() if self._events.exists() else b""
        events = list(_read_events(octets, f"{self.directory}"))
        return Trace(self._base, events, self._inodes, snapshot(self.directory))


def record(
    command: Sequence[str],
    directory: Path,
    scratch: Path,
    *,
    env: dict[str, str] | None = None,
    timeout_s: float = 120.0,
    ignore: Collection[str] = (),
) -> Trace:
    """Run command and write down what it does to directory.  It must end by itself, with 0 or killed by its own hand.

    env is added to the environment; a further LD_PRELOAD comes behind the recorder's, so that the calls it makes fail
    are recorded as failed.  ignore: patterns of files that are not looked at (what is only mapped).
    """
    recording = Recording(directory, scratch)
    extra = env or {}
    preload = [recording.environment["LD_PRELOAD"], extra.get("LD_PRELOAD", "")]
    environment = {**os.environ, **extra, **recording.environment}
    environment["LD_PRELOAD"] = " ".join(filter(None, preload))
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    trace = recording.trace()
    trace.verify(ignore)
    return trace


def _read_events(octets: bytes, root: str) -> Iterator[Event]:
    at = 0
    while at + EVENT.size <= len(octets):
        size, kind, phase, flags, call, file, offset, length, result, path_octets = (
            EVENT.unpack_from(octets, at)
        )
        start = at + EVENT.size
        paths = octets[start : start + path_octets].split(b"\0")[:-1]
        data = octets[start + path_octets : at + size]
        if flags & ZEROS and not phase:
            data = bytes(length)
        names = tuple(_relative(os.fsdecode(path), root) for path in paths)
        yield Event(kind, bool(phase), flags, call, file, offset, length, result, names, data)
        at += size


def _relative(path: str, root: str) -> str:
    return os.path.normpath(path).removeprefix(root).lstrip("/")


# -- the disk --------------------------------------------------------------------------------------


class _File:
    __slots__ = ("image", "size", "view_size")

    def __init__(self, content: bytes = b"") -> None:
        self.image = bytearray(content)  # durable octets
        self.size = len(content)  # durable length
        self.view_size = len(content)  # as the program sees it


@dataclass(eq=False, slots=True)
class _Op:
    """One call that is not durable yet."""

    kind: int
    begun: int  # position of its event
    file: _File | None = None
    offset: int = 0
    data: bytes = b""
    length: int = -1  # of the file afterwards, -1: as it is
    paths: tuple[str, ...] = ()
    sectors: set[int] = field(default_factory=set)  # that are not superseded
    ended: bool = False
    spoiled: bool = False  # a sync that should have covered it failed, or it failed itself
    failed: bool = False  # it failed itself
    directories: set[str] = field(default_factory=set)  # that must be synced


Unit = tuple[_Op, int]  # what is on the disk or not: a sector of a write, or NAME or LENGTH
NAME, LENGTH = -1, -2


class _Disk:
    """What is durable, and what may be on the disk besides."""

    def __init__(self, trace: Trace, sector: int = 4096) -> None:
        self.sector = sector
        self.names: dict[str, _File | None] = {
            path: None if content is None else _File(content)
            for path, content in trace.base.items()
        }
        self.view = dict(self.names)
        self.files: dict[int, _File] = {}  # by inode, as the program sees them
        for inode, path in trace.inodes.items():
            found = self.names[path]
            assert found is not None
            self.files[inode] = found
        self.pending: list[_Op] = []
        self.epoch = 0  # grows when something becomes durable
        self._calls: dict[int, _Op] = {}
        self._syncs: dict[int, tuple[Event, list[_Op]]] = {}

    def is_directory(self, event: Event) -> bool:
        path = event.paths[0]
        return not path or (path in self.view and self.view[path] is None)

    def apply(self, at: int, event: Event) -> None:
        if event.kind == MARK:
            return
        if event.ended:
            self._end(event)
        elif event.kind in (DATASYNC, SYNC):
            self._syncs[event.call] = event, self._covered(event)
        else:
            self._calls[event.call] = self._begin(at, event)

    # -- calls begin and end -----------------------------------------------------------------------

    def _begin(self, at: int, event: Event) -> _Op:
        op = _Op(event.kind, at)
        if event.kind in (WRITE, TRUNCATE, ALLOCATE):
            file = op.file = self.files.setdefault(event.file, _File())
            op.offset, op.data = event.offset, event.data
            end = event.offset + event.length
            if event.kind == WRITE:
                op.sectors = set(self._sectors(op))
            if event.kind == TRUNCATE or end > file.view_size:
                op.length = file.view_size = end
        else:
            op.paths = event.paths
            op.directories = {os.path.dirname(path) for path in event.paths}
            if event.kind == LINK:
                op.directories = {os.path.dirname(event.paths[1])}
            if event.kind == OPEN:
                op.length = 0 if event.flags & EMPTIED else -1
                return op  # whether it makes a file is known when it ends
            _rename(self.view, op, self.view.get(op.paths[0]))
        self.pending.append(op)
        return op

    def _end(self, event: Event) -> None:
        if event.kind in (DATASYNC, SYNC):
            self._synced(event)
            return
        op = self._calls.pop(event.call, None)
        if op is None:
            return
        op.ended = True
        failed = event.result < 0 or (event.kind == ALLOCATE and event.result > 0)
        if event.kind == OPEN:
            if not failed:
                self._opened(op, event)
            return
        if event.kind == WRITE:
            if failed:
                op.spoiled = op.failed = True
            else:
                self._written(op, event)
        elif failed:  # changes of names and lengths are all or nothing
            self.pending.remove(op)
            self._look_again()

    def _opened(self, op: _Op, event: Event) -> None:
        path = op.paths[0]
        if path in self.view:
            file = self.view[path]
            assert file is not None
            if op.length == 0 and file.view_size:
                op.kind, op.file, op.paths = TRUNCATE, file, ()
                file.view_size = 0
                self.pending.append(op)
            return
        op.file, op.length = _File(), -1
        self.files[event.file] = op.file
        self.view[path] = op.file
        self.pending.append(op)

    def _written(self, op: _Op, event: Event) -> None:
        durable = event.flags & DURABLE
        assert op.file is not None
        if event.result < len(op.data):  # what was not taken was not written
            op.data = op.data[: event.result]
            op.sectors &= set(self._sectors(op))
            if op.length >= 0:
                op.length = op.offset + event.result
                self._look_again()
        if durable:
            self._settle([p for p in self.pending if p is op or _shortened_before(p, op)])

    def _look_again(self) -> None:
        self.view = dict(self.names)
        for file in self.files.values():
            file.view_size = file.size
        for op in self.pending:
            if op.paths:
                _rename(self.view, op, self.view.get(op.paths[0]))
            if op.file is not None and op.length >= 0:
                op.file.view_size = op.length

    # -- syncs -------------------------------------------------------------------------------------

    def _covered(self, event: Event) -> list[_Op]:
        """What the sync makes durable when it succeeds: all that ended before it began."""
        if self.is_directory(event):
            path = event.paths[0]
            return [op for op in self.pending if op.ended and path in op.directories]
        file = self.files.get(event.file)
        return [op for op in self.pending if op.ended and file is not None and op.file is file
                and not op.paths and not op.spoiled]  # fmt: skip

    def _synced(self, event: Event) -> None:
        begun, covered = self._syncs.pop(event.call)
        covered = [op for op in covered if op in self.pending]
        if event.result < 0:
            for op in covered:
                op.spoiled = True
            return
        if not self.is_directory(begun):
            self._settle([op for op in covered if not op.spoiled])
            return
        ready = []
        for op in covered:
            op.directories = op.directories - {begun.paths[0]}
            if not op.directories and not op.spoiled:
                ready.append(op)
        self._settle(ready)

    def _settle(self, ops: Iterable[_Op]) -> None:
        """They are durable: into the image, in their order."""
        for op in ops:
            self.epoch += 1
            self.pending.remove(op)
            file = op.file
            if op.paths:
                _rename(self.names, op, self.names.get(op.paths[0]))
                continue
            assert file is not None
            if op.kind == WRITE:
                self._supersede(op)
                _put(file.image, op.offset, op.data)
                file.size = max(file.size, op.offset + len(op.data))  # what its data needs
            if op.kind == TRUNCATE:
                del file.image[op.length :]
                file.size = op.length
            file.size = max(file.size, op.length)

    def _supersede(self, op: _Op) -> None:
        """Earlier writes to the same sectors went to the disk with this one."""
        for earlier in self.pending:
            if earlier.file is op.file and earlier.kind == WRITE and earlier.begun < op.begun:
                for number in sorted(earlier.sectors & op.sectors):
                    assert op.file is not None
                    _put(op.file.image, *self._part(earlier, number))
                earlier.sectors -= op.sectors
        self.pending = [
            p for p in self.pending
            if p.kind != WRITE or p.sectors or p.length >= 0 or not p.ended
        ]  # fmt: skip

    # -- states ------------------------------------------------------------------------------------

    def _sectors(self, op: _Op) -> range:
        first = op.offset // self.sector
        return range(first, -(-(op.offset + len(op.data)) // self.sector))

    def _part(self, op: _Op, number: int) -> tuple[int, bytes]:
        """Offset and octets of what op writes to that sector."""
        start = max(op.offset, number * self.sector)
        stop = min(op.offset + len(op.data), (number + 1) * self.sector)
        return start, op.data[start - op.offset : stop - op.offset]

    def units(self) -> list[Unit]:
        """All that may be on the disk or not and makes a difference, in the order of the calls."""
        found: list[Unit] = []
        writers: dict[tuple[int, int], int] = {}
        for op in self.pending:
            for number in op.sectors:
                key = id(op.file), number
                writers[key] = writers.get(key, 0) + 1
        for op in self.pending:
            if op.paths:
                found.append((op, NAME))
                continue
            file = op.file
            assert file is not None
            for number in sorted(op.sectors):
                start, octets = self._part(op, number)
                old = bytes(file.image[start : start + len(octets)]).ljust(len(octets), b"\0")
                if writers[id(file), number] > 1 or old != octets:
                    found.append((op, number))
            if op.length > file.size or op.kind == TRUNCATE:
                found.append((op, LENGTH))
        return found

    def image(self, chosen: Iterable[Unit]) -> dict[str, bytes | None]:
        """path → content when just these reached the disk."""
        names = dict(self.names)
        contents: dict[int, bytearray] = {}
        sizes: dict[int, int] = {}
        for op, what in chosen:
            if what == NAME:
                _rename(names, op, names.get(op.paths[0]))
                continue
            file = op.file
            assert file is not None
            content = contents.get(id(file))
            if content is None:
                content = contents[id(file)] = bytearray(file.image)
            size = sizes.get(id(file), file.size)
            if what >= 0:
                _put(content, *self._part(op, what))
            elif op.kind == TRUNCATE:
                del content[op.length :]
                sizes[id(file)] = op.length
            else:
                sizes[id(file)] = max(size, op.length)
        image: dict[str, bytes | None] = {}
        for path in sorted(names):
            parent = os.path.dirname(path)
            if parent and parent not in image:
                continue  # its directory is not there
            file = names[path]
            if file is None:
                image[path] = None
                continue
            size = sizes.get(id(file), file.size)
            octets = bytes(contents.get(id(file), file.image)[:size])
            image[path] = octets.ljust(size, b"\0")
        return image


def _shortened_before(shorter: _Op, op: _Op) -> bool:
    """op wrote behind the end that shorter had made: the new length that op needs replaces that one."""
    return (
        shorter.kind == TRUNCATE
        and shorter.file is op.file
        and shorter.begun < op.begun
        and shorter.length < op.offset + len(op.data)
    )


def _put(image: bytearray, offset: int, data: bytes) -> None:
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


def _rename(names: dict[str, _File | None], op: _Op, file: _File | None) -> None:
    """The change of names; nothing when what it needs is not there."""
    path = op.paths[0]
    if op.kind == OPEN:
        names[path] = op.file
    elif op.kind == MKDIR:
        names.setdefault(path, None)
    elif path not in names:
        return
    elif op.kind in (UNLINK, RMDIR):
        del names[path]
    elif op.kind == LINK:
        names[op.paths[1]] = file
    elif op.kind == RENAME:
        for name in [n for n in names if n == path or n.startswith(f"{path}/")]:
            names[op.paths[1] + name.removeprefix(path)] = names.pop(name)


# -- the states that may be left -------------------------------------------------------------------


@dataclass(slots=True)
class State:
    """One disk as it may be found after the power came back.

    The same disk may be left by a cut at any moment between two.  What was promised by the last of them (told) must
    be there, unless the program had let go of it by the first (told_first).
    """

    directory: Path
    told: list[bytes]
    told_first: list[bytes]
    what: str  # for a person: where, and what of it reached the disk


@dataclass
class _Stretch:
    """The part of a trace between two moments at which something became durable."""

    first: int  # position of its first event
    last: int  # of the event that ends it
    units: int


@dataclass
class Summary:
    """How much was tried."""

    stretches: int = 0  # between two syncs: what may be lost only grows
    exhaustive: int = 0  # of them, those of which every state was tried
    widest: int = 0  # units (sectors, names, lengths) undecided at once
    legal: int = 0  # states there are
    tried: int = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.stretches + other.stretches,
            self.exhaustive + other.exhaustive,
            max(self.widest, other.widest),
            self.legal + other.legal,
            self.tried + other.tried,
        )


class States:
    """Iterate it once; then summary tells what was covered."""

    def __init__(self, trace: Trace, seed: int, limit: int, sector: int, scratch: Path) -> None:
        self.summary = Summary()
        self._trace = trace
        self._chance = random.Random(seed)
        self._limit = limit
        self._sector = sector
        self._scratch = scratch
        told = trace.told()
        self._positions = [at for at, _ in told]
        self._marks = [line for _, line in told]

    def __iter__(self) -> Iterator[State]:
        stretches = self._stretches()
        most = _most_for_each([stretch.units for stretch in stretches], self._limit)
        disk = _Disk(self._trace, self._sector)
        at = 0
        for stretch in stretches:
            while at < stretch.last:
                disk.apply(at, self._trace.events[at])
                at += 1
            units = disk.units()
            self._count(len(units), most)
            for chosen in self._choices(units, most):
                self.summary.tried += 1
                yield self._state(disk, stretch, units, chosen)

    def _stretches(self) -> list[_Stretch]:
        disk = _Disk(self._trace, self._sector)
        found, first = [], 0
        for at, event in enumerate(self._trace.events):
            epoch, units = disk.epoch, 0
            if event.ended and (event.kind in (DATASYNC, SYNC) or event.flags & DURABLE):
                units = len(disk.units())
            disk.apply(at, event)
            if disk.epoch != epoch:
                found.append(_Stretch(first, at, units))
                first = at + 1
        found.append(_Stretch(first, len(self._trace.events), len(disk.units())))
        return found

    def _count(self, units: int, most: int) -> None:
        summary = self.summary
        summary.stretches += 1
        summary.exhaustive += 1 << units <= most
        summary.widest = max(summary.widest, units)
        summary.legal += 1 << units

    def _choices(self, units: list[Unit], most: int) -> Iterator[list[Unit]]:
        """Subsets of units: all of them, or the telling ones and then chance."""
        n = len(units)
        if 1 << n <= most:
            for bits in range(1 << n):
                yield [unit for i, unit in enumerate(units) if bits >> i & 1]
            return
        tried: set[int] = set()

        def fresh(bits: int) -> bool:
            new = bits not in tried and len(tried) < most
            tried.add(bits) if new else None
            return new

        whole = (1 << n) - 1
        telling = [0, whole]
        telling += [(1 << i) - 1 for i in range(1, n)]  # in order, and cut off
        telling += [whole ^ 1 << i for i in range(n)]  # all but one
        telling += [1 << i for i in range(n)]  # one that overtook all others
        self._chance.shuffle(telling)
        ends = [0, whole]  # these two always
        for bits in [*ends, *telling[: most // 2]]:
            if fresh(bits):
                yield [unit for i, unit in enumerate(units) if bits >> i & 1]
        while len(tried) < most:
            bits = self._chance.getrandbits(n)
            if self._chance.random() < 0.5:  # most of it there, or most of it missing
                other = self._chance.getrandbits(n)
                bits = bits | other if self._chance.random() < 0.5 else bits & other
            if fresh(bits):
                yield [unit for i, unit in enumerate(units) if bits >> i & 1]

    def _state(
        self, disk: _Disk, stretch: _Stretch, units: list[Unit], chosen: list[Unit]
    ) -> State:
        directory = self._scratch / "state"
        shutil.rmtree(directory, ignore_errors=True)
        write_tree(directory, disk.image(chosen))
        first = max([stretch.first, *(op.begun + 1 for op, _ in chosen)])
        what = f"event {stretch.last}, {len(chosen)} of {len(units)} parts on disk"
        return State(directory, self._before(stretch.last), self._before(first), what)

    def _before(self, position: int) -> list[bytes]:
        return self._marks[: bisect_left(self._positions, position)]


def states(
    trace: Trace, *, seed: int = 1, limit: int = 10_000, sector: int = 4096, scratch: Path
) -> States:
    """About limit of the disks that the trace may leave; each is made in scratch and gone with the next."""
    return States(trace, seed, limit, sector, scratch)


def write_tree(directory: Path, image: dict[str, bytes | None]) -> None:
    directory.mkdir(parents=True)
    for path, content in image.items():
        if content is None:
            (directory / path).mkdir()
        else:
            (directory / path).write_bytes(content)


def _most_for_each(units: list[int], limit: int) -> int:
    """How many states a stretch may have tried so that all together are about limit; at least two."""
    low, high = 2, max(2, limit)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(1 << n, middle) for n in units) <= limit:
            low = middle
        else:
            high = middle - 1
    return low
