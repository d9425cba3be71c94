"""Access rights: whose mailboxes somebody sees, and what may be done with them.  Two users, two workers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

import pytest
from imap.rig import MESSAGE, ImapClient, ImapGateway
from imap.two_workers import TwoWorkers

from gateway.server.imap.commands import HANDLERS

_number = count(1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoWorkers]:
    toml = '[imap]\nshared_account = "office@example.test"\nacl_entries = 5\n'
    with TwoWorkers(tmp_path_factory.mktemp("acl"), toml) as running:
        running.add_account("office@example.test")
        yield running


class Pair:
    """An owner at the first worker, and another user at the second."""

    def __init__(self, gateway: TwoWorkers) -> None:
        number = next(_number)
        self.gateway = gateway
        self.owner, self.user = f"owner{number}@example.test", f"user{number}@example.test"
        gateway.add_account(self.owner, self.user)
        gateway.deliver(self.owner, MESSAGE, MESSAGE, mailbox="box")
        self.a = gateway.login_at(0, self.owner)
        self.b = gateway.login_at(1, self.user)

    def name(self, mailbox: str = "box") -> str:
        """The owner's mailbox as the other one calls it."""
        return f'"Other Users/{self.owner}/{mailbox}"'

    def grant(self, rights: str, mailbox: str = "box") -> None:
        self.a.ok(f"SETACL {mailbox} {self.user} {rights}")


@pytest.fixture
def pair(two: TwoWorkers) -> Iterator[Pair]:
    pair = Pair(two)
    yield pair
    pair.a.close()
    pair.b.close()


def listed(client: ImapClient, pattern: str) -> list[str]:
    return [
        match[1].decode()
        for one in client.ok(f'LIST "" {pattern}')
        if (match := re.fullmatch(rb'LIST \(.*\) "/" "(.*)"', one)) and b"\\Noselect" not in one
    ]


def test_rights_are_set_shown_and_taken_away(pair: Pair) -> None:
    a, owner, user = pair.a, pair.owner.encode(), pair.user.encode()
    all_rights = b"lrswipkxteacd"
    assert a.ok("GETACL box") == [b'ACL "box" %b %b' % (owner, all_rights)]
    assert a.ok("MYRIGHTS box") == [b'MYRIGHTS "box" %b' % all_rights]
    pair.grant("lr")
    pair.grant("+sk")
    pair.grant("-r")
    assert a.ok("GETACL box")[0].endswith(b" %b lskc" % user)
    pair.grant("cd")  # RFC 4314 §2.1.1
    assert a.ok("GETACL box")[0].endswith(b" %b kxtecd" % user)
    a.ok("SETACL box ANYONE lr")
    a.ok("SETACL box -anyone r")
    assert a.ok("GETACL box")[0].endswith(b"-anyone r anyone lr %b kxtecd" % user)
    a.ok(f"DELETEACL box {pair.user}")
    a.ok("DELETEACL box -anyone")
    a.ok('SETACL box anyone ""')
    assert a.ok("GETACL box") == [b'ACL "box" %b %b' % (owner, all_rights)]
    assert a.ok(f"LISTRIGHTS box {pair.user}") == [
        b'LISTRIGHTS "box" %b "" l r s w i p k x t e a c d' % user
    ]
    assert a.ok(f"LISTRIGHTS box {pair.owner}") == [b'LISTRIGHTS "box" %b %b' % (owner, all_rights)]
    a.bad(f"SETACL box {pair.user} lz")
    a.bad(f"SETACL box {pair.user}")
    assert b"[CANNOT]" in a.no("SETACL box nobody@example.test l")
    assert b"[CANNOT]" in a.no(f"SETACL box {pair.owner} l")
    assert b"[CANNOT]" in a.no(f"DELETEACL box {pair.owner}")
    assert b"[NONEXISTENT]" in a.no(f"SETACL nothing {pair.user} l")
    assert b"[NONEXISTENT]" in a.no("GETACL nothing")


