"""Delivery status notifications from end to end: who is told what, and in which form.

Standards RFC 3461 §4, §5, §6; RFC 3464 §2; RFC 6522; RFC 5321 §4.5.5, §6.1
"""

from __future__ import annotations

import asyncio
import re
import time
from email.message import EmailMessage, Message

import pytest
from e2e.rig import (
    DROP,
    EVERYTHING,
    PLAIN,
    Gateway,
    Lab,
    Mail,
    NextHop,
    Sender,
    route,
    wait_until,
)

from gateway.queue.timers import LoopClock

CONTENT = (
    b"From: alice@sender.test\r\nTo: bob@rcpt.test\r\nSubject: the original\r\n"
    b"Message-ID: <one@sender.test>\r\n\r\nthe body\r\n"
)
NO_DSN = tuple(word for word in EVERYTHING if word != "DSN")
DAY_S = 86_400.0


class Report:
    """A multipart/report, taken apart by the standard library."""

    def __init__(self, mail: Mail) -> None:
        assert mail.mail.startswith("<>"), mail.mail
        message = mail.message
        assert message.get_content_type() == "multipart/report"
        assert message.get_param("report-type") == "delivery-status"
        assert message["Auto-Submitted"] == "auto-replied"
        assert message["To"] == f"<{mail.to[0]}>" or mail.to[0] in str(message["To"])
        assert not message.defects
        self.mail = mail
        self.message = message
        text, status, self.original = message.iter_parts()
        assert isinstance(text, EmailMessage)
        self.text = text.get_content()
        assert status.get_content_type() == "message/delivery-status"
        self.about_message, *self.about = status.get_payload()

    @property
    def actions(self) -> dict[str, tuple[str, str]]:
        """{final recipient: (action, status)}"""
        return {
            field(one, "Final-Recipient"): (str(one["Action"]), str(one["Status"]))
            for one in self.about
        }


def field(status: Message, name: str) -> str:
    """The part behind the type."""
    return str(status[name]).partition(";")[2].strip()


def gateway_with(lab: Lab, hop: NextHop, back: NextHop, **settings: str) -> Gateway:
    """Mail for rcpt.test to hop; what goes back to sender.test to back."""
    return lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"), **settings)


def send(
    gateway: Gateway, rcpts: list[str], mail: str = "", sender: str = "alice@sender.test"
) -> str:
    return gateway.send(CONTENT, rcpts, sender, mail)


# -- NOTIFY ------------------------------------------------------------------------------------------------------------

NOTIFY = [
    "",
    "NEVER",
    "SUCCESS",
    "FAILURE",
    "DELAY",
    "SUCCESS,FAILURE",
    "DELAY,FAILURE",
    "SUCCESS,DELAY",
]


def each_notify() -> list[str]:
    """One recipient for each value of NOTIFY."""
    names = [value.lower().replace(",", "-") or "default" for value in NOTIFY]
    return [
        f"{name}@rcpt.test" + (f" NOTIFY={value}" if value else "")
        for name, value in zip(names, NOTIFY, strict=True)
    ]


def those(word: str) -> set[str]:
    return {rcpt.partition(" ")[0] for rcpt in each_notify() if word in rcpt}


def test_failure_is_told_to_those_who_want_it(lab: Lab) -> None:
    """RFC 3461 §4.1, §5.2.4: without NOTIFY as with FAILURE; one report for one message."""
    hop, back = lab.hop(replies={"RCPT": "550 5.1.1 nobody here"}), lab.hop()
    gateway = gateway_with(lab, hop, back)
    send(gateway, each_notify())
    report = Report(back.wait()[0])
    gateway.wait_empty()
    assert len(back.received) == 1
    wanted = {"default@rcpt.test"} | those("FAILURE")
    assert report.actions == dict.fromkeys(wanted, ("failed", "5.1.1"))
    for one in report.about:
        assert field(one, "Diagnostic-Code") == "550 5.1.1 nobody here"
        assert str(one["Diagnostic-Code"]).startswith("smtp;")
        assert field(one, "Remote-MTA") == "[127.0.0.1]"
        assert one["Last-Attempt-Date"]
    assert field(report.about_message, "Reporting-MTA") == "mx.example.test"
    assert report.message["In-Reply-To"] == "<one@sender.test>"


