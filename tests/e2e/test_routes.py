"""Where mail goes and who may send it there: routes, their bounds, and who the client is said to be.

Standards RFC 5321 §4.5.1, §4.5.4.1, §5.1, §7.1; XCLIENT of Postfix; PROXY protocol of HAProxy
"""

from __future__ import annotations

import ipaddress
import struct
import time

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

from gateway.queue.timers import LoopClock

CONTENT = b"Subject: x\r\n\r\nbody\r\n"
OUTSIDE = "127.0.0.9"  # the client when it is not in relay_from
FRIENDS = '[access]\nrelay_from = ["127.0.0.1/32"]\n'


def verdict(gateway: Gateway, rcpt: str, address: str = "127.0.0.1") -> str:
    """What a client of this address hears to RCPT."""
    with Sender(gateway.port, address=address) as sender:
        sender.command("MAIL FROM:<a@sender.test>")
        return sender.command(f"RCPT TO:<{rcpt}>")[-1]


# -- which route -------------------------------------------------------------------------------------------------------


def test_the_first_match_takes_it(lab: Lab) -> None:
    hops = {name: lab.hop() for name in ("special", "domain", "below", "rest")}
    gateway = lab.gateway(
        route(hops["special"].url, "rcpt.test", recipients=["Chief@rcpt.test"]),
        route(hops["domain"].url, "rcpt.test"),
        route(hops["below"].url, ".rcpt.test"),
        route(hops["rest"].url, "*"),
    )
    rcpts = ["chief@RCPT.test", "bob@rcpt.test", "x@a.rcpt.test", "x@a.b.rcpt.test", "x@other.test"]
    gateway.send(CONTENT, rcpts)
    assert hops["special"].wait()[0].to == ["chief@RCPT.test"]
    assert hops["domain"].wait()[0].to == ["bob@rcpt.test"]
    assert hops["below"].wait()[0].to == ["x@a.rcpt.test", "x@a.b.rcpt.test"]
    assert hops["rest"].wait()[0].to == ["x@other.test"]
    gateway.wait_empty()


def test_only_listed_recipients_exist(lab: Lab) -> None:
    """For everybody: "*" is no way around the list."""
    hop = lab.hop()
    gateway = lab.gateway(
        route(hop.url, "rcpt.test", recipients=["bob@rcpt.test"]),
        route(hop.url, "*"),
        extra=FRIENDS,
    )
    for address in ("127.0.0.1", OUTSIDE):
        assert verdict(gateway, "bob@rcpt.test", address).startswith("250")
        assert verdict(gateway, "Postmaster", address).startswith("250")  # RFC 5321 §4.5.1
        assert verdict(gateway, "eve@rcpt.test", address).startswith("550 5.1.1")


def test_the_catch_all_is_for_those_who_may_relay(lab: Lab) -> None:
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test", "*"), extra=FRIENDS)
    assert verdict(gateway, "x@other.test").startswith("250")
    assert verdict(gateway, "x@other.test", OUTSIDE).startswith("550 5.7.1")
    assert verdict(gateway, "x@rcpt.test", OUTSIDE).startswith("250")
    refused = gateway.wait_for("refused")[0]
    assert refused["client"].startswith(OUTSIDE)
    assert refused["forward_path"] == "x@other.test"


def test_without_a_route_nobody_may(lab: Lab) -> None:
    gateway = lab.gateway(route(lab.hop().url, "rcpt.test"))
    assert verdict(gateway, "x@other.test").startswith("550 5.1.2")


