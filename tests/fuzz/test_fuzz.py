"""Fuzzing in small: every input that was ever kept, on the build that users have; then a slice of each target.

The slices always do the same work: a fixed seed and number of inputs (a machine that is very slow does fewer).
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz import build, targets
from tests.fuzz.engine import Progress, Slice

SLICE_S = 15.0  # at most; RUNS of the target is what ends it on a usual machine


@pytest.mark.parametrize("name", targets.names())
def test_inputs_that_were_kept(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.replay", name],
        cwd=build.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.usefixtures("fuzz_build")
@pytest.mark.parametrize("name", targets.names())
def test_a_slice_finds_nothing(name: str) -> None:
    target = targets.load(name)
    progress = Progress()
    Slice(target, progress, grow=False).run(seconds=SLICE_S, runs=target.runs, seed=1)
    for finding in progress.findings:
        pytest.fail(f"{finding.what}\n{finding.command}\n{finding.output[-3000:]}")
    assert progress.edges > 0, "the build tells no coverage"
