"""Next hops that are slow, or answer a little and never all.

Standards RFC 5321 §4.5.3.2 (a timeout for each state, renewed by progress)
"""

from __future__ import annotations

import threading

import pytest
from e2e.rig import PLAIN, QUICK, Session, route, without_received
from fault_world import CONTENT, TIMEOUTS, World, attempts, wait_until

LARGE = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * 40_000

pytestmark = pytest.mark.usefixtures("quick_sweep")


@pytest.mark.parametrize("stage", ["greeting", "hello", "mail", "rcpt", "data", "content"])
def test_late(world: World, stage: str) -> None:
    """One reply comes late, but within its timeout.

    Client   250, the mail is ours
    Queue    waits; no attempt is lost
    Shown    nothing but the time it took (delay_s)
    Arrives  as late as the reply
    """
    sink = world.sink(f"{stage}=delay:300ms", without=("CHUNKING",))
    gateway = world.gateway_to(sink)
    gateway.send(CONTENT)
    sink.wait()
    gateway.wait_empty()
    assert not gateway.events("deferred")
    assert not gateway.events("lane_down")
    assert gateway.events("relayed")[0]["delay_s"] >= 0.3


@pytest.mark.parametrize(
    ("stage", "event"),
    [("greeting", "lane_down"), ("hello", "lane_down"), ("mail", "deferred"), ("content", "deferred")],
)
def test_silent(world: World, stage: str, event: str) -> None:
    """The next hop takes the connection and then says nothing.

    Client   250, the mail is ours
    Queue    given up after the state's timeout: before EHLO's reply the lane is down, later the message waits
    Shown    lane_down or deferred, "timed out waiting for" the state
    Arrives  by queue.connect_retry_s or queue.retry_s; twice, if the next hop kept what it never acknowledged
    """
    sink = world.sink(f"{stage}=silent@nth:1@until:1s", without=("CHUNKING",))
    gateway = world.gateway_to(sink, TIMEOUTS.format(0.3))
    sink.sink.faults.start()  # the second begins now
    gateway.send(CONTENT)
    line = gateway.wait_for(event)[0]
    assert "timed out waiting for" in line["reply"]
    if stage == "content":
        assert "arrive twice" in line["reply"]

    def again() -> bool:
        gateway.retry()
        return not gateway.left()

    wait_until(again, "an empty spool")
    gone = len(gateway.events("deferred")) if stage == "content" else 0
    assert len(sink.receipts) == 1 + gone


def test_trickle(world: World) -> None:
    """Replies come octet by octet.

    Client   250, the mail is ours
    Queue    waits: each reply is whole within its timeout
    Shown    nothing but the time it took
    Arrives  as late as the replies
    """
    sink = world.sink("all=drip:2ms", without=("CHUNKING",))
    gateway = world.gateway_to(sink)
    gateway.send(CONTENT)
    sink.wait()
    gateway.wait_empty()
    assert not gateway.events("deferred")


@pytest.mark.parametrize("stage", ["MAIL", "content"])
def test_trickle_for_ever(world: World, stage: str) -> None:
    """A reply begins and never ends: an octet now and then, to keep us waiting.

    Client   250, the mail is ours
    Queue    given up after the state's timeout, which only a whole reply renews
    Shown    deferred, "timed out waiting for" the state
    Arrives  by queue.retry_s, when the next hop is better
    """
    over = threading.Event()

    def trickle(session: Session, _argument: str) -> str | None:
        while not over.wait(0.05):
            session.sock.sendall(b"250-still thinking\r\n" if stage == "MAIL" else b"2")
            if stage == "content":
                over.wait(20)
        return None

    hop = world.hop(PLAIN, {stage: trickle})
    gateway = world.gateway_to(hop.url, TIMEOUTS.format(0.5))
    gateway.send(CONTENT)
    assert "timed out" in gateway.wait_for("deferred")[0]["reply"]
    hop.replies.clear()
    over.set()
    gateway.retry()
    hop.wait()
    gateway.wait_empty()


def test_slow_reader(world: World) -> None:
    """The next hop reads 3 MB in sips, from a small window.

    Client   250, the mail is ours
    Queue    waits as long as octets move (delivery.data_block_s without any gives up); holds little in memory
    Shown    nothing but the time it took; other mail on the same worker is not slower
    Arrives  as slowly as it is read
    """
    sink = world.sink("transfer=sip:1ms", receive_buffer_octets=65536)
    other = world.hop()
    gateway = world.gateway(
        route(f"smtp://127.0.0.1:{sink.port}", "rcpt.test"),
        route(other.url, "other.test"),
        extra=f"{QUICK}[delivery]\ndata_block_s = 2.0\n",
    )
    queue_id = gateway.send(LARGE)
    for _ in range(10):
        gateway.send(CONTENT, "carol@other.test")
    other.wait(10)
    (receipt,) = sink.wait()
    assert without_received(receipt.content) == LARGE
    gateway.wait_empty()
    assert not attempts(gateway, queue_id)


def test_reads_nothing(world: World) -> None:
    """The next hop stops reading in the middle of a message.

    Client   250, the mail is ours
    Queue    given up after delivery.data_block_s (3 min) in which no octet moved
    Shown    deferred, "timed out"
    Arrives  by queue.retry_s, when the next hop reads again
    """
    sink = world.sink("transfer=sip:60s@until:1s", receive_buffer_octets=4096, without=("CHUNKING",))
    gateway = world.gateway_to(sink, "[delivery]\ndata_block_s = 0.5\n")
    sink.sink.faults.start()  # the second begins now
    gateway.send(LARGE)
    assert "timed out" in gateway.wait_for("deferred")[0]["reply"]

    def again() -> bool:
        gateway.retry()
        return not gateway.left()

    wait_until(again, "an empty spool")
    assert [without_received(receipt.content) for receipt in sink.receipts] == [LARGE]
