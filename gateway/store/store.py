"""The message store of one worker: what POP3, IMAP, deliveries and tools ask, without waiting on the loop.

    Owns      Store, Account
    Flow      Store.deliver(delivery, done)            → a thread → done(Delivered | StoreError)
              await Store.account(name).snapshot(id)   → a thread → the result
              Store.notices.subscribe(account, listener)
    Files     <store>/<aa>/<account>/: store.db (SQLite: index, headers, facts, small bodies), large/ (bodies)
    Limits    [store] of the configuration; quotas come with each delivery
    Errors    StoreError kinds; each concerns one message or one account, the rest goes on
    Blocking  nothing here; work on one account is done in the order it was asked for, by one thread at a time
    Standards RFC 9051, RFC 1939; RFC 7162 (MODSEQ), RFC 8474 (object ids), RFC 9208 (quota)

What a reader should know
  * An account is a name (UTF-8, opaque; whoever asks has made sure that it exists).  It has mailboxes, INBOX always.
    Mailbox.id names one for good: it survives renaming and is never used again.
  * A message in a mailbox is a Record (model.py): UID, flag bits, MODSEQ, dates, size, and `message`, the key of its
    octets.  A mailbox is its records in ascending order of UID, handed out as packed chunks of bytes that never
    change: sessions share them, the kernels of gateway._native (find_records(), record_column(), store_flags() …)
    work on them, records_of() makes objects of them where there are few.
  * A session takes a snapshot() once, then follows: when a Notice says that a mailbox has a higher MODSEQ, or before it
    answers a command, it asks changes(id, the modseq it knows), which costs next to nothing when there are none.
    RFC 2180 §4.1: octets of a message that others expunged may be gone; reading it then is MessageGone.
  * To cost nothing for large maildrops, login needs only mailbox(): counts, octets and unseen are kept.
  * Everything is durable when done() is called or the awaitable returns; flags are flags_sync_s later.  Deliveries that
    wait for one account share one transaction and one sync; so do the changes of a STORE, COPY or EXPUNGE over any
    number of messages.
  * UIDs as arguments are ranges_of([…]), or ALL_UIDS.

    store = Store(config.store_dir, config.store, notices)      # on the running loop
    store.deliver(Delivery("alice@example.test", [content]), done)
    account = store.account("alice@example.test")
    inbox = await account.mailbox("INBOX")                      # .messages, .octets: STAT
    snapshot = await account.snapshot(inbox.id)
    records = [record for chunk in snapshot.chunks for record in records_of(chunk)]
    [content] = await account.read([records[0].message])        # .header + .body, or a StoreError
    await account.expunge(inbox.id, ranges_of([records[0].uid]), deleted_only=False)
    await store.close()

Another implementation (a database server) has to provide these two classes; no SQL and no path leaves gateway/store.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gateway._native import join_texts
from gateway.config_store import StoreConfig
from gateway.store import account_sharing
from gateway.store.account import AccountFile
from gateway.store.account_sharing import Access, Listing
from gateway.store.annotation import Annotation
from gateway.store.chores import Chore
from gateway.store.content import LARGE_OCTETS
from gateway.store.errors import NotNow, StoreError
from gateway.store.large import LargeContent
from gateway.store.maildrop import MaildropLock
from gateway.store.model import (
    NEVER,
    Changes,
    Content,
    Copied,
    Delivered,
    Delivery,
    Expunged,
    Mailbox,
    Quota,
    Record,
    Snapshot,
    Stored,
    Usage,
)
from gateway.store.notices import Notices
from gateway.store.pool import DeliveryDone, Pool
from gateway.store.search import BODY, TEXT
from gateway.store.shares import Shares
from gateway.store.upload import NewMessage, Upload

T = TypeVar("T")

FEW_NAMES = 1000  # are read without a thread
KEYS_AT_ONCE = 8192  # of a search, in one turn of a thread


class Store:
    """The store of one worker; several workers may have theirs on the same directory."""

    def __init__(
        self, directory: Path, settings: StoreConfig, notices: Notices | None = None
    ) -> None:
        """To be called on the running loop."""
        self.notices = notices or Notices()
        self._pool = Pool(directory, settings, self.notices.publish)
        self._shares = Shares(directory)
        self._syncs = Chore(self._pool, AccountFile.sync, settings.flags_sync_s, aside=True)
        self._reclaims = Chore(self._pool, AccountFile.reclaim, settings.reclaim_s)

    def deliver(self, delivery: Delivery, done: DeliveryDone) -> None:
        """done(Delivered), durably, or done(StoreError); the account is made when there is none.

        done is called on the loop, maybe before this returns.
        """
        self._pool.deliver(delivery, done)

    def account(self, name: str, *, create: bool = True) -> Account:
        """What a session works with; costs nothing, and nothing need be closed.

        create: an account that never got mail is made by the first question; without it, NoSuchAccount.
        """
        return Account(self._pool, name, create, self._shares, self._syncs, self._reclaims)

    async def close(self) -> None:
        """Finish what was asked for, then close all files; whatever comes later is StoreBusy."""
        self._syncs.close()  # closing the files syncs them
        self._reclaims.close()
        await self._pool.close()
        self._shares.close()


def _storing(
    mailbox: int,
    ranges: bytes,
    add: Sequence[str],
    remove: Sequence[str],
    replace: Sequence[str] | None,
    unchanged_since: int,
) -> Callable[[AccountFile], Stored]:
    return lambda file: file.store(
        mailbox,
        ranges,
        add=add,
        remove=remove,
        replace=replace,
        unchanged_since=unchanged_since,
    )


def _stored(mailbox: int) -> Callable[[Stored], list[tuple[int, int]]]:
    return lambda stored: [(mailbox, stored.modseq)] if stored.modseq else []


def _appended(delivered: list[Delivered]) -> list[tuple[int, int]]:
    return [(delivered[0].mailbox_id, delivered[0].modseq)] if delivered else []


def _ignored(_: int) -> None:
    return


def _nothing(_: object) -> list[tuple[int, int]]:
    return []


class Account:
    """One account, asked from the loop.  Every method may raise StoreError kinds."""

    def __init__(
        self,
        pool: Pool,
        name: str,
        create: bool,
        shares: Shares,
        syncs: Chore,
        reclaims: Chore,
    ) -> None:
        self.name = name
        self._pool = pool
        self._create = create
        self._shares = shares
        self._syncs = syncs
        self._reclaims = reclaims

    async def _run(
        self,
        work: Callable[[AccountFile], T],
        changed: Callable[[Any], list[tuple[int, int]]] = _nothing,
        *,
        quick: bool = False,
    ) -> T:
        """changed: the (mailbox id, modseq) pairs that others must hear of; quick: a few rows are read, no more."""
        return await self._ask(work, changed, quick=quick)

    def _ask(
        self,
        work: Callable[[AccountFile], T],
        changed: Callable[[Any], list[tuple[int, int]]] = _nothing,
        *,
        quick: bool = False,
    ) -> asyncio.Future[T]:
        """The same, begun at once."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T, error: StoreError | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._pool.submit(self.name, work, done, create=self._create, notices=changed, quick=quick)
        return future

    # -- mailboxes -----------------------------------------------------------------------------------------------

    async def mailboxes(self) -> list[Mailbox]:
        """All of them, by name; those that are not selectable are only subscribed to, or have others below."""
        return await self._run(AccountFile.mailboxes)

    async def mailbox(self, name: str) -> Mailbox:
        """NoSuchMailbox when there is none to select."""
        return await self._run(lambda file: file.mailbox(name), quick=True)

    async def mailbox_by_id(self, mailbox: int) -> Mailbox:
        """The same for one that is known; NoSuchMailbox when it was deleted meanwhile."""
        return await self._run(lambda file: file.mailbox_by_id(mailbox), quick=True)

    async def create(self, name: str, special_use: Iterable[str] = ()) -> Mailbox:
        """A new mailbox, and those it lies in (RFC 9051 §6.3.4)."""
        return await self._run(lambda file: file.create(name, special_use), _list_changed)

    async def delete(self, name: str) -> Mailbox:
        """It is gone with its messages; what lies below it stays (RFC 9051 §6.3.5)."""
        deleted = await self._run(
            lambda file: file.delete(name), lambda gone: [(0, 0), (gone.id, gone.highestmodseq + 1)]
        )
        self._reclaims.note(self.name)
        return deleted

    async def rename(self, old: str, new: str) -> None:
        """What lies below comes along; the messages of INBOX move, INBOX stays (RFC 9051 §6.3.6)."""
        await self._run(lambda file: file.rename(old, new), _list_changed)

    async def subscribe(self, name: str, subscribed: bool = True) -> None:
        """The name need not exist (RFC 9051 §6.3.7)."""
        await self._run(lambda file: file.subscribe(name, subscribed), _list_changed)

    async def set_special_use(self, name: str, uses: Iterable[str]) -> None:
        """RFC 6154 §4."""
        await self._run(lambda file: file.set_special_use(name, uses), _list_changed)

    async def usage(self) -> Usage:
        """What counts against the quota."""
        return await self._run(AccountFile.usage)

    async def lock_maildrop(self, login_delay_s: float = 0.0) -> tuple[MaildropLock, Mailbox]:
        """INBOX for one POP session alone; StoreBusy while another has it, TooSoon so shortly after the last."""
        return await self._run(
            lambda file: (
                MaildropLock(file.directory / "maildrop.lock", login_delay_s),
                file.mailbox("INBOX"),
            )
        )

    # -- access rights and annotations; user: who asks, empty is the owner -----------------------------------------

    async def listing(
        self, user: str = "", prefix: str = ""
    ) -> tuple[list[Listing], dict[int, frozenset[str]]]:
        """All mailboxes and names that begin so, in no order; with a user, what he may look up, and his rights."""
        return await self._run(lambda file: account_sharing.listing(file, user, prefix))

    async def subscriptions(self, prefix: str = "") -> list[str]:
        """Names that the owner subscribed to and that begin so; they need not exist."""
        few = await self._run(
            lambda file: account_sharing.subscriptions(file, prefix, FEW_NAMES + 1), quick=True
        )
        if len(few) <= FEW_NAMES:
            return few
        return await self._run(lambda file: account_sharing.subscriptions(file, prefix))

    async def rows(self, mailboxes: Sequence[int]) -> list[Listing]:
        """These mailboxes now, in no order; those that are gone are left out."""
        return await self._run(lambda file: account_sharing.rows(file, mailboxes))

    async def access(self, name: str, user: str = "") -> Access:
        """The mailbox of that name, if there is one, and what the user may do with it."""
        return await self._run(lambda file: account_sharing.access(file, name, user), quick=True)

    async def sharers(self) -> list[str]:
        """The accounts that may have something this one can see."""
        return await self._run(lambda _: self._shares.owners(self.name))

    async def acl(self, mailbox: int) -> dict[str, str]:
        """Identifier, with "-" in front for what is taken away, → rights (RFC 4314)."""
        return await self._run(lambda file: account_sharing.acl(file, mailbox))

    async def set_acl(
        self, mailbox: int, identifier: str, how: str, rights: frozenset[str], entries_max: int
    ) -> None:
        """Grant rights (how "+"), take them away ("-"), or set them ("")."""
        await self._run(
            lambda file: account_sharing.set_acl(
                file, self.name, self._shares, mailbox, identifier, how, rights, entries_max
            ),
            _list_changed,
        )

    async def annotations(self, mailbox: int | None, user: str) -> list[Annotation]:
        """Of one mailbox (0: of the server), or of all (None); what the user may see (RFC 5464)."""
        return await self._run(lambda file: account_sharing.read_annotations(file, mailbox, user))

    async def set_annotations(
        self,
        mailbox: int,
        user: str,
        values: Mapping[str, bytes | None],
        entries_max: int,
        octets_max: int,
    ) -> None:
        """Set entries, remove those that are None; all of them or none."""
        await self._run(
            lambda file: account_sharing.write_annotations(
                file, mailbox, user, values, entries_max, octets_max
            ),
            _list_changed,
        )

    async def annotation_changes(self, since: int, user: str) -> tuple[int, list[tuple[int, str]]]:
        """(what to ask with next time, (mailbox, entry) of what changed since); -1: only where it stands."""
        return await self._run(lambda file: account_sharing.annotation_changes(file, since, user))

    # -- what is in a mailbox ------------------------------------------------------------------------------------

    async def snapshot(self, mailbox: int) -> Snapshot:
        """The mailbox and the packed records of all its messages, of one moment."""
        return await self._run(lambda file: file.snapshot(mailbox))

    async def records_after(
        self, mailbox: int, uid: int = 0, chunks: int = 64
    ) -> tuple[list[bytes], bool]:
        """Packed records above that UID, a bounded number (64 chunks: 1.5 MiB); False: that is all."""
        return await self._run(lambda file: file.records_after(mailbox, uid, chunks))

    async def changes(self, mailbox: int, modseq: int) -> Changes:
        """What happened after that MODSEQ."""
        return await self._run(lambda file: file.changes(mailbox, modseq))

    async def first_unseen(self, mailbox: int) -> tuple[int, int]:
        """(messages before it, UID) of the first message without \\Seen; (messages, 0) when all are seen."""
        return await self._run(lambda file: file.first_unseen(mailbox))

    async def claim_recent(self, mailbox: int) -> int:
        """The first UID that this session, and no other, is told of as \\Recent (RFC 3501 §2.3.2)."""
        return await self._run(lambda file: file.claim_recent(mailbox))

    # -- octets of messages; keys are Record.message -------------------------------------------------------------

    async def read(self, keys: Sequence[int]) -> list[Content | StoreError]:
        """The messages in that order; ask for about a megabyte at a time, others wait meanwhile."""
        return await self._run(lambda file: file.read(keys))

    async def record(self, mailbox: int, uid: int) -> Record | None:
        """The message with that UID; None: there is none."""
        return await self._run(lambda file: file.record(mailbox, uid))

    async def headers(self, keys: Sequence[int]) -> list[bytes | StoreError]:
        """Header sections with their empty line; bodies are not touched."""
        return await self._run(lambda file: file.headers(keys))

    async def facts(self, keys: Sequence[int]) -> list[bytes | StoreError]:
        """What mail.imap_facts packed at delivery: section(packed, ENVELOPE) and the like."""
        return await self._run(lambda file: file.facts(keys))

    def columns(
        self, keys: Sequence[int], names: Sequence[str], work: Callable[[list[Any]], T]
    ) -> asyncio.Future[T]:
        """work(columns) as it returns in the store's thread; begun at once, so that the next is read while one is sent.

        names: "content" (Content), "header", "facts" (bytes); each column has a value or a StoreError for each key.
        "joined facts" are one bytes object where all could be had.
        """
        return self._ask(lambda file: work(file.columns(keys, names)))

    def columns_now(self, keys: Sequence[int], names: Sequence[str]) -> list[Any]:
        """The columns of a few small messages, if they are in memory and no thread is at work on the account.

        Raises NotNow: columns_then() is the way.
        """
        return self._pool.now(self.name, lambda file: file.columns(keys, names))

    def columns_then(
        self,
        keys: Sequence[int],
        names: Sequence[str],
        work: Callable[[list[Any]], T],
        done: Callable[[T, StoreError | None], None],
    ) -> None:
        """The same; done(result, None) or done(None, error) is called on the loop."""
        self._pool.submit(
            self.name,
            lambda file: work(file.columns(keys, names)),
            done,
            create=self._create,
            notices=_nothing,
        )

    async def open_large(self, key: int) -> LargeContent | None:
        """For a message that is too large for memory: checked, for close_large(); None: read() is the way."""
        large = await self._run(lambda file: file.open_large(key))
        if large is not None:
            try:
                while await self._run(lambda _: large.check()):
                    pass
            except BaseException:
                self.close_large(large)
                raise
        return large

    def with_large(
        self, large: LargeContent, work: Callable[[LargeContent], T]
    ) -> asyncio.Future[T]:
        """work(large) as it returns in the store's thread; begun at once.  It reads a few slices at most."""
        return self._ask(lambda _: work(large))

    def close_large(self, large: LargeContent) -> None:
        """Nothing more is read of it; what was asked for is read before."""

        def close(_: AccountFile) -> bool:
            large.close()
            return False

        self._background(close)

    async def search(
        self, keys: array[int], where: str, text: str, progress: Callable[[int], None] = _ignored
    ) -> bytes:
        """The mask of those of the messages that have the text as a substring in any case: an octet each, 0 or 1.

        where: search.TEXT, BODY, HEADER, or the name of a header field (RFC 9051 §6.4.4).  Done in slices: others get
        their turn.  progress: told after each how many messages were looked at.
        """
        masks = []
        done = 0
        while done < len(keys):
            some = keys[done : done + KEYS_AT_ONCE]
            masks.append(await self._run(lambda file: file.search(some, where, text)))  # noqa: B023
            done += len(masks[-1])
            progress(done)
        if where in (TEXT, BODY) and await self._run(AccountFile.search_index_pays):
            self._background(AccountFile.update_search)
        return b"".join(masks)

    async def texts(self, kind: str, keys: array[int]) -> bytes:
        """Of each message its text of that kind (texts.py), as pack_texts() packs them."""
        pieces = []
        for at in range(0, len(keys), KEYS_AT_ONCE):
            some = keys[at : at + KEYS_AT_ONCE]
            while (texts := await self._run(lambda file: file.texts(kind, some))) is None:  # noqa: B023
                pass
            pieces.append(texts)
        return pieces[0] if len(pieces) == 1 else join_texts(pieces)

    async def url_key(self, mailbox: int, *, make: bool = False) -> bytes | None:
        """What URLAUTH tokens of the mailbox are made with (RFC 4467 §4); make: a new one when it has none."""
        return await self._run(lambda file: file.url_key(mailbox, make=make))

    async def reset_url_keys(self, mailbox: int | None) -> None:
        """URLs that were given out are worth nothing any more; None: of all mailboxes."""
        await self._run(lambda file: file.reset_url_keys(mailbox))

    # -- changes -------------------------------------------------------------------------------------------------

    async def store(
        self,
        mailbox: int,
        ranges: bytes,
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        replace: Sequence[str] | None = None,
        unchanged_since: int = NEVER,
    ) -> Stored:
        """Change flags and keywords; replace: they are these afterwards (RFC 9051 §6.4.6, RFC 7162 §3.1.3).

        A message whose flags are so already keeps its MODSEQ.
        """
        stored: Stored = await self._run(
            _storing(mailbox, ranges, add, remove, replace, unchanged_since), _stored(mailbox)
        )
        if stored.modseq:
            self._syncs.note(self.name)
        return stored

    def store_then(
        self,
        mailbox: int,
        ranges: bytes,
        done: Callable[[Stored | StoreError], None],
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        replace: Sequence[str] | None = None,
        unchanged_since: int = NEVER,
    ) -> None:
        """The same; done is called on the loop, which costs less than a coroutine."""

        def answer(stored: Stored, error: StoreError | None) -> None:
            if error is None and stored.modseq:
                self._syncs.note(self.name)
            done(stored if error is None else error)

        self._pool.submit(
            self.name,
            _storing(mailbox, ranges, add, remove, replace, unchanged_since),
            answer,
            create=self._create,
            notices=_stored(mailbox),
        )

    def log_flags(self, mailbox: int, modseq: int, log: bytes, unseen: int, deleted: int) -> bool:
        """What store() does, at once, where it is known what that is: the mailbox was at that MODSEQ.

        log: packed changes (model.FLAG_CHANGE) with the next MODSEQ; empty: nothing would change.  unseen, deleted: how
        many more messages are without \\Seen, with \\Deleted.  False: ask store(); others changed the mailbox, there
        is something to wait for, or too much was logged.
        """
        try:
            done = self._pool.now(
                self.name, AccountFile.log_flags, mailbox, modseq, log, unseen, deleted
            )
        except NotNow:
            return False
        if done and log:
            self._syncs.note(self.name)
            self._pool.publish(self.name, [(mailbox, modseq + 1)])
        return done

    def upload_small(self, size: int) -> Upload | None:
        """For a message of that size, to be kept in memory until discard(); None: upload_large() is the way."""
        return Upload(self, size) if size <= LARGE_OCTETS and self.hold(size) else None

    def upload_large(self, room: Callable[[], None]) -> Upload:
        """For one that is written as it comes; room: called when there is room for more of it."""
        return Upload(self, 0, room)

    def hold(self, octets: int) -> bool:
        """Count octets of a message that is in memory (negative: is not any more); False: there are too many."""
        return self._pool.hold(octets)

    def submit(
        self, work: Callable[[AccountFile], Any], done: Callable[[Any, StoreError | None], None]
    ) -> None:
        """For this package: work(file) in a thread; done(result, None) or done(None, error) on the loop."""
        self._pool.submit(self.name, work, done, create=self._create, notices=_nothing)

    async def append(
        self, mailbox: int, messages: Sequence[NewMessage], quota: Quota | None = None
    ) -> list[Delivered]:
        """Add messages, all or none: one transaction and one sync (RFC 9051 §6.3.12, RFC 3502)."""
        return await self._run(
            lambda file: file.append(mailbox, messages, quota), _appended
        )

    def append_then(
        self,
        mailbox: str,
        messages: Sequence[NewMessage],
        done: Callable[[list[Delivered] | StoreError], None],
        quota: Quota | None = None,
    ) -> None:
        """The same to the mailbox of that name; done is called on the loop, which costs less than a coroutine."""

        def answer(delivered: list[Delivered], error: StoreError | None) -> None:
            if error is None:
                self._pool.publish(self.name, _appended(delivered))  # who is answered has heard of it
            done(delivered if error is None else error)

        self._pool.submit(
            self.name,
            lambda file: file.append(mailbox, messages, quota),
            answer,
            create=self._create,
            notices=_nothing,
        )

    async def replace(
        self, mailbox: int, message: NewMessage, source: int, uid: int, quota: Quota | None = None
    ) -> tuple[Delivered, Expunged]:
        """Add the message and remove that UID of mailbox source, or do neither (RFC 8508 §3.1)."""
        replaced = await self._run(
            lambda file: file.replace(mailbox, message, source, uid, quota),
            lambda both: [(mailbox, both[0].modseq), (source, both[1].modseq)],
        )
        self._reclaims.note(self.name)
        return replaced

    async def expunge(self, mailbox: int, ranges: bytes, *, deleted_only: bool = True) -> Expunged:
        """Remove messages; deleted_only: those with \\Deleted (RFC 9051 §6.4.3)."""
        expunged = await self._run(
            lambda file: file.expunge(mailbox, ranges, deleted_only=deleted_only),
            lambda gone: [(mailbox, gone.modseq)] if gone.modseq else [],
        )
        if expunged.modseq:
            self._reclaims.note(self.name)
        return expunged

    async def copy(
        self,
        source: int,
        target: int,
        ranges: bytes,
        *,
        move: bool = False,
        quota: Quota | None = None,
    ) -> Copied:
        """COPY or MOVE, all or nothing; no octets are copied (RFC 9051 §6.4.7, §6.4.8)."""
        return await self._run(
            lambda file: file.copy(source, target, ranges, move=move, quota=quota),
            lambda copied: (
                [(target, copied.modseq)]
                + ([(source, copied.expunged_modseq)] if copied.expunged_modseq else [])
                if copied.target
                else []
            ),
        )

    def _background(self, work: Callable[[AccountFile], bool]) -> None:
        """work is done in small steps, between what others ask for, until it returns False."""

        def done(more: bool, error: StoreError | None) -> None:
            if more and error is None:
                self._background(work)

        self._pool.submit(self.name, work, done, create=False, notices=_nothing)


def _list_changed(_: object) -> list[tuple[int, int]]:
    return [(0, 0)]
