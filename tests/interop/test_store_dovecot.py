"""A mailbox of Dovecot's Maildir comes in, goes out, and Dovecot finds it unchanged."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest
from reachable import let_others_in

from gateway.config_store import StoreConfig
from gateway.store.account import AccountFile
from gateway.store.maildir import export_maildir, import_maildir, maildir_folders

DOVEADM = shutil.which("doveadm")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(DOVEADM is None, reason="apt-get install dovecot-core"),
]

MAIL = (
    b"From: a@example.org\r\nSubject: plain\r\nDate: Mon, 1 Jan 2024 10:00:00 +0000\r\n\r\none\r\n",
    "From: ü@example.org\r\nSubject: utf-8 ü\r\n\r\n.\r\nFrom me\r\n".encode(),
    b"Subject: mixed\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\na\r\n--x--\r\n",
)
# Dovecot touches no mail as root.
OWNER = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
FIELDS = "uid flags date.received size.virtual text"


def give(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        os.chown(path, OWNER.pw_uid, OWNER.pw_gid)


class Dovecot:
    """doveadm on one Maildir, without a running server."""

    def __init__(self, directory: Path, maildir: Path) -> None:
        directory.mkdir(parents=True)
        maildir.mkdir(exist_ok=True)
        give(directory)
        give(maildir)
        self.config = directory / "dovecot.conf"
        self.config.write_text(
            f"base_dir = {directory}/run\nmail_location = maildir:{maildir}\nlog_path = {directory}/log\n"
            f"mail_uid = {OWNER.pw_uid}\nmail_gid = {OWNER.pw_gid}\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n"
            "ssl = no\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\n"
        )
        self.environment = {"USER": "tester", "HOME": str(directory), "PATH": os.environ["PATH"]}

    def __call__(self, *arguments: str, stdin: bytes = b"") -> bytes:
        assert DOVEADM is not None
        done = subprocess.run(
            [DOVEADM, "-c", str(self.config), *arguments],
            input=stdin,
            env=self.environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.replace(b"\\Recent ", b"").replace(b"\\Recent", b"")  # nobody looked yet


def test_from_dovecot_and_back(tmp_path: Path) -> None:
    let_others_in(tmp_path)  # OWNER
    before = Dovecot(tmp_path / "before", tmp_path / "maildir")
    before("mailbox", "create", "Entwürfe/Zwei")
    for content in MAIL:
        before("save", "-m", "INBOX", stdin=content)
    before("save", "-m", "Entwürfe/Zwei", stdin=MAIL[0])
    before("flags", "add", "\\Seen \\Flagged $Work", "mailbox", "INBOX", "uid", "2")
    before("expunge", "mailbox", "INBOX", "uid", "1")
    inbox = before("fetch", FIELDS, "mailbox", "INBOX")
    nested = before("fetch", FIELDS, "mailbox", "Entwürfe/Zwei")

    account = AccountFile(tmp_path / "account", StoreConfig(initial_mailboxes=()), create=True)
    for folder in maildir_folders(tmp_path / "maildir"):
        import_maildir(account, folder, folder.name)
    assert account.mailbox("INBOX").messages == 2
    for box in account.mailboxes():
        if box.selectable:
            export_maildir(account, box, tmp_path / "out")
    account.close()
    give(tmp_path / "out")

    after = Dovecot(tmp_path / "after", tmp_path / "out")
    assert after("fetch", FIELDS, "mailbox", "INBOX") == inbox
    assert after("fetch", FIELDS, "mailbox", "Entwürfe/Zwei") == nested
    status = [
        d("mailbox", "status", "uidvalidity uidnext messages", "INBOX") for d in (before, after)
    ]
    assert status[0] == status[1]
