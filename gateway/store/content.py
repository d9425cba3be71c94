"""Where the octets of messages are: rows of the account's database, large ones in files of their own.

    Owns      Contents
    Flow      prepare() (large: file on the disk) → insert() in the transaction → read(); release() → reclaim()
    Files     table message: facts, header section, body; <account>/large/<random name>
    Limits    a body above LARGE_OCTETS is a file; a header above HEADER_OCTETS is kept with the body
    Errors    StoreDamaged when octets do not match their CRC-32C, or their file is gone
    Blocking  everything
    Bugs      a crash between a large file and its transaction, or between a removal and its unlink, leaves a file
              without a message: `gateway mailbox check` removes it

Body first, metadata second; delete in the other order.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from gateway._native import crc32c
from gateway.mail.imap_facts import ORIGIN, message_facts, section
from gateway.store.database import Database, errors
from gateway.store.errors import LimitReached, MessageGone, StoreDamaged, StoreError
from gateway.store.model import Content

# Measured (benches/bench_store.py): below, a row is cheaper to write than a second sync; above, its octets
# written twice (log and checkpoint) cost more than the file.
LARGE_OCTETS = 128 * 1024
HEADER_OCTETS = 64 * 1024
SIZE_MAX = 2**32 - 1  # RFC 9051 §4.2: RFC822.SIZE of a record is 32 bits
RECLAIM_MESSAGES = 500  # removed in one transaction
SPARE_OCTETS = 4 << 20  # of free pages are kept for new messages, or
SPARE_PART = 0.25  # that part of the file
GIVE_BACK_PAGES = 512  # moved in one transaction


class Prepared(msgspec.Struct):
    """A message whose octets are ready for the transaction."""

    size: int
    crc: int
    facts: bytes
    sent_date: int
    header: bytes
    body: bytes | None
    file: str | None


class Contents:
    """The messages of one account, by key."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._directory = database.path.parent / "large"

    def prepare(
        self, slices: Sequence[bytes | memoryview], prefix: bytes = b"", origin: str = ""
    ) -> Prepared:
        """Facts and checksum; a large body is on the disk when this returns.  Raises StoreError."""
        content = b"".join((prefix, *slices))
        if len(content) > SIZE_MAX:
            raise LimitReached("messages of 4 GiB and more are not kept")
        found = message_facts(content, origin)
        at = found.header_octets if found.header_octets <= HEADER_OCTETS else 0
        header, body = content[:at], content[at:]
        file = None
        if len(body) > LARGE_OCTETS:
            file = self._write_large(body)
        return Prepared(
            len(content), crc32c(content), found.packed, found.sent_date, header,
            None if file else body, file,
        )  # fmt: skip

    def _write_large(self, body: bytes) -> str:
        name = secrets.token_hex(12)
        path = self._directory / name
        with errors(path):
            try:
                make_directory(self._directory)
                with open(path, "xb", buffering=0, opener=_private) as file:
                    view = memoryview(body)
                    while view:
                        view = view[file.write(view) :]
                    os.fdatasync(file.fileno())
                sync_directory(self._directory)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        return name

    def discard(self, prepared: Prepared) -> None:
        """The transaction was not made: forget a large body."""
        if prepared.file is not None:
            with contextlib.suppress(OSError):
                (self._directory / prepared.file).unlink()

    def insert(self, key: int, prepared: Prepared) -> None:
        self._database.execute(
            "INSERT INTO message VALUES(?,?,?,?,?,?)",
            (key, prepared.crc, prepared.file, prepared.facts, prepared.header, prepared.body),
        )

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, key: int) -> Content:
        """Raises MessageGone, StoreDamaged."""
        row = self._database.row("SELECT header, crc, file, body FROM message WHERE id=?", (key,))
        if row is None:
            raise MessageGone(f"message {key} was expunged")
        header, crc, file, body = row
        if file is not None:
            body = self._read_large(key, file)
        if body is None or crc32c(body, crc32c(header)) != crc:
            raise StoreDamaged(
                f"message {key} is not as it was written: run `gateway mailbox check`"
            )
        return Content(header, body)

    def _read_large(self, key: int, name: str) -> bytes:
        try:
            return (self._directory / name).read_bytes()
        except OSError as error:
            raise StoreDamaged(f"the body of message {key} cannot be read: {error}") from error

    def header(self, key: int) -> bytes:
        """The header section with its empty line, as far as the first HEADER_OCTETS show it."""
        row = self._database.row("SELECT header FROM message WHERE id=?", (key,))
        if row is None:
            raise MessageGone(f"message {key} was expunged")
        found: bytes = row[0]
        if found:
            return found
        content = self.read(key)  # longer than we keep apart, or none at all
        end = content.body.find(b"\r\n\r\n")
        return content.body if end < 0 else content.body[: end + 4]

    def facts(self, key: int) -> bytes:
        """What mail.imap_facts packed at delivery."""
        row = self._database.row("SELECT facts FROM message WHERE id=?", (key,))
        if row is None:
            raise MessageGone(f"message {key} was expunged")
        found: bytes = row[0]
        return found

    def came_from(self, key: int, origin: str) -> bool:
        """True when the message was delivered by this origin."""
        try:
            return section(self.facts(key), ORIGIN) == origin.encode()
        except StoreError:
            return False

    # -- removing ------------------------------------------------------------------------------------------------

    def share(self, keys: Iterable[int]) -> None:
        """One more record points at each of these."""
        self._database.executemany(
            "INSERT INTO shared VALUES(?,1) ON CONFLICT DO UPDATE SET copies=copies+1",
            ((key,) for key in keys),
        )

    def release(self, keys: Iterable[int]) -> None:
        """One record less points at each of these; the last one makes it garbage."""
        row = self._database.row
        execute = self._database.execute
        if row("SELECT 1 FROM shared LIMIT 1") is None:
            self._database.executemany("INSERT INTO garbage VALUES(?)", ((key,) for key in keys))
            return
        for key in keys:
            found = row("SELECT copies FROM shared WHERE message=?", (key,))
            if found is None:
                execute("INSERT INTO garbage VALUES(?)", (key,))
            elif found[0] == 1:
                execute("DELETE FROM shared WHERE message=?", (key,))
            else:
                execute("UPDATE shared SET copies=copies-1 WHERE message=?", (key,))

    def reclaim(self) -> bool:
        """Remove some garbage; False when none is left."""
        files: list[str] = []
        with self._database.write():
            keys = [
                key
                for (key,) in self._database.execute(
                    "SELECT message FROM garbage ORDER BY message LIMIT ?", (RECLAIM_MESSAGES,)
                )
            ]
            for key in keys:
                found = self._database.row("SELECT file FROM message WHERE id=?", (key,))
                if found is not None and found[0] is not None:
                    files.append(found[0])
            self._database.executemany("DELETE FROM message WHERE id=?", ((key,) for key in keys))
            self._database.executemany(
                "DELETE FROM garbage WHERE message=?", ((key,) for key in keys)
            )
        for name in files:
            with contextlib.suppress(OSError):
                (self._directory / name).unlink()
        return self._give_back() or len(keys) == RECLAIM_MESSAGES

    def _give_back(self) -> bool:
        """Free pages that are no use any more leave the file, a bounded number; True when more should."""
        octets, free = self._database.page_octets_free
        if free < SPARE_OCTETS or free < octets * SPARE_PART:
            return False
        with self._database.write():
            self._database.execute(f"PRAGMA incremental_vacuum({GIVE_BACK_PAGES})").fetchall()
        return True


def make_directory(path: Path) -> None:
    """It exists afterwards, and durably so.  Raises OSError."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
