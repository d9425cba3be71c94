"""What FETCH tells of each message, and where it comes from.

    Owns      Plan; how each item is found: in the record, in the stored facts, in the header, in the whole message
    Flow      FetchRequest.items → Plan (once a command) → for each window: Account.columns() → Plan.answer(), in the
              store's thread → octets of the wire
    Limits    what a window holds is for fetch.py to bound
    Errors    a message that cannot be read is left out, and Answer.error says why; a part whose encoding is unknown is
              NIL, and the same
    Standards RFC 9051 §6.4.5, §7.5.2; RFC 3516 (BINARY); RFC 8474; RFC 8970

The cheapest source that has an item is asked: FLAGS and the like come from the packed records alone, ENVELOPE and
BODYSTRUCTURE from the facts, header fields from the header column; whole messages are read for the rest only.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

from gateway._native import (
    FETCH_BINARY,
    FETCH_BODY,
    FETCH_DATE,
    FETCH_EMAIL_ID,
    FETCH_FIELDS,
    FETCH_FLAGS,
    FETCH_LITERAL,
    FETCH_MODSEQ,
    FETCH_OCTETS,
    FETCH_PAIR,
    FETCH_SAVE_DATE,
    FETCH_SECTION,
    FETCH_SIZE,
    FETCH_THREAD_ID,
    FETCH_UID,
    RECORD_OCTETS,
    FetchFormat,
    HeaderFields,
    crc32c,
    imap_string,
)
from gateway.mail.imap_facts import BODYSTRUCTURE, ENVELOPE, PartPlace, part_places
from gateway.mail.sections import (
    PREVIEW_OCTETS,
    PartDecoder,
    UnknownEncoding,
    cut,
    part_encoding,
    preview,
    section_range,
)
from gateway.protocol.imap.fetch import Item
from gateway.server.imap.state import No, no_of
from gateway.store.errors import StoreDamaged, StoreError
from gateway.store.large import SLICE_OCTETS, LargeContent
from gateway.store.model import UID_MAX, Content

_OF_RECORD = {
    b"UID": FETCH_UID,
    b"FLAGS": FETCH_FLAGS,
    b"MODSEQ": FETCH_MODSEQ,
    b"RFC822.SIZE": FETCH_SIZE,
    b"INTERNALDATE": FETCH_DATE,
    b"SAVEDATE": FETCH_SAVE_DATE,
}
_OF_FACTS = {
    b"ENVELOPE": (FETCH_SECTION, ENVELOPE),
    b"BODYSTRUCTURE": (FETCH_SECTION, BODYSTRUCTURE),
    b"BODY": (FETCH_BODY, None),
    b"THREADID": (FETCH_THREAD_ID, None),
}

UNKNOWN_CTE = b"UNKNOWN-CTE"


class Source:
    """One message whose octets have been read."""

    __slots__ = ("_content", "_facts", "_places")

    def __init__(self, facts: bytes, content: Content) -> None:
        self._facts = facts
        self._content = content
        self._places: list[PartPlace] | None = None

    @property
    def places(self) -> list[PartPlace]:
        if self._places is None:
            self._places = part_places(self._facts)
        return self._places

    @property
    def size(self) -> int:
        return len(self._content.header) + len(self._content.body)

    def octets(self, start: int, end: int) -> bytes | memoryview:
        return cut(self._content.header, self._content.body, start, end)


class LargeSource(Source):
    """The same of one that is read in slices."""

    __slots__ = ("_large",)

    def __init__(self, large: LargeContent) -> None:
        super().__init__(large.facts, Content(b"", b""))
        self._large = large

    @property
    def size(self) -> int:
        return self._large.size

    def octets(self, start: int, end: int) -> bytes:
        return self._large.read(start, min(end, self.size))


Value = Callable[[Source], Any]


class Answer(NamedTuple):
    """What a window became."""

    octets: bytes
    error: No | None = None  # about a message that was left out, or an item that is NIL
    previews: list[bytes] | None = None  # that were made


class Context(NamedTuple):
    """What the responses of a session have in common."""

    keywords: tuple[str, ...]
    recent_uid: int  # 0: no \\Recent
    uid_only: bool
    account: str  # whose mailbox it is


class Plan:
    """How one command's items are found."""

    def __init__(self, items: Sequence[Item], context: Context) -> None:
        self.items = items
        self.context = context
        self.sources: set[str] = set()  # columns of the store
        self._columns: list[str | Value] = []
        self._at: dict[object, int] = {}
        self.error: No | None = None
        self.format = FetchFormat(
            [self._compiled(item) for item in items],
            [keyword.encode() for keyword in context.keywords],
            context.recent_uid if context.recent_uid <= UID_MAX else 0,
            context.uid_only,
        )
        self.names = self._names()  # the columns to ask the store for
        self.reads_content = "content" in self.sources
        self.sets_seen = not all(item.peek for item in items)
        self.previews = _preview in self._at and all(column in _WITHOUT_TEXT for column in self._columns)
        self.names_but_text = _names_of(self.sources - {"content"})  # to ask for where previews are known
        self._is_whole = self.names == ["content"] and self._columns == ["header", "body"]

    def _names(self) -> list[str]:
        if "content" not in self.sources:
            return _names_of(self.sources)
        needs_facts = "facts" in self.sources or any(callable(column) for column in self._columns)
        return ["facts", "content"] if needs_facts else ["content"]

    def _column(self, column: str | Value, *sources: str) -> int:
        self.sources.update(sources)
        at = self._at.get(column)
        if at is None:
            at = self._at[column] = len(self._columns)
            self._columns.append(column)
        return at

    def _compiled(self, item: Item) -> tuple[bytes, int, int, Any, int, int]:
        """The item as FetchFormat takes it."""
        name = item.name
        if name in _OF_RECORD:
            return (name, _OF_RECORD[name], 0, None, -1, 0)
        if name == b"EMAILID":  # unique for all that one login may see
            prefix = b"M%08x-" % crc32c(self.context.account.encode())
            return (name, FETCH_EMAIL_ID, 0, prefix, -1, 0)
        if name in _OF_FACTS:
            kind, extra = _OF_FACTS[name]
            return (name, kind, self._column("facts", "facts"), extra, -1, 0)
        if name == b"PREVIEW":
            return (name, FETCH_OCTETS, self._column(_preview, "content"), None, -1, 0)
        section = item.section
        assert section is not None
        if name == b"BINARY.SIZE[]":
            value = self._guarded(lambda source: _binary_size(source, section.path))
            return (item.label, FETCH_OCTETS, self._column(value, "content"), None, -1, 0)
        if name == b"BINARY[]":
            value = self._guarded(lambda source: _binary(source, section.path))
            return (
                item.label,
                FETCH_BINARY,
                self._column(value, "content"),
                None,
                item.start,
                item.count,
            )
        if section.path:
            at = self._column(lambda source: _section(source, item), "content")
            return (item.label, FETCH_LITERAL, at, None, item.start, item.count)
        if section.text == b"HEADER":
            return (
                item.label,
                FETCH_LITERAL,
                self._column("header", "header"),
                None,
                item.start,
                item.count,
            )
        if section.fields:
            at = self._column("header", "header")
            return (item.label, FETCH_FIELDS, at, header_fields(item), item.start, item.count)
        if section.text == b"TEXT":
            return (
                item.label,
                FETCH_LITERAL,
                self._column("body", "content"),
                None,
                item.start,
                item.count,
            )
        # header and body, which must be neighbours
        at = len(self._columns)
        self._columns += ["header", "body"]
        self.sources.add("content")
        return (item.label, FETCH_PAIR, at, None, item.start, item.count)

    def _guarded(self, value: Value) -> Value:
        def guarded(source: Source) -> Any:
            try:
                return value(source)
            except UnknownEncoding as error:
                self.error = No(str(error), UNKNOWN_CTE)
                return None

        return guarded

    # -- in a thread of the store ------------------------------------------------------------------------------------

    def answer(
        self, numbers: bytes, records: bytes, columns: list[Any], previews: list[bytes] | None = None
    ) -> Answer:
        """The responses for these records; columns: what the store has for names.

        previews: those of the messages, where they are known; columns are what it has for names_but_text then.
        """
        self.error = None
        try:
            if self._is_whole:
                made = [[one.header for one in columns[0]], [one.body for one in columns[0]]]
            else:
                names = self.names if previews is None else self.names_but_text
                made = self._made(dict(zip(names, columns, strict=True)), previews)
            octets = self.format.format(records, numbers, made)
        except (AttributeError, TypeError):  # errors among the values
            return self._answer_without(numbers, records, columns, previews)
        return Answer(octets, self.error, made[self._at[_preview]] if self.previews and previews is None else None)

    def _answer_without(
        self, numbers: bytes, records: bytes, columns: list[Any], previews: list[bytes] | None
    ) -> Answer:
        """The same where some messages cannot be had."""
        lost = {
            at: value
            for column in columns
            for at, value in enumerate(column)
            if isinstance(value, StoreError)
        }
        if not lost:
            raise RuntimeError("the columns do not fit")
        numbers = _without(numbers, lost, 4)
        records = _without(records, lost, RECORD_OCTETS)
        columns = [
            [value for at, value in enumerate(column) if at not in lost] for column in columns
        ]
        if previews is not None:
            previews = [value for at, value in enumerate(previews) if at not in lost]
        answer = self.answer(numbers, records, columns, previews)
        return answer._replace(error=_error_of(next(iter(lost.values()))), previews=None)

    def _made(self, found: dict[str, Any], previews: list[bytes] | None) -> list[Any]:
        contents: list[Content] | None = found.get("content")
        sources: list[Source] = []
        made: list[Any] = []
        for column in self._columns:
            if previews is not None and column is _preview:
                made.append(previews)
            elif callable(column):
                if not sources and contents:
                    sources = [Source(*both) for both in zip(found["facts"], contents, strict=True)]
                made.append([column(source) for source in sources])
            elif contents is None or column == "facts":
                made.append(found[column] if column in found else found["joined facts"])
            elif column == "header":
                made.append([content.header for content in contents])
            else:
                made.append([content.body for content in contents])
        return made

    def answer_large(self, number: bytes, record: bytes, large: LargeContent) -> bytes:
        """The response for one message; only for the plan of items that are small."""
        source = LargeSource(large)
        made: list[list[Any]] = []
        for column in self._columns:
            if callable(column):
                made.append([column(source)])
            elif column == "facts":
                made.append([large.facts])
            else:
                top = source.places[0]
                made.append([source.octets(0, top.body_start)])
        self.error = None
        return self.format.format(record, number, made)


