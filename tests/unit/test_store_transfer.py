"""Maildir and mbox, in and out; and the commands that do it."""

from __future__ import annotations

import mailbox
import os
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner
from test_store_account import SETTINGS, deliver, message, octets, records

from gateway.cli import main
from gateway.store.account import AccountFile
from gateway.store.maildir import (
    export_maildir,
    from_utf7,
    import_maildir,
    maildir_folders,
    to_utf7,
)
from gateway.store.mbox import export_mbox, import_mbox
from gateway.store.model import ALL_UIDS
from gateway.store.shares import Shares

CONFIG = """
hostname = "mx.example.test"
state_dir = "state"
[[listen]]
service = "lmtp"
address = "127.0.0.1:2424"
[[route]]
domains = ["example.test"]
next_hop = ["store:"]
"""


@pytest.fixture
def file(tmp_path: Path) -> AccountFile:
    return AccountFile(tmp_path / "account", SETTINGS, create=True)


def make_maildir(root: Path) -> None:
    for folder in ("", ".Sent.2024", ".Entw&APw-rfe"):
        for part in ("cur", "new", "tmp"):
            (root / folder / part).mkdir(parents=True)
    one = root / "cur" / "1700000000.M1P1.host,S=17:2,FSa"
    one.write_bytes(b"Subject: a\n\nhi\n")
    os.utime(one, (1_700_000_000, 1_700_000_000))
    (root / "new" / "1700000001.M2P1.host").write_bytes(b"Subject: b\r\n\r\nhi\r\n")
    (root / ".Sent.2024" / "cur" / "x:2,RT").write_bytes(b"Subject: c\n\n")
    (root / "dovecot-uidlist").write_text(
        "3 V1600000000 N12 G0123\n7 W20 :1700000000.M1P1.host,S=17:2,S\n9 :1700000001.M2P1.host\n"
    )
    (root / "dovecot-keywords").write_text("0 $Label1\n")


def test_maildir_keeps_uids_flags_keywords_and_dates(file: AccountFile, tmp_path: Path) -> None:
    make_maildir(tmp_path / "maildir")
    folders = {folder.name: folder for folder in maildir_folders(tmp_path / "maildir")}
    assert list(folders) == ["INBOX", "Entwürfe", "Sent/2024"]
    assert import_maildir(file, folders["INBOX"], "INBOX").added == 2
    box = file.mailbox("INBOX")
    assert (box.uidvalidity, box.uidnext) == (1_600_000_000, 12)
    first, second = records(file, box)
    assert (first.uid, second.uid) == (7, 9)
    assert sorted(box.names(first.flags)) == ["$Label1", "\\Flagged", "\\Seen"]
    assert first.internal_date == 1_700_000_000
    assert octets(file, first) == b"Subject: a\r\n\r\nhi\r\n"
    again = import_maildir(file, folders["INBOX"], "INBOX")
    assert (again.added, again.known) == (0, 2)
    import_maildir(file, folders["Sent/2024"], "Sent/2024")
    sent = file.mailbox("Sent/2024")
    (third,) = records(file, sent)
    assert sorted(sent.names(third.flags)) == ["\\Answered", "\\Deleted"]


def test_an_interrupted_import_goes_on(file: AccountFile, tmp_path: Path) -> None:
    make_maildir(tmp_path / "maildir")
    (folder, *_) = maildir_folders(tmp_path / "maildir")
    hidden = folder.path / "new" / "1700000001.M2P1.host"
    hidden.rename(tmp_path / "later")
    import_maildir(file, folder, "INBOX")
    (tmp_path / "later").rename(hidden)
    deliver(file, message(1))
    result = import_maildir(file, folder, "INBOX")
    assert (result.added, result.known) == (1, 1)
    assert [record.uid for record in records(file, file.mailbox("INBOX"))] == [7, 12, 13]


