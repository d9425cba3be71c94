"""What a 250 means: "inline" (the next hop has it), "fsync" (our disk has it), "memory" (our disk soon will).

Standards RFC 5321 §4.2.5, §6.1; RFC 2033 §4.2; RFC 1047
"""

from __future__ import annotations

import asyncio
import re
import smtplib
import threading
from collections.abc import Iterator

import pytest
from e2e.rig import (
    DROP,
    EVERYTHING,
    LISTEN,
    PLAIN,
    QUICK,
    Gateway,
    Lab,
    NextHop,
    Sender,
    Session,
    route,
    wait_until,
)

CONTENT = b"Subject: secret words\r\n\r\nbody\r\n"
INLINE = LISTEN + 'durability = "inline"\n'
INLINE_LMTP = INLINE.replace('"smtp"', '"lmtp"')
LHLO = "LHLO client.example"


def metrics(gateway: Gateway) -> str:
    text = asyncio.run_coroutine_threadsafe(gateway.worker.metrics_text(), gateway.loop)
    return text.result(10).decode()


def spool_octets(gateway: Gateway) -> bytes:
    return b"".join(f.read_bytes() for f in (gateway.state / "spool").rglob("*") if f.is_file())


@pytest.mark.parametrize("durability", ["inline", "fsync", "memory"])
@pytest.mark.parametrize("service", ["smtp", "lmtp"])
def test_the_class_is_told(lab: Lab, durability: str, service: str) -> None:
    """In the 250, in the log, in the metrics, in the history."""
    hop = lab.hop()
    listen = LISTEN.replace("smtp", service) + f'durability = "{durability}"\n'
    gateway = lab.gateway(route(hop.url, "rcpt.test"), listen=listen)
    with Sender(gateway.port, LHLO if service == "lmtp" else "EHLO client.example") as sender:
        reply = sender.submit(CONTENT)
    assert reply.startswith("250 2.0.0 ")
    assert f"{durability})" in reply
    accepted = gateway.wait_for("accepted")[0]
    assert accepted["durability"] == durability
    assert accepted["queue_id"] in reply
    relayed = gateway.wait_for("relayed")[0]
    assert relayed["queue_id"] == accepted["queue_id"]
    assert hop.wait()[0].body == CONTENT
    gateway.wait_empty()
    line = rf'gateway_messages_accepted_total{{durability="{durability}",worker="0"}} 1\.0'
    assert re.search(line, metrics(gateway))
    history = b"".join(f.read_bytes() for f in gateway.config.history_dir.iterdir())
    assert f'"durability":"{durability}"'.encode() in history


# -- fsync and memory --------------------------------------------------------------------------------------------------


def test_fsync_is_on_disk_before_the_250(lab: Lab) -> None:
    gateway = lab.gateway(route("discard:", "rcpt.test", hold=True))
    for _ in range(20):
        queue_id = gateway.send(CONTENT)
        task = gateway.worker.scheduler.tasks[queue_id]
        assert task.stored.written
        assert CONTENT in spool_octets(gateway)


def test_memory_is_on_disk_soon(lab: Lab) -> None:
    gateway = lab.gateway(
        route("discard:", "rcpt.test", hold=True), listen=LISTEN + 'durability = "memory"\n'
    )
    queue_id = gateway.send(CONTENT)
    task = gateway.worker.scheduler.tasks[queue_id]
    wait_until(lambda: task.stored.written, "the disk")
    assert CONTENT in spool_octets(gateway)


# -- inline ------------------------------------------------------------------------------------------------------------


