"""Every limit on IMAP clients that the configuration sets, hit: the reply says what it is, and nothing is left halfway.

Of METADATA, ACL, NOTIFY and QUOTA: test_imap_metadata.py, test_imap_acl.py, test_imap_notify.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from imap.rig import ALICE, BOB, MESSAGE, PASSWORD, ImapGateway

from gateway.net.connection import Connection

CAROL = "carol@example.test"
TOO_LONG = b"* BYE [UNAVAILABLE] Idle for too long"
TOML = """
[limits]
errors = 5
sessions = 8
write_s = 1.0
[imap]
login_s = 1.0
line_octets = 8192
literal_octets = 4096
command_octets = 16384
append_octets = 20000
owners = 1
[store]
mailboxes = 12
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapGateway]:
    with ImapGateway(tmp_path_factory.mktemp("imap"), TOML) as running:
        running.add_account(ALICE, BOB, CAROL)
        yield running


def test_a_client_that_does_not_log_in_is_told_to_go(gateway: ImapGateway) -> None:
    """login_s."""
    with gateway.connect() as imap:
        assert imap.response() == TOO_LONG
        with pytest.raises(EOFError):
            imap.response()


@pytest.mark.parametrize("idling", [False, True])
def test_a_client_that_says_nothing_any_more(gateway: ImapGateway, idling: bool) -> None:
    """idle_s: half an hour at least, so the clock is helped."""
    with gateway.login() as imap:
        if idling:
            imap.idle()
        until(gateway, lambda: len(sessions(gateway, ALICE)) == 1)
        (connection,) = sessions(gateway, ALICE)
        gateway.call(setattr, connection.handler, "idle_since", -1e9)
        gateway.call(connection.set_deadline, 0.001)
        assert imap.response() == TOO_LONG
        with pytest.raises(EOFError):
            imap.response()


def test_a_command_that_is_too_long(gateway: ImapGateway) -> None:
    """line_octets."""
    with gateway.login() as imap:
        imap.ok("SELECT INBOX")
        imap.ok(f"SEARCH TEXT {'a' * 8000}")
        assert b"8192 octets" in imap.bad(f"SEARCH TEXT {'a' * 9000}")
        imap.ok("NOOP")


@pytest.mark.parametrize("plus", ["", "+"])
def test_a_literal_that_is_too_large(gateway: ImapGateway, plus: str) -> None:
    """literal_octets: refused before it is sent, where the client waits for that."""
    with gateway.login() as imap:
        imap.ok("SELECT INBOX")
        literal = b"a" * 4097 if plus else b""
        tagged = imap.no(b"SEARCH TEXT {4097%b}\r\n%b" % (plus.encode(), literal) if plus else "SEARCH TEXT {4097}")
        assert b"[TOOBIG]" in tagged and b"4096" in tagged
        imap.ok(b"SEARCH TEXT {4096+}\r\n" + b"a" * 4096)


def test_literals_that_are_too_much_together(gateway: ImapGateway) -> None:
    """command_octets."""
    with gateway.login() as imap:
        imap.ok("SELECT INBOX")
        text = b"TEXT {4000+}\r\n" + b"a" * 4000
        imap.ok(b"SEARCH " + b" ".join([text] * 3))
        tagged = imap.no(b"SEARCH " + b" ".join([text] * 5))
        assert b"[TOOBIG]" in tagged and b"16384" in tagged
        imap.ok("NOOP")


def test_a_message_that_is_too_large(gateway: ImapGateway) -> None:
    """append_octets, which is announced."""
    with gateway.login() as imap:
        assert b" APPENDLIMIT=20000" in imap.ok("CAPABILITY")[0]
        tagged = imap.no("APPEND INBOX {20001}")
        assert b"[TOOBIG]" in tagged and b"20000" in tagged
        tagged = imap.no(b"APPEND INBOX {20001+}\r\n" + b"a" * 20_001)
        assert b"[TOOBIG]" in tagged
        text = b"{15000+}\r\n" + b"a" * 15_000
        assert b"[TOOBIG]" in imap.no(b"APPEND INBOX CATENATE (TEXT %b TEXT %b)" % (text, text))
        assert b"MESSAGES 0" in imap.ok("STATUS INBOX (MESSAGES)")[0]
        imap.ok(b"APPEND INBOX {20000+}\r\n" + b"a" * 20_000)


