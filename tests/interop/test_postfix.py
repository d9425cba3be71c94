"""Postfix in front of the gateway and behind it: real mail through both, nothing altered."""

from __future__ import annotations

import smtplib

from interop_peers import listener, route, wait_for

BODY_LINES = [b"first", b".", b"..", b".leading", b"", b"x" * 998, b"trailing space ", b"last"]
MESSAGE = (
    b"From: a@example.test\r\nTo: b@example.test\r\nMessage-ID: <postfix-1@example.test>\r\n\r\n"
)
BODY = b"\r\n".join(BODY_LINES) + b"\r\n"


def send(
    port: int, *, sender: str = "a@example.test", to: str = "b@example.test", options=(), body=BODY
):
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.ehlo("client.example.test")
        client.sendmail(sender, [to], MESSAGE + body, mail_options=options)


def body_of(content: bytes) -> bytes:
    return content.partition(b"\r\n\r\n")[2]


def test_in_front(postfix_factory, gateway_factory, sink):
    """Postfix relays to us: pipelined, with STARTTLS, many messages over cached connections."""
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}")])
    postfix = postfix_factory(gateway.port)
    for _ in range(5):
        send(postfix.port)
    receipts = sink.wait(5)
    assert [body_of(receipt.content) for receipt in receipts] == [BODY] * 5
    assert all(receipt.rcpts == ["b@example.test"] for receipt in receipts)
    assert "status=sent (250" in postfix.log()


def test_in_front_with_starttls(postfix_factory, gateway_factory, sink):
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")],
        [listener(tls="starttls")],
    )
    postfix = postfix_factory(
        gateway.port, "smtp_tls_security_level = encrypt\nsmtp_tls_loglevel = 1"
    )
    send(postfix.port)
    assert body_of(sink.wait()[0].content) == BODY
    assert "TLS connection established to 127.0.0.1" in postfix.log()


def test_in_front_learns_a_refusal(postfix_factory, gateway_factory, sink):
    """550 at RCPT reaches Postfix as such: it bounces, nothing is queued twice."""
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}", "a.example.test")], access={"relay_from": []}
    )
    postfix = postfix_factory(gateway.port)
    send(postfix.port, to="b@elsewhere.test")
    wait_for(lambda: "status=bounced" in postfix.log(), "Postfix's bounce")
    assert "dsn=5." in postfix.log()
    assert not sink.receipts


def test_behind(postfix_factory, gateway_factory, sink):
    """We relay to Postfix, which relays to the sink: in clear and with STARTTLS, many over one connection."""
    postfix = postfix_factory(sink.port)
    modes = ("off", "opportunistic", "required")
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{postfix.port}", f"{tls}.test", tls=tls) for tls in modes]
    )
    for tls in modes:
        for _ in range(3):
            send(gateway.port, to=f"b@{tls}.test")
    receipts = sink.wait(9)
    assert [body_of(receipt.content) for receipt in receipts] == [BODY] * 9
    for receipt in receipts:
        assert (b"(using TLSv1" in receipt.content) == (receipt.rcpts != ["b@off.test"])


def test_behind_with_utf8_and_8bit(postfix_factory, gateway_factory, sink):
    postfix = postfix_factory(sink.port)
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{postfix.port}")])
    body = "grüße\r\n".encode()
    send(
        gateway.port,
        sender="jürgen@example.test",
        to="søren@example.test",
        options=["SMTPUTF8", "BODY=8BITMIME"],
        body=body,
    )
    receipt = sink.wait()[0]
    assert body_of(receipt.content) == body
    assert receipt.rcpts == ["søren@example.test"]


def test_behind_passes_dsn_parameters(postfix_factory, gateway_factory, sink):
    """RFC 3461: ENVID, RET, NOTIFY and ORCPT come out of the second relay as they went into the first."""
    postfix = postfix_factory(sink.port)
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{postfix.port}")])
    with smtplib.SMTP("127.0.0.1", gateway.port, timeout=60) as client:
        client.ehlo("client.example.test")
        client.sendmail(
            "a@example.test",
            ["b@example.test"],
            MESSAGE + BODY,
            mail_options=["RET=HDRS", "ENVID=QQ314159"],
            rcpt_options=["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;b+2Bx@example.test"],
        )
    receipt = sink.wait()[0]
    assert "RET=HDRS" in receipt.mail
    assert "ENVID=QQ314159" in receipt.mail
    assert "ORCPT=rfc822;b+2Bx@example.test" in receipt.rcpt_lines[0]
    assert "NOTIFY=SUCCESS,FAILURE" in receipt.rcpt_lines[0]
