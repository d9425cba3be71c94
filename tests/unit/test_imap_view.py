"""Sequence numbers: several sessions in two workers on one account, against a slow model of what each client believes.

The two workers are two stores on one directory; what one publishes reaches the other when the test says so.  A client
is a list of UIDs and flags that it keeps as RFC 9051 §7.5 says, from the responses alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import tempfile
from array import array
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gateway.config_store import StoreConfig
from gateway.server.imap import updates, watch
from gateway.server.imap.state import Bad, Selected
from gateway.server.imap.store import Change, flag_bits
from gateway.server.imap.view import NEVER_RECENT, View
from gateway.server.imap.watch import Watches
from gateway.store.model import NEVER, Delivered, Delivery, ranges_of
from gateway.store.notices import Notices
from gateway.store.store import Store

ACCOUNT = "alice@example.test"
MEMORY = Path("/dev/shm")  # thousands of transactions, and nothing to be kept
FLAGS = ["\\Seen", "\\Deleted", "\\Flagged", "red", "blue"]


class WorkerStore:
    """One worker: a store, and the notices that are on their way to it."""

    def __init__(self, directory: Path) -> None:
        self.inbox: list[bytes] = []
        self.other: WorkerStore = None  # type: ignore[assignment]  # set by whoever makes two
        self.store = Store(directory, StoreConfig(), Notices(self.send))
        self.watches = Watches(self.store)
        self.account = self.store.account(ACCOUNT)

    def send(self, octets: bytes) -> None:
        self.other.inbox.append(octets)

    async def take_notices(self) -> None:
        while self.inbox:
            self.store.notices.receive(self.inbox.pop(0))


class Client:
    """A session without its connection, and what its client makes of the responses."""

    def __init__(self, worker: WorkerStore, name: str, enabled: set[bytes]) -> None:
        self.worker = worker
        self.name = name
        self.enabled = enabled
        self.machine = SimpleNamespace(closing=False)
        self.selected: Selected = None  # type: ignore[assignment]  # set by select()
        self.known: list[tuple[int | None, frozenset[str] | None]] = []  # (UID, flags) of each, as told
        self.idling = False
        self.notify = None

    def end(self, reason: str) -> None:
        assert reason == "lost"

    async def select(self) -> None:
        mailbox = await self.worker.account.mailbox(self.name)
        opened = await self.worker.watches.open(self.worker.account, mailbox)
        view = View(opened, NEVER_RECENT)
        opened.views.add(view)
        place = SimpleNamespace(rights=frozenset("lrswipkxtea"), account=self.worker.account)
        self.selected = Selected(place, view, False)  # type: ignore[arg-type]
        self.known = [(None, None)] * view.count

    @property
    def view(self) -> View:
        return self.selected.view

    def close(self) -> None:
        self.view.watch.tell_no_more(self)
        self.view.watch.views.discard(self.view)
        self.worker.watches.leave(self.view.watch)

    # what updates.report() calls

    def untagged(self, line: bytes) -> None:
        self._take(line)

    def send(self, *pieces: bytes) -> None:
        for line in b"".join(pieces).split(b"\r\n")[:-1]:
            self._take(line.removeprefix(b"* "))

    def mailbox_changed(self) -> None:
        self.learn_uids()
        updates.report(self)  # type: ignore[arg-type]

    def _take(self, line: bytes) -> None:
        """As a client does it, which knows nothing but the standard."""
        if found := re.fullmatch(rb"(\d+) EXISTS", line):
            count = int(found[1])
            assert count >= len(self.known), "EXISTS must not shrink a mailbox (RFC 9051 §7.4.1)"
            self.known += [(None, None)] * (count - len(self.known))
        elif found := re.fullmatch(rb"(\d+) EXPUNGE", line):
            assert self.may_expunge
            del self.known[int(found[1]) - 1]
        elif found := re.fullmatch(rb"VANISHED ([0-9,:]+)", line):
            assert self.may_expunge
            for part in found[1].split(b","):
                first, _, last = part.partition(b":")
                for uid in range(int(first), int(last or first) + 1):
                    self._vanish(uid)
        elif found := re.fullmatch(rb"(\d+) FETCH \((?:UID (\d+) )?FLAGS \(([^)]*)\)(?: MODSEQ \(\d+\))?\)", line):
            number, told = int(found[1]), int(found[2]) if found[2] else None
            before = self.known[number - 1]
            assert told is None or before[0] in (None, told)
            self.known[number - 1] = (told or before[0], frozenset(found[3].decode().split()))
        else:
            assert line.startswith((b"FLAGS (", b"OK [PERMANENTFLAGS", b"%d RECENT" % self.view.recent)), line

    def _vanish(self, uid: int) -> None:
        del self.known[[told for told, _ in self.known].index(uid)]

    def uids(self) -> list[int]:
        """What the client would be told by FETCH 1:* UID: it is what the server's view says."""
        return list(array("I", self.view.uids_of(self.all_uids()))) if self.view.count else []

    def all_uids(self) -> bytes:
        return array("I", (1, 2**32 - 1)).tobytes()

    may_expunge = True

    async def finish(self, expunges: bool) -> None:
        """What ends every command."""
        await self.view.watch.refresh()
        self.may_expunge = expunges
        self.learn_uids()
        updates.report(self, expunges)  # type: ignore[arg-type]
        self.may_expunge = True

    def learn_uids(self) -> None:
        """FETCH 1:* (UID FLAGS), which a client that is told of UIDs (VANISHED) has done before."""
        if b"QRESYNC" in self.enabled and self.view.is_loaded and self.view.count:
            for numbers, records in self.view.numbered(self.all_uids()):
                updates.fetch_flags(self, numbers, records, uid=True)  # type: ignore[arg-type]


