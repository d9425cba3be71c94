"""swaks, the SMTP tester most administrators reach for, with all the ways it knows to talk."""

from __future__ import annotations

import subprocess

import pytest
from interop_peers import RunningGateway, listener, need, route


def swaks(
    gateway: RunningGateway, *words: str, port: int | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            need("swaks"), "--server", "127.0.0.1", "--port", str(port or gateway.port),
            "--from", "alice@example.test", "--to", "bob@example.test",
            "--helo", "client.example.test", "--body", "line\n.\n..two", *words,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip


@pytest.fixture
def gateway(gateway_factory, sink):
    return gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}", "example.test")],
        [
            listener(tls="starttls"),
            listener(tls="implicit"),
            listener("lmtp"),
            listener(xclient_from=["127.0.0.0/8"]),
        ],
    )


@pytest.mark.parametrize(
    ("words", "protocol"),
    [
        ((), b"with ESMTP id"),
        (("--protocol", "SMTP"), b"with SMTP id"),
        (("--pipeline",), b"with ESMTP id"),
        (("-tls",), b"with ESMTPS id"),
        (("-tls", "--pipeline"), b"with ESMTPS id"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_delivers(gateway, sink, words, protocol):
    done = swaks(gateway, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    receipt = sink.wait()[0]
    assert receipt.content.endswith(b"\r\n\r\nline\r\n.\r\n..two\r\n\r\n\r\n")
    assert protocol in receipt.content
    assert receipt.rcpts == ["bob@example.test"]


def test_implicit_tls(gateway, sink):
    done = swaks(gateway, "--tls-on-connect", port=gateway.ports[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"with ESMTPS id" in sink.wait()[0].content


def test_lmtp_answers_for_each_recipient(gateway, sink):
    done = swaks(
        gateway,
        "--protocol",
        "LMTP",
        "--to",
        "bob@example.test,eve@example.test",
        port=gateway.ports[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    receipts = sink.wait()
    assert sorted(path for receipt in receipts for path in receipt.rcpts) == [
        "bob@example.test",
        "eve@example.test",
    ]
    assert b"with LMTP id" in receipts[0].content


def test_xclient_speaks_for_another_client(gateway, sink):
    done = swaks(
        gateway, "--xclient", "ADDR=192.0.2.77 NAME=elsewhere.example.net", port=gateway.ports[3]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"192.0.2.77" in sink.wait()[0].content


def test_many_recipients_in_one_transaction(gateway, sink):
    to = ",".join(f"r{number}@example.test" for number in range(100))
    done = swaks(gateway, "--to", to, "--pipeline")
    assert done.returncode == 0, done.stdout + done.stderr
    sink.wait(2)  # delivery.recipients: 50 in a transaction
    assert sum(len(receipt.rcpts) for receipt in sink.receipts) == 100


def test_attachment(gateway, sink, tmp_path):
    file = tmp_path / "octets.bin"
    file.write_bytes(bytes(range(256)) * 400)
    done = swaks(gateway, "--attach-type", "application/octet-stream", "--attach", f"@{file}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"Content-Transfer-Encoding: BASE64" in sink.wait()[0].content


@pytest.mark.parametrize("last", ["CONNECT", "HELO", "MAIL", "RCPT", "DATA"])
def test_going_away_at_any_stage_delivers_nothing(gateway, sink, last):
    """--drop-after: the client vanishes; the next one is served as ever."""
    swaks(gateway, "--drop-after", last)
    assert swaks(gateway).returncode == 0
    assert len(sink.wait()) == 1
