"""SIGKILL for a worker, for the supervisor, for everything, under load: what got a 250 comes out.

GATEWAY_KILL_ROUNDS and GATEWAY_KILL_SEED make a longer campaign of it (make crash).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults import WHENS, build, environment, make_control
from gateway_rig import Rig, gone, kill, poll
from smtp_blaster.sink import Fault

pytestmark = pytest.mark.crash

ROUNDS = int(os.environ.get("GATEWAY_KILL_ROUNDS", "8"))
SEED = int(os.environ.get("GATEWAY_KILL_SEED", "1"))

# RFC 1047: what the next hop took and the log did not yet say.  A worker has at most 20 transactions
# on their way, and results wait at most 5 ms for company.
DUPLICATES_A_KILL = 200

LOAD = (
    {"connections": 8, "size_octets": 4000, "dots": True},
    {"connections": 4, "size_octets": 20_000, "pipelining": True, "chunking": True},
    {
        "connections": 4,
        "size_octets": 3000,
        "recipients": 5,
        "pipelining": True,
        "per_connection": 7,
    },
    {"connections": 2, "size_octets": 900_000},
)


def test_all_that_was_acknowledged_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chance = random.Random(SEED)
    # A next hop that sometimes says no: some of the mail is deferred when the blow falls.
    faults = (
        Fault("rcpt", code=451, probability=0.02),
        Fault("content", code=451, probability=0.01),
    )
    kills = 0
    accepted = 0
    with Rig(tmp_path, plan={"faults": faults}) as rig:
        for number in range(ROUNDS):
            victim = chance.choice(("worker", "worker", "supervisor", "everything"))
            burst = rig.burst(*({**plan, "duration_s": 1.2, "seed": number} for plan in LOAD))
            time.sleep(chance.uniform(0.1, 1.1))
            if victim == "worker":
                workers = rig.workers()
                if workers:
                    kill(chance.choice(workers))
                burst.join()
            elif victim == "supervisor":
                left = rig.kill_supervisor()
                rig.gateway.start()
                assert poll(lambda left=left: gone(left), 1), "two gateways at once"
                burst.join()
            else:
                rig.gateway.kill()
                rig.gateway.start()
                burst.join()
            kills += 1
            accepted += burst.accepted
        difference = rig.settle()
        assert difference.accepted > 0
        report = (
            f"{kills} kills, seed {SEED}: {accepted} messages, {difference.accepted} recipients "
            f"promised, {difference.duplicated} delivered twice, "
            f"{difference.unpromised} without a 250 that anybody saw"
        )
        with capsys.disabled():
            print(f"\n  {report}")
        assert (difference.lost, difference.altered) == (0, 0), (report, difference.lost_ids)
        assert difference.duplicated <= DUPLICATES_A_KILL * kills + kills, report
        assert poll(lambda: rig.queued() == 0, 30), rig.gateway.command("queue", "list")
        damaged = list((rig.gateway.state_dir / "spool" / "damaged").glob("*"))
        assert not damaged, "a killed process tears a tail, it damages nothing"
        rig.gateway.stop()
        assert rig.gateway.process.returncode == 0
        assert not rig.gateway.log("spool_damaged")


def test_a_partition_is_taken_over_whole_though_killed_midway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two workers become one; whoever moves the orphan's mail dies at one write after the other."""
    disk = make_control(tmp_path / "control")
    environ = environment(build(tmp_path), tmp_path / "control")
    with Rig(tmp_path) as rig:
        gateway = rig.gateway
        text = gateway.config.read_text()
        gateway.stop()
        gateway.config.write_text(text.replace("[[route]]\n", "[[route]]\nhold = true\n"))
        gateway.start()
        load = ({**plan, "duration_s": 0.0, "messages": 150} for plan in LOAD[:3])
        rig.burst(*load).join()
        gateway.kill()

        gateway.config.write_text(text.replace("workers = 2", "workers = 1"))
        gateway.expect_workers(1)
        monkeypatch.setenv("LD_PRELOAD", environ["LD_PRELOAD"])
        monkeypatch.setenv("FAULT_CONTROL", environ["FAULT_CONTROL"])
        for call in range(1, 6):
            disk.arm("any", WHENS[call % 3], countdown=call)
            deaths = len(gateway.log("worker_died"))
            process = subprocess.Popen(
                gateway.process.args, start_new_session=True, stdout=subprocess.DEVNULL
            )
            assert poll(lambda deaths=deaths: len(gateway.log("worker_died")) > deaths, 20)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        gateway.start()
        difference = rig.settle()
        assert (difference.lost, difference.altered) == (0, 0), difference.lost_ids
        assert poll(lambda: rig.queued() == 0, 20)
        assert not (gateway.state_dir / "spool" / "1").exists()
        assert difference.duplicated <= DUPLICATES_A_KILL * 5
        assert not gateway.log("spool_damaged")
