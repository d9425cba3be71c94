"""Short texts of all messages, side by side: what SORT, THREAD and searches in common header fields look at.

    Owns      Texts; the kinds of texts
    Flow      keys → blocks of BLOCK_MESSAGES keys each → gather_texts() → one packed piece for the kernels
    Files     table block of <account>/search.db: a block is made when it is first asked for, and never changes
    Limits    a block is not made for less than SPARSE of its messages, nor for the newest messages, whose block is
              not full: these are read one by one
    Errors    what cannot be read is an empty text; without search.db everything is read each time
    Blocking  everything
    Standards RFC 5256 (sort keys, references: mail/imap_facts.py), RFC 9051 §6.4.4 (fields: mail/search_text.py)

Ten thousand subjects are forty blobs and one memmem() each, where they would be ten thousand rows.  Deliveries pay
nothing for it; a block costs its first reader about 10 µs a message, once.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from math import inf
from time import monotonic

from gateway._native import count_blocks, gather_texts, pack_texts
from gateway.mail.imap_facts import SORT, THREAD, section
from gateway.mail.search_text import common_field_texts
from gateway.store.content import Contents
from gateway.store.database import Database
from gateway.store.errors import StoreError
from gateway.store.search_database import SearchDatabase, SearchUnusable

BLOCK_SHIFT = 8
BLOCK_MESSAGES = 1 << BLOCK_SHIFT
SPARSE = 32
FORGET_BLOCKS = 4
SLICE_S = 0.02  # others wait for the account meanwhile

# Kinds.  A field's texts are its values, decoded, folded, in UTF-8, with NUL between them.
SORT_KEYS, REFERENCES = "sort keys", "message ids"  # no field is called so
_FACTS = (SORT_KEYS, REFERENCES)
_COMMON = ("subject", "from", "to", "cc", "bcc")
_OTHER = (
    "content-type", "delivered-to", "in-reply-to", "list-id", "message-id", "references", "reply-to", "return-path",
    "sender", "user-agent", "x-mailer", "x-spam-flag",
)  # fmt: skip
FIELDS = frozenset(_COMMON + _OTHER)


class Texts:
    """The texts of one account's messages."""

    def __init__(self, search: SearchDatabase, database: Database, contents: Contents) -> None:
        self._search = search
        self._database = database
        self._contents = contents
        self._missing = inf  # blocks, when None was returned last: what was kept must be found the next time

    def texts(self, kind: str, keys: array[int]) -> bytes | None:
        """Of each message its text of that kind, as pack_texts() packs them; ask for some thousand at a time.

        None: blocks are being made, and others want their turn; to be asked again.
        """
        wanted = count_blocks(keys, BLOCK_SHIFT)  # number of a block → how many of its texts
        blocks = self._kept(kind, wanted)
        missing = [number for number in wanted if number not in blocks]
        full = self._next_key() >> BLOCK_SHIFT if missing else 0  # blocks below never change any more
        made: dict[str, dict[int, bytes]] = {}
        end = monotonic() + SLICE_S
        whole = [number for number in missing if number < full and wanted[number] >= SPARSE]
        for number in whole:
            every = range(number << BLOCK_SHIFT, (number + 1) << BLOCK_SHIFT)
            for name, texts in self._read(kind, every).items():
                made.setdefault(name, {})[number] = pack_texts(texts)
            if monotonic() > end and number != whole[-1]:
                if len(whole) < self._missing and self._keep(made):
                    self._missing = len(whole)
                    return None
                end = inf
        self._missing = inf
        self._keep(made)
        blocks.update(made.get(kind, {}))
        if len(whole) < len(missing):
            blocks.update(self._thin(kind, set(missing).difference(whole), keys))
        return gather_texts(keys, blocks, BLOCK_SHIFT)

    def _thin(self, kind: str, numbers: set[int], keys: Sequence[int]) -> dict[int, bytes]:
        """Blocks with the texts of these keys alone."""
        some = [key for key in keys if key >> BLOCK_SHIFT in numbers]
        blocks = {number: [b""] * BLOCK_MESSAGES for number in numbers}
        for key, text in zip(some, self._read(kind, some)[kind], strict=True):
            blocks[key >> BLOCK_SHIFT][key & (BLOCK_MESSAGES - 1)] = text
        return {number: pack_texts(texts) for number, texts in blocks.items()}

    def _read(self, kind: str, keys: Sequence[int]) -> dict[str, list[bytes]]:
        """The texts of that kind, and of those that are found on the way."""
        if kind in _FACTS:
            found: dict[str, list[bytes]] = {SORT_KEYS: [], REFERENCES: []}
            for facts in self._contents.facts(keys):
                packed = None if isinstance(facts, StoreError) else facts
                found[SORT_KEYS].append(section(packed, SORT) if packed else b"")
                found[REFERENCES].append(section(packed, THREAD) if packed else b"")
            return found
        names = _COMMON if kind in _COMMON else _OTHER
        found = {name: [] for name in names}
        for header in self._contents.headers(keys):
            values = {} if isinstance(header, StoreError) else common_field_texts(header, names)
            for name in names:
                found[name].append(values.get(name, b""))
        return found

    def _next_key(self) -> int:
        row = self._database.row("SELECT uidnext FROM mailbox WHERE id=0")
        return 0 if row is None else int(row[0])

    def _kept(self, kind: str, numbers: dict[int, int]) -> dict[int, bytes]:
        if not self._search.exists:
            return {}
        try:
            with self._search.read() as connection:
                rows = connection.execute(
                    "SELECT number, texts FROM block WHERE kind=? AND number BETWEEN ? AND ?",
                    (kind, min(numbers), max(numbers)),
                )
                return {number: texts for number, texts in rows if number in numbers}
        except SearchUnusable:
            return {}

    def forget(self, removed: Sequence[int]) -> None:
        """These messages are gone: blocks that have few others go, too.  A few are looked at each time, by chance."""
        if not self._search.exists:
            return
        numbers = list(dict.fromkeys(key >> BLOCK_SHIFT for key in removed))
        sql = "SELECT count(*) FROM message WHERE id BETWEEN ? AND ?"
        gone = []
        for number in random.sample(numbers, min(len(numbers), FORGET_BLOCKS)):
            first = number << BLOCK_SHIFT
            (left,) = self._database.row(sql, (first, first + BLOCK_MESSAGES - 1)) or (0,)
            if left < SPARSE:
                gone.append((number,))
        if gone:
            try:
                with self._search.write() as connection:
                    connection.executemany("DELETE FROM block WHERE number=?", gone)
            except SearchUnusable:
                return

    def _keep(self, made: dict[str, dict[int, bytes]]) -> bool:
        """False when they are only in memory."""
        if not made:
            return True
        try:
            with self._search.write() as connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO block VALUES(?,?,?)",
                    ((kind, *block) for kind, blocks in made.items() for block in blocks.items()),
                )
        except SearchUnusable:
            return False
        return True
