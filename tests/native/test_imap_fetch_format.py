"""FETCH responses in bulk, beside the slow way."""

from __future__ import annotations

import contextlib
from array import array

import model_imap_fetch as model
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_mail import real_mail

from gateway import _native as n
from gateway.mail.imap_facts import BODYSTRUCTURE, ENVELOPE, message_facts, section
from gateway.store.model import RECORD, Record

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
DATES = st.one_of(st.integers(0, 2**31), st.integers(-(10**10), 10**11))
RECORDS = st.builds(Record, u32, u32, u64, u64, u64, DATES, u32, u32)
KEYWORDS = (b"$Forwarded", b"NonJunk", b"a")


def formatted(items, records, numbers, columns=(), **options) -> bytes:
    made = n.FetchFormat(
        [(label, kind, at, extra, start, count) for label, kind, at, extra, start, count in items],
        **options,
    )
    return made.format(b"".join(RECORD.pack(*record) for record in records), numbers, columns)


def item(
    label: bytes, kind: int, column: int = 0, extra: object = None, start: int = -1, count: int = 0
):
    return (label, kind, column, extra, start, count)


ALL = [
    item(b"UID", n.FETCH_UID), item(b"FLAGS", n.FETCH_FLAGS), item(b"MODSEQ", n.FETCH_MODSEQ),
    item(b"RFC822.SIZE", n.FETCH_SIZE), item(b"INTERNALDATE", n.FETCH_DATE), item(b"SAVEDATE", n.FETCH_SAVE_DATE),
    item(b"EMAILID", n.FETCH_EMAIL_ID, 0, b"M7-"),
]  # fmt: skip


@given(st.lists(RECORDS, max_size=5), u32, st.booleans(), st.booleans())
def test_items_of_the_record(records, recent_uid, uid_only, packed_numbers) -> None:
    numbers = range(3, 3 + len(records))
    expected = b"".join(
        b"* %d %b (UID %d FLAGS %b MODSEQ (%d) RFC822.SIZE %d INTERNALDATE %b SAVEDATE %b EMAILID (M7-%x))\r\n"
        % (
            r.uid if uid_only else number, b"UIDFETCH" if uid_only else b"FETCH", r.uid,
            model.flags(r, KEYWORDS, recent_uid), r.modseq, r.size, model.date(r.internal_date),
            model.date(r.save_date), r.message,
        )
        for number, r in zip(numbers, records, strict=True)
    )  # fmt: skip
    found = formatted(
        ALL, records, array("I", numbers) if packed_numbers else 3,
        keywords=KEYWORDS, recent_uid=recent_uid, uid_only=uid_only,
    )  # fmt: skip
    assert found == expected


ONE = Record(7, 100, 0, 1, 9, 0, 0, 0)
OCTETS = st.binary(max_size=30)


@given(OCTETS, OCTETS, st.integers(-1, 70), st.integers(1, 70))
def test_items_of_columns(first: bytes, second: bytes, start: int, count: int) -> None:
    items = [
        item(b"A", n.FETCH_LITERAL, 0, None, start, count), item(b"B", n.FETCH_PAIR, 0, None, start, count),
        item(b"C", n.FETCH_OCTETS, 1), item(b"D", n.FETCH_BINARY, 1, None, start, count),
        item(b"E", n.FETCH_LITERAL, 2),
    ]  # fmt: skip
    expected = b"* 1 FETCH (A %b B %b C %b D %b E NIL)\r\n" % (
        model.literal(first, start, count),
        model.literal(first + second, start, count),
        second,
        model.literal(second, start, count, eight=True),
    )
    assert formatted(items, [ONE], 1, [[first], [memoryview(second)], [None]]) == expected


HEADER = st.lists(
    st.sampled_from(
        [b"From: a\r\n", b"from:b\r\n", b"To : c\r\n", b" fold\r\n", b"\tfold\r\n", b"nothing\r\n", b"X: \x80\r\n",
         b"Subject: x\n", b"Fro: x\r\n", b":\r\n", b"\r\n", b"From: end"]
    ), max_size=8,
).map(b"".join)  # fmt: skip
NAMES = st.lists(st.sampled_from([b"FROM", b"to", b"Subject", b"x", b"none"]), max_size=3)


@given(HEADER, NAMES, st.booleans(), st.integers(-1, 30), st.integers(1, 40))
def test_header_fields(
    header: bytes, names: list[bytes], others: bool, start: int, count: int
) -> None:
    fields = n.HeaderFields(names, others)
    expected = model.fields(header, names, others)
    assert fields.cut(header) == expected
    items = [item(b"H", n.FETCH_FIELDS, 0, fields, start, count)]
    assert formatted(items, [ONE], 1, [[header]]) == b"* 1 FETCH (H %b)\r\n" % model.literal(
        expected, start, count
    )