class Gate:
    """A reply that waits until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, session: Session, argument: str) -> None:
        self.reached.set()
        assert self.open.wait(20)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


def test_inline_says_250_when_the_next_hop_has_it(lab: Lab, gate: Gate) -> None:
    hop = lab.hop(replies={"content": gate})
    gateway = lab.gateway(route(hop.url, "rcpt.test"), listen=INLINE)
    with Sender(gateway.port) as sender:
        sender.envelope("alice@sender.test", ["bob@rcpt.test"])
        sender.command("DATA")
        sender.send(CONTENT + b".\r\n")
        assert gate.reached.wait(10)
        sender.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sender.reply()
        assert not gateway.events("accepted")
        assert gateway.left() == 0
        gate.open.set()
        sender.sock.settimeout(10)
        assert sender.reply()[-1].startswith("250 2.0.0 kept")
    assert b"secret words" not in spool_octets(gateway)


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "content"])
@pytest.mark.parametrize("verdict", ["450 4.2.1 later please", "554 5.7.1 never ever"])
@pytest.mark.parametrize("offers", [PLAIN, ()], ids=["pipelined", "step by step"])
def test_inline_passes_the_verdict_on(
    lab: Lab, offers: tuple[str, ...], verdict: str, stage: str
) -> None:
    """No report, no second attempt: the client knows, and it is the client's."""
    hop, back = lab.hop(offers, {stage: verdict}), lab.hop()
    gateway = lab.gateway(
        route(hop.url, "rcpt.test"), route(back.url, "sender.test"), listen=INLINE
    )
    with Sender(gateway.port) as sender:
        assert sender.submit(CONTENT) == verdict
        hop.replies.clear()
        assert sender.submit(CONTENT).startswith("250")
    assert len(hop.received) == 1
    assert not back.commands
    assert gateway.left() == 0
    assert len(gateway.events("accepted")) == 1
    assert gateway.worker.metrics.accepted_inline == 1
    assert (
        gateway.worker.metrics.rejected_permanent + gateway.worker.metrics.rejected_transient == 1
    )


@pytest.mark.parametrize("what", ["refused", "greeting", "lost", "lost behind the content"])
def test_inline_without_a_next_hop_is_451(lab: Lab, what: str) -> None:
    replies = {
        "refused": {},
        "greeting": {"connect": "554 5.3.2 go away"},
        "lost": {"RCPT": DROP},
        "lost behind the content": {"content": DROP},
    }
    hop = lab.hop(replies=replies[what])
    if what == "refused":
        hop.close()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), listen=INLINE)
    with Sender(gateway.port) as sender:
        reply = sender.submit(CONTENT)
        assert reply[:5] in ("451 4", "454 4"), reply
        assert sender.submit(CONTENT)[:1] == "4"  # and at once, while the lane is down
    assert gateway.left() == 0


def test_inline_fails_over(lab: Lab) -> None:
    first, second = lab.hop(), lab.hop()
    first.close()
    gateway = lab.gateway(route([first.url, second.url], "rcpt.test"), listen=INLINE)
    with Sender(gateway.port) as sender:
        assert sender.submit(CONTENT).startswith("250")
    assert second.wait()[0].body == CONTENT


def test_inline_smtp_takes_one_recipient(lab: Lab) -> None:
    """One reply cannot speak for two; the client sends the others in their own transactions."""
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), listen=INLINE)
    with Sender(gateway.port, hello="") as sender:
        sender.code()
        offered = sender.command("EHLO client.example")
        assert any("RCPTMAX=1" in line for line in offered)
        assert not any("DSN" in line for line in offered)  # nobody here would send the reports
        sender.command("MAIL FROM:<alice@sender.test>")
        assert sender.command("RCPT TO:<bob@rcpt.test>")[-1].startswith("250")
        assert sender.command("RCPT TO:<eve@rcpt.test>")[-1].startswith("452 4.5.3")
    # A real client does just that, given the list of those who were refused.
    with smtplib.SMTP("127.0.0.1", gateway.port, timeout=60) as client:
        rcpts = ["bob@rcpt.test", "eve@rcpt.test"]
        while rcpts:
            rcpts = list(client.sendmail("alice@sender.test", rcpts, CONTENT))
    assert [mail.to for mail in hop.wait(2)] == [["bob@rcpt.test"], ["eve@rcpt.test"]]


def test_inline_lmtp_answers_each_recipient(lab: Lab) -> None:
    """RFC 2033 §4.2, across routes: one kept, one refused, one deferred, one that cannot be reached."""
    hop = lab.hop(
        lmtp=True,
        replies={
            ("content", "full@rcpt.test"): "452 4.2.2 full",
            ("RCPT", "gone@rcpt.test"): "550 5.1.1 gone",
        },
    )
    away = lab.hop()
    away.close()
    gateway = lab.gateway(
        route(hop.url, "rcpt.test"), route(away.url, "away.test"), listen=INLINE_LMTP
    )
    rcpts = ["bob@rcpt.test", "gone@rcpt.test", "full@rcpt.test", "x@away.test", "eve@rcpt.test"]
    with Sender(gateway.port, LHLO) as sender:
        sender.envelope("alice@sender.test", rcpts)
        sender.command("DATA")
        sender.send(CONTENT + b".\r\n")
        replies = [sender.reply()[-1] for _ in rcpts]
        assert sender.command("NOOP")[-1].startswith("250")
    assert [reply[:9] for reply in replies] == [
        "250 2.0.0",
        "550 5.1.1",
        "452 4.2.2",
        "451 4.4.1",
        "250 2.0.0",
    ]
    assert hop.wait()[0].to == ["bob@rcpt.test", "eve@rcpt.test"]
    assert gateway.left() == 0
    assert b"secret words" not in spool_octets(gateway)


