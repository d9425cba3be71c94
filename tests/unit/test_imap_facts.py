"""ENVELOPE, BODYSTRUCTURE, sort keys and references as RFC 9051 and RFC 5256 have them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_mail import real_mail

from gateway._native import scan_mime
from gateway.mail.imap_facts import (
    BODYSTRUCTURE,
    ENVELOPE,
    ORIGIN,
    base_subject,
    casemapped,
    message_facts,
    part_places,
    section,
    sort_keys,
    thread_ids,
)


def parse(octets: bytes) -> list[object]:
    """An IMAP parenthesised list, read by a parser of a few lines."""
    stack: list[list[object]] = [[]]
    at = 0
    while at < len(octets):
        char = octets[at : at + 1]
        if char == b"(":
            stack.append([])
        elif char == b")":
            done = stack.pop()
            stack[-1].append(done)
        elif char == b'"':
            value = b""
            at += 1
            while octets[at : at + 1] != b'"':
                at += octets[at : at + 1] == b"\\"
                value += octets[at : at + 1]
                at += 1
            stack[-1].append(value)
        elif char == b"{":
            end = octets.index(b"}\r\n", at)
            size = int(octets[at + 1 : end])
            stack[-1].append(octets[end + 3 : end + 3 + size])
            at = end + 2 + size
        elif char != b" ":
            end = at
            while end < len(octets) and octets[end : end + 1] not in (b" ", b")", b"("):
                end += 1
            word = octets[at:end]
            stack[-1].append(None if word == b"NIL" else int(word))
            at = end - 1
        at += 1
    assert len(stack) == 1
    return stack[0]


def envelope(content: bytes) -> list[object]:
    (found,) = parse(section(message_facts(content).packed, ENVELOPE))
    assert isinstance(found, list) and len(found) == 10
    return found


def structure(content: bytes) -> list[object]:
    (found,) = parse(section(message_facts(content).packed, BODYSTRUCTURE))
    assert isinstance(found, list)
    return found


def test_envelope_of_a_plain_message() -> None:
    found = envelope(
        b"Date: Mon, 1 Jan 2024 10:00:00 +0100\r\nSubject: =?utf-8?q?h=C3=A9?=\r\n x\r\n"
        b'From: "A, B" <a@b.example>\r\nTo: c@d, E F <e@f>\r\nMessage-ID: <1@x>\r\n\r\nbody'
    )
    sender = [[b"A, B", None, b"a", b"b.example"]]
    assert found == [
        b"Mon, 1 Jan 2024 10:00:00 +0100",
        b"=?utf-8?q?h=C3=A9?= x",
        sender,
        sender,
        sender,
        [[None, None, b"c", b"d"], [b"E F", None, b"e", b"f"]],
        None,
        None,
        None,
        b"<1@x>",
    ]
    assert envelope(b"") == [None] * 10


@pytest.mark.parametrize(
    "value, wanted",
    [
        (b"a@b (Comment Name)", [[b"Comment Name", None, b"a", b"b"]]),
        (b"<@r1,@r2:a@b>", [[None, b"@r1,@r2", b"a", b"b"]]),
        (
            b"Group: a@b, C <c@d>;",
            [
                [None, None, b"Group", None],
                [None, None, b"a", b"b"],
                [b"C", None, b"c", b"d"],
                [None] * 4,
            ],
        ),
        (b"undisclosed-recipients:;", [[None, None, b"undisclosed-recipients", None], [None] * 4]),
        (b"Name only", [[None, None, b"Name only", b""]]),
        (b'"quoted local"@b', [[None, None, b"quoted local", b"b"]]),
        (b"a@[192.0.2.1]", [[None, None, b"a", b"[192.0.2.1]"]]),
        (b'"a \\"b\\"" <a@b>', [[b'a "b"', None, b"a", b"b"]]),
        (b",, a@b,,", [[None, None, b"a", b"b"]]),
        (b"(nested (comment)) a @ b . c", [[b"nested (comment)", None, b"a", b"b.c"]]),
        (b"<>", None),
    ],
)
def test_odd_addresses(value: bytes, wanted: list[list[bytes | None]] | None) -> None:
    assert envelope(b"To: %b\r\n\r\n" % value)[5] == wanted


def test_structure_of_a_multipart_with_a_message_inside() -> None:
    found = structure(
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\none\r\n--x\r\n"
        b'Content-Type: message/rfc822\r\nContent-Disposition: attachment; filename="a b"\r\n\r\n'
        b"Subject: inner\r\nContent-Type: text/html; charset=utf-8\r\nContent-Language: de, en\r\n\r\n<p>\r\n"
        b"--x\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\nContent-ID: <i>\r\n"
        b"Content-MD5: xyz\r\nContent-Location: here\r\n\r\nAAAA\r\n--x--\r\n"
    )
    text, inner, image, subtype, parameters, *extension = found
    plain = [b"CHARSET", b"US-ASCII"]
    assert text == [b"TEXT", b"PLAIN", plain, None, None, b"7BIT", 3, 0, None, None, None, None]
    assert isinstance(inner, list)
    assert inner[:6] == [b"MESSAGE", b"RFC822", None, None, None, b"7BIT"]
    assert inner[7][1] == b"inner"
    assert inner[8][:3] == [b"TEXT", b"HTML", [b"charset", b"utf-8"]]
    assert inner[8][-2] == [b"de", b"en"]
    assert inner[-3] == [b"attachment", [b"filename", b"a b"]]
    assert image == [
        b"IMAGE", b"PNG", None, b"<i>", None, b"BASE64", 4, b"xyz", None, None, b"here",
    ]  # fmt: skip
    assert (subtype, parameters) == (b"MIXED", [b"boundary", b"x"])
    assert extension == [None, None, None]


def test_a_multipart_without_parts_has_an_empty_one() -> None:
    found = structure(b"Content-Type: multipart/mixed; boundary=x\r\n\r\nno boundary here\r\n")
    assert found[0][:2] == [b"TEXT", b"PLAIN"]  # type: ignore[index]


@pytest.mark.parametrize(
    "subject, base, is_reply",
    [
        ("hello", "hello", False),
        ("Re: hello", "hello", True),
        ("RE: [list] Fwd: hello (fwd)", "hello", True),
        ("Re[2]: hello", "hello", True),
        ("[list] hello", "hello", False),
        ("[only]", "[only]", False),
        ("[fwd: Re: hello]", "hello", True),
        ("  a \t b ", "a b", False),
        ("", "", False),
        ("Re:", "", True),
    ],
)
def test_base_subjects(subject: str, base: str, is_reply: bool) -> None:
    assert base_subject(subject) == (base, is_reply)


def test_sort_keys_and_references() -> None:
    packed = message_facts(
        b'Subject: Re: =?iso-8859-1?q?gr=FC=DFe?=\r\nFrom: "Z" <zed@x>\r\nTo: g: <in@x>;\r\nCc: c@x\r\n'
        b"Message-ID: <3@x>\r\nReferences: <1@x>\r\n <2@x>\r\nIn-Reply-To: <9@x>\r\n\r\n",
        "QUEUEID 0",
    ).packed
    keys = sort_keys(packed)
    assert keys.subject == casemapped("grüße")
    assert (keys.from_, keys.to, keys.cc, keys.is_reply) == ("ZED", "G", "C", True)
    assert (keys.display_from, keys.display_to) == ("Z", "G")
    assert thread_ids(packed) == (b"3@x", [b"1@x", b"2@x"])
    assert section(packed, ORIGIN) == b"QUEUEID 0"
    folded = b"Message-ID: <a@b.exam\r\n ple>\r\nReferences: <1 of May> <x @y>\r\n\r\n"
    assert thread_ids(message_facts(folded).packed) == (b"a@b.example", [b"x@y"])
    assert thread_ids(message_facts(b"In-Reply-To: <9@x> and <8@x>\r\n\r\n").packed) == (
        b"",
        [b"9@x"],
    )


def test_dates_that_only_the_long_way_reads() -> None:
    for value, seconds in (
        (b"Mon, 1 Jan 24 10:00:00 EST", 1704121200),
        (b"nonsense", 0),
        (b"", 0),
        (b"Mon, 1 Jan 1900 10:00:00 +0000", 0),
    ):
        assert message_facts(b"Date: %b\r\n\r\n" % value).sent_date == seconds


def test_real_mail_gives_well_formed_facts() -> None:
    for content in real_mail():
        facts = message_facts(content)
        assert len(envelope(content)) == 10
        structure(content)
        sort_keys(facts.packed)
        places = part_places(facts.packed)
        assert [p.body_end for p in places] == [p.body_end for p in scan_mime(content)]
        assert facts.header_octets == places[0].body_start


@given(
    st.lists(
        st.sampled_from(
            [b"From: ", b"Subject: ", b"To: a@b", b"Content-Type: ", b"multipart/x; boundary=b", b"\r\n",
             b"--b\r\n", b"--b--", b"message/rfc822", b'"', b"\\", b"\xff", b"\0", b"{3}", b"(", b")", b" ", b"Date: "]
        ),
        max_size=30,
    ).map(b"".join)
)  # fmt: skip
def test_any_octets_give_well_formed_facts(content: bytes) -> None:
    assert len(envelope(content)) == 10
    structure(content)
    sort_keys(message_facts(content).packed)
