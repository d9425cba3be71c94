"""One account against a model of a few lines: deliveries, flags, expunges, copies, moves and what changed since."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway._native import records_ascend
from gateway.config_store import StoreConfig
from gateway.server.imap.store import Change, flag_bits
from gateway.server.imap.view import Index
from gateway.server.imap.watch import Watch
from gateway.store import account, database, index
from gateway.store.account import AccountFile
from gateway.store.check import check_account
from gateway.store.errors import (
    BadName,
    LimitReached,
    MailboxExists,
    MessageGone,
    NoSuchAccount,
    NoSuchMailbox,
    NotNow,
    OverQuota,
    StoreDamaged,
)
from gateway.store.messages import range_uids
from gateway.store.model import (
    ALL_UIDS,
    DELETED,
    FLAG_CHANGE,
    NEVER,
    SEEN,
    Content,
    Delivered,
    Delivery,
    Mailbox,
    Quota,
    Record,
    Stored,
    ranges_of,
    records_of,
)

SETTINGS = StoreConfig()
FLAGS = ("\\Seen", "\\Deleted", "\\Flagged", "$Junk", "todo")


def message(number: int, size: int = 40) -> bytes:
    return b"Subject: number %d\r\n\r\n%b\r\n" % (
        number,
        random.Random(number).randbytes(size).hex().encode(),
    )


def deliver(file: AccountFile, *contents: bytes, **more: Any) -> list[Delivered]:
    results = file.deliver([Delivery("x", [content], **more) for content in contents])
    assert all(isinstance(result, Delivered) for result in results), results
    return [result for result in results if isinstance(result, Delivered)]


def records(file: AccountFile, mailbox: Mailbox) -> list[Record]:
    return [record for chunk in file.snapshot(mailbox.id).chunks for record in records_of(chunk)]


def octets(file: AccountFile, record: Record) -> bytes:
    (content,) = file.read([record.message])
    assert isinstance(content, Content), content
    return content.header + content.body


@pytest.fixture
def file(tmp_path: Path) -> Iterator[AccountFile]:
    account = AccountFile(tmp_path / "account", SETTINGS, create=True)
    yield account
    account.close()
    assert check_account(tmp_path / "account", SETTINGS).clean


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "TAIL_RECORDS", 3)
    monkeypatch.setattr(index, "CHUNK_RECORDS", 7)
    monkeypatch.setattr(index, "MERGE_RECORDS", 3)
    monkeypatch.setattr(index, "FLAG_LOG_CHANGES", 6)
    monkeypatch.setattr(database, "BUSY_COMMITS", 1)


def store_logged(
    file: AccountFile, name: str, ranges: bytes, how: str, flags: Iterable[str], unchanged_since: int
) -> Stored | None:
    """As an IMAP session does it that knows the mailbox; None: it has to ask the store."""
    snapshot = file.snapshot(file.mailbox(name).id)
    change = Change(*(list(flags) if how == way else [] for way in ("add", "remove")), None, False, NEVER)
    if how == "replace":
        change = change._replace(replace=list(flags))
    bits = flag_bits(snapshot.mailbox, change)
    if bits is None or not ranges:
        return None
    watch = Watch(file, snapshot.mailbox)  # type: ignore[arg-type]  # it asks for log_flags() only
    watch.index = Index(snapshot.chunks)
    try:
        return watch.store(ranges, *bits, unchanged_since)
    except NotNow:
        return None


# -- against a model ----------------------------------------------------------------------------------


class Message:
    """What the model knows of one message in a mailbox."""

    def __init__(self, content: bytes, flags: set[str], modseq: int) -> None:
        self.content = content
        self.flags = flags
        self.modseq = modseq


class Box:
    def __init__(self) -> None:
        self.uidnext = 1
        self.modseq = 1
        self.messages: dict[int, Message] = {}
        self.expunged: dict[int, int] = {}  # UID → MODSEQ


class AccountMachine(RuleBasedStateMachine):
    """Two mailboxes of one account, and a second AccountFile on it that only looks."""

    NAMES = ("INBOX", "Archive")

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="store-"))
        self.file = AccountFile(self.root / "a", SETTINGS, create=True)
        self.other = AccountFile(self.root / "a", SETTINGS)
        self.model = {name: Box() for name in self.NAMES}
        self.number = 0

    def teardown(self) -> None:
        if not hasattr(self, "file"):
            return
        while self.file.reclaim():
            pass
        self.file.close()
        self.other.close()
        report = check_account(self.root / "a", SETTINGS)
        assert report.clean, report
        shutil.rmtree(self.root)

    def id_of(self, name: str) -> int:
        return self.file.mailbox(name).id

    @rule(
        name=st.sampled_from(NAMES),
        count=st.integers(1, 9),
        flags=st.sets(st.sampled_from(FLAGS), max_size=3),
    )
    def add(self, name: str, count: int, flags: set[str]) -> None:
        box = self.model[name]
        contents = [message(self.number + at) for at in range(count)]
        self.number += count
        found = deliver(self.file, *contents, mailbox=name, flags=sorted(flags))
        box.modseq += 1
        for content, delivered in zip(contents, found, strict=True):
            assert (delivered.uid, delivered.modseq) == (box.uidnext, box.modseq)
            box.messages[box.uidnext] = Message(content, set(flags), box.modseq)
            box.uidnext += 1

    @rule(
        name=st.sampled_from(NAMES),
        part=st.sampled_from((1, 2, 3, 5)),
        flags=st.sets(st.sampled_from(FLAGS), min_size=1, max_size=2),
        how=st.sampled_from(("add", "remove", "replace")),
        since=st.integers(0, 3),
        logged=st.sampled_from((True, True, False)),
    )
    def change(self, name: str, part: int, flags: set[str], how: str, since: int, logged: bool) -> None:
        box = self.model[name]
        wanted = [uid for uid in box.messages if uid % part == 0]
        unchanged_since = 2**64 - 1 if since == 0 else max(0, box.modseq - since)
        ranges = ranges_of(wanted) if part > 1 else ALL_UIDS
        stored = store_logged(self.file, name, ranges, how, flags, unchanged_since) if logged else None
        if stored is None:
            stored = self.file.store(
                self.id_of(name),
                ranges,
                **{how: sorted(flags)},  # type: ignore[arg-type]
                unchanged_since=unchanged_since,
            )
        refused = [uid for uid in wanted if box.messages[uid].modseq > unchanged_since]
        changed = []
        for uid in wanted:
            one = box.messages[uid]
            after = {
                "add": one.flags | flags,
                "remove": one.flags - flags,
                "replace": set(flags),
            }[how]
            if uid not in refused and after != one.flags:
                one.flags = after
                one.modseq = box.modseq + 1
                changed.append(uid)
        box.modseq += bool(changed)
        assert list(array("I", stored.refused)) == refused
        assert [record.uid for record in records_of(stored.changed)] == changed
        assert stored.modseq == (box.modseq if changed else 0)

    @rule(name=st.sampled_from(NAMES), part=st.sampled_from((1, 2, 3)), every=st.booleans())
    def expunge(self, name: str, part: int, every: bool) -> None:
        box = self.model[name]
        wanted = [
            uid
            for uid, one in box.messages.items()
            if uid % part == 0 and (every or "\\Deleted" in one.flags)
        ]
        ranges = ranges_of(uid for uid in range(1, box.uidnext) if uid % part == 0)
        gone = self.file.expunge(self.id_of(name), ranges, deleted_only=not every)
        assert list(array("I", gone.uids)) == wanted
        box.modseq += bool(wanted)
        for uid in wanted:
            del box.messages[uid]
            box.expunged[uid] = box.modseq

    @rule(
        pair=st.sampled_from((("INBOX", "Archive"), ("Archive", "INBOX"), ("INBOX", "INBOX"))),
        part=st.sampled_from((2, 3)),
        move=st.booleans(),
    )
    def copy(self, pair: tuple[str, str], part: int, move: bool) -> None:
        source, target = (self.model[name] for name in pair)
        wanted = [uid for uid in source.messages if uid % part == 0]
        copied = self.file.copy(
            self.id_of(pair[0]), self.id_of(pair[1]), ranges_of(wanted), move=move
        )
        assert list(array("I", copied.source)) == wanted
        if not wanted:
            return
        target.modseq += 1
        for uid, new in zip(wanted, array("I", copied.target), strict=True):
            one = source.messages[uid]
            assert new == target.uidnext
            target.messages[new] = Message(one.content, set(one.flags), target.modseq)
            target.uidnext += 1
        if move:
            source.modseq += 1
            for uid in wanted:
                del source.messages[uid]
                source.expunged[uid] = source.modseq

    @rule()
    def reclaim(self) -> None:
        self.file.reclaim()

    @rule(name=st.sampled_from(NAMES), back=st.integers(0, 5))
    def ask_for_changes(self, name: str, back: int) -> None:
        box = self.model[name]
        since = max(1, box.modseq - back)
        found = self.other.changes(self.id_of(name), since)
        assert found.complete
        changed = [record.uid for chunk in found.changed for record in records_of(chunk)]
        assert changed == [uid for uid, one in box.messages.items() if one.modseq > since]
        gone = sorted(range_uids(found.expunged))
        assert gone == sorted(uid for uid, modseq in box.expunged.items() if modseq > since)

    @invariant()
    def mailboxes_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        for name, box in self.model.items():
            found = self.other.mailbox(name)
            there = records(self.other, found)
            assert [record.uid for record in there] == list(box.messages)
            assert (found.uidnext, found.highestmodseq) == (box.uidnext, box.modseq)
            for record, (_, one) in zip(there, box.messages.items(), strict=True):
                assert set(found.names(record.flags)) == one.flags
                assert (record.modseq, record.size) == (one.modseq, len(one.content))
            assert found.messages == len(there)
            assert found.unseen == sum(not record.flags & SEEN for record in there)
            assert found.deleted == sum(bool(record.flags & DELETED) for record in there)
            assert found.octets == sum(record.size for record in there)
            unseen = next((r.uid for r in there if not r.flags & SEEN), 0)
            assert self.other.first_unseen(found.id)[1] == unseen
            if there:
                assert octets(self.other, there[-1]) == list(box.messages.values())[-1].content


@pytest.mark.usefixtures("small_chunks")
def test_an_account_behaves_like_its_model() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        AccountMachine,
        settings=settings(max_examples=25, stateful_step_count=25, deadline=None),
    )


# -- one thing at a time ------------------------------------------------------------------------------


def test_a_new_account_has_its_mailboxes(file: AccountFile) -> None:
    boxes = {box.name: box for box in file.mailboxes()}
    assert list(boxes) == ["Archive", "Drafts", "INBOX", "Junk", "Sent", "Trash"]
    assert boxes["Sent"].special_use == ("\\Sent",)
    assert len({box.uidvalidity for box in boxes.values()}) == len(boxes)
    assert file.mailbox("inbox").id == boxes["INBOX"].id  # RFC 9051 §5.1


def test_an_account_that_does_not_exist_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(NoSuchAccount):
        AccountFile(tmp_path / "nobody", SETTINGS)
    assert not (tmp_path / "nobody").exists()


@pytest.mark.parametrize("size", [0, 1, 100_000, 131_072, 200_000])
def test_content_comes_back_octet_by_octet(file: AccountFile, size: int) -> None:
    content = b"Subject: x\r\n\r\n" + bytes(range(256)) * (size // 256)
    deliver(file, content)
    (record,) = records(file, file.mailbox("INBOX"))
    assert octets(file, record) == content
    assert record.size == len(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"no header at all",
        b"A: b",
        b"A: b\r\n",
        b"\r\n\r\n",
        b"\n\nx",
        b"A: b\n\nx\n",
        b"X: " + b"y" * 70_000 + b"\r\n\r\nbody",
    ],
)
def test_odd_content_comes_back_too(file: AccountFile, content: bytes) -> None:
    deliver(file, content)
    (record,) = records(file, file.mailbox("INBOX"))
    assert octets(file, record) == content
    (header,) = file.headers([record.message])
    assert isinstance(header, bytes) and content.startswith(header)


def test_a_large_mailbox_is_chunks_in_order(file: AccountFile) -> None:
    for start in range(0, 1500, 100):
        deliver(file, *(message(number) for number in range(start, start + 100)))
    chunks = file.snapshot(file.mailbox("INBOX").id).chunks
    assert len(chunks) < 8
    assert records_ascend(b"".join(chunks))
    inbox = file.mailbox("INBOX")
    file.expunge(inbox.id, ranges_of(u for u in range(1, 1501) if u % 20), deleted_only=False)
    assert len(file.snapshot(inbox.id).chunks) == 1
    assert [record.uid for record in records(file, inbox)] == list(range(20, 1501, 20))


def test_a_copy_keeps_the_message_when_the_original_goes(file: AccountFile) -> None:
    deliver(file, message(1), message(2))
    inbox, archive = file.mailbox("INBOX"), file.mailbox("Archive")
    file.copy(inbox.id, archive.id, ALL_UIDS)
    file.copy(inbox.id, archive.id, ALL_UIDS)
    file.expunge(inbox.id, ALL_UIDS, deleted_only=False)
    file.expunge(archive.id, ranges_of([1, 2]), deleted_only=False)
    file.reclaim()
    left = records(file, archive)
    assert [octets(file, record) for record in left] == [message(1), message(2)]
    file.expunge(archive.id, ALL_UIDS, deleted_only=False)
    file.reclaim()
    assert isinstance(file.read([left[0].message])[0], MessageGone)


def test_space_of_expunged_messages_is_used_again(file: AccountFile) -> None:
    inbox = file.mailbox("INBOX")
    sizes = []
    for _ in range(6):
        deliver(file, *(message(number, 2000) for number in range(200)))
        file.expunge(inbox.id, ALL_UIDS, deleted_only=False)
        while file.reclaim():
            pass
        sizes.append(file.disk_octets()[0])
    assert sizes[-1] == sizes[1], sizes


def test_a_file_that_is_mostly_free_shrinks(
    file: AccountFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.content.SPARE_OCTETS", 65536)
    monkeypatch.setattr("gateway.store.content.GIVE_BACK_PAGES", 50)
    inbox = file.mailbox("INBOX")
    deliver(file, *(message(number, 3000) for number in range(400)))
    before, _ = file.disk_octets()
    file.expunge(inbox.id, ranges_of(u for u in range(1, 401) if u % 20), deleted_only=False)
    steps = 0
    while file.reclaim():
        steps += 1
    after, free = file.disk_octets()
    assert steps > 3
    assert after < before / 5
    assert free <= max(65536, after / 4)
    assert [octets(file, r) for r in records(file, inbox)] == [
        message(n, 3000) for n in range(19, 400, 20)
    ]


def test_large_bodies_are_files_that_go_with_their_messages(file: AccountFile) -> None:
    deliver(file, b"Subject: x\r\n\r\n" + b"y" * 200_000)
    large = file.directory / "large"
    assert len(list(large.iterdir())) == 1
    inbox = file.mailbox("INBOX")
    file.expunge(inbox.id, ALL_UIDS, deleted_only=False)
    file.reclaim()
    assert not list(large.iterdir())


def test_quota_counts_every_mailbox(file: AccountFile) -> None:
    quota = Quota(octets=3 * len(message(1)) + 5)
    deliver(file, message(1), message(1), quota=quota)
    inbox, archive = file.mailbox("INBOX"), file.mailbox("Archive")
    file.copy(inbox.id, archive.id, ranges_of([1]), quota=quota)
    with pytest.raises(OverQuota):
        file.copy(inbox.id, archive.id, ranges_of([2]), quota=quota)
    assert file.mailbox("Archive").messages == 1
    (refused,) = file.deliver([Delivery("x", [message(1)], quota=quota)])
    assert isinstance(refused, OverQuota)
    small, large = file.deliver(
        [
            Delivery("x", [message(1)], quota=Quota(messages=4)),
            Delivery("x", [message(1)], quota=Quota(messages=4)),
        ]
    )
    assert isinstance(small, Delivered)
    assert isinstance(large, OverQuota)


def test_what_one_delivery_does_wrong_is_its_own_affair(file: AccountFile) -> None:
    def unreadable() -> list[bytes]:
        raise OSError(5, "Input/output error")

    wrong = [f"keyword{number}" for number in range(57)]
    results = file.deliver(
        [
            Delivery("x", [message(1)], mailbox="Nowhere"),
            Delivery("x", unreadable, size=9),
            Delivery("x", [message(2)], flags=wrong),
            Delivery("x", [message(3)]),
            Delivery("x", [message(4)], mailbox="Nowhere", fallback="INBOX"),
            Delivery("x", [message(5)], mailbox="New/Place", create=True),
        ]
    )
    assert [type(result).__name__ for result in results] == [
        "NoSuchMailbox", "StoreError", "LimitReached", "Delivered", "Delivered", "Delivered",
    ]  # fmt: skip
    assert [octets(file, r) for r in records(file, file.mailbox("INBOX"))] == [
        message(3),
        message(4),
    ]
    assert file.mailbox("New/Place").messages == 1


def test_a_repeated_delivery_is_recognised(file: AccountFile) -> None:
    first = file.deliver([Delivery("x", [message(1)], origin="ABC 0")])
    other = file.deliver([Delivery("x", [message(1)], origin="ABC 1", again=True)])
    again = file.deliver([Delivery("x", [message(1)], origin="ABC 0", again=True)])
    assert again == first != other
    assert file.mailbox("INBOX").messages == 2


def test_recent_is_told_once(file: AccountFile) -> None:
    deliver(file, message(1), message(2))
    inbox = file.mailbox("INBOX")
    assert inbox.recent == 2
    assert file.claim_recent(inbox.id) == 1
    deliver(file, message(3))
    assert file.mailbox("INBOX").recent == 1
    assert file.claim_recent(inbox.id) == 3
    assert file.claim_recent(inbox.id) == 4


def test_flags_that_are_so_already_change_nothing(file: AccountFile) -> None:
    deliver(file, message(1), flags=["\\Seen"])
    inbox = file.mailbox("INBOX")
    assert file.store(inbox.id, ALL_UIDS, add=["\\seen"]).modseq == 0
    assert file.mailbox("INBOX") == inbox
    assert file.store(inbox.id, ALL_UIDS, remove=["unheard-of"]).modseq == 0
    assert file.mailbox("INBOX").keywords == ()


def test_keywords_are_bounded_and_keep_their_case(file: AccountFile) -> None:
    deliver(file, message(1))
    inbox = file.mailbox("INBOX")
    file.store(inbox.id, ALL_UIDS, add=[f"Key{number}" for number in range(56)])
    file.store(inbox.id, ALL_UIDS, add=["kEY0"])
    with pytest.raises(LimitReached):
        file.store(inbox.id, ALL_UIDS, add=["one-more"])
    found = file.mailbox("INBOX")
    (record,) = records(file, found)
    assert found.names(record.flags)[:2] == ["Key0", "Key1"]
    assert found.bits(["KEY55", "\\SEEN"]) == 1 << 63 | SEEN
    assert found.bits(["unknown"]) is None


def test_history_is_bounded(file: AccountFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.messages.HISTORY_ROWS", 20)
    deliver(file, *(message(number) for number in range(100)))
    inbox = file.mailbox("INBOX")
    for uid in range(1, 100):
        file.expunge(inbox.id, ranges_of([uid]), deleted_only=False)
    assert not file.changes(inbox.id, 2).complete
    recent = file.changes(inbox.id, file.mailbox("INBOX").highestmodseq - 5)
    assert recent.complete
    assert list(range_uids(recent.expunged)) == [95, 96, 97, 98, 99]


# -- names of mailboxes -------------------------------------------------------------------------------


def names(file: AccountFile) -> list[str]:
    return [box.name for box in file.mailboxes() if box.selectable]


def test_create_makes_what_is_above(file: AccountFile) -> None:
    file.create("a/b/c")
    assert {"a", "a/b", "a/b/c"} <= set(names(file))
    with pytest.raises(MailboxExists):
        file.create("a/b/")
    nfd, nfc = "u\u0308", "\u00fc"
    file.create(nfd)
    assert file.mailbox(nfc).name == nfc


@pytest.mark.parametrize(
    "name", ["", "/", "a//b", "/a", "a\r\nb", "\x00", "x" * 1001, "a/" * 60 + "b", "\ud800"]
)
def test_bad_names_are_refused(file: AccountFile, name: str) -> None:
    with pytest.raises(BadName):
        file.create(name)


def test_rename_takes_along_what_is_below(file: AccountFile) -> None:
    ids = [file.create(name).id for name in ("a", "a/b", "ab")]
    deliver(file, message(1), mailbox="a/b")
    file.rename("a", "z/y")
    assert {"z", "z/y", "z/y/b", "ab"} <= set(names(file))
    assert [file.mailbox(name).id for name in ("z/y", "z/y/b", "ab")] == ids
    assert file.mailbox("z/y/b").messages == 1
    with pytest.raises(BadName):
        file.rename("z", "z/inside")
    with pytest.raises(MailboxExists):
        file.rename("z", "ab")
    with pytest.raises(NoSuchMailbox):
        file.rename("gone", "x")


def test_inbox_is_emptied_by_a_rename(file: AccountFile) -> None:
    deliver(file, message(1), message(2))
    before = file.mailbox("INBOX")
    file.rename("INBOX", "Old")
    after = file.mailbox("INBOX")
    assert (after.id, after.messages, after.uidnext) == (before.id, 0, 3)
    assert file.mailbox("Old").messages == 2


def test_delete_leaves_what_is_below_and_subscriptions(file: AccountFile) -> None:
    file.create("a/b")
    file.subscribe("a/b")
    deliver(file, message(1), mailbox="a")
    old = file.delete("a")
    boxes = {box.name: box for box in file.mailboxes()}
    assert not boxes["a"].selectable
    assert boxes["a/b"].selectable
    assert file.create("a").uidvalidity > old.uidvalidity
    file.delete("a/b")
    (left,) = (box for box in file.mailboxes() if box.name == "a/b")
    assert (left.subscribed, left.selectable) == (True, False)
    file.subscribe("a/b", False)
    assert "a/b" not in {box.name for box in file.mailboxes()}
    with pytest.raises(BadName):
        file.delete("inbox")
    with pytest.raises(NoSuchMailbox):
        file.delete("never")


def test_a_subscription_needs_no_mailbox(file: AccountFile) -> None:
    file.subscribe("Lists/one")
    (box,) = (box for box in file.mailboxes() if box.name == "Lists/one")
    assert (box.subscribed, box.selectable) == (True, False)
    with pytest.raises(NoSuchMailbox):
        file.mailbox("Lists/one")
    made = file.create("Lists/one")
    assert made.subscribed


def test_special_use_is_checked(file: AccountFile) -> None:
    file.create("Fotos", ["\\Flagged"])
    assert file.mailbox("Fotos").special_use == ("\\Flagged",)
    with pytest.raises(BadName):
        file.create("x", ["\\Nonsense"])
    file.set_special_use("Fotos", ["\\All", "\\Archive"])
    assert file.mailbox("Fotos").special_use == ("\\All", "\\Archive")


def test_mailboxes_are_bounded(tmp_path: Path) -> None:
    file = AccountFile(tmp_path / "a", StoreConfig(mailboxes=10), create=True)
    for number in range(4):
        file.create(str(number))
    with pytest.raises(LimitReached):
        file.create("one more")
    file.close()


def test_two_processes_take_turns(tmp_path: Path) -> None:
    """What one writes the other sees at once, and UIDs go on from there."""
    one = AccountFile(tmp_path / "a", SETTINGS, create=True)
    two = AccountFile(tmp_path / "a", SETTINGS)
    for number in range(20):
        (delivered,) = deliver((one, two)[number % 2], message(number))
        assert delivered.uid == number + 1
    assert one.mailbox("INBOX") == two.mailbox("INBOX")
    one.close()
    two.close()


def test_a_vanished_body_concerns_its_message_only(file: AccountFile) -> None:
    deliver(file, message(1), b"Subject: x\r\n\r\n" + b"y" * 200_000)
    keys = [record.message for record in records(file, file.mailbox("INBOX"))]
    next((file.directory / "large").iterdir()).unlink()
    whole, lost = file.read(keys)
    assert isinstance(whole, Content)
    assert isinstance(lost, StoreDamaged)
    report = check_account(file.directory, SETTINGS)
    assert [finding.lost for finding in report.findings] == [True]


def test_two_make_an_account_at_once(tmp_path: Path) -> None:
    """SQLite does not wait for a lock when it changes a file to WAL mode; we do."""
    other = apsw.Connection(str(tmp_path / "store.db"))
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
    timer.start()
    file = AccountFile(tmp_path, SETTINGS, create=True)
    timer.join()
    assert deliver(file, message(1))[0].uid == 1
    file.close()
    other.close()


@pytest.mark.usefixtures("small_chunks")
def test_records_are_read_in_ranges(file: AccountFile) -> None:
    """Above a UID, whatever chunk it is in, and whatever was expunged."""
    inbox = file.mailbox("INBOX").id
    for at in range(0, 40, 5):
        file.add(inbox, [(b"Subject: %d\r\n\r\n" % n, (), 0, "", 0) for n in range(at, at + 5)])
    file.expunge(inbox, ranges_of(range(6, 18)), deleted_only=False)
    left = [uid for uid in range(1, 41) if not 6 <= uid < 18]
    for start in range(41):
        for chunks in (1, 2, 100):
            found: list[int] = []
            at, more = start, True
            while more:
                parts, more = file.records_after(inbox, at, chunks)
                assert len(parts) <= chunks + 2
                found += [record.uid for part in parts for record in records_of(part)]
                at = found[-1] if found else at
            assert found == [uid for uid in left if uid > start], (start, chunks)


def test_flags_are_changed_without_waiting_where_nobody_has_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AccountFile(tmp_path / "a", StoreConfig(), create=True)
    inbox = file.mailbox("INBOX").id
    for _ in range(database.BUSY_COMMITS):
        file.add(inbox, [(b"Subject: x\r\n\r\nx\r\n", (), 1, "", 0)])
    modseq = file.mailbox("INBOX").highestmodseq

    def see(uid: int, clear: int, bits: int, modseq: int) -> bool:
        log = FLAG_CHANGE.pack(uid, uid, clear, bits, modseq + 1)
        return file.log_flags(inbox, modseq, log, -bits if bits else clear, 0)

    assert see(1, 0, SEEN, modseq)
    assert not see(2, 0, SEEN, modseq)  # somebody was faster
    assert file.log_flags(inbox, modseq + 1, b"", 0, 0) and not file.log_flags(inbox, modseq, b"", 0, 0)
    file.sync()
    other = AccountFile(tmp_path / "a", StoreConfig())
    assert [record.flags for record in records_of(b"".join(other.snapshot(inbox).chunks))][:2] == [1, 0]
    assert other.mailbox("INBOX").unseen == database.BUSY_COMMITS - 1
    with other.database.write(), pytest.raises(NotNow):
        see(1, SEEN, 0, modseq + 1)
    assert see(1, SEEN, 0, modseq + 1)
    assert see(2, 0, SEEN, modseq + 2)
    assert not any(record.flags for record in records_of(other.changes(inbox, modseq).changed[0])[:1])
    other.close()
    for at in range(3, index.FLAG_LOG_CHANGES - 1):
        assert see(1, 0, 0, modseq + at)
    assert see(3, 0, SEEN, file.mailbox("INBOX").highestmodseq)
    monkeypatch.setattr(account, "SETTLED_AT_ONCE", -1)
    assert not see(1, 0, SEEN, file.mailbox("INBOX").highestmodseq)  # no room; it is made by
    stored = file.store(inbox, ranges_of([1]), add=["\\Flagged"])
    assert see(1, 0, SEEN, stored.modseq)
    monkeypatch.undo()
    for at in range(1, index.FLAG_LOG_CHANGES * 2):  # where the chunks are few it makes room itself
        assert see(1, 0, 0, stored.modseq + at)
    file.close()
    assert check_account(tmp_path / "a", StoreConfig()).clean
    synced = AccountFile(tmp_path / "a", StoreConfig(flags_sync_s=0.0))
    with pytest.raises(NotNow):
        synced.log_flags(inbox, stored.modseq + 1, FLAG_CHANGE.pack(1, 1, 0, 0, 0), 0, 0)
    synced.close()
