"""A maildrop: what POP3 and POP2 see of a mailbox between login and QUIT.

Owns      Maildrop
Flow      load() → sizes, unique ids; fetch() → ready() … ; remove() at the end, mark_seen() whatever the end
Limits    12 octets a message; READ_OCTETS of messages read ahead, or one message that is larger
Errors    those of the store
Blocking  never: the store reads in its threads, some messages ahead of a client that fetches one after the other
Standards RFC 1939 §4 (messages that arrive after the login are not part of it), §7 (UIDL)
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Protocol

from gateway._native import record_column
from gateway.mail.imap_facts import ORIGIN, section
from gateway.mail.unique_id import UniqueIds
from gateway.store.errors import StoreError
from gateway.store.model import SEEN, Content, Mailbox, ranges_of
from gateway.store.store import Account

READ_OCTETS = 1 << 20  # read at once
READ_MESSAGES = 512
LOG_MESSAGES = 1000  # looked up at once


class Trace(Protocol):
    """Told of a message that was fetched for the first time."""

    def __call__(self, **fields: Any) -> None: ...


class Maildrop:
    """One mailbox for one session."""

    def __init__(self, account: Account, mailbox: Mailbox, unique_ids: UniqueIds) -> None:
        self.account = account
        self.mailbox = mailbox
        self.sizes: Sequence[int] = ()
        self._unique_ids = unique_ids
        self._uids = array("I")
        self._keys = array("Q")
        self._unseen = bytearray()  # 1: without \Seen so far
        self._fetched: set[int] = set()  # indices that were without \Seen
        self._ahead: dict[int, Content | StoreError] = {}
        self._window = 1  # messages to read next time
        self._next = -1  # the index that would continue what was read

    async def load(self) -> None:
        """Read the index: sizes and unique ids are known afterwards."""
        snapshot = await self.account.snapshot(self.mailbox.id)
        sizes, flags = array("I"), array("Q")
        for chunk in snapshot.chunks:
            self._uids.frombytes(record_column(chunk, "uid"))
            sizes.frombytes(record_column(chunk, "size"))
            flags.frombytes(record_column(chunk, "flags"))
            self._keys.frombytes(record_column(chunk, "message"))
        count = len(self._uids)
        while count and self._uids[count - 1] >= self.mailbox.uidnext:  # it came after the login
            count -= 1
        del self._uids[count:], sizes[count:], self._keys[count:]
        self._unseen = bytearray(not flags[i] & SEEN for i in range(count))
        self.sizes = sizes

    def unique_id(self, index: int) -> bytes:
        return self._unique_ids.of(self._uids[index], self.mailbox.uidvalidity)

    def ready(self, index: int) -> Content | StoreError | None:
        """The message, when it was read ahead."""
        content = self._ahead.pop(index, None)
        if content is not None and self._unseen[index]:
            self._fetched.add(index)
        return content

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

    async def peek(self, index: int, *, header_only: bool) -> Content | StoreError:
        """The message, or its header section alone, without having fetched it."""
        key = self._keys[index : index + 1]
        if not header_only:
            return (await self.account.read(key))[0]
        header = (await self.account.headers(key))[0]
        return header if isinstance(header, StoreError) else Content(header, b"")

    async def remove(self, indices: Sequence[int], trace: Trace) -> None:
        """They are gone when this returns."""
        if indices:
            await self._tell(self._fetched.intersection(indices), trace)
            self._fetched.difference_update(indices)
            uids = self._uids
            await self.account.expunge(
                self.mailbox.id, ranges_of(uids[i] for i in indices), deleted_only=False
            )

    async def mark_seen(self, trace: Trace) -> None:
        """What was fetched for the first time gets \\Seen."""
        if self._fetched:
            fetched, self._fetched = self._fetched, set()
            await self._tell(fetched, trace)
            await self.account.store(
                self.mailbox.id, ranges_of(self._uids[i] for i in fetched), add=("\\Seen",)
            )

    async def _tell(self, fetched: set[int], trace: Trace) -> None:
        """The trace of these messages' delivery ends with their first reader."""
        indices = sorted(fetched)
        for start in range(0, len(indices), LOG_MESSAGES):
            part = indices[start : start + LOG_MESSAGES]
            facts = await self.account.facts([self._keys[i] for i in part])
            for i, packed in zip(part, facts, strict=True):
                if isinstance(packed, bytes) and (origin := section(packed, ORIGIN)):
                    trace(
                        queue_id=origin.decode().partition(" ")[0],
                        account=self.account.name,
                        mailbox=self.mailbox.name,
                        uid=self._uids[i],
                    )


def pieces_of(content: Content) -> list[bytes]:
    return [content.header, content.body] if content.body else [content.header]


def first_lines(content: Content, lines: int) -> list[bytes]:
    """The header and so many lines of the body (TOP)."""
    body = content.body
    at = 0
    for _ in range(min(lines, len(body))):
        end = body.find(b"\n", at) + 1
        if not end:
            return pieces_of(content)
        at = end
    return [content.header, body[:at]]