@pytest.mark.parametrize(
    "rcpt",
    [
        "x%other.test@rcpt.test",
        "@rcpt.test:x@other.test",
        '"x@other.test"@rcpt.test',
        "x!y@rcpt.test",
    ],
)
def test_no_relaying_by_spelling(lab: Lab, rcpt: str) -> None:
    """What is behind the last "@" decides, and the mailbox goes on as it came (RFC 5321 §3.6.1)."""
    named, rest = lab.hop(), lab.hop()
    gateway = lab.gateway(route(named.url, "rcpt.test"), route(rest.url, "*"), extra=FRIENDS)
    reply = verdict(gateway, rcpt, OUTSIDE)
    if rcpt.startswith("@"):
        assert reply.startswith("550 5.7.1")  # RFC 5321 Appendix C: a source route is dropped
        return
    assert reply.startswith("250")
    gateway.send(CONTENT, rcpt)
    assert named.wait()[0].rcpts[0].startswith(f"<{rcpt}>")
    assert not rest.received


def test_held_mail_waits_for_its_release(lab: Lab) -> None:
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test", hold=True), route(hop.url, "free.test"))
    held = gateway.send(CONTENT, ["bob@rcpt.test", "bob@free.test"])
    assert hop.wait()[0].to == ["bob@free.test"]
    gateway.wait_for("relayed")
    gateway.retry()
    shown = gateway.call(gateway.queue.show, held)
    assert "held" in shown["states"]
    assert gateway.call(gateway.queue.release, {"queue_ids": [held]}) == 1
    assert hop.wait(2)[1].to == ["bob@rcpt.test"]
    gateway.wait_empty()


# -- several next hops -------------------------------------------------------------------------------------------------


def test_the_second_next_hop_stands_in_for_the_first(lab: Lab) -> None:
    first, second = lab.hop(), lab.hop()
    gateway = lab.gateway(route([first.url, second.url], "rcpt.test"))
    gateway.send(CONTENT)
    first.wait()
    first.close()
    for number in range(3):
        gateway.send(CONTENT)
        second.wait(number + 1)
    assert not gateway.events("bounced")
    again = lab.hop(port=first.port)
    wait_until(lambda: (gateway.send(CONTENT), again.received)[1], "mail at the first again")
    wait_until(
        lambda: all(hop["up"] for hop in gateway.call(gateway.queue.stats)["lanes"][0]["hops"]),
        "both to be up",
    )
    came = len(again.received)
    before = len(second.received)
    for number in range(3):
        gateway.send(CONTENT)
        again.wait(came + number + 1)
    assert len(second.received) == before
    gateway.wait_empty()


@pytest.mark.parametrize("illness", [DROP, "421 4.3.2 not now", "554 5.3.2 go away"])
def test_a_next_hop_that_greets_badly_is_passed_over(lab: Lab, illness: str) -> None:
    """RFC 5321 §3.1, §4.5.4.1: it is the host that does not want, not the message."""
    ill, well = lab.hop(replies={"connect": illness}), lab.hop()
    gateway = lab.gateway(route([ill.url, well.url], "rcpt.test"))
    gateway.send(CONTENT)
    assert well.wait()[0].body == CONTENT
    gateway.wait_empty()


def test_a_verdict_is_a_verdict(lab: Lab) -> None:
    """What the first next hop refuses is not offered to the second."""
    first, second = lab.hop(replies={"RCPT": "550 5.1.1 no"}), lab.hop()
    gateway = lab.gateway(route([first.url, second.url], "rcpt.test"))
    gateway.send(CONTENT, sender="")
    gateway.wait_for("double_bounce")
    assert not second.commands


def test_all_next_hops_down_then_one_comes_back(lab: Lab) -> None:
    first, second = lab.hop(), lab.hop()
    first.close()
    second.close()
    gateway = lab.gateway(route([first.url, second.url], "rcpt.test"))
    queue_id = gateway.send(CONTENT)
    gateway.wait_for("deferred")  # when the second lane is down, too
    assert gateway.events("deferred", queue_id)
    again = lab.hop(port=second.port)
    assert again.wait()[0].body == CONTENT
    gateway.wait_for("lane_up")
    gateway.wait_empty()


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_max_connections_is_kept(lab: Lab) -> None:
    def slowly(session: Session, argument: str) -> None:
        time.sleep(0.02)

    hop = lab.hop(PLAIN, {"content": slowly})
    gateway = lab.gateway(route(hop.url, "rcpt.test", max_connections=2))
    with Sender(gateway.port) as sender:
        for _ in range(40):
            sender.submit(CONTENT)
    hop.wait(40)
    assert hop.most_open == 2
    gateway.wait_empty()


