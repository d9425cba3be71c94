"""What happened between two looks at an account: whoever follows the events knows what there is."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config_model import ImapConfig
from gateway.protocol.imap.notify import FLAG_CHANGE, MESSAGE_EXPUNGE, MESSAGE_NEW
from gateway.server.imap.notify import Notify
from gateway.server.imap.notify_hub import (
    Created,
    Deleted,
    Event,
    Hub,
    MessagesChanged,
    Renamed,
    Snapshot,
    SubscriptionChanged,
    differences,
    messages_changed,
)
from gateway.store.account_sharing import Listing
from gateway.store.model import Notice


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


class FakeAccount:
    """Its mailboxes are `rows`; a listing has them as they are when it begins, and waits for `go`."""

    name = "alice@example.test"

    def __init__(self) -> None:
        self.mailboxes: dict[int, Listing] = {}
        self.go = asyncio.Event()
        self.go.set()

    async def listing(self, _user: str) -> tuple[list[Listing], dict[int, frozenset[str]]]:
        rows = list(self.mailboxes.values())
        await self.go.wait()
        return rows, {}

    async def annotation_changes(self, since: int, _user: str) -> tuple[int, list[tuple[int, str]]]:
        return since, []

    async def rows(self, numbers: list[int]) -> list[Listing]:
        return [self.mailboxes[number] for number in numbers]


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def heard(self, _hub: Hub, events: list[Event]) -> None:
        self.events += events


async def idle(hub: Hub) -> None:
    while hub._work is not None:
        await asyncio.sleep(0)


def test_a_delivery_while_the_list_with_its_mailbox_is_read_is_told() -> None:
    async def main() -> None:
        account, heard = FakeAccount(), Heard()
        hub = Hub(account, "")  # type: ignore[arg-type]
        hub.registrations.add(heard)
        await hub.ready()
        await idle(hub)
        account.go.clear()
        account.mailboxes[5] = created = row(5, "new")
        hub.noticed(Notice(account.name, 0, 1))
        await asyncio.sleep(0)  # the list is being read now
        account.mailboxes[5] = row(5, "new", uidnext=2, messages=1, highestmodseq=2)
        hub.noticed(Notice(account.name, 5, 2))
        account.go.set()
        await idle(hub)
        assert heard.events[0] == Created(created)
        (told,) = heard.events[1:]
        assert isinstance(told, MessagesChanged) and told.kinds == {MESSAGE_NEW}

    asyncio.run(main())


def test_what_a_session_does_itself_is_its_own_however_often_the_hub_looks_meanwhile() -> None:
    hub = SimpleNamespace(looks=0)
    service = SimpleNamespace(config=ImapConfig())
    session = SimpleNamespace(account_name="a", selected=None, is_free=True, service=service)
    notify = Notify(session, SimpleNamespace(items=(), filters=()))  # type: ignore[arg-type]
    notify._hubs["a"] = hub  # type: ignore[assignment]
    for looks, own in ((1, True), (2, False)):
        hub.looks = 0
        notify.expect(b"MailboxName", "box/x")
        hub.looks = 7  # others did much while the command ran
        notify.after_command()
        hub.looks += looks
        assert notify._is_own(hub, b"MailboxName", "box/x") is own  # type: ignore[arg-type]
        assert notify._is_own(hub, b"MailboxName", "box") is own  # type: ignore[arg-type]
        assert not notify._is_own(hub, b"MailboxName", "box")  # type: ignore[arg-type]
