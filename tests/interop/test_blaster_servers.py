"""The source against servers that are not ours: Dovecot's submission and LMTP, aiosmtpd, Postfix's smtp-sink."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from interop_peers import RunningSink, free_port, listening, need, need_root, wait_for
from smtp_blaster import ledger, ledger_mailbox
from smtp_blaster.sink import SinkPlan
from smtp_blaster.source import Plan, Result, Source

from gateway.cli.init import self_signed

pytestmark = pytest.mark.interop

CONFIG = """\
protocols = submission lmtp
base_dir = {where}/run
state_dir = {where}/state
listen = 127.0.0.1
log_path = {where}/log
default_internal_user = mail
default_internal_group = mail
default_login_user = mail
mail_location = maildir:{where}/mail/%u
mail_uid = mail
mail_gid = mail
first_valid_uid = 1
lmtp_rcpt_check_quota = no
ssl = yes
ssl_cert = <{where}/certificate
ssl_key = <{where}/key
disable_plaintext_auth = no
auth_mechanisms = plain login scram-sha-256
hostname = dovecot.example.test
submission_relay_host = 127.0.0.1
submission_relay_port = {relay}
submission_relay_ssl = no
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {where}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {where}/users
}}
service submission-login {{
  chroot =
  inet_listener submission {{
    port = {submission}
  }}
  inet_listener submissions {{
    port = {submissions}
    ssl = yes
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}
service anvil {{
  chroot =
}}
"""
USERS = ("alice@example.test:secret one", "bob@example.test:another")


class Dovecot:
    def __init__(self, where: Path, relay: int) -> None:
        self.where = where
        self.ports = {name: free_port() for name in ("submission", "submissions", "lmtp")}
        (where / "mail").mkdir()
        shutil.chown(where / "mail", "mail", "mail")
        (where / "users").write_text("".join(f"{user}:8:8::{where}/mail/home::\n" for user in USERS))
        for name, octets in zip(("certificate", "key"), self_signed("dovecot.example.test"), strict=True):
            (where / name).write_bytes(octets)
        config = where / "dovecot.conf"
        config.write_text(CONFIG.format(where=where, relay=relay, **self.ports))
        self.process = subprocess.Popen([need("dovecot"), "-F", "-c", str(config)], stderr=subprocess.DEVNULL)
        for port in self.ports.values():
            wait_for(lambda port=port: listening(port), "Dovecot")


@pytest.fixture(scope="module")
def where() -> Iterator[Path]:
    need_root()
    path = Path(tempfile.mkdtemp())  # where the user "mail" may go
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def behind(where: Path) -> Iterator[RunningSink]:
    sink = RunningSink(SinkPlan(ledger=str(where / "got")))
    yield sink
    sink.stop()


@pytest.fixture(scope="module")
def dovecot(where: Path, behind: RunningSink) -> Iterator[Dovecot]:
    need("/usr/lib/dovecot/lmtp")
    need("/usr/lib/dovecot/submission")
    running = Dovecot(where, behind.port)
    yield running
    running.process.terminate()
    running.process.wait(60)


def load(port: int, **plan) -> Result:
    return uvloop.run(Source(Plan(target=f"127.0.0.1:{port}", patience_s=5.0, **plan)).run())


@pytest.mark.parametrize("tls", ["off", "starttls", "implicit"])
@pytest.mark.parametrize("mechanism", ["", "PLAIN", "LOGIN", "SCRAM-SHA-256"])
def test_submission_to_dovecot(dovecot: Dovecot, behind: RunningSink, tmp_path: Path, mechanism: str, tls: str) -> None:
    sent = tmp_path / "sent"
    found = load(
        dovecot.ports["submissions" if tls == "implicit" else "submission"],
        protocol="submission", tls=tls, auth=USERS, auth_mechanism=mechanism, messages=6, connections=2, recipients=2,
        size_octets=3000, dots=True, ledger=str(sent),
    )  # fmt: skip
    assert (found.accepted, found.troubles) == (6, {}), found.replies
    assert sum(found.latency["auth"].values()) == 2
    behind.flush()
    difference = ledger.prove([sent], [dovecot.where / "got"])
    assert (difference.accepted, difference.lost, difference.altered) == (12, 0, 0)


def test_dovecot_refuses_a_wrong_password(dovecot: Dovecot) -> None:
    found = load(
        dovecot.ports["submission"], protocol="submission", messages=2, auth=("alice@example.test:wrong",),
    )  # fmt: skip
    assert (found.accepted, found.unsent) == (0, 2)
    assert any(text.startswith("auth: 535") for text in found.troubles), found.troubles


@pytest.mark.parametrize("mode", [{}, {"pipelining": True}, {"chunking": True}])
def test_lmtp_to_dovecot(dovecot: Dovecot, tmp_path: Path, mode: dict[str, bool]) -> None:
    """What lies in the Maildirs is what was promised."""
    sent = tmp_path / "sent"
    found = load(
        dovecot.ports["lmtp"], protocol="lmtp", messages=10, connections=2, size_octets=3000, dots=True,
        forward_path="alice@example.test", ledger=str(sent), **mode,
    )  # fmt: skip
    assert (found.accepted, found.troubles) == (10, {}), found.replies
    difference = ledger.prove([sent], [], arrivals=ledger_mailbox.maildir(dovecot.where / "mail"))
    assert (difference.accepted, difference.lost, difference.altered) == (10, 0, 0)


def test_lmtp_recipients_have_their_own_replies(dovecot: Dovecot) -> None:
    found = load(
        dovecot.ports["lmtp"], protocol="lmtp", messages=4, recipients=2, size_octets=3000,
        forward_path="{0..1}@example.test",
    )  # fmt: skip
    assert (found.accepted, found.refused) == (0, 4)
    assert set(found.replies) == {"rcpt 550"}


class _Bearer:
    """aiosmtpd takes mechanisms as methods of the handler."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def auth_XOAUTH2(self, server, words):
        said = base64.b64decode(words[1])
        self.seen.append(said)
        if b"good token" in said:
            return AuthResult(success=True)
        await server.push("334 eyJzdGF0dXMiOiI0MDEifQ==")
        assert await server._reader.readline() == b"\r\n"  # RFC 7628 §3.2.3 asks for an answer to it
        return AuthResult(success=False, handled=False)

    async def handle_DATA(self, server, session, envelope):
        return "250 2.0.0 taken"


@pytest.mark.parametrize(("token", "accepted"), [("good token", 3), ("stale", 0)])
def test_xoauth2_to_aiosmtpd(token: str, accepted: int) -> None:
    handler = _Bearer()
    controller = Controller(handler, hostname="127.0.0.1", port=0, auth_require_tls=False, auth_required=True)
    controller.port = free_port()
    controller.start()
    try:
        found = uvloop.run(
            Source(
                Plan(
                    target=f"127.0.0.1:{controller.port}", protocol="submission", auth=(f"alice:{token}",),
                    auth_mechanism="XOAUTH2", messages=3, size_octets=1000, patience_s=0.5,
                )
            ).run()
        )  # fmt: skip
    finally:
        controller.stop()
    assert found.accepted == accepted, found.troubles
    assert handler.seen[0] == f"user=alice\x01auth=Bearer {token}\x01\x01".encode()
    assert bool(accepted) or any("auth: 535" in text for text in found.troubles)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_smtp_sink_takes_it(loop: str) -> None:
    """Postfix's own counterpart, with octets flowing both ways at once on many connections."""
    need("smtp-sink")
    user = ["-u", "postfix"] if os.geteuid() == 0 else []
    port = free_port()
    with subprocess.Popen(
        [need("smtp-sink"), *user, f"127.0.0.1:{port}", "128"], cwd="/", stderr=subprocess.DEVNULL
    ) as sink:
        try:
            wait_for(lambda: listening(port), "smtp-sink")
            source = Source(Plan(target=f"127.0.0.1:{port}", messages=300, connections=20, per_connection=40))
            runner = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
            with asyncio.Runner(loop_factory=runner) as running:
                found = running.run(source.run())
        finally:
            sink.kill()
    assert (found.accepted, found.refused, found.broken) == (300, 0, 0)
