"""Which names LIST tells, against RFC 5258 word by word; what a list costs in the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store_account import SETTINGS

from gateway.protocol.imap.list import ListRequest, Pattern
from gateway.server.imap.list import _select
from gateway.server.imap.tree import Tree, in_order
from gateway.store import account_sharing
from gateway.store.account import AccountFile
from gateway.store.account_sharing import Listing

names = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)


def listing(number: int, name: str, special: bool) -> Listing:
    return Listing(number, name, 1, 0, "\\Junk" if special else "", 1, 1, 1, 0, 0, 0, 0, 1)


def above(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


@settings(max_examples=300, deadline=None)
@given(
    st.frozensets(names, max_size=5),
    st.frozensets(names, max_size=3),
    st.frozensets(names, max_size=2),
    st.lists(st.text("ab/%*", min_size=1, max_size=4), min_size=1, max_size=2),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_selection(
    existing: frozenset[str],
    subscribed: frozenset[str],
    special: frozenset[str],
    patterns: list[str],
    options: tuple[bool, bool, bool],
) -> None:
    only_subscribed, only_special, recursive = options
    recursive = recursive and (only_subscribed or only_special)
    tree = Tree()
    for number, name in enumerate(existing, 1):
        tree.add(name, listing(number, name, name in special))
    tree.subscribed.update(subscribed)
    tree.finish()
    pattern = Pattern(patterns)
    request = ListRequest(subscribed=only_subscribed, special_use=only_special, recursive=recursive)
    found = _select(tree, pattern, request)

    universe = existing | subscribed
    universe |= {parent for name in universe for parent in above(name)}
    leading = {parent for name in existing for parent in above(name)}

    def meant(name: str) -> bool:
        if not (only_subscribed or only_special):
            return name in existing or name in leading
        return not (
            (only_subscribed and name not in subscribed)
            or (only_special and not (name in existing and name in special))
        )

    def below(name: str) -> list[str]:
        return [one for one in universe if name in above(one) and meant(one)]

    wanted = {
        name: recursive and bool(below(name))
        for name in universe
        if pattern.matches(name)
        and (meant(name) or (recursive and any(not pattern.matches(one) for one in below(name))))
    }
    assert dict(found) == wanted
    assert [name for name, _ in found] == sorted(wanted, key=in_order)


def test_a_list_is_one_statement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AccountFile(tmp_path, SETTINGS, create=True)
    for number in range(50):
        file.create(f"a/{number}")
    file.subscribe("a/7")
    said: list[str] = []
    execute = file.database.execute

    def spy(sql: str, *bindings: object) -> object:
        said.append(sql)
        return execute(sql, *bindings)

    monkeypatch.setattr(file.database, "execute", spy)
    rows, _ = account_sharing.listing(file)
    assert len(rows) == 57
    assert [one.split()[0] for one in said] == ["BEGIN", "SELECT", "COMMIT"]
    assert [row.name for row in account_sharing.listing(file, prefix="a/4")[0]][:2] == [
        "a/4",
        "a/40",
    ]
    said.clear()
    assert account_sharing.subscriptions(file) == ["a/7"]
    plan = list(execute("EXPLAIN QUERY PLAN " + said[0], ("", "x", -1)))
    assert len(said) == 1 and "INDEX subscription" in str(plan)
    file.close()
