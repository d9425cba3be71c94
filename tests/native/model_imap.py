"""The obvious slow model of the native IMAP reader and cursor: whole dialogues, regular expressions from the ABNF.

    Standards RFC 9051 §4, §9; RFC 7888 §4; RFC 3516; RFC 3501 §5.1.3
"""

from __future__ import annotations

import base64
import calendar
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gateway import _native
from gateway._native import ImapReader, ImapSyntaxError

ATOM = rb"[^\x00-\x20\x7f-\xff(){%*\"\\\]]+"
ASTRING = rb"[^\x00-\x20\x7f-\xff(){%*\"\\]+"
LIST_CHARS = rb"[^\x00-\x20\x7f-\xff(){\"\\]+"
TAG = rb"[^\x00-\x20\x7f-\xff(){%*\"\\+]+"
WORD = rb"[^\x00-\x20\x7f-\xff()\[\]<>{\"\\]+"
QUOTED = rb'"((?:[^\x00\r\n"\\]|\\["\\])*)"'
ANNOUNCEMENT = re.compile(rb"(~?)\{([0-9]+)(\+?)\}\r?\n\Z")
LITERAL = re.compile(rb"(~?)\{([0-9]+)\+?\}\r?\n")
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DATE = rb"([0-9]{1,2})-([A-Za-z]{3})-([0-9]{4})"
TIME = rb'"([ 0-9][0-9])-([A-Za-z]{3})-([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-])([0-9]{2})([0-9]{2})"'
SEQUENCE_SET = rb"(?:[1-9][0-9]*|\*)(?::(?:[1-9][0-9]*|\*))?"
LITERAL_MAX = 2**63 - 1
ITEMS_MAX, DEPTH_MAX = 10_000, 32
TAIL_OCTETS = 32  # of a line that is skipped: an announcement of more digits than a number64 has is none


def head_of(octets: bytes) -> tuple[bytes, bytes, int]:
    """(tag, name, offset of the arguments)."""
    tag = re.match(rb"(%b) " % TAG, octets)
    if tag is None:
        found = re.match(TAG, octets)
        return b"", b"", found.end() if found else 0
    name = re.match(rb"(?:UID |(?!UID ))%b(?=[ \r\n]|\Z)" % ATOM, octets[tag.end() :], re.IGNORECASE)
    if name is None or len(name[0]) > 63:
        return tag[1], b"", len(tag[1])
    return tag[1], name[0].upper(), tag.end() + name.end()


