"""What FETCH, APPEND and URLs say, read and written again; where sections are, beside another parser."""

from __future__ import annotations

import contextlib
import email
import email.policy
import threading
from array import array
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_mail import real_mail

from gateway._native import (
    ENCODING_BASE64,
    ENCODING_QUOTED_PRINTABLE,
    ImapCommand,
    ImapReader,
    ImapSyntaxError,
    encode_base64,
)
from gateway.mail.imap_facts import message_facts, part_places
from gateway.mail.sections import PartDecoder, cut, find_part, preview, section_range
from gateway.mail.structure import decoded
from gateway.protocol.imap.append import append_messages, append_target
from gateway.protocol.imap.fetch import Item, Section, fetch_request, section_of
from gateway.protocol.imap.url import BadUrl, message_url
from gateway.server.imap.body import Context, Plan
from gateway.store.errors import MessageGone
from gateway.store.handoff import Handoff, Waiter
from gateway.store.model import RECORD, Content


def command_of(line: bytes) -> ImapCommand:
    reader = ImapReader(100_000)
    reader.feed(b"a " + line + b"\r\n")
    while reader.read() == 2:  # LITERAL
        reader.accept_inline()
    return reader.command


def request_of(text: bytes, uid: bool = True):  # type: ignore[no-untyped-def]
    command = command_of(b"X " + text)
    command.space()
    return fetch_request(command, uid=uid)


PATHS = st.lists(st.integers(1, 99), max_size=4).map(tuple)
NAMES = st.lists(
    st.sampled_from([b"FROM", b"X-A", b"SUBJECT", b"A B", b'Q"']),
    min_size=1,
    max_size=3,
    unique=True,
).map(tuple)


@st.composite
def sections(draw: st.DrawFn) -> Section:
    path = draw(PATHS)
    texts = [
        b"HEADER",
        b"TEXT",
        b"HEADER.FIELDS",
        b"HEADER.FIELDS.NOT",
        b"",
        *([b"MIME"] if path else []),
    ]
    text = draw(st.sampled_from(texts))
    return Section(path, text, draw(NAMES) if b"FIELDS" in text else ())


@st.composite
def items(draw: st.DrawFn) -> tuple[bytes, Item]:
    """(as a client writes it, what is meant)"""
    section = draw(sections())
    start = draw(st.integers(-1, 2**40))
    count = draw(st.integers(1, 2**40)) if start >= 0 else 0
    partial = b"<%d.%d>" % (start, count) if count else b""
    peek = draw(st.booleans())
    if section.text == b"" and draw(st.booleans()):
        word = b"BINARY.PEEK[" if peek else b"BINARY["
        return word + section.label + b"]" + partial, Item(b"BINARY[]", section, peek, start, count)
    word = b"BODY.PEEK[" if peek else b"BODY["
    return word + section.label + b"]" + partial, Item(b"BODY[]", section, peek, start, count)


@given(st.lists(items(), min_size=1, max_size=4), st.booleans())
def test_items_are_read_as_they_are_meant(asked: list[tuple[bytes, Item]], lower: bool) -> None:
    text = b"(" + b" ".join(one for one, _ in asked) + b")"
    request = request_of(text.lower() if lower else text)
    assert request.items == tuple(dict.fromkeys(item for _, item in asked))
    for item in request.items:  # what the response calls it, a client can ask for again
        again = item.label.replace(b"<%d>" % item.start, b"<%d.%d>" % (item.start, item.count))
        assert request_of(again).items[0].label == item.label


@given(st.text('BODY[]().PEEK<>HEADER.FIELDS 123"{}', max_size=30).map(str.encode))
def test_anything_is_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(ImapSyntaxError, ValueError):
        request_of(text)


@given(sections())
def test_a_section_of_a_url(section: Section) -> None:
    if any(b" " in name or b'"' in name for name in section.fields):
        return
    assert section_of(section.label) == section