def test_lists_are_bounded(pair: Pair) -> None:
    for number in range(5):
        pair.gateway.add_account(f"x{number}.{pair.owner}")
        pair.a.ok(f"SETACL box x{number}.{pair.owner} l")
    assert b"[LIMIT]" in pair.a.no(f"SETACL box {pair.user} l")


def test_mailboxes_of_others_are_listed(pair: Pair) -> None:
    a, b = pair.a, pair.b
    below = f"Other Users/{pair.owner}"
    assert listed(b, f'"{below}*"') == []
    a.ok("CREATE box/deep")
    pair.grant("lr", "box/deep")
    assert listed(b, f'"{below}*"') == [f"{below}/box/deep"]
    assert b.ok(f'LIST "" "{below[:-1]}%"') == [
        b'LIST (\\Noselect \\HasChildren) "/" "%b"' % below.encode()
    ]
    pair.grant("lr")
    assert listed(b, f'"{below}*"') == [f"{below}/box", f"{below}/box/deep"]
    a.ok("CREATE box/deep/new")  # shared like the one it lies in
    assert listed(b, "*deep/new") == [f"{below}/box/deep/new"]
    b.ok(f"SUBSCRIBE {pair.name()}")
    assert b.ok('LSUB "" *') == [b'LSUB () "/" "%b/box"' % below.encode()]
    assert b.ok('LIST (SUBSCRIBED) "" *') == [
        b'LIST (\\HasChildren \\Subscribed) "/" "%b/box"' % below.encode()
    ]
    found = b.ok('LIST "" */box RETURN (STATUS (MESSAGES) MYRIGHTS)')
    assert found[1:] == [
        b'STATUS "%b/box" (MESSAGES 2)' % below.encode(),
        b'MYRIGHTS "%b/box" lr' % below.encode(),
    ]
    pair.grant("l")  # no STATUS without "r"
    assert len(b.ok('LIST "" */box RETURN (STATUS (MESSAGES))')) == 1
    pair.grant("-l")
    pair.grant("-l", "box/deep")
    pair.grant("-l", "box/deep/new")
    assert listed(b, f'"{below}*"') == []
    a.ok('SETMETADATA box (/private/specialuse "\\\\Junk")')
    pair.grant("lr")
    assert b"Junk" not in b.ok('LIST "" */box')[0]  # that is the owner's


