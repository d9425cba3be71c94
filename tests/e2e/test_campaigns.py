"""A short slice of each campaign: its machinery works, and the ledgers are clean.  Nothing here judges how fast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from smtp_blaster import result

from benches.campaigns.soak import schedule

ROOT = Path(__file__).parents[2]


def run(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benches.campaigns", *words, "--out", str(where)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in (0, 1, 75), done.stderr
    return done


def verdict_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    return found


def test_overload(tmp_path: Path) -> None:
    run(tmp_path / "out", "overload", "--seconds", "3", "--set-up", "relay", "--connections", "40")
    verdict = verdict_of(tmp_path / "out" / "relay" / "overload.json")
    assert verdict["rate"] > 0
    assert set(verdict["phases"]) == {"0.8 R", "2 R", "0.8 R again"}
    assert all(phase["accepted"] for phase in verdict["phases"].values())
    ledger = verdict["ledger"]
    assert ledger["accepted"] and not ledger["lost"] and not ledger["altered"]
    assert not ledger["duplicated_unexplained"]
    saved = result.load(tmp_path / "out" / "relay" / "2-R.json")
    assert {"memory", "cpu", "queue", "limit"} <= set((saved.server or {})["series"])
    assert "<svg" in (tmp_path / "out" / "relay.html").read_text()


def test_soak(tmp_path: Path) -> None:
    done = run(tmp_path / "out", "soak", "--seconds", "10", "--rate", "40", "--seed", "3")
    verdict = verdict_of(tmp_path / "out" / "soak.json")
    failed = [criterion for criterion in verdict["criteria"] if not criterion["is_met"]]
    assert not failed, done.stdout
    assert verdict["accepted"] > 100
    assert all(verdict["events"].values()), verdict["events"]
    assert sum(verdict["vandals"].values())
    assert "soak: ok" in done.stdout.replace("\n", " ")
    saved = result.load(tmp_path / "out" / "kept.json")
    series = (saved.server or {})["series"]
    assert {"memory of worker 0", "descriptors of supervisor", "spool"} <= set(series)


def test_events_come_by_seed_and_restarts_at_first() -> None:
    def all_of(seed: int) -> list[tuple[float, str]]:
        events: Iterator[tuple[float, str]] = schedule(3600.0, seed)
        return sorted(events)

    assert all_of(1) == all_of(1) != all_of(2)
    assert {event for _, event in all_of(1)} == {"kill", "reload", "restart"}
    assert max(at for at, event in all_of(1) if event == "restart") < 0.25 * 3600.0
