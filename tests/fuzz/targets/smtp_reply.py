"""Replies of a server: ReplyParser gives what its model gives, cut anywhere; any EHLO reply can be understood."""

from __future__ import annotations

from gateway._native import ReplyParser
from gateway.protocol.esmtp_client import Capabilities, parse_capabilities
from tests.fuzz.octets import cut, options
from tests.native import model_smtp

CODE = ("gateway.protocol.esmtp_client",)
MAX_OCTETS = 3000  # beyond the longest line
RUNS = 3_000
WORDS = (
    b"250-",
    b"250 ",
    b"5.7.1 ",
    b"PIPELINING",
    b"CHUNKING",
    b"LIMITS RCPTMAX=",
    b"XCLIENT ADDR",
    b"\r\n",
)


def seeds() -> list[bytes]:
    replies = [
        b"220 mx.example ESMTP\r\n250-mx\r\n250-SIZE 10\r\n250-LIMITS RCPTMAX=9 MAILMAX=x\r\n250 DSN\r\n",
        b"250-2.1.0 a\r\n250 2.1.0 b\r\n550 5.7.1 no\xff\r\n354\r\n4",
        b"250 \0\x7f\t\n" + b"251-x\r\n" * 130,
        b"250 " + b"x" * 2043 + b"\r\n250 " + b"x" * 2044 + b"\r\n",
    ]
    return [bytes([how]) + reply for reply in replies for how in (0, 1, 99)]


def check(data: bytes) -> None:
    (how,), data = options(data, 1)
    if len(data) > 300:  # the model begins anew for each piece
        how = min(how, 1) * 255
    real, model = ReplyParser(), model_smtp.ReplyParser()
    for piece in cut(data, how):
        replies = feed(real, piece)
        assert replies == feed(model, piece)
        assert real.broken == model.broken
        for _, _, text in replies or ():
            assert isinstance(parse_capabilities(text), Capabilities)


def feed(
    parser: ReplyParser | model_smtp.ReplyParser, piece: bytes
) -> list[tuple[int, str, str]] | None:
    try:
        return parser.feed(piece)
    except ValueError:
        return None