def test_each_operation_needs_its_right(pair: Pair) -> None:
    """RFC 4314 §4."""
    b, name = pair.b, pair.name()
    pair.grant("lr")
    b.ok(f"SELECT {name}")
    assert b"NOPERM" in b.no("STORE 1 +FLAGS (\\Flagged)") or b"READ-ONLY" in b.no(
        "STORE 1 +FLAGS (\\Flagged)"
    )
    b.ok("FETCH 1 BODY[]")  # without "s" nothing becomes \Seen
    assert b"\\Seen" not in b.ok("FETCH 1 FLAGS")[0]
    pair.grant("lrs")
    b.ok(f"SELECT {name}")
    b.ok("STORE 1 +FLAGS (\\Seen)")
    for flags in ("\\Flagged", "keyword", "\\Deleted"):
        _, tagged = b.cmd(f"STORE 1 +FLAGS ({flags})")
        assert flags.encode() not in b.ok("FETCH 1 FLAGS")[0], tagged
    pair.grant("lrsw")
    b.ok("STORE 1 +FLAGS (\\Flagged keyword)")
    b.cmd("STORE 1 +FLAGS (\\Deleted)")
    assert b"\\Deleted" not in b.ok("FETCH 1 FLAGS")[0]
    pair.grant("lrswt")
    b.ok("STORE 1 +FLAGS (\\Deleted)")
    assert b"[NOPERM]" in b.no("EXPUNGE")
    b.ok("CLOSE")
    assert b.ok(f"STATUS {name} (MESSAGES)")[0].endswith(b"(MESSAGES 2)")
    pair.grant("lrswte")
    b.ok(f"SELECT {name}")
    assert b.ok("EXPUNGE") == [b"1 EXPUNGE"]
    append = f"APPEND {name} {{{len(MESSAGE)}+}}\r\n".encode() + MESSAGE
    assert b"[NOPERM]" in b.no(append)
    pair.grant("lrswtei")
    assert b"2 EXISTS" in b.ok(append)
    assert b"[NOPERM]" in b.no(f"CREATE {pair.name('box/new')}")
    assert b"[NOPERM]" in b.no(f"DELETE {name}")
    assert b"[NOPERM]" in b.no(f"RENAME {name} {pair.name('other')}")
    pair.grant("+k")
    b.ok(f"CREATE {pair.name('box/new')}")
    assert b"[NOPERM]" in b.no(f"RENAME {pair.name('box/new')} {pair.name('box/newer')}")
    pair.grant("+x", "box/new")
    b.ok(f"RENAME {pair.name('box/new')} {pair.name('box/newer')}")
    assert b"[CANNOT]" in b.no(f"RENAME {pair.name('box/newer')} mine")
    assert b"[NOPERM]" in b.no(f"RENAME {pair.name('box/newer')} {pair.name('top')}")
    b.ok(f"DELETE {pair.name('box/newer')}")
    assert b"[NOPERM]" in b.no(f"GETACL {name}")
    assert b"[NOPERM]" in b.no(f"SETACL {name} {pair.user} lrswipkxtea")
    pair.grant("+a")
    b.ok(f"SETACL {name} anyone l")
    assert b" anyone l " in b.ok(f"GETACL {name}")[0]


def test_post_alone_takes_mail_but_shows_none(pair: Pair) -> None:
    pair.grant("i")
    append = f"APPEND {pair.name()} {{{len(MESSAGE)}+}}\r\n".encode() + MESSAGE
    pair.b.ok(append)
    assert b"[NONEXISTENT]" in pair.b.no(f"SELECT {pair.name()}")
    assert pair.a.ok("STATUS box (MESSAGES)") == [b'STATUS "box" (MESSAGES 3)']
    assert listed(pair.b, f'"Other Users/{pair.owner}*"') == []


def test_rights_that_change_while_the_mailbox_is_selected(pair: Pair) -> None:
    a, b = pair.a, pair.b
    pair.grant("lrswte")
    b.ok(f"SELECT {pair.name()}")
    pair.grant("lr")
    untagged, tagged = b.cmd("STORE 1 +FLAGS (\\Deleted)")
    assert tagged.startswith(b"NO"), tagged
    assert b"OK [PERMANENTFLAGS ()] Limited" in untagged
    tag = b.idle()
    assert tag
    a.ok(f"DELETEACL box {pair.user}")
    assert b.response().startswith(b"* OK") or True
    with pytest.raises(EOFError):
        while not b.response().startswith(b"* BYE [NOPERM]"):
            pass
        b.response()


def test_shared_mailboxes_of_the_site(pair: Pair, two: TwoWorkers) -> None:
    with two.login_at(0, "office@example.test") as office:
        office.cmd("CREATE News")
        office.ok("SETACL News anyone lrs")
        assert office.ok("NAMESPACE") == [b'NAMESPACE (("" "/")) (("Other Users/" "/")) NIL']
        assert "News" in listed(office, "*")
    assert pair.b.ok("NAMESPACE") == [
        b'NAMESPACE (("" "/")) (("Other Users/" "/")) (("Shared/" "/"))'
    ]
    assert listed(pair.b, '"Shared/*"') == ["Shared/News"]
    assert pair.b.ok('LIST "" Shared')[0] == b'LIST (\\Noselect \\HasChildren) "/" "Shared"'
    pair.b.ok("SELECT Shared/News")
    assert b"[NOPERM]" in pair.b.no("CREATE Shared/Mine")
    assert b"[NONEXISTENT]" in pair.b.no("SELECT Shared/INBOX")


