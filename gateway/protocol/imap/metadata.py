"""GETMETADATA and SETMETADATA: their arguments.

Owns      GetMetadata, parse_getmetadata(), parse_setmetadata(), parse_entries(), below()
Limits    the command's own
Errors    ImapSyntaxError
Standards RFC 5464 §3.2 (names), §4.2, §4.3, §5
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gateway._native import ImapCommand, ImapSyntaxError

EVER = -1  # DEPTH infinity

# RFC 5464 §3.2: "/" and a component, several times; no "*", "%" or "//", none at the end.  ASCII but no control.
_ENTRY = re.compile(r"/(?:private|shared)(?:/[!-$&-)+-.0-~ ]+)+")
_VENDOR = re.compile(r"/(?:private|shared)/vendor(?:/[^/]+)?")


class GetMetadata(NamedTuple):
    """What is asked for."""

    mailbox: str  # "": the server
    entries: tuple[str, ...]
    maxsize: int | None  # octets of a value; None: any
    depth: int  # levels below the entries; EVER: all


def parse_getmetadata(command: ImapCommand) -> GetMetadata:
    """Options may stand before the mailbox, as the grammar has them, or behind it, as the examples do."""
    command.space()
    options: tuple[int | None, int] | None = None
    if command.accept(b"("):
        options = _options(command)
        command.space()
    mailbox = _mailbox(command)
    command.space()
    entries: tuple[str, ...]
    if command.accept(b"("):
        # An entry begins with "/", or as a string; at the end of the command peek() is -1.
        if options is None and chr(max(0, command.peek())).isalpha():
            options = _options(command)
            command.space()
            entries = parse_entries(command)
        else:
            entries = _entry_list(command)
    else:
        entries = (parse_entry(command),)
    command.end()
    maxsize, depth = options or (None, 0)
    return GetMetadata(mailbox, entries, maxsize, depth)


def parse_setmetadata(command: ImapCommand) -> tuple[str, dict[str, bytes | None]]:
    """The mailbox, "" for the server, and the values; None removes an entry."""
    command.space()
    mailbox = _mailbox(command)
    command.space()
    command.expect(b"(")
    values: dict[str, bytes | None] = {}
    while True:
        name = parse_entry(command)
        command.space()
        if name in values:
            raise ImapSyntaxError("An annotation is there twice")
        if _VENDOR.fullmatch(name):
            raise ImapSyntaxError("A name is missing behind /vendor/<token>")  # §3.2
        values[name] = command.nstring()
        if command.accept(b")"):
            break
        command.space()
    command.end()
    return mailbox, values


def parse_entries(command: ImapCommand) -> tuple[str, ...]:
    """One name, or several in parentheses; each once."""
    return _entry_list(command) if command.accept(b"(") else (parse_entry(command),)


def _entry_list(command: ImapCommand) -> tuple[str, ...]:
    names = {parse_entry(command): None}
    while not command.accept(b")"):
        command.space()
        names[parse_entry(command)] = None
    return tuple(names)


def parse_entry(command: ImapCommand) -> str:
    """A name in lower case: they are not case-sensitive (§3.2)."""
    name = command.astring().decode("utf-8", "replace").lower()
    if not name.startswith("/") or "*" in name or "%" in name or "//" in name or name.endswith("/"):
        raise ImapSyntaxError("That is not the name of an annotation")
    if not _ENTRY.fullmatch(name) and name not in ("/private", "/shared"):
        raise ImapSyntaxError("Annotations are called /private/… or /shared/…, in ASCII")
    return name


def below(name: str, entry: str, depth: int) -> bool:
    """Is name the entry, or not more than so many levels below it?"""
    if name == entry:
        return True
    if not name.startswith(entry + "/"):
        return False
    return depth == EVER or name.count("/", len(entry)) <= depth


def _mailbox(command: ImapCommand) -> str:
    """A name; "" is the server."""
    return "" if command.accept(b'""') else command.mailbox()


def _options(command: ImapCommand) -> tuple[int | None, int]:
    """What follows an opening parenthesis."""
    maxsize: int | None = None
    depth = 0
    while True:
        word = command.word()
        command.space()
        if word == b"MAXSIZE":
            maxsize = command.number()
        elif word == b"DEPTH":
            value = command.word()
            if value not in (b"0", b"1", b"INFINITY"):
                raise ImapSyntaxError("DEPTH is 0, 1 or infinity")
            depth = EVER if value == b"INFINITY" else int(value)
        else:
            raise ImapSyntaxError("The options are MAXSIZE and DEPTH")
        if command.accept(b")"):
            return maxsize, depth
        command.space()