def test_messages_of_append() -> None:
    first = b'(\\Seen a) " 1-Jan-2020 00:00:00 +0000" {1+}\r\nx'
    command = command_of(
        b'APPEND "Sent Mail" ' + first + b" CATENATE (URL /a;UID=1 TEXT {2+}\r\nyz)"
    )
    assert append_target(command) == "Sent Mail"
    command.space()
    command.mailbox()
    one, two = append_messages(command)
    assert (one.flags, one.internal_date, one.pieces[0].octets) == (
        ["\\Seen", "a"],
        1577836800,
        b"x",
    )
    assert [piece.url or piece.octets for piece in two.pieces] == [b"/a;UID=1", b"yz"]
    replace = command_of(b"UID REPLACE 4 Drafts {1+}\r\nx")
    assert append_target(replace) == "Drafts"


def test_urls() -> None:
    url = message_url(
        b"imap://ann%40x@host/INBOX%2FA;UIDVALIDITY=7/;UID=20/;SECTION=1.2.MIME/;PARTIAL=5.6"
        b";EXPIRE=2026-01-01T00:00:00Z;URLAUTH=user+bob:internal:" + b"0a" * 33
    )
    assert (url.user, url.host, url.mailbox, url.uidvalidity, url.uid) == (
        "ann@x",
        "host",
        "INBOX/A",
        7,
        20,
    )
    assert (url.section, url.start, url.count) == (Section((1, 2), b"MIME"), 5, 6)
    assert (url.expires, url.access, url.mechanism, url.token) == (
        1767225600.0,
        "user+bob",
        "INTERNAL",
        "0a" * 33,
    )
    assert url.rump.endswith(b";URLAUTH=user+bob")
    assert message_url(b";UID=3").mailbox is None
    assert message_url(b"/Sent/;UID=3").mailbox == "Sent"
    refused = (
        b"", b"/INBOX", b"/INBOX/;UID=0", b"/%FF/;UID=1", b"imap://h/a/;UID=1;URLAUTH=x+y", b"/a/;UID=1/;SECTION=x",
        b"/a/;UID=1;EXPIRE=soon;URLAUTH=authuser", b"/" + b"a" * 9000 + b"/;UID=1",
    )  # fmt: skip
    for wrong in refused:
        with pytest.raises(BadUrl):
            message_url(wrong)


def parts_of(message: EmailMessage, prefix: str = "") -> list[tuple[str, EmailMessage]]:
    """Section numbers of all parts, by RFC 9051 §6.4.5.1."""
    if not message.is_multipart() or message.get_content_type() == "message/rfc822":
        return [(prefix + "1", message)] if not prefix else []
    found: list[tuple[str, EmailMessage]] = []
    for number, part in enumerate(message.get_payload(), 1):
        assert isinstance(part, EmailMessage)
        found.append((f"{prefix}{number}", part))
        if part.get_content_maintype() == "multipart":
            found += parts_of(part, f"{prefix}{number}.")
    return found


def test_sections_of_real_mail_are_where_another_parser_sees_them() -> None:
    compared = 0
    for content in real_mail(40):
        content = b"\r\n".join(content.replace(b"\r", b"").split(b"\n"))
        message = email.message_from_bytes(content, policy=email.policy.SMTP)
        if any(part.defects for part in message.walk()) or not message.is_multipart():
            continue
        places = part_places(message_facts(content).packed)
        for number, part in parts_of(message):
            path = tuple(map(int, number.split(".")))
            found = section_range(places, path)
            assert found is not None, number
            if not part.is_multipart():
                octets = bytes(cut(content[:100], content[100:], *found))
                assert (
                    octets.split()
                    == part.get_payload(decode=False).encode("ascii", "surrogateescape").split()
                )
                compared += 1
        assert find_part(places, (99,)) is None
    assert compared > 10


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=20), st.booleans())
def test_a_part_is_decoded_slice_by_slice(octets: bytes, sizes: list[int], text: bool) -> None:
    encoding = ENCODING_QUOTED_PRINTABLE if text else ENCODING_BASE64
    encoded = (
        octets.replace(b"=", b"=3D").replace(b"\n", b"=\r\n") if text else encode_base64(octets)
    )
    decoder = PartDecoder(encoding)
    found, at = b"", 0
    for size in sizes:
        found += decoder.feed(encoded[at : at + size])
        at += size
    found += decoder.feed(encoded[at:]) + decoder.finish()
    assert found == decoded(encoded, encoding)