NESTED = b"""Message-ID: <a@b>\r
Content-Type: multipart/mixed; boundary="1"\r
\r
--1\r
Content-Type: message/rfc822\r
\r
Subject: =?utf-8?q?inner?= \xc3\xa4\r
Content-Type: multipart/alternative; boundary=2\r
\r
--2\r
\r
text\r
--2\r
Content-Type: text/html\r
\r
<b>\r
--2--\r
--1\r
Content-Type: image/png; name="a\\"b)"\r
Content-Disposition: attachment\r
\r
x\r
--1\r
Content-Type: message/rfc822\r
\r
Content-Type: text/plain\r
\r
end\r
--1--\r
"""


def same_body(structure: bytes) -> None:
    (tree,) = model.tokens(structure)
    assert isinstance(tree, list)
    assert model.tokens(n.body_of(structure)) == [model.body(tree)]


def test_body_is_bodystructure_without_extensions() -> None:
    same_body(section(message_facts(NESTED).packed, BODYSTRUCTURE))
    for octets in (b"", b"(", b"()", b'("TEXT"', b"(" * 1000, b'("A" {999999999}\r\n'):
        with pytest.raises(ValueError, match="BODYSTRUCTURE"):
            n.body_of(octets)


def test_body_of_real_mail() -> None:
    for content in real_mail(7):
        same_body(section(message_facts(content).packed, BODYSTRUCTURE))


@given(st.text('()"\\ {}1aN\r\n', max_size=40).map(str.encode))
def test_body_of_anything_ends(octets: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert len(n.body_of(octets)) <= len(octets)


def test_items_of_facts() -> None:
    facts = message_facts(NESTED).packed
    items = [
        item(b"ENVELOPE", n.FETCH_SECTION, 0, ENVELOPE), item(b"BODY", n.FETCH_BODY),
        item(b"BODYSTRUCTURE", n.FETCH_SECTION, 0, BODYSTRUCTURE),
    ]  # fmt: skip
    structure = section(facts, BODYSTRUCTURE)
    assert formatted(
        items, [ONE], 5, [[facts]]
    ) == b"* 5 FETCH (ENVELOPE %b BODY %b BODYSTRUCTURE %b)\r\n" % (
        section(facts, ENVELOPE),
        n.body_of(structure),
        structure,
    )
    joined = formatted(items[:1], [ONE, ONE], 5, [facts + facts])
    assert joined == formatted(items[:1], [ONE, ONE], 5, [[facts, facts]])
    for octets in (facts, facts * 3, facts + facts[:-1], b""):
        with pytest.raises(ValueError, match="facts"):
            formatted(items[:1], [ONE, ONE], 5, [octets])
    for octets in (b"", facts[:31], facts[:40], b"\2" + facts[1:]):
        with pytest.raises(ValueError, match="facts"):
            formatted(items, [ONE], 5, [[octets]])


def thread_id(content: bytes, key: int = 1) -> bytes:
    record = ONE._replace(message=key)
    return formatted(
        [item(b"THREADID", n.FETCH_THREAD_ID)], [record], 1, [[message_facts(content).packed]]
    )


def test_a_thread_has_one_id() -> None:
    root = thread_id(b"Message-ID: <root@x>\r\n\r\n")
    assert (
        root.startswith(b"* 1 FETCH (THREADID (T")
        and len(root) == len(b"* 1 FETCH (THREADID (T))\r\n") + 16
    )
    assert thread_id(b"Message-ID: <2@x>\r\nReferences: <root@x> <1@x>\r\n\r\n", 2) == root
    assert thread_id(b"Message-ID: <2@x>\r\nIn-Reply-To: <root@x>\r\n\r\n", 3) == root
    assert thread_id(b"Message-ID: <2@x>\r\n\r\n", 4) != root
    assert thread_id(b"\r\n", 5) != thread_id(b"\r\n", 6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError):
        n.FetchFormat([item(b"A", 99)])
    with pytest.raises(ValueError):
        n.FetchFormat([item(b"A", n.FETCH_SECTION, 0, 6)])
    with pytest.raises(ValueError):
        n.FetchFormat([item(b"A", n.FETCH_FIELDS)])
    with pytest.raises(ValueError):
        n.FetchFormat([], keywords=[b"k"] * 57)
    some = n.FetchFormat([item(b"A", n.FETCH_LITERAL)])
    assert some.columns == 1 and some.format(b"", 1, [[]]) == b""
    record = RECORD.pack(*ONE)
    for records, numbers, columns in (
        (record[:-1], 1, [[b""]]), (record, array("I"), [[b""]]), (record, 1, []), (record, 1, [[]]),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            some.format(records, numbers, columns)
    with pytest.raises(TypeError):
        some.format(record, 1, [["text"]])


@given(st.lists(RECORDS, max_size=6), u64)
def test_newer_records(records: list[Record], modseq: int) -> None:
    numbers = array("I", range(5, 5 + len(records)))
    found = n.newer_records(numbers, b"".join(RECORD.pack(*r) for r in records), modseq)
    kept = [(number, r) for number, r in zip(numbers, records, strict=True) if r.modseq > modseq]
    assert found == (
        array("I", (number for number, _ in kept)).tobytes(),
        b"".join(RECORD.pack(*r) for _, r in kept),
    )
