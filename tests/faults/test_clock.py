"""The clock of the host is set: back, and forward by days, while mail waits.

Standards RFC 5321 §4.5.4.1
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.rig import Sender, queue_id
from fault_world import CONTENT, World
from interop_peers import RunningGateway, listener, need, route, wait_for

RETRY_S = 1.0


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with the seconds by which gateways that are started from now on are ahead ("+0")."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    preload = need(str(library or "libfaketime"))
    ahead = tmp_path / "ahead"
    ahead.write_text("+0\n")
    for name, value in {
        "LD_PRELOAD": preload,
        "FAKETIME_TIMESTAMP_FILE": str(ahead),
        "FAKETIME_NO_CACHE": "1",  # read at each call: the next one sees the step
        "FAKETIME_DISABLE_SHM": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # setting the clock does not touch it (clock_gettime(2))
        "NO_FAKE_STAT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield ahead


@pytest.mark.parametrize("step", ["-864000", "+864000"], ids=["back", "forward"])
def test_set(world: World, clock: Path, tmp_path: Path, step: str) -> None:
    """The clock is set back or forward, by ten days.

    Client   250, the mail is ours
    Queue    goes on as if nothing had happened: waits, ages and timeouts are by a clock that is never set; queue ids
             rise on.  A restart believes the clock: it is all there is then
    Shown    lines with the new time; delay_s and age stay true; the sender is not told of a delay, nothing expires
    Arrives  by queue.retry_s, as ever
    """
    hop, back = world.hop(replies={"RCPT": "450 4.2.0 later"}), world.hop()
    config = {
        "listen": [listener()],
        "route": [route(hop.url, "rcpt.test"), route(back.url, "sender.test")],
        "queue": {"retry_s": [RETRY_S]},
        "limits": {"heartbeat_s": 3.0},
    }
    gateway = RunningGateway(tmp_path, config)
    try:
        with Sender(gateway.port) as sender:
            ids = [queue_id(sender.submit(CONTENT)) for _ in range(5)]
            wait_for(lambda: len(gateway.log("deferred")) >= 5, "the first attempts")
            begun = time.monotonic()
            clock.write_text(f"{step}\n")
            ids += [queue_id(sender.submit(CONTENT)) for _ in range(5)]
        wait_for(lambda: len(gateway.log("deferred")) >= 10 + 10, "another attempt of each")
        rounds = (time.monotonic() - begun) / RETRY_S
        tries = [line["queue_id"] for line in gateway.log("deferred")]
        assert max(map(tries.count, ids)) <= rounds + 2, "a storm of retries"
        assert ids == sorted(set(ids))
        for line in gateway.log("deferred"):
            assert 0.0 <= line["delay_s"] < 60.0
        for message in json.loads(gateway.command("queue", "list", "--json"))["messages"]:
            assert 0.0 <= message["age_s"] < 60.0
        for event in ("expired", "bounced", "worker_hangs", "worker_died", "lane_down"):
            assert not gateway.log(event)
        assert not back.received
        if step.startswith("-"):  # the file of its history is older than the message
            assert "450" in gateway.command("trace", ids[0])
        hop.replies.clear()
        hop.wait(10)
        assert len(hop.received) == 10
    finally:
        gateway.kill()