def test_too_many_mailboxes(gateway: ImapGateway) -> None:
    """store.mailboxes; nothing of a path that does not fit is made."""
    with gateway.login() as imap:
        begun = len(imap.ok('LIST "" *'))
        for number in range(12 - begun):
            imap.ok(f"CREATE box{number}")
        for command in ("CREATE more", "CREATE a/b/c", "SUBSCRIBE nothing", "RENAME INBOX other"):
            tagged = imap.no(command)
            assert b"[LIMIT]" in tagged and b"12 mailboxes" in tagged
        assert len(imap.ok('LIST "" *')) == 12
        imap.ok("DELETE box0")
        imap.ok("CREATE more")
        assert b"[LIMIT]" in imap.no("CREATE box1/below")


def test_only_so_many_others_are_looked_through(gateway: ImapGateway) -> None:
    """owners: the rest is left out of LIST, and can be had by name."""
    for owner in (ALICE, BOB):
        gateway.deliver(owner, MESSAGE)
        with gateway.login(owner) as imap:
            imap.ok(f"SETACL Archive {CAROL} lr")
    with gateway.login(CAROL) as imap:
        found = b"\n".join(imap.ok('LIST "" "Other Users/*"'))
        assert found.count(b"/Archive") == 1
        for owner in (ALICE, BOB):
            imap.ok(f'EXAMINE "Other Users/{owner}/Archive"')


def test_too_many_errors(gateway: ImapGateway) -> None:
    """limits.errors."""
    with gateway.login() as imap:
        for _ in range(5):
            imap.bad("NONSENSE")
        assert imap.cmd("NONSENSE")[1].startswith(b"BAD")
        assert imap.response() == b"* BYE [UNAVAILABLE] Too many errors"
        with pytest.raises(EOFError):
            imap.response()


def test_too_many_sessions(gateway: ImapGateway) -> None:
    """limits.sessions."""
    sessions = [gateway.login() for _ in range(8)]
    with gateway.connect() as imap:
        assert imap.greeting.startswith(b"* BYE [UNAVAILABLE] ")
        with pytest.raises(EOFError):
            imap.response()
    for session in sessions:
        session.ok("LOGOUT")
        session.close()
    with gateway.connect() as imap:
        imap.ok(f'LOGIN {ALICE} "{PASSWORD}"')


def test_a_client_that_does_not_read_is_cut_off(gateway: ImapGateway) -> None:
    """limits.write_s, also while the next command is being worked on."""
    gateway.deliver(BOB, *[b"Subject: x\r\n\r\n" + b"a line of text\r\n" * 1000] * 20)
    with gateway.login(BOB) as imap:
        imap.ok("SELECT INBOX")
        imap.write(b"".join(b"f%d FETCH 1:* BODY.PEEK[]\r\n" % number for number in range(200)))
        until(gateway, lambda: not sessions(gateway, BOB))


def test_a_client_that_read_late_may_be_silent_afterwards(gateway: ImapGateway) -> None:
    """limits.write_s is over when everything was read: imap.idle_s begins."""
    with gateway.login(BOB) as imap:
        imap.ok("SELECT INBOX")
        tags = [imap.begin("FETCH 1:* BODY.PEEK[]") for _ in range(40)]
        until(gateway, lambda: not all(c.handler._writable for c in sessions(gateway, BOB)))
        for tag in tags:
            imap.finish(tag)
        imap.ok("CHECK")
        (connection,) = sessions(gateway, BOB)
        assert connection.deadline > time.monotonic() + 60


def sessions(gateway: ImapGateway, account: str) -> list[Connection]:
    return [c for c in gateway.worker.sweep.connections if getattr(c.handler, "account_name", "") == account]


def until(gateway: ImapGateway, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not gateway.call(condition):
        assert time.monotonic() < end
        time.sleep(0.01)
