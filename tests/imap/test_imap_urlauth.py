"""URLAUTH and REPLACE, over real connections."""

from __future__ import annotations

import re

import pytest
from imap.rig import MESSAGE, ImapClient, ImapGateway

OTHER = b"Subject: other\r\n\r\n" + b"0123456789\r\n" * 300_000


def literal(octets: bytes) -> bytes:
    return b"{%d+}\r\n%b" % (len(octets), octets)


@pytest.fixture
def imap(gateway: ImapGateway, account: str) -> ImapClient:
    gateway.deliver(account, MESSAGE, MESSAGE.replace(b"one", b"two"))
    client = gateway.login(account)
    client.ok("SELECT INBOX")
    return client


# -- REPLACE ---------------------------------------------------------------------------------------------------------


def test_replace(imap: ImapClient) -> None:
    assert b"REPLACE" in imap.ok("CAPABILITY")[0].split()
    untagged = imap.ok(b"REPLACE 2 INBOX (\\Draft) " + literal(b"Subject: new\r\n\r\nx\r\n"))
    assert re.match(rb"OK \[APPENDUID \d+ 3\]", untagged[0])
    assert (b"2 EXPUNGE" in untagged and b"3 EXISTS" in untagged) or b"2 EXISTS" in untagged
    found = imap.ok("UID FETCH 1:* (FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
    assert len(found) == 2 and b"Subject: new" in found[1] and b"\\Draft" in found[1]


def test_replace_goes_elsewhere_and_takes_large_messages(imap: ImapClient) -> None:
    untagged = imap.ok(b"UID REPLACE 1 Drafts " + literal(OTHER))
    assert re.match(rb"OK \[APPENDUID \d+ 1\]", untagged[0]) and b"1 EXPUNGE" in untagged
    imap.ok("SELECT Drafts")
    assert imap.ok("FETCH 1 RFC822.SIZE") == [b"1 FETCH (RFC822.SIZE %d)" % len(OTHER)]
    assert imap.ok("FETCH 1 BODY.PEEK[]") == [b"1 FETCH (BODY[] {%d}\r\n%b)" % (len(OTHER), OTHER)]


def test_a_replace_that_fails_replaces_nothing(imap: ImapClient) -> None:
    assert imap.no(b"UID REPLACE 9 INBOX " + literal(MESSAGE))
    assert imap.bad(b"REPLACE 1:2 INBOX " + literal(MESSAGE))
    assert imap.bad(b"REPLACE 1 INBOX " + literal(MESSAGE) + b" " + literal(MESSAGE))
    assert imap.no(b"REPLACE 1 Nowhere " + literal(OTHER)).startswith(b"NO [TRYCREATE]")
    imap.ok("EXAMINE INBOX")
    assert imap.no(b"REPLACE 1 INBOX " + literal(MESSAGE)).startswith(b"NO [READ-ONLY]")
    assert b"MESSAGES 2" in imap.ok("STATUS INBOX (MESSAGES)")[0]


# -- URLAUTH ---------------------------------------------------------------------------------------------------------


def url_of(account: str, rest: str) -> str:
    return f"imap://{account.replace('@', '%40')}@mx.example.test/INBOX/;UID=1{rest}"


def made(imap: ImapClient, url: str) -> str:
    (line,) = imap.ok(f'GENURLAUTH "{url}" INTERNAL')
    found = re.fullmatch(rb'GENURLAUTH "(.*:internal:[0-9a-f]{32,})"', line)
    assert found, line
    return found[1].decode()


def fetched(imap: ImapClient, url: str) -> bytes:
    (line,) = imap.ok(f'URLFETCH "{url}"')
    prefix = f'URLFETCH "{url}" '.encode()
    assert line.startswith(prefix)
    return line[len(prefix) :]


def test_a_url_lets_another_read(gateway: ImapGateway, imap: ImapClient, account: str) -> None:
    assert {b"URLAUTH", b"URL-PARTIAL"} <= set(imap.ok("CAPABILITY")[0].split())
    gateway.add_account(f"other-{account}")
    other = gateway.login(f"other-{account}")
    size = b"{%d}\r\n" % len(MESSAGE)
    for access in ("anonymous", "authuser", f"user+other-{account}"):
        assert fetched(other, made(imap, url_of(account, f";URLAUTH={access}"))) == size + MESSAGE
    part = made(imap, url_of(account, "/;SECTION=TEXT;URLAUTH=authuser"))
    assert fetched(other, part) == b"{7}\r\nHello\r\n"
    partial = made(imap, url_of(account, "/;SECTION=HEADER/;PARTIAL=3.4;URLAUTH=authuser"))
    assert fetched(other, partial) == b"{4}\r\n" + MESSAGE[3:7]
    fields = made(imap, url_of(account, "/;SECTION=HEADER.FIELDS%20(TO);URLAUTH=authuser"))
    assert fetched(other, fields) == b"{26}\r\nTo: alice@example.test\r\n\r\n"


def test_what_must_not_be_read_is_nil(gateway: ImapGateway, imap: ImapClient, account: str) -> None:
    gateway.add_account(f"nosy-{account}")
    nosy = gateway.login(f"nosy-{account}")
    good = made(imap, url_of(account, ";URLAUTH=authuser"))
    wrong = good[:-1] + ("0" if good[-1] != "0" else "1")
    for url in (
        made(imap, url_of(account, f";URLAUTH=user+{account}")),
        made(imap, url_of(account, f";URLAUTH=submit+nosy-{account}")),
        made(imap, url_of(account, ";EXPIRE=2020-01-01T00:00:00Z;URLAUTH=authuser")),
        wrong,
        good.replace("UID=1", "UID=2"),
        good.replace("INBOX", "Sent"),
        good.replace(account.partition("@")[0], "nobody"),
        good.partition(":internal")[0],
        url_of(account, ""),
        "rubbish",
    ):
        assert fetched(nosy, url) == b"NIL", url
    assert (
        fetched(nosy, made(imap, url_of(account, ";EXPIRE=2090-01-01T00:00:00Z;URLAUTH=authuser")))
        != b"NIL"
    )
    assert fetched(nosy, good) != b"NIL"
    assert imap.cmd("RESETKEY INBOX INTERNAL")[1].startswith(b"OK [URLMECH INTERNAL]")
    assert fetched(nosy, good) == b"NIL"
    again = made(imap, url_of(account, ";URLAUTH=authuser"))
    assert again != good and fetched(nosy, again) != b"NIL"
    imap.ok("RESETKEY")
    assert fetched(nosy, again) == b"NIL"


def test_only_the_owner_makes_urls(gateway: ImapGateway, imap: ImapClient, account: str) -> None:
    for rest in ("", ";URLAUTH=everybody", ";URLAUTH=authuser:internal:" + "0" * 66):
        imap.bad(f'GENURLAUTH "{url_of(account, rest)}" INTERNAL')
    imap.bad(f'GENURLAUTH "{url_of("x" + account, ";URLAUTH=authuser")}" INTERNAL')
    imap.bad(f'GENURLAUTH "{url_of(account, ";URLAUTH=authuser")}" OTHER')
    imap.no(
        f'GENURLAUTH "{url_of(account, ";URLAUTH=authuser").replace("INBOX", "None")}" INTERNAL'
    )
    imap.bad("GENURLAUTH")
    imap.bad("URLFETCH")
    imap.bad("RESETKEY INBOX OTHER")


def test_a_large_message_by_url(gateway: ImapGateway, imap: ImapClient, account: str) -> None:
    imap.ok(b"APPEND INBOX " + literal(OTHER))
    url = made(imap, url_of(account, ";URLAUTH=authuser").replace("UID=1", "UID=3"))
    assert fetched(imap, url) == b"{%d}\r\n%b" % (len(OTHER), OTHER)
