"""SEARCH as a dialogue: what each key finds, what RETURN tells, "$", charsets; RFC 9051 §6.4.4."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from imap.rig import ImapClient, ImapGateway


def mail(subject: str, date: str, text: str = "Hello", more: str = "") -> bytes:
    lines = ["From: Ann <ann@example.org>", "To: Bob <bob@example.net>", f"Subject: {subject}", f"Date: {date}"]
    return "\r\n".join([*lines, *filter(None, [more]), "", text, ""]).encode()


MAIL = [
    mail("Apples", "Mon, 1 Feb 2021 23:30:00 -0500", "red and GREEN", "Message-ID: <1@x>"),  # 2 Feb in UTC
    mail("Pears", "Tue, 2 Feb 2021 12:00:00 +0000", "yellow", "X-Kind: fruit\r\nReferences: <1@x>"),
    mail("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Wed, 3 Feb 2021 00:30:00 +0200", "viele " * 100, "Cc: carl@example.com"),
    mail("re: apples", "nonsense", "green again", "Bcc: Dora <dora@example.org>"),
]
KEYS = [
    ("ALL", [1, 2, 3, 4]),
    ("2:3", [2, 3]),
    ("*", [4]),
    ("3:9", [3, 4]),
    ("9", []),
    ("UID 1,3:9", [1, 3, 4]),
    ("SEEN", [1, 3]),
    ("UNSEEN", [2, 4]),
    ("FLAGGED", [3]),
    ("UNFLAGGED UNSEEN", [2, 4]),
    ("KEYWORD $Work", [2]),
    ("UNKEYWORD $work", [1, 3, 4]),
    ("KEYWORD $Never", []),
    ("UNKEYWORD $Never", [1, 2, 3, 4]),
    ("ANSWERED", []),
    ("UNDELETED UNDRAFT UNANSWERED", [1, 2, 3, 4]),
    ("SUBJECT apple", [1, 4]),
    ("SUBJECT \"r\"", [2, 3, 4]),
    ("FROM ann@EXAMPLE", [1, 2, 3, 4]),
    ("TO bob", [1, 2, 3, 4]),
    ("CC carl", [3]),
    ("BCC dora", [4]),
    ("HEADER X-Kind \"\"", [2]),
    ("HEADER x-kind FRUI", [2]),
    ("HEADER Subject \"\"", [1, 2, 3, 4]),
    ("HEADER Text a", []),
    ("BODY green", [1, 4]),
    ("TEXT apples", [1, 4]),
    ("TEXT yellow", [2]),
    ("NOT TEXT e", []),
    ("OR SUBJECT pears BODY viele", [2, 3]),
    ("OR (SEEN FLAGGED) (SUBJECT apples NOT SEEN)", [3, 4]),
    ("NOT (SEEN FLAGGED)", [1, 2, 4]),
    ("NOT NOT SEEN", [1, 3]),
    ("LARGER 500", [3]),
    ("SMALLER 500 SEEN", [1]),
    ("SENTON 1-Feb-2021", [1]),
    ("SENTON \"2-Feb-2021\"", [2]),
    ("SENTSINCE 2-Feb-2021", [2, 3]),
    ("SENTBEFORE 2-Feb-2021", [1]),
    ("NOT SENTSINCE 1-Jan-2000", [4]),
    ("SINCE 1-Jan-2020", [1, 2, 3, 4]),
    ("BEFORE 1-Jan-2020", []),
    ("SAVEDSINCE 1-Jan-2020 SAVEDATESUPPORTED", [1, 2, 3, 4]),
    ("SAVEDBEFORE 1-Jan-2020", []),
    ("YOUNGER 7200", [1, 2, 3, 4]),
    ("OLDER 7200", []),
    ("SEEN 1:2", [1]),
    ("RECENT", [1, 2, 3, 4]),
    ("NEW", [2, 4]),
    ("OLD", []),
    ("CHARSET utf-8 SUBJECT {6+}\r\nGR\u00dcSS", [3]),
    ("SUBJECT {6+}\r\ngr\u00fcss", [3]),
    ("FUZZY SUBJECT \"apples pears\"", [1, 2, 4]),
]


@pytest.fixture(scope="module")
def imap(gateway: ImapGateway) -> Iterator[ImapClient]:
    gateway.add_account("search@example.test")
    gateway.deliver("search@example.test", *MAIL)
    with gateway.login("search@example.test") as client:
        client.ok("SELECT INBOX")
        client.ok("STORE 1,3 +FLAGS.SILENT (\\Seen)")
        client.ok("STORE 3 +FLAGS.SILENT (\\Flagged)")
        client.ok("STORE 2 +FLAGS.SILENT ($Work)")
        yield client


@pytest.mark.parametrize("keys, wanted", KEYS)
def test_each_key(imap: ImapClient, keys: str, wanted: list[int]) -> None:
    line = b" ".join([b"SEARCH", *(b"%d" % number for number in wanted)])
    assert imap.ok(f"SEARCH {keys}") == [line]
    assert imap.ok(f"UID SEARCH {keys}") == [line]


def test_other_charsets(imap: ImapClient) -> None:
    text = "Grüße".encode("iso-8859-1")
    assert imap.ok(b"SEARCH CHARSET ISO-8859-1 SUBJECT {5+}\r\n" + text) == [b"SEARCH 3"]
    assert imap.no("SEARCH CHARSET X-NEVER TEXT x").startswith(b"NO [BADCHARSET (US-ASCII UTF-8)]")
    assert imap.no("SEARCH CHARSET base64 TEXT x").startswith(b"NO [BADCHARSET")
    assert imap.no(b"SEARCH TEXT {1+}\r\n\xff").startswith(b"NO [BADCHARSET")


@pytest.mark.parametrize(
    "keys",
    ["", "FOO", "NOT", "OR SEEN", "(SEEN", "SEEN)", "SEEN  SEEN", "LARGER x", "SENTON 32-Feb-2021", "KEYWORD",
     "SUBJECT", "0", "RETURN (NEVER) ALL", "RETURN (PARTIAL 1:2 ALL) ALL", "RETURN (MIN)", "OLDER 0",
     "MODSEQ", 'MODSEQ "/flags/\\\\Seen" never 1', "UID SEEN", "NOT " * 300 + "SEEN", "SEEN " * 1100 + "SEEN"],
)  # fmt: skip
def test_what_is_no_search(imap: ImapClient, gateway: ImapGateway, keys: str) -> None:
    with gateway.login("search@example.test") as other:  # so many errors are too many for one
        other.ok("EXAMINE INBOX")
        assert other.bad(f"SEARCH {keys}".strip())
        assert other.ok("SEARCH 1") == [b"SEARCH 1"]


RETURNS = [
    ("() SUBJECT e", b" ALL 1:4"),
    ("(MIN MAX) 2:4", b" MIN 2 MAX 4"),
    ("(COUNT) SEEN", b" COUNT 2"),
    ("(MIN MAX COUNT ALL) SEEN", b" MIN 1 MAX 3 COUNT 2 ALL 1,3"),
    ("(MIN COUNT ALL) DELETED", b" COUNT 0"),
    ("(PARTIAL 1:2) ALL", b" PARTIAL (1:2 1:2)"),
    ("(PARTIAL 4:2) ALL", b" PARTIAL (2:4 2:4)"),
    ("(PARTIAL -1:-3 COUNT) ALL", b" COUNT 4 PARTIAL (-1:-3 2:4)"),
    ("(PARTIAL 5:9) ALL", b" PARTIAL (5:9 NIL)"),
    ("(PARTIAL -3:-9) ALL", b" PARTIAL (-3:-9 1:2)"),
    ("(ALL RELEVANCY) FUZZY SUBJECT \"pears apples\"", b" ALL 1:2,4 RELEVANCY (45 45 45)"),
    ("(ALL RELEVANCY) FUZZY BODY green", b" ALL 1,4 RELEVANCY (100 100)"),
    ("(CONTEXT) SEEN", b" ALL 1,3"),
]


@pytest.mark.parametrize("returns, wanted", RETURNS)
def test_return(imap: ImapClient, returns: str, wanted: bytes) -> None:
    tag = imap.begin(f"SEARCH RETURN {returns}")
    assert imap.finish(tag)[0] == [b'ESEARCH (TAG "' + tag + b'")' + wanted]
    tag = imap.begin(f"UID SEARCH RETURN {returns}")
    assert imap.finish(tag)[0] == [b'ESEARCH (TAG "' + tag + b'") UID' + wanted]


SAVED = [
    ("SAVE", b"1:4"),
    ("SAVE MIN", b"1"),
    ("SAVE MAX", b"4"),
    ("SAVE MIN MAX", b"1,4"),
    ("SAVE MIN COUNT", b"1:4"),
    ("SAVE PARTIAL 2:3", b"2:3"),
    ("SAVE PARTIAL 2:3 MAX", b"2:4"),
    ("SAVE PARTIAL 2:3 COUNT", b"1:4"),
]


@pytest.mark.parametrize("returns, wanted", SAVED)
def test_the_saved_result(imap: ImapClient, returns: str, wanted: bytes) -> None:
    """RFC 5182 §2.1, RFC 9394 §3.3."""
    told = imap.ok(f"SEARCH RETURN ({returns}) ALL")
    assert bool(told) == (returns != "SAVE")
    tag = imap.begin("SEARCH RETURN (ALL) $")
    assert imap.finish(tag)[0] == [b'ESEARCH (TAG "' + tag + b'") ALL ' + wanted]


def test_a_failed_search_saves_nothing(imap: ImapClient) -> None:
    imap.ok("SEARCH RETURN (SAVE) ALL")
    imap.bad("SEARCH RETURN (SAVE) FOO")
    assert imap.ok("SEARCH $") == [b"SEARCH 1 2 3 4"]
    imap.no("SEARCH RETURN (SAVE) CHARSET X-NEVER SUBJECT x")
    assert imap.ok("SEARCH UID $") == [b"SEARCH"]


def test_object_ids(imap: ImapClient) -> None:
    first, second = imap.ok("FETCH 1:2 (EMAILID THREADID)")
    email_id, thread = (first[first.index(word) + len(word) + 2 :].split(b")")[0] for word in (b"EMAILID", b"THREADID"))
    assert thread in second
    assert imap.ok(b"SEARCH EMAILID " + email_id) == [b"SEARCH 1"]
    assert imap.ok(b"SEARCH NOT EMAILID " + email_id) == [b"SEARCH 2 3 4"]
    assert imap.ok(b"SEARCH EMAILID never") == [b"SEARCH"]
    assert imap.ok(b"SEARCH THREADID " + thread) == [b"SEARCH 1 2"]
    assert imap.ok(b"SEARCH THREADID " + thread[:5]) == [b"SEARCH"]


def test_modseq(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *MAIL)
    with gateway.login(account) as imap:
        untagged = imap.ok("SELECT INBOX")
        (modseq,) = (int(line.split()[2].rstrip(b"]")) for line in untagged if b"HIGHESTMODSEQ" in line)
        imap.ok("STORE 2 +FLAGS.SILENT (\\Seen)")
        enabled, found = imap.ok(f"SEARCH MODSEQ {modseq + 1}")
        assert enabled.startswith(b"OK [HIGHESTMODSEQ ")
        assert found == b"SEARCH 2 (MODSEQ %d)" % (modseq + 1)
        assert imap.ok(f'SEARCH MODSEQ "/flags/\\\\Seen" all {modseq + 2}') == [b"SEARCH"]
        tag = imap.begin("SEARCH RETURN (MIN) MODSEQ 1")
        assert b" MIN 1 MODSEQ " in imap.finish(tag)[0][0]
        assert b"MODSEQ %d" % (modseq + 1) not in imap.ok("SEARCH RETURN (MIN) MODSEQ 1")[0]
        assert imap.ok("SEARCH RETURN (ALL MIN) MODSEQ 1")[0].endswith(b" MODSEQ %d" % (modseq + 1))


def test_rev2_always_has_esearch(gateway: ImapGateway, account: str) -> None:
    with gateway.login(account) as imap:
        imap.ok("ENABLE IMAP4rev2")
        imap.ok("SELECT INBOX")
        tag = imap.begin("SEARCH ALL")
        assert imap.finish(tag)[0] == [b'ESEARCH (TAG "' + tag + b'")']
        assert imap.ok("UID SEARCH 1:*")[0].endswith(b" UID")


def test_charset_with_utf8_accept(gateway: ImapGateway, account: str) -> None:
    with gateway.login(account) as imap:
        imap.ok("ENABLE UTF8=ACCEPT")
        imap.ok("SELECT INBOX")
        assert imap.bad("SEARCH CHARSET UTF-8 ALL")


def test_uids_only(gateway: ImapGateway, account: str) -> None:
    """RFC 9586 §3."""
    gateway.deliver(account, *MAIL)
    with gateway.login(account) as imap:
        imap.ok("ENABLE UIDONLY")
        imap.ok("SELECT INBOX")
        for command in ("SEARCH ALL", "UID SEARCH 1:2", "UID SEARCH NOT (SEEN 1)", "SORT (DATE) UTF-8 ALL"):
            assert imap.bad(command).startswith(b"BAD [UIDREQUIRED]")
        assert imap.ok("UID SEARCH RETURN (SAVE) UID 2:3") == []
        assert imap.ok("UID SEARCH $") == [b"SEARCH 2 3"]


def test_nothing_is_expunged_in_the_middle(gateway: ImapGateway, account: str) -> None:
    """RFC 9051 §7.5.1: numbers hold during SEARCH; UIDs always do."""
    gateway.deliver(account, *MAIL)
    with gateway.login(account) as one, gateway.login(account) as two:
        one.ok("SELECT INBOX")
        two.ok("SELECT INBOX")
        two.ok("STORE 1 +FLAGS.SILENT (\\Deleted)")
        two.ok("EXPUNGE")
        assert not [line for line in one.ok("SEARCH SUBJECT pears") if b"EXPUNGE" in line]
        assert b"SEARCH 2" in one.ok("SEARCH SUBJECT pears")
        assert b"SEARCH" in one.ok("SEARCH SUBJECT never")
        assert b"1 EXPUNGE" in one.ok("UID SEARCH SUBJECT pears")
        assert one.ok("SEARCH SUBJECT pears") == [b"SEARCH 1"]
