"""POP3 and POP2 over sockets, on a real store with real accounts."""

from __future__ import annotations

import contextlib
import poplib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from harness import RunningWorker

from gateway.accounts.build import hasher_of
from gateway.accounts.database import Database
from gateway.accounts.embedded import make_record
from gateway.accounts.model import Account
from gateway.store.model import Delivered, Delivery

PASSWORD = "pass word, long enough"
CONFIG = """
[tls]
certificate = "{directory}/tls.pem"
key = "{directory}/tls.key"
[auth]
argon2_time_cost = 1
argon2_memory_kib = 64
plaintext_auth = ["127.0.0.0/8"]
[[listen]]
service = "pop3"
address = "127.0.0.1:PORT"
tls = "starttls"
[[listen]]
service = "pop2"
address = "127.0.0.1:PORT"
[[listen]]
service = "pop3"
address = "127.0.0.1:PORT"
tls = "implicit"
"""
MESSAGES = [
    b"From: a@example.org\r\nSubject: one\r\n\r\nfirst\r\n.dot\r\n..\r\nend\r\n",
    b"From: a@example.org\r\nSubject: two\r\n\r\n" + b"x" * 76 + b"\r\n",
    b"From: a@example.org\r\nSubject: large\r\n\r\n" + (b"y" * 76 + b"\r\n") * 8000,
]


class House(RunningWorker):
    """A worker with the account alice@example.test."""

    def add_account(self, name: str, *, apop: bool = False) -> None:
        record = make_record(
            Account(name), PASSWORD, hasher_of(self.config.auth), allow_apop=apop
        )
        with contextlib.closing(Database(self.config.accounts_file)) as database:
            assert database.add(record)

    def deliver(self, account: str, *messages: bytes, mailbox: str = "INBOX") -> list[Delivered]:
        done: list[Future[object]] = [Future() for _ in messages]
        for future, content in zip(done, messages, strict=True):
            delivery = Delivery(account, [content], mailbox=mailbox, create=True, origin="QUEUEID 0")
            self.loop.call_soon_threadsafe(self.worker.store.deliver, delivery, future.set_result)
        found = [future.result(20) for future in done]
        assert all(isinstance(one, Delivered) for one in found), found
        return found  # type: ignore[return-value]


