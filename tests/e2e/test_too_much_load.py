"""Too much load, end to end: who is refused, with what, who waits, and that it is over when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from e2e.rig import QUICK, Gateway, Lab, Sender, route, wait_until

from gateway.app import Worker
from gateway.policy.overload import LASTING, NO_LIMIT, Load, Traffic

MAIL = b"Subject: hi\r\n\r\nhello\r\n"
TARGETS = Load(turn_s=0.02)
STRANGER = "127.0.0.2"
TRUSTED = '[access]\nrelay_from = ["127.0.0.1"]\n'


def limit(worker: Worker, per_s: float) -> None:
    """As if the loop were slow, from now on."""
    worker.load.stop()
    overload = worker.doors.overload
    overload.targets = TARGETS
    for _ in range(LASTING):
        overload.update(Load(turn_s=3600.0), Traffic())
    overload.limit = per_s


def wait_for_turn(gateway: Gateway, seconds: float) -> None:
    """The next message is due so much later."""

    def postpone() -> None:
        gateway.worker.doors.overload._next = time.monotonic() + seconds

    gateway.call(postpone)


@pytest.fixture
def busy(lab: Lab) -> Gateway:
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), extra=QUICK + TRUSTED)
    gateway.call(limit, gateway.worker, 5.0)
    return gateway


def test_a_stranger_is_refused_and_the_session_goes_on(busy: Gateway) -> None:
    wait_for_turn(busy, 3600.0)
    assert busy.worker.doors.overload.limited
    with Sender(busy.port, hello="", address=STRANGER) as sender:
        assert sender.reply()[-1].startswith("421 4.3.2 Too busy: commands wait too long")
    wait_for_turn(busy, 0.0)
    with Sender(busy.port, address=STRANGER) as sender:
        wait_for_turn(busy, 3600.0)
        for _ in range(30):  # with 90 commands that came to nothing
            sender.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<bob@rcpt.test>\r\nDATA\r\nRSET\r\n")
            codes = [sender.reply()[-1][:9] for _ in range(4)]
            assert codes == ["451 4.4.5", "503 5.5.1", "503 5.5.1", "250 2.0.0"]
        wait_for_turn(busy, 0.0)
        assert sender.submit(MAIL).startswith("250")
    text = asyncio.run_coroutine_threadsafe(busy.worker.metrics_text(), busy.loop).result(20).decode()
    assert 'gateway_shed_total{reason="turn_s",stage="connect",worker="0"} 1.0' in text
    assert 'gateway_shed_total{reason="turn_s",stage="mail",worker="0"} 30.0' in text
    busy.wait_empty()


def test_a_client_that_may_relay_waits_for_its_turn(busy: Gateway) -> None:
    with Sender(busy.port) as sender:
        for _ in range(5):
            wait_for_turn(busy, 0.2)
            assert sender.submit(MAIL).startswith("250")
        assert busy.worker.doors.overload.waits == 5
        wait_for_turn(busy, 3600.0)  # that is no pause any more
        assert sender.command("MAIL FROM:<a@b.test>")[-1].startswith("451 4.4.5")
    assert not busy.worker.doors.overload.shed["connect", "turn_s"]
    busy.wait_empty()


def test_who_leaves_while_it_waits_disturbs_nobody(busy: Gateway) -> None:
    wait_for_turn(busy, 0.3)
    with Sender(busy.port) as sender:
        sender.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<bob@rcpt.test>\r\n")
    busy.wait_for("disconnected")
    busy.call(limit, busy.worker, NO_LIMIT)
    wait_for_turn(busy, 0.0)
    with Sender(busy.port, address=STRANGER) as sender:
        assert sender.submit(MAIL).startswith("250")
    busy.wait_empty()
    assert not any("traceback" in line for line in busy.log())


def test_a_loop_that_is_slow_is_seen_and_it_is_over_when_it_is_not(lab: Lab) -> None:
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), extra=QUICK + TRUSTED)
    gateway.worker.doors.overload.targets = TARGETS
    slow = True

    def turn() -> None:
        time.sleep(0.12)
        if slow:
            gateway.loop.call_soon(turn)

    gateway.call(gateway.loop.call_soon, turn)
    told = gateway.wait_for("shedding")
    assert told[0]["reason"] == "turn_s"
    assert gateway.worker.doors.overload.limited
    slow = False
    gateway.wait_for("shedding_over")
    assert not gateway.worker.doors.overload.limited
    with Sender(gateway.port, address=STRANGER) as sender:
        assert sender.submit(MAIL).startswith("250")
    gateway.wait_empty()


def slowly(seconds: float) -> Callable[..., None]:
    def answer(_session: object, _argument: str) -> None:
        time.sleep(seconds)

    return answer


def test_a_next_hop_slower_than_its_senders_gets_no_more_from_strangers(lab: Lab) -> None:
    slow, quick = lab.hop(replies={"content": slowly(0.05)}), lab.hop()
    gateway = lab.gateway(
        route(slow.url, "rcpt.test", max_connections=1),
        route(quick.url, "other.test"),
        extra=QUICK + TRUSTED + "[limits]\nshed_route_s = 0.4\n",
    )
    with Sender(gateway.port) as trusted, Sender(gateway.port, address=STRANGER) as stranger:
        for _ in range(40):
            assert trusted.submit(MAIL).startswith("250")
        wait_until(lambda: gateway.worker.doors.backlog.full, "a route that is backed up")
        assert stranger.command("MAIL FROM:<a@b.test>")[-1].startswith("250")
        assert stranger.command("RCPT TO:<bob@rcpt.test>")[-1].startswith("450 4.4.5 Too much mail waits")
        assert stranger.command("RCPT TO:<bob@other.test>")[-1].startswith("250")
        stranger.command("RSET")
        assert trusted.submit(MAIL).startswith("250")
        assert gateway.worker.doors.backlog.refused == 1
        gateway.wait_empty()
        wait_until(lambda: not gateway.worker.doors.backlog.full, "an end of that")
        assert stranger.submit(MAIL).startswith("250")
    gateway.wait_empty()
    assert len(slow.wait(42)) == 42
