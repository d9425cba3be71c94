"""One slice of fuzzing: a worker process, its progress while it runs, and what it found.

Owns      Slice; replay() of inputs; reduce() of a finding; merge() of corpora; the folders under build/fuzz
Files     build/fuzz/corpus/<target>: grown, of no value but to go on from; build/fuzz/findings/<target>
Limits    INPUT_S, MEMORY_MB and ALLOCATION_MB: an input that needs more is a finding
Errors    a worker that dies without a finding is one itself, with the end of its output
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path

from tests.fuzz.build import HOME, environment, launcher
from tests.fuzz.targets import Target

INPUT_S = 20
MEMORY_MB = 1536  # of the process; ASan's own share is most of it
ALLOCATION_MB = 256  # in one piece
LIMITS = (
    f"-timeout={INPUT_S}",
    f"-report_slow_units={INPUT_S}",
    f"-rss_limit_mb={MEMORY_MB}",
    f"-malloc_limit_mb={ALLOCATION_MB}",
)
VARIANTS = "--variants"  # worker.py: not what coverage says
KEPT_LINES = 400
REDUCE_STEP_S, REDUCE_S = 5, 60
_MEMORY_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

_STATUS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: \d+ corp: (\d+)/(\S+) .* rss: (\d+)Mb")
_RUNS = re.compile(r"stat::number_of_executed_units: (\d+)")
_FRAME = re.compile(r'  File ".*?((?:gateway|tests)/[^"]*)", line (\d+), in (\S+)')
_KINDS = (
    re.compile(r"SUMMARY: \w+Sanitizer: (.*)"),
    re.compile(r"(\S+: runtime error: .*)"),
    re.compile(r"ERROR: libFuzzer: ((?:timeout|out-of-memory|deadly signal).*)"),
)


@dataclass
class Finding:
    """An input that breaks a target's promise."""

    target: str
    path: Path
    what: str
    output: str

    @property
    def command(self) -> str:
        """Shows it again."""
        return f"python -m tests.fuzz {self.target} {self.path}"


@dataclass
class Progress:
    """What is known of a target so far."""

    runs: int = 0
    seconds: float = 0.0
    edges: int = 0
    inputs: int = 0
    octets: str = ""
    memory_mb: int = 0
    inputs_at_first: int | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def runs_per_s(self) -> float:
        return self.runs / self.seconds if self.seconds else 0.0


class Slice:
    """Fuzzes one target for some seconds or runs."""

    def __init__(self, target: Target, progress: Progress, *, grow: bool = True) -> None:
        """grow: what is found is kept for the next slice, which goes on from there."""
        self.target = target
        self._grow = grow
        self.progress = progress
        self.stopped = False
        self._process: subprocess.Popen[str] | None = None
        self._runs_before = progress.runs

    def run(self, *, seconds: float, runs: int = -1, seed: int = 0) -> None:
        """runs: beyond the corpus; whatever is reached first ends it.  seed 0: another one each time."""
        corpus = prepare(self.target, grow=self._grow)
        if runs >= 0:
            runs += sum(1 for folder in corpus for _ in folder.iterdir())
        self._run(
            f"-max_total_time={max(1, int(seconds))}",
            f"-runs={runs}",
            f"-seed={seed}",
            *_dictionary(self.target),
            *map(str, corpus),
        )

    def run_variants(self) -> None:
        """What the target begins with, and its number of variants of that: the same everywhere, whatever they reach."""
        folder = HOME / "slice" / self.target.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        names = []
        for number, octets in enumerate(self.target.inputs()):
            path = folder / str(number)
            path.write_bytes(octets)
            names.append(str(path.relative_to(HOME)))
        # In this order: a folder's own is the file system's.
        (folder / "names").write_text(",".join(names))
        self._run(
            VARIANTS,
            f"-seed_inputs=@{folder / 'names'}",
            f"-runs={len(names) + self.target.runs}",
            "-seed=1",
            "-len_control=0",
        )

    def _run(self, *arguments: str) -> None:
        findings = HOME / "findings" / self.target.name
        findings.mkdir(parents=True, exist_ok=True)
        before = set(findings.iterdir())
        seconds_before, started = self.progress.seconds, time.monotonic()
        lines: list[str] = []
        for line in self._lines(
            f"-max_len={self.target.max_octets}",
            f"-artifact_prefix={findings}/",
            "-reload=0",
            "-print_final_stats=1",
            *arguments,
        ):
            self._read(line)
            self.progress.seconds = seconds_before + time.monotonic() - started
            lines.append(line)
            del lines[:-KEPT_LINES]
        made = sorted(set(findings.iterdir()) - before)
        if not made and not self.stopped and self._process and self._process.returncode:
            made = [findings / "died"]
            made[0].touch()
        for path in made:
            self._keep(path, "".join(lines))

    def stop(self) -> None:
        self.stopped = True
        if self._process is not None:
            self._process.terminate()

    def _lines(self, *arguments: str) -> Iterator[str]:
        with _started(self.target, *arguments) as self._process:
            assert self._process.stdout is not None
            yield from self._process.stdout

    def _read(self, line: str) -> None:
        progress = self.progress
        if match := _STATUS.match(line):
            progress.runs = self._runs_before + int(match[1])
            progress.edges = max(progress.edges, int(match[2]))
            progress.inputs, progress.octets = int(match[3]), match[4]
            progress.memory_mb = max(progress.memory_mb, int(match[5]))
            if progress.inputs_at_first is None and " INITED " in line:
                progress.inputs_at_first = progress.inputs
        elif match := _RUNS.match(line):
            progress.runs = self._runs_before + int(match[1])

    def _keep(self, path: Path, output: str) -> None:
        """One of each kind."""
        what = describe(output)
        if any(known.what == what for known in self.progress.findings):
            path.unlink()
        else:
            self.progress.findings.append(Finding(self.target.name, path, what, output))


