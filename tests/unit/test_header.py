"""mail/header.py: Received and Return-Path (RFC 5321 §4.4), whatever a peer calls itself."""

from __future__ import annotations

import re
from email import message_from_bytes, policy
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.header import (
    ReceivedStamp,
    address_literal,
    date_time,
    return_path,
    transmission_type,
)

NOW = 1_700_000_000_123_456_789


def stamp(**facts: object) -> ReceivedStamp:
    given_facts: dict[str, object] = {
        "hostname": "mx1.example.org",
        "client_name": "client.example",
        "client_address": "192.0.2.1:4711",
    }
    return ReceivedStamp(**(given_facts | facts))  # type: ignore[arg-type]


def unfolded(field: bytes) -> str:
    return re.sub(rb"\r\n(?=[ \t])", b"", field).decode().rstrip("\r\n").replace("\t", " ")


def test_plain_session() -> None:
    field = stamp(reverse_name="c.example").line("0123456789AB", "alice@example.org", NOW)
    assert unfolded(field) == (
        "Received: from client.example (c.example [192.0.2.1]) by mx1.example.org with ESMTP"
        " id 0123456789AB for <alice@example.org>; Tue, 14 Nov 2023 22:13:20 +0000"
    )


def test_tls_clause_and_utf8_keyword() -> None:
    session = stamp(tls="TLSv1.3 TLS_AES_128_GCM_SHA256", authenticated=True)
    text = unfolded(session.line("A", None, NOW, True))
    assert "(TLSv1.3 TLS_AES_128_GCM_SHA256) by" in text
    assert "with UTF8SMTPSA id A;" in text
    assert " for " not in text


@pytest.mark.parametrize(
    "mailbox",
    ['"a b"@e.org', "Postmaster", "a>b@e.org", "a@b c", "jörg@e.org", "x" * 65 + "@e.org"],
)
def test_unsafe_mailbox_is_left_out(mailbox: str) -> None:
    assert b" for " not in stamp().line("A", mailbox, NOW).replace(b"\t", b" ")


@given(st.text(max_size=300), st.text(max_size=80), st.text(max_size=80))
@settings(deadline=None, max_examples=200)
def test_hostile_client_stays_inside_the_field(name: str, tls: str, reverse_name: str) -> None:
    session = stamp(client_name=name, tls=tls, reverse_name=reverse_name)
    field = session.line("0123456789AB", None, NOW)
    assert field.isascii() and field.endswith(b"\r\n") and b"\0" not in field
    lines = field[:-2].split(b"\r\n")
    assert all(line[:1] in b" \t" and line.strip() for line in lines[1:])
    assert b"\r" not in b"".join(lines) and b"\n" not in b"".join(lines)
    assert field.count(b"(") == field.count(b")") and b'"' not in field and b"\\" not in field
    parsed = message_from_bytes(field + b"\r\nbody", policy=policy.compat32)
    assert parsed.keys() == ["Received"]


def test_lines_fold_at_78_octets() -> None:
    field = stamp(
        hostname="mx." + "h" * 50 + ".example.org",
        client_name="c" * 60 + ".example",
        reverse_name="r" * 60 + ".example",
        tls="TLSv1.2 ECDHE-RSA-CHACHA20-POLY1305-AND-A-LONG-NAME-OF-A-CIPHER",
    ).line("0123456789AB", "a" * 20 + "@example.org", NOW)
    assert max(map(len, field.split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    ("address", "literal"),
    [
        ("192.0.2.1:4711", "[192.0.2.1]"),
        ("192.0.2.1", "[192.0.2.1]"),
        ("[2001:db8::1]:25", "[IPv6:2001:db8::1]"),
        ("2001:db8::1", "[IPv6:2001:db8::1]"),
        ("fe80::1%eth0", "[IPv6:fe80::1]"),
        ("unix:", ""),
        ("", ""),
    ],
)
def test_address_literal(address: str, literal: str) -> None:
    assert address_literal(address) == literal


def test_client_that_gave_no_name() -> None:
    assert b"from [192.0.2.1] ([192.0.2.1])" in stamp(client_name="").line("A", None, NOW)
    assert b"from unknown\r\n" in stamp(client_name="", client_address="unix:").line("A", None, NOW)


@pytest.mark.parametrize(
    ("facts", "keyword"),
    [
        ({"extended": False}, "SMTP"),
        ({}, "ESMTP"),
        ({"tls": True}, "ESMTPS"),
        ({"authenticated": True}, "ESMTPA"),
        ({"tls": True, "authenticated": True}, "ESMTPSA"),
        ({"lmtp": True, "extended": False}, "LMTP"),
        ({"lmtp": True, "tls": True, "smtputf8": True}, "UTF8LMTPS"),
        ({"smtputf8": True}, "UTF8SMTP"),
    ],
)
def test_transmission_type(facts: dict[str, bool], keyword: str) -> None:
    assert transmission_type(**facts) == keyword


def test_date_is_what_others_read() -> None:
    for second in (0, 951_782_400, 1_709_208_000, 4_102_444_799):
        assert parsedate_to_datetime(date_time(second * 10**9)).timestamp() == second


def test_own_name_must_be_sound() -> None:
    with pytest.raises(ValueError, match="neither a domain"):
        stamp(hostname="mx1 example")


def test_return_path() -> None:
    assert return_path("") == b"Return-Path: <>\r\n"
    assert return_path("jörg@example.org") == "Return-Path: <jörg@example.org>\r\n".encode()
    with pytest.raises(ValueError, match="break out"):
        return_path("a@b>\r\nX: y")
