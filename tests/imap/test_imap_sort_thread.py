"""SORT and THREAD as dialogues (RFC 5256, RFC 5957, RFC 5267 §3)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from imap.rig import ImapClient, ImapGateway


def mail(subject: str, day: int, from_: str, to: str = "Bob <bob@example.net>", more: str = "", size: int = 1) -> bytes:
    date = f"Date: {day} Feb 2021 10:00:00 +0000\r\n" if day else ""
    return f"Subject: {subject}\r\nFrom: {from_}\r\nTo: {to}\r\n{date}{more}\r\n{'x' * size}\r\n".encode()


MAIL = [
    mail("Beta", 5, "Zoe <ann@example.org>", more="Message-ID: <1@x>\r\nCc: carl@x\r\n", size=50),
    mail("re: alpha", 3, "mike@example.org", more="Message-ID: <2@x>\r\nReferences: <0@x>\r\n", size=10),
    mail("[list] Alpha", 4, "=?utf-8?q?=C3=84nne?= <zed@example.org>", "Ann <ann@x>", "Message-ID: <3@x>\r\n", 30),
    mail("Re: beta", 1, "bob@example.org", more="Message-ID: <4@x>\r\nIn-Reply-To: <1@x>\r\n", size=20),
    mail("", 2, "ann@example.org", "al@x", "Message-ID: <5@x>\r\nReferences: <0@x>\r\n", 40),
    mail("Beta", 6, "Carl <carl@example.org>", more="Message-ID: <6@x>\r\nReferences: <1@x> <4@x>\r\n", size=60),
]
ORDERS = [
    ("ARRIVAL", "1 2 3 4 5 6"),
    ("DATE", "4 5 2 3 1 6"),
    ("SIZE", " ".join(str(at) for at in sorted(range(1, 7), key=lambda at: len(MAIL[at - 1])))),
    ("SUBJECT", "5 2 3 1 4 6"),
    ("SUBJECT REVERSE DATE", "5 3 2 6 1 4"),
    ("REVERSE SUBJECT DATE", "4 1 6 2 3 5"),
    ("FROM", "1 5 4 6 2 3"),
    ("TO DATE", "5 3 4 2 1 6"),
    ("CC ARRIVAL", "2 3 4 5 6 1"),
    ("DISPLAYFROM", "5 3 4 6 2 1"),
    ("DISPLAYTO DATE", "5 3 4 2 1 6"),
]
THREADS = [
    ("ORDEREDSUBJECT", "(4 (1)(6))(5)(2 3)"),
    # 2 and 5 answer a message that is not there
    ("REFERENCES", "((5)(2))(3)(1 4 6)"),
    ("REFS", "((5)(2))(3)(1 4 6)"),
]


@pytest.fixture(scope="module")
def imap(gateway: ImapGateway) -> Iterator[ImapClient]:
    gateway.add_account("sort@example.test")
    gateway.deliver("sort@example.test", *MAIL)
    with gateway.login("sort@example.test") as client:
        client.ok("SELECT INBOX")
        yield client


@pytest.mark.parametrize("criteria, wanted", ORDERS)
def test_sort(imap: ImapClient, criteria: str, wanted: str) -> None:
    assert imap.ok(f"SORT ({criteria}) UTF-8 ALL") == [f"SORT {wanted}".encode()]
    assert imap.ok(f"UID SORT ({criteria}) US-ASCII ALL") == [f"SORT {wanted}".encode()]


@pytest.mark.parametrize("algorithm, wanted", THREADS)
def test_thread(imap: ImapClient, algorithm: str, wanted: str) -> None:
    assert imap.ok(f"THREAD {algorithm} UTF-8 ALL") == [f"THREAD {wanted}".encode()]
    assert imap.ok(f"UID THREAD {algorithm} UTF-8 ALL") == [f"THREAD {wanted}".encode()]


def test_only_what_is_searched(imap: ImapClient) -> None:
    assert imap.ok("SORT (DATE) UTF-8 SUBJECT beta") == [b"SORT 4 1 6"]
    assert imap.ok("THREAD REFERENCES UTF-8 NOT 1") == [b"THREAD (4 6)((5)(2))(3)"]
    assert imap.ok("SORT (DATE) UTF-8 SUBJECT never") == [b"SORT"]
    assert imap.ok("THREAD REFS UTF-8 SUBJECT never") == [b"THREAD"]


def test_extended(imap: ImapClient) -> None:
    tag = imap.begin("UID SORT RETURN (MIN MAX COUNT ALL) (DATE) UTF-8 ALL")
    assert imap.finish(tag)[0] == [b'ESEARCH (TAG "' + tag + b'") UID MIN 4 MAX 6 COUNT 6 ALL 4:5,2:3,1,6']
    tag = imap.begin("SORT RETURN (PARTIAL 2:3 SAVE) (DATE) UTF-8 ALL")
    assert imap.finish(tag)[0] == [b'ESEARCH (TAG "' + tag + b'") PARTIAL (2:3 5,2)']
    assert imap.ok("SEARCH $") == [b"SEARCH 2 5"]
    tag = imap.begin("SORT RETURN (ALL RELEVANCY) (RELEVANCY) UTF-8 FUZZY SUBJECT {10+}\r\nbeta alpha")
    assert imap.finish(tag)[0] == [b'ESEARCH (TAG "' + tag + b'") ALL 1:4,6 RELEVANCY (45 45 45 45 45)']


def test_errors(imap: ImapClient) -> None:
    for arguments in ("(NEVER) UTF-8 ALL", "(DATE) UTF-8", "DATE UTF-8 ALL", "(DATE SUBJECT", "() UTF-8 ALL"):
        imap.bad(f"SORT {arguments}")
    imap.bad("THREAD NEVER UTF-8 ALL")
    imap.bad("THREAD REFS UTF-8")
    assert imap.no("SORT (DATE) X-NEVER ALL").startswith(b"NO [BADCHARSET")
