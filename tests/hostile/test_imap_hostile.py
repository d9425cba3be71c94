"""IMAP clients that mean harm, or know no better: answers, bounded memory, nobody else's mail; others are served."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from imap.rig import ALICE, BOB, PASSWORD, ImapGateway

MIB = 1 << 20
CAROL = "carol@example.test"  # does nothing of all this
PRIVATE, OPEN = {ALICE: b"walrus-7731", BOB: b"heron-4402"}, b"everybody-may"
TOML = """
[limits]
errors = 100
[imap]
line_octets = 65536
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapGateway]:
    with ImapGateway(tmp_path_factory.mktemp("imap"), TOML) as running:
        running.add_account(ALICE, BOB, CAROL)
        running.deliver(CAROL, b"Subject: x\r\n\r\nx\r\n")
        for number in range(3):
            running.deliver(ALICE, b"Subject: %d %b\r\n\r\n%b\r\n" % (number, *2 * [PRIVATE[ALICE]]))
        yield running


def is_served(gateway: ImapGateway) -> bool:
    with gateway.login(CAROL) as imap:
        return b"1 EXISTS" in imap.ok("EXAMINE INBOX")


def grown(before: int) -> int:
    """MiB that this process, worker and clients, has more."""
    return (psutil.Process().memory_info().rss - before) // MIB


def rss() -> int:
    return psutil.Process().memory_info().rss


# -- garbage ---------------------------------------------------------------------------------------------------------

LOGIN = f'LOGIN {ALICE} "{PASSWORD}"'
BEFORE = {
    "not authenticated": (),
    "authenticated": (LOGIN,),
    "selected": (LOGIN, "EXAMINE INBOX"),
    "logout": (LOGIN, "LOGOUT"),
}
WORDS = [
    *(b"a ", b" ", b"\r\n", b"\n", b"\0", b"(", b")", b'"', b"\\", b"*", b"{3}\r\n", b"{3+}\r\n", b"~{2+}\r\n"),
    *(b"{99999999999}\r\n", b"{-1}\r\n", b"<0.1>", b"[", b"]", b"1:*", b"4294967296", b"$", b"%", b"NIL", b"INBOX"),
    *(b"FETCH ", b"BODY.PEEK[", b"HEADER.FIELDS (", b"UID ", b"SEARCH ", b"OR NOT ", b"CHARSET UTF-8 ", b"STORE "),
    *(b"+FLAGS (", b"\\Seen", b"COPY ", b"APPEND INBOX ", b"CATENATE (TEXT ", b"LIST ", b"RETURN (", b"STATUS "),
    *(b"SORT (DATE) UTF-8 ALL", b"THREAD REFERENCES ", b"IDLE\r\n", b"DONE\r\n", b"ENABLE QRESYNC ", b"NOTIFY SET "),
    *(b"GETMETADATA ", b"SETACL ", b"AUTHENTICATE PLAIN ", b"=\r\n", b"*\r\n", b"&AOk-", b"\xff\xfe", b"\xc3\xa9"),
    *(b"COMPRESS DEFLATE\r\n", b"\x78\x9c", b"NOOP\r\n", b"EXPUNGE\r\n", b"URLFETCH ", b"ESEARCH IN ("),
]
OCTETS = st.sampled_from(WORDS) | st.binary(max_size=12)
COMMANDS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(lambda w: b"a " + b"".join(w) + b"\r\n")
GARBAGE = st.lists(COMMANDS | OCTETS, min_size=5, max_size=30).map(b"".join)
RESPONSE = re.compile(rb"(\* |\+ |[^\x00-\x20(){%*\"\\\x7f+]+ (OK|NO|BAD) )")
AFTER = b"\r\n*\r\nDONE\r\nz LOGOUT\r\n" * 2  # whatever it waits for


