"""Searches that are kept up to date (RFC 5267 §4)."""

from __future__ import annotations

from imap.rig import ImapGateway


def mail(day: int) -> bytes:
    return b"Subject: day %d\r\nDate: Mon, %d Feb 2021 10:00:00 +0000\r\n\r\nHello\r\n" % (day, day)


def updates(lines: list[bytes]) -> list[bytes]:
    return [line.split(b") ", 1)[1] for line in lines if line.startswith(b"ESEARCH")]


def test_search(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *map(mail, range(1, 6)))
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        assert updates(imap.ok("SEARCH RETURN (UPDATE ALL) UNSEEN BODY hello")) == [b"ALL 1:5"]
        assert updates(imap.ok("STORE 2,4 +FLAGS (\\Seen)") + imap.ok("NOOP")) == [b"REMOVEFROM (0 2,4)"]
        assert updates(imap.ok("STORE 2 -FLAGS.SILENT (\\Seen)") + imap.ok("NOOP")) == [b"ADDTO (0 2)"]
        gateway.deliver(account, mail(6), mail(7), flags=("\\Seen",))
        gateway.deliver(account, mail(8))
        assert updates(imap.ok("NOOP") + imap.ok("NOOP")) == [b"ADDTO (0 8)"]
        imap.ok("STORE 1:2 +FLAGS.SILENT (\\Deleted)")
        lines = imap.ok("EXPUNGE")
        assert lines.index(b"2 EXPUNGE") > 0
        assert updates(lines) == [b"REMOVEFROM (0 1:2)"]
        assert lines[0].startswith(b"ESEARCH")  # numbers are still what they were


def test_sort_in_uids(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, mail(9), mail(3), mail(5))
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        found = imap.ok("UID SORT RETURN (UPDATE ALL) (DATE) UTF-8 UNSEEN")
        assert updates(found) == [b"UID ALL 2:3,1"]
        gateway.deliver(account, mail(4), mail(12))
        assert updates(imap.ok("NOOP") + imap.ok("NOOP")) == [b"UID ADDTO (2 4 5 5)"]
        assert updates(imap.ok("STORE 1,3 +FLAGS.SILENT (\\Seen)") + imap.ok("NOOP")) == [b"UID REMOVEFROM (4 1 3 3)"]


def test_in_idle(gateway: ImapGateway, account: str) -> None:
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        imap.ok("UID SEARCH RETURN (UPDATE) SUBJECT day")
        tag = imap.idle()
        gateway.deliver(account, mail(1))
        while not (line := imap.response()).startswith(b"* ESEARCH"):
            pass
        assert line.endswith(b" UID ADDTO (0 1)")
        imap.done(tag)


def test_cancelupdate_and_limits(gateway: ImapGateway, account: str) -> None:
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        tag = imap.begin("SEARCH RETURN (UPDATE) ALL")
        imap.finish(tag)
        imap.ok(b'CANCELUPDATE "' + tag + b'"')
        imap.no(b'CANCELUPDATE "' + tag + b'"')
        imap.bad("CANCELUPDATE")
        for _ in range(16):
            assert not [line for line in imap.ok("SEARCH RETURN (UPDATE) ALL") if b"NOUPDATE" in line]
        assert [line for line in imap.ok("SEARCH RETURN (UPDATE) ALL") if line.startswith(b"NO [NOUPDATE ")]
