"""SEARCH, SORT and THREAD: Dovecot answers the same about the same mailbox."""

from __future__ import annotations

import random
from collections.abc import Iterator
from email.header import Header

import pytest
from dovecot_imap import Dovecot
from imap.rig import ALICE, ImapClient, ImapGateway
from interop_peers import need

pytestmark = pytest.mark.interop
MESSAGES = 250
WORDS = ("Äpfel", "birnen", "Straße", "привет", "meeting", "plan B", "[list] notes", "(fwd)", "budget")


def mail(random_: random.Random, at: int) -> bytes:
    """Threads, replies that lost their references, subjects with marks, dates in many zones."""
    subject = random_.choice(["", "Re: ", "RE: Fwd: ", "[x] re[2]: ", "Fw: "]) + " ".join(
        random_.choices(WORDS, k=random_.choice([1, 1, 2]))
    )
    known = [f"<m{random_.randrange(at)}@example.org>" for _ in range(random_.randrange(4))] if at else []
    name = Header(random_.choice(("Zoë", "Ann", "bob", "Карл", ""))).encode()
    address = f"u{random_.randrange(9)}@example.org"
    zone = random_.choice(["+0000", "-0700", "+0930", "+1300"])
    fields = [
        f"Subject: {Header(subject).encode()}" if at % 11 else "",
        f"From: {name} <{address}>" if name else f"From: {address}",
        f"To: list{at % 4}@example.net, Someone <s@example.net>",
        f"Cc: c{at % 3}@example.com" if at % 3 else "",
        f"Date: {1 + at % 27} Mar 2021 {random_.randrange(24):02}:{random_.randrange(60):02}:00 {zone}",
        f"Message-ID: <m{at}@example.org>" if at % 13 else "",
        f"References: {' '.join(known)}" if known and at % 2 else "",
        f"In-Reply-To: {known[0]}" if known and not at % 2 else "",
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit",
    ]
    text = " ".join(random_.choices(WORDS, k=random_.randrange(3, 40)))
    return ("\r\n".join(filter(None, fields)) + f"\r\n\r\n{text}\r\n").encode()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ImapClient, Dovecot]]:
    need("/usr/lib/dovecot/imap")
    random_ = random.Random(7)
    messages = [mail(random_, at) for at in range(MESSAGES)]
    directory = tmp_path_factory.mktemp("dovecot")
    dovecot = Dovecot(directory / "peer", messages)
    with ImapGateway(directory / "own") as gateway:
        gateway.add_account(ALICE)
        gateway.deliver(ALICE, *messages)
        with gateway.login() as imap:
            imap.ok("EXAMINE INBOX")
            yield imap, dovecot
    dovecot.close()


@pytest.mark.parametrize(
    "keys",
    ["ALL", "SUBJECT birn", "SUBJECT {7+}\r\nSTRAßE", "SUBJECT {12+}\r\nПРИВЕТ", "BODY {6+}\r\näpfel", "TEXT budget",
     "NOT TEXT {7+}\r\nstraße", "FROM {4+}\r\nzoë", "FROM u3@", "TO list2", "CC c1", "HEADER Message-ID m1",
     'HEADER References ""', "SENTON 5-Mar-2021", "SENTSINCE 9-Mar-2021 SENTBEFORE 12-Mar-2021", "LARGER 600",
     "OR (SUBJECT meeting NOT BODY plan) SENTON 1-Mar-2021", "10:20,*", "UID 240:* SMALLER 700", "UNSEEN"],
)  # fmt: skip
def test_search(both: tuple[ImapClient, Dovecot], keys: str) -> None:
    imap, dovecot = both
    command = f"SEARCH CHARSET UTF-8 {keys}"
    assert imap.ok(command) == dovecot.ok(command)


@pytest.mark.parametrize(
    "criteria",
    ["DATE", "SUBJECT", "FROM", "TO", "CC", "SIZE", "DISPLAYFROM", "DISPLAYTO", "REVERSE SUBJECT DATE",
     "CC REVERSE DATE"],
)  # fmt: skip
def test_sort(both: tuple[ImapClient, Dovecot], criteria: str) -> None:
    imap, dovecot = both
    command = f"UID SORT ({criteria}) UTF-8 ALL"
    assert imap.ok(command) == dovecot.ok(command)


@pytest.mark.parametrize("algorithm", ["REFERENCES", "REFS", "ORDEREDSUBJECT"])
def test_thread(both: tuple[ImapClient, Dovecot], algorithm: str) -> None:
    imap, dovecot = both
    for keys in ("ALL", "NOT SUBJECT birnen", "30:90"):
        command = f"THREAD {algorithm} UTF-8 {keys}"
        assert imap.ok(command) == dovecot.ok(command)