def everything_said(sock: socket.socket) -> bytes:
    """Until the server closes; one that waits for more octets gets the end of them."""
    said = b""
    sock.settimeout(5.0)
    with contextlib.suppress(ConnectionError):
        while True:
            try:
                octets = sock.recv(65536)
            except TimeoutError:
                sock.shutdown(socket.SHUT_WR)
                continue
            if not octets:
                return said
            said += octets
    return said


def responses(said: bytes) -> Iterator[bytes]:
    """The first line of each, as long as they are not compressed."""
    at = 0
    while at < len(said) and b"DEFLATE active" not in said[:at]:
        begin = at
        while True:
            end = said.index(b"\r\n", at) + 2
            literal = re.search(rb"\{(\d+)\}\r\n\Z", said[at:end])
            at = end + (int(literal[1]) if literal else 0)
            if literal is None:
                break
        yield said[begin:end]


@pytest.mark.parametrize("state", BEFORE)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@example(b"a APPEND INBOX {10}\r\n")
@example(b"a UID FETCH 1:* BODY[\r\n" * 30)
@example(b"\r\n" * 1000)
@given(garbage=GARBAGE)
def test_garbage_in_every_state(gateway: ImapGateway, state: str, garbage: bytes) -> None:
    """The session ends, what it says are responses, and none of them tells of a bug."""
    with gateway.connect() as imap:
        for command in BEFORE[state]:
            imap.ok(command)
        with contextlib.suppress(ConnectionError):  # it had ended before we said all of that
            imap.write(garbage + AFTER)
        said = everything_said(imap.sock)
    assert b"SERVERBUG" not in said
    for response in responses(said):
        assert RESPONSE.match(response), response


def test_after_all_that_others_are_served(gateway: ImapGateway) -> None:
    assert is_served(gateway)
    assert not [line for line in gateway.log() if "unexpected" in str(line) or "exception" in line]


# -- too much of it --------------------------------------------------------------------------------------------------


def test_a_hundred_half_open_literals(gateway: ImapGateway) -> None:
    """Each has sent a part of a large message and says nothing more; nothing of them is left when they go."""
    before = rss()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            imap = stack.enter_context(gateway.login(BOB))
            imap.write(b"a APPEND INBOX {40000000+}\r\n" + b"x" * 200_000)
        assert is_served(gateway)
        assert grown(before) < 120, "MiB for 100 uploads that were begun"
    large = next(gateway.config.store_dir.rglob("store.db")).parents[2]
    end = time.monotonic() + 60
    while (left := list(large.rglob("large/*"))) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


def test_a_line_without_end(gateway: ImapGateway) -> None:
    before = rss()
    with gateway.login() as imap:
        for _ in range(32):
            imap.write(b"A" * MIB)
        assert grown(before) < 16
        imap.write(b"\r\n")
        assert b" BAD Too long" in imap.response()
        imap.ok("NOOP")


@pytest.mark.parametrize("size", [2**31, 2**32 - 1, 10**18])
def test_a_literal_without_end(gateway: ImapGateway, size: int) -> None:
    """One that waits for a go-ahead is refused, and the session goes on."""
    with gateway.login() as imap:
        for command in ("APPEND INBOX", "LOGIN", "SEARCH TEXT", "REPLACE 1 INBOX"):
            _, tagged = imap.cmd(f"{command} {{{size}}}")
            assert tagged.startswith((b"NO", b"BAD")), tagged
        imap.ok("NOOP")


@pytest.mark.parametrize(
    "command",
    [
        *(b"UID FETCH 1 %b", b"SEARCH %b ALL", b"STORE 1 FLAGS %b", b'LIST "" %b', b"NOTIFY SET %b"),
        b"THREAD REFERENCES UTF-8 %b",
    ],
)
def test_deep_parentheses(gateway: ImapGateway, command: bytes) -> None:
    with gateway.login() as imap:
        imap.ok("EXAMINE INBOX")
        for depth in (40, 60_000):
            imap.bad(command % (b"(" * depth))
        for depth in (40, 25_000):
            imap.bad(command % (b"(" * depth + b"SEEN" + b")" * depth))
        imap.ok("NOOP")


