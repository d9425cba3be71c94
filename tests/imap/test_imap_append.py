"""APPEND in all its forms, over a real connection."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from imap.rig import MESSAGE, TIMEOUT_S, ImapClient, ImapGateway

from gateway.store.names import account_directory

KIB = 1024
LARGE = b"Subject: large\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n%b--b\r\n\r\nend\r\n--b--\r\n"
SMALL_STORE = "[store]\nwaiting_octets = 65536\n[limits]\nmessage_octets = 4000000\n"


def large(lines: int) -> bytes:
    return LARGE % (b"%075d\r\n" * lines % tuple(range(lines)))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapGateway]:
    with ImapGateway(tmp_path_factory.mktemp("append"), SMALL_STORE) as running:
        yield running


@pytest.fixture
def imap(gateway: ImapGateway, account: str) -> Iterator[ImapClient]:
    with gateway.login(account) as client:
        yield client


def large_files(gateway: ImapGateway, account: str) -> list[Path]:
    folder = account_directory(gateway.config.store_dir, account) / "large"
    return list(folder.iterdir()) if folder.exists() else []


def literal(octets: bytes, binary: bool = False) -> bytes:
    return b"%b{%d+}\r\n%b" % (b"~" if binary else b"", len(octets), octets)


def bodies(imap: ImapClient, mailbox: str = "INBOX") -> list[bytes]:
    """All messages of the mailbox, by number."""
    imap.ok(f"EXAMINE {mailbox}")
    found = [
        re.match(rb"\d+ FETCH \(BODY\[\] \{(\d+)\}\r\n", r)
        for r in imap.cmd("FETCH 1:* BODY.PEEK[]")[0]
    ]
    contents = [m.string[m.end() : m.end() + int(m[1])] for m in found if m]
    imap.ok("UNSELECT")
    return contents


SIZES = pytest.mark.parametrize("lines", [0, 40, 60, 1000, 3000, 20_000])


@SIZES
def test_append_keeps_every_octet(
    imap: ImapClient, gateway: ImapGateway, account: str, lines: int
) -> None:
    content = large(lines) if lines else MESSAGE
    _, tagged = imap.cmd(b"APPEND INBOX " + literal(content))
    assert re.match(rb"OK \[APPENDUID \d+ 1\] ", tagged)
    assert bodies(imap) == [content]
    imap.ok("SELECT INBOX")
    (structure,) = imap.ok("FETCH 1 (RFC822.SIZE BODYSTRUCTURE)")
    assert b"RFC822.SIZE %d " % len(content) in structure
    assert structure.count(b'"PLAIN"') == (2 if lines else 1)
    assert len(large_files(gateway, account)) == (len(content) > 128 * KIB)


def test_a_literal_that_waits_for_go_ahead(imap: ImapClient) -> None:
    for content in (MESSAGE, large(100), large(5000)):
        tag = imap.begin(b"APPEND INBOX {%d}" % len(content))
        assert imap.response().startswith(b"+")
        imap.write(content + b"\r\n")
        assert imap.finish(tag)[1].startswith(b"OK [APPENDUID")
    assert bodies(imap) == [MESSAGE, large(100), large(5000)]


def test_flags_keywords_and_date(imap: ImapClient) -> None:
    options = b'(\\Seen $Label \\Flagged) "17-Jul-1996 02:44:25 -0700" '
    imap.ok(b"APPEND INBOX " + options + literal(MESSAGE))
    imap.ok("SELECT INBOX")
    (found,) = imap.ok("FETCH 1 (FLAGS INTERNALDATE)")
    assert b'INTERNALDATE "17-Jul-1996 09:44:25 +0000"' in found
    assert set(re.search(rb"FLAGS \((.*?)\)", found)[1].split()) >= {
        b"\\Seen",
        b"$Label",
        b"\\Flagged",
    }


def test_several_messages_are_added_all_or_none(
    imap: ImapClient, gateway: ImapGateway, account: str
) -> None:
    contents = [MESSAGE, large(100), b"Subject: two\r\n\r\n\r\n", large(5000), large(1)]
    many = b" ".join(b"(\\Answered) " + literal(content) for content in contents)
    _, tagged = imap.cmd(b"APPEND INBOX " + many)
    assert re.match(rb"OK \[APPENDUID \d+ 1:5\]", tagged)
    assert bodies(imap) == contents
    assert len(large_files(gateway, account)) == 1
    empty = imap.no(
        b"APPEND INBOX " + many + b" {0+}\r\n"
    )  # RFC 3502: the client has changed its mind
    assert b"empty" in empty
    assert imap.bad(b"APPEND INBOX " + many + b" rubbish")
    assert imap.no(b"APPEND Nowhere " + many).startswith(b"NO [TRYCREATE]")
    assert bodies(imap) == contents
    imap.ok("NOOP")
    assert len(large_files(gateway, account)) == 1


def test_what_is_too_large_is_refused_before_it_is_sent(imap: ImapClient) -> None:
    assert b"APPENDLIMIT=4000000" in imap.ok("CAPABILITY")[0]
    assert imap.no("APPEND INBOX {4000001}").startswith(b"NO [TOOBIG]")
    assert imap.no("APPEND Nowhere {3000000}").startswith(b"NO [TRYCREATE]")
    assert imap.no(b"APPEND INBOX {4000001+}\r\n" + bytes(4000001)).startswith(b"NO [TOOBIG]")
    imap.ok("NOOP")


def test_quota(gateway: ImapGateway) -> None:
    gateway.add_account("full@example.test", quota_messages=2)
    with gateway.login("full@example.test") as imap:
        three = b" ".join([literal(MESSAGE), literal(large(5000)), literal(MESSAGE)])
        assert imap.no(b"APPEND INBOX " + three).startswith(b"NO [OVERQUOTA]")
        assert bodies(imap) == []
        assert large_files(gateway, "full@example.test") == []
        imap.ok(b"APPEND INBOX " + literal(MESSAGE) + b" " + literal(MESSAGE))
        assert imap.no(b"APPEND INBOX " + literal(MESSAGE)).startswith(b"NO [OVERQUOTA]")


def test_a_client_that_goes_away_leaves_nothing(gateway: ImapGateway, account: str) -> None:
    with gateway.login(account) as imap:
        imap.begin(b"APPEND INBOX {3000000+}")
        imap.write(b"Subject: x\r\n\r\n" + bytes(1_500_000))
    with gateway.login(account) as imap:
        end = time.monotonic() + TIMEOUT_S
        while large_files(gateway, account):
            assert time.monotonic() < end
            imap.ok("NOOP")
        assert bodies(imap) == []


def test_binary_and_utf8_literals(imap: ImapClient) -> None:
    content = b"Content-Transfer-Encoding: binary\r\n\r\na\0b\r\n"
    imap.ok(b"APPEND INBOX " + literal(content, binary=True))
    international = "Subject: für\r\n\r\nä\r\n".encode()
    utf8 = b"APPEND INBOX UTF8 (" + literal(international, binary=True) + b")"
    imap.bad(utf8)
    imap.ok("ENABLE UTF8=ACCEPT")
    imap.ok(utf8)
    imap.bad(b"APPEND INBOX UTF8 (" + literal(international) + b")")
    imap.ok("SELECT INBOX")
    assert imap.ok("FETCH 2 BODY.PEEK[]")[0].endswith(international + b")")
    assert imap.ok("FETCH 1 BODY.PEEK[1]") == [b"1 FETCH (BODY[1] {5}\r\na\x80b\r\n)"]  # no literal has a NUL
    assert imap.ok("FETCH 1 BINARY.PEEK[1]") == [b"1 FETCH (BINARY[1] ~{5}\r\na\0b\r\n)"]
    assert imap.ok("FETCH 1 BINARY.PEEK[]")[0].endswith(b"BINARY[] ~{%d}\r\n%b)" % (len(content), content))


def test_the_own_mailbox_tells_of_the_new_message(imap: ImapClient) -> None:
    imap.ok("SELECT INBOX")
    assert b"1 EXISTS" in imap.ok(b"APPEND INBOX " + literal(MESSAGE))


def test_what_looks_like_a_system_flag_is_no_keyword(imap: ImapClient) -> None:
    for flag in (b"\\Recent", b"\\Nonsense"):
        imap.bad(b"APPEND INBOX (\\Seen " + flag + b") " + literal(MESSAGE))
    assert b"Recent" not in imap.ok("SELECT INBOX")[0]


def test_catenate_takes_utf8_literals(imap: ImapClient) -> None:
    head, text = "Subject: grün\r\n\r\n".encode(), b"text\r\n"
    command = b"APPEND INBOX CATENATE (UTF8 (~" + literal(head) + b") TEXT " + literal(text) + b")"
    imap.bad(command)  # it is not enabled
    imap.ok("ENABLE UTF8=ACCEPT")
    imap.ok(command)
    imap.bad(command.replace(b"(~", b"("))
    assert bodies(imap)[-1] == head + text


def test_catenate(imap: ImapClient, gateway: ImapGateway, account: str) -> None:
    imap.ok(b"APPEND INBOX " + literal(large(40)))
    imap.ok(b"APPEND INBOX " + literal(large(40_000)))
    imap.ok("SELECT INBOX")
    (part,) = imap.ok("FETCH 1 BODY.PEEK[1]")
    part = part[part.index(b"\r\n") + 2 : -1]
    head = b"Subject: put together\r\n\r\n"
    text = large(100)
    imap.ok(
        b"APPEND INBOX (\\Draft) CATENATE (TEXT " + literal(head) + b' URL "/INBOX/;UID=1/;SECTION=1" TEXT '
        + literal(text) + b" URL ;UID=2/;SECTION=2)"
    )  # fmt: skip
    assert bodies(imap)[2] == head + part + text + b"end"
    imap.ok("SELECT INBOX")
    urls = (
        b"/INBOX/;UID=9", b"/INBOX;UIDVALIDITY=7/;UID=1", b"/Nowhere/;UID=1", b"http://x/", b"/INBOX/;UID=1/;SECTION=7",
    )  # fmt: skip
    for url in urls:
        tagged = imap.no(b"APPEND INBOX CATENATE (URL %b TEXT %b)" % (url, literal(head)))
        assert tagged.startswith(b"NO [BADURL")
    imap.bad(b"APPEND INBOX CATENATE (X y)")
    imap.bad(b"APPEND INBOX CATENATE ()")
    assert len(bodies(imap)) == 3
    assert len(large_files(gateway, account)) == 1


def test_syntax(imap: ImapClient) -> None:
    for wrong in ("", " INBOX", " INBOX (\\Seen)", ' INBOX "1-Jan-2020"'):
        imap.bad("APPEND" + wrong)
    imap.bad(b'APPEND INBOX "x" ' + literal(MESSAGE))
    imap.bad(b"APPEND INBOX " + literal(MESSAGE) + b" x")
    assert bodies(imap) == []
