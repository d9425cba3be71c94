"""What the fuzzing itself promises: bugs of every kind are findings, and read as what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.fuzz.engine import Progress, Slice, describe, replay


@pytest.mark.usefixtures("fuzz_build")
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("exception", "ValueError: planted (tests/fuzz/targets/_planted.py:"),
        ("overflow", "heap-buffer-overflow"),
        ("memory", "out-of-memory"),
    ],
)
def test_planted_bugs_are_told(tmp_path: Path, kind: str, told: str) -> None:
    (tmp_path / kind).write_text(kind)
    status, output = replay(targets.load("_planted"), [tmp_path / kind])
    assert status, output
    assert told in describe(output)


@pytest.mark.usefixtures("fuzz_build")
def test_a_bug_behind_comparisons_is_found_by_coverage() -> None:
    """Without a word of the protocol and without a corpus."""
    target = targets.load("_planted_deep")
    progress = Progress()
    Slice(target, progress, grow=False).run(seconds=600, runs=200_000, seed=1)
    (finding,) = progress.findings
    assert finding.what.startswith("AssertionError: a verb was understood")
    assert finding.path.exists() and "tests.fuzz _planted_deep" in finding.command
    finding.path.unlink()
