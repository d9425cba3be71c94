"""Delivery status notifications: what a mail program and a person find in them."""

from __future__ import annotations

from email import message_from_bytes
from email.message import Message
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.envelope import RET_FULL, RET_HDRS, Envelope, Recipient
from gateway.mail.report import (
    DEFAULT_MAX_OCTETS,
    DELAY,
    FAILURE,
    FULL_MAX_OCTETS,
    SUCCESS,
    ReportRecipient,
    build_report,
)

SECOND = 10**9
RECEIVED_AT = 1_700_000_000 * SECOND
NOW = RECEIVED_AT + 3600 * SECOND

HEADER = b"From: <alice@example.org>\r\nSubject: hello\r\nMessage-ID: <1@example.org>\r\n"
CONTENT = HEADER + b"\r\nthe text\r\n"

REFUSED = ReportRecipient(
    "bob@example.net",
    orcpt="rfc822;robert@example.com",
    status="5.1.1",
    code=550,
    text="5.1.1 <bob@example.net>: no such user",
    peer="mail.example.net[192.0.2.7]:25",
    last_attempt_at=NOW,
)


def envelope(**changes: Any) -> Envelope:
    facts: dict[str, Any] = {
        "reverse_path": "alice@example.org",
        "recipients": [Recipient("bob@example.net")],
        "received_at": RECEIVED_AT,
        "envid": "QQ314159",
        "client_address": "192.0.2.9:4711",
        "client_name": "client.example",
        "message_id": "<1@example.org>",
    }
    return Envelope(**(facts | changes))


def report(
    *recipients: ReportRecipient,
    kind: str = FAILURE,
    header: bytes = HEADER,
    content: bytes | None = CONTENT,
    **changes: Any,
) -> bytes:
    return build_report(
        kind=kind,
        hostname="mx1.example.org",
        envelope=envelope(**changes),
        queue_id="0123456789AB",
        recipients=recipients or [REFUSED],
        header=header,
        content=content,
        now=NOW,
        report_id="R1",
    )


def parts_of(octets: bytes) -> list[Any]:
    """The three parts, after checks that hold for every report."""
    assert b"\n" not in octets.replace(b"\r\n", b"") and b"\r" not in octets.replace(b"\r\n", b"")
    assert b"\0" not in octets
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    message = message_from_bytes(octets)
    assert not message.defects
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["Auto-Submitted"] == "auto-replied"
    parts = message.get_payload()
    assert isinstance(parts, list) and len(parts) == 3
    return parts


def text_of(part: Message) -> str:
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    return octets.decode(part.get_content_charset() or "ascii")


def status_of(octets: bytes) -> list[dict[str, str]]:
    part = parts_of(octets)[1]
    assert part.get_content_type() == "message/delivery-status"
    return [dict(block.items()) for block in part.get_payload()]


def test_failure() -> None:
    octets = report()
    assert octets.isascii()
    message = message_from_bytes(octets)
    assert message["From"].endswith("<MAILER-DAEMON@mx1.example.org>")
    assert message["To"] == "<alice@example.org>"
    assert message["Message-ID"] == "<R1@mx1.example.org>"
    assert message["References"] == message["In-Reply-To"] == "<1@example.org>"
    assert message["Date"] == "Tue, 14 Nov 2023 23:13:20 +0000"
    per_message, per_recipient = status_of(octets)
    assert per_message == {
        "Original-Envelope-Id": "QQ314159",
        "Reporting-MTA": "dns; mx1.example.org",
        "Received-From-MTA": "dns; client.example",
        "Arrival-Date": "Tue, 14 Nov 2023 22:13:20 +0000",
        "X-Queue-Id": "0123456789AB",
    }
    assert per_recipient == {
        "Original-Recipient": "rfc822; robert@example.com",
        "Final-Recipient": "rfc822; bob@example.net",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mail.example.net",
        "Diagnostic-Code": "smtp; 550 5.1.1 <bob@example.net>: no such user",
        "Last-Attempt-Date": "Tue, 14 Nov 2023 23:13:20 +0000",
    }


