"""Next hops that are full, busy, or take less than we would like to give.

Standards RFC 5321 §3.8 (421), §4.2.2 (452), §4.5.3.1.10 (too many recipients); RFC 9422
"""

from __future__ import annotations

import threading
import time

import pytest
from e2e.rig import CLOSE, PLAIN, Sender, Session, route, without_received
from fault_world import CONTENT, TIMEOUTS, World, attempts, shown, wait_until

FIFTY = [f"user{number}@rcpt.test" for number in range(50)]


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "content"])
def test_full(world: World, stage: str) -> None:
    """The next hop's disk or queue is full: 452.

    Client   250, the mail is ours
    Queue    deferred, tried by queue.retry_s; the connection is kept and other mail goes over it
    Shown    deferred with the reply; queue list
    Arrives  with the first attempt after there is room, once
    """
    full = iter(["452 4.3.1 Insufficient system storage"] * 2)
    hop = world.hop(replies={stage: lambda *_: next(full, None)})
    gateway = world.gateway_to(hop.url)
    queue_id = gateway.send(CONTENT)
    for number in (1, 2):
        gateway.wait_for("deferred", number)
        assert shown(gateway, queue_id)["reply"] == "4.3.1 Insufficient system storage"
        gateway.retry()
    hop.wait()
    gateway.wait_empty()
    assert len(attempts(gateway, queue_id)) == 2
    assert len(hop.received) == len(hop.clients) == 1
    assert not gateway.events("lane_down")


def test_too_many_connections(world: World) -> None:
    """The next hop takes three connections and says 421 to the others.

    Client   250, the mail is ours
    Queue    fewer connections: halved by each refusal, more again after a round of success
    Shown    gateway queue stats: concurrency of the next hop; nothing is deferred
    Arrives  at once, over as many connections as the next hop wants
    """
    sink = world.sink("content=delay:5ms", max_connections=3)
    gateway = world.gateway_to(sink)
    with Sender(gateway.port) as sender:
        for _ in range(300):
            sender.submit(CONTENT)
    sink.wait(300)
    gateway.wait_empty()
    assert len(sink.receipts) == 300
    assert not gateway.events("bounced")
    assert not gateway.events("deferred")


@pytest.mark.parametrize("stage", ["mail", "rcpt"])
def test_421_in_a_session(world: World, stage: str) -> None:
    """The next hop closes a session that ran: 421.

    Client   250, the mail is ours
    Queue    what it had not looked at goes over another connection at once; what it answered waits (queue.retry_s)
    Shown    deferred with the 421
    Arrives  by queue.retry_s, once
    """
    sink = world.sink(f"{stage}=421:4.3.2 going down@nth:4")
    gateway = world.gateway_to(sink)
    with Sender(gateway.port) as sender:
        for _ in range(30):
            sender.submit(CONTENT)

    def done() -> bool:
        gateway.retry()
        return not gateway.left()

    wait_until(done, "an empty spool")
    assert len(sink.receipts) == 30


def test_too_many_recipients(world: World) -> None:
    """The next hop takes ten recipients of a message and says 452 to the others.

    Client   250, the mail is ours
    Queue    the others follow in further transactions at once, as long as each takes some
    Shown    deferred with 452 for those of the next round
    Arrives  at once for everybody, each once
    """
    sink = world.sink(max_recipients=10)
    gateway = world.gateway_to(sink, queue="retry_s = [3600.0]")
    gateway.send(CONTENT, FIFTY)
    sink.wait(5)
    gateway.wait_empty()
    assert [len(receipt.rcpts) for receipt in sink.receipts] == [10] * 5
    assert sorted(rcpt for receipt in sink.receipts for rcpt in receipt.rcpts) == sorted(FIFTY)


def test_many_lanes_down(world: World) -> None:
    """A hundred next hops are gone at once, and one is not.

    Client   250, the mail is ours
    Queue    each lane tries to connect by its own queue.connect_retry_s, with one connection
    Shown    lane_down for each; gateway queue stats
    Arrives  at once at the one that is there; at the others when they are
    """
    there, gone = world.hop(), world.hop()
    gone.close()
    routes = [route(f"smtp://127.0.0.1:{gone.port}", f"d{number}.test") for number in range(100)]
    gateway = world.gateway(
        *routes,
        route(there.url, "rcpt.test"),
        extra="[queue]\nconnect_retry_s = [1.0]\nmax_connections = 20\n",
    )
    begun = time.monotonic()
    with Sender(gateway.port) as sender:
        for number in range(100):
            sender.submit(CONTENT, [f"a@d{number}.test", "bob@rcpt.test"])
    there.wait(100)
    wait_until(lambda: len(gateway.events("lane_down")) >= 100, "all lanes to be down")
    stats = gateway.call(gateway.queue.stats)
    assert sum(lane["down"] for lane in stats["lanes"]) == 100
    again = world.hop(port=gone.port)
    again.wait(100)
    gateway.wait_empty()
    # No storm: a lane that is down tries once a second, whatever waits in it.
    rounds = int(time.monotonic() - begun) + 2
    assert len(gateway.events("lane_down")) <= 100 * rounds


# -- PIPELINING and CHUNKING that do not hold what they promise --------------------------------------------------------


