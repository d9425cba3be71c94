"""What SEARCH, SORT, THREAD and ESEARCH may say, and what they mean."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway._native import LITERAL, ImapCommand, ImapReader, ImapSyntaxError
from gateway.protocol.imap.search import (
    ALL,
    FOREVER,
    Age,
    And,
    BadCharset,
    Between,
    Flag,
    Key,
    Not,
    Numbers,
    ObjectId,
    Or,
    Recent,
    Return,
    Sent,
    Text,
    esearch_request,
    search_request,
    sort_request,
    thread_request,
)

DAY = 86_400


def command(octets: bytes) -> ImapCommand:
    reader = ImapReader(1 << 20)
    reader.feed(b"a " + octets + b"\r\n")
    while reader.read() == LITERAL:
        reader.accept_inline()
    return reader.command


def quoted(text: str) -> bytes:
    return b'"' + text.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'


def day(at: int) -> bytes:
    return datetime.fromtimestamp(at, UTC).strftime("%d-%b-%Y").encode()


def dated(prefix: bytes, field: str) -> st.SearchStrategy[tuple[bytes, Key]]:
    def key(at: int, relation: bytes) -> tuple[bytes, Key]:
        low = -FOREVER if relation == b"BEFORE" else at
        high = {b"BEFORE": at - 1, b"ON": at + DAY - 1, b"SINCE": FOREVER}[relation]
        found: Key = Between(field, low, high) if field else Sent(low, high)
        return prefix + relation + b" " + day(at), found

    days = st.integers(0, 30_000).map(lambda number: number * DAY)
    return st.builds(key, days, st.sampled_from([b"BEFORE", b"ON", b"SINCE"]))


SIMPLE: dict[bytes, Key] = {
    b"ALL": ALL,
    b"seen": Flag("\\Seen"),
    b"UNDELETED": Not(Flag("\\Deleted")),
    b"NEW": And((Recent(), Not(Flag("\\Seen")))),
    b"OLD": Not(Recent()),
    b"SAVEDATESUPPORTED": ALL,
    b"KEYWORD $Work": Flag("$Work"),
    b"UNKEYWORD a": Not(Flag("a")),
    b"LARGER 10": Between("size", 11, FOREVER),
    b"SMALLER 10": Between("size", 0, 9),
    b"OLDER 60": Age(60, True),
    b"YOUNGER 60": Age(60, False),
    b"MODSEQ 7": Between("modseq", 7, FOREVER),
    b'MODSEQ "/flags/\\\\draft" all 7': Between("modseq", 7, FOREVER),
    b"EMAILID M1": ObjectId("M1", False),
    b"THREADID T1": ObjectId("T1", True),
    b"1:3,*": Numbers(struct.pack("<4I", 1, 3, 0, 0), False),
    b"UID 7": Numbers(struct.pack("<2I", 7, 7), True),
    b"$": Numbers(None, False),
    b"UID $": Numbers(None, True),
    b"UIDAFTER 7": Numbers(struct.pack("<2I", 8, 2**32 - 1), True),
    b"UIDBEFORE 7": Numbers(struct.pack("<2I", 1, 6), True),
    b"UIDAFTER 4294967295": Not(ALL),
    b"UIDBEFORE 1": Not(ALL),
    b"HEADER Text x": Text("text:", "x"),
    b"FUZZY BODY x": Text("body", "x", True),
    b"FUZZY (BODY x NOT TO y)": And((Text("body", "x", True), Not(Text("to", "y", True)))),
    b"FUZZY SEEN": Flag("\\Seen"),
}
written = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=10)
leaves: st.SearchStrategy[tuple[bytes, Key]] = st.one_of(
    st.sampled_from(sorted(SIMPLE)).map(lambda octets: (octets, SIMPLE[octets])),
    st.builds(
        lambda where, text: (where.upper().encode() + b" " + quoted(text), Text(where, text)),
        st.sampled_from(["bcc", "body", "cc", "from", "subject", "text", "to"]),
        written,
    ),
    written.map(lambda text: (b"HEADER X-Kind " + quoted(text), Text("x-kind", text))),
    dated(b"SENT", ""),
    dated(b"SAVED", "save_date"),
    dated(b"", "internal_date"),
)


def both(one: tuple[bytes, Key], two: tuple[bytes, Key]) -> tuple[bytes, Key]:
    return b"OR " + one[0] + b" " + two[0], Or((one[1], two[1]))


def together(some: list[tuple[bytes, Key]]) -> tuple[bytes, Key]:
    keys = tuple(key for _, key in some)
    return b"(" + b" ".join(octets for octets, _ in some) + b")", keys[0] if len(keys) == 1 else And(keys)


programs = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(lambda one: (b"NOT " + one[0], Not(one[1]))),
        st.builds(both, inner, inner),
        st.lists(inner, min_size=1, max_size=3).map(together),
    ),
    max_leaves=8,
)


@given(st.lists(programs, min_size=1, max_size=3))
def test_keys(some: list[tuple[bytes, Key]]) -> None:
    octets, key = together(some)
    assert search_request(command(b"SEARCH " + octets)).key == key
    assert search_request(command(b"UID SEARCH " + octets[1:-1])).key == key


@pytest.mark.parametrize("octets, key", sorted(SIMPLE.items()), ids=str)
def test_each(octets: bytes, key: Key) -> None:
    assert search_request(command(b"SEARCH " + octets)).key == key


@given(st.binary(max_size=60))
def test_anything(octets: bytes) -> None:
    """Whatever comes, it is a request or a clear error."""
    for name, read in ((b"SEARCH ", search_request), (b"SORT ", sort_request), (b"ESEARCH ", esearch_request)):
        reader = ImapReader(1 << 20)
        reader.feed(b"a " + name + octets.replace(b"\n", b"") + b"\r\n")
        reader.read()
        try:
            read(reader.command)  # type: ignore[operator]
        except (ImapSyntaxError, BadCharset) as error:
            assert str(error)


def test_returns() -> None:
    def returns(octets: bytes) -> Return | None:
        return search_request(command(b"SEARCH RETURN (" + octets + b") CHARSET UTF-8 ALL")).returns

    assert search_request(command(b"SEARCH ALL")).returns is None
    assert returns(b"") == Return(all=True)
    assert returns(b"CONTEXT") == Return(all=True, context=True)
    assert returns(b"MIN MAX COUNT SAVE") == Return(min=True, max=True, count=True, save=True)
    assert returns(b"PARTIAL 9:3") == Return(partial=(3, 9))
    assert returns(b"PARTIAL -9:-3 UPDATE") == Return(partial=(-3, -9), update=True)
    for wrong in (b"X", b"ALL PARTIAL 1:2", b"PARTIAL 1:2 PARTIAL 1:2", b"PARTIAL 0:1", b"PARTIAL -1:1", b"ALL,MIN"):
        with pytest.raises(ImapSyntaxError):
            returns(wrong)


def test_sort_and_thread() -> None:
    sort = sort_request(command(b"UID SORT RETURN (ALL) (subject REVERSE DATE SUBJECT) UTF-8 SEEN"))
    assert sort.order == ((b"SUBJECT", False), (b"DATE", True))
    assert (sort.key, sort.returns, sort.charset) == (Flag("\\Seen"), Return(all=True), True)
    thread = thread_request(command(b"THREAD REFERENCES KOI8-R SUBJECT {1+}\r\n\xc1"))
    assert (thread.algorithm, thread.key) == (b"REFERENCES", Text("subject", "а"))
    for wrong in (b"SORT () UTF-8 ALL", b"SORT (X) UTF-8 ALL", b"SORT (DATE) ALL", b"SORT (REVERSE) UTF-8 ALL"):
        with pytest.raises((ImapSyntaxError, BadCharset)):
            sort_request(command(wrong))
    with pytest.raises(ImapSyntaxError):
        thread_request(command(b"THREAD NEVER UTF-8 ALL"))


def test_esearch() -> None:
    sources, request = esearch_request(command(b'ESEARCH IN (selected subtree ("A" b) mailboxes c) RETURN (MIN) SEEN'))
    assert sources.filters == ((b"SELECTED", ()), (b"SUBTREE", ("A", "b")), (b"MAILBOXES", ("c",)))
    assert request.returns == Return(min=True)
    assert esearch_request(command(b"ESEARCH UNSEEN"))[0].filters == ()
    for source in (b"SELECTED-DELAYED", b'"SELECTED"', b"SUBTREE-ONE", b"()", b"bogus"):
        with pytest.raises(ImapSyntaxError):
            esearch_request(command(b"ESEARCH IN (" + source + b") SEEN"))


def test_charsets() -> None:
    for charset in (b"X-NEVER", b"idna", b"base64", b"rot13", b"unicode_escape"):
        with pytest.raises(BadCharset):
            search_request(command(b'SEARCH CHARSET "' + charset + b'" TEXT x'))
    with pytest.raises(BadCharset) as caught:
        search_request(command(b"SEARCH RETURN (SAVE) TEXT {1+}\r\n\xff"))
    assert caught.value.saves


@pytest.mark.parametrize("octets", [b"", b"(", b"NOT ", b"OR SEEN ", b"(SEEN", b"UID", b"MODSEQ "])
def test_a_search_that_ends_too_early(octets: bytes) -> None:
    with pytest.raises(ImapSyntaxError):
        search_request(command(b"SEARCH " + octets))


def test_bounds() -> None:
    for octets in (b"NOT " * 252 + b"SEEN", b"OR SEEN " * 252 + b"SEEN", b"SEEN " * 1000 + b"SEEN"):
        with pytest.raises(ImapSyntaxError, match="too many keys"):
            search_request(command(b"SEARCH " + octets))
    search_request(command(b"SEARCH " + b"OR FROM a " * 200 + b"FROM b"))