@given(st.binary(max_size=400))
def test_anything_has_a_preview(octets: bytes) -> None:
    text = preview(b"Content-Type: text/html\r\n\r\n" + octets)
    assert len(text) <= 200 and text == " ".join(text.split())
    assert len(preview(octets)) <= 200


def test_work_goes_to_whoever_was_idle_last() -> None:
    handoff: Handoff[int | None] = Handoff()
    taken: list[int] = []
    threads = []

    def work() -> None:
        waiter: Waiter[int | None] = Waiter()
        while (item := handoff.take(waiter)) is not None:
            taken.append(item)

    for _ in range(3):
        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for item in range(5000):
        handoff.put(item)
    for _ in threads:
        handoff.put(None)
    for thread in threads:
        thread.join(60)
    assert sorted(taken) == list(range(5000))


@pytest.mark.parametrize(
    "items", [b"ENVELOPE", b"BODY.PEEK[HEADER]", b"BODY.PEEK[]", b"(BODY.PEEK[1] UID)"]
)
def test_messages_that_cannot_be_had_are_left_out(items: bytes) -> None:
    content = b"Subject: here\r\n\r\ntext\r\n"
    facts = message_facts(content).packed
    of_source = {
        "joined facts": facts,
        "facts": facts,
        "header": content[:17],
        "content": Content(content[:17], content[17:]),
    }
    plan = Plan(request_of(items).items, Context((), 0, False, "account"))
    records = b"".join(RECORD.pack(uid, 1, 0, 1, uid, 0, 0, 0) for uid in (1, 2, 3))
    numbers = array("I", (1, 2, 3)).tobytes()
    gone = MessageGone("gone")
    columns = [[of_source[name], gone, of_source[name]] for name in plan.names]
    octets, error, _ = plan.answer(numbers, records, columns)
    assert octets.startswith(b"* 1 FETCH (") and b"* 3 FETCH (" in octets and b"* 2 " not in octets
    assert error is not None and error.code == b"EXPUNGEISSUED"
    octets, error, _ = plan.answer(numbers, records, [[gone] * 3 for _ in plan.names])
    assert octets == b"" and error is not None
    all_there = [[of_source[name]] * 3 for name in plan.names]
    assert plan.answer(numbers, records, all_there).error is None


def test_known_previews_need_no_text() -> None:
    content = Content(b"Subject: here\r\n\r\n", b"text\r\n")
    facts = message_facts(content.header + content.body).packed
    records = b"".join(RECORD.pack(uid, 1, 0, 1, uid, 0, 0, 0) for uid in (1, 2))
    numbers = array("I", (1, 2)).tobytes()
    for items, of_store in (
        (b"PREVIEW", []),
        (b"(UID PREVIEW ENVELOPE)", ["joined facts"]),
        (b"(PREVIEW BODY.PEEK[HEADER])", ["header"]),
    ):
        plan = Plan(request_of(items).items, Context((), 0, False, "account"))
        made = plan.answer(numbers, records, [[{"facts": facts, "content": content}[n]] * 2 for n in plan.names])
        assert plan.previews and made.previews == [b'"text"'] * 2 and plan.names_but_text == of_store
        column = {"joined facts": facts * 2, "header": [content.header] * 2}
        known = plan.answer(numbers, records, [column[name] for name in of_store], made.previews)
        assert known == (made.octets, None, None)
    plan = Plan(request_of(b"(UID PREVIEW ENVELOPE)").items, Context((), 0, False, "account"))
    found = plan.answer(numbers, records, [[facts, MessageGone("gone")]], [b'"a"', b'"b"'])
    assert b"* 2 " not in found.octets and b'"a"' in found.octets and found.error is not None
    assert not Plan(request_of(b"(PREVIEW BODY.PEEK[])").items, Context((), 0, False, "account")).previews
