"""kill -9 of the whole gateway while it delivers into the store: every 250 is one message in a mailbox, exactly one."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from killed_house import KilledHouse

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


class House(KilledHouse):
    def __init__(self, where: Path) -> None:
        super().__init__(where, CONFIG, [f"u{number}@example.test" for number in range(USERS)], "a long pass word")

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
        house.kill(process)
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
