"""Fits one message to what the next hop offers: the transaction to run, or the reason why there is none.

    Owns      Delivery: a job with the transaction made of it
    Flow      prepare(): SMTPUTF8 → 8 bit → SIZE → framing (BDAT or DATA) → commands; refused recipients get verdicts
    Errors    OSError and the spool's errors when the content cannot be read: the caller defers
    Blocking  prepare() reads the content when it is not in memory and may convert it; must_wait() says so beforehand
    Standards RFC 1870 §6, RFC 2033, RFC 3030, RFC 3461 §5, RFC 6152 §3, RFC 6531 §3; RFC 5248 (X.6.3, X.6.7, X.6.9)
"""

from __future__ import annotations

from collections.abc import Sequence

import idna

from gateway._native import scan_mime, stuff
from gateway.delivery.agent import Body, Done, Job
from gateway.mail import envelope as env
from gateway.mail.downgrade import to_7bit, to_8bit
from gateway.protocol.esmtp_client import Capabilities, render_mail, render_rcpt, render_xclient
from gateway.protocol.smtp_client import PERMANENT, Transaction, Verdict

STREAM_OCTETS = 262_144  # content above this is read and written piece by piece
CONVERT_INLINE_OCTETS = 65_536  # converting more would hold up the loop
MAX_LINE_OCTETS = 998  # RFC 5321 §4.5.3.1.6, without CRLF

NO_CONVERSION: Verdict = (
    PERMANENT, 0, "5.6.3", "the next hop does not take 8-bit or binary content, and this one cannot be converted",
)  # fmt: skip
NO_UTF8_ADDRESS: Verdict = (PERMANENT, 0, "5.6.7", "non-ASCII address, but the next hop does not offer SMTPUTF8")
NO_UTF8_HEADER: Verdict = (PERMANENT, 0, "5.6.9", "non-ASCII header, but the next hop does not offer SMTPUTF8")


class Delivery:
    """A job with what became of it so far."""

    __slots__ = (
        "body", "done", "dsn", "job", "positions", "refused", "repair", "returned", "started_at", "transaction",
    )  # fmt: skip

    def __init__(self, job: Job, done: Done) -> None:
        self.job = job
        self.done = done
        self.body: Body | None = None
        self.transaction: Transaction | None = None  # None after prepare(): all recipients are refused
        self.positions: list[int] | None = None  # index in job.recipients by index in the transaction; None: the same
        self.refused: dict[int, Verdict] = {}  # by index in job.recipients
        self.repair = False  # before DATA bare CR and LF must become CRLF, and NULs spaces
        self.dsn = False  # the peer was told NOTIFY and will report
        self.returned = False  # a connection was lost before the peer looked at it
        self.started_at = 0.0  # loop time


def must_wait(delivery: Delivery, offered: Capabilities) -> bool:
    """True when prepare() would wait for the disk or compute for long: call it off the loop."""
    body = delivery.body
    assert body is not None
    facts = delivery.job.envelope.facts
    convert = _is_binary(delivery.job.envelope) or (
        facts.has_8bit and not (offered.eightbit and offered.smtputf8)
    )
    if convert and body.size > CONVERT_INLINE_OCTETS:
        return True
    return not body.in_memory and (convert or body.size <= STREAM_OCTETS)


