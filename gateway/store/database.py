"""One account's SQLite file: opening it, its tables, its transactions, its errors.

    Owns      Database
    Flow      Database(path) → read() … or `with database.write():` … → close()
    Files     <account>/store.db, with -wal and -shm while it is open
    Limits    CACHE_KIB of page cache a connection; the log is checkpointed at CHECKPOINT_PAGES, after ATTEMPTS where
              nothing may wait
    Errors    SQLite's and the system's become StoreError kinds here and nowhere else
    Blocking  everything; only threads of the store call this
    Security  the directory is 0700, the file 0600
    Bugs      a commit that fails at its sync may be there after all when the account is opened again

synchronous = FULL in WAL mode: a commit is one fdatasync of the log, and durable when it returns.  The log of a busy
account is filled with zeros in advance: overwriting allocated blocks costs a third of the sync that appending does.
APSW is used instead of Python's sqlite3 because it brings its own SQLite: FTS5 is always there, and the WAL-reset race
that releases before 3.51.3 have cannot meet our many writers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import apsw

from gateway.store.errors import NotNow, StoreBusy, StoreDamaged, StoreError, StoreFull
from gateway.store.schema import SCHEMA, SCHEMA_VERSION, UPGRADES

PAGE_OCTETS = 4096
CACHE_KIB = 1024
CHECKPOINT_PAGES = 1024  # 4 MiB of log: changing all flags of 10,000 messages costs a third less than with 256
LOG_PAGES = 288  # allocated in advance; what large changes need beyond is allocated by them
LOG_OCTETS = LOG_PAGES * (PAGE_OCTETS + 24) + 32  # a frame has 24 octets, the log 32 before them
BUSY_COMMITS = 4  # an account with more of them while it is open gets its log allocated in advance
MODSEQS_LOST = 1 << 20  # more than are given out unsynced before a crash of the host
ATTEMPTS = 4096  # without a checkpoint, which waits for the disk: some 16 MiB of log
BUSY_S = 10.0  # another process holds the write lock: no transaction of ours takes that long
BUSY_MS = int(BUSY_S * 1000)


class Database:
    """A connection.  One thread at a time may use it, any thread; see sync()."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Raises StoreError; FileNotFoundError unless create."""
        if not create and not path.exists():
            raise FileNotFoundError(path)
        self.path = path
        self._commits = 0
        self._attempts = 0  # since the log may have been checkpointed
        self._checkpoints = True  # when the log is long
        self._syncs = True  # commits wait for the disk
        self._unsynced = False  # the last one did not
        self._is_of_boot = False  # somebody wrote to the file since the host was started
        with errors(path):
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX
            if create:
                flags |= apsw.SQLITE_OPEN_CREATE
            self._connection = apsw.Connection(str(path), flags=flags, statementcachesize=100)
            try:
                self._configure()
            except BaseException:
                self._connection.close(True)
                raise
        self._cursor = self._connection.cursor()  # of attempt(): making one takes longer than using it
        self.execute: Callable[..., Any] = self._connection.execute
        self.executemany: Callable[..., Any] = self._connection.executemany

    def _configure(self) -> None:
        connection = self._connection
        connection.set_busy_timeout(BUSY_MS)
        # Where two make the file at once SQLite does not wait for the change to WAL mode, whatever the busy timeout.
        end = monotonic() + BUSY_S
        while True:
            try:
                version = self._begin()
                break
            except apsw.BusyError:
                if monotonic() > end:
                    raise
                sleep(0.005)
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} has format {version}, this version reads {SCHEMA_VERSION}"
            )
        connection.pragma("synchronous", 2)  # FULL
        connection.pragma("cache_size", -CACHE_KIB)
        connection.pragma("mmap_size", 2**40)
        connection.wal_autocheckpoint(CHECKPOINT_PAGES)

    def _begin(self) -> Any:
        """The version of the file's format; a new file gets its tables, an old one those it lacks."""
        connection = self._connection
        version = connection.pragma("user_version")
        if version == 0:
            connection.pragma("page_size", PAGE_OCTETS)
            connection.pragma(
                "auto_vacuum", 2
            )  # incremental: free pages can be given back in steps
            connection.pragma("journal_mode", "wal")
        if version < SCHEMA_VERSION:
            connection.execute("BEGIN IMMEDIATE")
            try:
                version = connection.pragma("user_version")  # somebody may have been faster
                while version < SCHEMA_VERSION:
                    connection.execute(UPGRADES[version] if version else SCHEMA)
                    version = version + 1 if version else SCHEMA_VERSION
                    connection.pragma("user_version", version)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(apsw.Error):
                    connection.execute("ROLLBACK")
                raise
        return version

    def row(self, sql: str, bindings: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row, or None."""
        found: tuple[Any, ...]
        for found in self.execute(sql, bindings):
            return found
        return None

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """All statements within see one moment.  Raises StoreError."""
        with errors(self.path):
            self.execute("BEGIN")
            try:
                yield
            finally:
                self._end("COMMIT")

    @contextlib.contextmanager
    def write(self, *, sync: bool = True, checkpoint: bool = True) -> Iterator[None]:
        """What is changed within is durable afterwards, all of it; or nothing is, and this raises StoreError.

        Without sync a crash of the host may take it back, until sync(), close() or the next write() with sync.
        checkpoint: afterwards, when the log is long.
        """
        with errors(self.path):
            if checkpoint and not self._checkpoints:
                self._connection.wal_autocheckpoint(CHECKPOINT_PAGES)
                self._checkpoints = True
            if not self._is_of_boot:
                self._is_of_boot = self._connection.pragma("application_id") == boot_number()
                sync = sync or not self._is_of_boot
            if sync is not self._syncs:
                self._connection.pragma("synchronous", 2 if sync else 1)
                self._syncs = sync
            self.execute("BEGIN IMMEDIATE")
            try:
                if not self._is_of_boot:
                    self._skip_lost_modseqs()
                self._commits += 1
                if self._commits == BUSY_COMMITS:
                    self._extend_log()
                yield
                self.execute("COMMIT")
                self._attempts = 0
                self._unsynced = not sync
                self._is_of_boot = True
            except BaseException:
                self._end("ROLLBACK")
                raise

    def _skip_lost_modseqs(self) -> None:
        """A crash of the host may have taken back changes of flags, whose MODSEQs clients know: those never come again.

        RFC 7162 §3.1.1.  What is stored says of which start of the host it is.
        """
        if self._connection.pragma("application_id") != boot_number():  # nobody was faster
            self.execute(
                "UPDATE mailbox SET highestmodseq=highestmodseq+? WHERE id>0 AND selectable",
                (MODSEQS_LOST,),
            )
            self._connection.pragma("application_id", boot_number())

    def attempt(self, statement: str, bindings: Sequence[Any]) -> bool:
        """One statement, a transaction without sync that waits for nothing; False: it changed no row.

        Raises NotNow where another writer or the disk would have to be waited for, and StoreError.
        """
        self._hurry()
        try:
            self._cursor.execute(statement, bindings)
        except apsw.BusyError:
            raise NotNow from None
        except apsw.Error:
            with errors(self.path):
                raise
        finally:
            self._connection.set_busy_timeout(BUSY_MS)
        self._unsynced = True
        return self._connection.changes() > 0

    @contextlib.contextmanager
    def write_now(self) -> Iterator[None]:
        """The same for several statements."""
        self._hurry()
        attempts = self._attempts
        try:
            with self.write(sync=False, checkpoint=False):
                yield
        except StoreBusy:
            raise NotNow from None
        finally:
            self._connection.set_busy_timeout(BUSY_MS)
            self._attempts = attempts

    def _hurry(self) -> None:
        if not self._is_of_boot or self._commits < BUSY_COMMITS or self._attempts >= ATTEMPTS:
            raise NotNow
        if self._checkpoints:
            self._connection.wal_autocheckpoint(0)
            self._checkpoints = False
        if self._syncs:
            self._connection.pragma("synchronous", 1)
            self._syncs = False
        self._connection.set_busy_timeout(0)
        self._attempts += 1

    def sync(self) -> None:
        """What was written is durable now.  Any thread may call this while another one works with the connection."""
        if self._unsynced:
            self._unsynced = False  # what is committed from here on is for the next time
            try:
                with errors(self.path):
                    fd = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        os.fdatasync(fd)
                    finally:
                        os.close(fd)
            except BaseException:
                self._unsynced = True
                raise

    def _extend_log(self) -> None:
        """Zeros behind the end of the log; nobody else writes there: we hold the write lock.

        To SQLite they are frames whose checksum is wrong: the log ends before them.
        """
        log = f"{self.path}-wal"
        with contextlib.suppress(OSError):  # a full disk shows soon enough
            fd = os.open(log, os.O_WRONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                if size < LOG_OCTETS:
                    os.pwrite(fd, bytes(LOG_OCTETS - size), size)
            finally:
                os.close(fd)

    def _end(self, statement: str) -> None:
        if not self._connection.get_autocommit():
            with contextlib.suppress(apsw.Error):  # it ended by itself: I/O errors do that
                self.execute(statement)

    @property
    def page_octets_free(self) -> tuple[int, int]:
        """(octets of the file, octets of them that are free pages)."""
        pages = self._connection.pragma("page_count")
        free = self._connection.pragma("freelist_count")
        return pages * PAGE_OCTETS, free * PAGE_OCTETS

    def close(self) -> None:
        with contextlib.suppress(StoreError):
            self.sync()
        with contextlib.suppress(apsw.Error):
            self._connection.close(True)


@cache
def boot_number() -> int:
    """31 bits, others after each start of the host."""
    return int(Path("/proc/sys/kernel/random/boot_id").read_text()[:8], 16) >> 1


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say into StoreError."""
    try:
        yield
    except StoreError:
        raise
    except (apsw.FullError, apsw.TooBigError) as error:
        raise StoreFull(f"{path}: the disk is full") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreBusy(f"{path}: locked by another process for {BUSY_S:.0f} s") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise StoreDamaged(f"{path} is damaged ({error}): run `gateway mailbox check`") from error
    except apsw.Error as error:
        raise StoreError(f"{path}: {type(error).__name__}: {error}") from error
    except OSError as error:
        kind = StoreFull if error.errno in (28, 122) else StoreError  # ENOSPC, EDQUOT
        raise kind(f"{error.filename or path}: {os.strerror(error.errno or 0)}") from error