@pytest.mark.parametrize("bdat", [0, 50_000])
def test_inline_passes_large_mail_octet_for_octet(lab: Lab, bdat: int) -> None:
    hops = [lab.hop(), lab.hop(PLAIN)]
    gateway = lab.gateway(
        *(route(hop.url, f"r{n}.test") for n, hop in enumerate(hops)), listen=INLINE
    )
    content = CONTENT + (b"." * 77 + b"\r\n") * 30_000
    with Sender(gateway.port) as sender:
        for number, hop in enumerate(hops):
            assert sender.submit(content, f"x@r{number}.test", bdat=bdat).startswith("250")
            assert hop.wait()[0].body == content
    assert gateway.worker.doors.memory.octets == 0


def test_inline_converts_or_says_why_not(lab: Lab) -> None:
    hop = lab.hop(PLAIN)
    gateway = lab.gateway(route(hop.url, "rcpt.test"), listen=INLINE)
    with Sender(gateway.port) as sender:
        text = "Subject: x\r\n\r\nGrüße\r\n".encode()
        assert sender.submit(text, mail="BODY=8BITMIME").startswith("250")
        assert hop.wait()[0].content.isascii()
        header = "Subject: Grüße\r\n\r\nx\r\n".encode()
        assert sender.submit(header, mail="BODY=8BITMIME").startswith("550 5.6.3")


def test_inline_client_that_leaves(lab: Lab, gate: Gate) -> None:
    """RFC 1047: the mail is delivered, though nobody hears of it; nothing is left behind."""
    hop = lab.hop(replies={"content": gate})
    gateway = lab.gateway(route(hop.url, "rcpt.test"), listen=INLINE)
    with Sender(gateway.port) as sender:
        sender.envelope("alice@sender.test", ["bob@rcpt.test"])
        sender.command("DATA")
        sender.send(CONTENT + b"x" * 900_000 + b"\r\n.\r\n")
        assert gate.reached.wait(10)
    gateway.wait_for("disconnected")
    assert gateway.worker.doors.memory.octets > 900_000  # it is still held
    gate.open.set()
    hop.wait()
    gateway.wait_for("accepted")
    wait_until(lambda: not gateway.worker.doors.memory.octets, "the memory")


def test_inline_is_bounded_by_memory(lab: Lab, gate: Gate) -> None:
    """What waits for a next hop is in memory: when that is full, 452, and others are served later."""
    hop = lab.hop(replies={"content": gate})
    gateway = lab.gateway(
        route(hop.url, "rcpt.test"),
        listen=INLINE,
        extra=QUICK + "[limits]\nmemory_octets = 4194304\n",
    )
    content = CONTENT + (b"x" * 70 + b"\r\n") * 40_000  # 2.9 MB
    with (
        Sender(gateway.port) as first,
        Sender(gateway.port) as second,
        Sender(gateway.port) as third,
    ):
        first.envelope("alice@sender.test", ["bob@rcpt.test"])
        first.command("DATA")
        first.send(content + b".\r\n")
        assert gate.reached.wait(10)
        assert second.submit(content).startswith("452 4.3.1")
        wait_until(lambda: gateway.worker.doors.memory.octets < 4 << 20, "room")
        gate.open.set()
        assert first.reply()[-1].startswith("250")
        assert third.submit(content).startswith("250")
    assert len(hop.received) == 2
    wait_until(lambda: not gateway.worker.doors.memory.octets, "the memory")


