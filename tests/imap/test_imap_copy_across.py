"""COPY and MOVE between a user's own mailboxes and others'."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from imap.rig import ALICE, BOB, MESSAGE, ImapClient, ImapGateway

LARGE = MESSAGE + b"0123456789abcdef\r\n" * (1 << 18)
BOX = f'"Other Users/{ALICE}/box"'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapGateway]:
    with ImapGateway(tmp_path_factory.mktemp("across")) as running:
        running.add_account(ALICE)
        running.add_account(BOB, quota_octets=8 << 20)
        yield running


@pytest.fixture
def clients(gateway: ImapGateway) -> Iterator[tuple[ImapClient, ImapClient]]:
    """The owner of the mailbox, and who has rights on it."""
    with gateway.login(ALICE) as a, gateway.login(BOB) as b:
        for number in (1, 2):
            gateway.deliver(
                ALICE,
                b"X-Number: %d\r\n" % number + MESSAGE,
                mailbox="box",
                flags=("\\Seen", "word"),
            )
        gateway.deliver(ALICE, LARGE, mailbox="box")
        a.ok(f"SETACL box {BOB} lrswite")
        b.ok("CREATE copies")
        yield a, b
        a.ok("DELETE box")
        b.ok("DELETE copies")


def bodies(client: ImapClient, mailbox: str) -> list[bytes]:
    client.ok(f"SELECT {mailbox}")
    found = (
        client.ok("FETCH 1:* (FLAGS INTERNALDATE BODY.PEEK[])") if count(client, mailbox) else []
    )
    return [re.sub(rb"^\d+ | ?\\Recent", b"", one) for one in found]


def count(client: ImapClient, mailbox: str) -> int:
    [line] = client.ok(f"STATUS {mailbox} (MESSAGES)")
    return int(line.rsplit(b" ", 1)[1][:-1])


def test_copies_are_the_same(clients: tuple[ImapClient, ImapClient]) -> None:
    _, b = clients
    theirs = bodies(b, BOX)
    _, tagged = b.cmd("COPY 1:* copies")
    assert re.match(rb"OK \[COPYUID \d+ 1:3 1:3\]", tagged)
    assert bodies(b, "copies") == theirs
    b.ok("COPY 1:2 " + BOX)
    assert count(b, BOX) == 5


def test_a_move_takes_them_away(clients: tuple[ImapClient, ImapClient]) -> None:
    a, b = clients
    theirs = bodies(b, BOX)
    moved = b.ok("MOVE 1,3 copies")
    assert re.match(rb"OK \[COPYUID \d+ 1,3 1:2\]", moved[0])
    assert moved[1:] == [b"3 EXPUNGE", b"1 EXPUNGE"]
    assert bodies(b, "copies") == [theirs[0], theirs[2]]
    assert bodies(a, "box") == [theirs[1]]


def test_rights_say_which_flags_come_along(clients: tuple[ImapClient, ImapClient]) -> None:
    a, b = clients
    b.ok(f"SELECT {BOX}")
    b.ok("COPY 1 copies")
    a.ok(f"SETACL box {BOB} lri")
    b.ok("SELECT copies")
    b.ok(f"COPY 1 {BOX}")
    a.ok("SELECT box")
    assert (
        b"FLAGS (\\Recent)" in a.ok("FETCH 4 FLAGS")[0] or b"FLAGS ()" in a.ok("FETCH 4 FLAGS")[0]
    )
    a.ok(f"SETACL box {BOB} lr")
    assert b"[NOPERM]" in b.no(f"COPY 1 {BOX}")
    a.ok(f"DELETEACL box {BOB}")
    assert b"[TRYCREATE]" in b.no(f"COPY 1 {BOX}")


def test_all_or_nothing(clients: tuple[ImapClient, ImapClient], gateway: ImapGateway) -> None:
    _, b = clients
    gateway.deliver(ALICE, LARGE, LARGE, mailbox="box")
    b.ok(f"SELECT {BOX}")
    assert b"[OVERQUOTA]" in b.no("COPY 1:* copies")
    assert b"[OVERQUOTA]" in b.no("MOVE 1:* copies")
    assert count(b, "copies") == 0
    assert count(b, BOX) == 5


def appended(untagged: list[bytes]) -> int:
    """The UID that REPLACE tells before the EXPUNGE."""
    found = re.fullmatch(rb"OK \[APPENDUID \d+ (\d+)\] .*", untagged[0])
    assert found, untagged
    return int(found[1])


@pytest.mark.parametrize("size", [40, 100_000, 3 << 20])
def test_replace_puts_the_new_message_into_another_account(
    clients: tuple[ImapClient, ImapClient], size: int
) -> None:
    a, b = clients
    new = (MESSAGE + b"x" * 80 + b"\r\n")[:size] + b"0123456789abcdef\r\n" * (size // 18)
    b.ok("APPEND copies {3+}\r\nold")
    b.ok("SELECT copies")
    untagged = b.ok(f"REPLACE 1 {BOX} (\\Flagged) ".encode() + b"{%d+}\r\n%b" % (len(new), new))
    assert appended(untagged) == 4 and untagged[1:] == [b"1 EXPUNGE"]
    a.ok("SELECT box")
    [found] = a.ok("UID FETCH 4 (FLAGS BODY.PEEK[])")
    assert b"\\Flagged" in found and found.endswith(new + b")")
    b.ok(f"SELECT {BOX}")
    untagged = b.ok(b"UID REPLACE 4 copies {3+}\r\nnew")
    assert appended(untagged) == 2 and untagged[1:] == [b"4 EXPUNGE"]
    assert len(bodies(b, "copies")) == 1 and count(b, BOX) == 3


def test_replace_changes_nothing_where_one_half_of_it_is_refused(
    clients: tuple[ImapClient, ImapClient],
) -> None:
    a, b = clients
    b.ok("APPEND copies {3+}\r\nold")
    b.ok("SELECT copies")
    a.ok(f"SETACL box {BOB} lr")
    assert b.no(f"REPLACE 1 {BOX} ".encode() + b"{3+}\r\nnew").startswith(b"NO [NOPERM] ")
    a.ok(f"SETACL box {BOB} lrswi")
    b.ok(f"SELECT {BOX}")  # where bob may not expunge
    assert b.no(b"REPLACE 1 copies {3+}\r\nnew").startswith(b"NO [NOPERM] ")
    a.ok(f"SETACL box {BOB} lrswite")
    b.ok(f"SELECT {BOX}")
    literal = b"{%d+}\r\n%b" % (len(LARGE), LARGE)
    b.ok(b"APPEND copies " + literal)
    assert b.no(b"REPLACE 1 copies " + literal).startswith(b"NO [OVERQUOTA] ")
    assert (count(b, "copies"), count(b, BOX)) == (2, 3)


def test_what_is_gone_is_replaced_by_nothing(clients: tuple[ImapClient, ImapClient]) -> None:
    """The new message is stored first; it is taken back when the old one cannot be removed any more."""
    a, b = clients
    b.ok(f"SELECT {BOX}")
    a.ok("SELECT box")
    a.ok("STORE 1 +FLAGS (\\Deleted)")
    a.ok("EXPUNGE")  # which b has not heard of
    untagged, tagged = b.cmd(b"REPLACE 1 copies {3+}\r\nnew")
    assert tagged.startswith(b"NO [EXPUNGEISSUED] ") and b"1 EXPUNGE" in untagged
    assert (count(b, "copies"), count(b, BOX)) == (0, 2)