def test_the_person_learns_who_said_what_and_what_to_do() -> None:
    text = text_of(parts_of(report())[0])
    assert "could not be delivered" in text
    assert "<bob@example.net>" in text
    assert "The server mail.example.net[192.0.2.7]:25 said:" in text
    assert "550 5.1.1 <bob@example.net>: no such user" in text
    assert "Check the address for typing errors." in text
    assert "0123456789AB" in text
    assert max(map(len, text.split("\r\n"))) <= 76


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        ("5.1.2", "Check the address"),
        ("5.1.8", "your own address"),
        ("5.2.2", "mailbox is full"),
        ("5.3.4", "too large"),
        ("4.4.7", "could not be reached"),
        ("5.4.6", "in a circle"),
        ("5.6.7", "plain"),
        ("5.7.1", "by its own rules"),
        ("5.0.0", "your postmaster"),
        ("5.5.3", "your postmaster"),
    ],
)
def test_advice_follows_the_status(status: str, advice: str) -> None:
    recipient = ReportRecipient("bob@example.net", status=status, code=550, text="x", peer="m:25")
    assert advice in " ".join(text_of(parts_of(report(recipient))[0]).split())


def test_our_own_reason_is_not_put_into_the_peers_mouth() -> None:
    recipient = ReportRecipient(
        "bob@example.net", status="4.4.1", text="connection timed out", peer="mx.example.net:25"
    )
    _, fields = status_of(report(recipient))
    assert fields["Diagnostic-Code"] == "x-gateway; connection timed out"
    text = text_of(parts_of(report(recipient))[0])
    assert "The server mx.example.net:25 could not be used:" in text and " said:" not in text


def test_delay() -> None:
    recipient = ReportRecipient(
        "bob@example.net",
        action="delayed",
        status="4.2.2",
        code=452,
        text="4.2.2 mailbox full",
        peer="[192.0.2.7]:25",
        will_retry_until=NOW + 86400 * SECOND,
    )
    octets = report(recipient, kind=DELAY, ret=RET_FULL)
    _, fields = status_of(octets)
    assert fields["Action"] == "delayed"
    assert fields["Remote-MTA"] == "dns; [192.0.2.7]"
    assert fields["Will-Retry-Until"] == "Wed, 15 Nov 2023 23:13:20 +0000"
    text = text_of(parts_of(octets)[0])
    assert "need not send it again" in " ".join(text.split())
    assert "until Wed, 15 Nov 2023 23:13:20 +0000" in text
    # RFC 3461 §4.3: RET is about failures
    assert parts_of(octets)[2].get_content_type() == "text/rfc822-headers"


def test_success_and_relayed() -> None:
    delivered = ReportRecipient("bob@example.net", action="delivered", status="2.1.5")
    relayed = ReportRecipient(
        "eve@example.com", action="relayed", status="2.0.0", peer="mx.example.com[192.0.2.8]:25"
    )
    octets = report(delivered, relayed, kind=SUCCESS)
    _, first, second = status_of(octets)
    assert (first["Action"], second["Action"]) == ("delivered", "relayed")
    text = text_of(parts_of(octets)[0])
    assert "It was delivered." in text
    assert "It was handed to mx.example.com[192.0.2.8]:25, which reports no further." in text
    assert parts_of(octets)[2].get_content_type() == "text/rfc822-headers"


def test_the_whole_original_when_it_may() -> None:
    returned = parts_of(report())[2]
    assert returned.get_content_type() == "message/rfc822"
    assert returned.get_payload(0).as_bytes() == CONTENT.replace(b"\r\n", b"\n")


@pytest.mark.parametrize(
    ("ret", "size", "media_type"),
    [
        (0, DEFAULT_MAX_OCTETS, "message/rfc822"),
        (0, DEFAULT_MAX_OCTETS + 1, "text/rfc822-headers"),
        (RET_FULL, DEFAULT_MAX_OCTETS + 1, "message/rfc822"),
        (RET_FULL, FULL_MAX_OCTETS + 1, "text/rfc822-headers"),
        (RET_HDRS, 100, "text/rfc822-headers"),
    ],
)
def test_what_comes_back(ret: int, size: int, media_type: str) -> None:
    lines, rest = divmod(size - len(HEADER) - 4, 64)
    content = HEADER + b"\r\n" + (b"x" * 62 + b"\r\n") * lines + b"y" * rest + b"\r\n"
    assert len(content) == size
    returned = parts_of(report(content=content, ret=ret))[2]
    assert returned.get_content_type() == media_type