def describe(output: str) -> str:
    """What went wrong and where, in one line: two findings of one cause read the same."""
    _, python, traceback = output.partition("=== Uncaught Python exception: ===\n")
    if python:
        frames = _FRAME.findall(traceback)
        ours = [frame for frame in frames if frame[0].startswith("gateway/")] or frames
        where = "{}:{} {}".format(*ours[-1]) if ours else "?"
        return f"{traceback.partition(chr(10))[0][:100]} ({where})"
    for kind in _KINDS:
        if match := kind.search(output):
            return match[1].replace(str(HOME), "")[:160]
    return "died: " + output.strip().rpartition("\n")[2][:100]


def prepare(target: Target, *, grow: bool = True) -> list[Path]:
    """The folders with inputs; the first is where new ones go."""
    grown = HOME / ("corpus" if grow else "slice") / target.name
    seeds = HOME / "seeds" / target.name
    shutil.rmtree(seeds, ignore_errors=True)
    if not grow:
        shutil.rmtree(grown, ignore_errors=True)
    for folder in (grown, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (seeds / sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    return [grown, *(f for f in (seeds, target.corpus, target.regressions) if f.is_dir())]


def replay(target: Target, inputs: Iterable[Path]) -> tuple[int, str]:
    """(exit status, output) of the worker that runs just these, in the fuzz build."""
    with _started(target, "-runs=0", *(str(path.resolve()) for path in inputs)) as process:
        output, _ = process.communicate()
    return process.returncode, output


def reduce(target: Target, finding: Finding) -> None:
    """A smaller input that shows the same takes the place of the finding's, if one is found in time."""
    smaller = finding.path.with_name(f"{finding.path.name}.smaller")
    with _started(
        target,
        "-minimize_crash=1",
        f"-max_total_time={REDUCE_STEP_S}",
        f"-exact_artifact_path={smaller}",
        str(finding.path),
    ) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=REDUCE_S)
        process.kill()
    if smaller.exists():
        status, output = replay(target, [smaller])
        if status and describe(output) == finding.what:
            finding.path.write_bytes(smaller.read_bytes())
        smaller.unlink()


def merge(target: Target, into: Path) -> int:
    """Makes `into` the smallest set of inputs that reaches what all folders reach; how many they are."""
    folders = prepare(target)
    smallest = HOME / "smallest" / target.name
    shutil.rmtree(smallest, ignore_errors=True)
    smallest.mkdir(parents=True)
    with _started(
        target,
        "-set_cover_merge=1",
        f"-max_len={target.max_octets}",
        str(smallest),
        *map(str, folders),
    ) as process:
        output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"merge of {target.name} failed:\n{output[-2000:]}")
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(smallest, into)
    return sum(1 for _ in into.iterdir())


@contextlib.contextmanager
def _started(target: Target, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The worker; what it leaves in its folder for temporary files (in memory) goes with it."""
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY_DISK) as scratch,
        subprocess.Popen(
            [str(launcher(target.name)), *LIMITS, *arguments],
            cwd=HOME,
            env={**environment(), "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        yield process


def _dictionary(target: Target) -> list[str]:
    if not target.words:
        return []
    path = HOME / "words" / target.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(target.dictionary)
    return [f"-dict={path}"]
