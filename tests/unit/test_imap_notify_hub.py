"""What happened between two looks at an account: whoever follows the events knows what there is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.imap.notify import FLAG_CHANGE, MESSAGE_EXPUNGE, MESSAGE_NEW
from gateway.server.imap.notify_hub import (
    Created,
    Deleted,
    MessagesChanged,
    Renamed,
    Snapshot,
    SubscriptionChanged,
    differences,
    messages_changed,
)
from gateway.store.account_sharing import Listing


def row(number: int, name: str, **counters: int) -> Listing:
    values = {
        "uidvalidity": 1,
        "uidnext": 1,
        "highestmodseq": 1,
        "messages": 0,
        "unseen": 0,
    } | counters
    return Listing(number, name, 1, 0, "", deleted=0, octets=0, recent_uid=0, **values)


parts = st.sampled_from("ab")
names = st.lists(parts, min_size=1, max_size=3).map("/".join)
lists = st.dictionaries(st.integers(1, 6), names, max_size=6).filter(
    lambda found: len(set(found.values())) == len(found)
)


@settings(max_examples=300, deadline=None)
@given(lists, lists, st.frozensets(names, max_size=3), st.frozensets(names, max_size=3))
def test_events_lead_from_one_to_the_other(
    before: dict[int, str], after: dict[int, str], old: frozenset[str], new: frozenset[str]
) -> None:
    events = list(
        differences(
            Snapshot([row(number, name) for number, name in before.items()], old),
            Snapshot([row(number, name) for number, name in after.items()], new),
        )
    )
    known = dict(before)
    subscribed = set(old)
    moved = {event.old: event.row.name for event in events if isinstance(event, Renamed)}
    for number, name in before.items():  # what lies below a renamed one comes along, untold
        if number not in after:
            continue
        tops = [top for top in moved if name.startswith(top + "/")]
        if any(after[number] == moved[top] + name[len(top) :] for top in tops) or name in moved:
            known[number] = after[number]
    for event in events:
        if isinstance(event, Deleted):
            del known[event.row.id]
        elif isinstance(event, Created):
            assert event.row.id not in before
            known[event.row.id] = event.row.name
        elif isinstance(event, Renamed):
            assert known[event.row.id] == event.row.name
        elif isinstance(event, SubscriptionChanged):
            subscribed ^= {event.name}
    assert known == after
    assert subscribed == new


def test_counters_tell_what_happened_to_messages() -> None:
    old = row(1, "a", uidnext=10, messages=5, highestmodseq=20, unseen=3)
    for changes, kinds in (
        ({}, None),
        ({"uidnext": 11, "messages": 6, "highestmodseq": 21}, {MESSAGE_NEW}),
        ({"messages": 4, "highestmodseq": 21}, {MESSAGE_EXPUNGE}),
        ({"highestmodseq": 21}, {FLAG_CHANGE}),
        ({"uidnext": 11, "highestmodseq": 22}, {MESSAGE_NEW, MESSAGE_EXPUNGE}),
        ({"uidnext": 11, "messages": 6, "highestmodseq": 22}, {MESSAGE_NEW, FLAG_CHANGE}),
    ):
        found = messages_changed(old, old._replace(**changes))
        assert (found.kinds if found else None) == kinds
    seen = messages_changed(old, old._replace(highestmodseq=21, unseen=2))
    assert isinstance(seen, MessagesChanged)
    assert seen.unseen
