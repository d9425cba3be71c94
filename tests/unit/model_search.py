"""SEARCH the slow way: each message is parsed by Python's email package, each key asked of it (RFC 9051 §6.4.4)."""

from __future__ import annotations

import unicodedata
from calendar import timegm
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parsedate
from typing import NamedTuple

from gateway.protocol.imap.search import (
    Age,
    And,
    Between,
    Flag,
    Key,
    Not,
    Numbers,
    ObjectId,
    Or,
    Recent,
    Sent,
    Text,
)


class One(NamedTuple):
    """A message as the model knows it."""

    number: int
    uid: int
    content: bytes
    flags: frozenset[str]  # lower case
    modseq: int
    internal_date: int
    save_date: int
    recent: bool


def fold(text: str) -> str:
    return unicodedata.normalize("NFKD", text).casefold()


def field_values(message: Message, name: str) -> list[str]:
    values = []
    for field, value in message.raw_items():
        if name in ("", field.lower()):
            text = " ".join(str(value).split())
            values.append(fold(str(make_header(decode_header(text)))))
    return values


def header_text(message: Message) -> str:
    return "\n".join(
        fold(f"{name}: {make_header(decode_header(' '.join(str(value).split())))}")
        for name, value in message.raw_items()
    )


def body_text(message: Message) -> str:
    pieces = []
    for part in message.walk():
        if part is not message:
            pieces.append(header_text(part))
        if part.get_content_maintype() == "text":
            octets = part.get_payload(decode=True)
            assert isinstance(octets, bytes)
            pieces.append(fold(octets.decode(part.get_content_charset("utf-8"), "replace")))
    return "\n".join(pieces)


def has_text(content: bytes, where: str, text: str) -> bool:
    message = message_from_bytes(content, policy=policy.compat32)
    wanted = fold(text)
    if where == "body":
        return wanted in body_text(message)
    if where == "text":
        return wanted in header_text(message) or wanted in body_text(message)
    return any(wanted in value for value in field_values(message, where.rstrip(":")))


def sent_day(content: bytes) -> int | None:
    fields = parsedate(message_from_bytes(content)["Date"] or "")
    return None if fields is None else timegm((*fields[:3], 0, 0, 0))


def in_set(pairs: bytes, number: int, highest: int) -> bool:
    words = [int.from_bytes(pairs[at : at + 4], "little") or highest for at in range(0, len(pairs), 4)]
    return any(min(a, b) <= number <= max(a, b) for a, b in zip(words[::2], words[1::2], strict=True))


def matches(key: Key, one: One, mailbox: list[One], now: int) -> bool:
    if isinstance(key, And):
        return all(matches(part, one, mailbox, now) for part in key.keys)
    if isinstance(key, Or):
        return any(matches(part, one, mailbox, now) for part in key.keys)
    if isinstance(key, Not):
        return not matches(key.key, one, mailbox, now)
    if isinstance(key, Flag):
        return key.name.lower() in one.flags
    if isinstance(key, Recent):
        return one.recent
    if isinstance(key, Between):
        value = len(one.content) if key.field == "size" else getattr(one, key.field)
        return bool(key.low <= value <= key.high)
    if isinstance(key, Age):
        age = now - one.internal_date
        return age >= key.seconds if key.older else age <= key.seconds
    if isinstance(key, Sent):
        day = sent_day(one.content)
        return day is not None and key.low <= day <= key.high
    if isinstance(key, Numbers):
        assert key.pairs is not None
        number, last = (one.uid, mailbox[-1].uid) if key.uid else (one.number, len(mailbox))
        return in_set(key.pairs, number, last)
    assert isinstance(key, Text) and not isinstance(key, ObjectId)
    return has_text(one.content, key.where, key.text)


