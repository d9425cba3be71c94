"""Damage of every kind, and what the check makes of it."""

from __future__ import annotations

import os
import random
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from test_store_account import SETTINGS, deliver, message, octets, records

from gateway.store import database
from gateway.store.account import AccountFile
from gateway.store.check import RECOVERED, check_account
from gateway.store.errors import NoSuchAccount, StoreBusy, StoreDamaged
from gateway.store.model import FLAG_CHANGE, SEEN, ranges_of

MESSAGES = 600


@pytest.fixture
def account(tmp_path: Path) -> Path:
    directory = tmp_path / "account"
    file = AccountFile(directory, SETTINGS, create=True)
    for start in range(0, MESSAGES, 100):
        deliver(file, *(message(number, 300) for number in range(start, start + 100)))
    inbox, archive = file.mailbox("INBOX"), file.mailbox("Archive")
    file.copy(inbox.id, archive.id, ranges_of(range(1, 50)))
    file.expunge(inbox.id, ranges_of(range(3, MESSAGES, 3)), deleted_only=False)
    file.close()
    return directory


def sql(directory: Path, *statements: str) -> None:
    connection = apsw.Connection(str(directory / "store.db"))
    for statement in statements:
        connection.execute(statement)
    connection.close()


def whole(directory: Path) -> dict[bytes, str]:
    """Every message that can be read, by its content, and the mailbox it was last seen in."""
    found = {}
    file = AccountFile(directory, SETTINGS)
    for box in file.mailboxes():
        for record in records(file, box):
            found[octets(file, record)] = box.name
    file.close()
    return found


