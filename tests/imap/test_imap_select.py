"""SELECT, EXAMINE, CLOSE, UNSELECT, CHECK; CONDSTORE and QRESYNC; mailboxes whose index is read late."""

from __future__ import annotations

import re

import pytest
from imap.rig import MESSAGE, ImapClient, ImapGateway

from gateway.server.imap import watch


def codes(responses: list[bytes]) -> dict[bytes, bytes]:
    """{name: value} of the response codes."""
    found = (re.match(rb"OK \[(\S+) ?(.*?)\] ", response) for response in responses)
    return {one[1]: one[2] for one in found if one}


def test_what_every_client_is_told(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, MESSAGE, flags=("\\Seen", "work"))
    gateway.deliver(account, MESSAGE)
    with gateway.login(account) as imap, gateway.login(account) as second:
        untagged, tagged = imap.cmd("SELECT inbox")
        assert tagged == b"OK [READ-WRITE] Completed"
        assert b"2 EXISTS" in untagged and b"2 RECENT" in untagged
        assert rb"FLAGS (\Answered \Flagged \Deleted \Seen \Draft work)" in untagged
        told = codes(untagged)
        assert told[b"UNSEEN"] == b"2" and told[b"UIDNEXT"] == b"3"
        assert told[b"PERMANENTFLAGS"] == rb"(\Answered \Flagged \Deleted \Seen \Draft work \*)"
        assert {b"UIDVALIDITY", b"HIGHESTMODSEQ", b"MAILBOXID"} <= told.keys()
        assert b"0 RECENT" in second.ok("SELECT INBOX")  # RFC 3501 §2.3.2: one session is told


def test_imap4rev2_is_told_no_recent_and_a_list_response(gateway: ImapGateway, account: str) -> None:
    with gateway.login(account) as imap:
        assert imap.ok("ENABLE IMAP4rev2") == [b"ENABLED IMAP4REV2"]
        imap.ok('CREATE "Größe"'.encode())
        untagged = imap.ok('SELECT "Größe"'.encode())
        assert not any(b"RECENT" in response or b"UNSEEN" in response for response in untagged)
        assert untagged[-1] == 'LIST () "/" "Größe"'.encode()


def test_another_mailbox_closes_the_first(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, MESSAGE)
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        assert imap.ok("EXAMINE Trash")[0].startswith(b"OK [CLOSED] ")
        assert b"[READ-ONLY]" in imap.cmd("EXAMINE INBOX")[1]
        assert b"[READ-ONLY]" in imap.no(r"STORE 1 +FLAGS (\Seen)")
        assert b"[READ-ONLY]" in imap.no("EXPUNGE")
        assert b"[NONEXISTENT]" in imap.no("SELECT nowhere")
        imap.bad("CHECK")  # nothing is selected any more
        imap.ok("SELECT INBOX")
        imap.ok("CHECK")
        imap.ok("UNSELECT")
        imap.bad("UNSELECT")


def test_close_expunges_silently_and_unselect_does_not(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, MESSAGE, MESSAGE, flags=("\\Deleted",))
    with gateway.login(account) as imap:
        for opened, closed in (("EXAMINE", "CLOSE"), ("SELECT", "UNSELECT"), ("SELECT", "CLOSE")):
            assert b"2 EXISTS" in imap.ok(f"{opened} INBOX")
            assert imap.ok(closed) == []
        assert b"0 EXISTS" in imap.ok("SELECT INBOX")


def test_condstore(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, MESSAGE)
    with gateway.login(account) as imap:
        modseq = int(codes(imap.ok("SELECT INBOX (CONDSTORE)"))[b"HIGHESTMODSEQ"])
        assert imap.ok(r"STORE 1 +FLAGS (\Flagged)") == [
            rb"1 FETCH (FLAGS (\Flagged \Recent) MODSEQ (%d))" % (modseq + 1)
        ]
        assert imap.ok(r"STORE 1 +FLAGS.SILENT (\Seen)") == [b"1 FETCH (MODSEQ (%d))" % (modseq + 2)]
        imap.bad("SELECT INBOX (NONSENSE)")


