"""The proof: what the source was promised beside what arrived, message by message.

    Owns      Difference, compare() for entries at hand, prove() for files and mailboxes
    Flow      rows of all files → one table of SQLite, sorted by message → one group a message → counts
    Files     SQLite's own unnamed ones in SQLITE_TMPDIR or /tmp, gone at the end: about 0.2 KiB an entry
    Limits    memory: CACHE_KIB, whatever the number of entries
    Errors    ValueError names the line that is not a ledger's
    Standards RFC 5321 §6.1 (who has the duty), RFC 1047 (why a message may come twice)
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import msgspec

from smtp_blaster.ledger_file import (
    ENTRY,
    KILLED,
    REFUSED,
    TORN,
    UNCONFIRMED,
    UNKNOWN,
    Entry,
    Ledger,
    Row,
    mark,
    read,
    rows,
)  # fmt: skip

__all__ = ["Difference", "Entry", "Ledger", "compare", "mark", "prove", "read"]

CACHE_KIB = 65536
NAMED_MAX = 100  # of each kind of failure
# How long before a kill a copy may have been answered without our side having written that down.
WINDOW_S = 5.0
DIGEST_CHARACTERS = 16  # 64 bits of the SHA-256 are compared
PROGRESS_ROWS = 50_000

_ACCEPTED, _DELIVERED, _REFUSED, _UNKNOWN, _UNCONFIRMED = range(5)
_KINDS = {REFUSED: _REFUSED, UNKNOWN: _UNKNOWN, UNCONFIRMED: _UNCONFIRMED}

Arrival = tuple[str, int, str, int]  # forward-path, kind, digest, time


class Difference(msgspec.Struct, kw_only=True):
    """Counts of (message, recipient) pairs, unless the name says otherwise."""

    accepted: int = 0
    delivered: int = 0  # deliveries, each copy
    lost: int = 0  # accepted, never delivered
    altered: int = 0  # delivered with another digest than the accepted one
    duplicated: int = 0  # deliveries beyond the first
    duplicated_explained: int = 0  # of these, by a lost reply or a kill (RFC 1047)
    duplicated_unexplained: int = 0  # the rest
    unpromised: int = 0  # delivered without having been accepted
    unpromised_unknown: int = 0  # of these: the source never heard a reply to its content
    unpromised_refused: int = 0  # of these: the source had a negative reply
    refused: int = 0  # and not accepted at another try
    unknown: int = 0  # no reply to the content, and not accepted at another try
    kills: int = 0  # marked, or seen in the sink's ledgers
    torn: list[str] = []  # lines that a kill cut short; not counted
    lost_ids: list[str] = []  # the first hundred, as the three that follow
    altered_ids: list[str] = []
    unexplained_ids: list[str] = []
    unpromised_ids: list[str] = []

    @property
    def is_clean(self) -> bool:
        """Nothing lost or altered, nothing twice without a reason.  RFC 5321 §6.1 allows unpromised mail."""
        return not (self.lost or self.altered or self.duplicated_unexplained)


def compare(accepted: Iterable[Entry], delivered: Iterable[Entry]) -> Difference:
    """The difference of entries at hand.  Without times and remarks no duplicate is explained."""
    with _Table() as table:
        table.add((ENTRY, *entry, 0) for entry in accepted)
        table.add(((ENTRY, *entry, 0) for entry in delivered), delivered=True)
        return table.difference()


def prove(
    accepted: Sequence[Path],
    delivered: Sequence[Path],
    *,
    arrivals: Iterable[Row] = (),
    kills: Sequence[Path] = (),
    window_s: float = WINDOW_S,
    progress: Callable[[int], None] | None = None,
) -> Difference:
    """The difference of ledger files, and of arrivals from elsewhere (ledger_mailbox).

    kills: files of marks.  A copy that came again is explained when the sink could not confirm the
    earlier one, or when something was killed within window_s behind it.  progress: gets the rows read
    so far.  Raises ValueError.
    """
    with _Table(progress) as table:
        for path in accepted:
            table.add(rows(path))
        for path in delivered:
            table.add(rows(path), delivered=True)
        table.add(arrivals, delivered=True)
        for path in kills:
            table.add(rows(path), kills_only=True)
        return table.difference(window_s)


class _Table:
    """Everything that was said about every message."""

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self._progress = progress
        self._read = 0
        self._kills: list[int] = []
        self._torn: list[str] = []
        # The unnamed database stays in memory while it fits the cache and moves to a file when not.
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(
            f"PRAGMA cache_size=-{CACHE_KIB}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE said (message TEXT, path TEXT, kind INT, digest TEXT, at INT);"
        )

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def add(
        self, found: Iterable[Row], *, delivered: bool = False, kills_only: bool = False
    ) -> None:
        base = self._base
        base.execute("BEGIN")
        base.executemany(
            "INSERT INTO said VALUES (?, ?, ?, ?, ?)",
            self._rows(found, _DELIVERED if delivered else _ACCEPTED, kills_only),
        )
        base.execute("COMMIT")

    def _rows(
        self, found: Iterable[Row], side: int, kills_only: bool
    ) -> Iterator[tuple[str, str, int, str, int]]:
        for kind, message_id, digest, forward_path, at in found:
            self._read += 1
            if self._progress is not None and not self._read % PROGRESS_ROWS:
                self._progress(self._read)
            if kind == ENTRY:
                if not kills_only:
                    yield _text(message_id), _text(forward_path), side, digest[:DIGEST_CHARACTERS], at
            elif kind == TORN:
                self._torn.append(forward_path)
            elif kind == KILLED:
                # The end of the source repeats nothing; only the marks of others and of the sink count.
                if side == _DELIVERED or kills_only:
                    self._kills.append(at)
            elif not kills_only:
                yield _text(message_id), _text(forward_path), _KINDS[kind], "", at

    def difference(self, window_s: float = WINDOW_S) -> Difference:
        count = _Count(sorted(self._kills), int(window_s * 1e9))
        self._base.execute(f"PRAGMA cache_size=-{CACHE_KIB // 2}")  # the sort has its own beside it
        said = self._base.execute(
            "SELECT message, path, kind, digest, at FROM said ORDER BY message, path, at, kind"
        )
        for message_id, group in groupby(said, key=itemgetter(0)):
            count.message(message_id, [row[1:] for row in group])
        count.found.kills = len(self._kills)
        count.found.torn = self._torn
        return count.found


class _Count:
    """Adds up what came of each message."""

    def __init__(self, kills: list[int], window_ns: int) -> None:
        self.found = Difference()
        self._kills = kills
        self._window_ns = window_ns

    def message(self, message_id: str, said: list[Arrival]) -> None:
        """One message; what was said is sorted by forward-path and time."""
        if len(said) == 2:  # nearly all of them
            (path, kind, digest, _), (other, other_kind, other_digest, _) = said
            if kind + other_kind == 1 and path == other and digest == other_digest:
                self.found.accepted += 1
                self.found.delivered += 1
                return
        by_path = {path: list(rows) for path, rows in groupby(said, key=itemgetter(0))}
        if "" in by_path and len(by_path) > 1:
            _give_to_recipients(by_path)
        for path, about in by_path.items():
            self._pair(message_id, path, about)

    def _pair(self, message_id: str, path: str, said: list[Arrival]) -> None:
        found = self.found
        promised = [digest for _, kind, digest, _ in said if kind == _ACCEPTED]
        copies = [(digest, at) for _, kind, digest, at in said if kind == _DELIVERED]
        name = f"{message_id} to {path}" if path else message_id
        found.delivered += len(copies)
        if promised:
            found.accepted += 1
            if not copies:
                found.lost += 1
                _name(found.lost_ids, name)
            elif any(digest not in promised for digest, _ in copies):
                found.altered += 1
                _name(found.altered_ids, name)
        else:
            refused = any(kind == _REFUSED for _, kind, _, _ in said)
            unheard_of = any(kind == _UNKNOWN for _, kind, _, _ in said)
            found.unknown += unheard_of
            found.refused += refused and not unheard_of
            if copies:
                found.unpromised += 1
                found.unpromised_unknown += unheard_of
                found.unpromised_refused += refused and not unheard_of
                _name(found.unpromised_ids, name)
        if len(copies) > 1:
            unconfirmed = [at for _, kind, _, at in said if kind == _UNCONFIRMED]
            # A source that did not hear the reply may have sent again; next to the sink that is the same event.
            unheard = [at for _, kind, _, at in said if kind == _UNKNOWN]
            explained = self._explained([at for _, at in copies], max(unconfirmed, unheard, key=len))
            again = len(copies) - 1
            found.duplicated += again
            found.duplicated_explained += explained
            found.duplicated_unexplained += again - explained
            if explained < again:
                _name(found.unexplained_ids, name)

    def _explained(self, copies: list[int], unconfirmed: list[int]) -> int:
        """How many of the copies behind the first RFC 1047 explains; both lists are sorted by time.

        A connection that ended without a confirmed reply explains one further copy, and so does a kill
        not later than the window behind the copy before.
        """
        explained = 0
        left = len(unconfirmed)
        for before, copy in pairwise(copies):
            # A copy that came while nobody could yet know of the lost reply is not its consequence.
            if left and unconfirmed[len(unconfirmed) - left] <= copy:
                left -= 1
                explained += 1
                continue
            first = bisect_left(self._kills, before)
            last = min(copy, before + self._window_ns)
            explained += first < len(self._kills) and self._kills[first] <= last
        return explained


def _give_to_recipients(by_path: dict[str, list[Arrival]]) -> None:
    """Copies that do not say for whom they are (a Maildir without Delivered-To) go to who has none yet."""
    waiting = sorted(
        (path for path in by_path if path),
        key=lambda path: sum(kind == _DELIVERED for _, kind, _, _ in by_path[path]),
    )
    for index, (_, kind, digest, at) in enumerate(by_path.pop("")):
        path = waiting[index % len(waiting)]
        by_path[path].append((path, kind, digest, at))
        by_path[path].sort(key=itemgetter(3))


def _text(text: str) -> str:
    """SQLite's TEXT is UTF-8: octets that are not become escapes."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _name(names: list[str], name: str) -> None:
    if len(names) < NAMED_MAX:
        names.append(name)