# Every command with a mailbox as its argument; {} is the name.
WITH_MAILBOX = {
    b"SELECT": ["SELECT {}"],
    b"EXAMINE": ["EXAMINE {}"],
    b"CREATE": ["CREATE {}/x", "CREATE {}"],
    b"DELETE": ["DELETE {}"],
    b"RENAME": ["RENAME {} mine", "RENAME own {}/x"],
    b"SUBSCRIBE": ["SUBSCRIBE {}"],
    b"STATUS": ["STATUS {} (MESSAGES)"],
    b"APPEND": ["APPEND {} {{3+}}\r\nA\r\n"],
    b"COPY": ["COPY 1 {}"],
    b"UID COPY": ["UID COPY 1 {}"],
    b"MOVE": ["MOVE 1 {}"],
    b"UID MOVE": ["UID MOVE 1 {}"],
    b"REPLACE": ["REPLACE 1 {} {{3+}}\r\nA\r\n"],
    b"UID REPLACE": ["UID REPLACE 1 {} {{3+}}\r\nA\r\n"],
    b"SETACL": ["SETACL {} anyone l"],
    b"DELETEACL": ["DELETEACL {} anyone"],
    b"GETACL": ["GETACL {}"],
    b"LISTRIGHTS": ["LISTRIGHTS {} anyone"],
    b"MYRIGHTS": ["MYRIGHTS {}"],
    b"GETQUOTAROOT": ["GETQUOTAROOT {}"],
    b"GETMETADATA": ["GETMETADATA {} (/private/comment /shared/comment)"],
    b"SETMETADATA": [
        'SETMETADATA {} (/private/comment "x")',
        'SETMETADATA {} (/shared/comment "x")',
    ],
    b"RESETKEY": ["RESETKEY {}"],
    b"LIST": ['LIST "" {} RETURN (STATUS (MESSAGES) MYRIGHTS METADATA (/shared/comment))'],
    b"LSUB": ['LSUB "" {}'],
    b"ESEARCH": ["ESEARCH IN (mailboxes {}) ALL", "ESEARCH IN (subtree {}) ALL"],
    b"NOTIFY": ["NOTIFY SET STATUS (mailboxes {} (MessageNew MessageExpunge MailboxName))"],
}
# They name no mailbox, or only one whose name is the user's own (UNSUBSCRIBE).
WITHOUT = frozenset(
    b"APPENDLIMIT AUTHENTICATE CANCELUPDATE CAPABILITY CHECK CLOSE COMPRESS ENABLE EXPUNGE FETCH GENURLAUTH "
    b"GETQUOTA ID IDLE LOGIN LOGOUT NAMESPACE NOOP SEARCH SETQUOTA SORT STARTTLS STORE THREAD UIDBATCHES "
    b"UNAUTHENTICATE UNSELECT UNSUBSCRIBE URLFETCH".split()
)


def test_no_command_with_a_mailbox_was_forgotten() -> None:
    known = WITHOUT | set(WITH_MAILBOX)
    assert [name for name in HANDLERS if name.removeprefix(b"UID ") not in known] == []