class Mailbox(RuleBasedStateMachine):
    """Rules are commands; after each, every client's picture is compared with the model's."""

    lazy_messages = 20_000

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="imap-view-", dir=MEMORY if MEMORY.is_dir() else None))
        self.loop = asyncio.new_event_loop()
        self.truth: dict[int, set[str]] = {}  # UID → flags
        self.uidnext = 1

    def run_async(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(messages=st.integers(0, 40), qresync=st.booleans())
    def open(self, messages: int, qresync: bool) -> None:
        self.lazy, watch.LAZY_MESSAGES = watch.LAZY_MESSAGES, self.lazy_messages

        async def begin() -> None:
            one, two = WorkerStore(self.directory), WorkerStore(self.directory)
            one.other, two.other = two, one
            self.workers = [one, two]
            if messages:
                await self._deliver(one, messages)
            else:
                await one.account.mailbox("INBOX")
            enabled = {b"CONDSTORE", b"QRESYNC"} if qresync else set()
            self.clients = [
                Client(one, "INBOX", enabled),
                Client(one, "INBOX", {b"IMAP4REV2"}),
                Client(two, "INBOX", enabled),
            ]
            for client in self.clients:
                await client.select()
                assert client.view.count == messages
                if not self.lazy_messages:
                    assert client.view.is_loaded == (messages == 0)

        self.run_async(begin())

    async def _deliver(self, worker: WorkerStore, count: int) -> None:
        done: list[asyncio.Future[Any]] = [self.loop.create_future() for _ in range(count)]
        for future in done:
            content = [b"Subject: x\r\n\r\nx\r\n"]
            worker.store.deliver(Delivery(ACCOUNT, content, urgent=True, create=True), future.set_result)
        for found in await asyncio.gather(*done):
            assert isinstance(found, Delivered), found
            assert found.uid >= self.uidnext
            self.truth[found.uid] = set()
            self.uidnext = found.uid + 1

    # -- what happens to the mailbox ---------------------------------------------------------------------------------

    @rule(worker=st.integers(0, 1), count=st.integers(1, 30))
    def deliver(self, worker: int, count: int) -> None:
        self.run_async(self._deliver(self.workers[worker], count))

    @rule(
        who=st.integers(0, 2),
        picks=st.lists(st.integers(1, 60), min_size=1, max_size=6),
        flags=st.lists(st.sampled_from(FLAGS), min_size=1, max_size=3, unique=True),
        how=st.sampled_from(["add", "remove", "replace"]),
    )
    def store(self, who: int, picks: list[int], flags: list[str], how: str) -> None:
        """STORE by sequence number: EXPUNGE must not be sent."""
        client = self.clients[who]

        async def command() -> None:
            await client.view.watch.load()
            if client.view.is_lost or not client.view.count:
                return
            numbers = [1 + pick % client.view.count for pick in picks]
            pairs = array("I", (bound for number in numbers for bound in (number, number)))
            ranges = client.view.ranges(pairs.tobytes(), uid=False)
            uids = {client.view.uid_of(number) for number in numbers}
            assert set(array("I", client.view.uids_of(ranges))) == uids
            told = Change(*(flags if how == way else [] for way in ("add", "remove")), None, False, NEVER)
            bits = flag_bits(client.view.mailbox, told._replace(replace=flags) if how == "replace" else told)
            logged = None if bits is None else client.view.store(ranges, *bits, NEVER)
            stored = logged or await client.worker.account.store(
                client.view.mailbox.id, ranges, **{how: flags}  # type: ignore[arg-type]
            )
            for uid in uids & self.truth.keys():
                old = self.truth[uid]
                new = {"add": old | set(flags), "remove": old - set(flags), "replace": set(flags)}
                self.truth[uid] = new[how]
            known = client.view.mailbox.bits(flags if how != "remove" else []) is not None
            if logged:
                own = updates.Own(logged.modseq, ranges, False, False)
                for _ in updates.answer_store(client, own):  # type: ignore[arg-type]
                    pass
            elif stored.modseq and known:
                client.view.watch.apply(stored.changed, b"", stored.modseq)
            elif stored.modseq:
                client.view.watch.newest_modseq = max(client.view.watch.newest_modseq, stored.modseq)
            await client.finish(expunges=False)

        self.run_async(command())

    @rule(who=st.integers(0, 2), report=st.booleans())
    def expunge(self, who: int, report: bool) -> None:
        client = self.clients[who]

        async def command() -> None:
            await client.view.watch.load()
            if client.view.is_lost:
                return
            gone = {uid for uid in client.uids() if "\\Deleted" in self.truth.get(uid, ())}
            expunged = await client.worker.account.expunge(
                client.view.mailbox.id, array("I", (1, client.view.last_uid)).tobytes()
            )
            assert set(array("I", expunged.uids)) == gone
            for uid in gone:
                del self.truth[uid]
            if expunged.modseq and report:
                client.view.watch.apply(b"", ranges_of(gone), expunged.modseq)
            await client.finish(expunges=True)

        self.run_async(command())

    @rule(worker=st.integers(0, 1), first=st.integers(0, 60), last=st.integers(0, 60))
    def pop_session_deletes(self, worker: int, first: int, last: int) -> None:
        """Somebody who is no IMAP session removes mail."""
        uids = [uid for at, uid in enumerate(sorted(self.truth)) if first <= at <= last]
        if uids:
            account = self.workers[worker].account

            async def remove() -> None:
                inbox = await account.mailbox("INBOX")
                await account.expunge(inbox.id, ranges_of(uids), deleted_only=False)

            self.run_async(remove())
            for uid in uids:
                del self.truth[uid]

    # -- what a client does ------------------------------------------------------------------------------------------

    @rule(who=st.integers(0, 2))
    def noop(self, who: int) -> None:
        client = self.clients[who]

        async def command() -> None:
            await client.worker.take_notices()
            await client.finish(expunges=True)

        self.run_async(command())
        if not client.view.is_lost:
            self.check_settled(client)

    @rule(who=st.integers(0, 2))
    def search(self, who: int) -> None:
        client = self.clients[who]
        self.run_async(client.worker.take_notices())
        self.run_async(client.finish(expunges=False))
        self.check_numbers(client)

    @rule(who=st.integers(0, 2))
    def idle(self, who: int) -> None:
        client = self.clients[who]
        if not client.idling:
            client.idling = True
            client.view.watch.tell(client)
            self.noop(who)

    @rule(who=st.integers(0, 2))
    def done(self, who: int) -> None:
        self.clients[who].idling = False
        self.clients[who].view.watch.tell_no_more(self.clients[who])

    @rule(worker=st.integers(0, 1))
    def notices_arrive(self, worker: int) -> None:
        self.run_async(self.workers[worker].take_notices())

    @rule(who=st.integers(0, 2))
    def select_again(self, who: int) -> None:
        client = self.clients[who]
        client.close()
        client.idling = False
        self.run_async(client.worker.take_notices())
        self.run_async(client.select())
        assert client.view.count == len(self.truth)

    @rule(who=st.integers(0, 2), number=st.integers(1, 100))
    def a_number_beyond_the_end_is_bad(self, who: int, number: int) -> None:
        client = self.clients[who]
        self.run_async(client.view.watch.load())
        with contextlib.suppress(Bad):
            client.view.ranges(array("I", (1, number)).tobytes(), uid=False)
            assert number <= client.view.count

    # -- checks ------------------------------------------------------------------------------------------------------

    def check_numbers(self, client: Client) -> None:
        """The client has as many messages as the session thinks it told it of, in the same order."""
        view = client.view
        assert len(client.known) == view.count
        if not view.is_loaded or view.is_lost:
            return
        uids = client.uids()
        assert uids == sorted(set(uids)) and len(uids) == view.count
        for number, uid in enumerate(uids, 1):
            assert view.uid_of(number) == uid
            assert view.number_of(uid) == number
        assert sum(len(r) // 48 for _, r in view.records(client.all_uids())) == view.count
        for (told, _), uid in zip(client.known, uids, strict=True):
            assert told in (None, uid)

    def check_settled(self, client: Client) -> None:
        """After a command that tells everything the client's mailbox is the mailbox."""
        self.check_numbers(client)
        assert client.view.count == len(self.truth)
        if client.view.is_loaded:
            assert client.uids() == sorted(self.truth)
            for (_, flags), uid in zip(client.known, sorted(self.truth), strict=True):
                assert flags is None or flags == self.truth[uid]

    @precondition(lambda self: hasattr(self, "clients"))
    @rule()
    def idle_clients_know_everything(self) -> None:
        """As soon as the notices are there and the loop has turned."""

        async def settle() -> None:
            for worker in self.workers:
                await worker.take_notices()
            for client in self.clients:
                if client.idling:
                    while client.view.watch.is_stale or client.view.watch._work is not None:
                        await asyncio.sleep(0.001)

        self.run_async(asyncio.wait_for(settle(), 60))
        for client in self.clients:
            if client.idling and not client.view.is_lost:
                self.check_settled(client)

    def teardown(self) -> None:
        async def close() -> None:
            for worker in self.workers:
                await worker.store.close()

        if hasattr(self, "workers"):
            watch.LAZY_MESSAGES = self.lazy
            self.run_async(close())
        self.loop.close()
        shutil.rmtree(self.directory)


class LargeMailbox(Mailbox):
    """The same where the index is read late: what is large begins at one message."""

    lazy_messages = 0


SETTINGS = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMailbox = Mailbox.TestCase
TestMailbox.settings = SETTINGS
TestLargeMailbox = LargeMailbox.TestCase
TestLargeMailbox.settings = SETTINGS
