"""What the loop reads of an account without a thread, and when it does not."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.config_store import StoreConfig
from gateway.store import pool
from gateway.store.errors import StoreError
from gateway.store.model import Content, Delivered, Delivery
from gateway.store.store import Account, Store

MAIL = b"Subject: hello\r\n\r\nbody\r\n"


async def opened(directory: Path) -> tuple[Store, Account, int]:
    """A store, an account in it whose file is open, and the key of its message."""
    store = Store(directory, StoreConfig(threads=2, reclaim_s=0.0))
    done = asyncio.get_running_loop().create_future()
    store.deliver(Delivery("alice", [MAIL], create=True, urgent=True), done.set_result)
    delivered = await done
    assert isinstance(delivered, Delivered)
    return store, store.account("alice"), delivered.message


def ask(account: Account, key: int, work: Callable[[list[Any]], Any], **how: bool) -> tuple[list[Any], asyncio.Event]:
    """[(result, error)] once it is there."""
    answers: list[Any] = []
    there = asyncio.Event()

    def done(result: Any, error: StoreError | None) -> None:
        answers.append((result, error))
        there.set()

    account.columns_then(array("Q", [key]), ["content"], work, done, **how)
    return answers, there


def test_a_little_is_read_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        store, account, key = await opened(tmp_path)
        here = threading.get_ident()

        def read(columns: list[Any]) -> tuple[int, bytes]:
            content = columns[0][0]
            assert isinstance(content, Content)
            return threading.get_ident(), content.body

        answers, _ = ask(account, key, read, quick=True)
        assert answers == [((here, b"body\r\n"), None)]  # before columns_then() returned
        answers, there = ask(account, key, read)
        assert answers == []
        await there.wait()
        assert answers[0][0][0] != here
        answers, there = ask(account, key, read)  # a thread is at work on the account: it comes first
        later, there_too = ask(account, key, read, quick=True)
        assert later == []
        await asyncio.gather(there.wait(), there_too.wait())
        assert later[0][0][0] != here
        await store.close()

    asyncio.run(body())


def test_an_error_is_told_in_the_same_way(tmp_path: Path) -> None:
    async def body() -> None:
        store, account, key = await opened(tmp_path)

        def fail(_: list[Any]) -> None:
            raise ZeroDivisionError

        answers, _ = ask(account, key, fail, quick=True)
        result, error = answers[0]
        assert result is None and isinstance(error, StoreError) and "ZeroDivisionError" in str(error)
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
        answers, _ = ask(account, key, lambda _: None, quick=True)  # takes longer than QUICK_S
        assert answers == [(None, None)]
        answers, there = ask(account, key, lambda _: None, quick=True)
        assert bool(answers) is not disk
        monkeypatch.undo()
        await there.wait()
        await store.close()

    asyncio.run(body())
