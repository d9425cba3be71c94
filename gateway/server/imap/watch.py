"""The mailboxes that sessions of this worker have open: one Watch each, however many sessions look at it.

    Owns      Watches, Watch
    Flow      a Notice of the store → stale → refresh() asks changes() once → the sessions that wait (IDLE, NOTIFY) are
              told in the same turn of the loop; all others when they complete their next command
    Limits    a Watch lives while a session has its mailbox selected; the UNUSED_MAX last ones live on, with
              UNUSED_OCTETS of records.  The index of one with more than LAZY_MESSAGES is read when something needs it
    Errors    StoreError of refresh() goes to whoever asked; for those in IDLE it is logged and tried again at the
              next notice
    Blocking  never
    Bugs      the expunges between SELECT and the first use of a large mailbox are known as far back as the store's
              history goes; where it does not, the session ends with BYE
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gateway._native import RECORD_OCTETS, diff_records, split_records
from gateway.server.imap.view import CHUNK_OCTETS, EMPTY, RANGE, Index
from gateway.store.errors import NoSuchMailbox, StoreError
from gateway.store.model import FLAG_CHANGE, NEVER, RECORD, UID_MAX, Mailbox, Notice, Stored

if TYPE_CHECKING:
    from gateway.server.imap.view import View
    from gateway.store.store import Account, Store

logger = logging.getLogger(__name__)

LAZY_MESSAGES = 20_000
UNUSED_MAX = 64
UNUSED_OCTETS = 8 << 20
RANGES_AT_ONCE = 16  # of a STORE; each takes its place in the mailbox's flag log


class Listener(Protocol):
    """A session that wants to hear at once."""

    def mailbox_changed(self) -> None:
        """What the worker knows of the mailbox is newer now: update the view, tell the client."""


class Watches:
    """All of one worker."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watches: dict[tuple[str, int], Watch] = {}
        self._named: dict[tuple[str, str], Watch] = {}  # by account and the name it was opened by
        self._unused: OrderedDict[Watch, int] = OrderedDict()  # the longest unused first → octets of records
        self._unused_octets = 0
        self.poll = store.notices.poll  # takes in what other workers have published so far

    async def open(self, account: Account, mailbox: Mailbox) -> Watch:
        """The watch of that mailbox, as new as the row given; leave() it when the session is done with it."""
        key = (account.name, mailbox.id)
        watch = self._watches.get(key)
        if watch is not None and watch.mailbox.uidvalidity != mailbox.uidvalidity:
            self._replace(watch)  # the account was removed, and made again
            watch = None
        if watch is None:
            watch = self._watches[key] = Watch(account, mailbox)
            watch.unsubscribe = self._store.notices.subscribe(account.name, watch.noticed)
        else:
            self._use(watch)
        watch.sessions += 1
        watch.name = mailbox.name
        self._named[account.name, mailbox.name] = watch
        try:
            if watch.index is None and watch.mailbox.messages <= LAZY_MESSAGES:
                await watch.load()
            watch.newest_modseq = max(watch.newest_modseq, mailbox.highestmodseq)
            await watch.refresh()
        except BaseException:
            self.leave(watch)
            raise
        return watch

    def find(self, account: str, name: str) -> Watch | None:
        """The watch of the account's mailbox of that name, when all that was committed is known of it."""
        watch = self._named.get((account, name))
        if watch is None or watch.name != name or watch.gone or watch.is_stale:
            return None
        return watch

    def enter(self, watch: Watch) -> None:
        """What open() is for one that find() gave."""
        self._use(watch)
        watch.sessions += 1

    def _use(self, watch: Watch) -> None:
        if watch in self._unused:
            self._unused_octets -= self._unused.pop(watch)

    def leave(self, watch: Watch) -> None:
        """A session has closed its mailbox."""
        watch.sessions -= 1
        if watch.sessions:
            return
        octets = 0 if watch.index is None else watch.index.count * RECORD_OCTETS
        self._unused[watch] = octets
        self._unused_octets += octets
        if watch.gone:
            self._forget(watch)
            return
        while len(self._unused) > UNUSED_MAX or self._unused_octets > UNUSED_OCTETS:
            self._forget(next(iter(self._unused)))

    def _forget(self, watch: Watch) -> None:
        self._unused_octets -= self._unused.pop(watch)
        watch.unsubscribe()
        key = (watch.account.name, watch.mailbox.id)
        if self._watches.get(key) is watch:
            del self._watches[key]
        for name in [name for name, other in self._named.items() if other is watch]:
            del self._named[name]

    def _replace(self, watch: Watch) -> None:
        del self._watches[watch.account.name, watch.mailbox.id]
        watch.vanish()
        if not watch.sessions:
            self._forget(watch)