def test_relayed_is_told_when_the_next_hop_has_no_dsn(lab: Lab) -> None:
    """RFC 3461 §5.2.2: what the next hop cannot promise to report is reported as relayed."""
    hop, back = lab.hop(NO_DSN), lab.hop()
    gateway = gateway_with(lab, hop, back)
    send(gateway, each_notify())
    report = Report(back.wait()[0])
    gateway.wait_empty()
    assert len(back.received) == 1
    assert report.actions == dict.fromkeys(those("SUCCESS"), ("relayed", "2.1.5")) or {
        action for action, _ in report.actions.values()
    } == {"relayed"}
    assert set(report.actions) == those("SUCCESS")
    assert not any("NOTIFY" in rcpt for mail in hop.received for rcpt in mail.rcpts)


def test_the_request_is_passed_on_where_dsn_is_offered(lab: Lab) -> None:
    """RFC 3461 §5.2.1: all parameters as they came, and no report of ours."""
    hop, back = lab.hop(), lab.hop()
    gateway = gateway_with(lab, hop, back)
    rcpts = [*each_notify(), "orcpt@rcpt.test NOTIFY=SUCCESS ORCPT=rfc822;Bob+2Bx+3Dy@old.test"]
    send(gateway, rcpts, "RET=HDRS ENVID=QQ+2B314+20x")
    gateway.wait_empty()
    assert not back.received
    mail = hop.wait()[0]
    assert "RET=HDRS" in mail.mail
    assert "ENVID=QQ+2B314+20x" in mail.mail
    passed = dict(rcpt.split("> ", 1) if "> " in rcpt else (rcpt[:-1], "") for rcpt in mail.rcpts)
    for rcpt in rcpts:
        mailbox, _, parameters = rcpt.partition(" ")
        assert words(passed[f"<{mailbox}"]) == words(parameters)


def words(parameters: str) -> list[str]:
    """RFC 3461 §4.1: the order of the words of NOTIFY means nothing."""
    return sorted(re.split("[ =,]", parameters))


def test_a_failure_of_a_hop_with_dsn_is_ours_to_report(lab: Lab) -> None:
    hop = lab.hop(replies={("RCPT", "success-failure@rcpt.test"): "550 5.1.1 not here"})
    back = lab.hop()
    gateway = gateway_with(lab, hop, back)
    send(
        gateway, ["success-failure@rcpt.test NOTIFY=SUCCESS,FAILURE", "ok@rcpt.test NOTIFY=SUCCESS"]
    )
    report = Report(back.wait()[0])
    gateway.wait_empty()
    assert report.actions == {"success-failure@rcpt.test": ("failed", "5.1.1")}
    assert len(back.received) == 1


@pytest.mark.parametrize("final", ["lmtp", "maildir"])
def test_delivered_is_told_by_the_last_one(lab: Lab, final: str) -> None:
    """RFC 3464 §2.3.3: LMTP and Maildir are the mailbox."""
    back = lab.hop()
    if final == "lmtp":
        url = lab.hop(NO_DSN, lmtp=True).url
    else:
        url = f"maildir:{lab.directory}/mail/{{local_part}}"
    gateway = lab.gateway(route(url, "rcpt.test"), route(back.url, "sender.test"))
    send(gateway, ["bob@rcpt.test NOTIFY=SUCCESS", "eve@rcpt.test"], "ENVID=abc")
    report = Report(back.wait()[0])
    gateway.wait_empty()
    assert len(back.received) == 1
    assert report.actions == {"bob@rcpt.test": ("delivered", "2.0.0")}
    assert report.about_message["Original-Envelope-Id"] == "abc"
    assert report.original.get_content_type() == "text/rfc822-headers"


