"""Address fields as ENVELOPE shows them.

Owns      Address, address_list(), format_addresses()
Limits    ADDRESSES_MAX of one field
Errors    none: what is no address is read as well as it goes, what is left over is dropped
Standards RFC 5322 §3.4 with the obsolete forms of §4.4, RFC 9051 §7.5.2
"""

from __future__ import annotations

import re

import msgspec

from gateway._native import format_mailboxes, imap_nstring

ADDRESSES_MAX = 10_000

_TOKEN = re.compile(
    rb'[ \t\r\n]+|"((?:[^"\\]|\\.)*)"?|(\[[^\]]*\]?)|([^ \t\r\n()<>@,;:"\[\]]+)|(.)', re.DOTALL
)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)


class Address(msgspec.Struct, frozen=True):
    """RFC 9051 §7.5.2.  host None: a group begins (mailbox is its name) or ends (mailbox None)."""

    name: bytes | None = None
    route: bytes | None = None
    mailbox: bytes | None = None
    host: bytes | None = None


_NOBODY = Address()


def address_list(value: bytes) -> list[Address]:
    """The mailboxes and groups of an unfolded field value."""
    return _Reader(value).read(ADDRESSES_MAX)


def format_addresses(value: bytes | None) -> tuple[bytes, Address]:
    """(the addresses as ENVELOPE has them, the first of them); (NIL, Address()) for none."""
    if value is None:
        return b"NIL", _NOBODY
    common = format_mailboxes(value)
    if common is not None:
        formatted, (name, mailbox, host) = common
        return b"(%b)" % formatted, Address(name, None, mailbox, host)
    addresses = address_list(value)
    if not addresses:
        return b"NIL", _NOBODY
    formatted = b"".join(
        b"(%b %b %b %b)"
        % (
            imap_nstring(one.name),
            imap_nstring(one.route),
            imap_nstring(one.mailbox),
            imap_nstring(one.host),
        )
        for one in addresses
    )
    return b"(%b)" % formatted, addresses[0]


class _Reader:
    """One pass over the tokens, with what the current address has so far."""

    def __init__(self, value: bytes) -> None:
        self._value = value
        self._found: list[Address] = []
        self._in_group = False
        self._clear()

    def _clear(self) -> None:
        self._words: list[bytes] = []  # phrase, or local part
        self._domain: list[bytes] | None = None  # once "@" was seen
        self._phrase: list[bytes] | None = None  # once "<" was seen
        self._route: bytes | None = None
        self._hops: list[bytes] = []
        self._comment = b""
        self._closed = False  # ">" was seen

    def read(self, most: int) -> list[Address]:
        value = self._value
        at, end = 0, len(value)
        while at < end and len(self._found) < most:
            if value[at] == 0x28:  # "("
                at = self._skip_comment(at)
                continue
            match = _TOKEN.match(value, at)
            if match is None:
                break
            at = match.end()
            quoted, literal, atom, special = match.groups()
            if special is not None:
                self._special(special)
            elif quoted is not None:
                self._word(_QUOTED_PAIR.sub(rb"\1", quoted))
            elif literal is not None or atom is not None:
                self._word(literal or atom)
        self._finish()
        if self._in_group:
            self._found.append(Address())
        return self._found

    def _skip_comment(self, at: int) -> int:
        depth, start, value = 0, at + 1, self._value
        while at < len(value):
            octet = value[at]
            if octet == 0x5C:
                at += 1
            elif octet == 0x28:
                depth += 1
            elif octet == 0x29:
                depth -= 1
                if depth == 0:
                    break
            at += 1
        if not self._comment:
            self._comment = _QUOTED_PAIR.sub(rb"\1", value[start:at]).strip()
        return at + 1

    def _word(self, word: bytes) -> None:
        if self._closed:
            return
        if self._domain is not None:
            self._domain.append(word)
        else:
            self._words.append(word)

    def _special(self, char: bytes) -> None:
        if char == b"<" and self._phrase is None:
            self._phrase, self._words, self._domain = self._words, [], None
        elif char == b">":
            self._closed = True
        elif char == b"@" and not self._closed:
            if self._domain is not None and self._phrase is None:
                self._domain.append(b"@")
            else:
                self._domain = []
        elif char == b":" and self._phrase is not None and not self._closed:
            self._end_of_route()
            self._route = b",".join(self._hops)
            self._words = []
        elif char == b":" and self._domain is None and not self._in_group:
            self._found.append(Address(mailbox=b" ".join(self._words)))
            self._in_group = True
            self._clear()
        elif char == b";":
            self._finish()
            if self._in_group:
                self._found.append(Address())
                self._in_group = False
        elif char == b"," and self._phrase is not None and not self._closed:
            self._end_of_route()
        elif char == b",":
            self._finish()

    def _end_of_route(self) -> None:
        """RFC 5322 §4.4 obs-route: @one,@two:local@domain."""
        if self._domain:
            self._hops.append(b"@" + b"".join(self._domain))
        self._domain = None

    def _finish(self) -> None:
        name = b" ".join(self._phrase) if self._phrase is not None else self._comment
        if self._words or self._domain is not None or self._phrase:
            if self._domain is None:  # no "@": a host there must be, or it would be a group
                local, host = (b" " if self._phrase is None else b"").join(self._words), b""
            else:
                local, host = b"".join(self._words), b"".join(self._domain)
            self._found.append(Address(name or self._comment or None, self._route, local, host))
        self._clear()
