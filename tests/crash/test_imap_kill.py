"""kill -9 of the whole gateway while IMAP clients work: what they were told is true afterwards, and stays so."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from imap.rig import PASSWORD, ImapClient
from imap_clients import Mirror, Worker, look
from imap_ledger import Ledger, Serial, content_of
from killed_house import KilledHouse

from gateway.store.account import AccountFile
from gateway.store.check import check_account
from gateway.store.names import account_directory

pytestmark = pytest.mark.crash

ROUNDS = int(os.environ.get("IMAP_KILL_ROUNDS", "3"))
SEED = int(os.environ.get("IMAP_KILL_SEED", "1"))
ACCOUNTS = ("alice@example.test", "bob@example.test")
CLIENTS = 3  # at once; the first and the last share an account
CONFIG = """
hostname = "mx.example.test"
state_dir = "{state}"
workers = 2
[auth]
argon2_time_cost = 1
argon2_memory_kib = 64
plaintext_auth = ["127.0.0.0/8"]
[log]
file = "{state}/log"
[[listen]]
service = "imap"
address = "127.0.0.1:{port}"
"""


class House(KilledHouse):
    def __init__(self, where: Path) -> None:
        super().__init__(where, CONFIG, ACCOUNTS, PASSWORD)

    def check(self) -> None:
        """`gateway mailbox check` finds nothing, and leaves no file that belongs to no message."""
        for name in ACCOUNTS:
            directory = account_directory(self.config.store_dir, name)
            if not directory.exists():
                continue
            report = check_account(directory, self.config.store)
            assert report.clean, report.findings
            with contextlib.closing(AccountFile(directory, self.config.store)) as file:
                sql = "SELECT file FROM message WHERE file IS NOT NULL"
                wanted = {found for (found,) in file.database.execute(sql)}
                there = set(os.listdir(directory / "large")) if wanted else set()
            assert there == wanted, f"files without a message: {there - wanted}"


def guarded(worker: Worker, port: int, seed: int, failures: list[BaseException]) -> None:
    try:
        worker.run(port, seed)
    except BaseException as error:
        failures.append(error)


def test_what_clients_were_told_is_true(tmp_path: Path) -> None:
    house = House(tmp_path)
    chooser = random.Random(SEED)
    ledger = Ledger()
    clients = [Worker(ledger, ACCOUNTS[at % len(ACCOUNTS)], at) for at in range(CLIENTS)]
    mirrors = {name: Mirror() for name in ACCOUNTS}
    for round_ in range(ROUNDS + 1):
        process = house.start()
        try:
            for name in ACCOUNTS:
                ledger.judge(look(house.port, name, mirrors[name]))
            if round_ == ROUNDS:
                break
            failures: list[BaseException] = []
            begun = [client.acknowledged for client in clients]
            threads = [
                threading.Thread(
                    target=guarded, args=(client, house.port, chooser.getrandbits(32), failures)
                )
                for client in clients
            ]
            for thread in threads:
                thread.start()
            end = time.monotonic() + 60
            while time.monotonic() < end and not failures:
                if all(client.acknowledged > b for client, b in zip(clients, begun, strict=True)):
                    break
                time.sleep(0.01)
            time.sleep(0.1 + chooser.random() * 0.6)
        finally:
            house.kill(process)
        for thread in threads:
            thread.join()
        assert not failures, failures
        house.check()
    assert all(client.acknowledged > ROUNDS for client in clients)


def test_mail_that_moves_between_accounts_is_in_one_of_them(tmp_path: Path) -> None:
    """Two databases: a kill may leave it in both, and never in none."""
    house = House(tmp_path)
    here, there = ACCOUNTS
    boxes = ("INBOX", f'"Other Users/{there}/INBOX"')
    wanted = {(9, number) for number in range(24)}
    for round_ in range(ROUNDS // 2 + 1):
        process = house.start()
        try:
            if round_ == 0:
                with ImapClient(house.port) as imap:
                    imap.ok(f'LOGIN {there} "{PASSWORD}"')
                    imap.ok(f"SETACL INBOX {here} lrswite")
            else:
                found = [look(house.port, name, Mirror()) for name in ACCOUNTS]
                serials = {message.serial for one in found for message in one.messages.values()}
                assert serials == wanted, f"{wanted - serials} are lost"
            moved = move_to_and_fro(house.port, boxes, wanted if round_ == 0 else set())
            for _ in range(1 + round_ % 3):
                next(moved)
            thread = threading.Thread(target=exhaust, args=(moved,))
            thread.start()
            time.sleep(0.02 * (1 + round_ % 5))
        finally:
            house.kill(process)
        thread.join()
        house.check()


def move_to_and_fro(port: int, boxes: tuple[str, str], new: set[Serial]) -> Iterator[None]:
    """Until the gateway is gone; one step a command."""
    with contextlib.suppress(EOFError, OSError), ImapClient(port) as imap:
        imap.ok(f'LOGIN {ACCOUNTS[0]} "{PASSWORD}"')
        for serial in sorted(new):
            octets = content_of(serial, large=serial[1] == 5)
            imap.ok(b"APPEND INBOX {%d+}\r\n%b" % (len(octets), octets))
        while True:
            for source, target in (boxes, boxes[::-1]):
                if b"0 EXISTS" not in imap.ok(f"SELECT {source}"):
                    imap.ok(f"MOVE 1:* {target}")
                yield


def exhaust(moved: Iterator[None]) -> None:
    for _ in moved:
        pass