def test_no_content_at_hand() -> None:
    returned = parts_of(report(content=None, ret=RET_FULL))[2]
    assert returned.get_content_type() == "text/rfc822-headers"
    assert text_of(returned) == HEADER.decode()


def test_8bit_original_is_made_7bit() -> None:
    content = HEADER + b"\r\ngr\xc3\xbcn\r\n"
    octets = report(content=content)
    assert octets.isascii()
    inner = parts_of(octets)[2].get_payload(0)
    assert inner.get_payload(decode=True) == b"gr\xc3\xbcn\r\n"


def test_8bit_original_that_cannot_be_made_7bit_comes_back_as_header() -> None:
    header = HEADER + "X-Name: grün\r\n".encode()
    octets = report(header=header, content=header + b"\r\ntext\r\n")
    assert octets.isascii()
    returned = parts_of(octets)[2]
    assert returned.get_content_type() == "message/global-headers"
    assert "grün".encode() in header
    assert b"X-Name: gr=C3=BCn\r\n" in octets


def test_utf8_addressee() -> None:
    """RFC 6533: an internationalized sender gets an internationalized report."""
    bob = ReportRecipient("bøb@example.net", orcpt="utf-8;bøb@example.net", status="5.6.7", code=553)
    header = "Subject: grün\r\n".encode()
    octets = report(
        bob, reverse_path="älice@example.org", header=header, content=header + b"\r\ntext\r\n"
    )
    assert "To: <älice@example.org>\r\n".encode() in octets
    assert b"Content-Type: message/global-delivery-status\r\n" in octets
    assert "Original-Recipient: utf-8; bøb@example.net\r\n".encode() in octets
    assert "Final-Recipient: utf-8; bøb@example.net\r\n".encode() in octets
    assert b"Content-Type: message/global\r\n" in octets
    parts_of(octets)


def test_utf8_recipient_of_an_ascii_sender() -> None:
    """RFC 6533 §3: where UTF-8 cannot stand, utf-8-addr-xtext does."""
    octets = report(ReportRecipient("bø+b@example.net", status="5.1.1"))
    assert octets.isascii()
    assert status_of(octets)[1]["Final-Recipient"] == r"utf-8; b\x{F8}\x{2B}b@example.net"


def test_boundary_does_not_occur_inside() -> None:
    content = HEADER + b"\r\n--=_report_R1\r\n--=_report_R1=\r\ntext\r\n"
    octets = report(content=content)
    assert parts_of(octets)[2].get_payload(0).get_payload() == content.partition(b"\r\n\r\n")[
        2
    ].decode()


def test_report_on_a_report_is_refused() -> None:
    with pytest.raises(ValueError, match="null reverse-path"):
        report(reverse_path="")


def test_unknown_message_id_is_not_quoted() -> None:
    assert message_from_bytes(report(message_id="<a b@c>\r\nX: y"))["In-Reply-To"] is None


hostile = st.text(max_size=120) | st.sampled_from(["\r\nBcc: x", "a\r\n\r\n--=_report_R1", "ü" * 2000])


@given(
    st.sampled_from([FAILURE, DELAY, SUCCESS]),
    st.booleans(),
    st.tuples(hostile, hostile, hostile, hostile),
    st.tuples(hostile, hostile),
    st.binary(max_size=200),
)
@settings(deadline=None, max_examples=200)
def test_hostile_words_stay_in_their_place(
    kind: str, utf8: bool, words: tuple[str, ...], names: tuple[str, str], header: bytes
) -> None:
    path, orcpt, text, peer = words
    recipient = ReportRecipient(path, orcpt, code=550, text=text, peer=peer)
    octets = report(
        recipient,
        kind=kind,
        header=header,
        content=header,
        reverse_path="älice@example.org" if utf8 else "alice@example.org",
        client_name=names[0],
        envid=names[1],
    )
    assert utf8 or octets.isascii()
    parts = parts_of(octets)
    if not utf8:
        assert len(parts[1].get_payload()) == 2
        assert "Bcc" not in parts[1].get_payload()[1]
