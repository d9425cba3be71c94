"""One account on the disk: everything a session or a delivery may ask of it, in transactions.

    Owns      AccountFile
    Flow      AccountFile(directory) → any method, each one transaction → close()
    Files     <directory>/store.db, large/
    Limits    settings.mailboxes, quota of each delivery
    Errors    StoreError kinds only
    Blocking  everything: the loop asks through store.py; a command-line tool may call it as it is
    Bugs      none known

One thread at a time, any thread; any number of AccountFile objects, in any process, may be open on one account.
"""

from __future__ import annotations

import fcntl
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import apsw

from gateway._native import record_column
from gateway.config_store import StoreConfig
from gateway.store import annotation
from gateway.store.content import Contents, Prepared, make_directory
from gateway.store.database import Database, errors
from gateway.store.errors import (
    MessageGone,
    NoSuchAccount,
    NoSuchMailbox,
    NotNow,
    OverQuota,
    StoreBusy,
    StoreError,
)
from gateway.store.index import (
    SETTLED_AT_ONCE,
    IndexRow,
    all_rows,
    first_unseen,
    load,
    load_after,
    load_newest,
    log_flags,
    record_of,
    row_of,
    settle_flags,
)
from gateway.store.large import LargeContent
from gateway.store.mailboxes import Mailboxes
from gateway.store.messages import Addition, Messages
from gateway.store.model import (
    ALL_UIDS,
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
    Slices,
    Snapshot,
    Stored,
    Usage,
    ranges_of,
    records_of,
)
from gateway.store.search import SearchIndex
from gateway.store.search_database import SearchDatabase
from gateway.store.texts import Texts
from gateway.store.upload import NewMessage, prepare
from gateway.store.url_keys import make_url_key, reset_url_keys, url_key

CLOCK_S = 86_400  # a clock is set back by less
_ANY_TIME = nullcontext()
_READERS: dict[str, Callable[[Contents, Sequence[int]], Any]] = {
    "content": Contents.read,
    "header": Contents.headers,
    "facts": Contents.facts,
    "joined facts": Contents.joined_facts,
}


