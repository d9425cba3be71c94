"""A crash of the host takes changes of flags back that were not synced yet: their MODSEQs are never given out again."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
from test_store_account import SETTINGS, deliver, message

from gateway.store import database
from gateway.store.account import AccountFile
from gateway.store.check import check_account
from gateway.store.model import ranges_of


def crash(account: Path, before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is as it was before, the host is started again."""
    shutil.rmtree(account)
    shutil.copytree(before, account)
    monkeypatch.setattr(database, "boot_number", lambda: 7)


def test_a_modseq_that_was_lost_does_not_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, before = tmp_path / "account", tmp_path / "before"
    with closing(AccountFile(account, SETTINGS, create=True)) as file:
        deliver(file, message(1), message(2))
        inbox = file.mailbox("INBOX").id
        shutil.copytree(account, before)
        told = [file.store(inbox, ranges_of([1]), add=[flag]).modseq for flag in ("\\Seen", "a")]
    crash(account, before, monkeypatch)
    with closing(AccountFile(account, SETTINGS)) as file:
        first = file.store(inbox, ranges_of([2]), add=["\\Flagged"]).modseq
        assert first > max(told)
        assert file.changes(inbox, max(told)).changed
        with closing(AccountFile(account, SETTINGS)) as other:  # once, whoever has it open
            assert other.store(inbox, ranges_of([2]), add=["b"]).modseq == first + 1
        assert file.store(inbox, ranges_of([2]), add=["c"]).modseq == first + 2
        assert file.mailbox("INBOX").uidnext == 3
    assert check_account(account, SETTINGS).clean


def test_without_a_crash_of_the_host_nothing_is_skipped(tmp_path: Path) -> None:
    with closing(AccountFile(tmp_path, SETTINGS, create=True)) as file:
        deliver(file, message(1))
        modseq = file.mailbox("INBOX").highestmodseq
    with closing(AccountFile(tmp_path, SETTINGS)) as file:
        inbox = file.mailbox("INBOX").id
        assert file.store(inbox, ranges_of([1]), add=["a"]).modseq == modseq + 1
