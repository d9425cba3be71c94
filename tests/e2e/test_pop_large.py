"""Messages that are far larger than what a POP session may hold: slice by slice, as fast as the client reads."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from interop_peers import RunningGateway, listener, route

from gateway.accounts.database import Database
from gateway.accounts.model import Account, Record
from gateway.config_store import StoreConfig
from gateway.server.session import FLUSH_OCTETS
from gateway.store.account import AccountFile
from gateway.store.names import account_directory

MIB = 1 << 20
LINE = b"." + bytes(range(48, 120)) + b"\r\n"  # every line needs a dot more
LARGE = b"Subject: large\r\n\r\n" + LINE * (60 * MIB // len(LINE))
SMALL = b"Subject: small\r\n\r\nsmall\r\n"
USERS = [f"user{number}@example.test" for number in range(3)]
DAMAGED = "damaged@example.test"


class Pop:
    """A client that reads when it is told to."""

    def __init__(self, port: int, user: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.file = self.sock.makefile("rb")
        assert self.line().startswith(b"+OK")
        assert self.command(f"USER {user}").startswith(b"+OK")
        assert self.command("PASS pass").startswith(b"+OK")

    def line(self) -> bytes:
        return self.file.readline()

    def command(self, text: str) -> bytes:
        self.sock.sendall(text.encode() + b"\r\n")
        return self.line()

    def content(self) -> bytes:
        """SHA-256 of what follows, up to the final dot."""
        found = hashlib.sha256()
        while (line := self.line()) != b".\r\n":
            assert line, "the connection closed"
            found.update(line[line.startswith(b".") :])
        return found.digest()

    def close(self) -> None:
        self.file.close()
        self.sock.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    where = tmp_path_factory.mktemp("pop")
    state = where / "state"
    state.mkdir()
    with contextlib.closing(Database(state / "accounts.db")) as database:
        for user in (*USERS, DAMAGED):
            database.add(Record(Account(user), "{PLAIN}pass"))
    for user in (*USERS, DAMAGED):
        file = AccountFile(account_directory(state / "store", user), StoreConfig(), create=True)
        inbox = file.mailbox("INBOX").id
        file.add(inbox, [(content, (), 1_700_000_000, "", 0) for content in (LARGE, SMALL)])
        file.close()
    gateway = RunningGateway(
        where,
        {
            "listen": [listener("pop3"), listener("pop2")],
            "route": [route("store:", "example.test")],
            "auth": {"plaintext_auth": ["127.0.0.0/8"]},
        },
    )
    yield gateway
    gateway.stop()
    gateway.kill()


def memory(gateway: RunningGateway) -> tuple[int, int]:
    """(resident now, at most so far) of the worker, octets."""
    (worker,) = psutil.Process(gateway.process.pid).children()
    status = Path(f"/proc/{worker.pid}/status").read_text()
    now, most = (
        int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
        for name in ("VmRSS", "VmHWM")
    )
    return now, most


def test_several_large_messages_at_once_cost_a_few_slices(gateway: RunningGateway) -> None:
    clients = [Pop(gateway.port, user) for user in USERS]
    for client in clients:
        assert client.command("RETR 2").startswith(b"+OK")
        assert client.content() == hashlib.sha256(SMALL).digest()
    before, _ = memory(gateway)
    for client in clients:  # all of them are under way before anybody reads
        client.sock.sendall(b"RETR 1\r\n")
    for client in clients:
        assert client.line() == b"+OK %d octets\r\n" % len(LARGE)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda c=client: found.append(c.content())) for client in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _, most = memory(gateway)
    assert found == [hashlib.sha256(LARGE).digest()] * len(clients)
    print(f"{(most - before) / MIB:.1f} MiB above {before / MIB:.1f} MiB")
    assert most - before < 20 * MIB  # a third of one message
    for client in clients:
        assert client.command("NOOP") == b"+OK\r\n"
        client.close()


def test_lines_of_a_large_message(gateway: RunningGateway) -> None:
    client = Pop(gateway.port, USERS[0])
    lines = FLUSH_OCTETS // len(LINE) + 3  # beyond the first slice
    assert client.command(f"TOP 1 {lines}").startswith(b"+OK")
    header, _, body = LARGE.partition(b"\r\n\r\n")
    wanted = header + b"\r\n\r\n" + body[: lines * len(LINE)]
    assert client.content() == hashlib.sha256(wanted).digest()
    assert client.command("STAT") == b"+OK 2 %d\r\n" % (len(LARGE) + len(SMALL))
    client.close()


def test_a_client_that_leaves_in_the_middle(gateway: RunningGateway) -> None:
    (worker,) = psutil.Process(gateway.process.pid).children()

    def open_bodies() -> int:
        return sum("/large/" in file.path for file in worker.open_files())

    for _ in range(3):
        client = Pop(gateway.port, USERS[0])
        client.sock.sendall(b"RETR 1\r\n")
        assert client.line().startswith(b"+OK")
        assert open_bodies() == 1
        client.close()
        again = Pop(gateway.port, USERS[1])  # served meanwhile
        assert again.command("NOOP") == b"+OK\r\n"
        again.close()
        for _ in range(600):
            if not open_bodies():
                break
            threading.Event().wait(0.1)
        assert not open_bodies()


def test_pop2_counts_a_large_message_out(gateway: RunningGateway) -> None:
    sock = socket.create_connection(("127.0.0.1", gateway.ports[1]), timeout=60)
    file = sock.makefile("rb")
    file.readline()
    sock.sendall(f"HELO {USERS[2]} pass\r\n".encode())
    assert file.readline().startswith(b"#2")
    sock.sendall(b"READ 1\r\n")
    assert file.readline().startswith(b"=%d " % len(LARGE))
    sock.sendall(b"RETR\r\n")
    found = hashlib.sha256()
    left = len(LARGE)
    while left:
        piece = file.read(min(left, MIB))
        assert piece
        found.update(piece)
        left -= len(piece)
    assert found.digest() == hashlib.sha256(LARGE).digest()
    sock.sendall(b"ACKS\r\n")
    assert file.readline().startswith(b"=%d " % len(SMALL))
    file.close()
    sock.close()


def test_a_damaged_body_is_said_at_once_and_the_session_goes_on(
    gateway: RunningGateway,
) -> None:
    (body,) = account_directory(gateway.state_dir / "store", DAMAGED).joinpath("large").iterdir()
    with body.open("r+b") as file:
        file.seek(50 * MIB)
        file.write(b"\0")
    client = Pop(gateway.port, DAMAGED)
    assert b"not as it was written" in client.command("RETR 1")
    assert client.command("RETR 2").startswith(b"+OK")
    assert client.content() == hashlib.sha256(SMALL).digest()
    body.unlink()
    assert b"cannot be read" in client.command("RETR 1")
    client.close()
