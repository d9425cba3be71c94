"""A gateway with IMAP on a real socket, and a client that shows every octet.

    with ImapGateway(tmp_path) as gateway:          # one for a module: see the fixture `gateway` in conftest.py
        gateway.add_account("alice@example.test")
        gateway.deliver("alice@example.test", MESSAGE)
        with gateway.login("alice@example.test") as imap:
            untagged, tagged = imap.cmd("SELECT INBOX")

A response is its octets without the last CRLF; literals stay in it, CRLF and all.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from harness import BASE, RunningWorker

from gateway.accounts.build import hasher_of
from gateway.accounts.database import Database
from gateway.accounts.embedded import make_record
from gateway.accounts.model import Account
from gateway.store.model import Delivered, Delivery

PASSWORD = "pass word, long enough"
ALICE, BOB = "alice@example.test", "bob@example.test"
TIMEOUT_S = 60.0

CONFIG = """
[auth]
argon2_time_cost = 1
argon2_memory_kib = 64
scram_iterations = 4096
failure_delay_s = 0.0
plaintext_auth = ["127.0.0.0/8"]
[store]
reclaim_s = 0.0
[limits]
sessions_per_client = 0
[[listen]]
service = "imap"
address = "127.0.0.1:PORT"
"""
TLS_CONFIG = """
[tls]
certificate = "{directory}/tls.pem"
key = "{directory}/tls.key"
[[listen]]
service = "imap"
address = "127.0.0.1:PORT"
tls = "starttls"
[[listen]]
service = "imap"
address = "127.0.0.1:PORT"
tls = "implicit"
"""

MESSAGE = b"From: Ann <ann@example.org>\r\nTo: alice@example.test\r\nSubject: one\r\n\r\nHello\r\n"


class ImapGateway(RunningWorker):
    """A worker in this process; port: of IMAP in the clear."""

    def __init__(self, directory: Path, toml: str = "", base: str = BASE) -> None:
        super().__init__(directory, CONFIG + toml, base)

    def __enter__(self) -> ImapGateway:
        super().__enter__()
        return self

    @property
    def port(self) -> int:
        return self.ports[0]

    def add_account(self, *names: str, **how: Any) -> None:
        quotas = {k: how.pop(k) for k in ("quota_octets", "quota_messages") if k in how}
        with contextlib.closing(Database(self.config.accounts_file)) as database:
            for name in names:
                account = Account(name, **quotas)
                assert database.add(make_record(account, PASSWORD, hasher_of(self.config.auth), **how))

    def deliver(
        self, account: str, *messages: bytes, mailbox: str = "INBOX", flags: tuple[str, ...] = ()
    ) -> list[Delivered]:
        """Durably, in this order."""
        done: list[Future[object]] = [Future() for _ in messages]
        for future, content in zip(done, messages, strict=True):
            delivery = Delivery(
                account, [content], mailbox=mailbox, flags=flags, create=True, origin="QUEUEID 0", urgent=True
            )
            self.loop.call_soon_threadsafe(self.worker.store.deliver, delivery, future.set_result)
        found = [future.result(TIMEOUT_S) for future in done]
        assert all(isinstance(one, Delivered) for one in found), found
        return found  # type: ignore[return-value]

    def connect(self, port: int | None = None, context: ssl.SSLContext | None = None) -> ImapClient:
        return ImapClient(port or self.port, context)

    def login(self, account: str = ALICE) -> ImapClient:
        client = self.connect()
        assert client.ok(f'LOGIN {account} "{PASSWORD}"') == []
        return client


class ImapClient:
    """One connection."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.begin_on(sock if context is None else context.wrap_socket(sock, server_hostname="localhost"))

    def begin_on(self, sock: socket.socket) -> None:
        """On a connection that was made elsewhere."""
        self.sock: socket.socket = sock
        self.buffer = b""
        self._tags = itertools.count(1)
        self.greeting = self.response()

    def __enter__(self) -> ImapClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def start_tls(self, context: ssl.SSLContext) -> None:
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost")

    # -- octets ------------------------------------------------------------------------------------------------------

    def write(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def response(self) -> bytes:
        """The next response, with its literals; raises EOFError when the server closed."""
        octets = b""
        while True:
            line = self._line()
            octets += line
            literal = re.search(rb"\{(\d+)\}\r\n\Z", line)
            if literal is None:
                return octets[:-2]
            octets += self._take(int(literal[1]))

    def _line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            self._more()
        return self._take(end + 2)

    def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def _more(self) -> None:
        octets = self.sock.recv(1 << 20)
        if not octets:
            raise EOFError(self.buffer)
        self.buffer += octets

    # -- commands ----------------------------------------------------------------------------------------------------

    def begin(self, command: str | bytes) -> bytes:
        """Send a command, return its tag; finish() gives the rest.  Literals with "+" may be within."""
        tag = b"a%d" % next(self._tags)
        self.write(tag + b" " + (command.encode() if isinstance(command, str) else command) + b"\r\n")
        return tag

    def finish(self, tag: bytes) -> tuple[list[bytes], bytes]:
        """(untagged responses without "* ", the tagged one without its tag) of the command that was begun."""
        untagged = []
        while True:
            response = self.response()
            if response.startswith(tag + b" "):
                return untagged, response[len(tag) + 1 :]
            assert response[:2] in (b"* ", b"+ "), response
            untagged.append(response.removeprefix(b"* "))

    def cmd(self, command: str | bytes) -> tuple[list[bytes], bytes]:
        """(untagged responses without "* ", the tagged one without its tag)."""
        return self.finish(self.begin(command))

    def ok(self, command: str | bytes) -> list[bytes]:
        """The untagged responses of a command that succeeds."""
        untagged, tagged = self.cmd(command)
        assert tagged.startswith(b"OK"), tagged
        return untagged

    def no(self, command: str | bytes) -> bytes:
        """The tagged NO of a command that fails."""
        untagged, tagged = self.cmd(command)
        assert tagged.startswith(b"NO"), (untagged, tagged)
        return tagged

    def bad(self, command: str | bytes) -> bytes:
        """The tagged BAD of a command that is wrong."""
        untagged, tagged = self.cmd(command)
        assert tagged.startswith(b"BAD"), (untagged, tagged)
        return tagged

    def idle(self) -> bytes:
        """Begin IDLE; the tag for done()."""
        tag = self.begin("IDLE")
        assert self.response().startswith(b"+ ")
        return tag

    def done(self, tag: bytes) -> list[bytes]:
        """End IDLE: what was still announced."""
        self.write(b"DONE\r\n")
        untagged, tagged = self.finish(tag)
        assert tagged.startswith(b"OK"), tagged
        return untagged


def numbers(responses: list[bytes], word: bytes) -> Iterator[int]:
    """The n of each "n WORD"."""
    for response in responses:
        found = re.fullmatch(rb"(\d+) %b" % word, response)
        if found:
            yield int(found[1])
