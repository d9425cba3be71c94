"""GETMETADATA, SETMETADATA, and quotas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from imap.rig import MESSAGE, ImapClient, ImapGateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapGateway]:
    toml = (
        "[imap]\nmetadata_octets = 1024\nmetadata_entries = 10\nmetadata_account_octets = 65536\n"
        'comment = "Hello"\nadmin = "mailto:postmaster@example.test"\n'
    )
    with ImapGateway(tmp_path_factory.mktemp("metadata"), toml) as running:
        yield running


@pytest.fixture
def imap(gateway: ImapGateway, account: str) -> Iterator[ImapClient]:
    with gateway.login(account) as client:
        yield client


def test_entries_come_back(imap: ImapClient) -> None:
    imap.ok('SETMETADATA INBOX (/private/comment "mine" /shared/Comment {4+}\r\na"\\b)')
    assert imap.ok("GETMETADATA INBOX (/shared/comment /PRIVATE/comment)") == [
        b'METADATA "INBOX" (/private/comment "mine" /shared/comment "a\\"\\\\b")'
    ]
    assert imap.ok('GETMETADATA INBOX "/shared/comment"') == [
        b'METADATA "INBOX" (/shared/comment "a\\"\\\\b")'
    ]
    imap.ok("SETMETADATA INBOX (/private/comment NIL /private/nothing NIL)")
    assert imap.ok("GETMETADATA INBOX /private/comment") == [
        b'METADATA "INBOX" (/private/comment NIL)'
    ]
    imap.ok("SETMETADATA INBOX (/private/x ~{3+}\r\na\0b /private/y {4+}\r\n\r\n\r\n)")
    assert imap.ok("GETMETADATA INBOX (/private/x /private/y)") == [
        b'METADATA "INBOX" (/private/x ~{3}\r\na\0b /private/y {4}\r\n\r\n\r\n)'
    ]
    assert b"[NONEXISTENT]" in imap.no("GETMETADATA nothing /shared/comment")
    assert b"[NONEXISTENT]" in imap.no('SETMETADATA nothing (/shared/comment "x")')
    imap.bad("GETMETADATA INBOX /other/comment")
    imap.bad("SETMETADATA INBOX (/shared/comment)")
    imap.bad("SETMETADATA INBOX /shared/comment x")


def test_depth_and_maxsize(imap: ImapClient) -> None:
    """RFC 5464 §4.2.1, §4.2.2."""
    imap.ok(
        'SETMETADATA INBOX (/private/a "1" /private/a/b "22" /private/a/b/c "333" /private/ab "4")'
    )
    pairs = [b'/private/a "1"', b'/private/a/b "22"', b'/private/a/b/c "333"', b'/private/ab "4"']
    for options, shown in (
        ("(DEPTH 0)", pairs[:1]),
        ("(DEPTH 1)", pairs[:2]),
        ("(DEPTH infinity)", pairs[:3]),
        ("(MAXSIZE 1)", pairs[:1]),
    ):
        for command in (
            f"GETMETADATA INBOX {options} /private/a",
            f"GETMETADATA {options} INBOX (/private/a)",
        ):
            assert imap.ok(command) == [b'METADATA "INBOX" (%b)' % b" ".join(shown)]
    assert imap.ok("GETMETADATA (DEPTH infinity) INBOX /private") == [
        b'METADATA "INBOX" (%b)' % b" ".join(pairs)
    ]
    untagged, tagged = imap.cmd("GETMETADATA (DEPTH infinity MAXSIZE 1) INBOX /private/a")
    assert untagged == [b'METADATA "INBOX" (/private/a "1")']
    assert tagged.startswith(b"OK [METADATA LONGENTRIES 3]")
    imap.bad("GETMETADATA (DEPTH 2) INBOX /private/a")


def test_the_server(imap: ImapClient) -> None:
    assert imap.ok('GETMETADATA "" (/shared/comment /shared/admin)') == [
        b'METADATA "" (/shared/admin "mailto:postmaster@example.test" /shared/comment "Hello")'
    ]
    imap.ok('SETMETADATA "" (/private/vendor/example/x "y")')
    assert imap.ok('GETMETADATA "" (DEPTH infinity) /private') == [
        b'METADATA "" (/private/vendor/example/x "y")'
    ]
    assert b"[NOPERM]" in imap.no('SETMETADATA "" (/shared/comment "mine")')


def test_bounds(imap: ImapClient) -> None:
    assert b"[METADATA MAXSIZE 1024]" in imap.no(
        b"SETMETADATA INBOX (/private/x {1025+}\r\n%b)" % (b"x" * 1025)
    )
    values = " ".join(f'/private/{number} "x"' for number in range(11))
    assert b"[METADATA TOOMANY]" in imap.no(f"SETMETADATA INBOX ({values})")
    assert imap.ok("GETMETADATA (DEPTH infinity) INBOX /private") == []  # all or none
    for box in range(7):
        imap.ok(f"CREATE b{box}")
        values = " ".join(f'/private/{number} "{"x" * 1000}"' for number in range(10))
        _, tagged = imap.cmd(f"SETMETADATA b{box} ({values})")
        assert tagged.startswith(b"OK" if box < 6 else b"NO [METADATA TOOMANY]")


def test_they_go_with_the_mailbox(imap: ImapClient) -> None:
    imap.ok("CREATE a")
    imap.ok('SETMETADATA a (/shared/comment "x")')
    imap.ok("RENAME a b")
    assert imap.ok("GETMETADATA b /shared/comment") == [b'METADATA "b" (/shared/comment "x")']
    imap.ok("DELETE b")
    imap.ok("CREATE b")
    assert imap.ok("GETMETADATA b /shared/comment") == [b'METADATA "b" (/shared/comment NIL)']


def test_shared_and_private_entries_of_a_shared_mailbox(
    gateway: ImapGateway, imap: ImapClient
) -> None:
    gateway.add_account("friend@example.test")
    imap.ok("CREATE box")
    imap.ok("SETACL box friend@example.test lr")
    imap.ok('SETMETADATA box (/private/comment "mine" /shared/comment "ours")')
    with gateway.login("friend@example.test") as friend:
        [line] = friend.ok('LIST "" */box')
        name = b'"%b"' % line.rsplit(b'"', 2)[1]
        assert friend.ok(b"GETMETADATA %b (/private/comment /shared/comment)" % name) == [
            b'METADATA %b (/shared/comment "ours" /private/comment NIL)' % name
        ]
        friend.ok(b'SETMETADATA %b (/private/comment "his")' % name)
        assert b"[NOPERM]" in friend.no(b'SETMETADATA %b (/shared/comment "his")' % name)
        assert b"[NOPERM]" in friend.no(b'SETMETADATA %b (/private/specialuse "\\\\Junk")' % name)
        imap.ok("SETACL box friend@example.test lrw")
        friend.ok(b'SETMETADATA %b (/shared/comment "all")' % name)
        imap.ok("SETACL box friend@example.test l")  # RFC 5464 §3.3: and one of r s w i p
        assert b"[NOPERM]" in friend.no(b"GETMETADATA %b /shared/comment" % name)
    assert imap.ok("GETMETADATA box (/private/comment /shared/comment)") == [
        b'METADATA "box" (/private/comment "mine" /shared/comment "all")'
    ]


def test_quota(gateway: ImapGateway) -> None:
    user = "small@example.test"
    gateway.add_account(user, quota_octets=10 * 1024, quota_messages=3)
    gateway.add_account("free@example.test", quota_octets=0)
    gateway.deliver(user, MESSAGE, MESSAGE)
    with gateway.login(user) as imap:
        assert imap.ok("GETQUOTAROOT INBOX") == [
            b'QUOTAROOT "INBOX" "small@example.test"',
            b'QUOTA "small@example.test" (STORAGE 1 10 MESSAGE 2 3)',
        ]
        assert imap.ok(f"GETQUOTA {user}") == [
            b'QUOTA "small@example.test" (STORAGE 1 10 MESSAGE 2 3)'
        ]
        for root in ('""', "free@example.test", "nobody@example.test"):
            assert b"[NONEXISTENT]" in imap.no(f"GETQUOTA {root}")
        assert b"[NOPERM]" in imap.no(f"SETQUOTA {user} (STORAGE 512 MESSAGE 7)")
        imap.bad("SETQUOTA x STORAGE")
        imap.ok("SELECT INBOX")
        assert b"[OVERQUOTA]" in imap.no("COPY 1:2 Trash")
        imap.ok("COPY 1 Trash")
    with gateway.login("free@example.test") as imap:
        assert imap.ok("GETQUOTA free@example.test") == [b'QUOTA "free@example.test" ()']


def test_what_is_announced(imap: ImapClient) -> None:
    words = imap.ok("CAPABILITY")[0].split()
    for word in (
        b"ACL", b"RIGHTS=texk", b"CHILDREN", b"CREATE-SPECIAL-USE", b"LIST-EXTENDED", b"LIST-METADATA",
        b"LIST-MYRIGHTS", b"LIST-STATUS", b"METADATA", b"NAMESPACE", b"NOTIFY", b"QUOTA", b"QUOTA=RES-MESSAGE",
        b"QUOTA=RES-STORAGE", b"SPECIAL-USE", b"STATUS=SIZE",
    ):  # fmt: skip
        assert words.count(word) == 1, word
    assert b"QUOTASET" not in words
