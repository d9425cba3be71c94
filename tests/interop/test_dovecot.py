"""Debian's Dovecot as an LMTP next hop: what is in the mailbox is what was sent."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator

import pytest
from dovecot_server import DovecotServer, dovecot_server
from interop_peers import route, wait_for


@pytest.fixture
def dovecot() -> Iterator[DovecotServer]:
    with dovecot_server("lmtp", users=("bob@example.test:", "eve@example.test:")) as server:
        yield server


MESSAGE = b"From: a@example.test\r\nMessage-ID: <dovecot@example.test>\r\n\r\n.dot\r\n.\r\nlast\r\n"


def send(port: int, to: list[str], message: bytes = MESSAGE) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.sendmail("a@example.test", to, message)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_mail_is_in_the_mailbox(gateway_factory, dovecot, transport):
    next_hop = (
        f"lmtp://127.0.0.1:{dovecot.ports['lmtp']}" if transport == "tcp" else f"lmtp+unix:{dovecot.socket}"
    )
    gateway = gateway_factory([route(next_hop)])
    for _ in range(5):
        send(gateway.port, ["bob@example.test", "eve@example.test"])
    for user in ("bob@example.test", "eve@example.test"):
        wait_for(
            lambda user=user: len(dovecot.mailbox(user)) == 5, f"{user}'s mail\n{gateway.output()}"
        )
        for content in dovecot.mailbox(user):
            assert content.replace(b"\r\n", b"\n").endswith(MESSAGE.replace(b"\r\n", b"\n"))
            assert content.count(b"Return-Path:") == 1


def test_each_recipient_has_its_own_outcome(gateway_factory, dovecot, sink):
    """RFC 2033 §4.2: bob gets his mail, nobody is reported to the sender."""
    gateway = gateway_factory(
        [
            route(f"lmtp://127.0.0.1:{dovecot.ports['lmtp']}", "example.test"),
            route(f"smtp://127.0.0.1:{sink.port}", "sender.test"),
        ]
    )
    with smtplib.SMTP("127.0.0.1", gateway.port, timeout=60) as client:
        client.sendmail("a@sender.test", ["bob@example.test", "nobody@example.test"], MESSAGE)
    wait_for(lambda: len(dovecot.mailbox("bob@example.test")) == 1, "bob's mail")
    report = sink.wait()[0].content
    assert b"Final-Recipient: rfc822; nobody@example.test" in report
    assert (
        b"bob@example.test"
        not in report.partition(b"message/delivery-status")[2].partition(b"--")[0]
    )


def test_dovecot_down_then_up(gateway_factory, dovecot):
    """Mail waits while the next hop is away."""
    dovecot.stop()
    gateway = gateway_factory([route(f"lmtp://127.0.0.1:{dovecot.ports['lmtp']}")])
    send(gateway.port, ["bob@example.test"])
    wait_for(lambda: gateway.log("deferred"), "a deferral")
    dovecot.start()
    wait_for(lambda: len(dovecot.mailbox("bob@example.test")) == 1, "bob's mail")
