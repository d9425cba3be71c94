"""A mailbox as one session knows it: which message has which number, and what it has to be told.

    Owns      Index, View, Update
    Flow      View(watch) at SELECT → ranges(), records() for commands → update() before each tagged line
    Limits    48 octets a message, shared by all sessions of a mailbox in a worker; a view has its own octets only while
              it may not tell of an expunge
    Errors    Bad for sequence numbers that do not exist
    Standards RFC 9051 §2.3.1, §5.2, §7.5.1; RFC 7162 §3.2.10 (VANISHED); RFC 5182 §2.1 ("$");
              RFC 3501 §2.3.2 (\\Recent)

Why chunks: a session's numbers follow from the records it knows, in their order.  These are the store's packed records
in an immutable list of immutable chunks, so that a thousand sessions of one mailbox share one list, and what changed
between two lists is found by comparing the chunks that are not the very same object.  While EXPUNGE must not be sent,
records of expunged messages stay in the session's own list ("ghosts"): their numbers hold, their octets may be gone.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, compress
from operator import is_, is_not
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway._native import (
    RECORD_OCTETS,
    diff_records,
    numbers_to_uids,
    patch_records,
    ranges_of_uids,
    record_column,
    resolve_set,
    select_records,
    store_flags,
    uids_to_numbers,
)
from gateway.server.imap.state import Bad
from gateway.store.model import UID_MAX

if TYPE_CHECKING:
    from gateway.server.imap.watch import Watch
    from gateway.store.model import Mailbox, Stored

CHUNKS_AT_ONCE = 64  # 32,768 messages, whose flags are changed in half a millisecond
CHUNK_OCTETS = 512 * RECORD_OCTETS  # a chunk that new messages join; the store's has as many
SMALL_OCTETS = 128 * RECORD_OCTETS  # one that an expunge leaves smaller joins the one before it

NEVER_RECENT = UID_MAX + 1
RANGE = struct.Struct("<II")


class Index:
    """The records of a mailbox at one moment; it never changes.

    chunks: packed records (gateway.store.model.Record), ascending by UID, none of them empty.  starts: the sequence
    number of the first record of each chunk, and behind them count + 1; firsts: its UID.
    """

    __slots__ = ("chunks", "count", "firsts", "starts")

    def __init__(self, chunks: list[bytes], like: Index | None = None) -> None:
        """like: another index, whose chunks have the same messages."""
        if like is None:
            self.starts = array("I", accumulate((len(c) // RECORD_OCTETS for c in chunks), initial=1))
            self.firsts = array("I", b"".join([chunk[:4] for chunk in chunks]))
        else:
            self.starts = like.starts
            self.firsts = like.firsts
        self.chunks = chunks
        self.count = self.starts[-1] - 1

    @property
    def last_uid(self) -> int:
        """The highest UID; 0 in an empty mailbox."""
        return _uid(self.chunks[-1], -RECORD_OCTETS) if self.chunks else 0

    def first(self, count: int) -> Index:
        """The first so many messages; itself when there are no more."""
        if self.count <= count:
            return self
        if not count:
            return EMPTY
        whole = bisect_right(self.starts, count) - 1  # the chunk that has the last one
        end = (count + 1 - self.starts[whole]) * RECORD_OCTETS
        return Index([*self.chunks[:whole], self.chunks[whole][:end]])

    def stored(self, ranges: bytes, clear: int, bits: int, modseq: int, unchanged_since: int) -> Restored | None:
        """With flags (flags & ~clear) | bits in the ranges, as the store does it.

        None: that is the store's to do, because messages were changed after unchanged_since, or because it is much.
        """
        start = max(0, bisect_right(self.firsts, int.from_bytes(ranges[:4], "little")) - 1)
        end = bisect_right(self.firsts, int.from_bytes(ranges[-4:], "little"))
        if end - start > CHUNKS_AT_ONCE:
            return None
        chunks = self.chunks
        changed: list[bytes] = []
        unseen = deleted = 0
        for at in range(start, end):
            new, touched, refused, more_unseen, more_deleted = store_flags(
                chunks[at], ranges, clear, bits, modseq, unchanged_since
            )
            if refused:
                return None
            if new is not None:
                if not changed:
                    chunks = chunks[:]
                chunks[at] = new
                changed.append(touched)
                unseen += more_unseen
                deleted += more_deleted
        return Restored(Index(chunks, self) if changed else self, b"".join(changed), unseen, deleted)

    def patched(self, changed: bytes, gone: bytes) -> Index:
        """With these records, new ones at the end, and without the UIDs in the ranges; itself when nothing differs."""
        chunks = self.chunks
        first, last = _bounds(changed, gone)
        start = max(0, bisect_right(self.firsts, first) - 1)
        end = bisect_right(self.firsts, last)
        middle = [patch_records(chunk, changed, gone) for chunk in chunks[start:end]]
        same = list(map(is_, middle, chunks[start:end]))
        added = _above(changed, self.last_uid)
        if all(same) and not added:
            return self
        if not added and list(map(len, middle)) == list(map(len, chunks[start:end])):
            return Index([*chunks[:start], *middle, *chunks[end:]], self)
        joined = chunks[:start]
        for chunk, untouched in zip(middle, same, strict=True):
            if not chunk:
                continue
            if not untouched and len(chunk) < SMALL_OCTETS and joined and len(joined[-1]) + len(chunk) <= CHUNK_OCTETS:
                joined[-1] += chunk
            else:
                joined.append(chunk)
        joined += chunks[end:]
        if added and joined and len(joined[-1]) + len(added) <= CHUNK_OCTETS:
            joined[-1] += added
        else:
            joined += [added[at : at + CHUNK_OCTETS] for at in range(0, len(added), CHUNK_OCTETS)]
        return Index(joined)


EMPTY = Index([])


class Restored(NamedTuple):
    """What a STORE makes of an index."""

    after: Index
    changed: bytes  # records
    unseen: int  # how many more are without \\Seen
    deleted: int  # with \\Deleted


class Update(NamedTuple):
    """What a session has to be told, in this order."""

    gone_numbers: array[int]  # of expunged messages, ascending, as they were before
    gone_uids: array[int]  # the same messages
    exists: bool  # there are new messages
    changed: list[tuple[bytes, bytes]]  # (sequence numbers as they are now, records) whose flags or MODSEQ changed

    def __bool__(self) -> bool:
        return bool(self.gone_uids or self.exists or self.changed)


NOTHING = Update(array("I"), array("I"), False, [])


class View:
    """See the module.  All methods but those about counts need the index: `await watch.load()` before."""

    __slots__ = (
        "_count", "_index", "claims_recent", "flags_form", "is_lost", "keywords_told", "last_store", "recent_uid",
        "saved", "watch",
    )  # fmt: skip

    def __init__(self, watch: Watch, recent_uid: int = NEVER_RECENT) -> None:
        """recent_uid: messages from there on are \\Recent in this session."""
        self.watch = watch
        self._index: Index | None = watch.index
        self._count = watch.mailbox.messages
        self.is_lost = False  # the history did not go back to what the client was told: it has to begin anew
        self.recent_uid = recent_uid
        self.claims_recent = False  # messages came that are \\Recent here, and to others until somebody says so
        self.saved = b""  # the result of SEARCH RETURN (SAVE), UIDs as u32 (RFC 5182)
        self.keywords_told = len(watch.mailbox.keywords)  # FLAGS listed so many
        self.flags_form: Any = None  # updates.py's
        self.last_store: Any = None  # store.py's

    @property
    def mailbox(self) -> Mailbox:
        """As the worker knows it now."""
        return self.watch.mailbox

    @property
    def is_told(self) -> bool:
        """The client knows what the worker knows."""
        watch = self.watch
        return (
            self._index is watch.index
            and self._index is not None
            and self.keywords_told == len(watch.mailbox.keywords)
            and not self.is_lost
        )

    @property
    def is_loaded(self) -> bool:
        return self._index is not None

    @property
    def index(self) -> Index:
        assert self._index is not None, "the index is not loaded"
        return self._index

    def loaded(self, index: Index) -> None:
        """The index has been read as it was when the watch told its row; this view may not know the last messages."""
        if self._index is None:
            self._index = index.first(self._count)
            self.is_lost = self._index.count != self._count

    # -- what commands ask -------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Messages: what EXISTS said last."""
        return self._count if self._index is None else self._index.count

    @property
    def chunks(self) -> list[bytes]:
        """Packed records in order; not to be changed."""
        return self.index.chunks

    @property
    def starts(self) -> array[int]:
        """The sequence number of each chunk's first record, and count + 1."""
        return self.index.starts

    @property
    def last_uid(self) -> int:
        """What "*" is in a UID set; 0: there is no message."""
        return self.index.last_uid

    @property
    def recent(self) -> int:
        """Messages that are \\Recent here (RFC 3501 §2.3.2)."""
        if self.recent_uid >= self.mailbox.uidnext:
            return 0
        if self._index is None:
            return min(self._count, self.mailbox.uidnext - self.recent_uid)
        return self.count + 1 - self._number_from(self.recent_uid)

    def ranges(self, pairs: bytes | None, uid: bool) -> bytes:
        """A set as it was sent (ImapCommand.sequence_set()) as ranges of UIDs for the store.

        Raises Bad for sequence numbers beyond the end; UIDs that do not exist are passed over (RFC 9051 §6.4.9).
        """
        if pairs is None:
            return self._saved_ranges()
        index = self.index
        if uid:
            return resolve_set(pairs, index.last_uid) if index.count else b""
        if index.count == 0:
            raise Bad("The mailbox is empty")
        try:
            return numbers_to_uids(index.chunks, index.starts, self.number_ranges(pairs))
        except IndexError:
            raise Bad(f"The mailbox has {index.count} messages") from None

    def existing(self, pairs: bytes) -> bytes:
        """Sequence numbers as sent, as ranges of UIDs; what is beyond the end is passed over."""
        index = self.index
        if index.count == 0:
            return b""
        return numbers_to_uids(index.chunks, index.starts, resolve_set(pairs, index.count))

    def number_ranges(self, pairs: bytes) -> bytes:
        """A set of sequence numbers as sent, as ranges; raises Bad for numbers beyond the end."""
        sent = array("I", pairs)
        if sent and max(sent) > self.count:
            raise Bad(f"The mailbox has {self.count} messages")
        return resolve_set(pairs, self.count) if self.count else b""

    def _saved_ranges(self) -> bytes:
        return ranges_of_uids(self.saved)

    def records(self, ranges: bytes) -> Iterator[tuple[int, bytes]]:
        """(sequence number of the first, packed records) of each run of messages in the ranges of UIDs."""
        for numbers, records in self.numbered(ranges):
            count = len(numbers) // 4
            found = array("I", numbers)
            if found[-1] - found[0] == count - 1:
                yield found[0], records
                continue
            at = 0
            for end in range(1, count + 1):
                if end == count or found[end] != found[end - 1] + 1:
                    yield found[at], records[at * RECORD_OCTETS : end * RECORD_OCTETS]
                    at = end

    def numbered(self, ranges: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(sequence numbers as u32, packed records) of the messages in the ranges of UIDs, a chunk at a time."""
        index = self.index
        if not ranges:
            return
        first = max(0, self._chunk_of(int.from_bytes(ranges[:4], "little")))
        end = self._chunk_of(int.from_bytes(ranges[-4:], "little")) + 1
        for at in range(first, end):
            numbers, records = select_records(index.chunks[at], ranges, index.starts[at])
            if numbers:
                yield numbers, records

    def one(self, pairs: bytes | None, uid: bool) -> tuple[bytes, bytes] | None:
        """What numbered() gives for a set that is one number, or one UID; None: it is another set, or none is there."""
        index = self._index
        if pairs is None or len(pairs) != 8 or index is None:
            return None
        number, last = RANGE.unpack(pairs)
        if number != last:
            return None
        if uid:
            packed = uids_to_numbers(index.chunks, index.starts, pairs[:4])
            number = int.from_bytes(packed, "little")
        else:
            packed = pairs[:4]
        if not 0 < number <= index.count:
            return None
        chunk = bisect_right(index.starts, number) - 1
        at = (number - index.starts[chunk]) * RECORD_OCTETS
        return packed, index.chunks[chunk][at : at + RECORD_OCTETS]

    def uids_of(self, ranges: bytes) -> bytes:
        """The UIDs, as u32, of the messages in the ranges of UIDs."""
        return b"".join(record_column(records, "uid") for _, records in self.numbered(ranges))

    def gone(self, ranges: bytes) -> bytes:
        """The UIDs, as u32, of those that are expunged: the client was not told yet."""
        newest = self.watch.index
        if self._index is newest or newest is None:
            return b""
        uids = self.uids_of(ranges)
        there = array("I", uids_to_numbers(newest.chunks, newest.starts, uids))
        return array("I", (uid for uid, number in zip(array("I", uids), there, strict=True) if not number)).tobytes()

    def numbers_of(self, uids: bytes) -> bytes:
        """The sequence number of each UID (u32, ascending); 0: there is none."""
        return uids_to_numbers(self.index.chunks, self.index.starts, uids)

    def number_of(self, uid: int) -> int:
        """0: there is no such message."""
        return array("I", self.numbers_of(array("I", (uid,)).tobytes()))[0]

    def uid_of(self, number: int) -> int:
        """Raises IndexError."""
        index = self.index
        chunk = bisect_right(index.starts, number) - 1
        if not 0 <= chunk < len(index.chunks):
            raise IndexError(number)
        return _uid(index.chunks[chunk], (number - index.starts[chunk]) * RECORD_OCTETS)

    def _chunk_of(self, uid: int) -> int:
        """The last chunk that begins at or before uid; -1: none."""
        return bisect_right(self.index.firsts, uid) - 1

    def _number_from(self, uid: int) -> int:
        """The sequence number of the first message at or above uid; count + 1: there is none."""
        index = self.index
        at = self._chunk_of(uid)
        if at < 0:
            return 1
        below = sum(found < uid for found in array("I", record_column(index.chunks[at], "uid")))
        return index.starts[at] + below

    def store(self, ranges: bytes, clear: int, bits: int, unchanged_since: int) -> Stored | None:
        """The session's STORE, done at once; None: ask the store.  What it did is not part of an update()."""
        watch = self.watch
        is_newest = self._index is watch.index
        stored = watch.store(ranges, clear, bits, unchanged_since)
        if stored is not None and is_newest:
            self._index = watch.index
        return stored

    # -- what the session is told ------------------------------------------------------------------------------------

    def update(self, expunges: bool) -> Update:
        """Take over what the worker knows; the session tells its client.  expunges: EXPUNGE may be sent."""
        newest, index = self.watch.index, self._index
        if index is newest:  # also: neither is loaded
            count, self._count = self._count, self.mailbox.messages
            if index is not None or count == self._count:
                return NOTHING
            self.claims_recent = self.recent_uid != NEVER_RECENT
            return NOTHING._replace(exists=True)
        assert index is not None and newest is not None, "a watch that is loaded loads its views"
        if index.starts is newest.starts:  # the same messages in the same chunks
            return self._update_flags(index, newest)
        gone_numbers, gone_uids = array("I"), array("I")
        changed: list[tuple[bytes, bytes]] = []
        chunks: list[bytes] = []
        before = after = 0  # messages so far
        for old, new in _segments(index.chunks, newest.chunks):
            if old is new:
                chunks += old
                count = sum(map(len, old)) // RECORD_OCTETS
                before += count
                after += count
                continue
            gone, uids, result, numbers, records = diff_records(
                b"".join(old), b"".join(new), not expunges, before + 1, after + 1
            )
            if gone and expunges:
                gone_numbers.frombytes(gone)
                gone_uids.frombytes(uids)
            if numbers:
                changed.append((numbers, records))
            chunks += [result] if gone and not expunges else new
            before += sum(map(len, old)) // RECORD_OCTETS
            after += len(result) // RECORD_OCTETS
        exists = after + len(gone_uids) > before
        if exists:
            self.claims_recent = self.recent_uid != NEVER_RECENT
        ghosts = len(chunks) != len(newest.chunks) or any(
            mine is not theirs for mine, theirs in zip(chunks, newest.chunks, strict=True)
        )
        self._index = Index(chunks) if ghosts else newest
        return Update(gone_numbers, gone_uids, exists, changed)


    def _update_flags(self, old: Index, new: Index) -> Update:
        changed = []
        for at in compress(range(len(new.chunks)), map(is_not, old.chunks, new.chunks)):
            number = new.starts[at]
            numbers, records = diff_records(old.chunks[at], new.chunks[at], False, number, number)[3:]
            if numbers:
                changed.append((numbers, records))
        self._index = new
        return NOTHING._replace(changed=changed)


def _bounds(records: bytes, ranges: bytes) -> tuple[int, int]:
    """The lowest and the highest UID that either names."""
    low, high = UID_MAX, 0
    if records:
        low, high = _first_uid(records), _uid(records, -RECORD_OCTETS)
    if ranges:
        low, high = min(low, _first_uid(ranges)), max(high, int.from_bytes(ranges[-4:], "little"))
    return low, high


def _uid(records: bytes, at: int) -> int:
    if at < 0:
        at += len(records)
    return int.from_bytes(records[at : at + 4], "little")


def _first_uid(records: bytes) -> int:
    return int.from_bytes(records[:4], "little")


def _above(records: bytes, uid: int) -> bytes:
    """Those of the packed records whose UID is higher."""
    if not records or _uid(records, -RECORD_OCTETS) <= uid:
        return b""
    if _first_uid(records) > uid:
        return records
    low, high = 0, len(records) // RECORD_OCTETS
    while low < high:
        middle = (low + high) // 2
        if _uid(records, middle * RECORD_OCTETS) <= uid:
            low = middle + 1
        else:
            high = middle
    return records[low * RECORD_OCTETS :]


def _segments(old: list[bytes], new: list[bytes]) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Both lists, cut so that what lies between two cuts has the same UIDs' range on both sides.

    Where nothing differs the two halves are one and the same object.
    """
    where = {id(chunk): at for at, chunk in enumerate(new)}
    i = j = 0
    while i < len(old) or j < len(new):
        start = i
        while i < len(old) and j < len(new) and old[i] is new[j]:
            i += 1
            j += 1
        if i > start:
            same = old[start:i]
            yield same, same
            continue
        end = i
        while end < len(old) and where.get(id(old[end]), -1) < j:
            end += 1
        stop = where[id(old[end])] if end < len(old) else len(new)
        yield from _apart(old[i:end], new[j:stop])
        i, j = end, stop


def _apart(old: list[bytes], new: list[bytes]) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The same two lists, cut wherever no chunk of either side is across: small pieces compare in the cache."""
    i = j = start = begin = 0
    last = 0  # UID of what was passed
    while i < len(old) or j < len(new):
        if j == len(new) or (i < len(old) and _first_uid(old[i]) <= _first_uid(new[j])):
            last = max(last, _uid(old[i], -RECORD_OCTETS))
            i += 1
        else:
            last = max(last, _uid(new[j], -RECORD_OCTETS))
            j += 1
        if (i == len(old) or _first_uid(old[i]) > last) and (j == len(new) or _first_uid(new[j]) > last):
            yield old[start:i], new[begin:j]
            start, begin = i, j
