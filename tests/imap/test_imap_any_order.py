"""Commands about mailboxes in any order, from two users at two workers: each is answered, and nothing is our fault."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from imap.rig import ALICE, BOB, MESSAGE, ImapClient
from imap.two_workers import TwoWorkers

COMMANDS = 1500
SECRET = b"nobody else reads this"

NAMES = (
    "INBOX", "a", "a/b", "a/b/c", '"b c"', "Archive", '"Other Users"', '"Other Users/{other}"',
    '"Other Users/{other}/INBOX"', '"Other Users/{other}/a"', '"Other Users/{other}/a/b"', '""', "Shared",
    '"Other Users/x/y"', "&AOk-", "inbox/x", '"Other Users/{me}/a"',
)  # fmt: skip
PATTERNS = ("*", "%", "a*", '"Other*"', "a/%", "%/%", "*b*", '""', "INBOX", '(a b* "Other%")')
RIGHTS = ("lr", "lrs", "+w", "-l", "lrswipkxtea", "cd", '""', "+x", "k", "z")
WHO = ("{other}", "{me}", "anyone", "-{other}", "authenticated", "nobody@example.test", "bob")
ENTRIES = (
    "/private/comment",
    "/shared/comment",
    "/private/specialuse",
    "/private",
    "/shared/a/b",
    "/bad",
)
ITEMS = (
    "MESSAGES", "UIDNEXT", "UIDVALIDITY", "UNSEEN", "RECENT", "DELETED", "SIZE", "HIGHESTMODSEQ", "MAILBOXID",
    "APPENDLIMIT", "DELETED-STORAGE",
)  # fmt: skip
EVENTS = (
    "NONE", "(MessageNew MessageExpunge)", "(MessageNew MessageExpunge FlagChange MailboxName)", "(MessageNew)",
    "(MailboxName SubscriptionChange MailboxMetadataChange ServerMetadataChange)", "(AnnotationChange)",
)  # fmt: skip
USE = " (USE (\\Junk))"
DELETE = "STORE 1:* +FLAGS (\\Deleted)"
SELECTED = "(selected (MessageNew (UID FLAGS BODY.PEEK[]) MessageExpunge FlagChange))"


def commands(chooser: random.Random) -> Iterator[str]:
    one = chooser.choice

    def items() -> str:
        return " ".join(chooser.sample(ITEMS, chooser.randint(1, 5)))

    def group() -> str:
        kind = one(
            (
                "personal",
                "inboxes",
                "subscribed",
                f"subtree {one(NAMES)}",
                f"mailboxes ({one(NAMES)})",
            )
        )
        return one((SELECTED, f"({kind} {one(EVENTS)})", f"({kind} {one(EVENTS)})"))

    selections = ("", "(SUBSCRIBED) ", "(SUBSCRIBED RECURSIVEMATCH) ", "(SPECIAL-USE) ", "() ")
    depths = ("", "(DEPTH 1) ", "(MAXSIZE 3) ", "(DEPTH infinity) ")
    kinds: tuple[Callable[[], str], ...] = (
        lambda: (
            f'LIST {one(selections)}"" {one(PATTERNS)} RETURN (STATUS ({items()}) MYRIGHTS SUBSCRIBED)'
        ),
        lambda: (
            f'LIST {one(selections)}"" {one(PATTERNS)} RETURN (METADATA (/shared/comment /private/comment))'
        ),
        lambda: f'LSUB "" {one(PATTERNS[:-1])}',
        lambda: f"CREATE {one(NAMES)}{one(('', USE))}",
        lambda: (
            f"{one(('DELETE', 'SUBSCRIBE', 'UNSUBSCRIBE', 'SELECT', 'EXAMINE', 'GETACL', 'MYRIGHTS'))} {one(NAMES)}"
        ),
        lambda: f"RENAME {one(NAMES)} {one(NAMES)}",
        lambda: f"STATUS {one(NAMES)} ({items()})",
        lambda: f"SETACL {one(NAMES)} {one(WHO)} {one(RIGHTS)}",
        lambda: f"{one(('DELETEACL', 'LISTRIGHTS'))} {one(NAMES)} {one(WHO)}",
        lambda: f"GETMETADATA {one(depths)}{one(NAMES)} ({one(ENTRIES)} {one(ENTRIES)})",
        lambda: (
            f"SETMETADATA {one(NAMES)} ({one(ENTRIES)} {one(('NIL', chr(34) + 'x' + chr(34)))})"
        ),
        lambda: f"GETQUOTAROOT {one(NAMES)}",
        lambda: f"NOTIFY SET {one(('', 'STATUS '))}{group()} {group()}",
        lambda: one(
            (
                "NOTIFY NONE",
                "NOOP",
                "UNSELECT",
                "EXPUNGE",
                "NAMESPACE",
                "ENABLE QRESYNC",
                "GETQUOTA {me}",
            )
        ),
        lambda: f"APPEND {one(NAMES)} {{{len(MESSAGE)}+}}\r\n{MESSAGE.decode()}",
        lambda: f"{one(('COPY', 'MOVE'))} 1:* {one(NAMES)}",
        lambda: one((DELETE, "FETCH 1:* (FLAGS BODY.PEEK[])")),
    )
    while True:
        yield one(kinds)()


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    chooser = random.Random(seed)
    with TwoWorkers(tmp_path_factory.mktemp("order"), "[limits]\nerrors = 10000\n") as gateway:
        gateway.add_account(ALICE, BOB)
        users = (ALICE, BOB, ALICE, BOB)
        clients: list[ImapClient] = [
            gateway.login_at(number // 2, user) for number, user in enumerate(users)
        ]
        gateway.deliver(ALICE, MESSAGE + SECRET, mailbox="private")
        clients[0].ok(b'SETMETADATA private (/shared/comment "%b")' % SECRET)
        answers: set[bytes] = set()
        for command, _ in zip(commands(chooser), range(COMMANDS), strict=False):
            number = chooser.randrange(4)
            me = users[number]
            text = command.replace("{me}", me).replace("{other}", BOB if me == ALICE else ALICE)
            try:
                untagged, tagged = clients[number].cmd(text)
            except EOFError:  # BYE: it may not read the mailbox any more
                clients[number] = gateway.login_at(number // 2, me)
                continue
            assert b"SERVERBUG" not in tagged, text
            if me == BOB:
                assert not any(SECRET in one for one in untagged), text
            answers.add(tagged.split()[0])
        for client in clients:
            client.close()
        assert answers == {b"OK", b"NO", b"BAD"}
        faults = [line for line in gateway.log() if line.get("level") == "error"]
        assert not faults, faults[0]
