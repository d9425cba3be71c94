"""Submission with clients that people use: who may send, as whom, and what is added."""

from __future__ import annotations

import asyncio
import base64
import smtplib
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
import scramp
from harness import Client
from interop_peers import RunningGateway, RunningSink, listener, need, route, wait_for
from login_peers import client_certificate

ALICE, BOB = "alice@example.test", "bob@example.test"
PASSWORD = "correct horse battery"
BODY = b"Subject: hello\r\n\r\nbody\r\n"

CHEAP = {
    "argon2_time_cost": 1,
    "argon2_memory_kib": 64,
    "scram_iterations": 4096,
    "failure_delay_s": 0.0,
    "failure_delay_max_s": 0.0,
}


def add_user(gateway: RunningGateway, name: str, *options: str, password: str = PASSWORD) -> None:
    subprocess.run(
        [*gateway.words("user", "add", name), "--password-stdin", *options],
        input=password.encode(),
        check=True,
        capture_output=True,
    )


@pytest.fixture
def gateway(gateway_factory, sink: RunningSink) -> RunningGateway:
    gateway = gateway_factory(
        [route("store:", "example.test"), route(f"smtp://127.0.0.1:{sink.port}", "*")],
        [
            listener("submission", tls="starttls"),
            listener(
                "submission",
                tls="implicit",
                auth_mechanisms=["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"],
            ),
        ],
        accounts={"default_domain": "example.test"},
        auth={**CHEAP, "plaintext_auth": []},
        access={"relay_from": []},
    )
    add_user(gateway, ALICE)
    return gateway


