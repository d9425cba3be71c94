"""The network between us and the next hop: frames are lost, links go down.

Standards RFC 1047; RFC 5321 §4.5.4.1
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.rig import Sender, without_received
from fault_world import CONTENT
from interop_peers import RunningGateway, RunningSink, route, wait_for
from smtp_blaster.lab import Lab, LabError
from smtp_blaster.sink import SinkPlan

pytestmark = pytest.mark.netns

PORT = 2525
STATES = ("greeting_s", "helo_s", "mail_s", "rcpt_s", "data_init_s", "data_block_s")


@pytest.fixture
def lab() -> Iterator[Lab]:
    laboratory = Lab("gateway", "nexthop")
    try:
        laboratory.__enter__()
    except LabError as error:
        pytest.skip(f"no lab: {error}")
    yield laboratory
    laboratory.__exit__(None, None, None)


@pytest.fixture
def sink(lab: Lab) -> Iterator[RunningSink]:
    with lab["nexthop"].inside():  # and so is the thread it starts
        running = RunningSink(SinkPlan(address=f"{lab['nexthop'].address}:0"))
    yield running
    running.stop()


@pytest.fixture
def gateway(lab: Lab, sink: RunningSink, tmp_path: Path) -> Iterator[RunningGateway]:
    config = {
        "listen": [{"service": "smtp", "address": f"127.0.0.1:{PORT}"}],
        "route": [route(f"smtp://{lab['nexthop'].address}:{sink.port}")],
        "queue": {"retry_s": [1.0], "connect_retry_s": [0.5]},
        "delivery": {"connect_s": 2.0, "data_done_s": 30.0, **dict.fromkeys(STATES, 5.0)},
    }
    with lab["gateway"].inside():
        running = RunningGateway(tmp_path, config)
    yield running
    running.kill()


def submit(lab: Lab, messages: int) -> list[bytes]:
    """Send them from the gateway's own host; what is to arrive."""
    contents = [CONTENT + b"%d\r\n" % number for number in range(messages)]
    with lab["gateway"].inside():
        sender = Sender(PORT)
    with sender:
        for content in contents:
            assert sender.submit(content).startswith("250")
    return contents


def arrived(sink: RunningSink) -> list[bytes]:
    return [without_received(receipt.content) for receipt in sink.receipts]


def test_half_is_lost(lab: Lab, sink: RunningSink, gateway: RunningGateway) -> None:
    """Three frames of ten are lost on each way: half of all round trips fail.

    Client   250, the mail is ours
    Queue    TCP does most of it; what takes longer than delivery.connect_s or a state's timeout is tried again
    Shown    deferred or lane_down when a timeout ran out, else nothing but the time it took
    Arrives  what gets through in time, the rest when the link is well; twice only what the log says may be
    """
    lab["nexthop"].link.shape(loss=0.3)
    contents = submit(lab, 20)
    wait_for(lambda: sink.receipts or gateway.log("lane_down") or gateway.log("deferred"), "the loss to be felt")
    lab["nexthop"].link.shape()
    wait_for(lambda: set(arrived(sink)) == set(contents), "all of it")
    warned = [line for line in gateway.log() if "arrive twice" in str(line)]
    assert len(arrived(sink)) - len(contents) <= len(warned)
    assert not gateway.log("bounced")


def test_link_down(lab: Lab, sink: RunningSink, gateway: RunningGateway) -> None:
    """The next hop's link goes down, and comes up again.

    Client   250, the mail is ours
    Queue    the lane is down after delivery.connect_s, and tries on
    Shown    lane_down; gateway_lane_up 0
    Arrives  by queue.connect_retry_s after the link is up
    """
    submit(lab, 1)
    sink.wait()
    lab["nexthop"].link.down()
    contents = submit(lab, 10)
    wait_for(lambda: gateway.log("lane_down") or gateway.log("deferred"), "the gateway to notice")
    lab["nexthop"].link.up()
    wait_for(lambda: set(arrived(sink)) >= set(contents), "all of it", timeout_s=60.0)
