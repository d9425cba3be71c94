"""Command and reply parsing.  Floor: the call itself with memchr for the line end (skip_line).

    Standards RFC 5321 §4.1, §4.2
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import pytest

from gateway._native import ReplyParser, parse_command, skip_line

COMMANDS = {
    "mail": b"MAIL FROM:<someone@example.com>\r\n",
    "mail-size": b"MAIL FROM:<someone@example.com> SIZE=10240 BODY=8BITMIME\r\n",
    "rcpt": b"RCPT TO:<user@example.org>\r\n",
    "rcpt-quoted": b'RCPT TO:<"john doe"@[IPv6:2001:db8::1]>\r\n',
    "ehlo": b"EHLO client.example.com\r\n",
    "data": b"DATA\r\n",
}
REPLIES = (
    b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
    b"250 2.0.0 Ok: queued as 4F\r\n"
)


def floor_ns(data: bytes) -> float:
    return min(timeit.repeat(lambda: skip_line(data, 0), number=20000, repeat=5)) / 20000 * 1e9


@pytest.mark.parametrize("name", COMMANDS)
def test_parse_command(benchmark: Any, name: str) -> None:
    line = COMMANDS[name]
    benchmark(parse_command, line, 0, 512)
    benchmark.extra_info["floor_ns"] = floor_ns(line)


def test_pipelined_batch(benchmark: Any) -> None:
    batch = COMMANDS["mail-size"] + COMMANDS["rcpt"] * 50 + COMMANDS["data"]

    def run() -> int:
        pos = 0
        while pos < len(batch):
            result = parse_command(batch, pos, 512)
            assert result is not None
            pos = result[0]
        return pos

    assert benchmark(run) == len(batch)
    benchmark.extra_info["commands"] = 52


def test_replies(benchmark: Any) -> None:
    feed: Callable[[bytes], list[tuple[int, str, str]]] = ReplyParser().feed
    assert len(benchmark(feed, REPLIES)) == 4
    benchmark.extra_info["floor_ns"] = floor_ns(REPLIES)
