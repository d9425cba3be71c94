"""Next hops that fail at random: every acknowledged recipient has the mail in the end, unaltered, and once.

Standards RFC 5321 §6.1, §4.5.4.1; RFC 1047 (the one window in which a message may arrive twice); RFC 2033 §4.2
"""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
from e2e.rig import CLOSE, DROP, EVERYTHING, PLAIN, Gateway, Lab, NextHop, Sender, Session, route

QUICK = "[queue]\nretry_s = [1.0]\nconnect_retry_s = [0.1]\n"
STAGES = ("connect", "EHLO", "LHLO", "MAIL", "RCPT", "DATA", "content", "QUIT")
ILLS = (
    "450 4.2.0 later",
    "421 4.3.2 bye",
    DROP,
    CLOSE,
    "354 what",
    "451-4.3.0 two\r\n451 4.3.0 lines",
)


class Troubled:
    """Answers at random, until it is told to be well."""

    def __init__(self, seed: int, share: float) -> None:
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._share = share

    def __call__(self, session: Session, argument: str) -> str | None:
        with self._lock:
            return self._chance.choice(ILLS) if self._chance.random() < self._share else None

    def recover(self) -> None:
        self._share = 0.0


def content_of(chance: random.Random, number: int) -> bytes:
    """Message `number`: any size up to two streams' worth, with dots where they hurt."""
    size = chance.choice((0, 1, 50, 2000, 70_000, 262_000, 262_144, 263_000, 600_000))
    pieces = [b"X-Number: %d\r\n\r\n" % number]
    left = size
    while left > 0:
        line = (
            chance.choice((b"", b".", b"..", b".x" * 20, b"y" * 998, b"z" * chance.randrange(200)))
            + b"\r\n"
        )
        pieces.append(line)
        left -= len(line)
    return b"".join(pieces)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_altered_or_doubled(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    troubled = Troubled(seed, 0.08)
    replies = dict.fromkeys(STAGES, troubled)
    hops = [
        lab.hop(EVERYTHING, replies),
        lab.hop(PLAIN, replies),
        lab.hop((), replies),
        lab.hop(EVERYTHING, replies, lmtp=True),
        lab.hop(PLAIN, replies, lmtp=True),
    ]
    domains = [f"d{number}.test" for number in range(len(hops))]
    gateway = lab.gateway(
        *(route(h.url, d, max_connections=3) for h, d in zip(hops, domains, strict=True)),
        extra=QUICK,
    )
    sent: dict[int, tuple[bytes, list[str], bool]] = {}
    with Sender(gateway.port) as sender:
        for number in range(60):
            content = content_of(chance, number)
            rcpts = [
                f"u{index}@{domain}"
                for domain in chance.sample(domains, chance.randrange(1, 4))
                for index in range(chance.randrange(1, 4))
            ]
            bdat = chance.choice((0, len(content), 1000 + len(content) // 7))
            assert sender.submit(content, rcpts, bdat=bdat).startswith("250")
            sent[number] = (content, rcpts, bool(bdat))
    for _ in range(20):
        gateway.retry()
        if not gateway.left():
            break
        gateway.wait_quiet()
    troubled.recover()
    for hop in hops:
        hop.replies.clear()
    for _ in range(20):  # who was busy with the last of the trouble needs more than one
        gateway.retry()
        gateway.wait_quiet()
        if not gateway.left():
            break
    check(gateway, hops, domains, sent)


def check(
    gateway: Gateway,
    hops: list[NextHop],
    domains: list[str],
    sent: dict[int, tuple[bytes, list[str], bool]],
) -> None:
    assert not gateway.events("bounced")
    got: Counter[tuple[int, str]] = Counter()
    heard: Counter[tuple[int, str]] = Counter()  # of our 250s, those that surely arrived
    for hop in hops:
        for mail in hop.received:
            number = int(mail.body.partition(b"\r\n")[0].partition(b": ")[2])
            assert mail.body == sent[number][0]
            got.update((number, to) for to in mail.to)
            if not mail.session.broken:
                heard.update((number, to) for to in mail.to)
    wanted = {(number, rcpt) for number, (_, rcpts, _) in sent.items() for rcpt in rcpts}
    assert set(got) == wanted
    assert max(heard.values()) == 1
    ids: dict[str, int] = {}
    for line in gateway.events("accepted"):
        ids[line["queue_id"]] = len(ids)
    finals = Counter(
        (ids[line["queue_id"]], line["forward_path"])
        for event in ("relayed", "delivered")
        for line in gateway.events(event)
    )
    assert set(finals) == wanted
    assert set(finals.values()) == {1}
