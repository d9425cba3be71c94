"""IDLE and what other sessions, other workers and deliveries do meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator

import apsw
import pytest
from imap.rig import ALICE, BOB, MESSAGE, ImapClient
from imap.two_workers import TwoWorkers

from gateway.server.imap import session


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoWorkers]:
    toml = "[imap]\nstill_here_s = 1.0\n"
    with TwoWorkers(tmp_path_factory.mktemp("imap"), toml) as running:
        running.add_account(ALICE, BOB)
        yield running


def until(imap: ImapClient, wanted: bytes) -> list[bytes]:
    """Responses, up to the one that is like this."""
    found = []
    while not found or not re.fullmatch(wanted, found[-1]):
        found.append(imap.response().removeprefix(b"* "))
    return [one for one in found if one != b"OK Still here"]


def test_sessions_in_both_workers_hear_of_everything(gateway: TwoWorkers) -> None:
    sessions = [gateway.login_at(worker) for worker in (0, 1, 0, 1)]
    tags = []
    for imap in sessions:
        imap.ok("SELECT INBOX")
        tags.append(imap.idle())
    gateway.deliver(ALICE, *[MESSAGE] * 3)
    for imap in sessions:
        until(imap, b"3 EXISTS")
    with gateway.login_at(1) as other:
        other.ok("SELECT INBOX")
        other.ok(r"STORE 2 +FLAGS (\Deleted urgent)")
        for imap in sessions:
            until(imap, rb"2 FETCH \(FLAGS \(\\Deleted( \\Recent)? urgent\)\)")
        other.ok("EXPUNGE")
        for imap in sessions:
            until(imap, b"2 EXPUNGE")
        other.ok("MOVE 1:* Archive")
    for imap, tag in zip(sessions, tags, strict=True):
        until(imap, b"1 EXPUNGE")
        imap.done(tag)
        assert imap.ok("NOOP") == []
        imap.close()


def test_a_command_sees_what_was_answered_in_another_worker(gateway: TwoWorkers) -> None:
    """Every time, without a wait in between."""
    with gateway.login_at(0, BOB) as one, gateway.login_at(1, BOB) as two:
        gateway.deliver(BOB, *[MESSAGE] * 2)
        one.ok("SELECT INBOX")
        two.ok("SELECT INBOX")
        for at in range(20):
            writer, reader = (one, two) if at % 2 else (two, one)
            writer.ok(f"STORE 1 FLAGS (step{at % 3})")
            assert [r for r in reader.ok("NOOP") if b"FETCH" in r and b"step%d" % (at % 3) in r]


def test_an_idle_client_is_told_that_we_are_there(gateway: TwoWorkers) -> None:
    with gateway.login_at(0) as imap:
        tag = imap.idle()  # no mailbox is selected
        assert imap.response() == b"* OK Still here"
        imap.done(tag)
        tag = imap.idle()
        imap.write(b"NOOP\r\n")
        assert imap.finish(tag)[1].startswith(b"BAD")


def test_a_client_that_leaves_in_idle_leaves_nothing(gateway: TwoWorkers) -> None:
    for _ in range(3):
        imap = gateway.login_at(0)
        imap.ok("SELECT INBOX")
        imap.idle()
        imap.close()
    gateway.deliver(ALICE, MESSAGE)
    with gateway.login_at(0) as imap:
        assert b"1 EXISTS" in imap.ok("SELECT INBOX")


def test_a_long_command_tells_that_it_goes_on(gateway: TwoWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account that another process keeps locked for a while."""
    monkeypatch.setattr(session, "PROGRESS_S", 0.1)
    path = next(gateway.config.store_dir.glob(f"*/{BOB}/store.db"))
    with gateway.login_at(0, BOB) as imap:
        imap.ok("SELECT INBOX")
        locked = apsw.Connection(str(path))
        locked.execute("BEGIN IMMEDIATE")
        tag = imap.begin(r"STORE 1 +FLAGS (\Draft)")
        assert imap.response() == b'* OK [INPROGRESS ("%b" NIL NIL)] Still working' % tag
        locked.execute("ROLLBACK")
        locked.close()
        assert imap.finish(tag)[1].startswith(b"OK")
