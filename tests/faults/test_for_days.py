"""Next hops that put us off for hours and days.

Standards RFC 5321 §4.5.4.1, RFC 3461 §4.1 (DELAY), RFC 3464 §2.3.3, RFC 3463 §3.5 (X.4.7)
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from e2e.rig import Gateway, NextHop, route
from fault_world import (
    CONTENT,
    DAY_S,
    World,
    attempts,
    metric,
    next_due_s,
    pass_s,
    shown,
    wait_until,
)

from gateway.config_model import QueueConfig
from gateway.queue.backoff import JITTER

pytestmark = pytest.mark.usefixtures("days")

DEFAULT = QueueConfig()
HOUR_S = 3600.0


def gateway_of(world: World, hop: NextHop) -> tuple[Gateway, NextHop]:
    """A gateway with the queue's own defaults, and the sender's server."""
    back = world.hop()
    gateway = world.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"), extra="")
    return gateway, back


def live(gateway: Gateway, seconds: float) -> None:
    """So much time passes, from one due time to the next."""
    end = float(gateway.call(gateway.worker.scheduler.clock.monotonic)) + seconds
    while gateway.left():
        due = next_due_s(gateway) + 0.001
        left = end - float(gateway.call(gateway.worker.scheduler.clock.monotonic))
        if left <= due:
            pass_s(gateway, max(0.0, left))
            return
        before = tried(gateway)
        pass_s(gateway, due)
        wait_until(
            lambda before=before: tried(gateway) != before or not gateway.left(),
            "the attempt that was due",
        )


def tried(gateway: Gateway) -> int:
    """Attempts so far, of messages and of lanes to connect."""
    worker = gateway.worker
    failures = sum(lane.failures for lane in worker.scheduler.lanes)
    return worker.metrics.deferred + worker.metrics.expired + failures


def test_4xx_until_it_expires(world: World) -> None:
    """The next hop says 450 for five days.

    Client   250, the mail is ours
    Queue    tried after 5, 10, 20, 40 minutes, then every hour (queue.retry_s), each up to 10 % later; the last time
             when it expires
    Shown    deferred with the reply, attempt and age; the sender is told once after 4 hours (queue.delay_warning_s)
    Arrives  not at all: after 5 days (queue.expire_s) the sender gets a report, 4.4.7 with the last reply
    """
    hop = world.hop(replies={"RCPT": "450 4.2.0 still not"})
    gateway, back = gateway_of(world, hop)
    queue_id = gateway.send(CONTENT)
    gateway.wait_for("deferred")
    live(gateway, 6 * DAY_S)
    gateway.wait_for("expired")
    gateway.wait_empty()
    tries = [*attempts(gateway, queue_id), gateway.events("expired")[0]["delay_s"]]
    waits = [later - earlier for earlier, later in pairwise(tries)]
    planned = [*DEFAULT.retry_s, *[DEFAULT.retry_s[-1]] * len(waits)]
    for wait, plan in zip(waits[:-1], planned, strict=False):
        assert plan - 1.0 <= wait <= plan * (1.0 + JITTER) + 5.0
    assert 0.0 < waits[-1] <= DEFAULT.retry_s[-1] * (1.0 + JITTER) + 5.0
    assert abs(tries[-1] - DEFAULT.expire_s) < 60.0
    assert len(hop.said("RCPT")) == len(tries)
    warning, end = (mail.message for mail in back.wait(2))
    assert len(back.received) == 2
    assert "Action: delayed" in warning.as_string()
    assert "still not" in warning.as_string()
    assert "Action: failed" in end.as_string()
    assert "Status: 4.4.7" in end.as_string()
    assert "still not" in end.as_string()
    warned_at = [line["delay_s"] for line in gateway.events("deferred") if line["delay_s"] > 4 * HOUR_S]
    assert warned_at[0] - 4 * HOUR_S < HOUR_S * 1.2


def test_4xx_for_two_days(world: World) -> None:
    """The next hop says 450 for two days, and takes the mail then.

    Client   250, the mail is ours
    Queue    tried by queue.retry_s, about 50 times
    Shown    deferred with the reply; the sender is told once, after 4 hours
    Arrives  within the hour (the last of queue.retry_s) in which the next hop takes it, once
    """
    hop = world.hop(replies={"MAIL": "451 4.3.0 maintenance"})
    gateway, back = gateway_of(world, hop)
    gateway.send(CONTENT)
    gateway.wait_for("deferred")
    live(gateway, 2 * DAY_S)
    assert 45 < len(gateway.events("deferred")) < 60
    hop.replies.clear()
    pass_s(gateway, next_due_s(gateway) + 0.001)
    hop.wait()
    gateway.wait_empty()
    assert len(hop.received) == 1
    assert [mail.message["Auto-Submitted"] for mail in back.received] == ["auto-replied"]
    assert not gateway.events("expired")


def test_gone_until_it_expires(world: World) -> None:
    """Nobody listens at the next hop for five days.

    Client   250, the mail is ours
    Queue    the lane tries to connect after 1, 5, 15, 30 s, 1, 2 min, then every 5 minutes (queue.connect_retry_s)
    Shown    lane_down with each attempt; queue list counts them; the sender is told once after 4 hours
    Arrives  not at all: after 5 days the sender gets a report, 4.4.7 with what the kernel said
    """
    hop = world.hop()
    hop.close()
    gateway, back = gateway_of(world, hop)
    queue_id = gateway.send(CONTENT)
    gateway.wait_for("lane_down")
    live(gateway, HOUR_S)
    count = len(gateway.events("lane_down"))
    assert 13 <= count <= 20
    assert shown(gateway, queue_id)["attempts"] >= count - 1
    assert metric(gateway, "gateway_lane_up", next_hop=hop.url) == 0.0
    live(gateway, 3 * HOUR_S)
    assert not back.received
    wait_until(lambda: pass_s(gateway, 61.0) or back.received, "the sweep that tells the sender")
    warning = back.wait()[0].message.as_string()
    assert "Action: delayed" in warning
    assert "Connection refused" in warning
    pass_s(gateway, 5 * DAY_S)
    wait_until(lambda: pass_s(gateway, 61.0) or not gateway.left(), "the sweep that gives up")
    end = back.wait(2)[1].message.as_string()
    assert "Status: 4.4.7" in end
    assert "Connection refused" in end
    gateway.wait_empty()
