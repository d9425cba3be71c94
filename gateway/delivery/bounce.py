"""Reports to senders: outcomes of a message become a new message of our own.

    Owns      ReportItem, collect_original(), make_report()
    Limits    of the original at most what build_report() may return is read (FULL_MAX_OCTETS)
    Errors    what reading the original raises
    Blocking  collect_original() waits for the disk when the body is not in memory
    Standards RFC 3461 §5 and §6, RFC 3464, RFC 5321 §4.5.5
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway._native import DataDecoder
from gateway.delivery.agent import DELIVERED, RELAYED, Body, Message, Outcome
from gateway.mail.envelope import (
    BODY_7BIT,
    BODY_8BITMIME,
    NOTIFY_NEVER,
    NULL_REVERSE_PATH,
    RET_FULL,
    RET_HDRS,
    Envelope,
    Facts,
    Recipient,
)
from gateway.mail.report import (
    DEFAULT_MAX_OCTETS,
    DELAY,
    FAILURE,
    FULL_MAX_OCTETS,
    HEADER_MAX_OCTETS,
    SUCCESS,
    ReportRecipient,
    build_report,
)

__all__ = ["DELAY", "FAILURE", "SUCCESS", "Original", "ReportItem", "collect_original", "make_report"]


class ReportItem(msgspec.Struct, frozen=True):
    """What is to be said of one recipient."""

    index: int  # in the envelope
    outcome: Outcome
    attempted_at: int  # ns UTC
    retry_until: int = 0  # ns UTC, for delays


class Original(msgspec.Struct, frozen=True):
    """As much of a message as its reports quote."""

    header: bytes
    content: bytes | None  # None: too large to be returned, or not wanted


def collect_original(kind: str, envelope: Envelope, body: Body) -> Original:
    """What a report of this kind may return."""
    limit = FULL_MAX_OCTETS if envelope.ret == RET_FULL else DEFAULT_MAX_OCTETS
    # RFC 3461 §4.3: RET is about failures; a message that arrived or waits is not sent back.
    whole = kind == FAILURE and envelope.ret != RET_HDRS and body.size <= limit
    octets = bytearray()
    for piece in body.chunks(HEADER_MAX_OCTETS):
        octets += piece
        if not whole and (len(octets) >= HEADER_MAX_OCTETS or b"\r\n\r\n" in octets):
            break
    end = octets.find(b"\r\n\r\n")
    header = bytes(octets[: end + 2 if end >= 0 else HEADER_MAX_OCTETS])
    return Original(header, bytes(octets) if whole else None)


def make_report(
    kind: str,
    *,
    hostname: str,
    message: Message,
    items: Sequence[ReportItem],
    original: Original,
    now: int,
    report_id: str,
) -> tuple[Envelope, bytes]:
    """The report and its envelope: from nobody, to the message's sender."""
    envelope = message.envelope
    content = build_report(
        kind=kind,
        hostname=hostname,
        envelope=envelope,
        queue_id=message.queue_id,
        recipients=[_describe(kind, envelope, item) for item in items],
        header=original.header,
        content=original.content,
        now=now,
        report_id=report_id,
    )
    decoder = DataDecoder()
    decoder.feed_chunk(content, 0, len(content))
    decoder.finish_chunks()
    facts = Facts(*decoder.facts())
    return (
        Envelope(
            NULL_REVERSE_PATH,  # RFC 5321 §4.5.5
            # RFC 3461 §6.1: a report asks for no report.
            [Recipient(envelope.reverse_path, NOTIFY_NEVER)],
            now,
            body=BODY_8BITMIME if facts.has_8bit else BODY_7BIT,
            smtputf8=not envelope.reverse_path.isascii(),
            message_id=f"<{report_id}@{hostname}>",
            facts=facts,
        ),
        content,
    )


def _describe(kind: str, envelope: Envelope, item: ReportItem) -> ReportRecipient:
    recipient, outcome = envelope.recipients[item.index], item.outcome
    if kind == FAILURE:
        action = "failed"
    elif kind == DELAY:
        action = "delayed"
    else:
        # RFC 3461 §5.2.2: handed to an MTA that does not report itself.
        action = {RELAYED: "relayed", DELIVERED: "delivered"}.get(outcome.state, "delivered")
    return ReportRecipient(
        forward_path=recipient.forward_path,
        orcpt=recipient.orcpt,
        action=action,
        status=outcome.enhanced or {FAILURE: "5.0.0", DELAY: "4.0.0"}.get(kind, "2.0.0"),
        code=outcome.code,
        text=outcome.text,
        peer=outcome.peer,
        last_attempt_at=item.attempted_at,
        will_retry_until=item.retry_until,
    )
