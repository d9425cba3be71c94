"""ESEARCH in several mailboxes (RFC 7377)."""

from __future__ import annotations

import re

import pytest
from imap.rig import ImapGateway


def mail(subject: str) -> bytes:
    return f"Subject: {subject}\r\n\r\nHello\r\n".encode()


def told(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """(mailbox, what follows)."""
    found = [re.fullmatch(rb'ESEARCH \(TAG "[^"]+" MAILBOX (\S+) UIDVALIDITY \d+\) UID (.*)', line) for line in lines]
    return [(one[1].strip(b'"'), one[2]) for one in found if one]


@pytest.fixture
def filled(gateway: ImapGateway, account: str) -> str:
    gateway.deliver(account, mail("red"), mail("blue"))
    gateway.deliver(account, mail("red one"), mailbox="Work")
    gateway.deliver(account, mail("blue"), mail("red two"), mailbox="Work/Now")
    gateway.deliver(account, mail("red three"), mailbox="Work/Now/Here")
    gateway.deliver(account, mail("green"), mailbox="Other")
    return account


SOURCES = [
    ('mailboxes "INBOX"', [(b"INBOX", b"ALL 1")]),
    ('mailboxes ("Work" Other "Nowhere")', [(b"Work", b"ALL 1")]),
    ("subtree Work", [(b"Work", b"ALL 1"), (b"Work/Now", b"ALL 2"), (b"Work/Now/Here", b"ALL 1")]),
    ("subtree-one Work", [(b"Work", b"ALL 1"), (b"Work/Now", b"ALL 2")]),
    ("personal", [(b"INBOX", b"ALL 1"), (b"Work", b"ALL 1"), (b"Work/Now", b"ALL 2"), (b"Work/Now/Here", b"ALL 1")]),
    ('mailboxes INBOX subtree "Work/Now" mailboxes INBOX', [(b"INBOX", b"ALL 1"), (b"Work/Now", b"ALL 2"),
                                                            (b"Work/Now/Here", b"ALL 1")]),
    ("subscribed", [(b"Work", b"ALL 1")]),
]  # fmt: skip


def test_sources(gateway: ImapGateway, filled: str) -> None:
    with gateway.login(filled) as imap:
        imap.ok("SUBSCRIBE Work")
        imap.cmd("UNSUBSCRIBE INBOX")
        for sources, wanted in SOURCES:
            assert told(imap.ok(f"ESEARCH IN ({sources}) SUBJECT red")) == wanted, sources
        found = told(imap.ok("ESEARCH IN (subtree Work) RETURN (MIN COUNT) ALL"))
        assert found[1] == (b"Work/Now", b"MIN 1 COUNT 2")
        assert told(imap.ok("ESEARCH IN (subtree Work) UID 2"))[-1] == (b"Work/Now", b"ALL 2")


def test_the_selected_mailbox(gateway: ImapGateway, filled: str) -> None:
    with gateway.login(filled) as imap:
        imap.bad("ESEARCH SUBJECT red")
        imap.bad("ESEARCH IN (selected personal) SUBJECT red")
        imap.ok("SELECT Work/Now")
        assert imap.ok("ESEARCH SUBJECT red")[0].endswith(b') UID ALL 2')
        assert told(imap.ok("ESEARCH IN (selected) RETURN (SAVE ALL) SUBJECT red")) == [(b"Work/Now", b"ALL 2")]
        assert imap.ok("SEARCH $") == [b"SEARCH 2"]
        assert told(imap.ok("ESEARCH IN (selected mailboxes INBOX) SUBJECT red")) == [
            (b"Work/Now", b"ALL 2"),
            (b"INBOX", b"ALL 1"),
        ]


def test_what_makes_no_sense(gateway: ImapGateway, filled: str) -> None:
    with gateway.login(filled) as imap:
        for arguments in ("IN (personal) 1:2", "IN (personal) $", "IN (personal) RETURN (SAVE) ALL", "IN () ALL",
                          "IN (never) ALL", "IN (mailboxes) ALL", "IN (mailboxes INBOX (x 1)) ALL"):  # fmt: skip
            imap.bad(f"ESEARCH {arguments}")


def test_others_mailboxes_need_the_right_to_read(gateway: ImapGateway, filled: str) -> None:
    gateway.add_account("reader@example.test")
    with gateway.login(filled) as owner, gateway.login("reader@example.test") as reader:
        name = f"Other Users/{filled}/Work"
        assert told(reader.ok(f'ESEARCH IN (mailboxes "{name}") ALL')) == []
        owner.ok("SETACL Work reader@example.test l")
        assert told(reader.ok(f'ESEARCH IN (mailboxes "{name}") ALL')) == []
        owner.ok("SETACL Work reader@example.test lr")
        (line,) = reader.ok(f'ESEARCH IN (mailboxes "{name}") ALL')
        assert name.encode() in line and line.endswith(b"UID ALL 1")
