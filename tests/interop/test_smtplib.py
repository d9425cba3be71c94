"""Python's smtplib: SMTP, SMTP_SSL and LMTP."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.policy import SMTPUTF8

import pytest
from interop_peers import listener, route


@pytest.fixture
def gateway(gateway_factory, sink):
    return gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")],
        [listener(tls="starttls"), listener(tls="implicit"), listener("lmtp")],
    )


@pytest.fixture
def context(certificate):
    return ssl.create_default_context(cafile=str(certificate[0]))


def message(text: str = "text\n.\n.dot\n") -> EmailMessage:
    mail = EmailMessage(policy=SMTP_POLICY)
    mail["From"], mail["To"], mail["Subject"] = "a@example.test", "b@example.test", "smtplib"
    mail.set_content(text)
    return mail


def test_one_connection_many_messages(gateway, sink):
    with smtplib.SMTP("localhost", gateway.port, timeout=60) as client:
        for _ in range(20):
            assert client.send_message(message()) == {}
    receipts = sink.wait(20)
    assert all(receipt.content.endswith(message().as_bytes()) for receipt in receipts)


def test_starttls(gateway, sink, context):
    with smtplib.SMTP("localhost", gateway.port, timeout=60) as client:
        client.starttls(context=context)
        client.send_message(message())
    assert b"with ESMTPS id" in sink.wait()[0].content


def test_implicit_tls(gateway, sink, context):
    with smtplib.SMTP_SSL("localhost", gateway.ports[1], context=context, timeout=60) as client:
        client.send_message(message())
    assert b"with ESMTPS id" in sink.wait()[0].content


def test_lmtp(gateway, sink):
    with smtplib.LMTP("localhost", gateway.ports[2]) as client:
        assert client.send_message(message(), to_addrs=["b@example.test"]) == {}
    assert sink.wait()[0].content.endswith(message().as_bytes())


def test_smtputf8(gateway, sink):
    mail = EmailMessage(policy=SMTPUTF8)
    mail["From"], mail["To"], mail["Subject"] = "jürgen@example.test", "søren@example.test", "grüße"
    mail.set_content("ünïcödé\n", cte="8bit")
    with smtplib.SMTP("localhost", gateway.port, timeout=60) as client:
        assert client.send_message(mail) == {}
    receipt = sink.wait()[0]
    assert receipt.rcpts == ["søren@example.test"]
    assert "SMTPUTF8" in receipt.mail
    assert "grüße".encode() in receipt.content


def test_some_recipients_refused(gateway_factory, sink):
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}", "a.test")], access={"relay_from": []}
    )
    with smtplib.SMTP("localhost", gateway.port, timeout=60) as client:
        refused = client.sendmail(
            "x@example.test", ["b@a.test", "c@b.test"], b"Subject: x\r\n\r\nx\r\n"
        )
    assert list(refused) == ["c@b.test"]
    assert refused["c@b.test"][0] in (550, 554)
    assert sink.wait()[0].rcpts == ["b@a.test"]


def test_rset_noop_vrfy_help_keep_the_connection(gateway, sink):
    with smtplib.SMTP("localhost", gateway.port, timeout=60) as client:
        client.ehlo()
        client.mail("a@example.test")
        assert client.rset()[0] == 250
        assert client.noop()[0] == 250
        assert client.verify("b@example.test")[0] == 252
        client.send_message(message())
    sink.wait()
