"""kill -9 of the whole gateway while it delivers into the store: every 250 is one message in a mailbox, exactly one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from gateway.accounts.build import hasher_of
from gateway.accounts.database import Database
from gateway.accounts.embedded import make_record
from gateway.accounts.model import Account
from gateway.config import load
from gateway.store.account import AccountFile
from gateway.store.check import check_account
from gateway.store.errors import NoSuchAccount
from gateway.store.messages import message_keys
from gateway.store.model import Content
from gateway.store.names import account_directory

pytestmark = pytest.mark.crash

USERS = 4
CLIENTS = 3
ROUNDS = 3
CONFIG = """
hostname = "mx.example.test"
state_dir = "{state}"
workers = 2
[spool]
segment_octets = 4194304
[auth]
argon2_time_cost = 1
argon2_memory_kib = 64
[log]
file = "{state}/log"
[[listen]]
service = "lmtp"
address = "127.0.0.1:{port}"
[[route]]
domains = ["example.test"]
next_hop = ["store:"]
"""


class House:
    def __init__(self, where: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (where / "state").mkdir()
        self.file = where / "gateway.toml"
        self.file.write_text(CONFIG.format(state=where / "state", port=self.port))
        self.config = load(str(self.file))
        with contextlib.closing(Database(self.config.accounts_file)) as database:
            for number in range(USERS):
                account = Account(f"u{number}@example.test")
                database.add(make_record(account, "a long pass word", hasher_of(self.config.auth)))

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "-c", str(self.file)], start_new_session=True
        )
        end = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return process
            except OSError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)

    def stored(self) -> Counter[str]:
        """How often each message is in a mailbox, by its subject."""
        found: Counter[str] = Counter()
        for number in range(USERS):
            directory = account_directory(self.config.store_dir, f"u{number}@example.test")
            try:
                file = AccountFile(directory, self.config.store)
            except NoSuchAccount:
                continue
            for chunk in file.snapshot(file.mailbox("INBOX").id).chunks:
                for content in file.read(message_keys(chunk)):
                    assert isinstance(content, Content)
                    found[content.header.rpartition(b"Subject: ")[2].strip().decode()] += 1
            file.close()
        return found


def send(port: int, name: str, accepted: list[str]) -> None:
    """Deliver until the gateway is gone; what got its 250 is written down."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as sock:
        reader = sock.makefile("rb")
        reader.readline()
        sock.sendall(b"LHLO client.example\r\n")
        while reader.readline()[3:4] == b"-":
            pass
        for number in range(100_000):
            subject = f"{name}.{number}"
            sock.sendall(
                b"MAIL FROM:<a@example.org>\r\nRCPT TO:<u%d@example.test>\r\nDATA\r\n"
                % (number % USERS)
            )
            for _ in range(3):
                reader.readline()
            sock.sendall(f"Subject: {subject}\r\n\r\n{'x' * 500}\r\n.\r\n".encode())
            if not reader.readline().startswith(b"250"):
                return
            accepted.append(subject)


def test_every_250_is_one_message(tmp_path: Path) -> None:
    house = House(tmp_path)
    chooser = random.Random(3)
    accepted: list[str] = []
    begun = 0
    for round_ in range(ROUNDS):
        process = house.start()
        clients = [
            threading.Thread(target=send, args=(house.port, f"{round_}.{number}", accepted))
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        end = time.monotonic() + 60
        while len(accepted) == begun and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1 + chooser.random() * 0.5)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        psutil.wait_procs(workers, 60)  # one that waits for the disk still has its sockets
        for client in clients:
            client.join()
        assert len(accepted) > begun
        begun = len(accepted)
    process = house.start()
    end = time.monotonic() + 60
    while (missing := set(accepted) - set(house.stored())) and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    found = house.stored()
    assert not missing
    assert [subject for subject, count in found.items() if count > 1] == []
    for number in range(USERS):
        directory = account_directory(house.config.store_dir, f"u{number}@example.test")
        assert check_account(directory, house.config.store).clean