class AccountFile:
    """See the module.  Mailboxes are named by name where they are looked up, by id where they are worked on."""

    def __init__(self, directory: Path, settings: StoreConfig, *, create: bool = False) -> None:
        """create: the account is made when it does not exist; without it, NoSuchAccount."""
        self.directory = directory
        self._syncs_flags = settings.flags_sync_s == 0.0
        path = directory / "store.db"
        if create and not path.exists():
            with errors(directory):
                make_directory(directory)
        self._lock = _share(directory)
        try:
            self._database = Database(path, create=create)
        except FileNotFoundError:
            os.close(self._lock)
            raise NoSuchAccount("the account has no mailboxes") from None
        except BaseException:
            os.close(self._lock)
            raise
        self._contents = Contents(self._database)
        self._messages = Messages(self._database, self._contents)
        self._search_database = SearchDatabase(directory)
        self._texts = Texts(self._search_database, self._database, self._contents)
        self._search = SearchIndex(
            self._search_database, self._database, self._contents, self._texts
        )
        self._mailboxes = Mailboxes(self._database, self._contents, settings.mailboxes)
        with errors(path):
            begun = self._database.row("SELECT 1 FROM mailbox WHERE id=0")
        if begun is None:
            with self._database.write():
                self._mailboxes.begin(settings.initial_mailboxes)

    @property
    def database(self) -> Database:
        """For check.py and the like, within this package."""
        return self._database

    def close(self) -> None:
        self._search_database.close()
        self._database.close()
        os.close(self._lock)

    def sync(self) -> None:
        """Flags that were changed are durable now."""
        self._database.sync()

    # -- deliveries ----------------------------------------------------------------------------------------------

    def deliver(
        self, deliveries: Sequence[Delivery], turn: AbstractContextManager[Any] = _ANY_TIME
    ) -> list[Delivered | StoreError]:
        """All in one transaction; durable when this returns.  What one message does wrong is its own affair.

        turn: held while there is work for the CPU, never while the disk is waited for.
        """
        results: list[Delivered | StoreError] = []
        contents = [_content_of(delivery) for delivery in deliveries]
        with turn:
            prepared = [
                self._prepare(delivery, content)
                for delivery, content in zip(deliveries, contents, strict=True)
            ]
        prepared = [self._on_disk(one) for one in prepared]
        try:
            with self._database.write(), turn:
                results = self._add_all(deliveries, prepared)
        except StoreError as error:
            results = [error] * len(deliveries)
        for one, result in zip(prepared, results, strict=True):
            if isinstance(result, StoreError) and isinstance(one, Prepared):
                self._contents.discard(one)
        return results

    def _prepare(self, delivery: Delivery, content: Slices | StoreError) -> Prepared | StoreError:
        if isinstance(content, StoreError):
            return content
        try:
            return self._contents.prepare(content, delivery.prefix, delivery.origin)
        except StoreError as error:
            return error
        except Exception as error:  # a bug that this message woke
            return StoreError(f"{type(error).__name__}: {error}")

    def _on_disk(self, prepared: Prepared | StoreError) -> Prepared | StoreError:
        if isinstance(prepared, Prepared):
            try:
                self._contents.write_large(prepared)
            except StoreError as error:
                return error
        return prepared

    def _add_all(
        self, deliveries: Sequence[Delivery], prepared: Sequence[Prepared | StoreError]
    ) -> list[Delivered | StoreError]:
        results: list[Delivered | StoreError] = []
        groups: dict[int, tuple[IndexRow, list[int], list[Addition]]] = {}
        rows: dict[tuple[str, str, bool], IndexRow | StoreError] = {}
        usage: Usage | None = None
        now = int(time.time())
        for index, (delivery, one) in enumerate(zip(deliveries, prepared, strict=True)):
            if isinstance(one, StoreError):
                results.append(one)
                continue
            wanted = (delivery.mailbox, delivery.fallback, delivery.create)
            row = rows.get(wanted)
            if row is None:
                row = rows[wanted] = self._target(delivery)
            if isinstance(row, StoreError):
                results.append(row)
                continue
            if delivery.again and (before := self._delivered_before(row, delivery)):
                self._contents.discard(one)
                results.append(before)
                continue
            try:
                row.bits(delivery.flags)
            except StoreError as error:
                results.append(error)
                continue
            if delivery.quota.octets or delivery.quota.messages:
                if usage is None:
                    usage = self._usage()
                after = Usage(usage.octets + one.size, usage.messages + 1)
                if exceeded := over_quota(after, delivery.quota):
                    results.append(exceeded)
                    continue
                usage = after
            date = delivery.internal_date
            addition = Addition(one, delivery.flags, now if date is None else date)
            # Two names may mean one mailbox ("inbox"): it must not be worked on twice.
            group = groups.setdefault(row.id, (row, [], []))
            group[1].append(index)
            group[2].append(addition)
            results.append(StoreError("not stored"))
        for row, indices, additions in groups.values():
            for index, delivered in zip(indices, self._messages.add(row, additions), strict=True):
                results[index] = delivered
        return results

    def _target(self, delivery: Delivery) -> IndexRow | StoreError:
        try:
            return self._mailboxes.find(delivery.mailbox)
        except StoreError as error:
            if not delivery.create and not delivery.fallback:
                return error
        try:
            if delivery.create:
                return self._mailboxes.create(delivery.mailbox)
            return self._mailboxes.find(delivery.fallback)
        except StoreError as error:
            return error

    def _delivered_before(self, row: IndexRow, delivery: Delivery) -> Delivered | None:
        """Where the same delivery put it, before a crash took our record of that."""
        for records in load_newest(self._database, row):
            saved = max(array("I", record_column(records, "save_date")))
            if saved < delivery.received_at - CLOCK_S:
                break  # save dates ascend, but for clocks that were set back
            for record in records_of(records):
                if record.save_date >= delivery.received_at and self._contents.came_from(
                    record.message, delivery.origin
                ):
                    return Delivered(
                        row.name,
                        row.id,
                        record.uid,
                        row.uidvalidity,
                        record.modseq,
                        record.message,
                    )
        return None

    # -- mailboxes -----------------------------------------------------------------------------------------------

    def mailboxes(self) -> list[Mailbox]:
        """All of them, by name; also names that are only subscribed, or have something below them."""
        with self._database.read():
            return [row.mailbox() for row in all_rows(self._database)]

    def mailbox(self, name: str) -> Mailbox:
        """Raises NoSuchMailbox."""
        with self._database.read():
            return self._mailboxes.find(name).mailbox()

    def mailbox_by_id(self, mailbox: int) -> Mailbox:
        """Raises NoSuchMailbox when it was deleted."""
        with self._database.read():
            return row_of(self._database, mailbox).mailbox()

    def create(self, name: str, special_use: Iterable[str] = ()) -> Mailbox:
        with self._database.write():
            return self._mailboxes.create(name, special_use).mailbox()

    def delete(self, name: str) -> Mailbox:
        with self._database.write():
            return self._mailboxes.delete(name).mailbox()

    def rename(self, old: str, new: str) -> None:
        with self._database.write():
            if old.upper() == "INBOX":  # RFC 9051 §6.3.6: its messages move, it stays
                inbox = self._mailboxes.find(old)
                target = self._mailboxes.create(new)
                self._messages.copy(inbox.id, target.id, ALL_UIDS, move=True)
                annotation.copy(self._database, inbox.id, target.id)
            else:
                self._mailboxes.rename(old, new)

    def subscribe(self, name: str, subscribed: bool = True) -> None:
        with self._database.write():
            self._mailboxes.subscribe(name, subscribed)

    def set_special_use(self, name: str, uses: Iterable[str]) -> None:
        with self._database.write():
            self._mailboxes.set_special_use(name, uses)

    def usage(self) -> Usage:
        """What counts against the quota."""
        with self._database.read():
            return self._usage()

    def _usage(self) -> Usage:
        row = self._database.row("SELECT sum(octets), sum(messages) FROM mailbox")
        return Usage(*row) if row is not None else Usage(0, 0)

    # -- messages ------------------------------------------------------------------------------------------------

    def snapshot(self, mailbox: int) -> Snapshot:
        """The whole index of a mailbox, of one moment: 48 octets a message."""
        with self._database.read():
            row = row_of(self._database, mailbox)
            return Snapshot(row.mailbox(), list(load(self._database, row)))

    def record(self, mailbox: int, uid: int) -> Record | None:
        """The message with that UID; None: there is none."""
        with self._database.read():
            return record_of(self._database, row_of(self._database, mailbox), uid)

    def records_after(self, mailbox: int, uid: int, chunks: int) -> tuple[list[bytes], bool]:
        """Packed records above that UID, about so many chunks of them; False: that is all."""
        with self._database.read():
            return load_after(self._database, row_of(self._database, mailbox), uid, chunks)

    def changes(self, mailbox: int, modseq: int) -> Changes:
        with self._database.read():
            return self._messages.changes(mailbox, modseq)

    def first_unseen(self, mailbox: int) -> tuple[int, int]:
        """(messages before it, UID) of the first message without \\Seen; (messages, 0) when all are seen."""
        with self._database.read():
            return first_unseen(self._database, row_of(self._database, mailbox))

    def claim_recent(self, mailbox: int) -> int:
        """The first UID this session is told of as \\Recent; no other session will be (RFC 3501 §2.3.2)."""
        with self._database.read():
            row = row_of(self._database, mailbox)
            if row.recent_uid >= row.uidnext:
                return row.uidnext
        with self._database.write(sync=False):
            row = row_of(self._database, mailbox)
            first, row.recent_uid = row.recent_uid, row.uidnext
            self._database.execute(
                "UPDATE mailbox SET recent_uid=? WHERE id=?", (row.uidnext, row.id)
            )
            return first

    def store(
        self,
        mailbox: int,
        ranges: bytes,
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        replace: Sequence[str] | None = None,
        unchanged_since: int = NEVER,
    ) -> Stored:
        with self._database.write(sync=self._syncs_flags):
            return self._messages.store(
                mailbox,
                ranges,
                add=add,
                remove=remove,
                replace=replace,
                unchanged_since=unchanged_since,
            )

    def log_flags(self, mailbox: int, modseq: int, log: bytes, unseen: int, deleted: int) -> bool:
        """See index.log_flags(): waits for nothing.  Nothing to log: only the MODSEQ is compared."""
        if self._syncs_flags:
            raise NotNow
        if not log:
            with errors(self._database.path):
                sql = "SELECT highestmodseq FROM mailbox WHERE id=?"
                return self._database.row(sql, (mailbox,)) == (modseq,)
        change = mailbox, modseq, log, unseen, deleted
        if log_flags(self._database, *change):
            return True
        with self._database.write_now():
            row = row_of(self._database, mailbox)
            if not settle_flags(self._database, row, SETTLED_AT_ONCE):
                return False
            row.save(self._database)
        return log_flags(self._database, *change)

    def expunge(self, mailbox: int, ranges: bytes, *, deleted_only: bool = True) -> Expunged:
        with self._database.write():
            return self._messages.expunge(mailbox, ranges, deleted_only=deleted_only)

    def copy(
        self,
        source: int,
        target: int,
        ranges: bytes,
        *,
        move: bool = False,
        quota: Quota | None = None,
    ) -> Copied:
        with self._database.write():
            copied = self._messages.copy(source, target, ranges, move=move)
            if quota is not None and (exceeded := over_quota(self._usage(), quota)):
                raise exceeded
            return copied

    def read(self, keys: Sequence[int]) -> list[Content | StoreError]:
        """The messages; what cannot be had is the error that says why."""
        with self._database.read():
            return self._contents.read(keys)

    def headers(self, keys: Sequence[int]) -> list[bytes | StoreError]:
        """Header sections, with their empty line."""
        with self._database.read():
            return self._contents.headers(keys)

    def facts(self, keys: Sequence[int]) -> list[bytes | StoreError]:
        """What mail.imap_facts packed at delivery."""
        with self._database.read():
            return self._contents.facts(keys)

    def columns(self, keys: Sequence[int], names: Sequence[str]) -> list[Any]:
        """What read(), headers() and facts() return, of one moment; names: "content", "header", "facts".

        "joined facts": bytes, or where some cannot be had like "facts".
        """
        contents = self._contents
        if len(names) == 1:  # one statement is of one moment anyhow
            try:
                return [_READERS[names[0]](contents, keys)]
            except (apsw.Error, OSError):
                with errors(self._database.path):
                    raise
        with self._database.read():
            return [_READERS[name](contents, keys) for name in names]

    def open_large(self, key: int) -> LargeContent | None:
        """The message to be read in slices, when its body is a file; None when read() is the way."""
        with self._database.read():
            return self._contents.open_large(key)

    def add(
        self,
        mailbox: int,
        messages: Sequence[tuple[bytes, Sequence[str], int, str, int]],
    ) -> list[Delivered]:
        """(content, flags, internal date, origin, UID or 0) of each; all of them or, with StoreError, none."""
        prepared = []
        try:
            for content, _, _, origin, _ in messages:
                prepared.append(self._contents.prepare([content], origin=origin))
                self._contents.write_large(prepared[-1])
            with self._database.write():
                return self._messages.add(
                    row_of(self._database, mailbox),
                    [
                        Addition(one, flags, date, uid)
                        for one, (_, flags, date, _, uid) in zip(prepared, messages, strict=True)
                    ],
                )
        except BaseException:
            for one in prepared:
                self._contents.discard(one)
            raise

    @property
    def large_directory(self) -> Path:
        """Where bodies are that have a file."""
        return self.directory / "large"

    def append(
        self, mailbox: int | str, messages: Sequence[NewMessage], quota: Quota | None = None
    ) -> list[Delivered]:
        """All of them, or with StoreError none (RFC 3502); mailbox: its id, or its name."""
        with self._new(messages) as additions, self._database.write():
            return self._add_new(mailbox, additions, quota)

    def replace(
        self, mailbox: int, message: NewMessage, source: int, uid: int, quota: Quota | None = None
    ) -> tuple[Delivered, Expunged]:
        """One message more in the mailbox, and that one less in source; or neither (RFC 8508)."""
        with self._new([message]) as additions, self._database.write():
            expunged = self._messages.expunge(source, ranges_of((uid,)), deleted_only=False)
            if not expunged.modseq:
                raise MessageGone("the message to be replaced was expunged")
            return self._add_new(mailbox, additions, quota)[0], expunged

    @contextmanager
    def _new(self, messages: Sequence[NewMessage]) -> Iterator[list[Addition]]:
        """Ready for a transaction; forgotten when that fails."""
        prepared: list[Prepared] = []
        now = int(time.time())
        try:
            for message in messages:
                prepared.append(prepare(self._contents, message))
            yield [
                Addition(one, message.flags, now if (at := message.internal_date) is None else at)
                for one, message in zip(prepared, messages, strict=True)
            ]
        except BaseException:
            for one in prepared:
                self._contents.discard(one)
            raise

    def _add_new(
        self, mailbox: int | str, additions: list[Addition], quota: Quota | None
    ) -> list[Delivered]:
        if isinstance(mailbox, str):
            row = self._mailboxes.find(mailbox)
        else:
            row = row_of(self._database, mailbox)
        delivered = self._messages.add(row, additions)
        if quota and (quota.octets or quota.messages) and (exceeded := over_quota(self._usage(), quota)):
            raise exceeded
        return delivered

    def url_key(self, mailbox: int, *, make: bool = False) -> bytes | None:
        """What URLAUTH tokens of the mailbox are made with; make: a new one when it has none."""
        with self._database.read():
            key = url_key(self._database, mailbox)
        if key is None and make:
            with self._database.write():
                row_of(self._database, mailbox)
                key = url_key(self._database, mailbox) or make_url_key(self._database, mailbox)
        return key

    def reset_url_keys(self, mailbox: int | None) -> None:
        """URLs that were given out are worth nothing any more; None: of all mailboxes."""
        with self._database.write():
            reset_url_keys(self._database, mailbox)

    def set_uidvalidity(self, mailbox: int, uidvalidity: int) -> Mailbox:
        """For an import that keeps UIDs; nothing changes when the mailbox ever had a message."""
        with self._database.write():
            row = row_of(self._database, mailbox)
            if row.uidnext == 1:
                self._database.execute(
                    "UPDATE mailbox SET uidvalidity=? WHERE id=?", (uidvalidity, row.id)
                )
                self._database.execute(
                    "UPDATE mailbox SET uidvalidity=max(uidvalidity, ?) WHERE id=0", (uidvalidity,)
                )
            return row_of(self._database, mailbox).mailbox()

    def raise_uidnext(self, mailbox: int, uidnext: int) -> None:
        """UIDs below were given out elsewhere: they are not given out again."""
        with self._database.write():
            self._database.execute(
                "UPDATE mailbox SET uidnext=max(uidnext, ?) WHERE id=?", (uidnext, mailbox)
            )

    def disk_octets(self) -> tuple[int, int]:
        """(octets of the database file, octets of them that are free for new messages)."""
        with self._database.read():
            return self._database.page_octets_free

    def adopt(self, keys: Sequence[int], mailbox: str) -> None:
        """Messages that no mailbox has are in this one afterwards; it is made when there is none."""
        with self._database.write():
            try:
                row = self._mailboxes.find(mailbox)
            except NoSuchMailbox:
                row = self._mailboxes.create(mailbox)
            self._messages.adopt(row, keys)

    def search(self, keys: array[int], where: str, text: str) -> bytes:
        """The mask of the first of these messages, as many as there was time for; see search.Matcher."""
        with self._database.read():
            return self._search.search(keys, where, text)

    def texts(self, kind: str, keys: array[int]) -> bytes | None:
        """See texts.py."""
        with self._database.read():
            return self._texts.texts(kind, keys)

    def search_index_pays(self) -> bool:
        """Searches read so much that update_search() pays."""
        with self._database.read():
            return self._search.pays()

    def update_search(self) -> bool:
        """Index some more messages for search(); False when all are."""
        with self._database.read():
            return self._search.update()

    def reclaim(self) -> bool:
        """Remove octets that no message has any more, a bounded number; False when none are left."""
        return self._contents.reclaim(self._texts.forget)


def _share(directory: Path) -> int:
    """A descriptor that says that the account is in use: check.py replaces its file only without."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoSuchAccount("the account has no mailboxes") from None
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StoreBusy(f"{directory} is being repaired") from None
    return fd


def _content_of(delivery: Delivery) -> Slices | StoreError:
    try:
        return delivery.content() if callable(delivery.content) else delivery.content
    except Exception as error:  # the spool's, about octets it cannot read
        return StoreError(f"{type(error).__name__}: {error}")


def over_quota(usage: Usage, quota: Quota) -> OverQuota | None:
    if quota.octets and usage.octets > quota.octets:
        return OverQuota(f"the account may keep {quota.octets} octets")
    if quota.messages and usage.messages > quota.messages:
        return OverQuota(f"the account may keep {quota.messages} messages")
    return None
