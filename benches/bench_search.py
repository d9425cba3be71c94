"""SEARCH, SORT and THREAD over a mailbox, a message each.

Flow      make bench (pytest-benchmark); beside Dovecot and Cyrus: python -m benches.peers
Files     real mail in the cache of corpus.py
Errors    skips when the corpus cannot be fetched
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
from bench_store import MESSAGES, account, contents, per_message

from gateway._native import (
    PICK_DATE,
    join_texts,
    mask_words,
    pick,
    rank_texts,
    sort_order,
    thread_references,
)
from gateway.server.imap.order import IS_REPLY, SUBJECT
from gateway.store.account import AccountFile
from gateway.store.messages import message_keys
from gateway.store.texts import REFERENCES, SORT_KEYS

__all__ = ["account", "contents"]  # fixtures
pytestmark = pytest.mark.benchmark(timer=time.process_time)
KEYS_AT_ONCE = 8192


@pytest.fixture(scope="module")
def keys(account: AccountFile) -> Iterator[array[int]]:
    chunks = account.snapshot(account.mailbox("INBOX").id).chunks
    yield array("Q", [key for chunk in chunks for key in message_keys(chunk)])


def search(account: AccountFile, keys: array[int], where: str, text: str) -> int:
    done = found = 0
    while done < len(keys):
        mask = account.search(keys[done : done + KEYS_AT_ONCE], where, text)
        done += len(mask)
        found += mask.count(1)
    return found


def texts(account: AccountFile, keys: array[int], kind: str) -> bytes:
    pieces = []
    for at in range(0, len(keys), KEYS_AT_ONCE):
        while (piece := account.texts(kind, keys[at : at + KEYS_AT_ONCE])) is None:
            pass
        pieces.append(piece)
    return join_texts(pieces)


@pytest.mark.parametrize("where", ["subject", "x-mailer", "x-loop", "body", "text"])
def test_search(benchmark: Any, account: AccountFile, keys: array[int], where: str) -> None:
    """x-loop: a field that no blocks are kept of."""
    search(account, keys, where, "linux")
    benchmark(lambda: search(account, keys, where, "penguin"))
    per_message(benchmark, MESSAGES)


def test_sort_by_date(benchmark: Any, account: AccountFile) -> None:
    chunks = account.snapshot(account.mailbox("INBOX").id).chunks
    benchmark(lambda: sort_order([b"".join(pick(c, b"\1" * (len(c) // 48), PICK_DATE) for c in chunks)], b"\0"))
    per_message(benchmark, MESSAGES)


def test_sort_by_subject(benchmark: Any, account: AccountFile, keys: array[int]) -> None:
    texts(account, keys, SORT_KEYS)
    benchmark(lambda: sort_order([rank_texts(texts(account, keys, SORT_KEYS), SUBJECT)], b"\0"))
    per_message(benchmark, MESSAGES)


def test_thread(benchmark: Any, account: AccountFile, keys: array[int]) -> None:
    chunks = account.snapshot(account.mailbox("INBOX").id).chunks
    numbers = array("I", range(1, len(keys) + 1)).tobytes()

    def thread() -> bytes:
        dates = b"".join(pick(chunk, b"\1" * (len(chunk) // 48), PICK_DATE) for chunk in chunks)
        sort_keys = texts(account, keys, SORT_KEYS)
        references = texts(account, keys, REFERENCES)
        subjects = rank_texts(sort_keys, SUBJECT)
        return thread_references(numbers, references, dates, subjects, mask_words(sort_keys, IS_REPLY), 1)

    benchmark(thread)
    per_message(benchmark, MESSAGES)