def prepare(delivery: Delivery, offered: Capabilities, *, lmtp: bool = False, xclient: bool = False) -> None:
    """Set delivery.transaction, or delivery.refused for the recipients that cannot be served here."""
    job = delivery.job
    envelope = job.envelope
    body = delivery.body
    assert body is not None
    delivery.transaction = None
    delivery.positions = None
    delivery.refused = {}
    facts = envelope.facts
    size = body.size
    reverse_path = envelope.reverse_path
    content: Sequence[bytes | memoryview] | None = None
    smtputf8 = envelope.smtputf8 and offered.smtputf8

    chosen = envelope.recipients
    if len(job.recipients) != len(chosen):
        chosen = [chosen[index] for index in job.recipients]
    rcpts = []
    for position, recipient in enumerate(chosen):
        mailbox = recipient.forward_path
        if not mailbox.isascii():
            smtputf8 = smtputf8 or offered.smtputf8
            if not smtputf8:
                mailbox = ascii_mailbox(mailbox)
                if not mailbox:
                    delivery.refused[position] = NO_UTF8_ADDRESS
                    continue
        rcpts.append(render_rcpt(offered, recipient, mailbox))
    if delivery.refused:
        delivery.positions = [p for p in range(len(chosen)) if p not in delivery.refused]
    if not reverse_path.isascii():
        smtputf8 = smtputf8 or offered.smtputf8
        if not smtputf8:
            reverse_path = ascii_mailbox(reverse_path)
            if not reverse_path:
                _refuse(delivery, NO_UTF8_ADDRESS)
                return
    if not rcpts:
        return

    kind = env.BODY_8BITMIME if facts.has_8bit else env.BODY_7BIT
    encode = facts.dot_lines > 0
    repair = delivery.repair = facts.bare_lf > 0 or facts.bare_cr > 0 or facts.has_nul
    if facts.has_8bit or envelope.body == env.BODY_BINARYMIME:
        if envelope.smtputf8 and not offered.smtputf8 and not _headers_are_ascii(body):
            _refuse(delivery, NO_UTF8_HEADER)
            return
        binary = _is_binary(envelope)
        if binary and offered.binarymime:
            kind = env.BODY_BINARYMIME
        elif binary or not offered.eightbit:
            whole = b"".join(body.slices())
            converted = to_8bit(whole) if offered.eightbit else to_7bit(whole)
            if converted is None:
                _refuse(delivery, NO_CONVERSION)
                return
            content = [converted]
            size = len(converted)
            kind = env.BODY_7BIT if converted.isascii() else env.BODY_8BITMIME
            encode = True
    if offered.max_octets and size > offered.max_octets:  # RFC 1870 §6.1: it would be refused anyway
        _refuse(delivery, (PERMANENT, 0, "5.3.4", f"{size} octets, but the next hop takes {offered.max_octets}"))
        return

    bdat = offered.chunking
    if content is None and size <= STREAM_OCTETS:
        content = body.slices()
    if content is not None and not bdat:
        if encode or repair:
            content = stuff(content, repair=repair)
        else:
            content = [*content, b".\r\n" if facts.ends_with_crlf else b"\r\n.\r\n"]
    mail = render_mail(
        offered, reverse_path, size, body=kind, smtputf8=smtputf8, ret=envelope.ret, envid=envelope.envid
    )
    line = render_xclient(offered, envelope) if xclient and offered.xclient else b""
    delivery.dsn = offered.dsn and not lmtp
    delivery.transaction = Transaction(delivery, mail, rcpts, content, size, bdat=bdat, xclient=line)


def ascii_mailbox(mailbox: str) -> str:
    """The mailbox with its domain as A-labels (RFC 5890); "" when the local part is not ASCII (RFC 6531 §3.2)."""
    local_part, _, domain = mailbox.rpartition("@")
    if not local_part.isascii():
        return ""
    try:
        return f"{local_part}@{idna.encode(domain, uts46=True).decode()}"
    except idna.IDNAError:
        return ""


def _refuse(delivery: Delivery, verdict: Verdict) -> None:
    for position in range(len(delivery.job.recipients)):
        delivery.refused.setdefault(position, verdict)
    delivery.positions = []


def _is_binary(envelope: env.Envelope) -> bool:
    """True for content that DATA cannot carry (RFC 3030 §3); BINARYMIME only announces that it may be such."""
    facts = envelope.facts
    return envelope.body == env.BODY_BINARYMIME and (
        facts.has_nul or facts.bare_cr > 0 or facts.bare_lf > 0 or facts.longest_line > MAX_LINE_OCTETS
    )


def _headers_are_ascii(body: Body) -> bool:
    """RFC 6531 §3.7.1: of the message and of each of its parts."""
    return not any(part.header_eight_bit for part in scan_mime(b"".join(body.slices())))
