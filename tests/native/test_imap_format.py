"""Strings, addresses and dates for IMAP: the fast way beside the long one."""

from __future__ import annotations

import email.utils
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_mail import real_mail

from gateway._native import (
    first_fields,
    format_mailboxes,
    imap_nstring,
    imap_string,
    iter_fields,
    parse_date,
)
from gateway.mail.imap_address import address_list


def read_string(octets: bytes) -> bytes:
    """What a client makes of it."""
    literal = re.fullmatch(rb"\{(\d+)\}\r\n(.*)", octets, re.DOTALL)
    if literal:
        assert int(literal[1]) == len(literal[2])
        return literal[2]
    assert re.fullmatch(rb'"(?:[^"\\\r\n\x00\x80-\xff]|\\["\\])*"', octets), octets
    return re.sub(rb"\\(.)", rb"\1", octets[1:-1])


@given(st.one_of(st.binary(max_size=40), st.text('ab"\\ \r\n\0é').map(str.encode)))
def test_a_string_reads_back(value: bytes) -> None:
    assert read_string(imap_string(value)) == value.replace(b"\0", b"")


def test_strings_at_their_limits() -> None:
    assert imap_string(b"a" * 1024).startswith(b'"')
    assert imap_string(b"a" * 1025).startswith(b"{1025}")
    assert imap_nstring(None) == b"NIL"
    assert imap_nstring(b"") == b'""'


def formatted(value: bytes) -> bytes:
    return b"".join(
        b"(%b %b %b %b)"
        % (
            imap_nstring(a.name),
            imap_nstring(a.route),
            imap_nstring(a.mailbox),
            imap_nstring(a.host),
        )
        for a in address_list(value)
    )


pieces = st.sampled_from(
    [b"a@b", b"<a@b>", b"N <a@b>", b'"Q, q" <x.y@z>', b"N. O <a@b>", b" ", b",", b"\t", b"(c)",
     b'"\\""', b"g:", b";", b"<", b">", b"@", b"\xc3\xa9", b"=?utf-8?q?x?= <a@b>", b"a b@c", b'""<a@b>']
)  # fmt: skip


@given(st.lists(pieces, max_size=6).map(b"".join))
def test_plain_mailboxes_are_as_the_long_way_has_them(value: bytes) -> None:
    fast = format_mailboxes(value)
    if fast is not None:
        found = address_list(value)
        assert fast[0] == formatted(value)
        assert fast[1] == (found[0].name, found[0].mailbox, found[0].host)


@pytest.mark.parametrize("value", [b"a@b", b"A B <a@b>, c@d , E <e@f>", b'"x, y" <a@b>'])
def test_common_mailboxes_take_the_fast_way(value: bytes) -> None:
    assert format_mailboxes(value) is not None


def test_no_list_overflows_the_buffer() -> None:
    for count in (1, 2, 1000):
        value = b",".join([b"a@b"] * count)
        fast = format_mailboxes(value)
        assert fast is not None
        assert fast[0] == b'(NIL NIL "a" "b")' * count


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2105, 12, 31)),
    st.integers(-24 * 60 + 1, 24 * 60 - 1),
    st.booleans(),
)
def test_dates_read_back(when: datetime, offset: int, day_name: bool) -> None:
    zone = timezone(timedelta(minutes=offset))
    local = when.replace(microsecond=0, tzinfo=UTC).astimezone(zone)
    text = email.utils.format_datetime(local)
    if not day_name:
        text = text.partition(", ")[2]
    assert parse_date(text.encode()) == int(local.timestamp())


@pytest.mark.parametrize(
    "text, seconds",
    [
        (b"1 Jan 1970 00:00 GMT", 0),
        (b" Thu,  1 jan 1970 00:00:01 +0000 (UTC)", 1),
        (b"Thu, 1 Jan 1970 00:00:00 EST", -1),
        (b"Thu, 1 Jan 70 00:00:00 +0000", -1),
        (b"32 Jan 1970 00:00:00 +0000", -1),
        (b"1 Jan 1970 24:00:00 +0000", -1),
        (b"1 Foo 1970 00:00:00 +0000", -1),
        (b"1 Jan 1970 00:00:00 +0075", -1),
        (b"1 Jan 1970 00:00:00", -1),
        (b"1 Jan 1970 00:00:00 +0000 trailing", -1),
        (b"", -1),
        (b"9999999999999", -1),
    ],
)
def test_dates_at_their_limits(text: bytes, seconds: int) -> None:
    assert parse_date(text) == seconds


@given(st.binary(max_size=60))
def test_no_octets_break_them(value: bytes) -> None:
    parse_date(value)
    format_mailboxes(value)


def test_first_fields_are_the_first_of_iter_fields() -> None:
    names = frozenset((b"subject", b"received", b"x-" + b"y" * 37, b"x-" + b"y" * 39))
    header = b"SUBJECT : a\r\n b\r\nsubject: c\r\nX-%b: d\r\nX-%b: e\r\n\r\nReceived: body\r\n" % (
        b"Y" * 37, b"Y" * 39,
    )  # fmt: skip
    assert first_fields(header, names) == {b"subject": b"a b", b"x-" + b"y" * 37: b"d"}
    for content in real_mail():
        wanted: dict[bytes, bytes] = {}
        for name, value in iter_fields(content):
            if name.lower() in names:
                wanted.setdefault(name.lower(), value)
        assert first_fields(content, names) == wanted
