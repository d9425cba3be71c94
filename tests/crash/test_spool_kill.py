"""kill -9 anywhere: what was acknowledged is there afterwards, unaltered and once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import build, environment, make_control

pytestmark = pytest.mark.crash

# GATEWAY_CRASH_ROUNDS=2000 makes a campaign of it.
ROUNDS = int(os.environ.get("GATEWAY_CRASH_ROUNDS", "50"))


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_between_any_two_system_calls(tmp_path: Path, seed: int):
    control = tmp_path / "control"
    make_control(control)
    script = Path(__file__).with_name("spool_kill_rounds.py")
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "spool"), str(ROUNDS), str(seed)],
        env=environment(build(tmp_path), control),
        capture_output=True,
        text=True,
        timeout=60 + ROUNDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
