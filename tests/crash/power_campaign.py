"""Power losses of the spool: what it does is recorded, and every disk that may be left is recovered and judged.

    Owns      PowerCampaign (generations), PowerReport (what was tried and found)
    Flow      generation: a victim works on the disk that the last power loss left → trace → states → recovery → verdict
    Limits    states_max in all generations together
    Errors    AssertionError when a promise was broken, with generation and state; what was left is kept in scratch

Each generation begins on a disk that a power loss left, so recovery itself is under power loss, too; after CHAIN of
them comes a new disk.  The last of a chain takes over a partition.  In every other chain a write or a sync fails now
and then.  The model of the disk: powerloss.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from faults import build, environment, make_control
from powerloss import State, Summary, Trace, record, snapshot, states, write_tree
from spool_rig import Rig
from spool_victim import SETTINGS, Promises, contents

from gateway.spool.recover import recover_partition
from gateway.spool.spool import Spool

METHODS = ("direct", "dsync", "fdatasync")
SECTORS = (4096, 512)
CHAIN = 6
SECOND_LIFE = 25  # every so manieth state is lived on

Tree = dict[str, bytes | None]


class PowerReport(msgspec.Struct, kw_only=True):
    """What was tried.  That there is a report means that nothing was lost, altered or there twice."""

    generations: int
    seed: int
    seconds: float
    acknowledged: int  # messages
    adoptions: int
    failures: int  # writes and syncs made to fail
    events: int  # calls recorded
    stretches: int
    exhaustive: int  # of them, those of which every state was recovered
    widest: int  # sectors, names and lengths undecided at once
    legal: str  # states there are
    tried: int  # states recovered
    lived_on: int  # of these, with a gateway's next message on top, recovered once more


class PowerCampaign:
    """PowerCampaign(scratch, …).run() → PowerReport."""

    def __init__(
        self,
        scratch: Path,
        *,
        seed: int,
        generations: int,
        states_max: int,
        messages: int = 60,
        memory: Path | None = None,
    ) -> None:
        self.seed = seed
        self.generations = generations
        self._chance = random.Random(seed)
        self._limit = max(1, states_max // generations)
        self._messages = messages
        self._scratch = scratch
        self._states_at = (memory or scratch) / "states"  # best on a file system in memory
        self._library = build(scratch)
        self._control = make_control(scratch / "control")
        self._base: Tree = {}
        self._model: dict[str, bytes] = {}
        self._failed = False  # some write of this chain
        self._serial = 0
        self._summary = Summary()
        self._acknowledged = self._events = self._adoptions = self._failures = self._lives = 0

    def run(self, progress: Callable[[int, str], None] = lambda tried, what: None) -> PowerReport:
        started = time.monotonic()
        for number in range(self.generations):
            method = METHODS[number % 3]
            chain, place = divmod(number, CHAIN)
            if not place:
                self._base, self._model, self._failed = {}, {}, False
            adopts = place == CHAIN - 1
            fails = chain % 2 == 1 and place % 3 == 1
            self._failed |= fails
            trace = self.record(method, adopts=adopts, fails=fails)
            self.judge_all(number, trace, adopts, progress)
        shutil.rmtree(self._states_at, ignore_errors=True)
        return PowerReport(
            generations=self.generations,
            seed=self.seed,
            seconds=time.monotonic() - started,
            acknowledged=self._acknowledged,
            adoptions=self._adoptions,
            failures=self._failures,
            events=self._events,
            stretches=self._summary.stretches,
            exhaustive=self._summary.exhaustive,
            widest=self._summary.widest,
            legal=f"{self._summary.legal:.3g}" if self._summary.legal < 1e300 else "over 10^300",
            tried=self._summary.tried,
            lived_on=self._lives,
        )

    def record(self, method: str, *, adopts: bool = False, fails: bool = False) -> Trace:
        """The next generation's work on the disk that was left."""
        root = self._scratch / "spool"
        shutil.rmtree(root, ignore_errors=True)
        base = self._base
        if adopts:  # what was left is nobody's any more, and partition 0 is new
            base = {
                path.replace("0", "1", 1): octets for path, octets in base.items() if path[0] == "0"
            }
        write_tree(root, base)
        self._control.clear()
        how = [*(["adopt"] if adopts else []), *(["fail"] if fails else [])]
        script = Path(__file__).with_name("spool_victim.py")
        arguments = [method, self._serial, self._chance.randrange(1 << 30), self._messages]
        command = [sys.executable, str(script), str(root), *map(str, arguments), *how]
        env = environment(self._library, self._scratch / "control")
        trace = record(command, root, self._scratch / "record", env=env)
        self._adoptions += adopts
        self._failures += fails
        self._events += sum(1 for event in trace.events if event.ended)
        self._acknowledged += sum(mark.startswith(b"A") for mark in trace.marks)
        return trace

    def judge_all(
        self,
        number: int,
        trace: Trace,
        adopts: bool = False,
        progress: Callable[[int, str], None] = lambda tried, what: None,
    ) -> None:
        """Recover every state, and leave one of them to the next generation."""
        sector = SECTORS[number % 2]
        tried = states(
            trace,
            seed=self.seed + number,
            limit=self._limit,
            sector=sector,
            scratch=self._states_at,
        )
        before = self._summary.tried
        left: tuple[Tree, dict[str, bytes]] | None = None
        for count, state in enumerate(tried):
            if count % 50 == 0:
                progress(before + count, f"generation {number}, sectors of {sector}")
            keep = self._chance.random() < 1 / (count + 1)  # any of them, as likely as another
            tree = snapshot(state.directory) if keep else {}
            try:
                found = self.judge(state, adopts)
                if count % SECOND_LIFE == 0 and not adopts:
                    self._live_on(state, found)
            except AssertionError as error:
                raise AssertionError(f"generation {number}, {state.what}: {error}") from error
            if keep:
                left = tree, found
        self._summary += tried.summary
        assert left is not None
        self._base, self._model = left
        told = [int(mark.split()[1]) for mark in trace.marks if mark.startswith(b"A")]
        self._serial = max([self._serial, *told]) + self._messages

    def judge(self, state: State, adopts: bool) -> dict[str, bytes]:
        """What the real recovery finds.  AssertionError when a promise was broken."""
        promises = Promises(self._model)
        promises.hear(mark for mark in state.told if mark[:1] in b"AD")
        promises.release(state.told_first)
        root, recovery = state.directory, None
        if adopts and (root / "1").exists():
            spool = Spool(root, worker=0, settings=SETTINGS)
            try:
                found = contents(spool.recover(), failed=self._failed)
                found |= contents(spool.adopt(root / "1"), failed=self._failed)
            finally:
                spool.close()
        elif (root / "0").exists():
            recovery = recover_partition(root / "0", root / "damaged")
            found = contents(recovery, failed=self._failed)
            for segment in recovery.segments:
                segment.close()
        else:
            found = {}
        promises.judge(found)
        if recovery is not None:
            promises.judge_ids(recovery.clock)
        return found

    def _live_on(self, state: State, found: dict[str, bytes]) -> None:
        """The next start takes a message more, and the one after that finds all of it."""
        rig = Rig(state.directory, SETTINGS)
        try:
            rig.open()
            stored = rig.store(b"one more", prefix=b"")
            assert stored.queue_id not in found
            again = contents(rig.reopen(), failed=self._failed)
        finally:
            rig.end()
        assert again == {**found, stored.queue_id: b"one more"}
        self._lives += 1


@contextlib.contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A directory in memory for the states, which are written and read by the thousand."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=shm, prefix="gateway-crash-") as directory:
        yield Path(directory)


def mutants(scratch: Path, seed: int, memory: Path | None = None) -> dict[str, str]:
    """What is found when the spool leaves out a sync: "" for one that nobody noticed."""
    outcome = {}
    for left_out, method in (("datasync", "fdatasync"), ("dsync", "dsync"), ("dsync", "direct"),
                             ("dirsync", "direct")):  # fmt: skip
        where = scratch / f"{left_out}-{method}"
        where.mkdir()
        campaign = PowerCampaign(
            where, seed=seed, generations=1, states_max=2000, messages=30, memory=memory
        )
        trace = campaign.record(method).without(left_out)
        outcome[f"{method} without {left_out}"] = ""
        try:
            campaign.judge_all(0, trace)
        except AssertionError as error:
            outcome[f"{method} without {left_out}"] = str(error)
    return outcome
