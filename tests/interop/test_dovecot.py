"""Debian's Dovecot as an LMTP next hop: what is in the mailbox is what was sent."""

from __future__ import annotations

import os
import shutil
import smtplib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from interop_peers import free_port, listening, need, need_root, route, wait_for

CONFIG = """\
protocols = lmtp
base_dir = {where}/run
state_dir = {where}/state
listen = 127.0.0.1
ssl = no
log_path = {where}/log
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
mail_location = maildir:{where}/mail/%u
mail_uid = {user}
mail_gid = {group}
first_valid_uid = 1
lmtp_rcpt_check_quota = no
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {where}/users
}}
service lmtp {{
  unix_listener lmtp {{
    mode = 0666
  }}
  inet_listener lmtp {{
    port = {port}
  }}
}}
service anvil {{
  chroot =
}}
"""


class RunningDovecot:
    def __init__(self, where: Path) -> None:
        self.where = where
        self.port = free_port()
        self.socket = where / "run" / "lmtp"
        (where / "mail").mkdir()
        shutil.chown(where / "mail", "mail", "mail")
        home = f"8:8::{where}/mail/home::"
        (where / "users").write_text(f"bob@example.test::{home}\neve@example.test::{home}\n")
        config = where / "dovecot.conf"
        config.write_text(CONFIG.format(where=where, port=self.port, user="mail", group="mail"))
        self.process = subprocess.Popen(
            [need("dovecot"), "-F", "-c", str(config)], stderr=subprocess.DEVNULL
        )
        wait_for(lambda: listening(self.port), "Dovecot")

    def log(self) -> str:
        return (self.where / "log").read_text(errors="replace")

    def mailbox(self, user: str) -> list[bytes]:
        return [
            file.read_bytes() for file in sorted((self.where / "mail" / user / "new").glob("*"))
        ]


@pytest.fixture
def dovecot() -> Iterator[RunningDovecot]:
    need("dovecot")
    need("/usr/lib/dovecot/lmtp")
    need_root()
    where = Path(tempfile.mkdtemp())
    where.chmod(0o755)
    running = RunningDovecot(where)
    yield running
    running.process.terminate()
    running.process.wait(60)
    shutil.rmtree(where, ignore_errors=True)


MESSAGE = b"From: a@example.test\r\nMessage-ID: <dovecot@example.test>\r\n\r\n.dot\r\n.\r\nlast\r\n"


def send(port: int, to: list[str], message: bytes = MESSAGE) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.sendmail("a@example.test", to, message)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_mail_is_in_the_mailbox(gateway_factory, dovecot, transport):
    next_hop = (
        f"lmtp://127.0.0.1:{dovecot.port}" if transport == "tcp" else f"lmtp+unix:{dovecot.socket}"
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
            route(f"lmtp://127.0.0.1:{dovecot.port}", "example.test"),
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
    os.kill(dovecot.process.pid, 15)
    dovecot.process.wait(60)
    gateway = gateway_factory([route(f"lmtp://127.0.0.1:{dovecot.port}")])
    send(gateway.port, ["bob@example.test"])
    wait_for(lambda: gateway.log("deferred"), "a deferral")
    dovecot.process = subprocess.Popen(
        [need("dovecot"), "-F", "-c", str(dovecot.where / "dovecot.conf")],
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: len(dovecot.mailbox("bob@example.test")) == 1, "bob's mail")