def test_inline_does_not_wait_for_ever_for_a_connection(lab: Lab, gate: Gate) -> None:
    hop: NextHop = lab.hop(tuple(w for w in EVERYTHING if w != "PIPELINING"), {"content": gate})
    gateway = lab.gateway(
        route(hop.url, "rcpt.test", max_connections=1),
        listen=INLINE,
        extra="[queue]\ninline_wait_s = 0.3\n",
    )
    with Sender(gateway.port) as first, Sender(gateway.port) as second:
        first.envelope("alice@sender.test", ["bob@rcpt.test"])
        first.command("DATA")
        first.send(CONTENT + b".\r\n")
        assert gate.reached.wait(10)
        assert second.submit(CONTENT).startswith("451 4.4.5")
        gate.open.set()
        assert first.reply()[-1].startswith("250")


@pytest.mark.parametrize("next_hop", ["maildir:{}/mail", "discard:"])
def test_inline_to_what_is_no_server(lab: Lab, next_hop: str) -> None:
    gateway = lab.gateway(route(next_hop.format(lab.directory), "rcpt.test"), listen=INLINE)
    with Sender(gateway.port) as sender:
        assert sender.submit(CONTENT).startswith("250 2.0.0 ")
    if next_hop != "discard:":
        (file,) = (lab.directory / "mail" / "new").iterdir()
        assert file.read_bytes().endswith(CONTENT)


def half_a_message(sender: Sender, how: str) -> None:
    """Some of a message is sent, and then something else happens."""
    sender.envelope("alice@sender.test", ["bob@rcpt.test"])
    piece = CONTENT + b"x" * 600_000
    if how.startswith("DATA"):
        sender.command("DATA")
        sender.send(piece)
        return
    sender.send(b"BDAT %d\r\n" % len(piece) + piece)
    assert sender.code() == 250
    if how == "BDAT and half a chunk":
        sender.send(b"BDAT 500000\r\n" + b"y" * 300_000)
    elif how == "BDAT, RSET":
        sender.command("RSET")
    elif how == "BDAT, EHLO":
        sender.command("EHLO again.example")
    elif how == "BDAT, nonsense":
        sender.command("WHAT")
    elif how == "BDAT, DATA":
        assert sender.command("DATA")[-1].startswith("503")
    elif how == "BDAT, too large":
        sender.send(b"BDAT 400000 LAST\r\n" + b"y" * 400_000)
        assert sender.reply()[-1].startswith("552 5.3.4")


HALVES = (
    "DATA",
    "BDAT",
    "BDAT and half a chunk",
    "BDAT, RSET",
    "BDAT, EHLO",
    "BDAT, nonsense",
    "BDAT, DATA",
    "BDAT, too large",
)


@pytest.mark.parametrize("durability", ["inline", "fsync", "memory"])
def test_half_a_message_leaves_nothing(lab: Lab, durability: str) -> None:
    """Not in memory, not in the spool, not at the next hop."""
    hop = lab.hop()
    gateway = lab.gateway(
        route(hop.url, "rcpt.test"),
        listen=LISTEN + f'durability = "{durability}"\nmax_message_octets = 900000\n',
    )
    for how in HALVES:
        with Sender(gateway.port) as sender:
            half_a_message(sender, how)
            if "," in how and "too large" not in how:
                sender.command("RSET")
                assert sender.submit(CONTENT).startswith("250")
    wait_until(lambda: not gateway.worker.metrics.sessions_open, "the sessions to end")
    assert gateway.worker.doors.memory.octets == 0
    gateway.wait_empty()
    assert all(mail.body == CONTENT for mail in hop.wait(4))
    assert len(hop.received) == 4
    assert gateway.worker.spool.log.pending_octets == 0


def test_a_local_socket(lab: Lab) -> None:
    """LMTP over a unix socket: who may open it may relay; Received says so as far as it can."""
    path = lab.directory / "in"
    hop = lab.hop()
    lab.gateway(
        route(hop.url, "*"),
        listen=f'[[listen]]\nservice = "lmtp"\naddress = "unix:{path}"\n',
        extra=QUICK + '[access]\nrelay_from = ["192.0.2.1"]\n',
    )
    with Sender.over(str(path), LHLO) as sender:
        assert sender.submit(CONTENT, "x@other.test").startswith("250")
    mail = hop.wait()[0]
    assert mail.body == CONTENT
    assert mail.content.startswith(
        b"Received: from client.example\r\n\tby mx.example.test with LMTP"
    )