def test_a_sound_account_is_clean(account: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_account(
        account, SETTINGS, progress=lambda done, total: seen.append((done, total))
    )
    assert report.clean
    assert report.messages == MESSAGES - MESSAGES // 3 + 1 + 49
    assert seen[-1][0] == seen[-1][1] > 0
    with pytest.raises(NoSuchAccount):
        check_account(account.parent / "nobody", SETTINGS)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE mailbox SET messages=5, unseen=1, octets=17 WHERE name='INBOX'",
        "UPDATE mailbox SET uidnext=3, highestmodseq=1 WHERE name='INBOX'",
        "UPDATE mailbox SET uidnext=1, highestmodseq=0, uidvalidity=0 WHERE id=0",
        "UPDATE chunk SET head=zeroblob(32)",
        "DELETE FROM shared",
        "UPDATE shared SET copies=7",
        "INSERT INTO chunk VALUES(99 << 32 | 1, zeroblob(32), zeroblob(48))",
    ],
)
def test_counters_and_references_are_put_right(account: Path, statement: str) -> None:
    before = whole(account)
    sql(account, statement)
    assert not check_account(account, SETTINGS, repair=False).clean
    assert not check_account(account, SETTINGS).clean
    assert check_account(account, SETTINGS).clean
    assert whole(account) == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE mailbox SET unseen=7, deleted=7",
        "UPDATE mailbox SET highestmodseq=1",
        "UPDATE chunk SET head=zeroblob(32)",
    ],
)
def test_flags_that_are_in_the_log_alone_stay(
    account: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    monkeypatch.setattr(database, "BUSY_COMMITS", 1)
    with closing(AccountFile(account, SETTINGS)) as file:
        inbox = deliver(file, message(1))[0].mailbox_id
        modseq = file.mailbox("INBOX").highestmodseq
        assert file.log_flags(inbox, modseq, FLAG_CHANGE.pack(1, 4, 0, SEEN, modseq + 1), -3, 0)
        before = records(file, file.mailbox("INBOX"))
        assert [record.uid for record in before if record.flags & SEEN] == [1, 2, 4]
    assert check_account(account, SETTINGS).clean
    sql(account, statement)
    assert not check_account(account, SETTINGS).clean
    assert check_account(account, SETTINGS).clean
    with closing(AccountFile(account, SETTINGS)) as file:
        assert records(file, file.mailbox("INBOX")) == before
        assert file.mailbox("INBOX").highestmodseq > modseq


def test_a_lost_index_brings_its_messages_back(account: Path) -> None:
    before = whole(account)
    sql(account, "DELETE FROM chunk WHERE id=(SELECT min(id) FROM chunk)")
    report = check_account(account, SETTINGS)
    assert any(RECOVERED in finding.what for finding in report.findings)
    after = whole(account)
    assert set(after) == set(before)
    assert RECOVERED in after.values()
    assert check_account(account, SETTINGS).clean


def test_a_lost_message_is_named_and_leaves_the_mailbox(account: Path) -> None:
    sql(account, "DELETE FROM message WHERE id=100")
    report = check_account(account, SETTINGS)
    assert [finding.what for finding in report.findings if finding.lost] == [
        "INBOX UID 100 is lost: its octets are gone"
    ]
    assert check_account(account, SETTINGS).clean
    assert len(whole(account)) == MESSAGES - MESSAGES // 3 + 1 - 1 + 16  # 16 are in Archive alone


def test_altered_octets_are_never_handed_out(account: Path) -> None:
    sql(account, "UPDATE message SET body=CAST('other' AS BLOB) WHERE id=100")
    file = AccountFile(account, SETTINGS)
    (found,) = file.read([100])
    assert isinstance(found, StoreDamaged)
    file.close()
    report = check_account(account, SETTINGS)
    assert "kept in damaged/" in report.findings[0].what
    (kept,) = (account / "damaged").iterdir()
    assert kept.read_bytes().endswith(b"other")


def large_files(account: Path) -> None:
    """One file of long ago and one that is new; no message has them."""
    (account / "large").mkdir()
    for name, age in (("old", 3600), ("new", 0)):
        path = account / "large" / name
        path.write_bytes(b"x")
        at = path.stat().st_mtime - age
        os.utime(path, (at, at))


def test_what_a_crash_left_of_an_upload_is_removed(account: Path) -> None:
    large_files(account)
    assert check_account(account, SETTINGS).clean
    assert not list((account / "large").iterdir())


def test_an_upload_may_go_on_while_the_account_is_checked(account: Path) -> None:
    large_files(account)
    with closing(AccountFile(account, SETTINGS)):
        assert check_account(account, SETTINGS).clean
    assert [path.name for path in (account / "large").iterdir()] == ["new"]


def test_bodies_of_messages_that_lost_their_rows_are_kept(account: Path) -> None:
    large_files(account)
    sql(account, "DELETE FROM message WHERE id=100")
    report = check_account(account, SETTINGS)
    assert sum("kept in damaged/" in finding.what for finding in report.findings) == 2
    assert {path.name for path in (account / "damaged").iterdir()} == {"old", "new"}
    assert check_account(account, SETTINGS).clean


@pytest.mark.parametrize("seed", range(8))
def test_damaged_pages_cost_what_was_in_them(account: Path, seed: int) -> None:
    """Whatever page is overwritten: the rest is there afterwards, unaltered, and the second check is clean."""
    before = whole(account)
    chooser = random.Random(seed)
    path = account / "store.db"
    page = 0 if seed == 0 else chooser.randrange(path.stat().st_size // 4096)
    with open(path, "r+b") as file:
        file.seek(page * 4096)
        file.write(chooser.randbytes(4096))
    check_account(account, SETTINGS)
    assert check_account(account, SETTINGS).clean
    after = whole(account)
    assert set(after) <= set(before)
    if page > 4:  # neither SQLite's own pages nor the table of mailboxes
        assert len(after) >= len(before) - 10
    file = AccountFile(account, SETTINGS)
    deliver(file, message(9999))
    file.close()


def test_a_damaged_page_concerns_its_messages_only(account: Path) -> None:
    """The others are read and the account goes on; nobody has repaired anything yet."""
    with open(account / "store.db", "r+b") as damaged:
        damaged.seek(100 * 4096)
        damaged.write(os.urandom(4096))
    file = AccountFile(account, SETTINGS)
    keys = [record.message for record in records(file, file.mailbox("INBOX"))]
    found = file.read(keys)
    lost = sum(isinstance(one, StoreDamaged) for one in found)
    assert 0 < lost < 20
    assert sum(isinstance(one, StoreDamaged) for one in file.facts(keys)) <= lost
    deliver(file, message(1000))
    file.close()


def test_a_file_in_use_is_not_replaced(account: Path) -> None:
    file = AccountFile(account, SETTINGS)
    with open(account / "store.db", "r+b") as damaged:
        damaged.seek(40 * 4096)
        damaged.write(os.urandom(4096 * 10))
    with pytest.raises(StoreBusy, match="stop the gateway"):
        check_account(account, SETTINGS)
    file.close()
    assert not check_account(account, SETTINGS).clean