# -- RET, ENVID, ORCPT -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mail", "size", "returned"),
    [
        ("", 100, "message/rfc822"),
        ("", 60_000, "text/rfc822-headers"),
        ("RET=FULL", 60_000, "message/rfc822"),
        ("RET=HDRS", 100, "text/rfc822-headers"),
        ("RET=FULL", 1_200_000, "text/rfc822-headers"),
    ],
)
def test_ret_says_what_comes_back(lab: Lab, mail: str, size: int, returned: str) -> None:
    """RFC 3461 §4.3."""
    hop, back = lab.hop(replies={"content": "554 5.6.0 no"}), lab.hop()
    gateway = gateway_with(lab, hop, back)
    content = CONTENT + (b"x" * 70 + b"\r\n") * (size // 72)
    gateway.send(content, "bob@rcpt.test", "alice@sender.test", mail)
    report = Report(back.wait()[0])
    assert report.original.get_content_type() == returned
    if returned == "message/rfc822":
        inner = report.mail.content.partition(b"message/rfc822")[2]
        assert content.partition(b"\r\n\r\n")[2] in inner
        assert report.original.get_payload(0)["Subject"] == "the original"
    else:
        assert "Subject: the original" in report.original.get_payload()
        assert "xxxxxxx" not in report.mail.content.decode()


def test_envid_and_orcpt_come_back_decoded(lab: Lab) -> None:
    """RFC 3461 §6.3 (a), RFC 3464 §2.2.1, §2.3.1: xtext is for the envelope only."""
    hop, back = lab.hop(replies={"MAIL": "550 5.7.1 not you"}), lab.hop()
    gateway = gateway_with(lab, hop, back)
    send(
        gateway,
        ["bob@rcpt.test ORCPT=rfc822;Bob+2Btag@old.test", "eve@rcpt.test"],
        "RET=FULL ENVID=QQ+2B314",
    )
    report = Report(back.wait()[0])
    assert report.about_message["Original-Envelope-Id"] == "QQ+314"
    by_name = {field(one, "Final-Recipient"): one for one in report.about}
    assert by_name["bob@rcpt.test"]["Original-Recipient"] == "rfc822; Bob+tag@old.test"
    assert by_name["eve@rcpt.test"]["Original-Recipient"] is None
    assert report.actions["eve@rcpt.test"] == ("failed", "5.7.1")


# -- where the refusal comes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offers", "stage"),
    [
        *(((), stage) for stage in ("MAIL", "RCPT", "DATA", "content")),
        *((("PIPELINING",), stage) for stage in ("MAIL", "RCPT", "DATA", "content")),
        *((("PIPELINING", "CHUNKING"), stage) for stage in ("MAIL", "RCPT", "content")),
    ],
)
def test_a_refusal_at_any_stage_is_reported(lab: Lab, stage: str, offers: tuple[str, ...]) -> None:
    hop, back = lab.hop(offers, {stage: "554 5.7.1 refused here"}), lab.hop()
    gateway = gateway_with(lab, hop, back)
    send(gateway, ["bob@rcpt.test", "eve@rcpt.test"])
    report = Report(back.wait()[0])
    gateway.wait_empty()
    assert report.actions == {f"{who}@rcpt.test": ("failed", "5.7.1") for who in ("bob", "eve")}
    assert "refused here" in report.text
    assert not hop.received


def test_mixed_results_make_one_report(lab: Lab) -> None:
    """Two routes, three ways to fail and one success: one report that names the failed."""
    first = lab.hop(
        replies={
            ("RCPT", "gone@rcpt.test"): "550 5.1.1 gone",
            ("RCPT", "full@rcpt.test"): "552 5.2.2 full",
            ("RCPT", "never@rcpt.test"): "550 5.1.1 gone",
        }
    )
    second = lab.hop(replies={"content": "554 5.7.1 virus"})
    back = lab.hop()
    gateway = lab.gateway(
        route(first.url, "rcpt.test"),
        route(second.url, "other.test"),
        route(back.url, "sender.test"),
    )
    send(
        gateway,
        ["bob@rcpt.test", "gone@rcpt.test", "never@rcpt.test NOTIFY=NEVER", "x@other.test"],
    )
    report = Report(back.wait()[0])
    gateway.wait_empty()
    assert len(back.received) == 1
    assert report.actions == {
        "gone@rcpt.test": ("failed", "5.1.1"),
        "x@other.test": ("failed", "5.7.1"),
    }
    assert [mail.to for mail in first.received] == [["bob@rcpt.test"]]


