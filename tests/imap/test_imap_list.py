"""Names of mailboxes: LIST and LSUB with all options, CREATE and its kin, STATUS, NAMESPACE."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from imap.rig import MESSAGE, ImapClient, ImapGateway


@pytest.fixture
def imap(gateway: ImapGateway, account: str) -> Iterator[ImapClient]:
    with gateway.login(account) as client:
        yield client


def names(responses: list[bytes]) -> list[str]:
    """Of LIST and LSUB responses, with their attributes, other than those about children."""
    found = []
    for response in responses:
        match = re.fullmatch(rb'L(?:IST|SUB) \((.*?)\) "/" "(.*?)"( .*)?', response)
        assert match, response
        attributes = [
            word
            for word in match[1].decode().split()
            if word not in ("\\HasChildren", "\\HasNoChildren")
        ]
        found.append(" ".join([match[2].decode(), *attributes]) + (match[3] or b"").decode())
    return found


FIRST = [
    "Archive \\Archive",
    "Drafts \\Drafts",
    "INBOX",
    "Junk \\Junk",
    "Sent \\Sent",
    "Trash \\Trash",
]


def test_a_new_account(imap: ImapClient) -> None:
    assert names(imap.ok('LIST "" *')) == FIRST
    assert names(imap.ok('LIST "" %')) == FIRST
    assert imap.ok('LIST "" ""') == [b'LIST (\\Noselect) "/" ""']
    assert imap.ok('LIST "" inbox') == [b'LIST (\\HasNoChildren) "/" "INBOX"']
    assert imap.ok('LIST "" nothing') == imap.ok('LSUB "" *') == []
    assert imap.ok("NAMESPACE") == [b'NAMESPACE (("" "/")) (("Other Users/" "/")) NIL']
    assert names(imap.ok('LIST "" (Dra% "Sent")')) == ["Drafts \\Drafts", "Sent \\Sent"]
    assert names(imap.ok('LIST (SPECIAL-USE) "" %')) == [one for one in FIRST if one != "INBOX"]


def test_create_and_what_lies_above(imap: ImapClient) -> None:
    _, tagged = imap.cmd("CREATE a/b/c")
    assert re.fullmatch(rb"OK \[MAILBOXID \(F[0-9a-f]{8}(-[0-9a-f]+){2}\)\] .*", tagged)
    assert imap.ok('LIST "" a*') == [
        b'LIST (\\HasChildren) "/" "a"',
        b'LIST (\\HasChildren) "/" "a/b"',
        b'LIST (\\HasNoChildren) "/" "a/b/c"',
    ]
    assert names(imap.ok("LIST a/ %")) == ["a/b"]
    imap.ok("CREATE d/")
    assert names(imap.ok('LIST "" d')) == ["d"]
    for name in ("a", "a/b/c", "INBOX", "inbox"):
        assert b"[ALREADYEXISTS]" in imap.no(f"CREATE {name}")
    for name in ('""', "a//b", "/a", '"Other Users"', '"Other Users/x"'):
        assert re.match(rb"NO \[(CANNOT|NOPERM)\]", imap.no(f"CREATE {name}"))
    imap.bad("CREATE")
    imap.bad("CREATE a b")


def test_special_use(imap: ImapClient) -> None:
    imap.ok("CREATE Rubbish (USE (\\trash \\Junk))")
    assert names(imap.ok('LIST "" Rubbish')) == ["Rubbish \\Junk \\Trash"]
    assert b"[USEATTR]" in imap.no("CREATE x (USE (\\Nonsense))")
    imap.bad("CREATE x (USE \\Junk)")
    imap.bad("CREATE x (NOSUCH)")
    imap.ok('SETMETADATA Rubbish (/private/specialuse "\\\\Sent")')
    assert names(imap.ok('LIST (SPECIAL-USE) "" R*')) == ["Rubbish \\Sent"]
    imap.ok("SETMETADATA Rubbish (/private/specialuse NIL)")
    assert imap.ok('LIST (SPECIAL-USE) "" R*') == []


def test_delete(imap: ImapClient) -> None:
    imap.ok("CREATE a/b")
    imap.ok("DELETE a")
    assert imap.ok('LIST "" a*') == [
        b'LIST (\\Noselect \\HasChildren) "/" "a"',
        b'LIST (\\HasNoChildren) "/" "a/b"',
    ]
    assert imap.ok('LIST () "" a') == [b'LIST (\\NonExistent \\HasChildren) "/" "a"']
    assert b"[NONEXISTENT]" in imap.no("SELECT a")
    assert b"[NONEXISTENT]" in imap.no("DELETE a")
    imap.ok("DELETE a/b")
    assert imap.ok('LIST "" a*') == []
    assert b"[CANNOT]" in imap.no("DELETE INBOX")
    assert b"[NONEXISTENT]" in imap.no("DELETE a")


def test_deleting_what_somebody_has_selected(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, MESSAGE, MESSAGE, mailbox="doomed")
    with gateway.login(account) as one, gateway.login(account) as other:
        one.ok("SELECT doomed")
        other.ok("DELETE doomed")
        assert one.ok("NOOP") == [b"2 EXPUNGE", b"1 EXPUNGE"]
        other.ok("CREATE doomed")
        assert one.ok("NOOP") == []


def test_rename(gateway: ImapGateway, account: str, imap: ImapClient) -> None:
    gateway.deliver(account, MESSAGE, mailbox="a/b")
    before = imap.ok("STATUS a/b (MAILBOXID UIDVALIDITY MESSAGES)")
    imap.ok("RENAME a x/y")
    assert names(imap.ok('LIST "" *'))[6:] == ["x", "x/y", "x/y/b"]
    assert imap.ok("STATUS x/y/b (MAILBOXID UIDVALIDITY MESSAGES)") == [
        before[0].replace(b"a/b", b"x/y/b")
    ]
    assert b"[NONEXISTENT]" in imap.no("RENAME a z")
    assert b"[ALREADYEXISTS]" in imap.no("RENAME x INBOX")
    assert b"[CANNOT]" in imap.no("RENAME x x/y/z")
    # RFC 9051 §6.3.6: INBOX stays, its messages move
    gateway.deliver(account, MESSAGE, MESSAGE)
    imap.ok('SETMETADATA INBOX (/private/comment "mine")')
    imap.ok("RENAME INBOX old")
    assert imap.ok("STATUS old (MESSAGES)") == [b'STATUS "old" (MESSAGES 2)']
    assert imap.ok("STATUS INBOX (MESSAGES)") == [b'STATUS "INBOX" (MESSAGES 0)']
    for name in (b"old", b"INBOX"):  # RFC 5464 §4.1
        assert imap.ok(b"GETMETADATA %b /private/comment" % name) == [
            b'METADATA "%b" (/private/comment "mine")' % name
        ]


def test_subscriptions(imap: ImapClient) -> None:
    imap.ok("CREATE a/b/c")
    imap.ok("CREATE z")
    for name in ("a/b", "z", "gone/x", "inbox"):
        imap.ok(f"SUBSCRIBE {name}")
    assert names(imap.ok('LSUB "" *')) == ["INBOX", "a/b", "gone/x", "z"]
    assert names(imap.ok('LSUB "" %')) == ["INBOX", "a \\Noselect", "gone \\Noselect", "z"]
    assert names(imap.ok('LSUB "" a/%')) == ["a/b"]
    assert imap.ok('LSUB "" ""') == [b'LSUB (\\Noselect) "/" ""']
    assert names(imap.ok('LIST "" gone*')) == []
    assert names(imap.ok('LIST (SUBSCRIBED) "" *')) == [
        "INBOX \\Subscribed",
        "a/b \\Subscribed",
        "gone/x \\NonExistent \\Subscribed",
        "z \\Subscribed",
    ]
    assert names(imap.ok('LIST "" (a/b z a) RETURN (SUBSCRIBED)')) == [
        "a",
        "a/b \\Subscribed",
        "z \\Subscribed",
    ]
    imap.ok("CREATE here/x")
    imap.ok("RENAME here gone")  # what had no mailbox stays subscribed when it gets one
    assert names(imap.ok('LIST (SUBSCRIBED) "" gone*')) == ["gone/x \\Subscribed"]
    imap.ok("RENAME gone here")
    imap.ok("DELETE here/x")
    imap.ok("UNSUBSCRIBE here/x")
    imap.ok("SUBSCRIBE gone/x")
    imap.ok("UNSUBSCRIBE gone/x")
    imap.ok("UNSUBSCRIBE never")
    imap.ok("DELETE z")
    assert names(imap.ok('LIST (SUBSCRIBED) "" *')) == [
        "INBOX \\Subscribed",
        "a/b \\Subscribed",
        "z \\NonExistent \\Subscribed",
    ]


def test_recursive_matches_as_in_the_rfc(imap: ImapClient) -> None:
    """RFC 5258 §5, the examples 8 and 9."""
    for name in (
        "foo2/bar1",
        "foo2/bar2",
        "baz2/bar2",
        "baz2/bar22",
        "baz2/bar222",
        "eps2/mamba",
        "qux2/bar2",
    ):
        imap.ok(f"CREATE {name}")
        imap.ok(f"SUBSCRIBE {name}")
    imap.ok("SUBSCRIBE eps2")
    child = ' ("CHILDINFO" ("SUBSCRIBED"))'
    assert names(imap.ok('LIST (RECURSIVEMATCH SUBSCRIBED) "" "*2"')) == [
        "baz2/bar2 \\Subscribed",
        "baz2/bar22 \\Subscribed",
        "baz2/bar222 \\Subscribed",
        "eps2 \\Subscribed" + child,
        "foo2" + child,
        "foo2/bar2 \\Subscribed",
        "qux2/bar2 \\Subscribed",
    ]
    assert names(imap.ok('LIST (RECURSIVEMATCH SUBSCRIBED) "" %')) == [
        "baz2" + child,
        "eps2 \\Subscribed" + child,
        "foo2" + child,
        "qux2" + child,
    ]
    assert names(imap.ok('LIST (RECURSIVEMATCH SUBSCRIBED REMOTE) "" foo2')) == ["foo2" + child]
    imap.bad('LIST (RECURSIVEMATCH) "" *')


def test_list_tells_status_rights_and_annotations(
    gateway: ImapGateway, account: str, imap: ImapClient
) -> None:
    gateway.deliver(account, MESSAGE, MESSAGE, mailbox="a/b")
    imap.ok("DELETE a")
    imap.ok('SETMETADATA a/b (/shared/comment "note")')
    found = imap.ok(
        'LIST "" a* RETURN (STATUS (MESSAGES UNSEEN SIZE) MYRIGHTS METADATA (/shared/comment /private/x))'
    )
    assert found == [
        b'LIST (\\NonExistent \\HasChildren) "/" "a"',
        b'LIST (\\HasNoChildren) "/" "a/b"',
        b'STATUS "a/b" (MESSAGES 2 UNSEEN 2 SIZE %d)' % (2 * len(MESSAGE)),
        b'MYRIGHTS "a/b" lrswipkxteacd',
        b'METADATA "a/b" (/shared/comment "note" /private/x NIL)',
    ]


def test_names_in_other_scripts(imap: ImapClient) -> None:
    imap.ok("CREATE &AOk-")
    assert imap.ok('LIST "" &AOk-') == [b'LIST (\\HasNoChildren) "/" "&AOk-"']
    imap.ok("ENABLE IMAP4rev2")
    assert imap.ok('LIST "" "\u00e9"') == ['LIST (\\HasNoChildren) "/" "\u00e9"'.encode()]
    decomposed = 'LIST () "/" "\u00e8" ("OLDNAME" ("e\u0300"))'  # RFC 9051 §6.3.9.7
    assert imap.ok('CREATE "e\u0300"') == [decomposed.encode()]
    imap.ok('DELETE "e\u0300"')
    imap.ok("CREATE x/y")
    imap.ok("DELETE x")
    assert imap.ok('LIST "" x') == [b'LIST (\\NonExistent \\HasChildren) "/" "x"']


def test_status(gateway: ImapGateway, account: str, imap: ImapClient) -> None:
    gateway.deliver(account, MESSAGE, MESSAGE, MESSAGE, mailbox="box")
    imap.ok("SELECT box")
    imap.ok("STORE 1:2 +FLAGS.SILENT (\\Deleted)")
    imap.ok("UNSELECT")
    [found] = imap.ok(
        "STATUS box (MESSAGES UIDNEXT UNSEEN RECENT DELETED SIZE HIGHESTMODSEQ DELETED-STORAGE APPENDLIMIT)"
    )
    size = len(MESSAGE)
    limit = gateway.config.limits.message_octets
    match = re.fullmatch(
        rb'STATUS "box" \(MESSAGES 3 UIDNEXT 4 UNSEEN 3 RECENT 0 DELETED 2 SIZE %d HIGHESTMODSEQ \d+ '
        rb"DELETED-STORAGE %d APPENDLIMIT %d\)" % (3 * size, 2 * size, limit),
        found,
    )
    assert match, found
    assert b"[NONEXISTENT]" in imap.no("STATUS nothing (MESSAGES)")
    imap.bad("STATUS box ()")
    imap.bad("STATUS box (NOSUCH)")
    imap.ok("SELECT box")
    assert b" MODSEQ " in imap.ok("STORE 3 +FLAGS (\\Seen)")[0]  # HIGHESTMODSEQ was asked for
