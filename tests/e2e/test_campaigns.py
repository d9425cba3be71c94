"""A short slice of each campaign: its machinery works, and the ledgers are clean.  Nothing here judges how fast."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from smtp_blaster import result

from benches.campaigns import soak
from benches.campaigns.site import Site, wait_for
from benches.campaigns.soak import SOURCES, schedule

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
    assert verdict["accepted"]
    assert all(verdict["events"].values()), verdict["events"]
    assert sum(verdict["vandals"].values())
    assert "soak: ok" in done.stdout.replace("\n", " ")
    saved = result.load(tmp_path / "out" / "kept.json")
    series = (saved.server or {})["series"]
    assert {"memory of worker 0", "descriptors of supervisor", "spool"} <= set(series)
    assert not verdict["ended_early"] and not verdict["gone"]


def test_a_soak_that_is_told_to_stop_comes_to_its_verdict(tmp_path: Path) -> None:
    """Told as Ctrl-C tells it, and started as a shell starts what runs in the background."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benches.campaigns", "soak", "--rate", "40", "--out", str(out)]
    with (tmp_path / "soak.out").open("w+") as output:
        soaking = subprocess.Popen(
            ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        try:
            wait_for(lambda: all(has_lines(out / f"{name}.tsv") for name in SOURCES), "mail of all sources")
            os.killpg(soaking.pid, signal.SIGINT)
            assert soaking.wait(240) == 75, (tmp_path / "soak.out").read_text()
        finally:
            soaking.kill()
    verdict = verdict_of(out / "soak.json")
    assert verdict["ended_early"] == "told to stop"
    assert all(criterion["is_met"] for criterion in verdict["criteria"]), verdict["criteria"]
    assert verdict["ledger"]["accepted"] and not verdict["gone"]
    assert "soak: ok" in (tmp_path / "soak.out").read_text()


def test_a_soak_whose_source_dies_ends_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "QUIET_S", 1.0)
    monkeypatch.chdir(ROOT)
    cpus = os.sched_getaffinity(0)
    with Site(tmp_path / "out", cpus=(cpus, cpus)) as site:
        campaign = soak.Soak(site, soak.Settings(rate=40.0), lambda text: None)

        def kill() -> None:
            wait_for(lambda: has_lines(site.where / "tls.tsv"), "mail")
            next(tool for tool in site.tools if tool.name == "tls").process.kill()

        with ThreadPoolExecutor() as pool:
            killed = pool.submit(kill)
            verdict = campaign.run()
            killed.result()
    failed = [criterion.what for criterion in verdict.criteria if not criterion.is_met]
    assert failed == ["sources that ended before their time"]
    assert verdict.gone == ["tls"]
    assert verdict.ended_early == "tls ended by itself"
    assert not verdict.is_good


def has_lines(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def test_events_come_by_seed_and_restarts_at_first() -> None:
    def all_of(seed: int) -> list[tuple[float, str]]:
        events: Iterator[tuple[float, str]] = schedule(3600.0, seed)
        return sorted(events)

    assert all_of(1) == all_of(1) != all_of(2)
    assert {event for _, event in all_of(1)} == {"kill", "reload", "restart"}
    assert max(at for at, event in all_of(1) if event == "restart") < 0.25 * 3600.0
