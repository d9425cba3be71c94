"""LIST, LSUB and STATUS: what they ask for, and which names a pattern means.

Owns      ListRequest, parse_list(), parse_lsub(), parse_status(), parse_status_items(); Pattern, pattern_of()
Limits    patterns, items and octets by the command's own bounds; a pattern costs at most the square of a name's length
Errors    ImapSyntaxError
Standards RFC 9051 §6.3.9, §6.3.11; RFC 3501 §6.3.9 (LSUB); RFC 5258, RFC 5819, RFC 6154, RFC 8440, RFC 9590
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from gateway._native import ImapCommand, ImapSyntaxError
from gateway.protocol.imap.metadata import parse_entries

KEPT_CHARACTERS = 200  # of patterns that are kept

STATUS_ITEMS = frozenset(
    (
        b"MESSAGES",
        b"UIDNEXT",
        b"UIDVALIDITY",
        b"UNSEEN",
        b"RECENT",  # RFC 3501
        b"DELETED",
        b"SIZE",  # RFC 8438
        b"HIGHESTMODSEQ",  # RFC 7162 §3.1.7
        b"MAILBOXID",  # RFC 8474 §4.3
        b"APPENDLIMIT",  # RFC 7889
        b"DELETED-STORAGE",  # RFC 9208 §4.1.4
    )
)


class ListRequest(NamedTuple):
    """What a LIST asks for."""

    patterns: tuple[
        str, ...
    ] = ()  # with the reference in front; empty: only the delimiter is asked for
    extended: bool = False  # the syntax of RFC 5258 was used
    # selection options: only names that …
    subscribed: bool = False
    special_use: bool = False
    recursive: bool = False  # or that have such names below them (RECURSIVEMATCH)
    # return options
    return_subscribed: bool = False
    status: tuple[bytes, ...] = ()
    rights: bool = False
    metadata: tuple[str, ...] = ()


def parse_list(command: ImapCommand) -> ListRequest:
    """The arguments of LIST."""
    command.space()
    selection: list[bytes] = []
    extended = command.peek() == _PARENTHESIS
    if extended:
        selection = _options(command)
        command.space()
    for option in selection:
        if option not in _SELECTION:
            raise ImapSyntaxError("Unknown selection option")
    if b"RECURSIVEMATCH" in selection and not {b"SUBSCRIBED", b"SPECIAL-USE"} & set(selection):
        raise ImapSyntaxError("RECURSIVEMATCH needs another option")  # RFC 5258 §3.1
    reference = command.list_mailbox()
    command.space()
    patterns: list[str] = []
    if command.accept(b"("):
        extended = True
        patterns.append(command.list_mailbox())
        while not command.accept(b")"):
            command.space()
            patterns.append(command.list_mailbox())
    else:
        pattern = command.list_mailbox()
        if pattern or extended:
            patterns = [pattern]
    request = ListRequest(
        tuple(reference + pattern for pattern in patterns),
        extended,
        b"SUBSCRIBED" in selection,
        b"SPECIAL-USE" in selection,
        b"RECURSIVEMATCH" in selection,
        b"SUBSCRIBED" in selection,
    )
    if not command.at_end():
        command.space()
        request = _return_options(command, request._replace(extended=True))
    command.end()
    return request


def parse_lsub(command: ImapCommand) -> str:
    """The pattern of LSUB; empty when only the delimiter is asked for."""
    command.space()
    reference = command.list_mailbox()
    command.space()
    pattern = command.list_mailbox()
    command.end()
    return reference + pattern if pattern else ""


def parse_status(command: ImapCommand) -> tuple[str, tuple[bytes, ...]]:
    """The mailbox, and what is asked about it."""
    command.space()
    name = command.mailbox()
    command.space()
    items = parse_status_items(command)
    command.end()
    return name, items


def parse_status_items(command: ImapCommand) -> tuple[bytes, ...]:
    """A parenthesised list, each once."""
    command.expect(b"(")
    items: dict[bytes, None] = {}
    while True:
        item = command.word()
        if item not in STATUS_ITEMS:
            raise ImapSyntaxError("Unknown status item")
        items[item] = None
        if command.accept(b")"):
            return tuple(items)
        command.space()


_PARENTHESIS = ord("(")
_SELECTION = (b"SUBSCRIBED", b"REMOTE", b"RECURSIVEMATCH", b"SPECIAL-USE")


def _options(command: ImapCommand) -> list[bytes]:
    command.expect(b"(")
    options: list[bytes] = []
    if command.accept(b")"):
        return options
    while True:
        options.append(command.word())
        if command.accept(b")"):
            return options
        command.space()


def _return_options(command: ImapCommand, request: ListRequest) -> ListRequest:
    command.expect(b"RETURN")
    command.space()
    command.expect(b"(")
    if command.accept(b")"):
        return request
    while True:
        option = command.word()
        if option == b"SUBSCRIBED":
            request = request._replace(return_subscribed=True)
        elif option == b"STATUS":
            command.space()
            request = request._replace(status=parse_status_items(command))
        elif option == b"MYRIGHTS":
            request = request._replace(rights=True)
        elif option == b"METADATA":
            command.space()
            request = request._replace(metadata=parse_entries(command))
        elif option not in (b"CHILDREN", b"SPECIAL-USE"):  # those are always told
            raise ImapSyntaxError("Unknown return option")
        if command.accept(b")"):
            return request
        command.space()


class Pattern:
    """Names that any of some patterns of LIST matches: "*" is anything, "%" anything but the delimiter."""

    def __init__(self, patterns: Iterable[str], delimiter: str = "/") -> None:
        self._delimiter = delimiter
        self._texts = [_normal(text, delimiter) for text in patterns]
        self._all = "*" in self._texts
        expressions = [_expression(text, delimiter) for text in self._texts]
        self._matches = re.compile(
            "|".join(expressions) if expressions else r"(?!)", re.DOTALL
        ).fullmatch
        self._inbox = any(
            re.fullmatch(expression, "INBOX", re.DOTALL | re.IGNORECASE)
            for expression in expressions
        )

    @property
    def is_any(self) -> bool:
        """All names match."""
        return self._all

    def matches(self, name: str) -> bool:
        """INBOX in any case (RFC 9051 §5.1)."""
        if self._all:
            return True
        return self._matches(name) is not None or (self._inbox and name == "INBOX")

    @property
    def prefix(self) -> str:
        """All names that match, and those below them, begin so."""
        fixed = [_fixed(text) for text in self._texts] or [""]
        low, high = min(fixed), max(fixed)
        at = 0
        while at < len(low) and low[at] == high[at]:
            at += 1
        return "" if self._inbox and not "INBOX".startswith(low[:at]) else low[:at]

    def may_lie_below(self, name: str) -> bool:
        """False when neither the name nor anything below it can match: then nobody need look there."""
        for text in self._texts:
            fixed = _fixed(text)
            if len(fixed) == len(text):
                if text == name or text.startswith(name + self._delimiter):
                    return True
            elif (name + self._delimiter).startswith(fixed) or fixed.startswith(
                name + self._delimiter
            ):
                return True
        return False


def pattern_of(texts: Iterable[str]) -> Pattern:
    """The pattern; short ones are kept, as clients ask for the same again and again."""
    patterns = tuple(texts)
    return _kept(patterns) if sum(map(len, patterns)) <= KEPT_CHARACTERS else Pattern(patterns)


@lru_cache(256)
def _kept(patterns: tuple[str, ...]) -> Pattern:
    return Pattern(patterns)


def _fixed(text: str) -> str:
    """What stands in front of the first wildcard."""
    return re.split(r"[*%]", text, maxsplit=1)[0]


def _normal(text: str, delimiter: str) -> str:
    """As names are kept: NFC, INBOX in capitals; wildcards in a row that mean the same become one."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if text[:5].upper() == "INBOX" and text[5:6] in ("", delimiter):
        text = "INBOX" + text[5:]
    return re.sub(r"%+", "%", re.sub(r"[*%]*\*[*%]*", "*", text))


def _expression(text: str, delimiter: str) -> str:
    """A regular expression that never tries a choice again that cannot help.

    What stands between two "*" is looked for as far to the left as it is found: later ones have no more room behind
    them.  Within it the same is true of what stands between two "%", as both stay in one level of the hierarchy.  Only
    the last part has to end where the name does, and is tried at each place.
    """
    level = f"[^{re.escape(delimiter)}]*"
    parts = [part.split("%") for part in text.split("*")]
    found = []
    for index, pieces in enumerate(parts):
        literals = [re.escape(piece) for piece in pieces]
        last = index == len(parts) - 1
        made = literals[0]
        for number, literal in enumerate(literals[1:], 2):
            if last and number == len(literals):
                made += level + literal  # up to the end of the name
            else:
                made += f"(?>{level}?{literal})"
        if index:
            made = f".*{made}" if last else f"(?>.*?{made})"
        found.append(made)
    return "".join(found)
