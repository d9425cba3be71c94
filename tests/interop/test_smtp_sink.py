"""Postfix's smtp-sink as a next hop, with every switch that makes it awkward or hostile.

Whatever it does, mail that we acknowledged ends in exactly one of three ways: delivered, kept for
the
next attempt (and delivered when the next hop is well again), or bounced with the reply that caused
it.
"""

from __future__ import annotations

import smtplib
from email import message_from_bytes

import pytest
from interop_peers import free_port, listener, route, wait_for

BODY = b"line\r\n.\r\n..dots\r\n" + b"y" * 900 + b"\r\nlast\r\n"
MESSAGE = b"From: alice@sender.test\r\nMessage-ID: <sink@sender.test>\r\n\r\n" + BODY


def send(port: int, count: int = 1, content: bytes = MESSAGE) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        for _ in range(count):
            client.sendmail("alice@sender.test", ["bob@rcpt.test", "eve@rcpt.test"], content)


def stages(command: str) -> list[tuple[str, ...]]:
    return [(command, stage) for stage in ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", ".")]


@pytest.mark.parametrize(
    "switches",
    [
        (), ("-8",), ("-a",), ("-C",), ("-e",), ("-E",), ("-F",), ("-N",), ("-p",), ("-P",),
        ("-8", "-e", "-p"), ("-H", "1"), ("-H", "1", "-T", "1024"), ("-T", "1024"), ("-w", "1"),
        ("-p", "-W", "MAIL:1"), ("-p", "-W", "RCPT:1"), ("-m", "1"), ("-f", "EHLO"), ("-f", "QUIT"), ("-r", "RSET"), ("-q", "QUIT"),
    ],
    ids=lambda words: " ".join(words) or "plain",
)  # fmt: skip
def test_awkward_but_able(gateway_factory, smtp_sink, tmp_path, switches):
    """Delivered at the first attempt, unaltered, counted once."""
    tmp_path.chmod(0o777)
    port = free_port()
    smtp_sink(port, "-D", "dump", *switches)
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{port}")])
    send(gateway.port, count=3)
    wait_for(
        lambda: len(gateway.log("relayed")) + len(gateway.log("delivered")) >= 3, "3 deliveries"
    )
    assert not gateway.log("deferred")
    wait_for(lambda: _dump(tmp_path).read_bytes().count(b"last\n") >= 3, "the sink's dump")
    dump = _dump(tmp_path).read_bytes()
    assert dump.count(BODY.replace(b"\r\n", b"\n")) == 3


@pytest.mark.parametrize(
    "switches",
    [
        *stages("-r"),
        *stages("-Q"),
        *stages("-q"),
        # A host that refuses everybody is a host that is ill, not a verdict on this mail.
        ("-f", "CONNECT"),
        ("-f", "EHLO,HELO"),
    ],
    ids=" ".join,
)
def test_transient_failure_is_kept_and_delivered_later(
    gateway_factory, smtp_sink, sink_factory, switches
):
    port = free_port()
    hostile = smtp_sink(port, *switches)
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{port}")])
    send(gateway.port)
    wait_for(lambda: gateway.log("deferred"), f"a deferral\n{gateway.output()}")
    assert not gateway.log("bounced")
    hostile.kill()
    hostile.wait()
    sink = sink_factory(address=f"127.0.0.1:{port}")
    wait_for(lambda: sum(len(receipt.rcpts) for receipt in sink.receipts) >= 2, "both recipients")
    assert sorted(path for receipt in sink.receipts for path in receipt.rcpts) == [
        "bob@rcpt.test",
        "eve@rcpt.test",
    ]
    assert all(receipt.content.endswith(MESSAGE) for receipt in sink.receipts)


@pytest.mark.parametrize(
    "switches",
    [("-f", "MAIL"), ("-f", "RCPT"), ("-f", "DATA"), ("-f", "."), ("-A", "0")],
    ids=" ".join,
)
def test_permanent_failure_is_reported_to_the_sender(gateway_factory, smtp_sink, sink, switches):
    """RFC 5321 §6.1: a 5xx becomes a report with that reply, to the reverse-path, from <>."""
    port = free_port()
    smtp_sink(port, *switches, "-B", "554 5.7.1 not here")
    gateway = gateway_factory(
        [
            route(f"smtp://127.0.0.1:{port}", "rcpt.test"),
            route(f"smtp://127.0.0.1:{sink.port}", "sender.test"),
        ]
    )
    send(gateway.port)
    receipt = sink.wait()[0]
    assert receipt.mail.startswith("<>")
    assert receipt.rcpts == ["alice@sender.test"]
    report = message_from_bytes(receipt.content)
    assert report.get_content_type() == "multipart/report"
    status = report.get_payload(1)
    assert status.get_content_type() == "message/delivery-status"
    text = status.as_string()
    assert "Action: failed" in text
    # -A has words of its own: 550 right behind 354, while the content is on its way.
    assert ("550" if switches[0] == "-A" else "5.7.1 not here") in text


def test_windows_of_nothing_do_not_stop_others(gateway_factory, smtp_sink, sink):
    """A next hop that reads a large message through a keyhole has only its own lane."""
    port = free_port()
    smtp_sink(port, "-H", "5", "-T", "512")
    gateway = gateway_factory(
        [
            route(f"smtp://127.0.0.1:{port}", "slow.test"),
            route(f"smtp://127.0.0.1:{sink.port}", "fast.test"),
        ],
        [listener()],
    )
    big = MESSAGE + (b"z" * 76 + b"\r\n") * 50_000
    with smtplib.SMTP("127.0.0.1", gateway.port, timeout=20) as client:
        client.sendmail("alice@sender.test", ["bob@slow.test"], big)
        client.sendmail("alice@sender.test", ["bob@fast.test"], MESSAGE)
    assert sink.wait()[0].content.endswith(MESSAGE)
    gateway.kill()  # the slow one still holds its message: that is its right


def _dump(tmp_path):
    return tmp_path / "dump"