def test_messages_per_connection_is_kept(lab: Lab) -> None:
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test", messages_per_connection=3, max_connections=1))
    with Sender(gateway.port) as sender:
        for _ in range(10):
            sender.submit(CONTENT)
    hop.wait(10)
    gateway.wait_empty()
    assert len(hop.clients) >= 4
    assert len(hop.said("MAIL")) == 10


@pytest.mark.parametrize("offers", [("LIMITS RCPTMAX=7",), ()], ids=["by RFC 9422", "by the route"])
def test_recipients_per_transaction_is_kept(lab: Lab, offers: tuple[str, ...]) -> None:
    hop = lab.hop((*EVERYTHING, *offers))
    bound = {} if offers else {"recipients_per_transaction": 7}
    gateway = lab.gateway(route(hop.url, "rcpt.test", **bound))
    gateway.send(CONTENT)  # LIMITS is known once there was a connection
    hop.wait()
    rcpts = [f"u{number}@rcpt.test" for number in range(30)]
    gateway.send(CONTENT, rcpts)
    gateway.wait_empty()
    mails = hop.wait(6)[1:]
    assert max(len(mail.to) for mail in mails) <= 7
    assert sorted(to for mail in mails for to in mail.to) == sorted(rcpts)


class StoppedClock(LoopClock):
    """Time passes when it is told to."""

    at = 1000.0

    def __init__(self, loop: object) -> None:
        super().__init__(loop)  # type: ignore[arg-type]
        self.monotonic = lambda: StoppedClock.at


def test_rate_per_s_is_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second's worth at once, then as many as there were seconds."""
    monkeypatch.setattr("gateway.app.LoopClock", StoppedClock)
    monkeypatch.setattr(StoppedClock, "at", 1000.0)
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test", rate_per_s=5.0))
    with Sender(gateway.port) as sender:
        for _ in range(12):
            sender.submit(CONTENT)
    hop.wait(5)
    for total in (7, 12):
        assert len(gateway.events("relayed")) <= total - 2
        StoppedClock.at += 0.2 * (total - len(hop.received)) + 0.001
        gateway.retry()  # looks at the clock
        hop.wait(total)
    assert len(hop.received) == 12
    gateway.wait_empty()


def test_source_addresses_take_turns(lab: Lab) -> None:
    hop = lab.hop()
    gateway = lab.gateway(
        route(
            hop.url,
            "rcpt.test",
            source_addresses=["127.0.0.2", "127.0.0.3"],
            messages_per_connection=1,
        )
    )
    for number in range(4):
        gateway.send(CONTENT)
        hop.wait(number + 1)
        wait_until(lambda: not hop.open, "the connection to close")
    assert hop.clients == ["127.0.0.2", "127.0.0.3"] * 2


def test_an_address_that_is_not_ours_is_left_out(lab: Lab) -> None:
    """A route with source addresses never connects from another one."""
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test", source_addresses=["192.0.2.77"]))
    gateway.send(CONTENT)
    gateway.wait_for("lane_down", 2)
    assert not hop.clients


# -- XCLIENT -----------------------------------------------------------------------------------------------------------

XCLIENT = (*PLAIN, "XCLIENT NAME ADDR PORT PROTO HELO")


def test_xclient_tells_who_the_client_was(lab: Lab) -> None:
    hop = lab.hop(XCLIENT)
    gateway = lab.gateway(route(hop.url, "rcpt.test", xclient=True, max_connections=1))
    for address in ("127.0.0.1", OUTSIDE, OUTSIDE):
        with Sender(gateway.port, f"EHLO from-{address[-1]}.example", address) as sender:
            sender.submit(CONTENT)
    told = [dict(word.split("=") for word in mail.xclient.split()) for mail in hop.wait(3)]
    assert [one["ADDR"] for one in told] == ["127.0.0.1", OUTSIDE, OUTSIDE]
    assert [one["HELO"] for one in told] == [f"from-{n}.example" for n in "199"]
    assert {one["PROTO"] for one in told} == {"ESMTP"}
    # After XCLIENT the session begins anew: EHLO again.
    assert len(hop.said("EHLO")) == len(hop.clients) + len(hop.said("XCLIENT"))


