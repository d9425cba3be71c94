"""The SMTP command grammar: commands, mailboxes and xtext mean what the ABNF's regular expressions say."""

from __future__ import annotations

from collections.abc import Callable

from gateway import _native
from tests.fuzz.octets import options
from tests.native import model_smtp

MAX_OCTETS = 640
RUNS = 12_000
WORDS = (
    b"MAIL FROM:<",
    b"RCPT TO:<",
    b"@[IPv6:",
    b"postmaster",
    b" SIZE=",
    b" ORCPT=",
    b"BDAT ",
    b" LAST",
    b"EHLO ",
    b"STARTTLS",
    b"XCLIENT ",
    b"\r\n",
)


def seeds() -> list[bytes]:
    lines = [
        b"EHLO mx.example.org \r\n",
        b"MAIL FROM:<@a.b,@c:u@d> size=10 SMTPUTF8 RET=HDRS ENVID=a+2Bb\r\n",
        b'RCPT TO:<"a b\\"@c"@[IPv6:2001:db8::192.0.2.1]> NOTIFY=NEVER ORCPT=rfc822;x+40y\r\n',
        b"rcpt to:postmaster\r\nDATA\r\nBDAT 86 LAST\r\nRSET x\r\n",
        "MAIL FROM:<müller@gänse.example>\r\n".encode(),
        b"NOOP \x7f\r\nXCLIENT ADDR=1\n\0\r\n",
    ]
    return [bytes([flags, 255]) + line for line in lines for flags in (0, 3)]


def check(data: bytes) -> None:
    (flags, limit), data = options(data, 2)
    utf8, lenient = bool(flags & 1), bool(flags & 2)
    max_octets = 1024 if limit == 255 else 2 + limit
    at = 0
    while at < len(data):
        found = _native.parse_command(data, at, max_octets, utf8, lenient)
        assert found == model_smtp.parse_command(data, at, max_octets, utf8, lenient), found
        if found is None:
            break
        assert at < found[0] <= len(data)
        at = found[0]
    line = data.partition(b"\r\n")[0]
    agree(_native.parse_mailbox, model_smtp.parse_mailbox, line)
    text = line.decode("utf-8", "surrogateescape")
    agree(_native.parse_mailbox, model_smtp.parse_mailbox, text)
    agree(_native.xtext_decode, model_smtp.xtext_decode, text)
    agree(_native.xtext_encode, model_smtp.xtext_encode, text)


def agree(real: Callable[[str], object], model: Callable[[str], object], text: str | bytes) -> None:
    """The same value, or both a ValueError."""
    assert outcome(real, text) == outcome(model, text), real.__name__


def outcome(function: Callable[..., object], text: str | bytes) -> object:
    try:
        return function(text)
    except ValueError:
        return ValueError
