"""The whole gateway on a disk that is full, and on one that fails: 452 or 451, nothing that was
acknowledged is lost, and it goes on when the disk does."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Control, build, environment, make_control
from gateway_rig import Rig, poll
from gateway_tools import samples, scrape
from harness import Client
from interop_peers import RunningGateway, listener, route

pytestmark = pytest.mark.crash

MIB = 1024 * 1024
DISK_OCTETS = 48 * MIB
SMALL = {"segment_octets": 2 * MIB, "min_free_octets": 4 * MIB, "probe_interval_s": 0.1}

# Clients that are refused and try again at once are not to be slowed down here.
PATIENT = {"error_delay_s": 0.0, "errors": 10_000, "junk_commands": 100_000}


# -- full ------------------------------------------------------------------------------------------


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_OCTETS, mounted where the rig's gateway keeps its state."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    where = tmp_path / "state"
    where.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_OCTETS}", "tmpfs", str(where)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(DISK_OCTETS)
        made = subprocess.run(
            ["mkfs.ext4", "-q", "-m", "0", image], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip(f"mkfs.ext4: {made.stderr.decode().strip()}")
        command = ["mount", "-o", "loop", str(image), str(where)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount {request.param} here: {mounted.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def refused_at_mail(gateway: RunningGateway) -> str:
    """What MAIL is answered, "" for 250."""
    with Client(gateway.port) as client:
        client.hello()
        reply = client.command("MAIL FROM:<a@example.test>")[-1]
        return "" if reply.startswith("250") else reply


def test_a_full_disk(small_disk: Path, tmp_path: Path):
    with Rig(tmp_path, workers=1, spool=SMALL) as rig:
        gateway = rig.gateway
        text = gateway.config.read_text()
        gateway.stop()
        gateway.config.write_text(text.replace("[[route]]\n", "[[route]]\nhold = true\n"))
        gateway.start()

        # Nothing leaves: it fills up, and says so.
        filled = rig.burst(
            {"connections": 4, "size_octets": 60_000, "messages": 1000, "per_connection": 50}
        ).join()[0]
        assert filled.refused > 0
        assert {*filled.replies} <= {"dot 250", "mail 452", "dot 452"}
        assert filled.accepted * 60_000 > DISK_OCTETS / 3, "most of the disk is for mail"
        assert refused_at_mail(gateway).startswith("452 4.3.1")

        # Killed while it is full: it starts, with everything, and still takes nothing more.
        gateway.kill()
        gateway.start()
        assert rig.queued() == filled.accepted
        assert refused_at_mail(gateway).startswith("452 4.3.1")

        # Delivery goes on, makes room, and mail is taken again.
        gateway.command("queue", "release", "--all", "--yes")
        difference = rig.settle()
        assert (difference.lost, difference.altered) == (0, 0), difference.lost_ids
        assert poll(lambda: not refused_at_mail(gateway), 60), gateway.log("spool_health")
        text = gateway.config.read_text()
        gateway.stop()
        gateway.config.write_text(text.replace("hold = true\n", ""))
        gateway.start()
        assert rig.burst({"messages": 100, "size_octets": 60_000}).join()[0].accepted == 100

        # Somebody else fills the disk under load, and takes his file away again.  What the spool
        # has is enough to go on, perhaps not for everything.
        load = rig.burst(
            {"connections": 4, "size_octets": 60_000, "duration_s": 2.0, "per_connection": 20}
        )
        foreign = small_disk / "foreign"
        with foreign.open("wb") as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(MIB))
                file.flush()
        assert {*load.join()[0].replies} <= {"dot 250", "mail 452", "dot 452"}
        foreign.unlink()
        assert poll(lambda: not refused_at_mail(gateway), 60)
        assert rig.burst({"messages": 100, "size_octets": 60_000}).join()[0].accepted == 100
        difference = rig.settle()
        assert (difference.lost, difference.altered) == (0, 0), difference.lost_ids
        assert poll(lambda: rig.queued() == 0, 60)
        assert not gateway.log("worker_died")
        assert not list((gateway.state_dir / "spool" / "damaged").glob("*"))


# -- failing ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Control:
    """What the disk under gateways that are started from now on does."""
    control = make_control(tmp_path / "control")
    for name, value in environment(build(tmp_path), tmp_path / "control").items():
        if name in ("LD_PRELOAD", "FAULT_CONTROL"):
            monkeypatch.setenv(name, value)
    return control


CASES = {
    "EIO when written": ("auto", {"write_errno": errno.EIO}, "451"),
    "EIO when synced": ("fdatasync", {"sync_errno": errno.EIO}, "451"),
    "EIO once": ("fdatasync", {"sync_errno": errno.EIO, "sync_count": 1}, None),
    "ENOSPC when written": ("dsync", {"write_errno": errno.ENOSPC}, "452"),
    "short writes": ("fdatasync", {"short_octets": 1000}, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_fails_under_load(disk: Control, tmp_path: Path, case: str):
    method, fault, code = CASES[case]
    spool = {**SMALL, "write_method": method}
    with Rig(tmp_path, spool=spool, limits=PATIENT) as rig:
        load = rig.burst(
            {"connections": 6, "size_octets": 4000, "duration_s": 120.0},
            {"connections": 2, "size_octets": 400_000, "chunking": True, "duration_s": 120.0},
        )
        assert poll(lambda: load.accepted > 50, 60)
        for name, value in fault.items():
            setattr(disk, name, value)
        time.sleep(0.5)
        disk.clear()
        accepted = load.accepted
        assert poll(lambda: load.accepted > accepted, 60), "it goes on when the disk does"
        replies = {reply for result in load.stop() for reply in result.replies}
        assert replies <= {"dot 250", "mail 451", "dot 451", "mail 452", "dot 452"}
        if code is None:
            pass  # it may have been results that were being written, and no message
        elif code:
            assert any(reply.endswith(code) for reply in replies), replies
        else:
            assert replies == {"dot 250"}
        difference = rig.settle()
        assert (difference.lost, difference.altered) == (0, 0), difference.lost_ids
        assert poll(lambda: rig.queued() == 0, 60)
        assert len(rig.gateway.log("worker_died")) == 0
        assert rig.burst({"messages": 20}).join()[0].accepted == 20

        # What it wrote while the disk was ill can be read back.
        rig.gateway.kill()
        rig.gateway.start()
        difference = rig.settle()
        assert (difference.lost, difference.altered) == (0, 0), difference.lost_ids


def test_a_disk_that_is_ill_at_the_start(disk: Control, tmp_path: Path):
    """Mail is refused, not lost, and taken as soon as the disk is well."""
    with Rig(tmp_path, workers=1, spool=SMALL) as rig:
        rig.gateway.stop()
        disk.write_errno = disk.allocate_errno = errno.EIO
        rig.gateway.start()
        assert poll(lambda: refused_at_mail(rig.gateway).startswith("451 4.3.0"), 60)
        disk.clear()
        assert poll(lambda: not refused_at_mail(rig.gateway), 60)
        assert rig.burst({"messages": 20}).join()[0].accepted == 20
        assert rig.settle().is_clean


def test_mail_acknowledged_from_memory_survives_a_disk_that_fails_for_a_while(
    disk: Control, tmp_path: Path
):
    listen = [listener(durability="memory")]
    with Rig(tmp_path, workers=1, spool=SMALL, listen=listen) as rig:
        text = rig.gateway.config.read_text()
        rig.gateway.stop()
        rig.gateway.config.write_text(text.replace("[[route]]\n", "[[route]]\nhold = true\n"))
        rig.gateway.start()
        load = rig.burst({"connections": 4, "size_octets": 4000, "duration_s": 120.0})
        assert poll(lambda: load.accepted > 50, 60)
        disk.write_errno = errno.EIO
        time.sleep(0.5)
        disk.clear()
        load.stop()
        assert poll(lambda: not refused_at_mail(rig.gateway), 60)
        rig.gateway.stop()  # a clean stop writes all of it
        rig.gateway.config.write_text(text)
        rig.gateway.start()
        difference = rig.settle()
        assert (difference.lost, difference.altered) == (0, 0), difference.lost_ids


def test_health_and_metrics_tell_of_the_disk(disk: Control, tmp_path: Path):
    listen = [listener(), listener("http")]
    with Rig(tmp_path, workers=1, spool=SMALL, listen=listen, route=[route("discard:")]) as rig:
        http = rig.gateway.ports[1]
        assert scrape(http, "/healthz")[0] == 200
        disk.write_errno = errno.EIO
        with Client(rig.gateway.port) as client:
            client.hello()
            # 452 when the disk fell ill while the first segments were still being made
            assert client.message(b"Subject: x\r\n\r\n")[-1].startswith(("451 4.3.0", "452 4.3.1"))
        status, text = scrape(http, "/healthz")
        assert status == 503
        assert "spool:" in text
        assert 0.0 in [v for k, v in samples(scrape(http)[1]).items() if "spool_healthy" in k]
        disk.clear()
        assert poll(lambda: scrape(http, "/healthz")[0] == 200, 60)