def test_maildir_out_and_in_again_is_the_same(file: AccountFile, tmp_path: Path) -> None:
    deliver(file, message(1), message(2), b"Subject: x\r\n\r\nno end", flags=["\\Seen", "work"])
    deliver(file, message(3), flags=["\\Draft", "$Forwarded"], internal_date=86_400)
    box = file.mailbox("INBOX")
    assert export_maildir(file, box, tmp_path / "out") == 4
    assert export_maildir(file, box, tmp_path / "out") == 0
    read_by_python = mailbox.Maildir(tmp_path / "out", create=False)
    assert sorted(one.get_flags() for one in read_by_python) == ["DPb", "Sa", "Sa", "Sa"]
    other = AccountFile(tmp_path / "other", SETTINGS, create=True)
    (folder,) = maildir_folders(tmp_path / "out")
    import_maildir(other, folder, "INBOX")
    copy = other.mailbox("INBOX")
    assert (copy.uidvalidity, copy.uidnext) == (box.uidvalidity, box.uidnext)
    for ours, theirs in zip(records(file, box), records(other, copy), strict=True):
        assert (ours.uid, ours.internal_date) == (theirs.uid, theirs.internal_date)
        assert sorted(box.names(ours.flags)) == sorted(copy.names(theirs.flags))
        assert octets(file, ours) == octets(other, theirs)


def test_names_in_modified_utf7() -> None:
    for name in ("INBOX", "Entwürfe", "a&b", "台北", "a&-b", "𝄞", ""):
        assert from_utf7(to_utf7(name)) == name
        assert to_utf7(name).isascii()
    assert (
        to_utf7("~peter/mail/台北/日本語") == "~peter/mail/&U,BTFw-/&ZeVnLIqe-"
    )  # RFC 3501 §5.1.3
    assert from_utf7("&broken") == "&broken"


