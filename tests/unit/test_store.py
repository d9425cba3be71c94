"""The store as a worker uses it: batches, order, limits, notices; the agent that delivers into it."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config_store import StoreConfig
from gateway.delivery.agent import BOUNCED, DEFERRED, DELIVERED, Job, Outcome, failed
from gateway.delivery.store import Resolved, StoreAgent, Target
from gateway.mail.envelope import Envelope, Recipient
from gateway.store import account as account_module
from gateway.store.account import AccountFile
from gateway.store.errors import NoSuchAccount, NoSuchMailbox, StoreBusy, StoreError
from gateway.store.model import (
    ALL_UIDS,
    Content,
    Delivered,
    Delivery,
    Notice,
    Quota,
    ranges_of,
    records_of,
)
from gateway.store.names import account_directory, account_names
from gateway.store.notices import Notices, encode_notices
from gateway.store.store import Account, Store

MAIL = b"Subject: hello\r\n\r\nbody\r\n"


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[Path, Any], None]:
    """The test, run on a loop; `store`, when it asks for one, is opened before and closed behind it."""
    wanted = inspect.signature(test).parameters

    def run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given: dict[str, Any] = {"tmp_path": tmp_path, "monkeypatch": monkeypatch}

        async def body() -> None:
            if "store" in wanted:
                given["store"] = Store(tmp_path, StoreConfig(threads=2, reclaim_s=0.0))
            await test(**{name: given[name] for name in wanted})
            if "store" in wanted:
                await given["store"].close()

        asyncio.run(body())

    run_it.__name__ = test.__name__
    run_it.__doc__ = test.__doc__
    return run_it


def deliver(store: Store, account: str, **more: Any) -> asyncio.Future[Delivered | StoreError]:
    future = asyncio.get_running_loop().create_future()
    store.deliver(Delivery(account, [MAIL], **more), future.set_result)
    return future


async def uids(account: Account) -> list[int]:
    inbox = await account.mailbox("INBOX")
    snapshot = await account.snapshot(inbox.id)
    return [record.uid for chunk in snapshot.chunks for record in records_of(chunk)]


@on_loop
async def test_deliveries_that_wait_share_a_transaction(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    held = threading.Event()
    original = AccountFile.deliver

    def spy(
        self: AccountFile, deliveries: Sequence[Delivery], turn: AbstractContextManager[Any]
    ) -> list[Delivered | StoreError]:
        batches.append(len(deliveries))
        held.wait(10)
        return original(self, deliveries, turn)

    monkeypatch.setattr(account_module.AccountFile, "deliver", spy)
    waiting = [deliver(store, "a@x")]
    while not batches:
        await asyncio.sleep(0.001)
    waiting += [deliver(store, "a@x") for _ in range(150)]
    held.set()
    results = await asyncio.gather(*waiting)
    assert [result.uid for result in results if isinstance(result, Delivered)] == list(
        range(1, 152)
    )
    assert batches == [1, 100, 50]  # settings.batch_messages


@on_loop
async def test_deliveries_that_follow_soon_are_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Store(tmp_path / "quiet", StoreConfig(gather_s=10.0))
    for _ in range(5):
        assert isinstance(await deliver(quiet, "a@x"), Delivered)  # nobody waits in a quiet worker
    await quiet.close()
    monkeypatch.setattr("gateway.store.pool.BUSY_DELIVERIES", 0)
    store = Store(tmp_path, StoreConfig(gather_s=10.0))
    first = await deliver(store, "a@x")  # at once
    waiting = [deliver(store, "a@x"), deliver(store, "a@x")]
    assert isinstance(await deliver(store, "b@x"), Delivered)  # others are not concerned
    assert not any(one.done() for one in waiting)
    assert await uids(store.account("a@x")) == [1, 2, 3]  # who asks sees what is there
    modseqs = [
        one.modseq for one in (first, *await asyncio.gather(*waiting)) if isinstance(one, Delivered)
    ]
    assert modseqs == [2, 3, 3]
    late = deliver(store, "a@x")
    urgent = deliver(store, "a@x", urgent=True)
    assert {(await urgent).modseq, (await late).modseq} == {4}  # type: ignore[union-attr]
    last = deliver(store, "a@x")
    await store.close()
    assert isinstance(last.result(), Delivered)


@on_loop
async def test_a_batch_is_bounded_in_octets_too(tmp_path: Path) -> None:
    store = Store(tmp_path, StoreConfig(threads=1, batch_octets=65536, waiting_octets=200_000))
    loop = asyncio.get_running_loop()
    big = b"Subject: x\r\n\r\n" + b"y" * 60_000
    futures = []
    for _ in range(4):
        future = loop.create_future()
        store.deliver(Delivery("a@x", [big]), future.set_result)
        futures.append(future)
    results = await asyncio.gather(*futures)
    assert [type(result) for result in results] == [Delivered, Delivered, Delivered, StoreBusy]
    assert isinstance(await deliver(store, "a@x"), Delivered)
    await store.close()


@on_loop
async def test_what_an_account_is_asked_is_done_in_order(store: Store) -> None:
    account = store.account("a@x")
    made = account.create("New")
    box, listed = await asyncio.gather(made, account.mailboxes())
    assert box.name in [one.name for one in listed]


@on_loop
async def test_an_error_reaches_the_asker_only(store: Store) -> None:
    account = store.account("a@x")
    with pytest.raises(NoSuchMailbox):
        await account.mailbox("none")
    assert (await account.mailbox("INBOX")).messages == 0
    with pytest.raises(NoSuchAccount):
        await store.account("never@x", create=False).mailboxes()
    with pytest.raises(NoSuchAccount):
        await store.account("").mailboxes()


@on_loop
async def test_files_of_unused_accounts_are_closed(tmp_path: Path) -> None:
    store = Store(tmp_path, StoreConfig(threads=2, open_accounts=3))
    for number in range(12):
        await deliver(store, f"user{number}@x")
        await asyncio.sleep(0.01)
    open_logs = list(tmp_path.glob("*/*/store.db-wal"))
    assert len(open_logs) <= 4
    assert await uids(store.account("user0@x")) == [1]
    await store.close()
    assert not list(tmp_path.glob("*/*/store.db-wal"))


@on_loop
async def test_closing_finishes_what_was_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path, StoreConfig())
    futures = [deliver(store, f"user{number % 7}@x") for number in range(50)]
    await store.close()
    assert all(isinstance(future.result(), Delivered) for future in futures)
    assert isinstance(await deliver(store, "user1@x"), StoreBusy)
    with pytest.raises(StoreBusy):
        await store.account("user1@x").mailboxes()


@on_loop
async def test_a_bug_costs_one_message_and_not_its_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AccountFile.deliver

    def buggy(
        self: AccountFile, deliveries: Sequence[Delivery], *turn: AbstractContextManager[Any]
    ) -> list[Delivered | StoreError]:
        if any(delivery.origin == "poison" for delivery in deliveries):
            raise ZeroDivisionError
        return original(self, deliveries, *turn)

    monkeypatch.setattr(account_module.AccountFile, "deliver", buggy)
    results = await asyncio.gather(
        deliver(store, "a@x"), deliver(store, "a@x", origin="poison"), deliver(store, "a@x")
    )
    assert sorted(type(result).__name__ for result in results) == [
        "Delivered", "Delivered", "StoreError",
    ]  # fmt: skip


@on_loop
async def test_every_change_is_told_after_it_is_durable(store: Store) -> None:
    told: list[Notice] = []
    end = store.notices.subscribe("a@x", told.append)
    other: list[Notice] = []
    store.notices.subscribe("b@x", other.append)
    account = store.account("a@x")
    inbox = await account.mailbox("INBOX")
    delivered = await deliver(store, "a@x")
    assert isinstance(delivered, Delivered)
    assert told == [Notice("a@x", inbox.id, delivered.modseq)]
    stored = await account.store(inbox.id, ALL_UIDS, add=["\\Seen"])
    await account.store(inbox.id, ALL_UIDS, add=["\\Seen"])
    archive = await account.mailbox("Archive")
    moved = await account.copy(inbox.id, archive.id, ALL_UIDS, move=True)
    gone = await account.expunge(archive.id, ALL_UIDS, deleted_only=False)
    await account.create("New")
    assert told[1:] == [
        Notice("a@x", inbox.id, stored.modseq),
        Notice("a@x", archive.id, moved.modseq),
        Notice("a@x", inbox.id, moved.expunged_modseq),
        Notice("a@x", archive.id, gone.modseq),
        Notice("a@x", 0, 0),
    ]
    end()
    await deliver(store, "a@x")
    assert len(told) == 6
    assert other == []


def test_notices_go_to_other_workers_in_datagrams() -> None:
    sent: list[bytes] = []
    here = Notices(sent.append)
    there = Notices()
    told: list[Notice] = []
    there.subscribe("a@x", told.append)
    here.publish([Notice("a@x", 1, 5), Notice("a@x", 1, 6), Notice("a@x", 2, 3)])
    for payload in sent:
        there.receive(payload)
    assert told == [Notice("a@x", 1, 6), Notice("a@x", 2, 3)]  # the later one says it all
    there.receive(b"\xff nonsense")
    there.receive(msgspec.msgpack.encode([1, 2]))
    many = [Notice(f"{number:0200}@x", 1, 1) for number in range(1000)]
    assert all(len(payload) < 65536 for payload in encode_notices(many))


def test_a_listener_that_fails_does_not_silence_the_others() -> None:
    notices = Notices()
    told: list[Notice] = []

    def bad(_notice: Notice) -> None:
        raise RuntimeError

    notices.subscribe("a@x", bad)
    notices.subscribe("a@x", told.append)
    notices.publish([Notice("a@x", 1, 1)])
    assert len(told) == 1


@on_loop
async def test_expunged_octets_go_in_the_background(store: Store, tmp_path: Path) -> None:
    await asyncio.gather(*(deliver(store, "a@x") for _ in range(30)))
    account = store.account("a@x")
    inbox = await account.mailbox("INBOX")
    (chunk,) = (await account.snapshot(inbox.id)).chunks
    keys = [record.message for record in records_of(chunk)]
    await account.expunge(inbox.id, ranges_of(range(1, 30)), deleted_only=False)
    end = time.monotonic() + 60
    while isinstance((await account.read(keys))[0], Content):
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    found = await account.read(keys)
    assert [isinstance(one, Content) for one in found] == [False] * 29 + [True]


@pytest.mark.parametrize(
    "name",
    ["alice@example.test", "ü@bücher.example", "../../etc/passwd", ".", "a/b@x", "%41@x", "A@x"],
)
def test_each_account_has_a_directory_of_its_own(tmp_path: Path, name: str) -> None:
    directory = account_directory(tmp_path, name)
    assert directory.parent.parent == tmp_path
    AccountFile(directory, StoreConfig(), create=True).close()
    assert list(account_names(tmp_path)) == [name]


# -- delivery -----------------------------------------------------------------------------------------


class Stored:
    def __init__(self, *recipients: str, received_at: int = 2**62) -> None:
        self.queue_id = "QUEUEID"
        self.envelope = Envelope(
            "from@example.org", [Recipient(one) for one in recipients], received_at
        )


class Body:
    in_memory = True
    size = len(MAIL)

    def slices(self) -> list[bytes]:
        return [MAIL]


TARGETS: dict[str, Resolved] = {
    "alice@x": [Target("alice@x")],
    "full@x": [Target("full@x", quota=Quota(octets=10))],
    "both@x": [Target("alice@x"), Target("bob@x", "Nowhere")],
    "nobody@x": Outcome(BOUNCED, 550, "5.1.1", "no such mailbox here"),
    "later@x": failed("directory is down"),
}


def resolve(forward_path: str, done: Callable[[Resolved], None]) -> None:
    asyncio.get_running_loop().call_soon(done, TARGETS[forward_path])


async def run(agent: StoreAgent, job: Job) -> list[Outcome]:
    future: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()
    agent.submit(job, lambda _job, outcomes: future.set_result(outcomes))
    return list(await future)


def job(*recipients: str, attempt: int = 1) -> Job:
    return Job(Stored(*recipients), list(range(len(recipients))), lambda _: Body(), attempt=attempt)


@on_loop
async def test_each_recipient_has_its_outcome(store: Store) -> None:
    agent = StoreAgent(store, resolve)
    outcomes = await run(agent, job("alice@x", "full@x", "both@x", "nobody@x", "later@x"))
    assert [(one.state, one.enhanced) for one in outcomes] == [
        (DELIVERED, "2.0.0"),
        (DEFERRED, "4.2.2"),
        (DELIVERED, "2.0.0"),
        (BOUNCED, "5.1.1"),
        (DEFERRED, "4.3.0"),
    ]
    assert outcomes[0].text == "stored: alice@x INBOX UID 1"
    assert sorted(outcomes[2].text.removeprefix("stored: ").split(", ")) == [
        "alice@x INBOX UID 2", "bob@x INBOX UID 1",
    ]  # fmt: skip
    account = store.account("alice@x")
    (chunk,) = (await account.snapshot((await account.mailbox("INBOX")).id)).chunks
    (content,) = await account.read([records_of(chunk)[0].message])
    assert isinstance(content, Content)
    assert content.header.startswith(
        b"Return-Path: <from@example.org>\r\nDelivered-To: alice@x\r\n"
    )
    assert content.header.endswith(b"Subject: hello\r\n\r\n")


@on_loop
async def test_a_full_account_may_bounce(store: Store) -> None:
    agent = StoreAgent(store, resolve, reject_over_quota=True)
    (outcome,) = await run(agent, job("full@x"))
    assert (outcome.state, outcome.code, outcome.enhanced) == (BOUNCED, 552, "5.2.2")


@on_loop
async def test_a_retry_does_not_deliver_twice(store: Store) -> None:
    agent = StoreAgent(store, resolve)
    stored = Stored("alice@x", received_at=1)
    for attempt in (1, 2):  # received before the agent was there: it may be the store's already
        (outcome,) = await run(agent, Job(stored, [0], lambda _: Body(), attempt=attempt))
        assert outcome.text == "stored: alice@x INBOX UID 1"
    assert await uids(store.account("alice@x")) == [1]


@on_loop
async def test_a_body_that_cannot_be_read_is_tried_again(store: Store) -> None:
    def unreadable(_: Any) -> Body:
        raise OSError(5, "Input/output error")

    agent = StoreAgent(store, resolve)
    (outcome,) = await run(agent, Job(Stored("alice@x"), [0], unreadable))
    assert outcome.state == DEFERRED
    agent.close()
    assert agent.capacity == 0
