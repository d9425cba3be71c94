"""A message that a client sends piece by piece: in memory while it is small, in its file as it comes when it is large.

Owns      Upload (the loop's side); PartFile, NewMessage, prepare() (the threads' side)
Flow      Upload.write()… → message() → Account.append() → discard()
Files     large/<random name>, which becomes the body of the message
Limits    a message above LARGE_OCTETS is written as it comes, WRITE_OCTETS at a time; so is a smaller one while all
          uploads of the worker hold more than settings.waiting_octets
Errors    what goes wrong on the way is told when the message is to be stored
Blocking  write() never; PartFile writes and syncs, in threads
Bugs      a crash leaves a file without a message: `gateway mailbox check` removes it
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway._native import MimeScanner, crc32c, scan_mime
from gateway.mail.imap_facts import facts_of
from gateway.store.content import (
    HEADER_OCTETS,
    LARGE_OCTETS,
    SIZE_MAX,
    Contents,
    Prepared,
    make_directory,
    sync_directory,
)
from gateway.store.database import errors
from gateway.store.errors import LimitReached, StoreError

if TYPE_CHECKING:
    from gateway.store.store import Account

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

WRITE_OCTETS = 512 * 1024
WAITING_OCTETS = 4 * WRITE_OCTETS  # for the disk: the client should be read no further


class PartFile:
    """A message being written to the file that will be its body."""

    def __init__(self) -> None:
        self._path = Path()  # set with the first piece
        self._fd = -1
        self._scanner = MimeScanner()
        self._crc = 0
        self._size = 0
        self._header = b""
        self._failed: StoreError | None = None

    def append(self, directory: Path, octets: bytes) -> None:
        """The first piece has the whole header section, unless that is too large to be kept apart."""
        if self._failed is None:
            try:
                self._append(directory, octets)
            except StoreError as error:
                self._failed = error
                self.discard()

    def _append(self, directory: Path, octets: bytes) -> None:
        if self._size + len(octets) > SIZE_MAX:
            raise LimitReached("messages of 4 GiB and more are not kept")
        with errors(directory):
            if not self._size:
                make_directory(directory)
                self._path = directory / secrets.token_hex(12)
                self._fd = os.open(self._path, _NEW, 0o600)
                split = scan_mime(octets)[0].body_start
                self._header = octets[: split if split <= HEADER_OCTETS else 0]
            view = memoryview(octets)[0 if self._size else len(self._header) :]
            while view:
                view = view[os.write(self._fd, view) :]
        self._scanner.feed(octets)
        self._crc = crc32c(octets, self._crc)
        self._size += len(octets)

    def finish(self) -> Prepared:
        """All of it is on the disk; or in memory again, when it is too small for a file of its own."""
        if self._failed is not None:
            raise self._failed
        found = facts_of(self._scanner.close(), self._octets)
        prepared = Prepared(
            self._size,
            self._crc,
            found.packed,
            found.sent_date,
            self._header,
            None,
            self._path.name,
        )
        if self._size - len(self._header) <= LARGE_OCTETS:
            prepared.body, prepared.file = self._octets(len(self._header), self._size), None
            self.discard()
            return prepared
        with errors(self._path):
            os.fdatasync(self._fd)
            sync_directory(self._path.parent)
        os.close(self._fd)
        self._fd = -1  # the file is the message's now
        return prepared

    def read(self, start: int, end: int) -> bytes:
        """Octets of the message as it is so far."""
        if self._failed is not None:
            raise self._failed
        return self._octets(start, end)

    def _octets(self, start: int, end: int) -> bytes:
        split = len(self._header)
        found = self._header[start:end]
        if end > split:
            with errors(self._path):
                found += os.pread(self._fd, end - max(start, split), max(start, split) - split)
        return found

    def discard(self) -> None:
        """Nothing is left of it; without effect when it is a message's already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                self._path.unlink()


class NewMessage(msgspec.Struct):
    """What APPEND adds: octets, or the file that has them."""

    pieces: list[bytes]
    file: PartFile | None = None
    flags: Sequence[str] = ()
    internal_date: int | None = None  # seconds since 1970; None: now


def prepare(contents: Contents, message: NewMessage) -> Prepared:
    """The message is ready for the transaction; discard() it when there is none."""
    if message.file is not None:
        return message.file.finish()
    prepared = contents.prepare(message.pieces)
    contents.write_large(prepared)
    return prepared


class Upload:
    """One message as it comes; all methods are the loop's."""

    __slots__ = ("_account", "_held", "_pieces", "_room", "file", "size", "waiting")

    def __init__(self, account: Account, held: int, room: Callable[[], None] | None = None) -> None:
        """held: octets that are counted by account.hold(); room: it goes to a file."""
        self._account = account
        self._held = held
        self._room = room
        self._pieces: list[bytes] = []
        self.file: PartFile | None = None
        self.size = 0  # octets so far
        self.waiting = 0  # octets that the disk has not taken yet
        if room is not None:
            self.file = PartFile()

    def write(self, octets: bytes | memoryview) -> None:
        """The next piece; never raises: what goes wrong is told when the message is to be stored."""
        self.size += len(octets)
        self._pieces.append(bytes(octets))
        if self.file is not None:
            self.waiting += len(octets)
            if self.waiting >= WRITE_OCTETS and sum(map(len, self._pieces)) >= WRITE_OCTETS:
                self._pass_on(self.file)

    def _pass_on(self, file: PartFile) -> None:
        octets = b"".join(self._pieces)
        self._pieces = []

        def done(_: None, error: StoreError | None) -> None:
            self.waiting -= len(octets)
            if self._room is not None:
                self._room()

        self._account.submit(lambda account: file.append(account.large_directory, octets), done)

    async def drained(self) -> None:
        """Goes on when not too much waits for the disk."""
        while self.waiting > WAITING_OCTETS:
            await self._run(lambda: None)  # behind what was passed on before

    async def read(self) -> AsyncIterator[bytes]:
        """What was written, from the beginning; nothing more may be written then."""
        file = self.file
        if file is None:
            for piece in self._pieces:
                yield piece
            return
        if self._pieces:
            self._pass_on(file)
        for at in range(0, self.size, WRITE_OCTETS):
            yield await self._run(file.read, at, min(self.size, at + WRITE_OCTETS))

    async def _run(self, work: Callable[..., Any], *arguments: int) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(result: Any, error: StoreError | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        self._account.submit(lambda _: work(*arguments), done)
        return await future

    def message(self, flags: Sequence[str], internal_date: int | None) -> NewMessage:
        """Nothing more comes: what Account.append() stores; then release()."""
        if self.file is not None and self._pieces:
            self._pass_on(self.file)
        return NewMessage(self._pieces, self.file, flags, internal_date)

    def discard(self) -> None:
        """The message is stored, or not wanted: no memory is held, and no file that is not a message."""
        self._account.hold(-self._held)
        self._held = 0
        self._pieces = []
        file, self.file = self.file, None
        if file is not None:
            self._account.submit(lambda _: file.discard(), lambda _, error: None)
