"""smtp-blaster --lab: the link is felt, and what is promised over it arrives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from interop_peers import RunningSink, need_root
from smtp_blaster import ledger
from smtp_blaster.sink import SinkPlan

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.netns


def test_a_run_over_a_link_that_delays_and_loses(tmp_path: Path) -> None:
    need_root()
    sink = RunningSink(SinkPlan(ledger=str(tmp_path / "got")))
    done = subprocess.run(
        [sys.executable, "-m", "smtp_blaster", "smtp", f"127.0.0.1:{sink.port}",
         "--lab", "delay=20ms,loss=2%,rate=20mbit", "--messages", "60", "--connections", "10",
         "--ledger", str(tmp_path / "sent"), "--json"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    sink.stop()
    if "cannot have one" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["totals"]["accepted"] == 60
    for stage in ("connect", "greeting", "mail", "rcpt", "data", "dot"):
        assert run["latency"][stage]["min_ms"] >= 40, stage  # there and back
    assert any("delay=20ms" in note for note in run["notes"])
    assert ledger.prove([tmp_path / "sent"], [tmp_path / "got"]).is_clean
    assert not [name for name in os.listdir("/run/netns") if name.startswith("maillab") and "-client" in name]
