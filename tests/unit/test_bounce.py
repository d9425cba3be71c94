"""What a report quotes, says and carries in its envelope."""

from __future__ import annotations

import email
from types import SimpleNamespace

import pytest
from queue_lab import START_NS, FakeBody, envelope_to

from gateway.delivery.agent import BOUNCED, DELIVERED, RELAYED, Outcome
from gateway.delivery.bounce import (
    DELAY,
    FAILURE,
    SUCCESS,
    Original,
    ReportItem,
    collect_original,
    make_report,
)
from gateway.mail.envelope import (
    BODY_7BIT,
    BODY_8BITMIME,
    NOTIFY_NEVER,
    RET_FULL,
    RET_HDRS,
    Recipient,
)

HEADER = b"Received: x\r\nSubject: hello\r\n"
SMALL = HEADER + b"\r\nbody\r\n"
LARGE = HEADER + b"\r\n" + b"x" * 78 + b"\r\n" * 60_000
NEVER = Outcome(BOUNCED, 550, "5.1.1", "no such user", "mx.example.net[192.0.2.1]:25")


@pytest.mark.parametrize(
    ("kind", "ret", "content", "whole"),
    [
        (FAILURE, 0, SMALL, True),
        (FAILURE, 0, LARGE, False),
        (FAILURE, RET_FULL, LARGE, True),
        (FAILURE, RET_HDRS, SMALL, False),
        (DELAY, RET_FULL, SMALL, False),
        (SUCCESS, RET_FULL, SMALL, False),
        (FAILURE, RET_FULL, HEADER + b"\r\n" + b"x" * 2_000_000, False),
    ],
)
def test_how_much_of_the_original_is_returned(kind, ret, content, whole):
    # RFC 3461 §4.3, §6.2
    original = collect_original(kind, envelope_to("bob@example.org", ret=ret), FakeBody(content))
    assert original.header == HEADER
    assert original.content == (content if whole else None)


def test_an_endless_header_is_cut():
    body = FakeBody(b"X: " + b"y" * 10_000_000)
    original = collect_original(DELAY, envelope_to("bob@example.org"), body)
    assert len(original.header) == 65_536


def report(kind, outcome, *, sender="alice@example.com", recipient=None, **item):
    envelope = envelope_to(recipient or "bob@example.org", sender=sender)
    return make_report(
        kind,
        hostname="mx.example.org",
        message=SimpleNamespace(queue_id="ID1", envelope=envelope),
        items=[ReportItem(0, outcome, START_NS, **item)],
        original=Original(HEADER, SMALL),
        now=START_NS,
        report_id="ID2",
    )


def test_the_envelope_of_a_report():
    envelope, content = report(FAILURE, NEVER)
    assert envelope.reverse_path == ""
    assert envelope.recipients == [Recipient("alice@example.com", NOTIFY_NEVER)]
    assert (envelope.body, envelope.smtputf8) == (BODY_7BIT, False)
    assert envelope.message_id == "<ID2@mx.example.org>"
    facts = envelope.facts
    assert facts.size_octets == len(content)
    assert facts.lines == content.count(b"\n")
    assert content[facts.header_octets :].startswith(b"\r\n")


def test_a_report_to_an_internationalised_mailbox():
    envelope, _ = report(FAILURE, NEVER, sender="grüße@example.com")
    assert envelope.smtputf8
    assert envelope.body == BODY_8BITMIME


@pytest.mark.parametrize(
    ("kind", "outcome", "action", "status"),
    [
        (FAILURE, NEVER, "failed", "5.1.1"),
        (FAILURE, Outcome(BOUNCED, 554, "", "no"), "failed", "5.0.0"),
        (DELAY, Outcome(-1, 450, "4.2.1", "busy"), "delayed", "4.2.1"),
        (DELAY, Outcome(-1), "delayed", "4.0.0"),
        (SUCCESS, Outcome(RELAYED, 250, "2.0.0", "ok"), "relayed", "2.0.0"),
        (SUCCESS, Outcome(DELIVERED, 250, "", "ok"), "delivered", "2.0.0"),
    ],
)
def test_actions(kind, outcome, action, status):
    _, content = report(kind, outcome, retry_until=START_NS)
    fields = email.message_from_bytes(content).get_payload()[1].get_payload()[1]
    assert (fields["Action"], fields["Status"]) == (action, status)
