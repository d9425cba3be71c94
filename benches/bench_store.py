"""The store's operations, a message each, beside the floor of doing nothing but moving the octets.

Flow      make bench (pytest-benchmark); where bodies should be is asked by store_layouts.py
Files     real mail in the cache of corpus.py
Errors    skips when the corpus cannot be fetched
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus import CorpusMissing
from store_layouts import mail

from gateway.config_store import StoreConfig
from gateway.mail.imap_facts import ENVELOPE, message_facts, section
from gateway.store.account import AccountFile
from gateway.store.messages import message_keys
from gateway.store.model import ALL_UIDS, Content, Delivery, ranges_of

MESSAGES = 10_000

# CPU, not elapsed time: what waits for the disk is not the store's to improve.
pytestmark = pytest.mark.benchmark(timer=time.process_time)


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    try:
        return mail(MESSAGES)
    except CorpusMissing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def account(
    contents: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AccountFile]:
    file = AccountFile(tmp_path_factory.mktemp("store") / "a", StoreConfig(), create=True)
    for at in range(0, MESSAGES, 100):
        file.deliver([Delivery("a", [one]) for one in contents[at : at + 100]])
    yield file
    file.close()


def per_message(benchmark: Any, count: int) -> None:
    if benchmark.stats is not None:
        benchmark.extra_info["us_per_message"] = benchmark.stats.stats.median / count * 1e6


@pytest.mark.parametrize("batch", [1, 10, 100])
def test_deliver(benchmark: Any, contents: list[bytes], tmp_path: Path, batch: int) -> None:
    file = AccountFile(tmp_path / "a", StoreConfig(), create=True)
    chosen = itertools.cycle(contents)

    def deliver() -> None:
        file.deliver([Delivery("a", [next(chosen)]) for _ in range(batch)])

    benchmark(deliver)
    per_message(benchmark, batch)
    file.close()


def test_facts(benchmark: Any, contents: list[bytes]) -> None:
    benchmark(lambda: [message_facts(one) for one in contents[:1000]])
    per_message(benchmark, 1000)


def test_snapshot(benchmark: Any, account: AccountFile) -> None:
    inbox = account.mailbox("INBOX").id
    benchmark(lambda: account.snapshot(inbox))
    per_message(benchmark, MESSAGES)


def test_status(benchmark: Any, account: AccountFile) -> None:
    benchmark(lambda: account.mailbox("INBOX"))


def test_store_flags(benchmark: Any, account: AccountFile) -> None:
    inbox = account.mailbox("INBOX").id
    flags = itertools.cycle(({"add": ["\\Seen"]}, {"remove": ["\\Seen"]}))
    benchmark(lambda: account.store(inbox, ALL_UIDS, **next(flags)))  # type: ignore[arg-type]
    per_message(benchmark, MESSAGES)


def test_store_one_flag(benchmark: Any, account: AccountFile) -> None:
    inbox = account.mailbox("INBOX").id
    flags = itertools.cycle(({"add": ["\\Seen"]}, {"remove": ["\\Seen"]}))
    benchmark(lambda: account.store(inbox, ranges_of([5000]), **next(flags)))  # type: ignore[arg-type]


def test_read_all(benchmark: Any, account: AccountFile) -> None:
    keys = [
        key
        for chunk in account.snapshot(account.mailbox("INBOX").id).chunks
        for key in message_keys(chunk)
    ]

    def read() -> int:
        octets = 0
        for at in range(0, len(keys), 200):
            for one in account.read(keys[at : at + 200]):
                assert isinstance(one, Content)
                octets += len(one.header) + len(one.body)
        return octets

    octets = benchmark(read)
    benchmark.extra_info["octets"] = octets
    per_message(benchmark, MESSAGES)


def test_envelopes(benchmark: Any, account: AccountFile) -> None:
    keys = [
        key
        for chunk in account.snapshot(account.mailbox("INBOX").id).chunks
        for key in message_keys(chunk)
    ]

    def envelopes() -> None:
        for at in range(0, len(keys), 500):
            for one in account.facts(keys[at : at + 500]):
                assert isinstance(one, bytes)
                section(one, ENVELOPE)

    benchmark(envelopes)
    per_message(benchmark, MESSAGES)


def test_copy_and_expunge(benchmark: Any, account: AccountFile) -> None:
    inbox, archive = account.mailbox("INBOX").id, account.mailbox("Archive").id

    def copy() -> None:
        account.copy(inbox, archive, ranges_of(range(1, 1001)))
        account.expunge(archive, ALL_UIDS, deleted_only=False)

    benchmark(copy)
    per_message(benchmark, 1000)