def test_mbox_in(file: AccountFile, tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    path.write_bytes(
        b"From a@b Mon Jan  1 10:00:00 2024\nSubject: 1\nStatus: RO\nX-Status: AF\nX-Keywords: work\n\n"
        b"From here on\n>From quoted\n>>From twice\n\nFrom c@d Tue Jan  2 10:00:00 +0100 2024\nSubject: 2\n\nx\n"
    )
    assert import_mbox(file, path, "Old").added == 2
    assert import_mbox(file, path, "Old").known == 2
    box = file.mailbox("Old")
    first, second = records(file, box)
    assert sorted(box.names(first.flags)) == ["\\Answered", "\\Flagged", "\\Seen", "work"]
    assert first.internal_date == 1_704_103_200
    assert octets(file, first) == (
        b"Subject: 1\r\n\r\nFrom here on\r\nFrom quoted\r\n>From twice\r\n"
    )
    assert octets(file, second) == b"Subject: 2\r\n\r\nx\r\n"
    (tmp_path / "not").write_bytes(b"Subject: x\n")
    with pytest.raises(ValueError, match="no mbox"):
        import_mbox(file, tmp_path / "not", "Old")


def test_mbox_out_and_in_again_is_the_same(file: AccountFile, tmp_path: Path) -> None:
    contents = [message(1), b"Subject: f\r\n\r\nFrom me\r\n>From you\r\n\r\n", message(1)]
    for content in contents:
        deliver(file, content, flags=["\\Flagged", "k"], internal_date=86_400)
    path = tmp_path / "out.mbox"
    assert export_mbox(file, file.mailbox("INBOX"), path) == 3
    assert len(mailbox.mbox(path)) == 3
    assert import_mbox(file, path, "Copy").added == 3
    copy = file.mailbox("Copy")
    assert [octets(file, record) for record in records(file, copy)] == contents
    assert {record.internal_date for record in records(file, copy)} == {86_400}
    assert copy.names(records(file, copy)[0].flags) == ["\\Flagged", "k"]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["mailbox", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gw.toml").write_text(CONFIG)
    monkeypatch.setenv("GATEWAY_CONFIG", "gw.toml")
    make_maildir(tmp_path / "maildir")
    assert "INBOX: 2 added" in run("import", "Alice@Example.Test", "maildir")
    assert [one["account"] for one in orjson.loads(run("list", "--json"))] == ["alice@example.test"]
    listed = {one["name"]: one for one in orjson.loads(run("list", "alice@example.test", "--json"))}
    assert (listed["INBOX"]["messages"], listed["Sent/2024"]["messages"]) == (2, 1)
    assert "Sent/2024" in run("list", "alice@example.test")
    assert orjson.loads(run("stat", "alice@example.test", "--json"))["uidnext"] == 12
    assert "clean" in run("check")
    assert run("export", "alice@example.test", "out", "--json")
    assert "name it with --mailbox" in run(
        "export", "alice@example.test", "x", "--format", "mbox", code=2
    )
    run("export", "alice@example.test", "x", "--format", "mbox", "--mailbox", "INBOX")
    assert "say which" in run("expunge", "alice@example.test", "INBOX", code=2)
    assert "INBOX: 1 expunged" in run("expunge", "alice@example.test", "INBOX", "--seen")
    assert "INBOX: 1 expunged" in run("expunge", "alice@example.test", "INBOX", "--older-than", "0")
    assert "no mailboxes" in run("list", "bob@example.test", code=1)
    assert "there is no mailbox" in run("stat", "alice@example.test", "None", code=1)
    assert orjson.loads(run("check", "--json", "alice@example.test"))[0]["clean"]
    account = AccountFile(next(tmp_path.glob("state/store/*/alice@example.test")), SETTINGS)
    account.database.execute("UPDATE mailbox SET messages=9 WHERE name='INBOX'")
    account.store(account.mailbox("INBOX").id, ALL_UIDS, add=["\\Seen"])
    account.close()
    assert "found: INBOX: counters" in run("check", "--no-repair", code=1)
    assert "repaired: INBOX: counters" in run("check")


def test_sharing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gw.toml").write_text(CONFIG)
    monkeypatch.setenv("GATEWAY_CONFIG", "gw.toml")
    make_maildir(tmp_path / "maildir")
    run("import", "alice@example.test", "maildir")
    bob, carol = "bob@example.test", "carol@example.test"
    assert "lrw" in run("acl", "set", "alice@example.test", "INBOX", "Bob@Example.Test", "lrw")
    run("acl", "set", "alice@example.test", "INBOX", bob, "s", "--add")
    run("acl", "set", "alice@example.test", "INBOX", bob, "w", "--remove")
    run("acl", "set", "alice@example.test", "Sent/2024", "anyone", "l")
    run("acl", "set", "alice@example.test", "Sent/2024", carol, "l", "--deny")
    listed = orjson.loads(run("acl", "list", "alice@example.test", "--json"))
    assert [tuple(one.values()) for one in listed] == [
        ("INBOX", bob, "lrs"),
        ("Sent/2024", f"-{carol}", "l"),
        ("Sent/2024", "anyone", "l"),
    ]
    assert carol not in run("acl", "list", "alice@example.test", "INBOX")
    shares = Shares(tmp_path / "state/store")
    assert shares.owners(bob) == shares.owners(carol) == ["alice@example.test"]
    shares.replace("alice@example.test", [])
    run("check")  # puts right what a backup may have left behind
    assert shares.owners(bob) == ["alice@example.test"]
    run("acl", "set", "alice@example.test", "INBOX", bob, "")
    run("acl", "set", "alice@example.test", "Sent/2024", "anyone", "")
    assert shares.owners(bob) == []
    shares.close()
    assert "no right" in run("acl", "set", "alice@example.test", "INBOX", bob, "lz", code=2)
    assert "owner" in run(
        "acl", "set", "alice@example.test", "INBOX", "alice@example.test", "l", code=2
    )
    assert "no mailbox" in run("acl", "set", "alice@example.test", "None", bob, "l", code=1)