def test_552_to_rcpt_is_too_many_recipients(lab: Lab) -> None:
    """RFC 5321 §4.5.3.1.10: the old way to say 452; those are sent in the next transaction."""
    full = iter([True])
    hop = lab.hop(
        replies={
            ("RCPT", "eve@rcpt.test"): lambda *_: (
                "552 too many recipients" if next(full, False) else None
            )
        }
    )
    gateway = gateway_with(lab, hop, lab.hop())
    send(gateway, ["bob@rcpt.test", "eve@rcpt.test"])
    assert [mail.to for mail in hop.wait(2)] == [["bob@rcpt.test"], ["eve@rcpt.test"]]


# -- delay and expiry --------------------------------------------------------------------------------------------------


class JumpingClock(LoopClock):
    """Time that passes as it does, and at once when ahead_s says so; waits are noticed within SWEEP_S."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.ahead_s = 0.0
        self.now = lambda: time.time_ns() + int(self.ahead_s * 1e9)
        self.monotonic = lambda: time.monotonic() + self.ahead_s


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.app.LoopClock", JumpingClock)
    monkeypatch.setattr("gateway.queue.scheduler.SWEEP_S", 0.1)


def jump(gateway: Gateway, ahead_s: float) -> None:
    clock = gateway.worker.scheduler.clock
    assert isinstance(clock, JumpingClock)
    clock.ahead_s = ahead_s


@pytest.mark.usefixtures("jumping")
def test_a_delay_is_told_once_and_the_end_too(lab: Lab) -> None:
    """RFC 3461 §4.1 DELAY, RFC 3464 §2.3.3; RFC 5321 §4.5.4.1 for giving up."""
    hop, back = lab.hop(replies={"RCPT": "450 4.2.0 not now"}), lab.hop()
    gateway = gateway_with(lab, hop, back)
    mail = send(gateway, each_notify())
    gateway.wait_for("deferred", len(NOTIFY))
    assert not back.received
    for hours in (5, 6, 7):
        jump(gateway, hours * 3600.0)
        gateway.retry()
        gateway.wait_for("deferred", len(NOTIFY) * (hours - 3))
    report = Report(back.wait()[0])
    wanted = {"default@rcpt.test"} | those("DELAY")
    assert report.actions == dict.fromkeys(wanted, ("delayed", "4.2.0"))
    for one in report.about:
        assert one["Will-Retry-Until"]
        assert field(one, "Diagnostic-Code") == "450 4.2.0 not now"
    assert "not now" in report.text
    assert len(back.received) == 1

    jump(gateway, 6 * DAY_S)
    gateway.retry()
    report = Report(back.wait(2)[1])
    gateway.wait_empty()
    assert len(back.received) == 2
    wanted = {"default@rcpt.test"} | those("FAILURE")
    assert report.actions == dict.fromkeys(wanted, ("failed", "4.4.7"))
    assert "450 4.2.0 not now" in str(report.about[0]["Diagnostic-Code"])
    assert len(gateway.events("expired", mail)) == len(NOTIFY)


@pytest.mark.usefixtures("jumping")
def test_mail_for_a_host_that_is_away_expires_too(lab: Lab) -> None:
    """It was never tried on a connection, and is warned about and given up all the same."""
    hop, back = lab.hop(), lab.hop()
    hop.close()
    gateway = gateway_with(lab, hop, back)
    send(gateway, ["bob@rcpt.test"])
    gateway.wait_for("lane_down")
    jump(gateway, 5 * 3600.0)
    report = Report(back.wait()[0])
    assert report.actions == {"bob@rcpt.test": ("delayed", "4.4.1")}
    jump(gateway, 6 * DAY_S)
    report = Report(back.wait(2)[1])
    assert report.actions == {"bob@rcpt.test": ("failed", "4.4.7")}
    gateway.wait_empty()


@pytest.mark.usefixtures("jumping")
def test_one_recipient_of_several_that_expires(lab: Lab) -> None:
    hop, back = lab.hop(replies={("RCPT", "late@rcpt.test"): "450 4.2.1 busy"}), lab.hop()
    gateway = gateway_with(lab, hop, back)
    send(gateway, ["bob@rcpt.test", "late@rcpt.test"])
    hop.wait()
    gateway.wait_for("deferred")
    jump(gateway, 6 * DAY_S)
    gateway.retry()
    report = Report(back.wait()[0])
    gateway.wait_empty()
    assert report.actions == {"late@rcpt.test": ("failed", "4.4.7")}


# -- null reverse-paths ------------------------------------------------------------------------------------------------


def test_nobody_is_told_about_mail_from_nobody(lab: Lab) -> None:
    """RFC 5321 §4.5.5, §6.1: a bounce that bounces is logged, and that is all."""
    hop, back = lab.hop(replies={"RCPT": "550 5.1.1 nobody"}), lab.hop()
    gateway = gateway_with(lab, hop, back)
    mail = send(gateway, ["bob@rcpt.test NOTIFY=SUCCESS,FAILURE,DELAY"], sender="")
    line = gateway.wait_for("double_bounce")[0]
    assert line["queue_id"] == mail
    assert line["forward_path"] == "bob@rcpt.test"
    gateway.wait_empty()
    assert not back.received
    assert not gateway.events("reported")


def test_a_report_that_cannot_be_delivered_ends_there(lab: Lab) -> None:
    hop = lab.hop(replies={"RCPT": "550 5.1.1 nobody"})
    back = lab.hop(replies={"RCPT": "550 5.1.1 nobody either"})
    gateway = gateway_with(lab, hop, back)
    send(gateway, ["bob@rcpt.test"])
    line = gateway.wait_for("double_bounce")[0]
    assert line["queue_id"] == gateway.events("reported")[0]["report"]
    gateway.wait_empty()
    assert len(gateway.events("reported")) == 1


def test_a_report_waits_for_its_next_hop(lab: Lab) -> None:
    """It is mail like any other: kept, tried again, delivered."""
    hop = lab.hop(replies={"RCPT": "550 5.1.1 nobody"})
    away = iter([DROP, "451 4.3.0 later"])
    back = lab.hop(replies={"MAIL": lambda *_: next(away, None)})
    gateway = gateway_with(lab, hop, back)
    send(gateway, ["bob@rcpt.test"])
    for count in (1, 2):
        gateway.wait_for("deferred", count)
        gateway.retry()
    assert Report(back.wait()[0]).actions == {"bob@rcpt.test": ("failed", "5.1.1")}
    gateway.wait_empty()


def test_a_sender_without_a_route_gets_no_report(lab: Lab) -> None:
    hop = lab.hop(replies={"RCPT": "550 5.1.1 nobody"})
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    send(gateway, ["bob@rcpt.test NOTIFY=SUCCESS,FAILURE"], sender="alice@elsewhere.test")
    assert gateway.wait_for("undeliverable_report")[0]["reverse_path"] == "alice@elsewhere.test"
    gateway.wait_empty()


# -- addresses in UTF-8 ------------------------------------------------------------------------------------------------


def test_a_report_to_an_internationalized_sender(lab: Lab) -> None:
    """RFC 6533: it is UTF-8 itself and needs SMTPUTF8 on its way."""
    hop, back = lab.hop(replies={"RCPT": "550 5.1.1 niemand"}), lab.hop()
    gateway = gateway_with(lab, hop, back)
    with Sender(gateway.port) as sender:
        sender.send("MAIL FROM:<jürgen@sender.test> SMTPUTF8\r\n".encode())
        assert sender.code() == 250
        sender.send("RCPT TO:<žofie@rcpt.test> NOTIFY=FAILURE\r\n".encode())
        assert sender.code() == 250
        sender.command("DATA")
        sender.send(CONTENT + b".\r\n")
        assert sender.code() == 250
    mail = back.wait()[0]
    assert mail.to == ["jürgen@sender.test"]
    assert "SMTPUTF8" in mail.mail
    _text, status, _original = mail.message.iter_parts()
    assert status.get_content_type() == "message/global-delivery-status"
    assert "Final-Recipient: utf-8; žofie@rcpt.test".encode() in mail.content
    gateway.wait_empty()


def utf8(gateway: Gateway, sender: str, rcpt: str, content: bytes = CONTENT) -> None:
    with Sender(gateway.port) as client:
        client.send(f"MAIL FROM:<{sender}> SMTPUTF8 BODY=8BITMIME\r\n".encode())
        assert client.code() == 250
        client.send(f"RCPT TO:<{rcpt}>\r\n".encode())
        assert client.code() == 250
        client.command("DATA")
        client.send(content + b".\r\n")
        assert client.code() == 250


def test_a_report_about_an_internationalized_recipient(lab: Lab) -> None:
    """RFC 6533 §3: to an ASCII sender in ASCII, with utf-8-addr-xtext."""
    hop, back = lab.hop(replies={"RCPT": "550 5.1.1 niemand da, Jürgen"}), lab.hop(PLAIN)
    gateway = gateway_with(lab, hop, back)
    header = "Subject: Grüße\r\n".encode()
    utf8(gateway, "alice@sender.test", "žofie@rcpt.test", header + CONTENT)
    report = Report(back.wait()[0])
    assert report.mail.content.isascii()
    assert list(report.actions) == [r"\x{17E}ofie@rcpt.test"]
    assert str(report.about[0]["Final-Recipient"]).startswith("utf-8;")
    gateway.wait_empty()


def test_an_internationalized_sender_behind_an_old_server(lab: Lab) -> None:
    """The report cannot go where the mail came from: a double bounce, and the end."""
    hop, back = lab.hop(replies={"RCPT": "550 5.1.1 nobody"}), lab.hop(PLAIN)
    gateway = gateway_with(lab, hop, back)
    utf8(gateway, "jürgen@sender.test", "bob@rcpt.test")
    gateway.wait_for("double_bounce")
    gateway.wait_empty()
    assert not back.received


@pytest.mark.parametrize(
    ("content", "mail"),
    [
        ("Subject: x\r\n\r\nGrüße\r\n".encode(), "BODY=8BITMIME RET=FULL"),
        ("Subject: Grüße\r\n\r\nx\r\n".encode(), "BODY=8BITMIME RET=FULL"),
        (b"Subject: x\r\n\r\n" + bytes(range(256)), "BODY=BINARYMIME RET=FULL"),
        (b"Subject: x\r\n\r\n" + b"x" * 5000 + b"\r\n", "RET=FULL"),
        (b"\r\n.\r\n..\r\n", "RET=FULL"),
        (b"no header at all\r\n", "RET=FULL"),
        (b"", "RET=FULL"),
    ],
    ids=["8-bit", "8-bit header", "binary", "long line", "no header", "no header end", "nothing"],
)
def test_a_report_can_be_read_whatever_it_is_about(lab: Lab, content: bytes, mail: str) -> None:
    """RFC 3464: 7-bit itself, so that every system takes it, with lines that may be sent."""
    hop, back = lab.hop(replies={"content": "554 5.6.0 no"}), lab.hop(PLAIN)
    gateway = gateway_with(lab, hop, back)
    bdat = 10_000 if "BINARY" in mail else 0
    gateway.send(content, "bob@rcpt.test", "alice@sender.test", mail, bdat=bdat)
    report = Report(back.wait()[0])
    octets = report.mail.content
    assert octets.isascii()
    assert b"\0" not in octets
    assert octets.count(b"\n") == octets.count(b"\r\n") == octets.count(b"\r")
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    assert report.actions == {"bob@rcpt.test": ("failed", "5.6.0")}
    gateway.wait_empty()


def test_reports_are_counted(lab: Lab) -> None:
    hop, back = lab.hop(replies={"RCPT": "550 5.1.1 nobody"}), lab.hop()
    gateway = gateway_with(lab, hop, back)
    send(gateway, ["bob@rcpt.test"])
    back.wait()
    wait_until(lambda: gateway.worker.metrics.reports_total == 1, "the count")
    assert gateway.worker.metrics.bounced == 1