@pytest.mark.parametrize("stage", ["RCPT", "DATA"])
def test_broken_pipelining(world: World, stage: str) -> None:
    """The next hop offers PIPELINING, and answers 503 to what follows in one piece.

    Client   250, the mail is ours
    Queue    deferred; this next hop gets one command at a time for delivery.avoid_pipelining_s (a day)
    Shown    deferred with the 503; a log line that PIPELINING is broken there
    Arrives  with the next attempt, one command at a time
    """

    def confused(session: Session, _argument: str) -> str | None:
        return "503 5.5.1 bad sequence of commands" if session.buffer or stage == "DATA" else None

    hop = world.hop(PLAIN, {stage: confused})
    gateway = world.gateway_to(hop.url)
    queue_id = gateway.send(CONTENT)
    assert gateway.wait_for("deferred")[0]["code"] == 503
    hop.replies.clear()
    pieces: list[int] = []
    hop.replies["MAIL"] = lambda session, _: pieces.append(len(session.buffer)) or None
    gateway.retry()
    hop.wait()
    gateway.send(CONTENT)
    hop.wait(2)
    gateway.wait_empty()
    assert pieces == [0, 0]  # nothing came along with MAIL
    assert len(attempts(gateway, queue_id)) == 1
    assert any("PIPELINING is broken there" in str(line.get("message")) for line in gateway.log())


def test_rset_refused(world: World) -> None:
    """The next hop refuses RSET, and takes the message that came along with it all the same.

    Client   250, the mail is ours
    Queue    its replies are heard to the end, then another connection is used, one command at a time
    Shown    relayed; a log line that PIPELINING is broken there
    Arrives  at once, once
    """
    hop = world.hop(replies={"RSET": "502 5.5.1 not here"})
    gateway = world.gateway_to(hop.url, max_connections=1)
    with Sender(gateway.port) as sender:
        for number in range(30):
            sender.submit(CONTENT + b"%d\r\n" % number)
    gateway.wait_empty()
    assert sorted(mail.body for mail in hop.received) == sorted(CONTENT + b"%d\r\n" % n for n in range(30))


# -- the window of RFC 1047 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "without", [(), ("CHUNKING",), ("CHUNKING", "PIPELINING")], ids=["BDAT", "DATA", "step by step"]
)
def test_drops_before_its_250(world: World, without: tuple[str, ...]) -> None:
    """The next hop has the whole message, and its connection breaks before its 250.

    Client   250, the mail is ours
    Queue    deferred: nobody can know (RFC 1047); tried by queue.retry_s
    Shown    deferred, "may therefore arrive twice"
    Arrives  at once, and again with the next attempt: exactly those of which the log said so
    """
    sink = world.sink("content=drop@nth:5", without=without)
    gateway = world.gateway_to(sink, max_connections=2)
    with Sender(gateway.port) as sender:
        for number in range(40):
            sender.submit(CONTENT + b"%d\r\n" % number)
    for _ in range(200):
        gateway.wait_quiet()
        if not gateway.left():
            break
        gateway.retry()
    bodies = [without_received(receipt.content) for receipt in sink.receipts]
    assert set(bodies) == {CONTENT + b"%d\r\n" % number for number in range(40)}
    warned = [line for line in gateway.events("deferred") if "arrive twice" in line["reply"]]
    assert warned
    assert len(bodies) - 40 == len(warned)


def test_drops_with_the_next_behind(world: World) -> None:
    """The connection breaks with two messages under way, the second whole and unanswered.

    Client   250, the mail is ours
    Queue    the first is deferred; the second goes over another connection at once, without an attempt lost
    Shown    both: "may therefore arrive twice" (gateway trace of each)
    Arrives  the first twice; the second once, and twice if the next hop had gone on with it
    """
    both = threading.Event()

    def drop_once(session: Session, _argument: str) -> str | None:
        hop.replies.clear()
        both.wait(20)
        while b"second" not in session.buffer:
            session.fill()
        return CLOSE

    hop = world.hop(replies={"content": drop_once})
    gateway = world.gateway_to(hop.url, max_connections=1)
    first = gateway.send(CONTENT + b"first\r\n")
    second = gateway.send(CONTENT + b"second\r\n")
    both.set()
    hop.wait()
    assert "arrive twice" in gateway.wait_for("deferred")[0]["reply"]
    assert [line["queue_id"] for line in gateway.events("deferred")] == [first]
    assert any("arrive twice" in line["message"] for line in gateway.events("log", second))
    gateway.retry()
    gateway.wait_empty()
    assert len(gateway.events("relayed", second)) == 1


# -- garbage -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_sweep")
@pytest.mark.parametrize("stage", ["greeting", "hello", "mail", "rcpt", "data", "content"])
@pytest.mark.parametrize("how", ["garbage", "endless", "overlong", "wrong"])
def test_garbage(world: World, stage: str, how: str) -> None:
    """The next hop answers with what is no reply: random octets, endless lines, a line of 1 MiB, a code out of place.

    Client   250, the mail is ours
    Queue    transient, whatever it was: the lane is down (before EHLO's reply) or the message deferred
    Shown    lane_down or deferred, 4.5.0 "not an SMTP reply" or "unexpected reply"
    Arrives  when the next hop makes sense again; twice, if it kept what it answered with garbage
    """
    sink = world.sink(f"{stage}={how}@nth:1@until:1s", without=("CHUNKING",))
    gateway = world.gateway_to(sink, TIMEOUTS.format(0.3))  # some garbage is the beginning of a line
    sink.sink.faults.start()  # the second begins now
    gateway.send(CONTENT)

    def done() -> bool:
        gateway.retry()
        return not gateway.left()

    wait_until(done, "an empty spool")
    assert not gateway.events("bounced")
    assert sink.receipts
    assert gateway.events("lane_down") or gateway.events("deferred")
