"""Where accounts come from: one small interface, and what local and remote ones share.

Owns      Source, LocalSource, RemoteSource, Checks; Verified
Flow      Directory → peek()/find() who exists; verify() a password; keys(), secret() for SCRAM and CRAM-MD5
Limits    Checks: a bounded pool of threads with a bounded queue, so memory is bounded by
          auth.checks × argon2_memory_kib
Errors    SourceError: cannot be asked now (transient); Busy: too many checks wait
Blocking  peek() and record() read a local file or database at most (5 us); everything else is awaited
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from gateway.accounts import passwords
from gateway.accounts.model import Account, Record, SourceError
from gateway.protocol.scram import ScramKeys

T = TypeVar("T")


class Busy(SourceError):
    """More password checks wait than auth.checks_waiting allows."""


class Ask(Exception):
    """peek() does not know: find() must be awaited."""


class Verified(msgspec.Struct, frozen=True):
    """The password is right."""

    account: Account
    mark: str = ""  # what is_current() compares: changes with the password


class Source(Protocol):
    """A source of accounts.  Names are in normal form: see names.py."""

    name: str
    next_on_failure: bool  # a wrong password here asks the next source

    def abilities(self) -> frozenset[str]:
        """What works for every account of it: of "SHA-256", "SHA-1" (SCRAM), "secret" (APOP, CRAM-MD5)."""

    def peek(self, user: str) -> Account | None:
        """The account, None when there is none; raises Ask when that takes waiting, or SourceError."""

    async def find(self, user: str) -> Account | None:
        """The same, however long it takes.  Raises SourceError."""

    async def verify(self, user: str, password: str) -> Verified | bool:
        """Verified; False: a wrong password; True: the source does not know the user.  Raises SourceError."""

    def is_current(self, user: str, verified: Verified) -> Account | None:
        """The account as it is now, None when it or its password changed since it was verified."""

    async def keys(
        self, user: str, kind: str, nobody: ScramKeys
    ) -> tuple[Account, ScramKeys] | None:
        """For SCRAM with "SHA-256" or "SHA-1"; None: unknown, or no such keys.

        nobody: what would be shown of a user that does not exist; keys that are made of a password
        now have its salt and iterations, so that the two cannot be told apart.
        """

    async def secret(self, user: str) -> tuple[Account, str] | None:
        """The password itself; None: unknown, or not kept."""

    def problems(self) -> list[str]:
        """What an operator should know, for `gateway check`."""

    async def close(self) -> None:
        """Give back what it holds."""


REMEMBERED_MAX = 50_000  # of a remote source: about 0.3 KiB each

UNKNOWN = True
WRONG = False


class Checks:
    """Computes hashes in threads, a few at a time."""

    def __init__(self, threads: int, waiting_max: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="password")
        self._max = threads + waiting_max
        self.running = 0  # and waiting
        self.total = 0

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """What the function returns; raises Busy, and what it raises."""
        if self.running >= self._max:
            raise Busy(f"{self.running} password checks wait")
        self.running += 1
        self.total += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, function, *arguments)
        finally:
            self.running -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class LocalSource:
    """A source that has a Record for each account: subclasses give record() and nobody()."""

    name = "local"
    prepares = False  # passwords went through SASLprep before they were hashed

    def __init__(self, checks: Checks, *, next_on_failure: bool = False) -> None:
        self._checks = checks
        self.next_on_failure = next_on_failure

    def record(self, user: str) -> Record | None:
        """What is kept of the user.  Raises SourceError."""
        raise AssertionError(f"{type(self).__name__} has no record()")

    def nobody(self) -> str:
        """A verifier that costs what those of the accounts cost: for users that do not exist."""
        raise AssertionError(f"{type(self).__name__} has no nobody()")

    def abilities(self) -> frozenset[str]:
        return frozenset()

    def peek(self, user: str) -> Account | None:
        record = self.record(user)
        return None if record is None else record.account

    async def find(self, user: str) -> Account | None:
        return self.peek(user)

    async def verify(self, user: str, password: str) -> Verified | bool:
        record = self.record(user)
        if record is None:
            return UNKNOWN
        if await self.compute(record.verifier or self.nobody(), password) and record.verifier:
            return Verified(record.account, record.verifier)
        return WRONG

    async def compute(self, verifier: str, password: str) -> bool:
        """Does the password fit?  Also asked with nobody()."""
        function = passwords.verify_prepared if self.prepares else passwords.verify
        try:
            return await self._checks.run(function, verifier, password)
        except passwords.UnknownScheme as error:
            raise SourceError(f"{self.name}: {error}") from None

    def is_current(self, user: str, verified: Verified) -> Account | None:
        record = self.record(user)
        same = record is not None and record.verifier == verified.mark
        return record.account if record is not None and same else None

    async def keys(
        self, user: str, kind: str, nobody: ScramKeys
    ) -> tuple[Account, ScramKeys] | None:
        record = self.record(user)
        if record is None:
            return None
        kept = record.scram.get(kind)
        if kept is not None:
            return record.account, passwords.parse_scram(kept)
        if record.secret is None:
            return None
        try:
            keys = await self._checks.run(
                passwords.scram_keys, record.secret, kind, nobody.iterations, nobody.salt
            )
        except ValueError:  # a password that SCRAM's clients cannot send
            return None
        return record.account, keys

    async def secret(self, user: str) -> tuple[Account, str] | None:
        record = self.record(user)
        return None if record is None or record.secret is None else (record.account, record.secret)

    def problems(self) -> list[str]:
        return []

    async def close(self) -> None:
        """Nothing to give back."""


class RemoteSource:
    """A source that is asked over a network: remembers for a while who exists."""

    name = "remote"

    def __init__(self, *, cache_s: float, next_on_failure: bool) -> None:
        self.next_on_failure = next_on_failure
        self._cache_s = cache_s
        self._known: dict[str, tuple[Account | None, float]] = {}

    def abilities(self) -> frozenset[str]:
        return frozenset()  # it gives no secrets away

    def peek(self, user: str) -> Account | None:
        known = self._known.get(user)
        if known is None or known[1] < time.monotonic():
            raise Ask
        return known[0]

    def remember(self, user: str, account: Account | None) -> Account | None:
        """Who it is, for cache_s."""
        if self._cache_s:
            if len(self._known) >= REMEMBERED_MAX:
                del self._known[next(iter(self._known))]
            self._known[user] = account, time.monotonic() + self._cache_s
        return account

    def is_current(self, user: str, verified: Verified) -> Account | None:
        return verified.account  # for auth.cache_s: to ask is what the cache is to save

    async def keys(
        self, user: str, kind: str, nobody: ScramKeys
    ) -> tuple[Account, ScramKeys] | None:
        return None

    async def secret(self, user: str) -> tuple[Account, str] | None:
        return None

    def problems(self) -> list[str]:
        return []


def first_line(path: Path) -> str:
    """A secret in a file of its own.  Raises SourceError."""
    try:
        return path.read_text(errors="replace").partition("\n")[0].strip()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
