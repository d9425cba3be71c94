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
from interop_peers import free_port, free_ports, listener, route, wait_for

BODY = b"line\r\n.\r\n..dots\r\n" + b"y" * 900 + b"\r\nlast\r\n"
MESSAGE = b"From: alice@sender.test\r\nMessage-ID: <sink@sender.test>\r\n\r\n" + BODY


def send(port: int, count: int = 1, domain: str = "rcpt.test") -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        for _ in range(count):
            client.sendmail("alice@sender.test", [f"bob@{domain}", f"eve@{domain}"], MESSAGE)


AWKWARD = [
    (), ("-8",), ("-a",), ("-C",), ("-e",), ("-E",), ("-F",), ("-N",), ("-p",), ("-P",),
    ("-8", "-e", "-p"), ("-H", "1"), ("-H", "1", "-T", "1024"), ("-T", "1024"), ("-w", "1"),
    # Without -p the reply to a delayed command comes behind those to later ones: not a server, a bug.
    ("-p", "-W", "MAIL:1"), ("-p", "-W", "RCPT:1"), ("-m", "1"), ("-f", "EHLO"), ("-f", "QUIT"),
    ("-r", "RSET"), ("-q", "QUIT"),
]  # fmt: skip
STAGES = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", ".")
TRANSIENT = [
    *((switch, stage) for switch in ("-r", "-Q", "-q") for stage in STAGES),
    # A host that refuses everybody is a host that is ill, not a verdict on this mail.
    ("-f", "CONNECT"),
    ("-f", "EHLO,HELO"),
]


def test_awkward_but_able(gateway_factory, smtp_sink, tmp_path):
    """Every one of them has its mail at the first attempt, unaltered and once."""
    tmp_path.chmod(0o777)  # smtp-sink has a user of its own
    ports = free_ports(len(AWKWARD))
    for number, (port, switches) in enumerate(zip(ports, AWKWARD, strict=True)):
        smtp_sink(port, "-D", f"dump-{number}", *switches)
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{port}", f"{port}.test") for port in ports])
    for port in ports:
        send(gateway.port, 3, domain=f"{port}.test")
    wait_for(lambda: len(gateway.log("relayed")) >= 6 * len(ports), "all of it")
    assert not gateway.log("deferred")
    for number, switches in enumerate(AWKWARD):
        dump = (tmp_path / f"dump-{number}").read_bytes()
        assert dump.count(BODY.replace(b"\r\n", b"\n")) == 3, switches


def test_transient_failure_is_kept_and_delivered_later(gateway_factory, smtp_sink, sink_factory):
    ports = free_ports(len(TRANSIENT))
    hostile = [smtp_sink(port, *words) for port, words in zip(ports, TRANSIENT, strict=True)]
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{port}", f"{port}.test") for port in ports])
    for port in ports:
        send(gateway.port, domain=f"{port}.test")
    everybody = {f"{who}@{port}.test" for who in ("bob", "eve") for port in ports}

    def deferred() -> set[str]:
        return {entry["forward_path"] for entry in gateway.log("deferred")}

    wait_for(lambda: deferred() == everybody, "deferrals")
    assert not gateway.log("bounced") + gateway.log("relayed")
    for process in hostile:
        process.kill()
        process.wait()
    sinks = [sink_factory(address=f"127.0.0.1:{port}") for port in ports]
    for port, sink, switches in zip(ports, sinks, TRANSIENT, strict=True):
        what = f"both behind {switches}"
        wait_for(lambda sink=sink: sum(len(r.rcpts) for r in sink.receipts) >= 2, what)
        paths = sorted(path for receipt in sink.receipts for path in receipt.rcpts)
        assert paths == [f"bob@{port}.test", f"eve@{port}.test"], switches
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
    with smtplib.SMTP("127.0.0.1", gateway.port, timeout=60) as client:
        client.sendmail("alice@sender.test", ["bob@slow.test"], big)
        client.sendmail("alice@sender.test", ["bob@fast.test"], MESSAGE)
    assert sink.wait()[0].content.endswith(MESSAGE)
    gateway.kill()  # the slow one still holds its message: that is its right
