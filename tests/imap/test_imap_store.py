"""STORE, EXPUNGE, COPY, MOVE, and how others hear of them."""

from __future__ import annotations

import re

from imap.rig import MESSAGE, ImapGateway


def flags(responses: list[bytes]) -> dict[int, set[str]]:
    """{number: flags} of FETCH responses, without \\Recent."""
    found = (re.match(rb"(\d+) FETCH \(.*?FLAGS \(([^)]*)\)", response) for response in responses)
    return {int(one[1]): set(one[2].decode().split()) - {"\\Recent"} for one in found if one}


def test_store(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[MESSAGE] * 3)
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        assert flags(imap.ok(r"STORE 1:2 FLAGS (\Seen \Flagged)")) == {n: {"\\Seen", "\\Flagged"} for n in (1, 2)}
        assert flags(imap.ok(r"STORE 2,* -FLAGS \Seen")) == {2: {"\\Flagged"}, 3: set()}
        assert imap.ok(r"STORE 1:* +FLAGS.SILENT (\Answered)") == []
        assert imap.ok(r"UID STORE 3 +FLAGS (\Draft)") == [rb"3 FETCH (UID 3 FLAGS (\Answered \Draft \Recent))"]
        assert imap.ok(r"UID STORE 17 +FLAGS (\Draft)") == []
        untagged = imap.ok("STORE 1 +FLAGS ($Forwarded later)")
        assert any(one.startswith(b"FLAGS (") and b"$Forwarded later" in one for one in untagged)
        assert flags(untagged) == {1: {"\\Seen", "\\Flagged", "\\Answered", "$Forwarded", "later"}}
        for wrong in ("4 FLAGS x", r"1 FLAGS (\Recent)", r"1 FLAGS (\Strange)", "1 XFLAGS x", "1 FLAGS", "0 FLAGS x"):
            imap.bad(f"STORE {wrong}")


def test_unchanged_since(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[MESSAGE] * 3)
    with gateway.login(account) as imap, gateway.login(account) as other:
        imap.ok("SELECT INBOX (CONDSTORE)")
        modseq = int(re.findall(rb"MODSEQ \((\d+)\)", imap.ok("FETCH 3 MODSEQ")[0])[0])
        other.ok("SELECT INBOX")
        other.ok(r"STORE 2 +FLAGS (\Seen)")
        untagged, tagged = imap.cmd(rf"STORE 1:3 (UNCHANGEDSINCE {modseq}) +FLAGS (\Flagged)")
        assert tagged.startswith(b"OK [MODIFIED 2] ")
        assert flags(untagged) == {1: {"\\Flagged"}, 2: {"\\Seen"}, 3: {"\\Flagged"}}
        tagged = imap.cmd(rf"UID STORE 1:3 (UNCHANGEDSINCE {modseq}) +FLAGS.SILENT (\Draft)")[1]
        assert tagged.startswith(b"OK [MODIFIED 1:3] ")


def test_others_hear_of_it_with_their_next_command(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[MESSAGE] * 5)
    with gateway.login(account) as imap, gateway.login(account) as other:
        imap.ok("SELECT INBOX")
        other.ok("SELECT INBOX")
        imap.ok(r"STORE 2,4 +FLAGS.SILENT (\Deleted)")
        assert flags(other.ok("NOOP")) == {2: {"\\Deleted"}, 4: {"\\Deleted"}}
        assert imap.ok("EXPUNGE") == [b"4 EXPUNGE", b"2 EXPUNGE"]
        assert other.ok("FETCH 5 UID") == [b"5 FETCH (UID 5)"]  # RFC 9051 §7.5.1: not now
        assert other.ok("UID FETCH 5 FLAGS")[-2:] == [b"4 EXPUNGE", b"2 EXPUNGE"]
        assert other.ok("FETCH 3 UID") == [b"3 FETCH (UID 5)"]
        other.bad("FETCH 4 UID")


