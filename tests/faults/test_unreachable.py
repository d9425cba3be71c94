"""Next hops that cannot be connected to.

Standards RFC 5321 §4.5.4.1 (a host that is down delays all its mail), §5.1
"""

from __future__ import annotations

import socket
import time

from e2e.rig import QUICK, route, without_received
from fault_world import BOB, CONTENT, World, metric, shown, wait_until


def numbered(number: int) -> bytes:
    return CONTENT + b"%d\r\n" % number


def test_refused(world: World) -> None:
    """The next hop is gone: its port is closed.

    Client   250, the mail is ours
    Queue    the lane is down; one connection at a time tries, after queue.connect_retry_s (1 s to 5 min)
    Shown    lane_down with the reason, lane_up; gateway_lane_up 0; queue list counts the attempts
    Arrives  with the first connection that succeeds
    """
    hop = world.hop()
    hop.close()
    gateway = world.gateway_to(hop.url)
    queue_id = gateway.send(CONTENT)
    late = gateway.send(CONTENT)
    lines = gateway.wait_for("lane_down", 3)
    assert "Connection refused" in lines[0]["reply"]
    assert metric(gateway, "gateway_lane_up", next_hop=hop.url) == 0.0
    recipient = shown(gateway, queue_id)
    assert recipient["attempts"] >= 2
    assert "Connection refused" in recipient["reply"]
    assert shown(gateway, late)["reply"] == recipient["reply"]
    again = world.hop(port=hop.port)
    again.wait(2)
    gateway.wait_for("lane_up")
    gateway.wait_empty()
    assert metric(gateway, "gateway_lane_up", next_hop=hop.url) == 1.0


def test_blackholed(world: World) -> None:
    """The next hop's address swallows everything: a SYN gets no answer.

    Client   250, the mail is ours
    Queue    the lane is down after delivery.connect_s (30 s) and tries on; other lanes do not notice
    Shown    lane_down "timed out"; gateway_lane_up 0; queue list
    Arrives  with the first connection that succeeds; other mail at once
    """
    port, other = world.blackhole(), world.hop()
    gateway = world.gateway(
        route(f"smtp://127.0.0.1:{port}", "rcpt.test"),
        route(other.url, "other.test"),
        extra=f"{QUICK}[delivery]\nconnect_s = 0.5\n",
    )
    queue_id = gateway.send(CONTENT)
    for _ in range(20):
        gateway.send(CONTENT, "carol@other.test")
    other.wait(20)
    assert "timed out" in gateway.wait_for("lane_down", 2)[0]["reply"]
    recipient = shown(gateway, queue_id)
    assert recipient["attempts"] >= 1
    assert "timed out" in recipient["reply"]
    assert metric(gateway, "gateway_lane_up", next_hop=other.url) == 1.0


def test_second_address(world: World) -> None:
    """The first of a route's next hops is gone, the second is there.

    Client   250, the mail is ours
    Queue    the second does the work, one message at a time probes the first
    Shown    gateway queue stats: "up" of each next hop
    Arrives  at once, by way of the second
    """
    gone, there = world.hop(), world.hop()
    gone.close()
    gateway = world.gateway(route([gone.url, there.url], "rcpt.test"), extra=QUICK)
    for _ in range(10):
        gateway.send(CONTENT)
    there.wait(10)
    gateway.wait_empty()
    (lane,) = gateway.call(gateway.queue.stats)["lanes"]
    assert not lane["down"]
    assert [hop["up"] for hop in lane["hops"]] == [False, True]
    assert not gateway.events("lane_down")


def test_flapping(world: World) -> None:
    """The next hop comes and goes: every moment its connections are reset and its port is closed.

    Client   250, the mail is ours
    Queue    what was not begun goes over the next connection; what broke off is deferred (queue.retry_s)
    Shown    lane_down and lane_up; deferred with 4.4.2
    Arrives  all of it; twice only what the next hop had whole when it went (RFC 1047): the log says so
    """
    sink = world.sink("all=down:150ms@every:300ms@until:3s")
    gateway = world.gateway_to(sink)
    number = 0
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        gateway.send(numbered(number))
        number += 1

    def done() -> bool:
        gateway.retry()
        return not gateway.left()

    wait_until(done, "an empty spool")
    got = [without_received(receipt.content) for receipt in sink.receipts]
    assert set(got) == set(map(numbered, range(number)))
    assert gateway.events("lane_down")
    assert not gateway.events("bounced")
    said = [line for line in gateway.log() if "arrive twice" in str(line)]
    assert len(got) - number <= len(said)


def test_no_route_to_the_host(world: World) -> None:
    """No route leads to the next hop: the kernel says so at once.

    Client   250, the mail is ours
    Queue    as for a closed port
    Shown    lane_down with the kernel's words
    Arrives  with the first connection that succeeds
    """
    # 127.0.0.1 cannot reach a multicast address by TCP: the kernel refuses without asking anybody.
    with socket.socket() as probe:
        assert probe.connect_ex(("224.0.0.1", 25)) != 0
    gateway = world.gateway_to("smtp://224.0.0.1:25")
    gateway.send(CONTENT, BOB)
    assert "unreachable" in gateway.wait_for("lane_down")[0]["reply"].lower()
    assert gateway.left() == 1
