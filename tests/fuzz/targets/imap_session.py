"""Whole IMAP sessions over a real store, in every state: no traceback, responses in step, nobody else's mail.

Two sessions share an account and take the octets in turn; a third account holds a secret that neither may ever see.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import itertools
import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gateway.accounts.model import Account, Identity
from gateway.app import Worker
from gateway.config import parse
from gateway.net.connection import Connection, DeadlineSweep
from gateway.server.imap.session import ImapSession
from gateway.server.session import all_settled
from gateway.store.model import Delivery
from gateway.store.names import account_directory
from tests.fuzz.octets import cut, options
from tests.fuzz.one_worker import LOOP, wait_for
from tests.fuzz.targets.smtp_session import Errors

CODE = ("gateway.server.imap", "gateway.protocol.imap")
MAX_OCTETS = 1200
RUNS = 20
WORDS = (
    b"SELECT INBOX\r\n",
    b"FETCH 1:* (UID FLAGS ENVELOPE BODYSTRUCTURE)\r\n",
    b"FETCH 1 BODY[1.MIME]<0.10>\r\n",
    b"UID FETCH 1:* (BINARY[1] PREVIEW)\r\n",
    b"STORE 1:* +FLAGS (\\Deleted $x)\r\n",
    b"SEARCH RETURN (SAVE) ",
    b"SORT (REVERSE DATE SUBJECT) UTF-8 ",
    b"THREAD REFERENCES UTF-8 ",
    b"OR NOT SUBJECT x BODY y",
    b"COPY 1:* Archive\r\n",
    b"MOVE 1 new\r\n",
    b"EXPUNGE\r\n",
    b"APPEND INBOX {3+}\r\nabc\r\n",
    b"CREATE a/b\r\n",
    b"RENAME a z\r\n",
    b"DELETE a/b\r\n",
    b'LIST "" (INBOX "a*") RETURN (STATUS (MESSAGES))\r\n',
    b"STATUS INBOX (HIGHESTMODSEQ SIZE)\r\n",
    b"ENABLE QRESYNC UIDONLY\r\n",
    b"NOTIFY SET (SELECTED (MessageNew (UID) MessageExpunge FlagChange))\r\n",
    b'SETMETADATA "" (/private/comment "x")\r\n',
    b"SETACL INBOX bob@d lr\r\n",
    b"IDLE\r\nDONE\r\n",
    b"Other Users/bob@d/INBOX",
    b'GENURLAUTH "imap://a@d/INBOX/;uid=1;urlauth=anonymous" INTERNAL\r\n',
    b'URLFETCH ("imap://a@d/INBOX/;uid=1;section=1;urlauth=anonymous:internal:00" BINARY BODYPARTSTRUCTURE)\r\n',
    b"APPEND INBOX CATENATE (URL /INBOX/;UID=1/;SECTION=1 TEXT {1+}\r\nx)\r\n",
    b"UIDBATCHES 500 1:2\r\n",
    b"UID SEARCH UIDAFTER 1 UIDBEFORE 9\r\n",
    b"(CHANGEDSINCE 1 VANISHED)",
    b"1:*,3,$",
    b"\\Seen",
)
LOGGED_IN, SELECTED, TWO = 1, 2, 4
SECRET = b"ZQXJKV"
MESSAGE = b"From: A <a@b>\r\nSubject: x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nhi\r\n--x--\r\n"
LINE = re.compile(rb"(?:\*|\+|[!-~]+) ")

TEXT = """
hostname = "mx.test"
state_dir = "state"
workers = 1
[log]
file = "log.json"
[auth]
plaintext_auth = ["192.0.2.0/24"]
failure_delay_s = 0.0
[limits]
greeting_delay_s = 0.0
error_delay_s = 0.0
[imap]
append_octets = 10000
messages_per_command = 3
[[listen]]
service = "imap"
address = "127.0.0.1:2143"
"""


def seeds() -> list[bytes]:
    lines = [word if word.endswith(b"\r\n") else b"NOOP\r\n" for word in WORDS]
    numbered = [b"t " + line for line in lines]
    dialogues = (
        b"".join(numbered[:6]) + b"t SEARCH RETURN (SAVE) OR NOT SUBJECT x BODY y\r\nt UID FETCH $ FLAGS\r\n",
        b"".join(numbered[8:14]) + b"t SORT (REVERSE DATE SUBJECT) UTF-8 ALL\r\nt THREAD REFERENCES UTF-8 ALL\r\n",
        b"".join(numbered[14:20]) + b"t APPEND INBOX (\\Seen) {5000+}\r\n" + b"m" * 900,
        b"".join(numbered[18:23]) + b"t LOGIN a b\r\nt CAPABILITY\r\nt LOGOUT\r\n",
        b"t UIDBATCHES 500\r\nt UIDBATCHES 500 2:3\r\nt UID SEARCH RETURN (SAVE) UIDAFTER 1 UIDBEFORE 9\r\n",
        b't SELECT "Other Users/bob@d/INBOX"\r\nt FETCH 1 BODY[]\r\nt COPY 1 "Other Users/bob@d/INBOX"\r\n',
    )
    return [bytes([flags, how]) + d for d in dialogues for flags, how in ((7, 0), (3, 80), (0, 0))]


@functools.cache
def worker() -> Worker:
    """With a store in which bob has a secret; its listeners are not open."""
    directory = tempfile.TemporaryDirectory(prefix="gateway-")
    root = Path(directory.name)
    made = Worker(parse(TEXT, root / "edge.toml"), {})
    kept = logging.getLogger().handlers[:]
    LOOP.run_until_complete(made.start())
    logging.getLogger().handlers[:] = kept
    atexit.register(directory.cleanup)
    LOOP.run_until_complete(deliver(made, "bob@d", b"Subject: x\r\n\r\n" + SECRET + b"\r\n"))
    return made


async def deliver(made: Worker, account: str, content: bytes) -> None:
    done = asyncio.get_running_loop().create_future()
    made.store.deliver(Delivery(account, [content], create=True, urgent=True), done.set_result)
    await done


class Transport:
    """The other end of a connection."""

    def __init__(self) -> None:
        self.closing = False
        self.reading = True
        self.written = b""
        self.connection: Connection | None = None

    def get_extra_info(self, name: str) -> object:
        return ("192.0.2.7", 4711) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | memoryview) -> None:
        assert not self.closing, "written after close"
        self.written += bytes(data)

    def writelines(self, pieces: list[bytes | memoryview]) -> None:
        for piece in pieces:
            self.write(piece)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            assert self.connection is not None
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close


class Client:
    """A session, and what it was sent."""

    def __init__(self, made: Worker, name: str, *, logged_in: bool) -> None:
        self.transport = Transport()
        self.session = ImapSession(made.doors._imap_service(made.config.listen[0]))
        self.connection = Connection(self.session, DeadlineSweep())
        self.transport.connection = self.connection
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        if logged_in:
            self.session.sign_in(Identity(Account(name), "PREAUTH", name))

    async def settle(self) -> None:
        """Until its command is answered, or waits for the client."""
        await asyncio.sleep(0)
        await wait_for(lambda: self.connection.closed or not self.session._waiting)

    async def say(self, octets: bytes) -> None:
        if not self.transport.closing:
            self.connection.data_received(octets)
        await self.settle()


_numbers = itertools.count()


async def talk(made: Worker, flags: int, how: int, sent: bytes) -> list[bytes]:
    name = f"a{next(_numbers)}@d"
    clients = [Client(made, name, logged_in=bool(flags & LOGGED_IN)) for _ in range(1 + bool(flags & TWO))]
    if flags & SELECTED:
        await deliver(made, name, MESSAGE)
        await deliver(made, name, MESSAGE)
        for client in clients:
            await client.say(b"s SELECT INBOX\r\n")
    if len(clients) == 1:
        for piece in cut(sent, how):
            await clients[0].say(piece)
    else:
        for number, line in enumerate(sent.splitlines(keepends=True)):
            await clients[number % 2].say(line)
    for client in clients:
        client.transport.close()
        await wait_for(lambda: client.connection.closed)  # noqa: B023
    await all_settled()
    await forget(made, name)
    return [client.transport.written for client in clients]


async def forget(made: Worker, name: str) -> None:
    """The next input has a store of its own."""
    pool: Any = made.store._pool
    slot = pool._slots.get(name)
    while slot is not None and slot.file is not None:
        slot.close = True  # unless something was left to do: then again
        pool._schedule(slot)
        await wait_for(lambda: not slot.busy)
    shutil.rmtree(account_directory(made.config.store_dir, name), ignore_errors=True)


def in_step(written: bytes) -> None:
    """Every response is whole, literals counted."""
    while written:
        start = written
        assert LINE.match(written), written[:100]
        while True:
            line, crlf, written = written.partition(b"\r\n")
            assert crlf, start[:200]
            found = re.search(rb"\{([0-9]+)\}\Z", line)
            if found is None:
                break
            assert len(written) >= int(found[1])
            written = written[int(found[1]) :]


def check(data: bytes) -> None:
    (flags, how), sent = options(data, 2)
    made = worker()
    errors = Errors()
    logging.getLogger("gateway").addHandler(errors)
    try:
        for written in LOOP.run_until_complete(talk(made, flags, how, sent)):
            assert SECRET not in written
            if b"COMPRESS" not in sent.upper():
                in_step(written)
    finally:
        logging.getLogger("gateway").removeHandler(errors)
    if errors.first is not None:
        raise errors.first