def test_ten_thousand_ranges(gateway: ImapGateway) -> None:
    """Answered or refused: quickly in either case, and the session goes on."""
    with gateway.login() as imap:
        imap.ok("EXAMINE INBOX")
        numbers = ",".join(str(n) for n in range(1, 20_000, 2))
        for command in ("UID FETCH {} FLAGS", "UID SEARCH UID {}", "UID STORE {} FLAGS ()", "UID SEARCH NOT UID {}"):
            _, tagged = imap.cmd(command.format(numbers[:60_000].rpartition(",")[0]))
            assert tagged[:2] in (b"OK", b"NO", b"BA"), tagged
        imap.ok("NOOP")


def test_bombs(gateway: ImapGateway) -> None:
    """What was compressed a thousandfold is not held: a line of 64 MiB, and two million commands."""
    before = rss()
    for flood in (b"A" * MIB, b"a NOOP\r\n" * (MIB // 8)):
        with gateway.login() as imap:
            imap.ok("COMPRESS DEFLATE")
            packer = zlib.compressobj(9, wbits=-15)
            with contextlib.suppress(ConnectionError, socket.timeout):
                imap.sock.settimeout(1.0)
                for _ in range(64):
                    imap.write(packer.compress(flood))
                imap.write(packer.flush())
            assert is_served(gateway)
            assert grown(before) < 48
    assert is_served(gateway)


def test_many_compressed_commands_are_all_answered(gateway: ImapGateway) -> None:
    with gateway.login() as imap:
        imap.ok("COMPRESS DEFLATE")
        packer, unpacker = zlib.compressobj(9, wbits=-15), zlib.decompressobj(wbits=-15)
        commands = b"".join(b"b%d NOOP\r\n" % number for number in range(20_000))
        imap.write(packer.compress(commands) + packer.flush(zlib.Z_SYNC_FLUSH))
        said = b""
        while b"b19999 OK" not in said:
            said += unpacker.decompress(imap.sock.recv(65536))
        assert said.count(b" OK Completed\r\n") == 20_000


def test_a_client_that_never_reads(gateway: ImapGateway) -> None:
    """It asks for 200 MB and takes none of it: the worker holds a little of it, and serves the others."""
    gateway.add_account("reader@example.test")
    gateway.deliver("reader@example.test", b"Subject: large\r\n\r\n" + b"a line of text\r\n" * 200_000)
    with gateway.login("reader@example.test") as imap:
        imap.ok("SELECT INBOX")
        for _ in range(6):
            imap.ok("COPY 1:* INBOX")
        before = rss()
        imap.begin("FETCH 1:* BODY.PEEK[]")
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert is_served(gateway)
            assert grown(before) < 48
    assert is_served(gateway)


# -- two users -------------------------------------------------------------------------------------------------------


def test_what_is_not_shared_is_never_seen(gateway: ImapGateway, tmp_path: Path) -> None:
    """Alice and Bob share a mailbox with each other and try everything else of each other, thousands of times."""
    clients = {name: gateway.login(name) for name in (ALICE, BOB)}
    for name, other in ((ALICE, BOB), (BOB, ALICE)):
        mine = PRIVATE[name]
        for box in ("INBOX", "hidden", "open/hidden"):
            mail = b"Subject: %b\r\nFrom: %b@example.test\r\n\r\n%b\r\n" % (mine, mine, mine)
            gateway.deliver(name, mail, mail, mailbox=box)
        gateway.deliver(name, b"Subject: x\r\n\r\n%b\r\n" % OPEN, mailbox="open")
        clients[name].ok(f"SETACL open {other} lrswit")
        clients[name].ok(f"SETACL open/hidden {other} l")
        clients[name].ok(f'SETMETADATA INBOX (/private/comment "{mine.decode()}")')
        clients[name].ok(f'SETMETADATA open (/private/comment "{mine.decode()}")')
        clients[name].ok(f"CREATE {mine.decode()}")
    chooser = random.Random(7)
    seen = dict.fromkeys(clients, b"")
    for _ in range(60):
        for name, client in clients.items():
            commands = [tempting(chooser, BOB if name == ALICE else ALICE) for _ in range(25)]
            client.write(b"".join(b"t%d %b\r\n" % (at, one) for at, one in enumerate(commands)))
            while True:
                try:
                    response = client.response()
                except EOFError:  # too many errors
                    clients[name] = gateway.login(name)
                    break
                seen[name] += response
                if response.startswith(b"t%d " % (len(commands) - 1)):
                    break
    for name, other in ((ALICE, BOB), (BOB, ALICE)):
        assert PRIVATE[other] not in seen[name]
        assert PRIVATE[name] in seen[name] and OPEN in seen[name]
        assert b"SERVERBUG" not in seen[name]
        clients[name].close()


def tempting(chooser: random.Random, other: str) -> bytes:
    """A command that has to do with the other user's mail; none gives away one's own."""
    theirs = f'"Other Users/{other}'
    names = ("open", "open", "open/hidden", "INBOX", "hidden", "*", "no")
    box = chooser.choice(
        [f'{theirs}/{name}"' for name in names]
        + [f'{theirs}"', f'"../{other}/INBOX"', f'"Other Users//{other}/INBOX"', '""']
    )
    uids = chooser.choice(["1", "1:*", "2", "$", "*", "1:4294967295"])
    url = f"imap://{other}@mx.example.test/INBOX/;UID=1;URLAUTH=anonymous"
    everywhere = "(DEPTH infinity)"
    shapes = [
        *(f"SELECT {box}", "SELECT INBOX", f"EXAMINE {box} (QRESYNC (1 1 1:*))"),
        *(f"STATUS {box} (MESSAGES SIZE)", f"UID STORE {uids} +FLAGS (\\Seen x)", "UNSELECT", "NOOP"),
        *(f"FETCH {uids} (ENVELOPE BODY.PEEK[] PREVIEW)", f"UID FETCH {uids} (BODY[HEADER] BODYSTRUCTURE)"),
        *(f"UID COPY {uids} {box}", f"UID MOVE {uids} INBOX", f"COPY {uids} {box}", "SEARCH RETURN (SAVE) ALL"),
        *(f'LIST "" {theirs}/*" RETURN (STATUS (MESSAGES UNSEEN) METADATA (/private/comment))', f"LSUB {box} *"),
        *(f"LIST {box} (% * %/%)", f"GETMETADATA {everywhere} {box} (/private /shared)", f"GETACL {box}"),
        *(f"MYRIGHTS {box}", f"SETACL {box} {other} lrswipkxtea", f"SETACL {box} anyone lr"),
        *(f"CREATE {box}", f"SUBSCRIBE {box}", f"GETQUOTAROOT {box}", f'GETQUOTA "{other}"'),
        *(f'ESEARCH IN (subtree {theirs}") RETURN (ALL COUNT) ALL', f"RENAME {box} stolen", "EXPUNGE"),
        *(f'ESEARCH IN (mailboxes ({box} {theirs}/INBOX")) RETURN (ALL) SUBJECT a', "SORT (FROM) UTF-8 ALL"),
        *("UID SEARCH TEXT everybody", "THREAD REFERENCES UTF-8 ALL", "FETCH 1 BODY[]"),
        *(f"NOTIFY SET STATUS (subtree {box} (MessageNew))", f"APPEND {box} {{3+}}\r\nabc"),
        *(f'APPEND {box} CATENATE (URL "/Other%20Users/{other}/INBOX/;UID=1")', f'URLFETCH "{url}"'),
        *(f'URLFETCH "imap://{other}/INBOX/;UID=1"', f'GENURLAUTH "{url}" INTERNAL'),
    ]
    if chooser.random() < 0.2:
        return f'SELECT {theirs}/{chooser.choice(names)}"'.encode()
    return chooser.choice(shapes).encode()
