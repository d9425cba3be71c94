"""The spool on a disk that fails: errors and short counts from real system calls, and a file system that is full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import build, environment, make_control

pytestmark = pytest.mark.crash


def test_injected_faults(tmp_path: Path):
    control = tmp_path / "control"
    make_control(control)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        "-q",
        "--basetemp",
        str(tmp_path / "cases"),
    ]
    cases = Path(__file__).with_name("spool_fault_cases.py")
    result = subprocess.run(
        [*command, str(cases)],
        env=environment(build(tmp_path), control),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


FULL = """
import errno, sys
from pathlib import Path
from msgspec import structs
from spool_rig import SMALL, Rig
from gateway.spool.record import RELAYED

rig = Rig(Path(sys.argv[1]), structs.replace(SMALL, min_free_octets=int(sys.argv[2])))
rig.open()
kept = []
while True:
    stored, problem = rig.commit(bytes(7000))
    if stored is None:
        break
    kept.append(stored)
assert problem.reply.code == 452, problem
assert len(kept) > 20
for stored in kept[: len(kept) // 2]:
    rig.spool.settle(stored, 0, RELAYED)
rig.until(lambda: rig.spool.health is None)
kept = kept[len(kept) // 2 :] + [rig.store(bytes(7000))]
assert [m.queue_id for m in rig.reopen().messages] == [m.queue_id for m in kept]
rig.end()
"""


@pytest.mark.parametrize("floor", [0, 300_000])
def test_a_file_system_that_is_really_full(tmp_path: Path, floor: int):
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mount.stderr.decode().strip()}")
    try:
        env = environment(Path("/dev/null"), Path("/dev/null"))
        del env["LD_PRELOAD"], env["FAULT_CONTROL"]
        command = [sys.executable, "-c", FULL, str(disk / "spool"), str(floor)]
        result = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr[-4000:]
    finally:
        subprocess.run(["umount", disk], check=True)
