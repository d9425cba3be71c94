"""Reports about mail: whatever peers and senders say, the result is one well-formed multipart/report."""

from __future__ import annotations

from email import message_from_bytes

from gateway._native import DataDecoder, scan_mime
from gateway.mail.envelope import RET_FULL, Envelope, Recipient
from gateway.mail.report import DELAY, FAILURE, SUCCESS, ReportRecipient, build_report

CODE = ("gateway.mail",)
MAX_OCTETS = 1500
RUNS = 1_200
WORDS = (
    b"\0",
    b"rfc822;",
    b"utf-8;",
    b"\r\n--=_report_R1",
    b"\r\n.\r\n",
    b"5.1.1 no",
    b"mx.x[192.0.2.1]:25",
    b"\xc2\x85",
)
ADDRESSES = ("192.0.2.9:1", "[2001:db8::1]:25", "unix:", "")  # ours: sockets, PROXY, XCLIENT
NOW = 1_800_000_000_000_000_000


def seeds() -> list[bytes]:
    """Texts with NUL between them, the content last."""
    first = [
        "s@d",
        "r@d",
        "rfc822;o@d",
        "5.1.1 no such user",
        "mx.x[192.0.2.1]:25",
        "<m@d>",
        "e+id",
        "client.x",
    ]
    second = ["s@ü", "ü@d", "utf-8;ü@d", "no\x85\u2028\nreally", "unix:", "m", "", "[x"]
    mails = [
        b"Subject: x\r\n\r\nbody\r\n--=_report_R1\r\n",
        b"Subject: \xc3\xbc\n\n\0\xff" + b"x" * 999,
    ]
    return [
        bytes([flags, code]) + "\0".join(texts).encode() + b"\0" + mail
        for texts in (first, second)
        for mail in mails
        for flags, code in ((0, 5), (1, 4), (2, 2), (7, 0))
    ]


def check(data: bytes) -> None:
    flags, kind_code = (*data[:2], 0, 0)[:2]
    *texts, content = data[2:].split(b"\0", 8)
    names = [text.decode("utf-8", "replace") for text in texts]
    names += [""] * (8 - len(names))
    reverse_path, forward_path, orcpt, said, peer, message_id, envid, client = names
    # What sessions let through (RFC 5321 §4.1.2): mailboxes have no control characters, nor is one empty.
    reverse_path = "".join(filter(str.isprintable, reverse_path)) or "s@d"
    envelope = Envelope(
        reverse_path,
        [Recipient(forward_path, 0, orcpt)],
        NOW,
        ret=RET_FULL if flags & 8 else 0,
        envid=envid,
        client_address=ADDRESSES[flags % len(ADDRESSES)],
        client_name=client,
        message_id=message_id,
    )
    code = (0, 250, 252, 421, 450, 550, 551, 999)[kind_code % 8]
    recipient = ReportRecipient(
        forward_path,
        orcpt,
        action=("failed", "delayed", "delivered", "relayed")[flags % 4],
        status=("5.1.1", "4.4.2", "2.0.0", "5.9.9")[kind_code // 8 % 4],
        code=code,
        text=said,
        peer=peer,
        last_attempt_at=NOW if flags & 16 else 0,
        will_retry_until=NOW if flags & 32 else 0,
    )
    report = build_report(
        kind=(FAILURE, DELAY, SUCCESS)[flags % 3],
        hostname="mx.test",
        envelope=envelope,
        queue_id="0123456789AB",
        recipients=[recipient, recipient],
        header=content.partition(b"\r\n\r\n")[0],
        content=content if flags & 4 else None,
        now=NOW,
        report_id="R1",
    )
    check_report(report, utf8=not reverse_path.isascii())


def check_report(report: bytes, *, utf8: bool) -> None:
    assert utf8 or report.isascii()
    decoder = DataDecoder(normalize=False)
    decoder.feed_chunk(report, 0, len(report))
    decoder.finish_chunks()
    facts = decoder.facts()
    assert facts[3] <= 998, "a line is too long"  # RFC 5322 §2.1.1
    assert not facts[7] and not facts[8] and not facts[9], "NUL, bare CR or LF"
    parts = scan_mime(report)
    top = [part.media_type for part in parts if part.parent == 0]
    assert parts[0].media_type == b"multipart/report"
    assert len(top) == 3 and top[0] == b"text/plain" and top[1].endswith(b"delivery-status"), top
    message = message_from_bytes(report)
    assert not message.defects and len(message.get_payload()) == 3
