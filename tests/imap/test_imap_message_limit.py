"""MESSAGELIMIT (RFC 9738) and UIDBATCHES (RFC 10022)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from imap.rig import ALICE, ImapClient, ImapGateway

LIMIT = 3
CONFIG = f"[imap]\nmessages_per_command = {LIMIT}\n"
BOX = [2, 3, 5, 7, 8, 9]  # UIDs; 1, 4 and 6 are gone
_names = (f"box{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapGateway]:
    with ImapGateway(tmp_path_factory.mktemp("imap"), CONFIG) as running:
        running.add_account(ALICE)
        yield running


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapGateway]:
    with ImapGateway(tmp_path_factory.mktemp("imap")) as running:
        running.add_account(ALICE)
        yield running


def append(imap: ImapClient, name: str, count: int) -> None:
    """So many messages, as many at a time as may be."""
    for first in range(0, count, LIMIT):
        some = range(first, min(count, first + LIMIT))
        literals = (b"Subject: %d\r\n\r\n" % number for number in some)
        imap.ok(f"APPEND {name} ".encode() + b" ".join(b"{%d+}\r\n%b" % (len(one), one) for one in literals))


@pytest.fixture
def imap(gateway: ImapGateway) -> Iterator[ImapClient]:
    """In a mailbox with the UIDs of BOX."""
    with gateway.login() as client:
        name = next(_names)
        client.ok(f"CREATE {name}")
        append(client, name, 9)
        client.ok(f"SELECT {name}")
        client.ok("UID STORE 1,4,6 +FLAGS.SILENT (\\Deleted)")
        client.ok("EXPUNGE")
        yield client


def uids(imap: ImapClient) -> list[int]:
    """All that there are."""
    found = []
    for part in ("UIDAFTER 5", "UIDBEFORE 6"):
        found += [int(word) for word in imap.ok(f"UID SEARCH {part}")[0].split()[1:]]
    return sorted(found)


def test_it_is_announced(imap: ImapClient, unlimited: ImapGateway) -> None:
    assert b"MESSAGELIMIT=3" in imap.ok("CAPABILITY")[0].split()
    with unlimited.login() as other:
        assert b"LIMIT=3" not in other.ok("CAPABILITY")[0]


def test_fetch_and_store_go_down_from_the_newest(imap: ImapClient) -> None:
    fetched, tagged = imap.cmd("UID FETCH 1:* FLAGS")
    assert [line.split()[0] for line in fetched] == [b"4", b"5", b"6"]
    assert tagged.startswith(b"OK [MESSAGELIMIT 3 7] ")
    fetched, tagged = imap.cmd("UID FETCH 1:6 BODY.PEEK[]")  # the client goes on below it
    assert len(fetched) == 3 and tagged.startswith(b"OK Completed")
    assert imap.cmd("FETCH 1:4 (UID)")[1].startswith(b"OK [MESSAGELIMIT 3 3] ")
    assert len(imap.ok("UID FETCH 1:* (FLAGS) (PARTIAL -1:-3)")) == 3
    assert imap.no("UID FETCH 1:* (FLAGS) (PARTIAL 1:4)").startswith(b"NO [MESSAGELIMIT 3] ")
    imap.ok("STORE 6 +FLAGS (x)")  # a keyword that is new is announced
    stored, tagged = imap.cmd("STORE 1:* +FLAGS (x)")
    assert len(stored) == 3 and tagged.startswith(b"OK [MESSAGELIMIT 3 7] ")
    assert imap.ok("UID SEARCH UIDAFTER 1 KEYWORD x") == [b"SEARCH 7 8 9"]


def test_a_code_that_has_no_room_comes_untagged(imap: ImapClient) -> None:
    responses, tagged = imap.cmd("UID STORE 1:* (UNCHANGEDSINCE 1) +FLAGS (y)")
    assert tagged.startswith(b"OK [MODIFIED 7:9] ")
    assert any(line.startswith(b"NO [MESSAGELIMIT 3 7] ") for line in responses)
    since = imap.ok("UID FETCH 1:3 (FLAGS) (CHANGEDSINCE 1)")
    assert len(since) == 2  # those that changed count


def test_search_counts_what_is_searched(imap: ImapClient) -> None:
    found, tagged = imap.cmd("UID SEARCH ALL")
    assert found == [b"SEARCH 7 8 9"] and tagged.startswith(b"OK [MESSAGELIMIT 3 7] ")
    found, tagged = imap.cmd('UID SEARCH UIDBEFORE 7 SUBJECT "2"')
    assert found == [b"SEARCH 3"] and tagged.startswith(b"OK Completed")
    found, tagged = imap.cmd('SEARCH 1:4 SUBJECT "1"')  # the second, third and fourth are looked at
    assert found == [b"SEARCH"] and tagged.startswith(b"OK [MESSAGELIMIT 3 3] ")
    responses, tagged = imap.cmd("UID SEARCH RETURN (SAVE COUNT) ALL")
    assert b"COUNT 3" in responses[0] and b"[MESSAGELIMIT 3 7]" in tagged
    assert len(imap.ok("UID FETCH $ UID")) == 3
    assert uids(imap) == BOX
    assert imap.ok("UID SEARCH UIDAFTER 9") == imap.ok("UID SEARCH UIDBEFORE 1") == [b"SEARCH"]
    imap.bad("UID SEARCH UIDAFTER 1:2")


def test_what_must_be_whole_is_refused(imap: ImapClient) -> None:
    target = next(_names)
    imap.ok(f"CREATE {target}")
    assert imap.no(f"UID COPY 1:* {target}").startswith(b"NO [MESSAGELIMIT 3 7] ")
    assert imap.no("SORT (DATE) UTF-8 ALL").startswith(b"NO [MESSAGELIMIT 3] ")
    assert imap.no("UID THREAD REFS UTF-8 ALL").startswith(b"NO [MESSAGELIMIT 3] ")
    assert imap.ok("UID SORT (REVERSE ARRIVAL) UTF-8 UIDAFTER 6")[0].startswith(b"SORT ")
    message = b"{1+}\r\nx"
    assert imap.no(f"APPEND {target} ".encode() + b" ".join([message] * 4)).startswith(b"NO [MESSAGELIMIT 3] ")
    assert b"(MESSAGES 0)" in imap.ok(f"STATUS {target} (MESSAGES)")[0]
    assert b"[COPYUID" in imap.cmd(f"UID COPY 7:9 {target}")[1]


def test_move_and_uid_expunge(imap: ImapClient) -> None:
    target = next(_names)
    imap.ok(f"CREATE {target}")
    responses, tagged = imap.cmd(f"UID MOVE 1:* {target}")
    assert b" 7:9 1:3] Moved" in responses[0] and tagged.startswith(b"OK [MESSAGELIMIT 3 7] ")
    assert uids(imap) == BOX[:3]
    append(imap, target, 2)
    imap.ok(f"SELECT {target}")
    for some in ("1:3", "4:5"):
        imap.ok(f"UID STORE {some} +FLAGS (\\Deleted)")
    responses, tagged = imap.cmd("UID EXPUNGE 1:*")
    assert len(responses) == 3 and tagged.startswith(b"OK [MESSAGELIMIT 3 3] ")
    assert imap.cmd("UID EXPUNGE 1:2")[1].startswith(b"OK Completed")
    append(imap, target, 5)
    for some in ("6:8", "9:10"):
        imap.ok(f"UID STORE {some} +FLAGS (\\Deleted)")
    assert imap.cmd("EXPUNGE")[1].startswith(b"OK Completed")  # which is not limited
    assert uids(imap) == []


def test_a_refused_move_says_nothing_of_a_limit(imap: ImapClient) -> None:
    responses, tagged = imap.cmd("UID MOVE 1:* nowhere")
    assert not responses and tagged.startswith(b"NO [TRYCREATE] ")


# -- UIDBATCHES ------------------------------------------------------------------------------------------------------


def test_batches_never_exceed_the_limit(imap: ImapClient) -> None:
    tag = b"a%d" % (int(imap.begin("NOOP")[1:]) + 1)
    imap.response()
    assert imap.ok("UIDBATCHES 500") == [b'UIDBATCHES (TAG "%b") 9:7,6:1' % tag]


def batches(imap: ImapClient, arguments: str) -> list[tuple[int, int]]:
    [line] = imap.ok(f"UIDBATCHES {arguments}")
    word, _, ranges = line.partition(b") ")
    assert word.startswith(b"UIDBATCHES (TAG ")
    return [tuple(map(int, one.split(b":"))) for one in ranges.split(b",") if one]  # type: ignore[misc]


def test_uid_batches(unlimited: ImapGateway) -> None:
    count = 2300
    with unlimited.login() as imap:
        assert b"UIDBATCHES" in imap.ok("CAPABILITY")[0].split()
        imap.bad("UIDBATCHES 500")  # nothing is selected
        imap.ok("CREATE many")
        imap.ok("SELECT many")
        assert batches(imap, "500") == []
        imap.ok(b"APPEND many " + b" ".join(itertools.repeat(b"{1+}\r\nx", count)))
        imap.ok("UID STORE 1:7,40:110,1200:1250,2200:2300 +FLAGS.SILENT (\\Deleted)")
        imap.ok("EXPUNGE")
        there = sorted({*range(1, count + 1)} - {*range(1, 8), *range(40, 111), *range(1200, 1251), *range(2200, 2301)})
        found = batches(imap, "500")
        assert found[0][0] == there[-1] and found[-1][1] == 1
        assert all(low == high + 1 for (_, low), (high, _) in itertools.pairwise(found))
        held = [[uid for uid in there if low <= uid <= high] for high, low in found]
        assert [len(some) for some in held] == [500] * (len(there) // 500) + [len(there) % 500]
        assert [uid for some in reversed(held) for uid in some] == there
        assert batches(imap, "500 1:100000") == found
        for first, last in ((1, 1), (2, 3), (3, 4), (4, 9), (5, 5)):
            assert batches(imap, f"500 {first}:{last}") == found[first - 1 : last], (first, last)
        assert batches(imap, "500 2") == found[1:2]
        assert batches(imap, "100000") == [(there[-1], 1)]
        assert imap.no("UIDBATCHES 499").startswith(b"NO [TOOFEW] ")
        assert imap.bad("UIDBATCHES 500 3:2").startswith(b"BAD [CLIENTBUG] ")
        for wrong in ("", " 0", " x", " 500 0:1", " 500 1:", " 500 1:2 3", " 500 1:*"):
            imap.bad("UIDBATCHES" + wrong)
        imap.ok("ENABLE UIDONLY")
        assert batches(imap, "500") == found
