"""POP3 with the clients that people use: mail sent by SMTP, delivered into the store, fetched by each of them."""

from __future__ import annotations

import os
import poplib
import smtplib
import subprocess
from pathlib import Path

import pytest
from getmail_client import getmail
from interop_peers import RunningGateway, listener, need, route, wait_for

ALICE = "alice@example.test"
PASSWORD = "correct horse battery"
MESSAGES = [
    b"From: bob@example.test\r\nTo: alice@example.test\r\nSubject: one\r\nMessage-ID: <1@example.test>\r\n\r\n"
    b"first\r\n.dot\r\n..\r\nFrom the middle\r\nend\r\n",
    b"From: bob@example.test\r\nTo: alice@example.test\r\nSubject: =?utf-8?q?zw=C3=B6lf?=\r\n"
    b"Message-ID: <2@example.test>\r\n\r\n" + (b"x" * 70 + b"\r\n") * 3000,
]


@pytest.fixture
def gateway(gateway_factory):
    gateway = gateway_factory(
        [route("store:", "example.test")],
        [listener(), listener("pop3", tls="starttls"), listener("pop3", tls="implicit")],
    )
    subprocess.run(
        [*gateway.words("user", "add", ALICE), "--password-stdin"],
        input=PASSWORD.encode(),
        check=True,
        capture_output=True,
    )
    with smtplib.SMTP("127.0.0.1", gateway.port) as client:
        for message in MESSAGES:
            client.sendmail("bob@example.test", [ALICE], message)
    wait_for(lambda: len(gateway.log("delivered")) == len(MESSAGES), "the deliveries")
    return gateway


def left(gateway: RunningGateway) -> int:
    client = poplib.POP3("127.0.0.1", gateway.ports[1], timeout=60)
    client.user(ALICE)
    client.pass_(PASSWORD)
    count = client.stat()[0]
    client.quit()
    return count


def without_trace(mail: bytes) -> bytes:
    """From our own first field on, with the line ends of the wire, as written to a file by a client."""
    mail = mail.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return mail[mail.index(b"From: bob@example.test\r\n") :]


def run(words: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(words, capture_output=True, timeout=60, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    ("scheme", "port", "words"),
    [("pop3", 1, []), ("pop3", 1, ["--ssl-reqd"]), ("pop3s", 2, [])],
    ids=["plain", "stls", "implicit"],
)
@pytest.mark.parametrize("login", ["AUTH=PLAIN", "AUTH=LOGIN", "AUTH=SCRAM-SHA-256", ""])
def test_curl(gateway, scheme, port, words, login):
    if login == "AUTH=SCRAM-SHA-256" and b"GSASL" not in run([need("curl"), "-V"]).stdout.upper():
        pytest.skip("this curl was built without SCRAM")
    base = [need("curl"), "--silent", "--show-error", "--insecure", "--max-time", "20", *words]
    if login:
        base += ["--login-options", login]
    base += ["--user", f"{ALICE}:{PASSWORD}"]
    url = f"{scheme}://127.0.0.1:{gateway.ports[port]}/"
    listing = run([*base, url]).stdout.split()
    assert listing[0::2] == [b"1", b"2"]
    for number, message in enumerate(MESSAGES, 1):
        assert without_trace(run([*base, url + str(number)]).stdout) == message
    assert left(gateway) == len(MESSAGES)


def test_fetchmail_keeps_and_then_deletes(gateway, tmp_path):
    """--keep with UIDL: the second run fetches nothing again; without it the maildrop is empty."""
    need("fetchmail")
    box = tmp_path / "box"
    rc = tmp_path / "fetchmailrc"
    rc.write_text(
        f'poll 127.0.0.1 protocol pop3 port {gateway.ports[1]} uidl auth password\n'
        f'  user "{ALICE}" password "{PASSWORD}" no sslcertck\n'
        f'  mda "cat >>{box}" no rewrite\n'
    )
    rc.chmod(0o600)
    environment = {**os.environ, "FETCHMAILHOME": str(tmp_path), "LC_ALL": "C"}
    words = ["fetchmail", "--fetchmailrc", str(rc), "--idfile", str(tmp_path / "ids"), "--invisible"]

    def fetch(*more: str) -> int:
        done = subprocess.run(
            [*words, *more], capture_output=True, timeout=60, check=False, env=environment
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: there was no new mail
        return done.returncode

    assert fetch("--keep") == 0
    mails = box.read_bytes().replace(b"\r\n", b"\n")
    assert all(message.replace(b"\r\n", b"\n") in mails for message in MESSAGES)
    size = box.stat().st_size
    assert fetch("--keep") == 1
    assert box.stat().st_size == size
    assert left(gateway) == len(MESSAGES)
    assert fetch("--all", "--nokeep") == 0
    assert left(gateway) == 0


def test_getmail(gateway, tmp_path):
    maildir = getmail(tmp_path, "POP3", gateway.ports[1], ALICE, PASSWORD)
    fetched = sorted(without_trace(path.read_bytes()) for path in (maildir / "new").iterdir())
    assert fetched == sorted(MESSAGES)
    assert left(gateway) == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "stls"])
def test_mpop(gateway, tmp_path, tls):
    """mpop pipelines RETR and DELE."""
    need("mpop")
    maildir = tmp_path / "Maildir"
    for part in ("cur", "new", "tmp"):
        (maildir / part).mkdir(parents=True)
    words = [
        "mpop", "--host=127.0.0.1", f"--port={gateway.ports[1]}", f"--user={ALICE}",
        f"--passwordeval=echo {PASSWORD}", "--auth=plain" if tls else "--auth=user",
        f"--tls={'on' if tls else 'off'}", "--tls-starttls=on", "--tls-certcheck=off",
        "--pipelining=on", f"--delivery=maildir,{maildir}", "--received-header=off",
        f"--uidls-file={tmp_path}/uidls", "--keep=off",
    ]  # fmt: skip
    run(words)
    files: list[Path] = list((maildir / "new").iterdir())
    assert sorted(without_trace(path.read_bytes()) for path in files) == sorted(MESSAGES)
    assert left(gateway) == 0
