"""Content on its way out: conversions keep what each part decodes to; any mail can be shown as JSON."""

from __future__ import annotations

import orjson

from gateway._native import MimeScanner, Part
from gateway.mail.downgrade import LINE_MAX_OCTETS, to_7bit, to_8bit
from gateway.mail.structure import decoded_body, parsed
from tests.fuzz.octets import options
from tests.fuzz.targets import mime

CODE = ("gateway.mail",)
MAX_OCTETS = 2500
RUNS = 1_500
WORDS = (
    *mime.WORDS,
    b"charset=",
    b"name*0*=utf-8''%c3",
    b"=?utf-8?b?",
    b"=?x?q?=E4?=",
    b"x" * 1000,
)


def seeds() -> list[bytes]:
    mails = [seed[2:] for seed in mime.seeds()]
    mails += [
        b"Subject: =?utf-8?q?a=C3?= =?utf-8?q?=BC?=\r\n\r\nf\xc3\xbcr\r\n" + b"x" * 1200 + b"\r\n",
        b"Content-Type: image/x\nContent-Transfer-Encoding: binary\n\n\0\r\xff\n\xfe",
        b"Content-Type: multipart/signed; boundary=a\r\n\r\n--a\r\n\r\n\xe4\r\n--a--\r\n\xe4",
        b"Content-Type: text/plain; charset=utf-7; name*1=b; name*0*=utf-8'x'%E4\r\n\r\n+AGE-",
    ]
    return [bytes([flag]) + mail for mail in mails for flag in (0, 1)]


def check(data: bytes) -> None:
    (flags,), content = options(data, 1)
    orjson.dumps(parsed(content, attachments=bool(flags & 2), max_text_octets=64))
    eight_bit = bool(flags & 1)
    converted = to_8bit(content) if eight_bit else to_7bit(content)
    if converted is None:
        return
    before, after = parts_of(content), parts_of(converted)
    check_form(converted, after, eight_bit)
    if converted is content:
        return
    assert [(p.media_type, p.parent) for p in before] == [(p.media_type, p.parent) for p in after]
    inner = {part.parent for part in before}
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if index not in inner:
            assert decoded_body(content, old) == decoded_body(converted, new), index
    again = to_8bit(converted) if eight_bit else to_7bit(converted)
    assert again is converted, "once is not enough"


def parts_of(content: bytes) -> list[Part]:
    scanner = MimeScanner()
    scanner.feed(content)
    return scanner.close()


def check_form(content: bytes, parts: list[Part], eight_bit: bool) -> None:
    """RFC 6152 §3, RFC 3030 §3: what a next hop without the extension takes.  Lines of headers stay as they are."""
    assert b"\0" not in content
    assert eight_bit or content.isascii()
    bodies = bytearray(content)
    for part in parts:
        bodies[part.header_start : part.header_end] = b"\n" * (part.header_end - part.header_start)
    lines = bytes(bodies).replace(b"\r\n", b"\n").split(b"\n")
    assert max(map(len, lines)) <= LINE_MAX_OCTETS