@pytest.fixture
def house(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[House]:
    (tmp_path / "tls.pem").write_bytes(certificate[0].read_bytes())
    (tmp_path / "tls.key").write_bytes(certificate[1].read_bytes())
    (tmp_path / "tls.key").chmod(0o600)
    with House(tmp_path, CONFIG.replace("{directory}", str(tmp_path))) as worker:
        worker.add_account("alice@example.test")
        yield worker


@contextlib.contextmanager
def login(house: House, user: str = "alice@example.test") -> Iterator[poplib.POP3]:
    client = poplib.POP3("127.0.0.1", house.ports[0], timeout=60)
    try:
        client.user(user)
        client.pass_(PASSWORD)
        yield client
        client.quit()
    finally:
        client.close()


def octets(response: tuple[bytes, list[bytes], int]) -> bytes:
    return b"".join(line + b"\r\n" for line in response[1])


def test_mail_is_fetched_as_it_came_and_deleted_at_quit(house: House) -> None:
    house.deliver("alice@example.test", *MESSAGES)
    with login(house) as client:
        assert client.stat() == (3, sum(map(len, MESSAGES)))
        assert [octets(client.retr(n)) for n in (1, 2, 3)] == MESSAGES
        assert octets(client.top(1, 1)) == MESSAGES[0].partition(b".dot")[0]
        assert octets(client.top(1, 0)) == MESSAGES[0].partition(b"first")[0]
        names = [line.split()[1] for line in client.uidl()[1]]
        assert len(set(names)) == 3
        client.dele(2)
        assert client.stat()[0] == 2
    with login(house) as client:
        assert [line.split()[1] for line in client.uidl()[1]] == [names[0], names[2]]
        assert octets(client.retr(2)) == MESSAGES[2]
    fetched = house.wait_for("fetched", 3)
    assert {line["uid"] for line in fetched} == {1, 2, 3}
    assert fetched[0]["queue_id"] == "QUEUEID"


def test_a_session_that_breaks_deletes_nothing(house: House) -> None:
    house.deliver("alice@example.test", MESSAGES[0])
    client = poplib.POP3("127.0.0.1", house.ports[0], timeout=60)
    client.user("alice@example.test")
    client.pass_(PASSWORD)
    client.dele(1)
    client.close()
    house.wait_for("disconnected")
    with login(house) as again:
        assert again.stat()[0] == 1


def test_one_session_an_account(house: House) -> None:
    house.deliver("alice@example.test", MESSAGES[0])
    with login(house):
        other = poplib.POP3("127.0.0.1", house.ports[0], timeout=60)
        other.user("alice@example.test")
        with pytest.raises(poplib.error_proto, match=r"\[IN-USE\]"):
            other.pass_(PASSWORD)
        other.close()
    with login(house) as client:
        assert client.stat()[0] == 1


def test_what_arrives_meanwhile_is_for_the_next_session(house: House) -> None:
    house.deliver("alice@example.test", MESSAGES[0])
    with login(house) as client:
        house.deliver("alice@example.test", MESSAGES[1])
        assert client.stat()[0] == 1
        assert len(client.list()[1]) == 1
        client.dele(1)
    with login(house) as client:
        assert octets(client.retr(1)) == MESSAGES[1]


def test_wrong_passwords_and_strangers_are_told_the_same(house: House) -> None:
    answers = []
    for user in ("alice@example.test", "nobody@example.test"):
        client = poplib.POP3("127.0.0.1", house.ports[0], timeout=60)
        client.user(user)
        with pytest.raises(poplib.error_proto) as refused:
            client.pass_("wrong")
        answers.append(str(refused.value))
        client.close()
    assert answers[0] == answers[1]
    assert "[AUTH]" in answers[0]


def test_stls_and_implicit_tls(house: House) -> None:
    house.deliver("alice@example.test", MESSAGES[0])
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client = poplib.POP3("127.0.0.1", house.ports[0], timeout=60)
    assert "STLS" in client.capa()
    client.stls(context)
    assert "STLS" not in client.capa()
    client.user("alice@example.test")
    client.pass_(PASSWORD)
    assert octets(client.retr(1)) == MESSAGES[0]
    client.quit()
    secure = poplib.POP3_SSL("127.0.0.1", house.ports[2], context=context, timeout=60)
    secure.user("alice@example.test")
    secure.pass_(PASSWORD)
    assert secure.stat()[0] == 1
    secure.quit()


def test_the_first_command_may_ride_with_the_end_of_the_handshake(house: House) -> None:
    """TLS 1.3: the client's Finished and what it says next come in one segment."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", house.ports[0]), timeout=60) as sock:
        sock.recv(1000)
        sock.sendall(b"STLS\r\n")
        assert sock.recv(1000).startswith(b"+OK")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing)

        def through(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65536))

        through(tls.do_handshake)
        tls.write(b"CAPA\r\n")
        sock.sendall(outgoing.read())
        assert through(lambda: tls.read(4)) == b"+OK "


def test_everything_at_once_is_answered_in_order(house: House) -> None:
    house.deliver("alice@example.test", *([MESSAGES[0], MESSAGES[1]] * 150))
    total = 150 * (len(MESSAGES[0]) + len(MESSAGES[1]))
    with socket.create_connection(("127.0.0.1", house.ports[0]), timeout=60) as sock:
        commands = ["USER alice@example.test", f"PASS {PASSWORD}", "STAT"]
        commands += [f"RETR {n}" for n in range(1, 301)]
        commands += [f"DELE {n}" for n in range(1, 301)] + ["QUIT"]
        sock.sendall(("\r\n".join(commands) + "\r\n").encode())
        answer = b""
        while data := sock.recv(1 << 20):
            answer += data
    assert answer.startswith(b"+OK mx.example.test POP3 server ready\r\n+OK")
    assert f"\r\n+OK 300 {total}\r\n".encode() in answer
    stuffed = MESSAGES[0].replace(b"\r\n.", b"\r\n..")
    assert answer.count(stuffed + b".\r\n") == 150
    assert answer.count(MESSAGES[1] + b".\r\n") == 150
    assert answer.endswith(b"+OK Bye, 0 messages left\r\n")
    with login(house) as client:
        assert client.stat() == (0, 0)


def test_a_client_that_does_not_read_costs_no_memory(house: House) -> None:
    large = b"Subject: large\r\n\r\n" + (b"z" * 76 + b"\r\n") * 12_000
    house.deliver("alice@example.test", *[large] * 20)
    with socket.create_connection(("127.0.0.1", house.ports[0]), timeout=60) as sock:
        sock.sendall(f"USER alice@example.test\r\nPASS {PASSWORD}\r\n".encode())
        sock.sendall(b"".join(b"RETR %d\r\n" % n for n in range(1, 21)) + b"QUIT\r\n")
        time.sleep(0.5)
        buffered = house.call(lambda: max(c.write_buffer_octets for c in house.worker.sweep.connections))
        assert buffered < 4 * len(large)
        received = 0
        while data := sock.recv(1 << 20):
            received += len(data)
    assert received > 20 * len(large)


def test_utf8_headers_are_downgraded_for_those_who_do_not_know_them(house: House) -> None:
    content = "From: Jörg <joerg@example.org>\r\nSubject: Grüße\r\n\r\nHallo\r\n".encode()
    house.deliver("alice@example.test", content)
    with login(house) as client:
        header, _, body = octets(client.retr(1)).partition(b"\r\n\r\n")
        assert header.isascii()
        assert body == b"Hallo\r\n"
        assert b"joerg@example.org" in header
    client = poplib.POP3("127.0.0.1", house.ports[0], timeout=60)
    client.utf8()
    client.user("alice@example.test")
    client.pass_(PASSWORD)
    assert octets(client.retr(1)) == content
    client.quit()


def test_pop2_reads_and_deletes(house: House) -> None:
    house.deliver("alice@example.test", *MESSAGES[:2])
    house.deliver("alice@example.test", MESSAGES[2], mailbox="Other")
    with socket.create_connection(("127.0.0.1", house.ports[1]), timeout=60) as sock:
        file = sock.makefile("rwb")

        def say(text: str) -> bytes:
            file.write(text.encode() + b"\r\n")
            file.flush()
            return file.readline()

        assert file.readline().startswith(b"+ POP2")
        assert say(f"HELO alice@example.test {PASSWORD}").startswith(b"#2")
        assert say("READ").startswith(b"=%d" % len(MESSAGES[0]))
        file.write(b"RETR\r\n")
        file.flush()
        assert file.read(len(MESSAGES[0])) == MESSAGES[0]
        assert say("ACKD").startswith(b"=%d" % len(MESSAGES[1]))
        assert say("FOLD Other").startswith(b"#1")
        assert say("FOLD Nowhere").startswith(b"#0")
        assert say("FOLD INBOX").startswith(b"#1")
        assert say("QUIT").startswith(b"+")
    with login(house) as client:
        assert client.stat() == (1, len(MESSAGES[1]))
