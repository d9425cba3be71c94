"""Which messages have a text in them: by blocks of texts for common fields, by reading, by an index of trigrams.

    Owns      SearchIndex, Matcher
    Flow      search → texts.py for a common field; else candidates of the index, and what is not indexed yet → each is
              read and looked at → a mask
    Files     <account>/search.db, which may be removed at any time
    Limits    search() works SLICE_S; UPDATE_MESSAGES a transaction; texts below three characters have no trigram:
              everything is read; of a message beyond MESSAGE_OCTETS_MAX that many octets are looked at
    Errors    a damaged index is removed and built again; nothing of it is needed for an answer
    Blocking  everything
    Standards RFC 9051 §6.4.4: substrings in any case
    Bugs      none known

The index only says which messages cannot match; each candidate is looked at.  So folding, decoding and which part of
a message is meant are questions of mail.search_text alone, and the index can be small (detail=none, no positions).

When is it built?  Reading a message costs some 13 µs, to index it forty times that: an account whose owner seldom
searches never gains by an index, and a delivery pays nothing for one.  So messages that are not indexed are read, and
counted; when as many were read as indexing costs (READS_PAY of each), they are indexed, in the background.  Whoever
searches often has an index therefore, and its newest messages are the ones read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any

import apsw

from gateway._native import find_texts
from gateway.mail.search_text import Wanted, body_text_of, header_text_of
from gateway.store.content import Contents
from gateway.store.database import Database
from gateway.store.errors import StoreError
from gateway.store.model import Content
from gateway.store.search_database import SearchDatabase, SearchUnusable
from gateway.store.texts import FIELDS, SLICE_S, Texts

HEADERS_AT_ONCE = 1024
UPDATE_MESSAGES = 100
TEXT_CHARACTERS_MAX = 1 << 20  # of one message in the index; longer ones are always candidates
MESSAGE_OCTETS_MAX = 64 << 20
PRUNE_PART = 1.5  # rows to messages: more, and those of removed messages go
READS_PAY = 30  # searches that read a message cost about what its place in the index does
READS_MIN = 2000  # fewer are not worth waking the disk for
GRAMS_MAX = 50

TEXT, BODY, HEADER = "text", "body", "header"


class Matcher:
    """Looks for one text.

    where: TEXT, BODY, HEADER, or the name of a field, in lower case; the field Text is "text:".
    """

    def __init__(self, where: str, text: str) -> None:
        self.where = where
        self.wanted = Wanted(text)
        self.text = self.wanted.text
        self._field = where.rstrip(":").encode("latin-1", "replace")

    @property
    def reads_bodies(self) -> bool:
        return self.where in (TEXT, BODY)

    def matches(self, content: Content) -> bool:
        if self.where == TEXT and self.wanted.in_header(content.header):
            return True
        if self.reads_bodies:
            return self.wanted.in_body(content.header + content.body)
        return self.matches_header(content.header)

    def matches_header(self, header: bytes) -> bool:
        if self.where == HEADER:
            return self.wanted.in_header(header)
        return self.wanted.in_field(header, self._field)


class SearchIndex:
    """The index of one account's messages."""

    def __init__(
        self, search: SearchDatabase, database: Database, contents: Contents, texts: Texts
    ) -> None:
        self._search = search
        self._database = database
        self._contents = contents
        self._texts = texts
        # The last text, the last key that was indexed then, and its candidates, ascending.
        self._asked: tuple[str, int, array[int]] | None = None

    def search(self, keys: array[int], where: str, text: str) -> bytes:
        """The mask of the first messages of these, as many as there was time for: 1 where the text is.

        What cannot be read does not match.
        """
        if not keys:
            return b""
        matcher = Matcher(where, text)
        if where in FIELDS and matcher.text and "\0" not in matcher.text:
            texts = self._texts.texts(where, keys)
            return find_texts(texts, matcher.text.encode("utf-8", "replace")) if texts else b""
        if not matcher.reads_bodies:
            # The header is read in any case: small, and for a field cheaper than asking the index.
            return bytes(
                not isinstance(header, StoreError) and matcher.matches_header(header)
                for header in self._contents.headers(keys[:HEADERS_AT_ONCE])
            )
        return self._search_bodies(keys, matcher)

    def _search_bodies(self, keys: array[int], matcher: Matcher) -> bytes:
        last, candidates = self._candidates(matcher.text)
        low, high = bisect_left(candidates, min(keys)), bisect_right(candidates, max(keys))
        possible = set(candidates[low:high])
        mask = bytearray(len(keys))
        places = [at for at, key in enumerate(keys) if key > last or key in possible]
        end = monotonic() + SLICE_S
        done = len(keys)
        read = 0
        wanted = [keys[at] for at in places]
        for count, (_, content) in enumerate(self._contents.each(wanted, MESSAGE_OCTETS_MAX)):
            if not isinstance(content, StoreError) and matcher.matches(content):
                mask[places[count]] = 1
            read += 1
            if monotonic() > end:
                done = places[count] + 1
                break
        if unindexed := sum(key > last for key in wanted[:read]):
            self._count_reads(unindexed)
        return bytes(mask[:done])

    def _candidates(self, text: str) -> tuple[int, array[int]]:
        """(the last key that is indexed, keys up to there that may match); (0, …) when the index cannot tell."""
        grams = {text[at : at + 3] for at in range(len(text) - 2)}
        nothing = 0, array("Q")
        if not grams or "\0" in text or not self._search.exists:  # the index has no NULs
            return nothing
        try:
            with self._search.read() as index:
                last = _state(index)[0]
                if last == 0:
                    return nothing
                if self._asked is None or self._asked[:2] != (text, last):
                    query = " AND ".join(
                        '"' + gram.replace('"', '""') + '"' for gram in sorted(grams)[:GRAMS_MAX]
                    )
                    found = _keys(index.execute("SELECT rowid FROM words(?) ORDER BY rowid", (query,)))
                    if long := _keys(index.execute("SELECT message FROM long")):
                        found = array("Q", sorted(found + long))
                    self._asked = text, last, found
                return self._asked[1:]
        except SearchUnusable:
            return nothing

    # -- building --------------------------------------------------------------------------------------------------

    def _count_reads(self, count: int) -> None:
        try:
            with self._search.write() as index:
                index.execute("UPDATE state SET unindexed_reads=unindexed_reads+?", (count,))
        except SearchUnusable:
            return

    def pays(self) -> bool:
        """So many messages were read for want of an index that update() pays."""
        if not self._search.exists:
            return False
        try:
            with self._search.read() as index:
                last, _, reads = _state(index)
        except SearchUnusable:
            return False
        if reads < READS_MIN:
            return False
        (count,) = self._database.row("SELECT count(*) FROM message WHERE id>?", (last,)) or (0,)
        return bool(reads >= count * READS_PAY)

    def update(self) -> bool:
        """Index some messages that are not yet; False when none is left."""
        try:
            with self._search.write() as index:
                return self._update(index)
        except SearchUnusable:
            return False

    def _update(self, index: apsw.Connection) -> bool:
        last, rows, _ = _state(index)
        keys = _keys(
            self._database.execute(
                "SELECT id FROM message WHERE id>? ORDER BY id LIMIT ?", (last, UPDATE_MESSAGES)
            )
        )
        end = monotonic() + 2 * SLICE_S
        done = 0
        for key, content in self._contents.each(keys, MESSAGE_OCTETS_MAX):
            self._add(index, key, content)
            done += 1
            if monotonic() > end:
                break
        if done:
            index.execute("UPDATE state SET last_key=?, rows=rows+?", (keys[done - 1], done))
        elif self._too_many(rows):
            self._prune(index)
        more = done < len(keys) or len(keys) == UPDATE_MESSAGES
        if not more:
            index.execute("UPDATE state SET unindexed_reads=0")
        return more

    def _add(self, index: apsw.Connection, key: int, content: Content | StoreError) -> None:
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
        there = set(_keys(self._database.execute("SELECT id FROM message")))
        for table, key in (("words", "rowid"), ("long", "message")):
            gone = [k for k in _keys(index.execute(f"SELECT {key} FROM {table}")) if k not in there]
            index.executemany(f"DELETE FROM {table} WHERE {key}=?", ((k,) for k in gone))
        index.execute("UPDATE state SET rows=?", (len(there),))


def _state(index: apsw.Connection) -> tuple[int, int, int]:
    """(last key that is indexed, rows, reads of messages that are not)."""
    found: Any = index.execute("SELECT last_key, rows, unindexed_reads FROM state").fetchall()
    last, rows, reads = found[0]
    return last, rows, reads


def _keys(rows: Iterable[Sequence[Any]]) -> array[int]:
    return array("Q", (key for (key,) in rows))
