"""Clients that mean harm, or know no better: right replies, bounded memory, and others are served meanwhile."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import Client, RunningWorker

TOML = """
[limits]
sessions_per_client = 0
sessions = 3000
command_s = 2.0
data_block_s = 2.0
errors = 5
error_delay_s = 0.1
junk_commands = 10
[tls]
certificate = "tls.pem"
key = "tls.key"
[[listen]]
service = "smtp"
address = "127.0.0.1:PORT"
tls = "starttls"
[[route]]
domains = ["example.test"]
next_hop = ["discard:"]
"""


@pytest.fixture
def worker(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[RunningWorker]:
    for source, name in zip(certificate, ("tls.pem", "tls.key"), strict=True):
        (tmp_path / name).write_bytes(source.read_bytes())
    with RunningWorker(tmp_path, TOML) as running:
        yield running


def is_served(worker: RunningWorker) -> bool:
    with Client(worker.ports[0]) as client:
        client.hello()
        return client.message(b"Subject: x\r\n\r\nok\r\n")[-1].startswith("250 2.0.0")


def test_a_thousand_that_say_nothing(worker: RunningWorker) -> None:
    before = psutil.Process().memory_info().rss
    silent = [socket.create_connection(("127.0.0.1", worker.ports[0])) for _ in range(1000)]
    try:
        assert is_served(worker)
        grown = psutil.Process().memory_info().rss - before
        assert grown < 30 << 20, f"{grown >> 20} MiB for 1000 silent clients (their own sockets included)"
        # RFC 5321 §4.5.3.2.7: the server may time out; each is told so.
        last = silent[-1]
        last.settimeout(60)
        octets = b""
        while data := last.recv(4096):
            octets += data
        assert b"421 4.4.2" in octets
    finally:
        for sock in silent:
            sock.close()
    assert is_served(worker)


def test_a_megabyte_without_a_line_end(worker: RunningWorker) -> None:
    with Client(worker.ports[0]) as client:
        client.hello()
        for _ in range(16):
            client.send(b"A" * 65536)
        client.send(b"\r\nNOOP\r\n")
        assert client.code() == 500
        assert client.code() == 250


def test_garbage_is_cut_after_some_errors(worker: RunningWorker) -> None:
    with Client(worker.ports[0]) as client:
        assert client.code() == 220
        client.send(bytes(range(1, 256)) * 200 + b"\r\n" + b"\xff\xfe\r\n" * 50)
        codes = []
        while (code := client.code()) != 0:
            codes.append(code)
        assert codes[-1] == 421
        assert len(codes) <= 8
    assert is_served(worker)


def test_endless_noops_are_cut(worker: RunningWorker) -> None:
    with Client(worker.ports[0]) as client:
        client.hello()
        client.send(b"NOOP\r\n" * 200)
        codes = []
        while (code := client.code()) != 0:
            codes.append(code)
        assert codes[-1] == 421
        assert len(codes) < 30


@pytest.mark.parametrize("tail", [b"NOOP\r\n", b"MAIL FROM:<x@y.example>\r\n", b"\0", b"\x16\x03\x01\x00\x05"])
def test_nothing_said_in_clear_runs_after_starttls(worker: RunningWorker, tail: bytes) -> None:
    with Client(worker.ports[0]) as client:
        client.hello()
        client.send(b"STARTTLS\r\n" + tail)
        assert client.code() == 501
        assert client.closed()


def test_starttls_forgets_what_was_said_before(worker: RunningWorker) -> None:
    with Client(worker.ports[0]) as client:
        client.hello()
        client.command("MAIL FROM:<a@example.org>")
        assert client.command("STARTTLS")[-1].startswith("220")
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        client.sock = context.wrap_socket(client.sock)
        assert client.command("RCPT TO:<b@example.test>")[-1].startswith("503")
        assert client.command("MAIL FROM:<a@example.org>")[-1].startswith("503")
        reply = client.command("EHLO client.example")
        assert not any("STARTTLS" in line for line in reply)
        assert client.message(b"x\r\n")[-1].startswith("250 2.0.0")
    line = worker.wait_for("accepted")[0]
    assert line["protocol"] == "ESMTPS"
    assert line["tls"].startswith("TLSv1.3 ")


def test_a_handshake_that_is_none(worker: RunningWorker) -> None:
    with Client(worker.ports[0]) as client:
        client.hello()
        assert client.command("STARTTLS")[-1].startswith("220")
        client.send(b"EHLO again\r\n" * 20)
        client.sock.settimeout(60)
        try:
            while client.sock.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert is_served(worker)


def test_a_silent_sender_in_data_is_cut(worker: RunningWorker) -> None:
    with Client(worker.ports[0]) as client:
        client.hello()
        client.command("MAIL FROM:<a@example.org>")
        client.command("RCPT TO:<b@example.test>")
        client.command("DATA")
        client.send(b"Subject: slow\r\n")
        assert client.reply()[-1].startswith("421 4.4.2")
        assert client.closed()
    assert not [line for line in worker.log() if line["event"] == "accepted"]


def test_one_octet_at_a_time_does_not_renew_the_deadline(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.server.smtp.DATA_GRACE_S", 1.0)
    with Client(worker.ports[0]) as client:
        client.hello()
        client.command("MAIL FROM:<a@example.org>")
        client.command("RCPT TO:<b@example.test>")
        client.command("DATA")
        for _ in range(600):  # below data_octets_per_s; bounded, whatever happens
            try:
                client.send(b"x")
            except OSError:
                break
            time.sleep(0.1)
            if client_said_goodbye(client):
                break
        else:
            pytest.fail("a sender of ten octets a second was never cut")
        assert client.reply()[-1].startswith("421 4.4.2")


def client_said_goodbye(client: Client) -> bool:
    client.sock.setblocking(False)
    try:
        return bool(client.sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        client.sock.settimeout(60)


def test_command_octets_do_not_renew_the_deadline(worker: RunningWorker) -> None:
    with Client(worker.ports[0]) as client:
        client.hello()
        for _ in range(400):
            try:
                client.send(b"N")
            except OSError:
                break
            time.sleep(0.1)
            if client_said_goodbye(client):
                break
        else:
            pytest.fail("half a command kept the session open")
        assert client.reply()[-1].startswith("421 4.4.2")


def test_resets_and_half_closes_leave_nothing(worker: RunningWorker) -> None:
    for i in range(50):
        client = Client(worker.ports[0])
        client.hello()
        client.command("MAIL FROM:<a@example.org>")
        if i % 2:
            client.command("RCPT TO:<b@example.test>")
            client.command("DATA")
            client.send(b"Subject: half\r\n\r\n" + b"x" * 300_000)
        if i % 3:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        elif i % 4:
            client.sock.shutdown(socket.SHUT_WR)
        client.sock.close()
    assert is_served(worker)
    worker.wait_for("disconnected", 51)
    assert len([line for line in worker.log() if line["event"] == "accepted"]) == 1
    assert worker.call(lambda: worker.worker.metrics.sessions_open) <= 1


def test_a_client_that_never_reads(worker: RunningWorker) -> None:
    with Client(worker.ports[0]) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.hello()
        client.sock.settimeout(3)
        try:
            for _ in range(2000):
                client.send(b"RCPT TO:<b@example.test>\r\n" * 500)
        except (TimeoutError, OSError):
            pass
        assert is_served(worker)


def test_too_many_sessions_get_421(tmp_path: Path) -> None:
    toml = TOML.replace("sessions = 3000", "sessions = 5").replace('tls = "starttls"', "")
    toml = toml.replace('[tls]\ncertificate = "tls.pem"\nkey = "tls.key"\n', "")
    with RunningWorker(tmp_path, toml) as worker:
        clients = [Client(worker.ports[0]) for _ in range(5)]
        assert [client.code() for client in clients] == [220] * 5
        with Client(worker.ports[0]) as late:
            assert late.reply() == ["421 4.7.0 Too many connections; try again later"]
            assert late.closed()
        for client in clients:
            client.sock.close()
        worker.wait_for("disconnected", 6)
        with Client(worker.ports[0]) as again:
            assert again.code() == 220