def test_nothing_is_told_of_mailboxes_without_rights(pair: Pair) -> None:
    """Whatever is asked, the answer is the one for a mailbox, and for an account, that do not exist."""
    a, b = pair.a, pair.b
    a.ok('SETMETADATA box (/shared/comment "private affairs")')
    a.ok("CREATE box/below")
    b.ok("CREATE own")
    pair.gateway.deliver(pair.user, MESSAGE)
    nobody = f"nobody{pair.owner}"
    places = [
        (f"Other Users/{pair.owner}/box", f"Other Users/{pair.owner}/gone", pair.owner),
        (f"Other Users/{pair.owner}/box", f"Other Users/{nobody}/box", nobody),
        ("Shared/INBOX", "Shared/Nothing", ""),
    ]
    for there, missing, _ in places:
        for forms in WITH_MAILBOX.values():
            for form in forms:
                answers = []
                for name in (there, missing):
                    b.ok("SELECT INBOX")
                    untagged, tagged = b.cmd(
                        form.format(f'"{name}"').replace('"/x', '/x"').encode()
                    )
                    text = b"\n".join([*untagged, tagged])
                    answers.append(text.replace(name.encode(), b"NAME"))
                assert answers[0] == answers[1], form
                assert b"private affairs" not in answers[0]
    # And it was not touched.
    assert a.ok("STATUS box (MESSAGES)") == [b'STATUS "box" (MESSAGES 2)']
    assert [one.rsplit(b'"', 2)[1] for one in a.ok('LIST "" box*')] == [b"box", b"box/below"]
    assert a.ok("GETACL box") == [b'ACL "box" %b lrswipkxteacd' % pair.owner.encode()]
    assert b.ok("GETQUOTAROOT INBOX")[0].split()[-1] == f'"{pair.user}"'.encode()
    assert b"[NONEXISTENT]" in b.no(f"GETQUOTA {pair.owner}")


def test_names_that_only_lead_somewhere(gateway: ImapGateway, account: str) -> None:
    with gateway.login(account) as imap:
        for name in (
            '"Other Users"',
            '"Other Users/"',
            f'"Other Users/{account}/INBOX"',
            '"Other Users/x"',
        ):
            assert b"[NONEXISTENT]" in imap.no(
                f"STATUS {name} (MESSAGES)"
            ) or b"[CANNOT]" in imap.no(f"STATUS {name} (MESSAGES)")


def test_urls_lead_no_further_than_names(pair: Pair) -> None:
    """CATENATE (RFC 4469) and URLFETCH (RFC 4467)."""
    b = pair.b
    for mailbox in ("box", "gone"):
        url = f"/Other%20Users/{pair.owner}/{mailbox}/;UID=1"
        assert b"[BADURL" in b.no(f'APPEND INBOX CATENATE (URL "{url}")')
        absolute = f"imap://{pair.user}@mx.example.test{url};URLAUTH=user+{pair.user}"
        _, tagged = b.cmd(f'GENURLAUTH "{absolute}" INTERNAL')
        assert tagged.startswith((b"NO", b"BAD")), tagged
    assert b.ok("STATUS INBOX (MESSAGES)") == [b'STATUS "INBOX" (MESSAGES 0)']
    pair.grant("lr")
    b.ok(f'APPEND INBOX CATENATE (URL "/Other%20Users/{pair.owner}/box/;UID=1")')
    assert b.ok("STATUS INBOX (MESSAGES)") == [b'STATUS "INBOX" (MESSAGES 1)']


def test_a_mailbox_id_is_one_mailboxs_among_all_that_a_user_sees(pair: Pair) -> None:
    """RFC 8474 §4: also where two accounts were made in the same second."""
    pair.b.ok("CREATE box")
    pair.grant("lr", "INBOX")
    pair.grant("lr")
    lines = pair.b.ok('LIST "" "*" RETURN (STATUS (MAILBOXID))')
    ids = re.findall(rb"MAILBOXID \((\S+)\)", b" ".join(lines))
    assert len(ids) >= 9 and len(set(ids)) == len(ids)
    for name in ("INBOX", pair.name(), pair.name("INBOX")):
        [told] = [line for line in pair.b.ok(f"SELECT {name}") if b"MAILBOXID" in line]
        again = pair.b.ok(f"STATUS {name} (MAILBOXID)")[0]
        assert re.findall(rb"\((\S+)\)", told)[0] in again and re.findall(rb"MAILBOXID \((\S+)\)", again)[0] in ids
