"""The plan of a search beside the slow model, over a real store."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import model_search as model
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway._native import PICK_NUMBER, resolve_set
from gateway.config_store import StoreConfig
from gateway.protocol.imap.search import (
    FOREVER,
    Age,
    And,
    Between,
    Flag,
    Key,
    Not,
    Numbers,
    Or,
    Recent,
    Sent,
    Text,
)
from gateway.server.imap import search_plan
from gateway.server.imap.search_plan import Scope, find, plan_search
from gateway.store.account import AccountFile
from gateway.store.model import Content, Delivered, Delivery, Snapshot, ranges_of, records_of
from gateway.store.store import Account, Store

ACCOUNT = "alice@example.test"
DAY = 86_400
START = 1_700_000_000  # of the internal dates
WORDS = ["apple", "Straße", "GRÜSSE", "привет", "件名", "ﬁsh", "fish", "re:", "a", "e", "ZZ", "x\ty"]
MESSAGES = 40


def mail(random_: random.Random, at: int) -> bytes:
    def words(count: int) -> str:
        return " ".join(random_.choice(WORDS) for _ in range(count)).replace("\t", " ")

    message = EmailMessage()
    message["Subject"] = words(3)
    message["From"] = f"{words(1)} <a{at % 3}@example.org>"
    message["To"] = "Bob <bob@example.net>, carl@example.com"
    if at % 4 == 0:
        message["Cc"] = "Dora <dora@example.com>"
    if at % 5:
        zone = random_.choice(["+0000", "-0800", "+1300", "+0530"])
        message["Date"] = f"{1 + at % 28} Feb 2021 {random_.randrange(24):02}:30:00 {zone}"
    if at % 3 == 0:
        message["X-Kind"] = words(2)
    charset = random_.choice(["utf-8", "utf-16"])
    message.set_content(words(12) + "\n", charset=charset, cte=random_.choice(["base64", "quoted-printable"]))
    if at % 6 == 0:
        message.add_attachment(words(5), subtype="html", filename="page.html")
        message.add_attachment(b"apple fish", maintype="application", subtype="x-data")
    return message.as_bytes().replace(b"\n", b"\r\n")


class World:
    """A store with one mailbox, and a loop for it."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.fill(directory))

    async def fill(self, directory: Path) -> None:
        random_ = random.Random(5)
        self.store = Store(directory, StoreConfig())
        self.account: Account = self.store.account(ACCOUNT)
        contents = [mail(random_, at) for at in range(MESSAGES)]
        for at, content in enumerate(contents):
            done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            date = START + at * DAY // 2
            self.store.deliver(Delivery(ACCOUNT, [content], internal_date=date), done.set_result)
            assert isinstance(await done, Delivered)
        inbox = (await self.account.mailbox("INBOX")).id
        for flag in ("\\Seen", "\\Flagged", "\\Draft", "$Work", "$Other"):
            uids = [uid for uid in range(1, MESSAGES + 1) if random_.random() < 0.4]
            await self.account.store(inbox, ranges_of(uids), add=[flag])
        await self.account.expunge(inbox, ranges_of([3, 4, 17]), deleted_only=False)
        self.snapshot: Snapshot = await self.account.snapshot(inbox)
        records = [record for chunk in self.snapshot.chunks for record in records_of(chunk)]
        self.model = [
            model.One(
                number,
                record.uid,
                contents[record.uid - 1],
                frozenset(name.lower() for name in self.snapshot.mailbox.names(record.flags)),
                record.modseq,
                record.internal_date,
                record.save_date,
                record.uid >= 30,
            )
            for number, record in enumerate(records, 1)
        ]
        # several chunks, so that numbers go over their seams
        octets = b"".join(self.snapshot.chunks)
        self.chunks = [octets[at : at + 48 * 7] for at in range(0, len(octets), 48 * 7)]

    def scope(self) -> Scope:
        def ranges(pairs: bytes | None, uid: bool) -> bytes:
            assert pairs is not None
            if uid:
                return resolve_set(pairs, self.model[-1].uid)
            chosen = [one.uid for one in self.model if model.in_set(pairs, one.number, len(self.model))]
            return ranges_of(chosen)

        return Scope(self.account, self.snapshot.mailbox, self.chunks, ranges, 30)

    def search(self, key: Key, now: int) -> list[int]:
        scope = self.scope()
        found = self.loop.run_until_complete(find(plan_search(key, scope, now), scope))
        octets = found.pick(PICK_NUMBER)
        assert found.count == len(octets) // 4
        return list(struct.unpack(f"<{found.count}I", octets))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("store"))
    yield world
    world.loop.run_until_complete(world.store.close())
    world.loop.close()