class ModelCommand:
    """The cursor.  streams: what literals went elsewhere, by the offset behind their announcement."""

    def __init__(self, octets: bytes, streams: dict[int, bytes], utf8: bool = False) -> None:
        self.tag, self.name, self.at = head_of(octets)
        self.octets, self.streams, self.utf8 = octets, streams, utf8
        self.at = min(self.at, len(octets))
        self.items = self.depth = 0

    def _match(self, pattern: bytes, flags: int = 0) -> re.Match[bytes]:
        found = re.compile(pattern, flags | re.DOTALL).match(self.octets, self.at)
        if found is None:
            raise ImapSyntaxError(pattern)
        self.at = found.end()
        return found

    def space(self) -> None:
        self._match(b" ")
        self.items += 1
        if self.items > ITEMS_MAX:
            raise ImapSyntaxError("too many items")

    def accept(self, token: bytes) -> bool:
        if self.octets[self.at : self.at + len(token)].lower() != token.lower():
            return False
        self.at += len(token)
        self.depth += {b"(": 1, b")": -1}.get(token, 0)
        if token == b"(" and self.depth > DEPTH_MAX:
            raise ImapSyntaxError("too deep")
        return True

    def expect(self, token: bytes) -> None:
        if not self.accept(token):
            raise ImapSyntaxError(token)

    def peek(self) -> int:
        return self.octets[self.at] if self.at < len(self.octets) else -1

    def at_end(self) -> bool:
        return self.at == len(self.octets)

    def end(self) -> None:
        if not self.at_end():
            raise ImapSyntaxError("end")

    def atom(self) -> bytes:
        return self._match(ATOM)[0]

    def word(self) -> bytes:
        return self._match(WORD)[0].upper()

    def flag(self) -> str:
        return self._match(rb"\\?" + ATOM)[0].decode()

    def flag_list(self) -> list[str]:
        found = self._match(rb"\((?:\\?%b(?: \\?%b)*)?\)" % (ATOM, ATOM))
        return found[0][1:-1].decode().split()

    def literal(self) -> Any:
        before = self.at
        size = int(self._match(LITERAL.pattern)[2])
        binary = self.octets[before] == ord("~")
        if self.at in self.streams:
            return ("stream", self.streams[self.at])
        found = self.octets[self.at : self.at + size]
        if len(found) < size or (not binary and 0 in found):
            self.at = before
            raise ImapSyntaxError("literal")
        self.at += size
        return found

    def string(self) -> bytes:
        if self.peek() == ord('"'):
            before = self.at
            found = re.sub(rb"\\(.)", rb"\1", self._match(QUOTED)[1])
            try:
                found.decode()
            except UnicodeDecodeError:
                self.at = before
                raise ImapSyntaxError("UTF-8") from None
            return found
        octets = self.literal()
        if not isinstance(octets, bytes):
            raise ImapSyntaxError("too long here")
        return octets

    def _string_or(self, pattern: bytes) -> bytes:
        if re.compile(rb"~?\{|\"").match(self.octets, self.at):
            return self.string()
        return self._match(pattern)[0]

    def astring(self) -> bytes:
        return self._string_or(ASTRING)

    def nstring(self) -> bytes | None:
        return None if self.accept(b"NIL") else self.string()

    def mailbox(self) -> str:
        name = name_of(self.astring(), self.utf8)
        return "INBOX" if name.upper() == "INBOX" else name

    def list_mailbox(self) -> str:
        return name_of(self._string_or(LIST_CHARS), self.utf8)

    def _number(self, pattern: bytes, largest: int) -> int:
        before = self.at
        value = int(self._match(pattern)[0])
        if value > largest:
            self.at = before
            raise ImapSyntaxError("too large")
        return value

    def number(self) -> int:
        return self._number(b"[0-9]+", 2**32 - 1)

    def nz_number(self) -> int:
        return self._number(b"[1-9][0-9]*", 2**32 - 1)

    def number64(self) -> int:
        return self._number(b"[0-9]+", 2**63 - 1)

    def sequence_set(self) -> bytes | None:
        if self.accept(b"$"):
            return None
        before = self.at
        found = self._match(rb"%b(?:,%b)*(?![0-9:*,])" % (SEQUENCE_SET, SEQUENCE_SET))[0]
        out = []
        for part in found.split(b","):
            numbers = [0 if n == b"*" else int(n) for n in part.split(b":")]
            out += [numbers[0], numbers[-1]]
        if max(out) > 2**32 - 1:
            self.at = before
            raise ImapSyntaxError("too large")
        return struct.pack(f"<{len(out)}I", *out)

    def _days(self, day: bytes, month: bytes, year: bytes) -> int:
        if month.decode().lower() not in MONTHS:
            raise ImapSyntaxError("month")
        number = MONTHS.index(month.decode().lower()) + 1
        if not 1 <= int(day) <= calendar.monthrange(int(year) or 400, number)[1]:
            raise ImapSyntaxError("day")
        # calendar does not know all years; 400 of them have 146,097 days
        return calendar.timegm((int(year) % 400 + 2000, number, int(day), 0, 0, 0)) + (
            int(year) // 400 - 5
        ) * (146_097 * 86_400)

    def date(self) -> int:
        found = self._match(rb'"%b"|%b' % (DATE, DATE))
        groups = [g for g in found.groups() if g is not None]
        return self._days(*groups)

    def date_time(self) -> int:
        day, month, year, hour, minute, second, sign, *zone = self._match(TIME).groups()
        h, m, s, zh, zm = map(int, (hour, minute, second, *zone))
        if h > 23 or m > 59 or s > 60 or zh > 23 or zm > 59:
            raise ImapSyntaxError("time")
        offset = (zh * 3600 + zm * 60) * (-1 if sign == b"-" else 1)
        return self._days(day, month, year) + h * 3600 + m * 60 + s - offset


def name_of(octets: bytes, utf8: bool) -> str:
    try:
        if utf8:
            name = octets.decode()
        else:
            name = decode_utf7(octets)
    except ValueError as error:
        raise ImapSyntaxError(error) from None
    if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", name):
        raise ImapSyntaxError("controls")
    return name


def encode_utf7(name: str) -> bytes:
    out = b""
    for part in re.findall(r"[ -~]+|[^ -~]+", name):
        if " " <= part[0] <= "~":
            out += part.replace("&", "&-").encode()
        else:
            shift = base64.b64encode(part.encode("utf-16-be", "surrogatepass"))
            out += b"&" + shift.rstrip(b"=").replace(b"/", b",") + b"-"
    return out


def decode_utf7(octets: bytes) -> str:
    """Whatever can be decoded at all, if encoding gives the same octets."""
    name = ""
    for part in re.findall(rb"[^&]+|&[^-]*-?", octets):
        if not part.startswith(b"&"):
            name += part.decode("ascii")
        elif part == b"&-":
            name += "&"
        else:
            shift = part[1:].rstrip(b"-").replace(b",", b"/")
            name += base64.b64decode(shift + b"=" * (-len(shift) % 4)).decode("utf-16-be")
    if encode_utf7(name) != octets:
        raise ValueError("not as it is encoded")
    return name


