"""An account moves between Dovecot and us, message by message over IMAP, and on: nothing is lost on the way."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from dovecot_imap import CONFIG, OWNER
from imap_house import PASSWORD, ImapHouse, message
from imapclient import IMAPClient
from interop_peers import need
from reachable import let_others_in

Account = dict[str, dict[bytes, tuple[frozenset[bytes], datetime]]]
"""{mailbox: {octets of a message: (flags and keywords, internal date)}}"""

ZONE = timezone(timedelta(hours=5, minutes=30))
MAIL = {
    "INBOX": [
        (message(1), [b"\\Seen"], datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)),
        (message(2), [b"\\Flagged", b"\\Answered", b"$Forwarded"], datetime(2026, 2, 28, 23, 59, 59, tzinfo=ZONE)),
        (message(3), [b"\\Draft", b"\\Deleted", b"Later", b"NonJunk"], datetime(1999, 12, 31, 1, 1, 1, tzinfo=ZONE)),
    ],
    "Archiv/Zwölf & mehr": [
        (b"Subject: =?utf-8?q?=C3=BC?=\r\n\r\n8-bit: \xc3\xbc\r\n.\r\n", [], datetime(2020, 6, 1, tzinfo=ZONE)),
        (b"\r\nno header at all\r\n", [b"\\Seen"], datetime(2021, 6, 1, tzinfo=ZONE)),
        (message(6, 300_000), [b"\\Flagged"], datetime(2022, 6, 1, tzinfo=ZONE)),
    ],
    "空": [],
}


class Dovecot:
    """Dovecot's imap, logged in, on a connection of its own for each client."""

    def __init__(self, directory: Path) -> None:
        (directory / "maildir").mkdir(parents=True)
        self.config = directory / "dovecot.conf"
        text = CONFIG.format(directory, OWNER).replace("inbox = yes", "inbox = yes\n  separator = /")
        self.config.write_text(text)
        self.directory = directory
        for path in (directory, *directory.rglob("*")):
            os.chown(path, OWNER.pw_uid, OWNER.pw_gid)
        let_others_in(directory)

    def connect(self) -> IMAPClient:
        listening = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=self._serve, args=(listening,))
        thread.start()
        client = IMAPClient("127.0.0.1", listening.getsockname()[1], ssl=False, timeout=60)
        thread.join()
        client.normalise_times = False
        return client

    def _serve(self, listening: socket.socket) -> None:
        """One connection is Dovecot's standard input and output; it wants pipes, no socket."""
        with listening, listening.accept()[0] as connection:
            subprocess.Popen(
                ["sh", "-c", f"cat | {need('doveadm')} -c {self.config} exec imap | cat"],
                stdin=connection,
                stdout=connection,
                stderr=subprocess.DEVNULL,
                env={"USER": "tester", "HOME": str(self.directory), "PATH": os.environ["PATH"]},
            )


def ours(house: ImapHouse, account: str) -> IMAPClient:
    client = IMAPClient("127.0.0.1", house.tls_port, ssl=True, ssl_context=_trusting(), timeout=60)
    client.login(account, PASSWORD)
    client.normalise_times = False
    return client


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def fill(client: IMAPClient) -> None:
    for folder, messages in MAIL.items():
        if folder != "INBOX":
            client.create_folder(folder)
        for octets, flags, date in messages:
            client.append(folder, octets, flags, date)


def copy(source: IMAPClient, target: IMAPClient) -> None:
    """As imapsync does: list, create what is missing, fetch, append with flags and date."""
    there = {name for _, _, name in target.list_folders()}
    for flags, _, folder in source.list_folders():
        if b"\\Noselect" in flags or b"\\NonExistent" in flags:
            continue
        if folder not in there:
            target.create_folder(folder)
        source.select_folder(folder, readonly=True)
        uids = source.search()
        for uid in uids:
            found = source.fetch(uid, [b"FLAGS", b"INTERNALDATE", b"BODY.PEEK[]"])[uid]
            flags = [flag for flag in found[b"FLAGS"] if flag != b"\\Recent"]
            target.append(folder, found[b"BODY[]"], flags, found[b"INTERNALDATE"])


def everything(client: IMAPClient) -> Account:
    found: Account = {}
    for flags, _, folder in client.list_folders():
        if b"\\Noselect" in flags or b"\\NonExistent" in flags:
            continue
        client.select_folder(folder, readonly=True)
        uids = client.search()
        data = client.fetch(uids, [b"FLAGS", b"INTERNALDATE", b"BODY.PEEK[]", b"RFC822.SIZE"]) if uids else {}
        assert all(one[b"RFC822.SIZE"] == len(one[b"BODY[]"]) for one in data.values())
        found[folder] = {
            one[b"BODY[]"]: (frozenset(one[b"FLAGS"]) - {b"\\Recent"}, one[b"INTERNALDATE"]) for one in data.values()
        }
    return {folder: mail for folder, mail in found.items() if mail or folder in MAIL}


EXPECTED: Account = {
    folder: {octets: (frozenset(flags), date) for octets, flags, date in messages}
    for folder, messages in MAIL.items()
}


@pytest.mark.parametrize("first", ["Dovecot", "here"])
def test_from_one_to_the_other_and_back(house: ImapHouse, tmp_path: Path, first: str) -> None:
    before, after = Dovecot(tmp_path / "before"), Dovecot(tmp_path / "after")
    account = house.add_account()
    other = house.add_account()
    begin, middle, end = (
        (before.connect(), ours(house, account), after.connect())
        if first == "Dovecot"
        else (ours(house, other), before.connect(), ours(house, account))
    )
    fill(begin)
    assert everything(begin) == EXPECTED
    copy(begin, middle)
    assert everything(middle) == EXPECTED
    copy(middle, end)
    assert everything(end) == EXPECTED
    for client in (begin, middle, end):
        client.logout()
