"""msmtp, a sendmail replacement."""

from __future__ import annotations

import subprocess

import pytest
from interop_peers import listener, need, route

MESSAGE = b"From: alice@example.test\nTo: bob@example.test\nSubject: from msmtp\n\n.dot\n.\nlast\n"


@pytest.mark.parametrize("tls", ["off", "starttls", "implicit"])
def test_delivers(gateway_factory, sink, certificate, tls):
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}")], [listener(tls=tls)])
    done = subprocess.run(
        [
            need("msmtp"), "--host=localhost", f"--port={gateway.port}", "--timeout=20", "--protocol=smtp",
            "--domain=client.example.test", "--from=alice@example.test", "--auth=off",
            f"--tls={'off' if tls == 'off' else 'on'}", f"--tls-starttls={'on' if tls == 'starttls' else 'off'}",
            f"--tls-trust-file={certificate[0]}", "--dsn-notify=failure,delay", "--dsn-return=headers",
            "bob@example.test",
        ],
        input=MESSAGE,
        capture_output=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    receipt = sink.wait()[0]
    assert receipt.content.endswith(b"\r\n\r\n.dot\r\n.\r\nlast\r\n")
    assert "RET=HDRS" in receipt.mail
    assert "NOTIFY=" in receipt.rcpt_lines[0]