def client_of(gateway: RunningGateway) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", gateway.port, timeout=60)
    context = ssl._create_unverified_context()
    client.starttls(context=context)
    return client


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks_sends(gateway: RunningGateway, sink: RunningSink, mechanism: str) -> None:
    done = subprocess.run(
        [
            *[need("swaks"), "--server", f"127.0.0.1:{gateway.port}", "--tls", "--auth", mechanism],
            *["--auth-user", "alice", "--auth-password", PASSWORD],
            *["--from", ALICE, "--to", "carol@other.test"],
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    receipt = sink.wait()[0]
    assert receipt.mail.startswith(f"<{ALICE}>")
    accepted = gateway.log("accepted")[0]
    assert (accepted["account"], accepted["protocol"]) == (ALICE, "ESMTPSA")


def test_gsasl_proves_itself_by_scram(gateway: RunningGateway) -> None:
    def gsasl(password: str, *more: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [
                *[need("gsasl"), "--smtp", "--connect", f"127.0.0.1:{gateway.port}", *more],
                *["--no-cb", "--x509-ca-file=", "-a", "alice", "-p", password],
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )

    done = gsasl(PASSWORD)  # it chooses among what is offered
    assert b"server trusted" in done.stdout + done.stderr, done.stderr
    done = gsasl("wrong", "-m", "SCRAM-SHA-256")
    assert b"535 5.7.8" in done.stdout + done.stderr
    mechanisms = [line["mechanism"] for line in gateway.log("authenticated")]
    assert mechanisms == ["SCRAM-SHA-256"]


def test_scram_plus_binds_to_the_certificate_we_showed(gateway: RunningGateway) -> None:
    context = ssl._create_unverified_context()
    with socket.create_connection(("127.0.0.1", gateway.ports[1]), 20) as raw:
        tls = context.wrap_socket(raw, server_hostname="gateway.example.test")

        def command(line: str) -> str:
            tls.sendall(line.encode() + b"\r\n")
            return tls.recv(65536).decode()

        tls.recv(4096)
        assert "SCRAM-SHA-256-PLUS" in command("EHLO client.test")
        binding = ("tls-server-end-point", tls)
        client = scramp.ScramClient(
            ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"], "alice", PASSWORD, channel_binding=binding
        )
        assert client.mechanism_name == "SCRAM-SHA-256-PLUS"

        def b64(text: str) -> str:
            return base64.b64encode(text.encode()).decode()

        reply = command(f"AUTH {client.mechanism_name} {b64(client.get_client_first())}")
        client.set_server_first(base64.b64decode(reply[4:]).decode())
        reply = command(b64(client.get_client_final()))
        client.set_server_final(base64.b64decode(reply[4:]).decode())
        assert command("").startswith("235 2.7.0")


def test_aiosmtplib_logs_in(gateway: RunningGateway, sink: RunningSink) -> None:
    async def send() -> None:
        client = aiosmtplib.SMTP(
            hostname="127.0.0.1", port=gateway.ports[1], use_tls=True, validate_certs=False
        )
        async with client:
            await client.login("alice", PASSWORD)
            await client.sendmail(ALICE, ["carol@other.test"], BODY)
            with pytest.raises(aiosmtplib.SMTPException):
                await client.login("alice", PASSWORD)  # RFC 4954 §4: once

    asyncio.run(send())
    sink.wait()


def test_nothing_without_tls_and_nothing_without_auth(gateway: RunningGateway) -> None:
    with Client(gateway.port) as client:
        assert client.code() == 220
        assert not any("AUTH" in line for line in client.command("EHLO client.test"))
        assert client.command("AUTH PLAIN AGFsaWNlAHg=")[-1].startswith("538 5.7.11")
        assert client.command("MAIL FROM:<alice@example.test>")[-1].startswith("530 5.7.0")
    client = client_of(gateway)
    client.ehlo()
    assert client.mail(ALICE)[0] == 530
    assert client.docmd("AUTH", "XYZ")[0] == 504
    assert client.docmd("AUTH", "PLAIN !!")[0] == 501
    assert client.docmd("AUTH", "PLAIN")[0] == 334
    assert client.docmd("*")[0] == 501
    assert client.docmd("AUTH", "PLAIN")[0] == 334
    assert client.docmd("A" * 20_000)[0] == 500
    for _ in range(2):
        with pytest.raises(smtplib.SMTPAuthenticationError) as refusal:
            client.login("alice", "wrong")
        assert refusal.value.smtp_code == 535
    client.login("alice", PASSWORD)
    assert client.docmd("AUTH", "PLAIN")[0] == 503
    assert client.mail(ALICE, ["AUTH=<>"])[0] == 250
    assert client.docmd("AUTH", "PLAIN")[0] == 503
    client.close()


def test_senders_are_the_users_own(gateway: RunningGateway) -> None:
    add_user(gateway, BOB)
    for words in (["sales@example.test", ALICE], ["all@example.test", ALICE, BOB]):
        subprocess.run(gateway.words("alias", "add", *words), check=True, capture_output=True)
    client = client_of(gateway)
    client.login("alice", PASSWORD)
    for sender in (ALICE, "Alice@Example.TEST", "alice+news@example.test", "sales@example.test", ""):
        assert client.mail(sender)[0] == 250, sender
        client.rset()
    assert client.mail("all@example.test")[0] == 250
    client.rset()
    for sender in (BOB, "nobody@example.test", "alice@other.test"):
        assert client.mail(sender)[:1] == (553,), sender
    client.quit()


def test_what_is_missing_is_added(gateway: RunningGateway, sink: RunningSink) -> None:
    client = client_of(gateway)
    client.login("alice", PASSWORD)
    client.sendmail(ALICE, ["carol@other.test"], BODY)
    whole = b"date: Thu, 1 Jan 1970 00:00:00 +0000\r\nmessage-id: <x@y>\r\n\r\nDate: no\r\n"
    client.sendmail(ALICE, ["carol@other.test"], whole)
    large = BODY + b"x" * 70 + (b"\r\n" + b"y" * 70) * 20_000 + b"\r\n"
    client.sendmail(ALICE, ["carol@other.test"], large)
    client.quit()
    receipts = sink.wait(3)
    for receipt, added in zip(receipts, (1, 0, 1), strict=True):
        header = receipt.content.partition(b"\r\n\r\n")[0].lower()
        assert header.count(b"\r\ndate: ") == 1
        assert header.count(b"\r\nmessage-id: ") == 1
        assert header.count(b"@mx.example.test>") == added
        assert b"with esmtpsa id" in header
    assert len({line["message_id"] for line in gateway.log("accepted")}) == 3


def test_a_certificate_is_enough(gateway_factory, sink: RunningSink, tmp_path: Path) -> None:
    authority, pair = client_certificate(tmp_path, ALICE)
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}", "*"), route("store:", "example.test")][::-1],
        [listener("submission", tls="implicit")],
        auth=CHEAP,
        tls=certificate_files(gateway_factory, tmp_path) | {"client_ca_file": str(authority)},
    )
    add_user(gateway, ALICE)
    context = ssl._create_unverified_context()
    context.load_cert_chain(pair)
    client = smtplib.SMTP_SSL("127.0.0.1", gateway.port, context=context, timeout=60)
    client.ehlo()
    assert "EXTERNAL" in client.esmtp_features["auth"]
    assert client.docmd("AUTH", "EXTERNAL =")[0] == 235
    client.sendmail(ALICE, ["carol@other.test"], BODY)
    client.quit()
    sink.wait()
    bare = smtplib.SMTP_SSL(
        "127.0.0.1", gateway.port, context=ssl._create_unverified_context(), timeout=60
    )
    bare.ehlo()
    assert "EXTERNAL" not in bare.esmtp_features["auth"]
    assert bare.docmd("AUTH", "EXTERNAL =")[0] == 504
    bare.close()


def certificate_files(_factory: Any, where: Path) -> dict[str, str]:
    from gateway.cli.init import self_signed

    certificate, key = self_signed("gateway.test")
    (where / "s.pem").write_bytes(certificate)
    (where / "s.key").write_bytes(key)
    return {"certificate": str(where / "s.pem"), "key": str(where / "s.key")}


def test_an_alias_that_leads_elsewhere_is_forwarded(gateway: RunningGateway, sink: RunningSink) -> None:
    words = ["team@example.test", ALICE, "carol@other.test"]
    subprocess.run(gateway.words("alias", "add", *words), check=True, capture_output=True)
    client = client_of(gateway)
    client.login("alice", PASSWORD)
    assert client.mail(ALICE)[0] == 250
    assert client.rcpt("nobody@example.test")[0] == 550
    assert client.rcpt("team@example.test")[0] == 250
    assert client.data(BODY)[0] == 250
    client.quit()
    assert [r.rcpts for r in sink.wait()] == [["carol@other.test"]]
    wait_for(lambda: len(gateway.log("delivered")) == 1, "her own copy")
    assert gateway.log("delivered")[0]["forward_path"] == ALICE