def resync(imap: ImapClient, parameters: str) -> list[bytes]:
    """VANISHED and FETCH of a SELECT with QRESYNC."""
    return [r for r in imap.ok(f"SELECT INBOX (QRESYNC ({parameters}))") if b"VANISHED" in r or b"FETCH" in r]


def test_qresync_tells_what_was_missed(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[MESSAGE] * 10)
    with gateway.login(account) as imap, gateway.login(account) as other:
        imap.bad("SELECT INBOX (QRESYNC (1 1))")  # RFC 7162 §3.2.5: ENABLE first
        imap.ok("ENABLE QRESYNC IMAP4rev2")
        told = codes(imap.ok("SELECT INBOX"))
        known = f"{told[b'UIDVALIDITY'].decode()} {told[b'HIGHESTMODSEQ'].decode()}"
        imap.ok("UNSELECT")
        other.ok("SELECT INBOX")
        other.ok(r"STORE 2:4,9 +FLAGS.SILENT (\Deleted)")
        other.ok(r"STORE 7 +FLAGS.SILENT (\Answered)")
        other.ok("EXPUNGE")
        gateway.deliver(account, MESSAGE)
        found = resync(imap, known)
        assert found[0] == b"VANISHED (EARLIER) 2:4,9"
        assert [re.sub(rb" MODSEQ \(\d+\)", b"", one) for one in found[1:]] == [
            rb"4 FETCH (UID 7 FLAGS (\Answered))",
            b"7 FETCH (UID 11 FLAGS ())",
        ]
        assert resync(imap, known + " 3:5")[0] == b"VANISHED (EARLIER) 3:4"
        assert resync(imap, known + " 1:10 (1,5 1,5)")[0] == b"VANISHED (EARLIER) 2:4,9"
        uidvalidity, modseq = known.split()
        assert resync(imap, f"{int(uidvalidity) + 1} {modseq}") == []
        imap.bad("SELECT INBOX (QRESYNC (1 1 1:2 3:4))")
        assert b"7 EXISTS" in other.ok("NOOP")


def test_a_large_mailbox_is_read_when_it_is_needed(
    gateway: ImapGateway, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LAZY_MESSAGES", 5)
    gateway.deliver(account, *[MESSAGE] * 9)
    with gateway.login(account) as imap, gateway.login(account) as other:
        assert b"9 EXISTS" in imap.ok("SELECT INBOX")
        other.ok("SELECT INBOX")
        gateway.deliver(account, MESSAGE)
        assert b"10 EXISTS" in imap.ok("NOOP")
        other.ok(r"STORE 2,4 +FLAGS.SILENT (\Deleted)")
        other.ok("EXPUNGE")
        gateway.deliver(account, MESSAGE)
        assert imap.ok("FETCH 10 UID")[0] == b"10 FETCH (UID 10)"  # no EXPUNGE before the client hears of it
        assert imap.ok("NOOP")[:2] == [b"4 EXPUNGE", b"2 EXPUNGE"]
        assert imap.ok("FETCH 9 UID") == [b"9 FETCH (UID 11)"]


def test_a_mailbox_that_is_deleted_is_empty(gateway: ImapGateway, account: str) -> None:
    with gateway.login(account) as imap, gateway.login(account) as other:
        other.ok("CREATE away")
        gateway.deliver(account, MESSAGE, MESSAGE, mailbox="away")
        imap.ok("SELECT away")
        other.ok("DELETE away")
        assert imap.ok("NOOP") == [b"2 EXPUNGE", b"1 EXPUNGE"]
        assert imap.ok("SEARCH ALL") == [b"SEARCH"]
        assert imap.cmd(r"STORE 1 +FLAGS (\Seen)")[1].startswith(b"BAD")
        imap.ok("CLOSE")