def test_messages_that_others_expunged(gateway: ImapGateway, account: str) -> None:
    """RFC 2180 §4.2: the others are changed; EXPUNGE may not be sent before the tagged line."""
    gateway.deliver(account, *[MESSAGE] * 5)
    with gateway.login(account) as imap, gateway.login(account) as other:
        for one in (imap, other):
            one.ok("SELECT INBOX")
        imap.ok(r"STORE 2,4 +FLAGS.SILENT (\Deleted)")
        imap.ok("EXPUNGE")
        for set_, told in (("2", {}), ("1:4", {1: {"\\Seen"}, 3: {"\\Seen"}}), ("2", {})):
            untagged, tagged = other.cmd(rf"STORE {set_} +FLAGS (\Seen)")
            assert tagged.startswith(b"NO [EXPUNGEISSUED] "), tagged
            assert {number: found for number, found in flags(untagged).items() if number % 2} == told
        assert other.cmd(r"STORE 2:3 +FLAGS.SILENT (\Flagged)")[1].startswith(b"OK [EXPUNGEISSUED] ")
        assert flags(other.ok(r"STORE 1,3 +FLAGS (new)"))[3] == {"\\Seen", "\\Flagged", "new"}
        assert other.cmd(r"STORE 1:5 FLAGS (other)")[1].startswith(b"NO [EXPUNGEISSUED] ")
        untagged, tagged = other.cmd(r"UID STORE 2:3 FLAGS (\Seen)")
        assert tagged.startswith(b"OK ") and b"EXPUNGEISSUED" not in tagged
        assert untagged[:2] == [b"4 EXPUNGE", b"2 EXPUNGE"] and flags(untagged) == {2: {"\\Seen"}}


def test_uid_expunge_and_vanished(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[MESSAGE] * 6, flags=("\\Deleted",))
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        assert imap.ok("UID EXPUNGE 2:3,9") == [b"3 EXPUNGE", b"2 EXPUNGE"]
        assert imap.ok("UID EXPUNGE 2:3") == []
        imap.ok("ENABLE QRESYNC")
        untagged, tagged = imap.cmd("EXPUNGE")
        assert untagged == [b"VANISHED 1,4:6"]
        assert re.match(rb"OK \[HIGHESTMODSEQ \d+\]", tagged)


def test_copy(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, MESSAGE, flags=("\\Seen", "blue"))
    gateway.deliver(account, MESSAGE, MESSAGE)
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        tagged = imap.cmd("COPY 1,3 Archive")[1]
        assert re.match(rb"OK \[COPYUID \d+ 1,3 1:2\]", tagged)
        assert b"[TRYCREATE]" in imap.no("COPY 1 nowhere")
        imap.bad("COPY 9 Archive")
        assert imap.ok("UID COPY 9 Archive") == []
        assert imap.ok("COPY 3 INBOX")[0] == b"4 EXISTS"  # into itself
        imap.ok("SELECT Archive")
        assert flags(imap.ok("FETCH 1:* FLAGS")) == {1: {"\\Seen", "blue"}, 2: set()}


def test_move(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[MESSAGE] * 4)
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        untagged = imap.ok("MOVE 1,3 Archive")
        assert re.match(rb"OK \[COPYUID \d+ 1,3 1:2\]", untagged[0])
        assert untagged[1:] == [b"3 EXPUNGE", b"1 EXPUNGE"]
        untagged = imap.ok("UID MOVE 2:* Trash")
        assert untagged[1:] == [b"2 EXPUNGE", b"1 EXPUNGE"]
        assert b"2 EXISTS" in imap.ok("SELECT Trash")


def test_quota_refuses_copies(gateway: ImapGateway) -> None:
    gateway.add_account("small@example.test", quota_messages=3)
    gateway.deliver("small@example.test", MESSAGE, MESSAGE)
    with gateway.login("small@example.test") as imap:
        imap.ok("SELECT INBOX")
        assert b"[OVERQUOTA]" in imap.no("COPY 1:2 Archive")
        imap.ok("COPY 1 Archive")
        imap.ok("MOVE 1:2 Archive")  # nothing is added


def test_uidonly(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[MESSAGE] * 3)
    with gateway.login(account) as imap:
        assert imap.ok("ENABLE UIDONLY") == [b"ENABLED UIDONLY"]
        imap.ok("SELECT INBOX")
        for command in (r"STORE 1 +FLAGS (\Seen)", "COPY 1 Archive", "MOVE 1 Archive", "FETCH 1 UID", "SEARCH 1"):
            assert b"[UIDREQUIRED]" in imap.bad(command), command
        assert imap.ok(r"UID STORE 2 +FLAGS (\Deleted)") == [rb"2 UIDFETCH (FLAGS (\Deleted \Recent))"]
        assert imap.ok("EXPUNGE") == [b"VANISHED 2"]


def test_the_first_reader_is_in_the_trace(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, MESSAGE)
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        imap.ok("FETCH 1 BODY.PEEK[]")
        imap.ok("FETCH 1 BODY[]")
        imap.ok("FETCH 1 BODY[]")
    (fetched,) = [line for line in gateway.wait_for("fetched") if line["account"] == account]
    assert (fetched["queue_id"], fetched["mailbox"], fetched["uid"]) == ("QUEUEID", "INBOX", 1)