class Watch:
    """What this worker knows of a mailbox: its row, and its records (once they are needed)."""

    __slots__ = (
        "_waiters",
        "_work",
        "account",
        "described",
        "gone",
        "index",
        "mailbox",
        "name",
        "newest_modseq",
        "sessions",
        "unsubscribe",
        "views",
    )

    def __init__(self, account: Account, mailbox: Mailbox) -> None:
        self.account = account
        self.mailbox = mailbox
        self.index: Index | None = EMPTY if mailbox.messages == 0 else None
        self.newest_modseq = mailbox.highestmodseq  # that a notice told of
        self.name = mailbox.name  # "": it may have another one by now
        self.sessions = 0
        self.unsubscribe: Callable[[], None] = lambda: None  # the store's, once it is asked to tell
        self.gone = False  # the mailbox was deleted
        self.views: set[View] = set()
        self.described: tuple[object, bytes] | None = None  # select.py's: to whom it looks how
        self._waiters: dict[Listener, None] = {}
        self._work: asyncio.Task[None] | None = None

    @property
    def is_stale(self) -> bool:
        """Somebody changed the mailbox, and we do not know how."""
        return self.newest_modseq > self.mailbox.highestmodseq and not self.gone

    def tell(self, listener: Listener) -> None:
        """Call listener.mailbox_changed() after each change, until tell_no_more()."""
        self._waiters[listener] = None

    def tell_no_more(self, listener: Listener) -> None:
        self._waiters.pop(listener, None)

    def noticed(self, notice: Notice) -> None:
        """The store's word that something changed."""
        modseq = notice.modseq if notice.mailbox == self.mailbox.id else 0
        if notice.mailbox == 0:  # the list of mailboxes
            self.name = ""
            if notice.modseq == NEVER:  # anything: notices were lost
                modseq = self.mailbox.highestmodseq + 1
        if modseq > self.newest_modseq:
            self.newest_modseq = modseq
            if self._waiters:  # after those who made the change: they may know what it was
                asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        if self.is_stale and self._work is None and self._waiters:
            self._start(self._read_changes())

    # -- catching up -------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Learn what was committed before this call.  Raises StoreError."""
        while self.is_stale:
            await asyncio.shield(self._work or self._start(self._read_changes()))

    async def load(self) -> None:
        """Read the index, for all views.  Raises StoreError."""
        while self.index is None:
            await asyncio.shield(self._work or self._start(self._read_index()))

    def claimed(self) -> None:
        """No message is \\Recent to others any more."""
        self.mailbox = msgspec.structs.replace(self.mailbox, recent=0)

    def apply(self, changed: bytes, gone: bytes, modseq: int) -> None:
        """A session's own change, as the store answered it: records, ranges of UIDs; one transaction has one MODSEQ.

        When others were faster, what they did has to be read first: then this only says that there is something.
        """
        self.newest_modseq = max(self.newest_modseq, modseq)
        if self.index is not None and modseq == self.mailbox.highestmodseq + 1:
            index = self.index.patched(changed, gone)
            self._advance(
                msgspec.structs.replace(self.mailbox, highestmodseq=modseq, messages=index.count), index
            )

    def store(self, ranges: bytes, clear: int, bits: int, unchanged_since: int) -> Stored | None:
        """Flags become (flags & ~clear) | bits, where all that was committed is known and nothing has to be waited for.

        None: ask the store.
        """
        index, mailbox = self.index, self.mailbox
        if index is None or self.is_stale or len(ranges) > RANGE.size * RANGES_AT_ONCE:
            return None
        modseq = mailbox.highestmodseq + 1
        restored = index.stored(ranges, clear, bits, modseq, unchanged_since)
        if restored is None:
            return None
        changed = restored.changed
        log = b""
        if changed:
            log = b"".join([FLAG_CHANGE.pack(*pair, clear, bits, modseq) for pair in RANGE.iter_unpack(ranges)])
        if not self.account.log_flags(mailbox.id, modseq - 1, log, restored.unseen, restored.deleted):
            return None
        if not changed:
            return Stored(b"", b"", 0)
        self._advance(msgspec.structs.replace(mailbox, highestmodseq=modseq), restored.after)
        return Stored(changed, b"", modseq)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._work = asyncio.get_running_loop().create_task(self._read(work))
        self._work.add_done_callback(self._done)
        return self._work

    async def _read(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._work = None  # not in _done(): whoever waits may be called before it

    def _done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()  # whoever waits for the task has it too
        if error is None:
            self._wake()  # something may have come meanwhile
        elif isinstance(error, StoreError):
            logger.warning("mailbox %r of %s: %s", self.mailbox.name, self.account.name, error)
        else:
            logger.error("mailbox %r of %s", self.mailbox.name, self.account.name, exc_info=error)

    async def _read_changes(self) -> None:
        before = self.mailbox
        try:
            changes = await self.account.changes(before.id, before.highestmodseq)
        except NoSuchMailbox:
            self.vanish()
            return
        mailbox = changes.mailbox
        if mailbox.highestmodseq <= self.mailbox.highestmodseq:
            self.newest_modseq = self.mailbox.highestmodseq  # it was told too much, or apply() was faster
            return
        if self.index is None:
            if changes.expunged or not changes.complete or _has_below(changes.changed, before.uidnext):
                await self._read_index()
            else:
                self._advance(mailbox, None)
        elif changes.complete:
            self._advance(mailbox, self.index.patched(b"".join(changes.changed), changes.expunged))
        else:
            snapshot = await self.account.snapshot(before.id)
            self._advance(snapshot.mailbox, Index(snapshot.chunks))

    async def _read_index(self) -> None:
        """The index as it is now; and as it was at the moment of self.mailbox, which the views were told."""
        before = self.mailbox
        try:
            snapshot = await self.account.snapshot(before.id)
            index = told = Index(snapshot.chunks)
            if snapshot.mailbox.highestmodseq > before.highestmodseq:
                changes = await self.account.changes(before.id, before.highestmodseq)
                told = Index(_before(snapshot.chunks, changes.expunged, before.uidnext))
        except NoSuchMailbox:
            self.vanish()
            return
        self._load_views(told)
        self._advance(snapshot.mailbox, index)

    def _load_views(self, told: Index) -> None:
        for view in self.views:
            view.loaded(told)

    def _advance(self, mailbox: Mailbox, index: Index | None) -> None:
        self.mailbox = mailbox
        self.index = index
        self.newest_modseq = max(self.newest_modseq, mailbox.highestmodseq)
        self._announce()

    def vanish(self) -> None:
        """The mailbox was deleted: to its sessions all messages are expunged (RFC 2180 §3.3)."""
        self.gone = True
        if self.index is None:
            self._load_views(Index(_before([], _count_ranges(self.mailbox.messages), UID_MAX)))
        self.mailbox = msgspec.structs.replace(self.mailbox, messages=0, unseen=0, deleted=0, octets=0)
        self.index = EMPTY
        self._announce()

    def _announce(self) -> None:
        for listener in list(self._waiters):
            try:
                listener.mailbox_changed()
            except Exception:
                logger.exception("a session failed on a change of its mailbox")


def _count_ranges(messages: int) -> bytes:
    return RANGE.pack(1, messages) if messages else b""


def _below(ranges: bytes, uid: int) -> Iterator[int]:
    """The UIDs of the ranges that are below that one."""
    for first, last in RANGE.iter_unpack(ranges):
        yield from range(first, min(last + 1, uid))


def _has_below(chunks: list[bytes], uid: int) -> bool:
    return any(int.from_bytes(chunk[:4], "little") < uid for chunk in chunks)


def _before(chunks: list[bytes], gone: bytes, uidnext: int) -> list[bytes]:
    """The records below uidnext, and such in place of those expunged since: their numbers count, their mail is gone."""
    ghosts = b"".join(RECORD.pack(uid, 0, 0, 0, 0, 0, 0, 0) for uid in _below(gone, uidnext))
    records = b"".join(split_records(chunk, RANGE.pack(uidnext, UID_MAX))[0] for chunk in chunks)
    if ghosts:
        records = diff_records(ghosts, records, True)[2]
    return [records[at : at + CHUNK_OCTETS] for at in range(0, len(records), CHUNK_OCTETS)]
