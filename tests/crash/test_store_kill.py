"""kill -9 and power loss at any moment: what was acknowledged is there, under its UID, and the check is clean."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import powerloss
import pytest
from store_victim import SETTINGS, Promises, small_limits

from gateway.store import database
from gateway.store.check import check_account

pytestmark = pytest.mark.crash

VICTIM = Path(__file__).with_name("store_victim.py")
ROUNDS = int(os.environ.get("STORE_KILL_ROUNDS", "8"))
STATES = int(os.environ.get("STORE_POWER_STATES", "150"))
VICTIMS = 2  # on one account at once


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from gateway.store import content, index, upload

    for module, names in (
        (index, ("TAIL_RECORDS", "CHUNK_RECORDS", "MERGE_RECORDS")),
        (content, ("LARGE_OCTETS", "RECLAIM_MESSAGES")),
        (upload, ("LARGE_OCTETS",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))
    small_limits()
    yield


def start(directory: Path, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(VICTIM), str(directory), str(seed), "0"],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Two processes work on one account and are killed, again and again."""
    chooser = random.Random(4)
    promises = Promises()
    acknowledged = 0
    for round_ in range(ROUNDS):
        victims = [start(tmp_path / "account", 10 * round_ + at + 1) for at in range(VICTIMS)]
        for victim in victims:
            assert victim.stdout is not None
            line = victim.stdout.readline()
            promises.hear(line)
            acknowledged += line[0] == "A"
        time.sleep(chooser.random() * 0.3)
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        for victim in victims:
            assert victim.stdout is not None
            lines = victim.stdout.read().splitlines(keepends=True)
            assert victim.wait() == -signal.SIGKILL
            for line in lines:
                if line.endswith("\n"):
                    promises.hear(line)
                    acknowledged += line[0] == "A"
        promises.check(tmp_path / "account")
    assert acknowledged


def test_power_lost_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state of the disk that a victim's writes and syncs allow keeps what it had told by then.

    But for flags since the last sync; and their MODSEQs never mean anything else.
    """
    (tmp_path / "tree").mkdir()
    trace = powerloss.record(
        [sys.executable, str(VICTIM), str(tmp_path / "tree" / "account"), "7", "30"],
        tmp_path / "tree",
        tmp_path / "record",
        env={"PYTHONPATH": str(VICTIM.parent)},
        ignore=("*-shm",),  # memory that processes share; made anew from the log
    )
    monkeypatch.setattr(database, "boot_number", lambda: 7)
    count = lost = 0
    for state in powerloss.states(trace, seed=1, limit=STATES, scratch=tmp_path / "states"):
        promises = Promises(power=True)
        for line in state.told:
            promises.hear(line.decode())
        promises.check(state.directory / "account")
        lost += promises.check_modseqs(state.directory / "account")
        count += 1
    assert count > STATES // 2
    assert lost, "in no state flags were taken back: that is not tested"


def test_a_full_disk_costs_nothing_that_was_there(tmp_path: Path) -> None:
    """The process may write no file beyond a limit: deliveries say so, and go on when there is room again."""
    program = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from store_victim import SETTINGS, content_of
from gateway.store.account import AccountFile
from gateway.store.model import Delivered, Delivery
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = AccountFile(Path({str(tmp_path / "account")!r}), SETTINGS, create=True)
first = file.deliver([Delivery("x", [content_of(1)])])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
kinds = set()
for serial in range(2, 200):
    result = file.deliver([Delivery("x", [content_of(serial)])])[0]
    kinds.add(type(result).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
last = file.deliver([Delivery("x", [content_of(200)])])[0]
print(sorted(kinds), type(last).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "Delivered", done.stdout
    assert "StoreFull" in done.stdout or "StoreError" in done.stdout
    report = check_account(tmp_path / "account", SETTINGS)
    assert report.clean, report.findings