INLINE, TARGET, REFUSE = "inline", "target", "refuse"
Decide = Callable[[bytes, int, bool], str]


def read(octets: bytes, text_octets_max: int, decide: Decide) -> Iterator[tuple[Any, ...]]:
    """What a reader finds in a whole dialogue, as far as it is whole.

    ("command", ModelCommand), ("too long", tag), ("refused", tag).  decide(name, size, synchronizing) of each literal.
    """
    at = 0
    while at < len(octets):
        held, text, streams = b"", 0, dict[int, bytes]()
        while True:  # a line of the command
            end = octets.find(b"\n", at) + 1 or len(octets)
            line = octets[at:end]
            if text + len(line) > text_octets_max:
                tag = head_of(held or line[:text_octets_max])[0]
                yield "too long", tag
                at = skip(octets, at)
                if at >= 0:
                    yield "refused", tag
                break
            if not line.endswith(b"\n"):
                return
            at, text = end, text + len(line)
            announced = ANNOUNCEMENT.search(line)
            if announced is None:
                stripped = line[:-1].removesuffix(b"\r").rstrip(b" ")
                yield "command", ModelCommand(held + stripped, streams)
                break
            held += line
            tag, name, _ = head_of(held)
            size = min(int(announced[2]), LITERAL_MAX)
            decision = decide(name, size, not announced[3])
            if decision == REFUSE:
                if announced[3]:
                    at = skip(octets, at + size) if at + size <= len(octets) else -1
                if at >= 0:
                    yield "refused", tag
                break
            if at + size > len(octets):
                return
            if decision == TARGET:
                streams[len(held)] = octets[at : at + size]
            else:
                held += octets[at : at + size]
            at += size
        if at < 0:
            return


def skip(octets: bytes, at: int) -> int:
    """Where the command ends whose line goes on at `at`; -1 when that is not there yet."""
    while at <= len(octets):
        end = octets.find(b"\n", at) + 1
        if not end:
            return -1
        announced = ANNOUNCEMENT.search(octets[at:end])
        if announced is None or not announced[3] or end - at - announced.end(1) > TAIL_OCTETS:
            return end
        at = end + min(int(announced[2]), LITERAL_MAX)
    return -1


# -- the native reader, beside it --------------------------------------------------------------------------------------

OPERATIONS = [
    "space", "at_end", "peek", "end", "atom", "astring", "string", "nstring", "word", "number", "nz_number", "number64",
    "flag", "flag_list", "mailbox", "list_mailbox", "sequence_set", "date", "date_time", "literal",
]  # fmt: skip


class Target:
    def __init__(self) -> None:
        self.octets = b""

    def write(self, octets: bytes | memoryview) -> None:
        assert len(octets) > 0
        self.octets += octets


def decide(name: bytes, size: int, synchronizing: bool) -> str:
    """By what both sides know, so that a test sees every way a literal can go."""
    if size > 1000 or not name or size % 5 == 4:
        return REFUSE
    return TARGET if name == b"APPEND" else INLINE


def read_natively(pieces: Iterable[bytes], text_octets_max: int) -> list[tuple[Any, ...]]:
    """What the native reader finds, in the form of read()."""
    reader = ImapReader(text_octets_max)
    found: list[tuple[Any, ...]] = []
    for piece in pieces:
        reader.feed(piece)
        while (kind := reader.read()) != _native.NEED_MORE:
            command = reader.command
            if kind == _native.COMMAND:
                found.append(("command", command))
            elif kind == _native.COMMAND_TOO_LONG:
                found.append(("too long", command.tag))
            elif kind == _native.REFUSED:
                found.append(("refused", command.tag))
            else:
                how = decide(command.name, reader.literal_size, reader.literal_synchronizing)
                if how == REFUSE:
                    if reader.refuse():
                        found.append(("refused", command.tag))
                elif how == TARGET:
                    reader.accept_target(Target())
                else:
                    reader.accept_inline()
        assert reader.unread_octets == 0
    return found


def dump(command: Any) -> list[object]:
    """Everything in the command, by the cursor's own means."""
    out: list[object] = [command.tag, command.name]
    while (octet := command.peek()) >= 0:
        try:
            if octet in b"{~":
                literal = command.literal()
                literal = ("stream", literal.octets) if isinstance(literal, Target) else literal
                out.append(("literal", literal))
            elif octet == ord('"'):
                out.append(("string", command.string()))
            else:
                command.expect(bytes([octet]))
                out.append(octet)
        except ImapSyntaxError:
            break  # the command is wrong from here on, and so it is answered
    return out


def comparable(found: list[tuple[Any, ...]]) -> list[tuple[str, object]]:
    return [(kind, dump(what) if kind == "command" else what) for kind, what in found]


def call(command: Any, operation: str) -> object:
    try:
        return getattr(command, operation)()
    except ImapSyntaxError:
        return ImapSyntaxError
