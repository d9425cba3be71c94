"""NOTIFY: a session says what it wants to hear of, in all mailboxes, without being asked.

Owns      NOTIFY; Notify, what a session has registered
Flow      notify_hub.py finds events → heard() → lines → told at once when no command is being answered, else behind
          its tagged line.  The selected mailbox is told by its watch, as in IDLE (updates.py)
Limits    config.notify_mailboxes; config.notify_octets wait for a client that does not read or keeps us busy
Errors    No: BADEVENT, NOTIFICATIONOVERFLOW
Blocking  never; no task and no timer belongs to a session
Security  events of others' mailboxes need the rights "l" and "r" at the moment they happen (RFC 5465 §5)
Standards RFC 5465; RFC 5464 §4.4.2 (METADATA without values)
Bugs      a STATUS may tell of what the session itself did in a mailbox it has not selected
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.protocol.imap.notify import (
    FLAG_CHANGE,
    MAILBOX_METADATA_CHANGE,
    MAILBOX_NAME,
    MAILBOXES,
    MESSAGE_EVENTS,
    SERVER_METADATA_CHANGE,
    SUBSCRIBED,
    SUBSCRIPTION_CHANGE,
    SUBTREE,
    SUPPORTED,
    NotifyRequest,
    UnknownEvent,
    parse_notify,
)
from gateway.protocol.imap.response import mailbox_octets
from gateway.server.imap.access import prefixes
from gateway.server.imap.fetch import tell_new
from gateway.server.imap.metadata import entry_octets
from gateway.server.imap.notify_hub import (
    AnnotationsChanged,
    Deleted,
    Event,
    Hub,
    MessagesChanged,
    Renamed,
    SubscriptionChanged,
)
from gateway.server.imap.state import AUTHENTICATED, Capability, Handler, No, Outcome
from gateway.server.imap.status import StatusFormat
from gateway.server.session import afterwards
from gateway.store.errors import StoreError
from gateway.store.model import UID_MAX
from gateway.store.names import SEPARATOR

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.watch import Watch
    from gateway.store.account_sharing import Listing

OWN_MAX = 1000  # changes of its own that a session remembers; it may hear of more
RUNNING = 1 << 62  # more looks than there ever are
BATCH = 500  # lines between two looks at whether the client reads
NOTHING = NotifyRequest(False, frozenset(), False, (), ())
OVERFLOW = b"* OK [NOTIFICATIONOVERFLOW] Too much happens for you: ask again\r\n"


async def cmd_notify(session: ImapSession, command: ImapCommand) -> Outcome:
    try:
        request = parse_notify(command)
    except UnknownEvent:
        raise No("Such events cannot be told", b"BADEVENT (" + SUPPORTED + b")") from None
    notify = Notify(session, request or NOTHING)
    lines: list[bytes] = []
    try:
        if request is not None:
            await notify.join()
            if notify.mailboxes() > session.service.config.notify_mailboxes:
                raise No("Too many mailboxes", b"NOTIFICATIONOVERFLOW")
            lines = notify.beginning()
        session.leave_notify()
        await session.catch_up()  # RFC 5465 §3.1: all that happened so far
    except BaseException:  # also: the connection is gone
        notify.close()
        raise
    session.notify = notify
    for start in range(0, len(lines), BATCH):
        session.send(b"".join(lines[start : start + BATCH]))
        await session.drained()
    return None


class Notify:
    """What one session has registered; it lasts until the next NOTIFY."""

    __slots__ = ("_doing", "_hubs", "_octets", "_own", "_paths", "_session", "new_uid", "outbox", "request")

    def __init__(self, session: ImapSession, request: NotifyRequest) -> None:
        self._session = session
        self._hubs: dict[str, Hub] = {}  # by owner
        self._paths = prefixes(session.service.config)
        self._octets = 0
        # The session's own doing, (event, name) → the last look of the hub that may see it first
        self._own: dict[tuple[bytes, str], int] = {}
        self._doing: list[tuple[Hub, tuple[bytes, str]]] = []  # of the command that is being answered
        self.request = request
        self.outbox: list[bytes] = []
        self.new_uid = 0  # messages of the selected mailbox from there on are to be fetched

    # -- which mailboxes ---------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Follow all accounts that a filter may lead to.  Raises StoreError."""
        if self.request.filters:
            user = self._session.account_name
            await self._follow(user)
            for owner in await self._owners():
                await self._follow(owner)

    async def _follow(self, owner: str) -> None:
        if owner not in self._hubs:
            hubs = self._session.service.hubs
            hub = await hubs.join(self, owner, self._session.account_name)
            if owner in self._hubs or self._session.is_closed:
                hubs.leave(self, hub)
            else:
                self._hubs[owner] = hub

    async def _owners(self) -> set[str]:
        """Other accounts that the filters name."""
        session, paths = self._session, self._paths
        user = session.account_name
        owners: set[str] = set()
        for one in self.request.filters:
            names = set(one.names)
            if one.kind == SUBSCRIBED:
                names = set(self._hubs[user].snapshot.subscribed)
            for name in names:
                found = paths.find(name, user)
                if found is not None and found[0] != user and found[0]:
                    owners.add(found[0])
                elif name == paths.others and one.kind == SUBTREE:
                    owners.update(await session.account.sharers())
        return set(sorted(owners)[: session.service.config.owners])

    def mailboxes(self) -> int:
        """How many are watched."""
        return sum(
            1
            for hub in self._hubs.values()
            for row in hub.snapshot.rows.values()
            if self._events(self._shown(hub, row.name), own=not hub.user)
        )

    def _events(self, name: str, *, own: bool) -> frozenset[bytes]:
        """The events of interest at that name."""
        found: frozenset[bytes] = frozenset()
        for one in self.request.filters:
            if one.kind == SUBTREE:
                meant = any(name == top or name.startswith(top + SEPARATOR) for top in one.names)
            elif one.kind == MAILBOXES:
                meant = name in one.names
            elif one.kind == SUBSCRIBED:
                meant = name in self._hubs[self._session.account_name].snapshot.subscribed
            else:
                meant = (
                    own  # RFC 5465 §6.3: INBOXES, where it is not known what gets mail, is PERSONAL
                )
            if meant:
                found |= one.events
        return found

    def _shown(self, hub: Hub, name: str) -> str:
        return self._paths.show(hub.account.name, name, self._session.account_name)

    # -- what is told ------------------------------------------------------------------------------------------------

    def beginning(self) -> list[bytes]:
        """How the watched mailboxes are now, where that was asked for; and those it is not allowed to watch."""
        lines = []
        for hub in self._hubs.values():
            for row in sorted(hub.snapshot.rows.values(), key=lambda row: row.name):
                name = self._shown(hub, row.name)
                events = self._events(name, own=not hub.user)
                if not events:
                    continue
                if hub.user and "r" not in hub.rights.get(row.id, ()):
                    lines.append(self._list_line(hub, name, row, b"\\NoAccess "))
                elif (
                    self.request.status
                    and events & MESSAGE_EVENTS
                    and not self._is_selected(hub, row)
                ):
                    lines.append(self._status_line(name, row, events, unseen=True))
        return lines

    def heard(self, hub: Hub, events: list[Event]) -> None:
        """For Hub: these happened."""
        if self._hubs.get(hub.account.name) is not hub:
            return  # it has not begun, or has ended
        if len(self._own) > OWN_MAX:
            self._own.clear()
        lines = [line for event in events for line in self._lines(hub, event)]
        for line in dict.fromkeys(lines):  # a parent is told with each of those below it
            self._push(line)
        self.deliver()

    def _lines(self, hub: Hub, event: Event) -> list[bytes]:
        if isinstance(event, MessagesChanged):
            return self._messages(hub, event)
        if isinstance(event, AnnotationsChanged):
            return self._annotations(hub, event)
        if isinstance(event, SubscriptionChanged):
            name = event.name
            if any(one.kind == SUBSCRIBED for one in self.request.filters):
                afterwards(self._rejoin())
            own = self._paths.find(name, "") == ("", name)
            if self._is_own(hub, SUBSCRIPTION_CHANGE, name):
                return []
            if SUBSCRIPTION_CHANGE not in self._events(name, own=own):
                return []
            return [self._list_line(hub, name, self._named(name))]
        name = self._shown(hub, event.row.name)
        own = not hub.user
        old = self._shown(hub, event.old) if isinstance(event, Renamed) else ""
        names = [name, old] if old else [name]
        if self._is_own(hub, MAILBOX_NAME, name):
            return []
        lines = []
        if any(MAILBOX_NAME in self._events(one, own=own) for one in names):
            extended = b""
            if old:
                extended = b' ("OLDNAME" (%b))' % mailbox_octets(old, self._utf8)
            row = None if isinstance(event, Deleted) else event.row
            lines.append(self._list_line(hub, name, row, extended=extended))
        above = name.rpartition(SEPARATOR)[0]
        if above and not old and MAILBOX_NAME in self._events(above, own=own):  # RFC 5465 §5.4
            lines.append(self._list_line(hub, above, self._named(above)))
        return lines

    def _messages(self, hub: Hub, event: MessagesChanged) -> list[bytes]:
        row = event.row
        name = self._shown(hub, row.name)
        events = self._events(name, own=not hub.user)
        told = event.kinds & events
        if not told or self._is_selected(hub, row):
            return []
        if hub.user and "r" not in hub.rights.get(row.id, ()):
            return []
        if told == {FLAG_CHANGE} and not event.unseen and not self._knows_modseq:
            return []
        return [self._status_line(name, row, events, unseen=event.unseen)]

    def _annotations(self, hub: Hub, event: AnnotationsChanged) -> list[bytes]:
        entries = b" ".join(map(entry_octets, event.entries))
        if event.mailbox == 0:
            wanted = any(SERVER_METADATA_CHANGE in one.events for one in self.request.filters)
            if not wanted or hub.user or self._is_own(hub, SERVER_METADATA_CHANGE, ""):
                return []
            return [b'* METADATA "" %b\r\n' % entries]
        row = hub.snapshot.rows.get(event.mailbox)
        if row is None or (hub.user and "r" not in hub.rights.get(row.id, ())):
            return []
        name = self._shown(hub, row.name)
        if self._is_own(hub, MAILBOX_METADATA_CHANGE, name):
            return []
        if MAILBOX_METADATA_CHANGE not in self._events(name, own=not hub.user):
            return []
        return [b"* METADATA %b %b\r\n" % (mailbox_octets(name, self._utf8), entries)]

    def _status_line(
        self, name: str, row: Listing, events: frozenset[bytes], *, unseen: bool
    ) -> bytes:
        items = [b"MESSAGES", b"UIDNEXT", b"UIDVALIDITY"]
        if unseen and FLAG_CHANGE in events:
            items.append(b"UNSEEN")
        if self._knows_modseq:
            items.append(b"HIGHESTMODSEQ")
        return StatusFormat(self._session, items).response(mailbox_octets(name, self._utf8), "", row)

    def _list_line(
        self, hub: Hub, name: str, row: Listing | None, words: bytes = b"", extended: bytes = b""
    ) -> bytes:
        """Attributes as they are now (RFC 5465 §5.4, §5.5)."""
        if row is None:
            words += b"\\NonExistent "
        words += b"\\HasChildren" if self._has_children(name) else b"\\HasNoChildren"
        if row is not None and row.special_use and not hub.user:
            words += b" " + row.special_use.encode()
        own = self._hubs.get(self._session.account_name)
        if own is not None and name in own.snapshot.subscribed:
            words += b" \\Subscribed"
        return b'* LIST (%b) "/" %b%b\r\n' % (words, mailbox_octets(name, self._utf8), extended)

    def _has_children(self, name: str) -> bool:
        found = self._paths.find(name, self._session.account_name)
        if found is None:
            return False
        owner, inner = found
        if not owner:  # where other users' mailboxes begin
            return any(hub.user and hub.snapshot.rows for hub in self._hubs.values())
        hub = self._hubs.get(owner)
        if hub is None:
            return False
        return inner in hub.snapshot.parents if inner else bool(hub.snapshot.rows)

    def _named(self, name: str) -> Listing | None:
        """The mailbox of that name, if the session can see one."""
        found = self._paths.find(name, self._session.account_name)
        hub = self._hubs.get(found[0]) if found is not None else None
        if hub is None or found is None:
            return None
        number = hub.snapshot.by_name.get(found[1])
        return None if number is None else hub.snapshot.rows[number]

    @property
    def _utf8(self) -> bool:
        return self._session.machine.utf8

    @property
    def _knows_modseq(self) -> bool:
        return b"CONDSTORE" in self._session.enabled

    def _is_selected(self, hub: Hub, row: Listing) -> bool:
        selected = self._session.selected
        return (
            selected is not None
            and selected.mailbox.id == row.id
            and selected.place.owner == hub.account.name
        )

    # -- the session's own doing, of which it need not be told (RFC 5465 §5) -----------------------------------------

    def expect(self, kind: bytes, *names: str) -> None:
        """The session is about to change these, and makes what they lie in, as the case may be."""
        for name in names:
            found = self._paths.find(name, self._session.account_name)
            hub = self._hubs.get(found[0]) if found is not None else None
            above = name
            while hub is not None:
                self._own[kind, above] = RUNNING
                self._doing.append((hub, (kind, above)))
                above = above.rpartition(SEPARATOR)[0]
                if not above:
                    break

    def _is_own(self, hub: Hub, kind: bytes, name: str) -> bool:
        """Once; a change is seen by the first look begun after its command at the latest."""
        last = self._own.pop((kind, name), None)
        return last is not None and hub.looks <= last

    # -- when it is told ---------------------------------------------------------------------------------------------

    def _push(self, line: bytes) -> None:
        if self.request is NOTHING:
            return
        self.outbox.append(line)
        self._octets += len(line)
        if self._octets > self._session.service.config.notify_octets:  # RFC 5465 §5.8
            self.close()
            self.outbox = [OVERFLOW]

    def deliver(self) -> None:
        """Tell what waits, if it may be told now."""
        if self.outbox and self._session.is_free:
            self._send()
            self._session.flush()

    def _send(self) -> None:
        if self.outbox:
            self._session.send(b"".join(self.outbox))
            self.outbox = []
            self._octets = 0

    def after_command(self) -> None:
        """A command was completed: tell what waits, and watch the mailbox that is selected now."""
        session = self._session
        for hub, doing in self._doing:
            if doing in self._own:
                self._own[doing] = hub.looks + 1
        self._doing.clear()
        self._send()
        if session.selected is not None and self.request.selected:
            view = session.selected.view
            view.watch.tell(session)
            if self.request.items and not view.is_loaded:  # else it is not known which are new
                session.later(self._load(view.watch))
        self.fetch_new()

    async def _load(self, watch: Watch) -> None:
        with suppress(StoreError):  # then new messages are not fetched
            await watch.load()

    def came(self, uid: int) -> None:
        """The selected mailbox has new messages, from that UID on."""
        if self.request.items and uid <= UID_MAX:
            self.new_uid = min(self.new_uid or uid, uid)

    def fetch_new(self) -> None:
        """Tell of new messages what was asked for (RFC 5465 §5.2)."""
        session, uid = self._session, self.new_uid
        if uid and session.selected is not None and session.is_free:
            self.new_uid = 0
            tell_new(session, self.request.items, uid)

    async def _rejoin(self) -> None:
        """RFC 5465 §6.4: what is subscribed to has changed."""
        with suppress(StoreError):  # the next change tries again
            for owner in await self._owners():
                await self._follow(owner)

    def close(self) -> None:
        """Nothing is heard any more."""
        self.request = NOTHING
        hubs, self._hubs = self._hubs, {}
        for hub in hubs.values():
            self._session.service.hubs.leave(self, hub)
        self.outbox = []
        self._octets = 0


COMMANDS = {b"NOTIFY": Handler(cmd_notify, AUTHENTICATED, indexed=False)}
CAPABILITIES = [Capability(b"NOTIFY")]