numbers = st.integers(0, MESSAGES + 3)
sets = st.lists(numbers, min_size=2, max_size=6).map(
    lambda some: struct.pack(f"<{len(some) // 2 * 2}I", *some[: len(some) // 2 * 2])
)
dates = st.integers(START // DAY - 2, START // DAY + MESSAGES // 2 + 2).map(lambda day: day * DAY)
february = st.integers(18657, 18690).map(lambda day: day * DAY)
wheres = ["text", "body", "subject", "from", "to", "cc", "bcc", "x-kind", "date", "text:", "content-type"]
texts = st.one_of(
    st.sampled_from([word.swapcase() for word in WORDS]),
    st.sampled_from(["", "pple", "STRASSE", "rüss", "вет", "件", "fis", "@example.org", "2021", "ple str", "ab"]),
)
leaves: st.SearchStrategy[Key] = st.one_of(
    st.builds(Flag, st.sampled_from(["\\Seen", "\\Flagged", "\\Draft", "\\Deleted", "$work", "$Other", "$Never"])),
    st.just(Recent()),
    st.just(And(())),
    st.builds(Numbers, sets, st.booleans()),
    st.builds(lambda low: Between("size", low, FOREVER), st.integers(300, 900)),
    st.builds(lambda low: Between("modseq", low, FOREVER), st.integers(1, 60)),
    st.builds(lambda low, days: Between("internal_date", low, low + days * DAY - 1), dates, st.integers(1, 9)),
    st.builds(lambda high: Between("save_date", -FOREVER, high), st.sampled_from([0, 2**40])),
    st.builds(Age, st.integers(1, 30 * DAY), st.booleans()),
    st.builds(lambda low, days: Sent(low, low + days * DAY - 1), february, st.integers(1, 3)),
    st.builds(lambda low: Sent(low, FOREVER), february),
    st.builds(lambda high: Sent(-FOREVER, high - 1), february),
    st.builds(Text, st.sampled_from(wheres), texts, st.just(False)),
)
several: st.SearchStrategy[Key] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(lambda some: And(tuple(some)), st.lists(inner, max_size=3)),
        st.builds(lambda some: Or(tuple(some)), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(several, st.integers(START, START + MESSAGES * DAY // 2), st.sampled_from([1, 3 * 7, 8192]))
def test_every_plan(world: World, key: Key, now: int, batch: int) -> None:
    before, search_plan.BATCH_RECORDS = search_plan.BATCH_RECORDS, batch
    try:
        wanted = [one.number for one in world.model if model.matches(key, one, world.model, now)]
        assert world.search(key, now) == wanted
    finally:
        search_plan.BATCH_RECORDS = before


@pytest.mark.parametrize("where", wheres)
def test_every_text(world: World, where: str) -> None:
    for word in WORDS:
        key = Text(where, word)
        assert world.search(key, 0) == [one.number for one in world.model if model.matches(key, one, world.model, 0)]


def test_an_expunged_message_has_no_text(world: World) -> None:
    """A view may still know it: RFC 9051 §7.5.1."""
    inbox = world.snapshot.mailbox.id
    run = world.loop.run_until_complete
    key = And((Numbers(struct.pack("<II", 40, 40), True), Text("body", "")))
    (number,) = world.search(key, 0)
    run(world.account.expunge(inbox, ranges_of([40]), deleted_only=False))
    run(world.account._run(AccountFile.reclaim))
    assert not isinstance(run(world.account.read([40]))[0], Content)
    assert world.search(key, 0) == []
    assert world.search(Not(Text("subject", "never")), 0)[-1] == number