def test_xclient_is_not_for_everybody(lab: Lab) -> None:
    shy, plain = lab.hop(XCLIENT), lab.hop(PLAIN)
    gateway = lab.gateway(route(shy.url, "shy.test"), route(plain.url, "plain.test", xclient=True))
    gateway.send(CONTENT, ["bob@shy.test", "bob@plain.test"])
    for hop in (shy, plain):
        hop.wait()
        assert not hop.said("XCLIENT")


def test_a_refused_xclient_keeps_the_mail(lab: Lab) -> None:
    """Sending it as if it came from us could pass where the client could not."""
    hop = lab.hop(XCLIENT, {"XCLIENT": "550 5.7.0 not you"})
    gateway = lab.gateway(route(hop.url, "rcpt.test", xclient=True))
    gateway.send(CONTENT)
    gateway.wait_for("deferred")
    assert not hop.received


def test_two_gateways_agree_about_the_client(lab: Lab) -> None:
    """XCLIENT out of one and into the other: log, Received and relaying are the client's."""
    hop = lab.hop()
    behind = Lab(lab.directory / "behind")
    try:
        second = behind.gateway(
            route(hop.url, "rcpt.test"),
            route(hop.url, "*"),
            listen=LISTEN + 'xclient_from = ["127.0.0.1"]\n',
            extra=QUICK + '[access]\nrelay_from = ["127.0.0.1/32"]\n',
        )
        gateway = lab.gateway(route(f"smtp://127.0.0.1:{second.port}", "*", xclient=True))
        with Sender(gateway.port, "EHLO far.example", OUTSIDE) as sender:
            sender.submit(CONTENT)
            sender.submit(CONTENT, "x@other.test")  # the second does not relay for it
        mail = hop.wait()[0]
        assert (
            f"([{OUTSIDE}])".encode()
            in mail.content.partition(b"Received:")[2].partition(b"Received:")[0]
        )
        assert second.wait_for("accepted")[0]["client"].startswith(OUTSIDE + ":")
        assert "5.7.1" in str(gateway.wait_for("bounced")[0])
        gateway.send(CONTENT, "x@other.test")  # for the first gateway's neighbour it does
        hop.wait(2)
    finally:
        behind.close()


@pytest.fixture
def trusting(lab: Lab) -> tuple[Gateway, NextHop]:
    """A gateway that takes XCLIENT from 127.0.0.1 and relays for 192.0.2.0/24."""
    hop = lab.hop()
    gateway = lab.gateway(
        route(hop.url, "rcpt.test"),
        route(hop.url, "*"),
        listen=LISTEN + 'xclient_from = ["127.0.0.1"]\n',
        extra=QUICK + '[access]\nrelay_from = ["192.0.2.0/24", "2001:db8::/32"]\n',
    )
    return gateway, hop


@pytest.mark.parametrize(
    ("attributes", "client", "literal", "may"),
    [
        ("ADDR=192.0.2.7 PORT=4711 NAME=friend.example", "192.0.2.7:4711", "[192.0.2.7]", True),
        ("ADDR=198.51.100.7 PORT=25", "198.51.100.7:25", "[198.51.100.7]", False),
        ("ADDR=IPV6:2001:db8::7 PORT=9", "[2001:db8::7]:9", "[IPv6:2001:db8::7]", True),
        ("NAME=[UNAVAILABLE] ADDR=192.0.2.8", "192.0.2.8:0", "[192.0.2.8]", True),
    ],
)
def test_xclient_in(
    trusting: tuple[Gateway, NextHop], attributes: str, client: str, literal: str, may: bool
) -> None:
    gateway, hop = trusting
    with Sender(gateway.port) as sender:
        assert sender.command(f"XCLIENT {attributes}")[-1].startswith("220")
        assert sender.command("EHLO real.example")[-1].startswith("250")
        sender.submit(CONTENT)
        sender.command("MAIL FROM:<a@sender.test>")
        reply = sender.command("RCPT TO:<x@other.test>")[-1]
        assert reply.startswith("250" if may else "550 5.7.1")
    assert gateway.wait_for("accepted")[0]["client"] == client
    assert f"from real.example ({literal})".encode() in hop.wait()[0].content


