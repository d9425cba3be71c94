"""The source against servers that are not ours: Dovecot's submission and LMTP, aiosmtpd, Postfix's smtp-sink."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from dovecot_server import DovecotServer, dovecot_server
from interop_peers import RunningSink, free_port, listening, need, wait_for
from smtp_blaster import ledger, ledger_mailbox
from smtp_blaster.sink import SinkPlan
from smtp_blaster.source import Plan, Result, Source

pytestmark = pytest.mark.interop

RELAY = """
submission_relay_host = 127.0.0.1
submission_relay_port = {port}
submission_relay_ssl = no
"""
USERS = ("alice@example.test:secret one", "bob@example.test:another")


@pytest.fixture(scope="module")
def got(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger of what Dovecot sent on."""
    return tmp_path_factory.mktemp("behind") / "got"


@pytest.fixture(scope="module")
def behind(got: Path) -> Iterator[RunningSink]:
    sink = RunningSink(SinkPlan(ledger=str(got)))
    yield sink
    sink.stop()


@pytest.fixture(scope="module")
def dovecot(behind: RunningSink) -> Iterator[DovecotServer]:
    with dovecot_server("submission", "lmtp", users=USERS, extra=RELAY.format(port=behind.port)) as server:
        yield server


def load(port: int, **plan) -> Result:
    return uvloop.run(Source(Plan(target=f"127.0.0.1:{port}", patience_s=5.0, **plan)).run())


@pytest.mark.parametrize("tls", ["off", "starttls", "implicit"])
@pytest.mark.parametrize("mechanism", ["", "PLAIN", "LOGIN", "SCRAM-SHA-256"])
def test_submission_to_dovecot(
    dovecot: DovecotServer, behind: RunningSink, got: Path, tmp_path: Path, mechanism: str, tls: str
) -> None:
    sent = tmp_path / "sent"
    found = load(
        dovecot.ports["submissions" if tls == "implicit" else "submission"],
        protocol="submission", tls=tls, auth=USERS, auth_mechanism=mechanism, messages=6, connections=2, recipients=2,
        size_octets=3000, dots=True, ledger=str(sent),
    )  # fmt: skip
    assert (found.accepted, found.troubles) == (6, {}), found.replies
    assert sum(found.latency["auth"].values()) == 2
    behind.flush()
    difference = ledger.prove([sent], [got])
    assert (difference.accepted, difference.lost, difference.altered) == (12, 0, 0)


def test_dovecot_refuses_a_wrong_password(dovecot: DovecotServer) -> None:
    found = load(
        dovecot.ports["submission"], protocol="submission", messages=2, auth=("alice@example.test:wrong",),
    )  # fmt: skip
    assert (found.accepted, found.unsent) == (0, 2)
    assert any(text.startswith("auth: 535") for text in found.troubles), found.troubles


@pytest.mark.parametrize("mode", [{}, {"pipelining": True}, {"chunking": True}])
def test_lmtp_to_dovecot(dovecot: DovecotServer, tmp_path: Path, mode: dict[str, bool]) -> None:
    """What lies in the Maildirs is what was promised."""
    sent = tmp_path / "sent"
    found = load(
        dovecot.ports["lmtp"], protocol="lmtp", messages=10, connections=2, size_octets=3000, dots=True,
        forward_path="alice@example.test", ledger=str(sent), **mode,
    )  # fmt: skip
    assert (found.accepted, found.troubles) == (10, {}), found.replies
    difference = ledger.prove([sent], [], arrivals=ledger_mailbox.maildir(dovecot.where / "mail"))
    assert (difference.accepted, difference.lost, difference.altered) == (10, 0, 0)


def test_lmtp_recipients_have_their_own_replies(dovecot: DovecotServer) -> None:
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
