"""What happens in an account's mailboxes, for the sessions of this worker that asked for it by NOTIFY.

    Owns      Hubs, Hub; Snapshot, differences() and the events it finds
    Flow      a Notice of the store → what is dirty → one question to the store → differences → each registration
    Limits    one Hub for each account and user that looks at it, while there is a registration; a row of each mailbox
    Errors    StoreError is logged: what was missed is found with the next notice
    Blocking  never; a task only while there is something to ask, a timer only while it is asked too often
    Standards RFC 5465 §5

However many sessions watch however many mailboxes of an account: a delivery costs one statement about one mailbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.protocol.imap.notify import FLAG_CHANGE, MESSAGE_EXPUNGE, MESSAGE_NEW
from gateway.store.errors import NoSuchAccount, StoreError
from gateway.store.names import SEPARATOR

if TYPE_CHECKING:
    from gateway.store.account_sharing import Listing
    from gateway.store.model import Notice
    from gateway.store.store import Account, Store

logger = logging.getLogger(__name__)

# Who makes thousands of mailboxes one by one must not keep the loop busy with comparing all of them each time.
REST = 19  # times as long as the last look took
REST_LEAST_S = 0.02


class MessagesChanged(NamedTuple):
    """Something happened to the messages of a mailbox."""

    row: Listing
    kinds: frozenset[bytes]  # MESSAGE_NEW, MESSAGE_EXPUNGE, FLAG_CHANGE
    unseen: bool  # the count of unseen messages changed


class Created(NamedTuple):
    """A mailbox can be seen that could not before."""

    row: Listing


class Deleted(NamedTuple):
    """One can not be seen any more."""

    row: Listing  # as it was


class Renamed(NamedTuple):
    """With it went all that lies below."""

    row: Listing
    old: str


class SubscriptionChanged(NamedTuple):
    """The user subscribed to the name, or does not any more."""

    name: str


class AnnotationsChanged(NamedTuple):
    """Entries of a mailbox were set or removed; mailbox 0: of the server."""

    mailbox: int
    entries: list[str]


Event = MessagesChanged | Created | Deleted | Renamed | SubscriptionChanged | AnnotationsChanged


class Snapshot:
    """The mailboxes of an account that the user can see, at one moment; their counters follow."""

    __slots__ = ("by_name", "parents", "rows", "subscribed")

    def __init__(self, rows: Iterable[Listing], subscribed: Iterable[str] = ()) -> None:
        """subscribed: names; the owner's alone."""
        self.rows = {row.id: row for row in rows}
        self.subscribed = frozenset(subscribed)
        self.by_name = {row.name: row.id for row in self.rows.values()}
        self.parents: set[str] = set()  # names with a mailbox below them
        for name in self.by_name:
            above = name.rpartition(SEPARATOR)[0]
            while above and above not in self.parents:
                self.parents.add(above)
                above = above.rpartition(SEPARATOR)[0]


def differences(before: Snapshot, after: Snapshot) -> Iterator[Event]:
    """What happened between the two."""
    renamed: dict[str, str] = {}
    for number, row in after.rows.items():
        old = before.rows.get(number)
        if old is not None and old.name != row.name:
            renamed[old.name] = row.name
    for number, row in after.rows.items():
        old = before.rows.get(number)
        if old is None:
            yield Created(row)
            continue
        if old.name != row.name and not _came_along(old.name, row.name, renamed):
            yield Renamed(row, old.name)
        changed = messages_changed(old, row)
        if changed is not None:
            yield changed
    for number, old in before.rows.items():
        if number not in after.rows:
            yield Deleted(old)
    for name in sorted(before.subscribed ^ after.subscribed):
        yield SubscriptionChanged(name)


def _came_along(old: str, new: str, renamed: Mapping[str, str]) -> bool:
    """RFC 5465 §5.4: only the topmost of the renamed mailboxes is told."""
    above, rest = old.rpartition(SEPARATOR)[0], ""
    while above:
        rest = old[len(above) :]
        if above in renamed and renamed[above] + rest == new:
            return True
        above = above.rpartition(SEPARATOR)[0]
    return False


def messages_changed(old: Listing, row: Listing) -> MessagesChanged | None:
    """From the counters of a mailbox: what happened to its messages; None: nothing."""
    if row.highestmodseq <= old.highestmodseq:
        return None
    kinds = set()
    if row.uidnext > old.uidnext:
        kinds.add(MESSAGE_NEW)
    if old.messages + (row.uidnext - old.uidnext) > row.messages:
        kinds.add(MESSAGE_EXPUNGE)
    if not kinds or row.highestmodseq > old.highestmodseq + len(kinds):
        kinds.add(FLAG_CHANGE)
    return MessagesChanged(row, frozenset(kinds), row.unseen != old.unseen)


class Registration(Protocol):
    """A session that wants to hear of some events."""

    def heard(self, hub: Hub, events: list[Event]) -> None:
        """These happened, in this order."""


