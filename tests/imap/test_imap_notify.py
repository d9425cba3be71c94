"""NOTIFY: what is told without being asked, by sessions of one worker and of another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count

import pytest
from imap.rig import MESSAGE, ImapClient
from imap.two_workers import TwoWorkers

_number = count(1)
ALL = "MessageNew MessageExpunge FlagChange MailboxName SubscriptionChange MailboxMetadataChange ServerMetadataChange"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoWorkers]:
    toml = "[imap]\nnotify_mailboxes = 20\nnotify_octets = 4096\n"
    with TwoWorkers(tmp_path_factory.mktemp("notify"), toml) as running:
        yield running


@pytest.fixture
def user(two: TwoWorkers) -> str:
    name = f"user{next(_number)}@example.test"
    two.add_account(name)
    return name


@pytest.fixture
def imap(two: TwoWorkers, user: str) -> Iterator[ImapClient]:
    """Who is told."""
    with two.login_at(0, user) as client:
        yield client


@pytest.fixture
def other(two: TwoWorkers, user: str) -> Iterator[ImapClient]:
    """Who does something, at the other worker."""
    with two.login_at(1, user) as client:
        yield client


def told(imap: ImapClient, number: int = 1) -> list[bytes]:
    """So many responses that nobody asked for."""
    return [imap.response().removeprefix(b"* ") for _ in range(number)]


def quiet(imap: ImapClient, other: ImapClient) -> None:
    """Nothing else was told before something that certainly is."""
    other.ok("CREATE quiet")
    assert told(imap) == [b'LIST (\\HasNoChildren) "/" "quiet"']
    other.ok("DELETE quiet")
    assert told(imap) == [b'LIST (\\NonExistent \\HasNoChildren) "/" "quiet"']


def test_mailboxes_come_and_go(imap: ImapClient, other: ImapClient) -> None:
    imap.ok(f"NOTIFY SET (personal ({ALL}))")
    other.ok("CREATE a/b")
    assert sorted(told(imap, 2)) == [
        b'LIST (\\HasChildren) "/" "a"',
        b'LIST (\\HasNoChildren) "/" "a/b"',
    ]
    other.ok("CREATE a/c")
    assert told(imap, 2) == [b'LIST (\\HasNoChildren) "/" "a/c"', b'LIST (\\HasChildren) "/" "a"']
    other.ok("SUBSCRIBE a/c")
    assert told(imap) == [b'LIST (\\HasNoChildren \\Subscribed) "/" "a/c"']
    other.ok("SUBSCRIBE gone")
    assert told(imap) == [b'LIST (\\NonExistent \\HasNoChildren \\Subscribed) "/" "gone"']
    other.ok("UNSUBSCRIBE a/c")
    assert told(imap) == [b'LIST (\\HasNoChildren) "/" "a/c"']
    other.ok("RENAME a z")  # RFC 5465 §5.4: nothing of what lies below
    assert told(imap) == [b'LIST (\\HasChildren) "/" "z" ("OLDNAME" ("a"))']
    other.ok('SETMETADATA z/b (/private/comment "x" /shared/comment "y")')
    assert told(imap) == [b'METADATA "z/b" /private/comment /shared/comment']
    other.ok("SETMETADATA z/b (/shared/comment NIL)")
    assert told(imap) == [b'METADATA "z/b" /shared/comment']
    other.ok('SETMETADATA "" (/private/comment "x")')
    assert told(imap) == [b'METADATA "" /private/comment']
    other.ok("DELETE z/b")
    assert told(imap, 2) == [
        b'LIST (\\NonExistent \\HasNoChildren) "/" "z/b"',
        b'LIST (\\HasChildren) "/" "z"',
    ]
    quiet(imap, other)
    for command in (
        "CREATE own/x",
        "SUBSCRIBE own",
        "RENAME own mine",
        'SETMETADATA mine (/private/x "y")',
        "DELETE mine/x",
    ):
        imap.ok(command)  # what it does itself it need not be told
        quiet(imap, other)


def test_messages_in_other_mailboxes(
    two: TwoWorkers, user: str, imap: ImapClient, other: ImapClient
) -> None:
    other.ok("CREATE box")
    first = imap.ok(
        "NOTIFY SET STATUS (mailboxes (box nothing) (MessageNew MessageExpunge FlagChange))"
    )
    assert len(first) == 1 and first[0].startswith(
        b'STATUS "box" (MESSAGES 0 UIDNEXT 1 UIDVALIDITY '
    )
    two.deliver(user, MESSAGE, mailbox="Archive")
    two.deliver(user, MESSAGE, mailbox="box")
    [line] = told(imap)
    assert line.startswith(b'STATUS "box" (MESSAGES 1 UIDNEXT 2 UIDVALIDITY ') and line.endswith(
        b" UNSEEN 1)"
    )
    other.ok("SELECT box")
    other.ok("STORE 1 +FLAGS (\\Seen)")
    assert told(imap)[0].endswith(b" UNSEEN 0)")
    imap.ok("ENABLE CONDSTORE")
    other.ok("STORE 1 +FLAGS (\\Deleted)")
    assert b" HIGHESTMODSEQ " in told(imap)[0]
    other.ok("EXPUNGE")
    assert told(imap)[0].startswith(b'STATUS "box" (MESSAGES 0 UIDNEXT 2 ')
    imap.ok("NOTIFY NONE")
    two.deliver(user, MESSAGE, mailbox="box")
    assert imap.ok("NOOP") == []


def test_the_selected_mailbox(
    two: TwoWorkers, user: str, imap: ImapClient, other: ImapClient
) -> None:
    items = "(UID FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])"
    assert imap.ok(f"NOTIFY SET (selected (MessageNew {items} MessageExpunge FlagChange))") == []
    imap.ok("SELECT INBOX")
    two.deliver(user, MESSAGE)
    new = told(imap, 3)
    assert new[:2] == [b"1 EXISTS", b"1 RECENT"]
    assert new[2] == (
        b"1 FETCH (UID 1 FLAGS (\\Recent) BODY[HEADER.FIELDS (SUBJECT)] {16}\r\nSubject: one\r\n\r\n)"
    )
    other.ok("SELECT INBOX")
    other.ok("STORE 1 +FLAGS (\\Deleted)")
    assert told(imap) == [b"1 FETCH (UID 1 FLAGS (\\Deleted \\Recent))"]
    tag = imap.idle()
    other.ok("EXPUNGE")
    assert told(imap) == [b"1 EXPUNGE"]
    assert imap.done(tag) == []
    two.deliver(user, MESSAGE)  # IDLE's end is not NOTIFY's
    assert told(imap)[0] == b"1 EXISTS"
    told(imap, 2)
    imap.ok(f"NOTIFY SET (selected-delayed (MessageNew {items} MessageExpunge FlagChange))")
    other.ok("NOOP")
    other.ok("STORE 1 +FLAGS (\\Deleted)")
    assert told(imap)[0].startswith(b"1 FETCH ")
    other.ok("EXPUNGE")
    two.deliver(user, MESSAGE)
    assert told(imap)[0] == b"2 EXISTS"  # the expunge waits for a command
    assert [one for one in imap.ok("NOOP") if b"EXPUNGE" in one] == [b"1 EXPUNGE"]


def test_the_selected_mailbox_without_being_asked_for(
    two: TwoWorkers, user: str, imap: ImapClient, other: ImapClient
) -> None:
    """RFC 5465 §3.1: no message events of the selected mailbox unless SELECTED says so."""
    imap.ok("SELECT INBOX")
    imap.ok("NOTIFY SET (personal (MailboxName MessageNew MessageExpunge))")
    two.deliver(user, MESSAGE)
    assert imap.ok("NOOP") == []
    quiet(imap, other)
    assert imap.ok("NOTIFY SET (selected (MessageNew MessageExpunge))") == [
        b"1 EXISTS",
        b"1 RECENT",
    ]


def test_mailboxes_of_others(two: TwoWorkers, user: str, imap: ImapClient) -> None:
    owner = f"owner.{user}"
    two.add_account(owner)
    name = f"Other Users/{owner}/box"
    with two.login_at(1, owner) as friend:
        friend.ok("CREATE box")
        imap.ok(
            f'NOTIFY SET (subtree ("Other Users/{owner}") (MessageNew MessageExpunge MailboxName))'
        )
        two.deliver(owner, MESSAGE, mailbox="box")
        friend.ok(f"SETACL box {user} l")  # RFC 5465 §5.4: as if it were made now
        above = b'"/" "Other Users/%b"' % owner.encode()
        assert told(imap, 2) == [
            b'LIST (\\HasNoChildren) "/" "%b"' % name.encode(),
            b"LIST (\\NonExistent \\HasChildren) " + above,
        ]
        two.deliver(owner, MESSAGE, mailbox="box")  # not without "r"
        friend.ok(f"SETACL box {user} lr")
        assert imap.ok("NOOP") == []
        assert imap.ok(f'STATUS "{name}" (MESSAGES)') == [
            b'STATUS "%b" (MESSAGES 2)' % name.encode()
        ]
        two.deliver(owner, MESSAGE, mailbox="box")
        assert told(imap)[0].startswith(b'STATUS "%b" (MESSAGES 3 UIDNEXT 4 ' % name.encode())
        friend.ok(f"DELETEACL box {user}")
        assert told(imap, 2) == [
            b'LIST (\\NonExistent \\HasNoChildren) "/" "%b"' % name.encode(),
            b"LIST (\\NonExistent \\HasNoChildren) " + above,
        ]


def test_subscribed(two: TwoWorkers, user: str, imap: ImapClient, other: ImapClient) -> None:
    imap.ok("NOTIFY SET (subscribed (MessageNew MessageExpunge)) (personal (SubscriptionChange))")
    two.deliver(user, MESSAGE, mailbox="Archive")
    other.ok("SUBSCRIBE Archive")
    assert b"\\Subscribed" in told(imap)[0]
    two.deliver(user, MESSAGE, mailbox="Archive")
    assert told(imap)[0].startswith(b'STATUS "Archive" (MESSAGES 2 ')


def test_what_is_refused(imap: ImapClient, other: ImapClient) -> None:
    for form in (
        "(selected (MessageNew))",
        "(selected (FlagChange))",
        "(personal (MessageExpunge))",
        "(selected (MessageNew MessageExpunge MailboxName))",
        "(selected NONE) (selected-delayed NONE)",
        "(personal (MessageNew (UID) MessageExpunge))",
        "(elsewhere (MailboxName))",
        "(mailboxes (MailboxName))",
        "(personal (MailboxName MailboxName))",
        "personal (MailboxName)",
        "(personal ())",
        "",
    ):
        imap.bad(f"NOTIFY SET {form}")
    imap.bad("NOTIFY")
    imap.bad("NOTIFY NONE x")
    for event in ("AnnotationChange", "Nonsense"):
        assert imap.no(f"NOTIFY SET (selected (MessageNew MessageExpunge {event}))").startswith(
            b"NO [BADEVENT (MessageNew MessageExpunge FlagChange MailboxName "
        )
    for number in range(20):
        other.ok(f"CREATE box{number}")
    assert b"[NOTIFICATIONOVERFLOW]" in imap.no("NOTIFY SET (personal (MailboxName))")


def test_nothing_is_left_of_a_session_that_is_gone(two: TwoWorkers, user: str) -> None:
    hubs = two.worker.doors._hubs._hubs
    with two.login_at(0, user) as imap:
        imap.ok("NOTIFY SET (personal (MailboxName))")
        assert (user, user) in two.call(lambda: set(hubs))
        imap.begin("NOTIFY SET STATUS (personal (MailboxName)) (subtree INBOX (MailboxName))")
    end = time.monotonic() + 60
    while (user, user) in two.call(lambda: set(hubs)):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_too_much_happens(two: TwoWorkers, user: str, imap: ImapClient, other: ImapClient) -> None:
    """A client that does not read is told at last that it was not told (RFC 5465 §5.8)."""
    two.deliver(user, MESSAGE + b"0123456789\r\n" * (1 << 20))
    imap.ok("NOTIFY SET (personal (MailboxName SubscriptionChange))")
    imap.ok("SELECT INBOX")
    tag = imap.begin("FETCH 1 BODY[]")
    for number in range(100):
        other.ok(f"SUBSCRIBE a-rather-long-name-of-a-mailbox-{number}")
    imap.finish(tag)
    assert told(imap)[0].startswith(b"OK [NOTIFICATIONOVERFLOW]")
    two.deliver(user, MESSAGE)
    other.ok("CREATE more")
    assert imap.ok("NOOP") == []  # as if it had said NOTIFY NONE
