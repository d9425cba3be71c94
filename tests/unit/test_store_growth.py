"""What an operation on one message costs does not follow the size of its mailbox: by SQLite's counts, not by time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import apsw
import pytest

from gateway.config_store import StoreConfig
from gateway.mail.unique_id import UniqueIds
from gateway.server import maildrop as maildrop_module
from gateway.server.maildrop import Maildrop
from gateway.store.account import AccountFile
from gateway.store.index import CHUNK_RECORDS, TAIL_RECORDS
from gateway.store.model import Delivery, ranges_of, records_of
from gateway.store.names import account_directory
from gateway.store.store import Store

SMALL, LARGE = 2 * CHUNK_RECORDS, 60 * CHUNK_RECORDS
MAIL = b"Subject: one\r\n\r\none\r\n"


class Work(NamedTuple):
    """What SQLite did."""

    steps: int  # of its virtual machine
    pages_read: int
    pages_written: int


class Mailbox:
    """One that is full already."""

    def __init__(self, directory: Path, messages: int) -> None:
        self.file = AccountFile(directory, StoreConfig(), create=True)
        self.inbox = self.file.mailbox("INBOX").id
        self.messages = messages
        self.file.add(self.inbox, [(MAIL, (), 1, "", 0)] * messages)

    def work(self, operation: Callable[[int], object], times: int = 1) -> Work:
        """Of so many calls together; each gets a UID of its own, from the middle of the mailbox."""
        connection: apsw.Connection = self.file.database.execute.__self__  # type: ignore[attr-defined]
        steps = 0

        def step() -> bool:
            nonlocal steps
            steps += 1
            return False

        def pages() -> tuple[int, int]:
            hit, miss, write = (
                connection.status(which)[0]
                for which in (
                    apsw.SQLITE_DBSTATUS_CACHE_HIT,
                    apsw.SQLITE_DBSTATUS_CACHE_MISS,
                    apsw.SQLITE_DBSTATUS_CACHE_WRITE,
                )
            )
            return hit + miss, write

        read, written = pages()
        connection.set_progress_handler(step, 1)
        try:
            for number in range(times):
                operation(self.messages // 2 + number)
        finally:
            connection.set_progress_handler(None)
        after_read, after_written = pages()
        return Work(steps, after_read - read, after_written - written)


@pytest.fixture(scope="module")
def mailboxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mailbox, Mailbox]]:
    where = tmp_path_factory.mktemp("growth")
    small, large = Mailbox(where / "small", SMALL), Mailbox(where / "large", LARGE)
    with closing(small.file), closing(large.file):
        yield small, large


OPERATIONS: dict[str, Callable[[Mailbox, int], object]] = {
    "login": lambda box, _: box.file.mailbox("INBOX"),
    "delivery": lambda box, _: box.file.deliver([Delivery("a", [MAIL])]),
    "delivery that may be a repetition": lambda box, _: box.file.deliver(
        [Delivery("a", [MAIL], origin="id 0", again=True, received_at=int(time.time()) + 10**6)]
    ),
    "flag": lambda box, uid: box.file.store(box.inbox, ranges_of((uid,)), add=("\\Seen",)),
    "expunge": lambda box, uid: box.file.expunge(box.inbox, ranges_of((uid,)), deleted_only=False),
    "read": lambda box, uid: box.file.read([uid]),
    "records": lambda box, uid: box.file.records_after(box.inbox, uid, 1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_not_follow_the_mailbox(
    mailboxes: tuple[Mailbox, Mailbox], name: str
) -> None:
    """Thirty times the messages: a level more in SQLite's trees at most."""
    times = 2 * TAIL_RECORDS
    operation = OPERATIONS[name]
    small, large = (
        box.work(lambda uid, box=box: operation(box, uid), times)  # type: ignore[misc]
        for box in mailboxes
    )
    print(name, small, large)
    assert small.steps > 0
    assert large.steps <= 1.3 * small.steps
    assert large.pages_read <= 1.5 * small.pages_read
    assert large.pages_written <= 1.3 * small.pages_written + times // 4


def test_a_maildrop_is_read_and_emptied_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction and no list is as long as the mailbox."""
    monkeypatch.setattr(maildrop_module, "CHANGE_MESSAGES", CHUNK_RECORDS)
    messages = 70 * CHUNK_RECORDS  # more than one range of records
    longest = 0
    original = AccountFile.records_after

    def spy(file: AccountFile, mailbox: int, uid: int, chunks: int) -> tuple[list[bytes], bool]:
        nonlocal longest
        found = original(file, mailbox, uid, chunks)
        longest = max(longest, sum(map(len, found[0])))
        return found

    monkeypatch.setattr(AccountFile, "records_after", spy)

    async def session() -> None:
        store = Store(tmp_path, StoreConfig())
        account = store.account("a@example.test")
        inbox = await account.mailbox("INBOX")
        slot = AccountFile(account_directory(tmp_path, "a@example.test"), StoreConfig())
        with closing(slot):
            slot.add(inbox.id, [(MAIL, (), 1, "", 0)] * messages)
            inbox = await account.mailbox("INBOX")
            drop = Maildrop(account, inbox, UniqueIds("%u"))
            await drop.load()
            assert len(drop.sizes) == messages
            assert longest < messages * 48
            await drop.remove(range(messages), lambda **_: None)
            (history,) = slot.database.row("SELECT count(*) FROM expunged") or (0,)
            assert history == 70
            assert (await account.mailbox("INBOX")).messages == 0
            assert not records_of(b"".join((await account.snapshot(inbox.id)).chunks))
        await store.close()

    asyncio.run(session())