def _names_of(sources: set[str]) -> list[str]:
    """Columns of the store that have these, and no text."""
    return ["joined facts"] if sources == {"facts"} else sorted(sources)


def header_fields(item: Item) -> HeaderFields:
    assert item.section is not None
    return HeaderFields(item.section.fields, item.section.text == b"HEADER.FIELDS.NOT")


def _error_of(error: StoreError) -> No:
    if isinstance(error, StoreDamaged):
        return no_of(error)
    # RFC 2180 §4.1.2: what could be told was told
    return No("Some of the messages were expunged meanwhile", b"EXPUNGEISSUED")


def _without(packed: bytes, lost: Container[int], width: int) -> bytes:
    count = len(packed) // width
    return b"".join(
        packed[at * width : at * width + width] for at in range(count) if at not in lost
    )


# -- values that are computed ----------------------------------------------------------------------------------------


def _preview(source: Source) -> bytes:
    text = preview(bytes(source.octets(0, min(source.size, PREVIEW_OCTETS))))
    return imap_string(text.encode("utf-8", "replace"))


_WITHOUT_TEXT: tuple[str | Value, ...] = (_preview, "facts", "header")  # but for making the preview


def _section(source: Source, item: Item) -> bytes | memoryview | None:
    section = item.section
    assert section is not None
    found = section_range(source.places, section.path, section.text)
    if found is None:
        return None
    octets = source.octets(*found)
    return header_fields(item).cut(octets) if section.fields else octets


def _binary(source: Source, path: tuple[int, ...]) -> bytes | None:
    found = section_range(source.places, path)
    if found is None:
        return None
    decoder = PartDecoder(part_encoding(source.places, path))
    return decoder.feed(bytes(source.octets(*found))) + decoder.finish()


def _binary_size(source: Source, path: tuple[int, ...]) -> bytes:
    found = section_range(source.places, path)
    size = 0
    if found is not None:
        decoder = PartDecoder(part_encoding(source.places, path))
        start, end = found
        for at in range(start, end, SLICE_OCTETS):
            size += len(decoder.feed(bytes(source.octets(at, min(end, at + SLICE_OCTETS)))))
        size += len(decoder.finish())
    return b"%d" % size
