"""Facts of a message: the kernel says what the slow way says, to the octet."""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime, timedelta, timezone

import model_imap_facts as model
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from real_mail import real_mail

from gateway._native import FactsPacker, MimeScanner, scan_mime
from gateway.mail.imap_facts import facts_of, message_facts


def same(content: bytes) -> None:
    facts = message_facts(content, "QUEUEID 0")
    assert facts.packed == model.message_facts(content, "QUEUEID 0")
    parts = scan_mime(content)
    assert facts_of(parts, lambda start, end: content[start:end], "QUEUEID 0") == facts


def test_all_real_mail() -> None:
    for content in real_mail():
        assert message_facts(content, "Q 1").packed == model.message_facts(content, "Q 1")


FIELDS = st.sampled_from(
    [b"From", b"to", b"CC", b"Sender", b"Reply-To", b"Bcc", b"Subject", b"Date", b"Message-ID", b"References",
     b"In-Reply-To", b"Content-Type", b"Content-Transfer-Encoding", b"Content-ID", b"Content-Description",
     b"Content-MD5", b"Content-Disposition", b"Content-Language", b"Content-Location", b"X-Other", b"From "]
)  # fmt: skip
ADDRESSES = st.sampled_from(
    [b"a@b", b"<a@b>", b"N <a@b>", b'"Q, q" <x.y@z>', b"N. O", b" ", b",", b"\t", b"(c)", b"( (d\\)e\x0b) )", b'"\\""',
     b'""', b'"\\', b"g:", b";", b"<", b">", b"@", b"\xc3\xa9", b"=?utf-8?q?x?= <a@b>", b"a b@c", b"[1.2]", b"[", b":",
     b"<@r,@s:a@b>", b"\r\n ", b"\\", b"]", b")", b"=?latin-1?q?=E9?=", b"\0", b"a" * 1025]
)  # fmt: skip
WORDS = st.sampled_from(
    [b"Re:", b"fwd:", b"FW :", b"[list]", b"[fwd: ", b"]", b"[", b"(fwd)", b"re", b"[2]", b" ", b"  ", b"\t", b"\r\n ",
     b"\x1c", b"\x0b", b"\0", b"word", b"\xc3\xa9", b"\xff", b"=?utf-8?b?cmU6?=", b"=?utf-8?q?=00?=", b":", b")",
     b"<a@b>", b"<a@\r\n b>", b"<1 of May>", b"<", b">", b"<%b@b>" % (b"i" * 995), b"<%b@b>" % (b"i" * 999),
     b"; charset=utf-8", b';name="a;\\"b', b'"', b"; a = b", b";;", b"; =", b"\\", b"de, en", b",", b"attachment",
     b"text/html", b"multipart/mixed; boundary=b", b"message/rfc822", b"base64", b"x-uu", b"Mon, 1 Jan 24 10:00 EST",
     b"1 Jan 2024 10:00:00 +0100", b"\xe9/x"]
)  # fmt: skip
VALUES = st.one_of(st.lists(ADDRESSES, max_size=8), st.lists(WORDS, max_size=8)).map(b"".join)
HEADERS = st.lists(st.builds(b"%b: %b\r\n".__mod__, st.tuples(FIELDS, VALUES)), max_size=8).map(
    b"".join
)
BODIES = st.sampled_from(
    [b"\r\n", b"\r\n--b\r\n", b"\r\n--b--\r\n", b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n",
     b"Content-Type: message/rfc822\r\n\r\n", b"text\r\n", b"Content-Type: multipart/digest; boundary=c\r\n",
     b"\r\n--c\r\n"]
)  # fmt: skip
MESSAGES = st.lists(st.one_of(HEADERS, BODIES), max_size=8).map(b"".join)


@given(MESSAGES)
@example(b"From: <@a:@b,c@d>, g: x;\r\n\r\n")
@example(b'To: a (b) (c) "" <> , ""@x,:<a>:,<a@b>c@d:\r\n\r\n')
@example(b"References: " + b"".join(b"<%d@x>" % i for i in range(101)) + b"\r\n\r\n")
@example(b"References: " + b"<a@b>" * 100 + b"\r\n\r\n")
@example(b"Subject: " + b"x" * 4095 + b"\xc3\xa9\r\n\r\n")
@example(b"To: " + b"a@b," * 10_001 + b"\r\n\r\n")
def test_any_message(content: bytes) -> None:
    same(content)


@given(st.binary(max_size=200))
def test_any_octets(content: bytes) -> None:
    same(content)
    same(b"Subject: " + content.replace(b"\n", b""))


def test_marks_and_addresses_without_end_take_no_longer() -> None:
    """Each is removed in one pass; a subject that Python has to read is bounded."""
    for value in (b"re:", b"[a]", b"[fwd:", b"(", b"<", b'"\\', b"a,", b";a=", b"\xc3\xa9re:"):
        for field in (b"Subject", b"From", b"References", b"Content-Type", b"Content-Disposition"):
            message_facts(b"%b: %b\r\n\r\n" % (field, value * 300_000))


def test_parts_of_something_else() -> None:
    scanner = MimeScanner()
    scanner.feed(b"Subject: x\r\n\r\n")
    with pytest.raises(ValueError, match="not of this content"):
        PACKER.pack(scanner.close(), b"Subject", b"")
    with pytest.raises(ValueError, match="one part"):
        PACKER.pack([], b"", b"")


# -- dates -----------------------------------------------------------------------------------------------------------

UNKNOWN = -7
PACKER = FactsPacker(lambda *_: b"", lambda _: (b"", False), lambda _: UNKNOWN)


def parse_date(value: bytes) -> int:
    """UNKNOWN: the kernel leaves it to Python."""
    content = b"Date: %b\r\n\r\n" % value
    return PACKER.pack(scan_mime(content), content, b"")[2]


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
        (b"Thu, 1 Jan 1970 00:00:00 EST", UNKNOWN),
        (b"Thu, 1 Jan 70 00:00:00 +0000", UNKNOWN),
        (b"32 Jan 1970 00:00:00 +0000", UNKNOWN),
        (b"1 Jan 1970 24:00:00 +0000", UNKNOWN),
        (b"1 Foo 1970 00:00:00 +0000", UNKNOWN),
        (b"1 Jan 1970 00:00:00 +0075", UNKNOWN),
        (b"1 Jan 1970 00:00:00", UNKNOWN),
        (b"1 Jan 1970 00:00:00 +0000 trailing", UNKNOWN),
        (b"", 0),
        (b"9999999999999", UNKNOWN),
        (b"1 Jan 2106 00:00:00 +0000", 4291747200),
        (b"1 Jan 2107 00:00:00 +0000", 0),
    ],
)
def test_dates_at_their_limits(text: bytes, seconds: int) -> None:
    assert parse_date(text) == seconds
