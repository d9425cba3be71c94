"""A maildrop: what POP3 and POP2 see of a mailbox between login and QUIT.

Owns      Maildrop
Flow      load() → sizes, unique ids; fetch() → ready() …, or open_large()
          → remove() at QUIT, mark_seen() however it ended
Limits    18 octets a message; READ_OCTETS of messages read ahead
Errors    those of the store
Blocking  never: the store reads in its threads, some messages ahead of a client that fetches one after the other
Standards RFC 1939 §4 (messages that arrive after the login are not part of it), §7 (UIDL)
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import compress

from gateway._native import ranges_of_uids, record_column
from gateway.mail.unique_id import UniqueIds
from gateway.server.first_read import Trace, tell_first_read
from gateway.store.errors import StoreError
from gateway.store.large import LargeContent
from gateway.store.model import SEEN, Content, Mailbox
from gateway.store.store import Account

READ_OCTETS = 1 << 20  # read at once; a message above it is read in slices
READ_MESSAGES = 512
CHANGE_MESSAGES = 20_000  # in one transaction: others wait meanwhile

_IS_UNSEEN = bytes(not flags & SEEN for flags in range(256))


class Maildrop:
    """One mailbox for one session."""

    def __init__(self, account: Account, mailbox: Mailbox, unique_ids: UniqueIds) -> None:
        self.account = account
        self.mailbox = mailbox
        self.sizes: Sequence[int] = ()
        self._unique_ids = unique_ids
        self._uids = array("I")
        self._keys = array("Q")
        self._unseen = b""  # 1: without \Seen so far
        self._fetched = bytearray()  # 1: was without \Seen, and the client has it now
        self._ahead: dict[int, Content | StoreError] = {}
        self._window = 1  # messages to read next time
        self._next = -1  # the index that would continue what was read

    async def load(self) -> None:
        """Read the index: sizes and unique ids are known afterwards."""
        uids, sizes, keys = self._uids, array("I"), self._keys
        unseen = bytearray()
        more = True
        while more and (not uids or uids[-1] < self.mailbox.uidnext):
            chunks, more = await self.account.records_after(
                self.mailbox.id, uids[-1] if uids else 0
            )
            for chunk in chunks:
                uids.frombytes(record_column(chunk, "uid"))
                sizes.frombytes(record_column(chunk, "size"))
                keys.frombytes(record_column(chunk, "message"))
                unseen += record_column(chunk, "flags")[::8].translate(_IS_UNSEEN)
        count = len(uids)
        while count and uids[count - 1] >= self.mailbox.uidnext:  # it came after the login
            count -= 1
        del uids[count:], sizes[count:], keys[count:]
        self._unseen = bytes(unseen[:count])
        self._fetched = bytearray(count)
        self.sizes = sizes

    def unique_id(self, index: int) -> bytes:
        return self._unique_ids.of(self._uids[index], self.mailbox.uidvalidity)

    def ready(self, index: int) -> Content | StoreError | None:
        """The message, when it was read ahead."""
        content = self._ahead.pop(index, None)
        if content is not None:
            self._fetched[index] = self._unseen[index]
        return content

    def note_fetched(self, index: int) -> None:
        """The client has this message."""
        self._fetched[index] = self._unseen[index]

    async def fetch(self, index: int) -> Content | StoreError:
        """Read the message, and more behind it the longer the client goes on one after the other."""
        self._window = min(self._window * 4, READ_MESSAGES) if index == self._next else 1
        end, octets = index, 0
        while end < len(self.sizes) and end - index < self._window:
            octets += self.sizes[end]
            if octets > READ_OCTETS and end > index:
                break
            end += 1
        found = await self.account.read(self._keys[index:end])
        self._next = end
        self._ahead = dict(zip(range(index, end), found, strict=True))
        content = self.ready(index)
        assert content is not None
        return content

    async def open_large(self, index: int) -> LargeContent | None:
        """One that is too large to be read at once, checked, to be closed; None: fetch() and peek() are the way."""
        if self.sizes[index] <= READ_OCTETS:
            return None
        large = await self.account.open_large(self._keys[index])
        if large is not None and not large.header:  # longer than the store keeps apart
            self.account.close_large(large)
            return None
        return large

    async def peek(self, index: int, *, header_only: bool) -> Content | StoreError:
        """The message, or its header section alone, without having fetched it."""
        key = self._keys[index : index + 1]
        if not header_only:
            return (await self.account.read(key))[0]
        header = (await self.account.headers(key))[0]
        return header if isinstance(header, StoreError) else Content(header, b"")

    async def remove(self, indices: Sequence[int], trace: Trace) -> None:
        """They are gone when this returns; when it raises, maybe some are."""
        for start in range(0, len(indices), CHANGE_MESSAGES):
            part = indices[start : start + CHANGE_MESSAGES]
            await self._tell([i for i in part if self._fetched[i]], trace)
            for i in part:
                self._fetched[i] = 0
            await self.account.expunge(self.mailbox.id, self._ranges(part), deleted_only=False)

    async def mark_seen(self, trace: Trace) -> None:
        """What was fetched for the first time gets \\Seen."""
        fetched, self._fetched = self._fetched, bytearray(len(self._fetched))
        indices = array("I", compress(range(len(fetched)), fetched))
        for start in range(0, len(indices), CHANGE_MESSAGES):
            part = indices[start : start + CHANGE_MESSAGES]
            await self._tell(part, trace)
            await self.account.store(self.mailbox.id, self._ranges(part), add=("\\Seen",))

    def _ranges(self, indices: Sequence[int]) -> bytes:
        return ranges_of_uids(array("I", [self._uids[i] for i in indices]))

    async def _tell(self, fetched: Sequence[int], trace: Trace) -> None:
        uids = [self._uids[i] for i in fetched]
        keys = [self._keys[i] for i in fetched]
        await tell_first_read(self.account, self.mailbox.name, uids, keys, trace)


def first_lines(body: bytes, lines: int) -> tuple[bytes, int]:
    """(so many lines of it, how many are missing)."""
    at = 0
    for missing in range(lines, 0, -1):
        end = body.find(b"\n", at) + 1
        if not end:
            return body, missing
        at = end
    return body[:at], 0
