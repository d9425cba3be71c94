"""A message on its way into the log.

Flow      append* → commit → (its group is written) → done;  or abort
Limits    chunk_octets a record; message_pending_octets and pending_octets not yet on disk, then the sender waits
Errors    whatever fails is told by done(), so that the dialogue stays in step; append() drops octets from then on
Blocking  never
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway._native import encode_number
from gateway.mail.envelope import Envelope, pack
from gateway.spool.compact import add_live, drop_live
from gateway.spool.errors import SpoolError
from gateway.spool.message import Extent, Octets, Stored, new_stored, pack_extents
from gateway.spool.record import CHUNK, END, LENGTHS, MESSAGE

if TYPE_CHECKING:
    from gateway.spool.spool import Spool

Done = Callable[[Stored | None, SpoolError | None], None]


class Incoming:
    """A message being received.  End it with commit() or abort()."""

    __slots__ = (
        "_done",
        "_extents",
        "_size_octets",
        "_spool",
        "_stored",
        "error",
        "number",
        "on_drain",
        "pending_octets",
        "queue_id",
    )

    def __init__(self, spool: Spool, number: int) -> None:
        self._spool = spool
        self.number = number
        self.queue_id = encode_number(number)
        self.on_drain: Callable[[], None] | None = None  # called once after append() returned False
        self.error: SpoolError | None = None  # it cannot be stored any more: commit() will say so
        self.pending_octets = 0  # handed to the log and not yet on disk
        self._extents: list[Extent] | None = None

    def append(self, chunk: Octets) -> bool:
        """Stream a piece of the content into the log.  False: pause the sender until on_drain is called."""
        spool = self._spool
        if self._extents is None:
            self._extents = []
            self._size_octets = 0
        view = memoryview(chunk)
        step = spool.settings.chunk_octets
        for start in range(0, len(view), step):
            if self.error is None:
                self._append(view[start : start + step], self._extents)
        if self.error is not None or (
            self.pending_octets < spool.settings.message_pending_octets
            and spool.log.pending_octets < spool.settings.pending_octets
        ):
            return True
        spool.paused[self] = None
        return False

    def _append(self, piece: memoryview, extents: list[Extent]) -> None:
        spool, octets = self._spool, len(piece)

        def written(error: int) -> None:
            self.pending_octets -= octets
            if error:
                self.error = SpoolError(f"{self.queue_id}: {os.strerror(error)}")
            if spool.paused:
                spool.resume_paused()

        try:
            segment, offset = spool.log.append(CHUNK, self.number, written, piece)
        except SpoolError as error:
            self.error = error
            return
        extents.append((segment, offset, octets))
        segment.pins += 1
        self._size_octets += octets
        self.pending_octets += octets

    def abort(self) -> None:
        """Forget it.  What is in the log already means nothing without an END."""
        self._unpin()
        self._spool.paused.pop(self, None)

    def _unpin(self) -> None:
        extents, self._extents = self._extents, None
        for segment, _, _ in extents or ():
            segment.pins -= 1
            if not segment.pins:
                self._spool.compactor.consider(segment)

    def commit(self, envelope: Envelope, prefix: bytes, last: Octets | None, done: Done) -> None:
        """Store it; done(stored, None) when it is ours, done(None, error) when it is not: on the loop, later.

        prefix (our trace fields) goes before the content; last is what append() was not given.
        """
        spool = self._spool
        self._done: Done | None = done
        self.on_drain = None  # the sender waits for done() from here on, whatever append() says of the rest
        if last is None:
            last = b""
        if len(last) > spool.settings.chunk_octets or (self._extents and len(last) > 0):
            self.append(last)
            last = b""
        error = self.error or spool.check()
        if error is not None:
            self._refuse(error)
            return
        packed = pack(envelope)
        head = LENGTHS.pack(len(packed), len(prefix)) + packed
        extents = self._extents
        kind, rest, size = MESSAGE, last, len(last)
        if extents:
            kind, rest, size = END, pack_extents(extents), self._size_octets
        size += len(prefix)
        try:
            segment, offset = spool.log.append(kind, self.number, self._written, head, prefix, rest)
        except SpoolError as problem:
            self._refuse(problem)
            return
        stored = self._stored = new_stored(self.number, self.queue_id, envelope, size)
        stored.home = segment
        stored.home_offset = offset
        stored.home_length = len(head) + len(prefix) + len(rest)
        spool.count += 1
        if extents:
            stored.extents = tuple(extents)
            add_live(stored)
            self._unpin()
            return
        add_live(stored)
        memory = envelope.durability == "memory"
        # What "memory" promises is kept in memory whatever the bound says, until it is written.
        if memory or spool.kept_octets + size <= spool.settings.memory_octets:
            stored.prefix = prefix
            stored.content = last
            stored.kept_octets = size
            spool.kept_octets += size
        if memory:
            self._done = None
            spool.call_soon(done, stored, None)

    def _refuse(self, error: SpoolError) -> None:
        self.abort()
        done, self._done = self._done, None
        if done is not None:
            self._spool.call_soon(done, None, error)

    def _written(self, error: int) -> None:
        stored, done = self._stored, self._done
        if not error and self.error is not None:
            # The record is on disk, in another segment than a piece of the content whose write failed.
            self._spool.withdraw(stored)
            assert done is not None
            done(None, self.error)
            return
        if not error:
            stored.written = True
            if done is not None:
                done(stored, None)
            return
        drop_live(stored)
        if done is None:  # durability "memory": it is ours already
            self._spool.rewrite.append(stored)
            return
        self._spool.forget(stored)
        done(None, SpoolError(f"{self.queue_id}: {os.strerror(error)}"))