class Hubs:
    """All of one worker."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hubs: dict[tuple[str, str], Hub] = {}

    async def join(self, registration: Registration, owner: str, user: str) -> Hub:
        """The hub of what the user sees of the owner's mailboxes; leave() it in the end.  Raises StoreError."""
        key = (owner, user)
        hub = self._hubs.get(key)
        if hub is None:
            account = self._store.account(owner, create=owner == user)
            hub = self._hubs[key] = Hub(account, "" if owner == user else user)
            hub.unsubscribe = self._store.notices.subscribe(owner, hub.noticed)
        hub.registrations.add(registration)
        try:
            await hub.ready()
        except BaseException:
            self.leave(registration, hub)
            raise
        return hub

    def leave(self, registration: Registration, hub: Hub) -> None:
        """The registration ends."""
        hub.registrations.discard(registration)
        if not hub.registrations:
            hub.close()
            self._hubs.pop((hub.account.name, hub.user or hub.account.name), None)


class Hub:
    """One account, as one user sees it."""

    __slots__ = (
        "_annotation",
        "_dirty",
        "_list_dirty",
        "_loaded",
        "_looked",
        "_rest_s",
        "_timer",
        "_work",
        "account",
        "looks",
        "registrations",
        "rights",
        "snapshot",
        "unsubscribe",
        "user",
    )

    def __init__(self, account: Account, user: str) -> None:
        """user: who looks; empty: the owner."""
        self.account = account
        self.user = user
        self.registrations: set[Registration] = set()
        self.snapshot = Snapshot(())
        self.looks = 0  # at all mailboxes, that were begun
        self._looked = 0  # the last one that was ended
        self.rights: dict[int, frozenset[str]] = {}  # of the user; empty for the owner
        self._annotation = -1
        self._dirty: set[int] = set()
        self._list_dirty = True
        self._loaded = False
        self._work: asyncio.Task[None] | None = None
        self._rest_s = 0.0  # after the last look at all mailboxes
        self._timer: asyncio.TimerHandle | None = None
        self.unsubscribe: Callable[[], None] = lambda: None  # the store's own, from join() on

    async def ready(self) -> None:
        """The snapshot is there, and newer than this call.  Raises StoreError."""
        self._list_dirty = True
        wanted = self.looks + 1
        while self._looked < wanted:
            work = self._work
            if work is None or work.done():  # one that is done does not give way to its own end
                work = self._start()
            await asyncio.shield(work)

    def noticed(self, notice: Notice) -> None:
        """The store's word that something changed."""
        if notice.mailbox == 0:
            self._list_dirty = True
        elif notice.mailbox in self.snapshot.rows or self._list_dirty or self._work is not None:
            self._dirty.add(notice.mailbox)  # it may be of the list that is being read
        else:
            return
        if self._work is None and self._timer is None and self.registrations:
            self._start()

    def close(self) -> None:
        """Nobody listens any more."""
        self.unsubscribe()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> asyncio.Task[None]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._work = asyncio.get_running_loop().create_task(self._catch_up())
        self._work.add_done_callback(self._done)
        return self._work

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._work is task:
            self._work = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._list_dirty = True  # with the next notice
        if isinstance(error, StoreError):
            logger.warning("mailboxes of %s: %s", self.account.name, error)
        elif error is not None:
            logger.error("mailboxes of %s", self.account.name, exc_info=error)
        elif self._work is None and (self._list_dirty or self._dirty):
            if self._list_dirty and self._rest_s > REST_LEAST_S:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._rest_s, self._start)
            else:
                self._start()

    async def _catch_up(self) -> None:
        dirty, self._dirty = sorted(self._dirty), set()
        listed, self._list_dirty = self._list_dirty, False
        if listed:
            events = await self._read_list()
        else:
            events = self._take(await self.account.rows(dirty))
        if events and self._loaded:
            for registration in list(self.registrations):
                try:
                    registration.heard(self, events)
                except Exception:
                    logger.exception("a session failed on notifications")
        self._loaded = True

    async def _read_list(self) -> list[Event]:
        user = self.user or self.account.name
        self.looks += 1
        look = self.looks
        try:
            rows, self.rights = await self.account.listing(self.user)
            self._annotation, changed = await self.account.annotation_changes(
                self._annotation, user
            )
        except NoSuchAccount:
            rows, changed = [], []
        began = monotonic()
        before = self.snapshot
        self.snapshot = Snapshot(
            (row for row in rows if row.selectable),
            () if self.user else (row.name for row in rows if row.subscribed),
        )
        entries: dict[int, list[str]] = {}
        for mailbox, entry in changed:
            entries.setdefault(mailbox, []).append(entry)
        events = [
            *differences(before, self.snapshot),
            *(AnnotationsChanged(mailbox, names) for mailbox, names in entries.items()),
        ]
        self._rest_s = REST * (monotonic() - began)
        self._looked = look
        return events

    def _take(self, rows: list[Listing]) -> list[Event]:
        events: list[Event] = []
        known = self.snapshot.rows
        for row in rows:
            old = known.get(row.id)
            if old is not None:
                row = row._replace(name=old.name)  # a new name is for _read_list()
                known[row.id] = row
                if (changed := messages_changed(old, row)) is not None:
                    events.append(changed)
        return events
