"""Which messages have a text in them: by an index of trigrams where there is one, by reading where not.

    Owns      SearchIndex, matches()
    Flow      search → candidates of the index, and what is not indexed yet → each is read and looked at → keys
              afterwards, in the background: update() until nothing is left
    Files     <account>/search.db, which may be removed at any time
    Limits    UPDATE_MESSAGES a transaction; texts below three characters have no trigram: everything is read
    Errors    a damaged index is removed and built again; nothing of it is needed for an answer
    Blocking  everything
    Standards RFC 9051 §6.4.4: substrings in any case
    Bugs      none known

The index only says which messages cannot match; each candidate is looked at.  So folding, decoding and which part of
a message is meant are questions of mail.search_text alone, and the index can be small (detail=none, no positions).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import apsw

from gateway.mail.search_text import body_text_of, field_texts, folded, header_text_of
from gateway.store.content import Contents
from gateway.store.database import Database, errors
from gateway.store.errors import StoreError
from gateway.store.model import Content

UPDATE_MESSAGES = 100
TEXT_CHARACTERS_MAX = 1 << 20  # of one message in the index; longer ones are always candidates
PRUNE_PART = 1.5  # rows to messages: more, and those of removed messages go

TEXT, BODY, HEADER = "text", "body", "header"

_SCHEMA = """
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(
  text, content='', contentless_delete=1, detail=none, tokenize='trigram case_sensitive 1');
CREATE TABLE IF NOT EXISTS state(id INTEGER PRIMARY KEY, last_key INTEGER, rows INTEGER);
CREATE TABLE IF NOT EXISTS long(message INTEGER PRIMARY KEY);
INSERT OR IGNORE INTO state VALUES(1, 0, 0);
"""


def matches(content: Content, where: str, text: str) -> bool:
    """Does the message have the text there?  where: TEXT, BODY, HEADER, or the name of a field."""
    wanted = folded(text)
    if where == TEXT:
        return wanted in header_text_of(content.header) or wanted in body_text_of(
            content.header + content.body
        )
    if where == BODY:
        return wanted in body_text_of(content.header + content.body)
    if where == HEADER:
        return wanted in header_text_of(content.header)
    return any(wanted in value for value in field_texts(content.header, where.encode()))


class SearchIndex:
    """The index of one account's messages."""

    def __init__(self, directory: Path, database: Database, contents: Contents) -> None:
        self._path = directory / "search.db"
        self._database = database
        self._contents = contents
        self._index: apsw.Connection | None = None

    def close(self) -> None:
        if self._index is not None:
            self._index.close(True)
            self._index = None

    def search(self, keys: Sequence[int], where: str, text: str) -> list[int]:
        """Those of the messages that have the text there, in the order of keys.

        where: TEXT, BODY, HEADER, or the name of a field.  What cannot be read does not match.
        """
        if where not in (TEXT, BODY):
            # The header is read in any case: small, and for a field cheaper than asking the index.
            return [
                key
                for key, header in zip(keys, self._contents.headers(keys), strict=True)
                if not isinstance(header, StoreError) and matches(Content(header, b""), where, text)
            ]
        candidates = self._candidates(folded(text))
        found = []
        for key in keys:
            if candidates is not None and key <= candidates[0] and key not in candidates[1]:
                continue
            (content,) = self._contents.read([key])
            if not isinstance(content, StoreError) and matches(content, where, text):
                found.append(key)
        return found

    def _candidates(self, text: str) -> tuple[int, set[int]] | None:
        """(the last key that is indexed, keys that may match); None when the index cannot tell."""
        grams = {text[at : at + 3] for at in range(len(text) - 2)}
        if not grams or not self._path.exists():
            return None
        try:
            index = self._open()
            state: Any = index.execute("SELECT last_key FROM state").fetchall()[0]
            query = " AND ".join('"' + gram.replace('"', '""') + '"' for gram in sorted(grams)[:50])
            found = {key for (key,) in index.execute("SELECT rowid FROM words(?)", (query,))}
            found.update(key for (key,) in index.execute("SELECT message FROM long"))
            return int(state[0]), found
        except apsw.Error:
            self._discard()
            return None

    # -- building --------------------------------------------------------------------------------------------------

    def update(self) -> bool:
        """Index some messages that are not yet; False when none is left."""
        with errors(self._path):
            try:
                return self._update(self._open())
            except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError):
                self._discard()
                return False

    def _update(self, index: apsw.Connection) -> bool:
        index.execute("BEGIN IMMEDIATE")
        try:
            state: Any = index.execute("SELECT last_key, rows FROM state").fetchall()[0]
            last, rows = state
            keys = [
                key
                for (key,) in self._database.execute(
                    "SELECT id FROM message WHERE id>? ORDER BY id LIMIT ?", (last, UPDATE_MESSAGES)
                )
            ]
            for key in keys:
                self._add(index, key)
            if keys:
                index.execute("UPDATE state SET last_key=?, rows=rows+?", (keys[-1], len(keys)))
            elif self._too_many(rows):
                self._prune(index)
            index.execute("COMMIT")
        except BaseException:
            if not index.get_autocommit():
                index.execute("ROLLBACK")
            raise
        return len(keys) == UPDATE_MESSAGES

    def _add(self, index: apsw.Connection, key: int) -> None:
        (content,) = self._contents.read([key])
        if isinstance(content, StoreError):
            return
        text = header_text_of(content.header) + "\n" + body_text_of(content.header + content.body)
        if len(text) > TEXT_CHARACTERS_MAX:
            index.execute("INSERT OR IGNORE INTO long VALUES(?)", (key,))
        else:
            # SQLite's text ends at a NUL, and has no lone surrogates
            plain = text.replace("\0", " ").encode("utf-8", "replace").decode()
            index.execute("INSERT INTO words(rowid, text) VALUES(?,?)", (key, plain))

    def _too_many(self, rows: int) -> bool:
        count: int
        (count,) = self._database.row("SELECT count(*) FROM message") or (0,)
        return rows > count * PRUNE_PART + UPDATE_MESSAGES

    def _prune(self, index: apsw.Connection) -> None:
        there = set(self._keys(self._database.execute("SELECT id FROM message")))
        gone = [
            key
            for table in ("words", "long")
            for key in self._keys(index.execute(f"SELECT rowid FROM {table}"))
            if key not in there
        ]
        for table in ("words", "long"):
            index.executemany(f"DELETE FROM {table} WHERE rowid=?", ((key,) for key in gone))
        index.execute("UPDATE state SET rows=?", (len(there),))

    def _keys(self, rows: Iterable[tuple[int]]) -> array[int]:
        return array("Q", (key for (key,) in rows))

    def _open(self) -> apsw.Connection:
        if self._index is None:
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            index = apsw.Connection(str(self._path), flags=flags)
            index.set_busy_timeout(10_000)
            index.pragma("journal_mode", "wal")
            index.pragma("synchronous", 1)  # what a power loss takes is built again
            index.execute(_SCHEMA)
            self._index = index
        return self._index

    def _discard(self) -> None:
        self.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
