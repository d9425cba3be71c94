"""What APPEND and REPLACE bring: messages, or what they are to be put together from.

Owns      AppendMessage, Piece; append_messages(), append_message(), append_target()
Flow      command cursor → these → server/imap/append.py
Errors    ImapSyntaxError
Standards RFC 9051 §6.3.12; RFC 3502 (MULTIAPPEND); RFC 4469 (CATENATE); RFC 6855 §4 (UTF8); RFC 3516 §4.4 (literal8)
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway._native import ImapCommand, ImapSyntaxError


class Piece(msgspec.Struct, frozen=True):
    """Part of a message: a literal's octets (or the target it went to), or the URL of others (RFC 4469 §3)."""

    octets: Any = b""
    url: bytes | None = None


class AppendMessage(msgspec.Struct, frozen=True):
    """One message of APPEND."""

    flags: list[str]
    internal_date: int | None  # seconds since 1970
    pieces: list[Piece]
    utf8: bool = False  # it came as UTF8 literal

    @property
    def is_whole(self) -> bool:
        """One literal is all of it."""
        return len(self.pieces) == 1 and self.pieces[0].url is None


def append_target(command: ImapCommand) -> str:
    """The mailbox of a command that is not whole yet; the cursor is at its beginning again."""
    command.rewind()
    command.space()
    if command.name != b"APPEND":  # REPLACE, UID REPLACE: the message comes first
        command.sequence_set()
        command.space()
    name = command.mailbox()
    command.rewind()
    return name


def append_messages(command: ImapCommand) -> list[AppendMessage]:
    """All messages behind the mailbox's name, up to the end of the command."""
    messages = [append_message(command)]
    while not command.at_end():
        messages.append(append_message(command))
    return messages


def append_message(command: ImapCommand) -> AppendMessage:
    """SP, its options, SP, its content."""
    command.space()
    flags: list[str] = []
    date: int | None = None
    if command.peek() == ord("("):
        flags = command.flag_list()
        command.space()
    if command.peek() == ord('"'):
        date = command.date_time()
        command.space()
    if command.accept(b"CATENATE "):
        return AppendMessage(flags, date, *_pieces(command))
    if command.accept(b"UTF8 ("):
        return AppendMessage(flags, date, [_utf8_piece(command)], True)
    return AppendMessage(flags, date, [Piece(command.literal())])


def _utf8_piece(command: ImapCommand) -> Piece:
    """RFC 6855 §4: the literal8 in parentheses, which is open."""
    if command.peek() != ord("~"):
        raise ImapSyntaxError("UTF8 takes a literal8")
    octets = command.literal()
    command.expect(b")")
    return Piece(octets)


def _pieces(command: ImapCommand) -> tuple[list[Piece], bool]:
    """They, and whether one of them came as UTF8 literal."""
    command.expect(b"(")
    pieces = []
    utf8 = False
    while True:
        if command.accept(b"URL "):
            pieces.append(Piece(url=command.astring()))
        elif command.accept(b"TEXT "):
            pieces.append(Piece(command.literal()))
        elif command.accept(b"UTF8 ("):
            pieces.append(_utf8_piece(command))
            utf8 = True
        else:
            raise ImapSyntaxError("CATENATE takes TEXT and URL")
        if command.accept(b")"):
            return pieces, utf8
        command.space()
