"""Rights, who is told of them, and annotations, in the store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_store_account import SETTINGS

from gateway.mail.imap_rights import (
    ALL,
    RIGHTS,
    changed_rights,
    effective_rights,
    parse_rights,
    show_rights,
)
from gateway.store.account import AccountFile
from gateway.store.annotation import Annotation, TooMany
from gateway.store.check import check_account
from gateway.store.errors import LimitReached, NoSuchMailbox
from gateway.store.names import account_directory
from gateway.store.store import Store

ALICE, BOB, CAROL = "alice@example.test", "bob@example.test", "carol@example.test"

letters = st.text(RIGHTS, max_size=8)
identifier = st.sampled_from([ALICE, BOB, "anyone", "authenticated"])


@given(letters)
def test_rights_are_shown_as_they_are_read(text: str) -> None:
    rights = parse_rights(text)
    assert rights == set(text)
    assert parse_rights(show_rights(rights)) == rights
    shown = show_rights(rights, old=True)
    assert ("c" in shown) == bool(rights & set("kx"))  # RFC 4314 §2.1.1
    assert ("d" in shown) == bool(rights & set("te"))


def test_old_rights_stand_for_new_ones() -> None:
    assert parse_rights("cd") == set("kxte")
    for bad in "zL1 ":
        with pytest.raises(ValueError, match="is no right"):
            parse_rights(bad)


@given(st.dictionaries(st.tuples(st.booleans(), identifier), letters), identifier)
def test_what_a_user_may_is_what_is_granted_less_what_is_denied(
    entries: dict[tuple[bool, str], str], user: str
) -> None:
    lists = {
        ("-" if negative else "") + name: rights for (negative, name), rights in entries.items()
    }
    found = effective_rights(lists, user)
    for right in RIGHTS:
        mine = {
            negative
            for (negative, name), rights in entries.items()
            if right in rights and name in (user, "anyone", "authenticated")
        }
        assert (right in found) == (mine == {False})


@given(letters, st.sampled_from(["", "+", "-"]), letters)
def test_changes_of_rights(before: str, how: str, change: str) -> None:
    after = changed_rights(frozenset(before), how, frozenset(change))
    for right in RIGHTS:
        assert (right in after) == {
            "": right in change,
            "+": right in before or right in change,
            "-": right in before and right not in change,
        }[how]


def run(path: Path, work) -> None:  # type: ignore[no-untyped-def]
    async def inner() -> None:
        store = Store(path, SETTINGS)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(inner())


def test_sharing_is_found_by_those_it_is_for(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        alice, bob, carol = (store.account(name) for name in (ALICE, BOB, CAROL))
        box = await alice.create("Plans/2026")
        assert await bob.sharers() == []
        assert await alice.listing(BOB) == ([], {})
        await alice.set_acl(box.id, BOB, "", frozenset("lr"), 10)
        assert await bob.sharers() == [ALICE]
        assert await carol.sharers() == await alice.sharers() == []
        rows, rights = await alice.listing(BOB)
        assert [row.name for row in rows] == ["Plans/2026"]
        assert rights == {box.id: {"l", "r"}}
        found = await alice.access("Plans/2026", BOB)
        assert found.mailbox is not None
        assert found.rights == {"l", "r"}
        assert (await alice.access("Plans/2026")).rights == ALL
        assert (await alice.access("Plans/2026/x", BOB)).above == {"l", "r"}
        assert (await alice.access("INBOX", BOB)).rights == set()
        await alice.set_acl(box.id, "anyone", "+", frozenset("l"), 10)
        assert await carol.sharers() == [ALICE]
        await alice.set_acl(box.id, "-" + CAROL, "+", frozenset("l"), 10)
        assert (await alice.listing(CAROL))[0] == []
        await alice.set_acl(box.id, "anyone", "-", frozenset("l"), 10)
        await alice.set_acl(box.id, BOB, "", frozenset(), 10)
        assert await bob.sharers() == await carol.sharers() == []
        assert await alice.acl(box.id) == {"-" + CAROL: "l"}

    run(tmp_path, work)


def test_new_mailboxes_are_shared_like_the_one_they_lie_in(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        alice = store.account(ALICE)
        top = await alice.create("Team")
        await alice.set_acl(top.id, BOB, "", frozenset("lrk"), 10)
        deep = await alice.create("Team/a/b")
        assert await alice.acl(deep.id) == {BOB: "lrk"}
        await alice.rename("Team/a", "Mine")
        assert await alice.acl(deep.id) == {BOB: "lrk"}  # it stays with the mailbox
        await alice.delete("Team")
        with pytest.raises(NoSuchMailbox):
            await alice.acl(top.id)
        again = await alice.create("Team")
        assert await alice.acl(again.id) == {}

    run(tmp_path, work)


def test_lists_are_bounded(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        alice = store.account(ALICE)
        box = await alice.create("Plans")
        for number in range(3):
            await alice.set_acl(box.id, f"u{number}@example.test", "", frozenset("l"), 3)
        with pytest.raises(LimitReached):
            await alice.set_acl(box.id, BOB, "", frozenset("l"), 3)
        await alice.set_acl(box.id, "u1@example.test", "+", frozenset("r"), 3)
        with pytest.raises(NoSuchMailbox):
            await alice.set_acl(999, BOB, "", frozenset("l"), 3)
        for number in range(3):
            await alice.set_annotations(box.id, ALICE, {f"/private/{number}": b"x"}, 3, 99)
        with pytest.raises(TooMany):
            await alice.set_annotations(
                box.id, ALICE, {"/private/x": b"x", "/shared/y": b""}, 3, 99
            )
        for number in range(9):  # what was removed does not fill it up
            await alice.set_annotations(box.id, ALICE, {f"/private/{number}": None}, 3, 99)
            await alice.set_annotations(box.id, ALICE, {f"/private/{number + 3}": b"x"}, 3, 99)
        await alice.set_annotations(box.id, BOB, {"/private/x": b"x"}, 3, 99)
        with pytest.raises(TooMany, match="99 octets"):
            await alice.set_annotations(box.id, BOB, {"/private/y": b"x" * 99}, 3, 99)

    run(tmp_path, work)


def test_annotations_of_one_user_are_not_anothers(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        alice = store.account(ALICE)
        box = await alice.mailbox("INBOX")
        since, _ = await alice.annotation_changes(-1, ALICE)
        await alice.set_annotations(
            box.id, ALICE, {"/private/comment": b"a\0", "/shared/comment": b"s"}, 9, 99
        )
        await alice.set_annotations(box.id, BOB, {"/private/comment": b"b"}, 9, 99)
        await alice.set_annotations(0, ALICE, {"/private/vendor/x": b"top"}, 9, 99)
        assert await alice.annotations(box.id, ALICE) == [
            Annotation(box.id, "/private/comment", b"a\0"),
            Annotation(box.id, "/shared/comment", b"s"),
        ]
        assert [one.value for one in await alice.annotations(None, BOB)] == [b"b", b"s"]
        assert [one.value for one in await alice.annotations(0, ALICE)] == [b"top"]
        assert await alice.annotations(0, BOB) == []
        since, changed = await alice.annotation_changes(since, BOB)
        assert changed == [(box.id, "/private/comment"), (box.id, "/shared/comment")]
        await alice.set_annotations(box.id, ALICE, {"/shared/comment": None}, 9, 99)
        since, changed = await alice.annotation_changes(since, BOB)
        assert changed == [(box.id, "/shared/comment")]
        assert (await alice.annotation_changes(since, BOB))[1] == []
        plans = await alice.create("Plans")
        await alice.set_annotations(plans.id, ALICE, {"/shared/comment": b"p"}, 9, 99)
        await alice.delete("Plans")
        assert plans.id not in {one.mailbox for one in await alice.annotations(None, ALICE)}

    run(tmp_path, work)


def test_what_belongs_to_no_mailbox_is_found(tmp_path: Path) -> None:
    directory = account_directory(tmp_path, ALICE)
    directory.parent.mkdir(parents=True)
    file = AccountFile(directory, SETTINGS, create=True)
    with file.database.write():
        file.database.execute("INSERT INTO acl VALUES(77, 'anyone', 'l')")
        file.database.execute("INSERT INTO annotation VALUES(77, '', '/shared/x', x'00', 1)")
        file.database.execute("INSERT INTO annotation VALUES(0, '', '/shared/x', x'00', 1)")
    file.close()
    report = check_account(directory, SETTINGS)
    assert [finding.what for finding in report.findings] == [
        "acl of mailboxes that do not exist",
        "annotation of mailboxes that do not exist",
    ]
    assert check_account(directory, SETTINGS).clean


def test_a_subscription_counts(tmp_path: Path) -> None:
    file = AccountFile(tmp_path, SETTINGS.__class__(mailboxes=10), create=True)
    for number in range(10):
        try:
            file.subscribe(f"nothing/{number}")
        except LimitReached:
            break
    else:
        raise AssertionError("it was not refused")
    file.close()
