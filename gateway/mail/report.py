"""Delivery status notifications: what a sender is told about a message that failed, waits or arrived.

    Owns      ReportRecipient, build_report()
    Flow      the scheduler decides who is told what; here it becomes a message (values in, octets out)
    Limits    the original comes back whole up to FULL_MAX_OCTETS (DEFAULT_MAX_OCTETS when the sender
              did not ask), else its header up to HEADER_MAX_OCTETS; a peer's reply up to 900 characters
    Errors    ValueError for a null reverse-path: a report is never answered by a report (RFC 5321 §4.5.5)
    Security  peers and senders choose much of what is quoted here: control characters are taken out, and
              the boundary is one that does not occur in what it separates
    Standards RFC 3461 §6, RFC 3464, RFC 6522, RFC 6533, RFC 3834 §3.1, RFC 3463
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import msgspec

from gateway.mail.downgrade import (
    has_bare_line_ends,
    has_long_line,
    quoted_printable,
    to_7bit,
    to_8bit,
)
from gateway.mail.envelope import RET_FULL, RET_HDRS, Envelope
from gateway.mail.header import address_literal, date_time, is_domain

FAILURE = "failure"
DELAY = "delay"
SUCCESS = "success"

DEFAULT_MAX_OCTETS = 50_000  # original returned without being asked: enough to recognise it by
FULL_MAX_OCTETS = 1_048_576  # RET=FULL: a report must not be what fills the sender's mailbox
HEADER_MAX_OCTETS = 65_536
_WIDTH = 74
_TEXT_MAX = 900  # keeps every line below the 998 octets of RFC 5322 §2.1.1

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_LINE_END = re.compile(rb"\r\n|\r(?!\n)|(?<!\r)\n")
_MESSAGE_ID = re.compile(r"<?([!-;=?-~]+@[!-;=?-~]+)>?\Z")
_PEER = re.compile(r"([^\[\]\s]*)(?:\[([0-9A-Fa-f.:]+)\])?(?::\d+)?\Z")


class ReportRecipient(msgspec.Struct):
    """One recipient and what is to be said of it."""

    forward_path: str
    orcpt: str = ""  # "addr-type;address" as in Recipient
    action: str = "failed"  # RFC 3464 §2.3.3: failed | delayed | delivered | relayed | expanded
    status: str = "5.0.0"  # RFC 3463
    code: int = 0  # the peer's reply code, 0 when nobody replied
    text: str = ""  # the peer's reply, or our reason
    peer: str = ""  # "host[ip]:port", "" when no peer had a say
    last_attempt_at: int = 0  # ns UTC, 0 = never tried
    will_retry_until: int = 0  # ns UTC, for delays


_SUBJECTS = {
    FAILURE: "Your message could not be delivered",
    DELAY: "Your message is delayed",
    SUCCESS: "Your message was delivered",
}

_OPENINGS = {
    FAILURE: "Your message could not be delivered to the recipients named below. No further"
    " attempt will be made for them: this report is the end of it.",
    DELAY: "Your message has not yet been delivered to the recipients named below. This is only"
    " a warning: you need not send it again. We keep trying, and tell you if we have to give up.",
    SUCCESS: "You asked to be told about the delivery of your message. It went well for the"
    " recipients named below.",
}

# What to do, by subject and detail of the enhanced status (RFC 3463 §3); the subject alone comes last.
_ADVICE = {
    "1.8": "The server does not accept your own address. Check the sender address of your mail program.",
    "1.7": "The server does not accept your own address. Check the sender address of your mail program.",
    "1": "Check the address for typing errors. If it is right, ask the recipient in another way.",
    "2.2": "The mailbox is full. Tell the recipient in another way, and send again later.",
    "2.3": "The message is too large for this mailbox. Send less at once, or a link to the files.",
    "2": "The mailbox exists but takes no mail at present. Ask the recipient in another way.",
    "3.4": "The message is too large for that server. Send less at once, or a link to the files.",
    "3": "The trouble is with that mail system, not with your message. Send it again later.",
    "4.6": "The mail systems involved pass this message around in a circle. Tell your postmaster.",
    "4": "The server of the recipient could not be reached in time. Send the message again later;"
    " if that fails too, tell the recipient in another way.",
    "6": "The server cannot take a message of this kind. Send it again as plain text, with addresses"
    " in plain ASCII.",
    "7": "The server refuses this message by its own rules; its words above say why. If you think that"
    " is wrong, pass this report to your postmaster or to the recipient.",
    "": "If the words above do not help, pass this report to your postmaster.",
}


def _advice(status: str) -> str:
    subject, _, detail = status.partition(".")[2].partition(".")
    return _ADVICE.get(f"{subject}.{detail}") or _ADVICE.get(subject) or _ADVICE[""]


def _wrapped(text: str, indent: int = 0) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _clean(text: str) -> str:
    """text on one line, of at most _TEXT_MAX octets."""
    octets = _CONTROL.sub(" ", text).strip().encode(errors="replace")
    return octets[:_TEXT_MAX].decode(errors="ignore")


def _reply_text(recipient: ReportRecipient) -> str:
    """The reply as its sender wrote it, on one line; our own reason when no peer replied."""
    text = _clean(recipient.text)
    if not (recipient.code and recipient.peer):
        return text
    same_class = recipient.status[:1] == str(recipient.code)[:1]
    if same_class and not text.startswith(recipient.status):
        text = f"{recipient.status} {text}"
    return f"{recipient.code} {text}".rstrip()


def _human_lines(kind: str, recipient: ReportRecipient) -> list[str]:
    """What happened, who said what, what to do."""
    lines = [f"<{_clean(recipient.forward_path)}>"]
    said = _reply_text(recipient)
    if recipient.action == "relayed":
        # RFC 3461 §5.2.2: the next server does not pass the request on, so this is the last report.
        peer = _clean(recipient.peer) or "the next mail system"
        lines.append(f"    It was handed to {peer}, which reports no further.")
        return lines
    if kind == SUCCESS:
        lines.append("    It was delivered.")
        return lines
    if recipient.peer and recipient.code:
        lines.append(f"    The server {_clean(recipient.peer)} said:")
    elif recipient.peer:
        lines.append(f"    The server {_clean(recipient.peer)} could not be used:")
    else:
        lines.append("    The reason:")
    lines += _wrapped(said or "no reason was given", 8)
    if kind == DELAY:
        if recipient.will_retry_until:
            lines.append(f"    We keep trying until {date_time(recipient.will_retry_until)}.")
    else:
        lines += _wrapped(_advice(recipient.status), 4)
    return lines


def _human_text(
    kind: str, hostname: str, queue_id: str, envelope: Envelope, recipients: Sequence[ReportRecipient]
) -> str:
    lines = [f"This is the mail system of {hostname}.", "", *_wrapped(_OPENINGS[kind]), ""]
    for recipient in recipients:
        lines += [*_human_lines(kind, recipient), ""]
    lines += _wrapped(
        f"We received the message on {date_time(envelope.received_at)}; its reference with us is"
        f" {queue_id}. The technical details and the message (or its header) follow."
    )
    return "\n".join(lines) + "\n"


def _address_field(name: str, address_type: str, address: str, utf8: bool) -> str:
    """One Original-Recipient or Final-Recipient field."""
    address = _clean(address)
    if not address.isascii():
        # RFC 6533 §3: the type is utf-8; where UTF-8 cannot stand, utf-8-addr-xtext takes its place.
        address_type = "utf-8"
        if not utf8:
            address = "".join(
                f"\\x{{{ord(c):02X}}}" if not " " < c < "\x7f" or c in "\\+=" else c for c in address
            )
    return f"{name}: {address_type}; {address[:_TEXT_MAX]}"


def _mta_name(name: str, literal: str) -> str:
    """RFC 3464 §2.1.2 mta-name of type dns: a domain, else an address literal; "" when we know neither."""
    if name and is_domain(name) and not name.replace(".", "").isdigit():
        return f"dns; {name}"
    return f"dns; {literal}" if literal else ""


def _remote_mta(peer: str) -> str:
    match = _PEER.match(peer)
    if match is None:
        return ""
    host, ip = match.groups()
    return _mta_name(host, address_literal(ip or ""))


def _status_fields(
    hostname: str,
    queue_id: str,
    envelope: Envelope,
    recipients: Sequence[ReportRecipient],
    utf8: bool,
) -> str:
    """RFC 3464 §2.1: per-message fields, then one group per recipient."""
    fields = []
    if envelope.envid:
        fields.append(f"Original-Envelope-Id: {_clean(envelope.envid)}")  # §2.2.1, RFC 3461 §4.4
    fields.append(f"Reporting-MTA: dns; {hostname}")
    received_from = _mta_name(envelope.client_name, address_literal(envelope.client_address))
    if received_from:
        fields.append(f"Received-From-MTA: {received_from}")
    fields.append(f"Arrival-Date: {date_time(envelope.received_at)}")
    fields.append(f"X-Queue-Id: {queue_id}")
    for recipient in recipients:
        fields.append("")
        address_type, semicolon, address = recipient.orcpt.partition(";")
        if semicolon:  # RFC 3464 §2.3.1: only when ORCPT was given
            fields.append(_address_field("Original-Recipient", _clean(address_type), address, utf8))
        fields.append(_address_field("Final-Recipient", "rfc822", recipient.forward_path, utf8))
        fields.append(f"Action: {recipient.action}")
        fields.append(f"Status: {recipient.status}")
        remote = _remote_mta(recipient.peer)
        if remote:
            fields.append(f"Remote-MTA: {remote}")
        diagnostic = _reply_text(recipient)
        if diagnostic:
            # RFC 3464 §2.3.6: of type smtp only what an SMTP server really said
            origin = "smtp" if recipient.code and recipient.peer else "x-gateway"
            if not utf8:
                diagnostic = diagnostic.encode("ascii", "backslashreplace").decode()[:_TEXT_MAX]
            fields.append(f"Diagnostic-Code: {origin}; {diagnostic}")
        if recipient.last_attempt_at:
            fields.append(f"Last-Attempt-Date: {date_time(recipient.last_attempt_at)}")
        if recipient.action == "delayed" and recipient.will_retry_until:
            fields.append(f"Will-Retry-Until: {date_time(recipient.will_retry_until)}")
    text = "\r\n".join(fields) + "\r\n"
    return text if utf8 else text.encode("ascii", "replace").decode()


def _part(content_type: str, encoding: str, octets: bytes) -> bytes:
    return (
        f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + octets
    )


def _returned_content(content: bytes, utf8: bool) -> bytes | None:
    """The third part with the whole original, or None when it cannot travel in this report."""
    converted = to_8bit(content) if utf8 else to_7bit(content)
    if converted is None:
        return None
    if has_bare_line_ends(converted, lf_only=False):
        converted = _LINE_END.sub(b"\r\n", converted)
    if b"\0" in converted or has_long_line(converted):  # in a header: only bodies are encoded
        return None
    # RFC 6533 §4.2, §6: message/global for what only SMTPUTF8 can carry
    header_is_ascii = converted.partition(b"\r\n\r\n")[0].isascii()
    content_type = "message/rfc822" if header_is_ascii else "message/global"
    return _part(content_type, "7bit" if converted.isascii() else "8bit", converted)


def _returned_header(header: bytes, utf8: bool) -> bytes:
    """The third part with the header alone (RFC 6522 §4; RFC 6533 §4.3 when it is not ASCII)."""
    header = bytes(header[:HEADER_MAX_OCTETS])
    if len(header) == HEADER_MAX_OCTETS:
        header = header[: header.rfind(b"\n") + 1] or header
    header = _LINE_END.sub(b"\r\n", header.replace(b"\0", b"")).rstrip(b"\r\n") + b"\r\n"
    long_lines = max(map(len, header.split(b"\r\n"))) > 998
    if header.isascii():
        if long_lines:
            return _part("text/rfc822-headers", "quoted-printable", quoted_printable(header))
        return _part("text/rfc822-headers", "7bit", header)
    if utf8 and not long_lines:
        return _part("message/global-headers", "8bit", header)
    return _part("message/global-headers", "quoted-printable", quoted_printable(header))


def _returned(
    kind: str, envelope: Envelope, header: bytes, content: bytes | None, utf8: bool
) -> bytes:
    # RFC 3461 §4.3: RET is about failures; other reports return the header only.
    if kind == FAILURE and content is not None and envelope.ret != RET_HDRS:
        limit = FULL_MAX_OCTETS if envelope.ret == RET_FULL else DEFAULT_MAX_OCTETS
        if len(content) <= limit:
            part = _returned_content(content, utf8)
            if part is not None:
                return part
    return _returned_header(header, utf8)


def build_report(
    *,
    kind: str,
    hostname: str,
    envelope: Envelope,
    queue_id: str,
    recipients: Sequence[ReportRecipient],
    header: bytes,
    content: bytes | None,
    now: int,
    report_id: str,
) -> bytes:
    """The report as a message to envelope.reverse_path, CRLF lines, its own envelope's sender null.

    kind: FAILURE, DELAY or SUCCESS.  header: the original's header section; content: all of it, when at
    hand.  report_id makes the Message-ID.  The result is 7-bit unless the reverse-path is not ASCII: then
    it is UTF-8 and needs SMTPUTF8 and 8BITMIME, as its addressee does anyhow.
    """
    if envelope.is_null:
        raise ValueError("a null reverse-path gets no report")
    utf8 = not envelope.reverse_path.isascii()
    human = _human_text(kind, hostname, queue_id, envelope, recipients).replace("\n", "\r\n")
    if human.isascii():
        notification = _part("text/plain; charset=us-ascii", "7bit", human.encode())
    elif utf8:
        notification = _part("text/plain; charset=utf-8", "8bit", human.encode())
    else:
        text = quoted_printable(human.encode(errors="replace"))
        notification = _part("text/plain; charset=utf-8", "quoted-printable", text)
    fields = _status_fields(hostname, queue_id, envelope, recipients, utf8)
    # RFC 6533 §4: global-delivery-status where UTF-8 stands in the fields
    status = _part(
        "message/delivery-status" if fields.isascii() else "message/global-delivery-status",
        "7bit" if fields.isascii() else "8bit",
        fields.encode(errors="replace"),
    )
    parts = [notification, status, _returned(kind, envelope, header, content, utf8)]

    boundary = f"=_report_{report_id}"
    while any(b"--" + boundary.encode() in part for part in parts):
        boundary += "="
    lines = [
        f"From: Mail Delivery System <MAILER-DAEMON@{hostname}>",
        f"To: <{_clean(envelope.reverse_path)}>",
        f"Subject: {_SUBJECTS[kind]}",
        f"Date: {date_time(now)}",
        f"Message-ID: <{report_id}@{hostname}>",
        "Auto-Submitted: auto-replied",  # RFC 3834 §5.2
    ]
    match = _MESSAGE_ID.match(envelope.message_id)
    if match:  # RFC 3834 §3.1.5
        lines += [f"In-Reply-To: <{match[1]}>", f"References: <{match[1]}>"]
    lines += [
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary}"',
    ]
    if not all(part.isascii() for part in parts):
        lines.append("Content-Transfer-Encoding: 8bit")
    delimiter = b"\r\n--" + boundary.encode()
    octets = ["\r\n".join(lines).encode(), b"\r\n"]
    for part in parts:
        octets += [delimiter, b"\r\n", part]
    octets += [delimiter, b"--\r\n"]
    return b"".join(octets)