@pytest.mark.parametrize(
    "attributes",
    [
        "ADDR=nonsense",
        "ADDR=192.0.2.7+0D+0AX-Evil:+201",
        "ADDR=192.0.2.7 PORT=x",
        "ADDR=192.0.2.7 PORT=70000",
        "ADDR=IPV6:192.0.2.7.8",
        "SHOE=size",
        "ADDR",
    ],
)
def test_xclient_in_that_makes_no_sense(trusting: tuple[Gateway, NextHop], attributes: str) -> None:
    gateway, _ = trusting
    with Sender(gateway.port) as sender:
        assert sender.command(f"XCLIENT {attributes}")[-1].startswith("501")
        assert verdict(gateway, "x@other.test").startswith("550 5.7.1")
        assert sender.command("NOOP")[-1].startswith("250")


def test_xclient_in_from_somebody_else(trusting: tuple[Gateway, NextHop]) -> None:
    gateway, _ = trusting
    with Sender(gateway.port, address=OUTSIDE) as sender:
        assert "XCLIENT" not in " ".join(sender.command("EHLO again.example"))
        assert sender.command("XCLIENT ADDR=192.0.2.7")[-1].startswith("550")


# -- PROXY -------------------------------------------------------------------------------------------------------------


def proxy_v2(source: str, port: int) -> bytes:
    ip = ipaddress.ip_address(source)
    family = 0x11 if ip.version == 4 else 0x21
    there = ipaddress.ip_address("192.0.2.1" if ip.version == 4 else "2001:db8::1")
    body = ip.packed + there.packed + struct.pack("!HH", port, 25)
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, family, len(body)) + body


@pytest.mark.parametrize(
    ("header", "client", "literal", "may"),
    [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n", "192.0.2.7:4711", "[192.0.2.7]", True),
        (
            b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 25\r\n",
            "198.51.100.7:4711",
            "[198.51.100.7]",
            False,
        ),
        (
            b"PROXY TCP6 2001:db8::7 2001:db8::1 9 25\r\n",
            "[2001:db8::7]:9",
            "[IPv6:2001:db8::7]",
            True,
        ),
        (proxy_v2("192.0.2.7", 4711), "192.0.2.7:4711", "[192.0.2.7]", True),
        (proxy_v2("2001:db8::7", 9), "[2001:db8::7]:9", "[IPv6:2001:db8::7]", True),
    ],
    ids=["v1", "v1 stranger", "v1 IPv6", "v2", "v2 IPv6"],
)
def test_proxy_protocol_in(lab: Lab, header: bytes, client: str, literal: str, may: bool) -> None:
    hop = lab.hop()
    gateway = lab.gateway(
        route(hop.url, "rcpt.test"),
        route(hop.url, "*"),
        listen=LISTEN + 'proxy_protocol = ["127.0.0.1"]\n',
        extra=QUICK + '[access]\nrelay_from = ["192.0.2.0/24", "2001:db8::/32"]\n',
    )
    with Sender(gateway.port, hello="") as sender:
        sender.send(header)
        sender.hello()
        sender.submit(CONTENT)
        sender.command("MAIL FROM:<a@sender.test>")
        reply = sender.command("RCPT TO:<x@other.test>")[-1]
        assert reply.startswith("250" if may else "550 5.7.1")
    assert gateway.wait_for("accepted")[0]["client"] == client
    assert f"({literal})".encode() in hop.wait()[0].content
