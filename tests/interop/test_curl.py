"""curl's smtp:// and smtps://."""

from __future__ import annotations

import subprocess

import pytest
from interop_peers import listener, need, route

MESSAGE = b"Subject: from curl\r\nMessage-ID: <curl@example.test>\r\n\r\n.first\r\n.\r\nlast\r\n"


@pytest.fixture
def gateway(gateway_factory, sink):
    return gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")],
        [listener(tls="starttls"), listener(tls="implicit")],
    )


def curl(url: str, *words: str, message: bytes = MESSAGE) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            need("curl"), "--silent", "--show-error", "--max-time", "20", url, *words,
            "--mail-from", "alice@example.test", "--mail-rcpt", "bob@example.test",
            "--mail-rcpt", "eve@example.test", "--upload-file", "-",
        ],
        input=message,
        capture_output=True,
        timeout=60,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "port", "words"),
    [("smtp", 0, []), ("smtp", 0, ["--ssl-reqd"]), ("smtps", 1, [])],
    ids=["plain", "starttls", "implicit"],
)
def test_delivers(gateway, sink, certificate, scheme, port, words):
    url = f"{scheme}://localhost:{gateway.ports[port]}/client.example.test"
    done = curl(url, "--ipv4", "--cacert", str(certificate[0]), *words)
    assert done.returncode == 0, done.stderr
    receipts = sink.wait()
    assert receipts[0].content.endswith(MESSAGE)
    assert sorted(path for receipt in receipts for path in receipt.rcpts) == [
        "bob@example.test",
        "eve@example.test",
    ]


def test_large_upload(gateway, sink):
    message = MESSAGE + b"0123456789" * 7 + b"\r\n" + (b"x" * 76 + b"\r\n.dots\r\n") * 100_000
    done = curl(f"smtp://127.0.0.1:{gateway.port}/client.example.test", message=message)
    assert done.returncode == 0, done.stderr
    assert sink.wait()[0].content.endswith(message)


def test_too_large_is_refused_by_size_at_mail(gateway_factory, sink):
    """RFC 1870 §6.1: curl announces SIZE, 552 comes before the octets."""
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")], [listener(max_message_octets=1000)]
    )
    with_size = subprocess.run(
        [
            need("curl"), "--silent", "--show-error", "--verbose", "--max-time", "20",
            f"smtp://127.0.0.1:{gateway.port}/client.example.test", "--mail-from", "a@example.test",
            "--mail-rcpt", "b@example.test", "--upload-file", __file__,
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert with_size.returncode != 0
    assert b"< 552 5.3.4" in with_size.stderr
