"""Fuzzing in small: every input that was ever kept, on the build that users have; variants of them, with sanitizers.

The variants are always the same (variants.py): what fails here a change has brought.  `make fuzz` looks for the rest.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz import build, targets
from tests.fuzz.engine import Progress, Slice


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
def test_variants_find_nothing(name: str) -> None:
    target = targets.load(name)
    progress = Progress()
    Slice(target, progress).run_variants()
    for finding in progress.findings:
        pytest.fail(f"{finding.what}\n{finding.command}\n{finding.output[-3000:]}")
    assert progress.runs >= target.runs and progress.edges > 0
