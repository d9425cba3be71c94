"""What the loop reads of an account without a thread, and when it does not."""

from __future__ import annotations

import asyncio
import threading
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.config_store import StoreConfig
from gateway.store import database, pool
from gateway.store.account import AccountFile
from gateway.store.errors import NotNow, StoreError
from gateway.store.model import FLAG_CHANGE, FLAGGED, SEEN, Content, Delivered, Delivery
from gateway.store.store import Account, Store

MAIL = b"Subject: hello\r\n\r\nbody\r\n"


async def opened(directory: Path, **settings: Any) -> tuple[Store, Account, int]:
    """A store, an account in it whose file is open, and the key of its message."""
    store = Store(directory, StoreConfig(threads=2, reclaim_s=0.0, **settings))
    done = asyncio.get_running_loop().create_future()
    store.deliver(Delivery("alice", [MAIL], create=True, urgent=True), done.set_result)
    delivered = await done
    assert isinstance(delivered, Delivered)
    return store, store.account("alice"), delivered.message


def read_now(account: Account, key: int) -> bytes:
    """The body, read by the loop.  Raises NotNow."""
    (contents,) = account.columns_now(array("Q", [key]), ["content"])
    assert isinstance(contents[0], Content)
    return contents[0].body


def ask(account: Account, key: int) -> tuple[list[Any], asyncio.Event]:
    """[(result, error)] once a thread has read it; the result is that thread."""
    answers: list[Any] = []
    there = asyncio.Event()

    def done(result: Any, error: StoreError | None) -> None:
        answers.append((result, error))
        there.set()

    account.columns_then(array("Q", [key]), ["content"], lambda _: threading.get_ident(), done)
    return answers, there


def test_a_little_is_read_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        store, account, key = await opened(tmp_path)
        assert read_now(account, key) == b"body\r\n"
        answers, there = ask(account, key)
        assert answers == []
        with pytest.raises(NotNow):  # a thread is at work on the account: it comes first
            read_now(account, key)
        await there.wait()
        assert answers[0][0] != threading.get_ident()
        assert read_now(account, key) == b"body\r\n"
        await store.close()
        with pytest.raises(NotNow):
            read_now(account, key)

    asyncio.run(body())


def test_an_unexpected_error_is_one_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        store, account, key = await opened(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(AccountFile, "columns", lambda *_: 1 // 0)
            with pytest.raises(StoreError, match="ZeroDivisionError"):
                read_now(account, key)
            patch.setattr(AccountFile, "mailbox", lambda *_: 1 // 0)
            with pytest.raises(StoreError, match="ZeroDivisionError"):
                await account.mailbox("INBOX")
        assert (await account.mailbox("INBOX")).messages == 1
        await store.close()

    asyncio.run(body())


@pytest.mark.parametrize("disk", [True, False], ids=["disk", "processor"])
def test_when_the_disk_was_asked_the_threads_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: bool
) -> None:
    async def body() -> None:
        store, account, key = await opened(tmp_path)
        times = [100.0, 100.0 + 2 * pool.QUICK_S]
        clock = SimpleNamespace(monotonic=lambda: times.pop(0) if times else 100.1)
        usage = SimpleNamespace(ru_majflt=10**9 if disk else -1, ru_inblock=0)
        monkeypatch.setattr(pool, "time", clock)
        monkeypatch.setattr(pool, "resource", SimpleNamespace(getrusage=lambda _: usage, RUSAGE_THREAD=1))
        assert read_now(account, key)  # takes longer than QUICK_S
        if disk:
            with pytest.raises(NotNow):
                read_now(account, key)
        else:
            assert read_now(account, key)
        monkeypatch.undo()
        await store.close()

    asyncio.run(body())


def test_a_sync_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr(database, "BUSY_COMMITS", 1)
        store, account, _ = await opened(tmp_path, flags_sync_s=0.001)
        begun, finish = threading.Event(), threading.Event()

        def slow(_: int) -> None:
            begun.set()
            assert finish.wait(60)

        monkeypatch.setattr(database.os, "fdatasync", slow)
        box = await account.mailbox("INBOX")
        modseq = box.highestmodseq

        def log(bits: int, modseq: int) -> bool:
            return account.log_flags(box.id, modseq, FLAG_CHANGE.pack(1, 1, 0, bits, modseq + 1), -(bits & SEEN), 0)

        assert log(SEEN, modseq)
        assert await asyncio.to_thread(begun.wait, 60)
        assert log(FLAGGED, modseq + 1)
        record = await account.record(box.id, 1)
        assert record is not None and record.flags == SEEN | FLAGGED and record.modseq == modseq + 2
        finish.set()
        await store.close()

    asyncio.run(body())
