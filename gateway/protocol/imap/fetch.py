"""What FETCH asks for: its items, sections, partials and modifiers.

Owns      Section, Item, FetchRequest; fetch_request(), fetch_items(), section_of()
Flow      command cursor → fetch_request() → server/imap/fetch.py
Errors    ImapSyntaxError
Limits    the command's length and items are the reader's; a section is PATH_MAX deep
Standards RFC 9051 §6.4.5, §9; RFC 3501 (RFC822); RFC 3516 (BINARY); RFC 7162 (CHANGEDSINCE, VANISHED, MODSEQ);
          RFC 8474 (EMAILID, THREADID); RFC 8514 (SAVEDATE); RFC 8970 (PREVIEW); RFC 9394 (PARTIAL)
"""

from __future__ import annotations

import re

import msgspec

from gateway._native import ImapCommand, ImapSyntaxError, imap_string

PATH_MAX = 100  # parts within parts; the scanner finds fewer

# Items whose value needs no section, in the order they are answered in.
PLAIN = (
    b"UID", b"FLAGS", b"MODSEQ", b"INTERNALDATE", b"SAVEDATE", b"RFC822.SIZE", b"EMAILID", b"THREADID",
    b"ENVELOPE", b"BODYSTRUCTURE", b"BODY", b"PREVIEW",
)  # fmt: skip
_FAST = (b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE")
_MACROS = {
    b"FAST": _FAST,
    b"ALL": (*_FAST, b"ENVELOPE"),
    b"FULL": (*_FAST, b"ENVELOPE", b"BODY"),
}

_PATH = re.compile(rb"([1-9][0-9]{0,9}(?:\.[1-9][0-9]{0,9})*)(?:\.(.+))?\Z", re.DOTALL)
_TEXTS = (b"HEADER", b"TEXT")
_FIELD_TEXTS = (b"HEADER.FIELDS", b"HEADER.FIELDS.NOT")
_ATOM = re.compile(rb"[!#$&'+,\-./0-9:;<=>?@A-Z^_`|}~]+\Z")


class Section(msgspec.Struct, frozen=True):
    """A part of a message: where it is, and what of it is meant (RFC 9051 §6.4.5.1)."""

    path: tuple[int, ...] = ()  # of a part; () is the message
    text: bytes = b""  # HEADER, HEADER.FIELDS, HEADER.FIELDS.NOT, TEXT, MIME; b"": all of it
    fields: tuple[bytes, ...] = ()  # names in capitals

    @property
    def label(self) -> bytes:
        """As it stands between brackets."""
        words = b".".join([*(b"%d" % number for number in self.path), *filter(None, (self.text,))])
        if self.fields:
            words += b" (%b)" % b" ".join(
                name if _ATOM.match(name) else imap_string(name) for name in self.fields
            )
        return words


MESSAGE = Section()


class Item(msgspec.Struct, frozen=True):
    """One thing to be told of each message.

    name: one of PLAIN; RFC822, RFC822.HEADER, RFC822.TEXT; or BODY[], BINARY[], BINARY.SIZE[], which have a section.
    """

    name: bytes
    section: Section | None = None
    peek: bool = True  # False: the message becomes \\Seen
    start: int = -1  # of the partial, in octets; -1: there is none
    count: int = 0

    @property
    def label(self) -> bytes:
        """What the response calls it."""
        if self.section is None or self.name.startswith(b"RFC822"):
            return self.name
        origin = b"<%d>" % self.start if self.start >= 0 else b""
        return b"%b%b]%b" % (self.name[:-1], self.section.label, origin)


class FetchRequest(msgspec.Struct, frozen=True):
    """The arguments of FETCH behind its set."""

    items: tuple[Item, ...]
    changed_since: int | None = None
    vanished: bool = False
    partial: tuple[int, int] | None = (
        None  # the first and last position, both from 1 on; negative: from the end
    )

    @property
    def is_plain(self) -> bool:
        """It is about the messages of its set, all of them and no others."""
        return self.changed_since is None and self.partial is None and not self.vanished

    def has(self, name: bytes) -> bool:
        return any(item.name == name for item in self.items)


def fetch_request(command: ImapCommand, *, uid: bool) -> FetchRequest:
    """Everything behind the set, up to the end of the command; uid: it is UID FETCH."""
    items: list[Item] = []
    if command.peek() == ord("("):
        items += fetch_items(command)
    else:
        word = command.word()
        macro = _MACROS.get(word)
        if macro is not None:
            items += [Item(name) for name in macro]
        else:
            items.append(_item(command, word))
    changed_since: int | None = None
    vanished = False
    partial: tuple[int, int] | None = None
    if not command.at_end():
        command.space()
        command.expect(b"(")
        while True:
            word = command.word()
            if word == b"CHANGEDSINCE" and changed_since is None:
                command.space()
                changed_since = command.number64()
            elif word == b"VANISHED" and not vanished:
                vanished = True
            elif word == b"PARTIAL" and partial is None:
                command.space()
                partial = partial_range(command)
            else:
                raise ImapSyntaxError("Unknown or repeated modifier of FETCH")
            if command.accept(b")"):
                break
            command.space()
    command.end()
    if vanished and (not uid or changed_since is None):  # RFC 7162 §3.2.6
        raise ImapSyntaxError("VANISHED is for UID FETCH with CHANGEDSINCE")
    if partial is not None and not uid:  # RFC 9394 §3.3
        raise ImapSyntaxError("PARTIAL is for UID FETCH")
    if changed_since is not None:  # RFC 7162 §3.1.4.1
        items.append(Item(b"MODSEQ"))
    return FetchRequest(tuple(dict.fromkeys(items)), changed_since, vanished, partial)


def fetch_items(command: ImapCommand) -> tuple[Item, ...]:
    """A list in parentheses, each once."""
    command.expect(b"(")
    items = [_item(command)]
    while not command.accept(b")"):
        command.space()
        items.append(_item(command))
    return tuple(dict.fromkeys(items))


def partial_range(command: ImapCommand) -> tuple[int, int]:
    """partial-range of RFC 9394 §3.5: "1:100", or "-1:-100" from the end."""
    ends = []
    for separator in (b"", b":"):
        if separator:
            command.expect(separator)
        negative = command.accept(b"-")
        ends.append(-command.nz_number() if negative else command.nz_number())
    if ends[0] < 0 < ends[1] or ends[1] < 0 < ends[0]:
        raise ImapSyntaxError("A range counts from the beginning or from the end, not both")
    first, last = sorted(ends, key=abs)
    return first, last


def _item(command: ImapCommand, word: bytes = b"") -> Item:
    word = word or command.word()
    if word in (b"BODY", b"BODY.PEEK") and command.accept(b"["):
        section = _section(command)
        return Item(b"BODY[]", section, word == b"BODY.PEEK", *_partial(command))
    if word == b"PREVIEW":
        if command.accept(b" ("):  # RFC 8970 §3.1
            if command.word() != b"LAZY":
                raise ImapSyntaxError("Unknown modifier of PREVIEW")
            command.expect(b")")
        return Item(b"PREVIEW")
    if word in PLAIN:
        return Item(word)
    if word == b"RFC822":
        return Item(word, MESSAGE, False)
    if word == b"RFC822.HEADER":
        return Item(word, Section(text=b"HEADER"))
    if word == b"RFC822.TEXT":
        return Item(word, Section(text=b"TEXT"), False)
    if word in (b"BINARY", b"BINARY.PEEK", b"BINARY.SIZE"):
        command.expect(b"[")
        section = _section(command)
        if section.text:
            raise ImapSyntaxError("BINARY takes the number of a part")
        if word == b"BINARY.SIZE":
            return Item(b"BINARY.SIZE[]", section)
        return Item(b"BINARY[]", section, word == b"BINARY.PEEK", *_partial(command))
    raise ImapSyntaxError("Unknown item to fetch")


def _section(command: ImapCommand) -> Section:
    """What is between the brackets, and the right one."""
    if command.accept(b"]"):
        return MESSAGE
    path, text = _path(command.word())
    fields: list[bytes] = []
    if text in _FIELD_TEXTS:
        command.space()
        command.expect(b"(")
        fields.append(command.astring().upper())
        while not command.accept(b")"):
            command.space()
            fields.append(command.astring().upper())
    command.expect(b"]")
    return _checked(path, text, tuple(fields))


def _path(word: bytes) -> tuple[tuple[int, ...], bytes]:
    found = _PATH.match(word)
    if found is None:
        return (), word
    path = tuple(map(int, found[1].split(b".")))
    if len(path) > PATH_MAX:
        raise ImapSyntaxError("The part lies too deep")
    return path, found[2] or b""


def _checked(path: tuple[int, ...], text: bytes, fields: tuple[bytes, ...]) -> Section:
    if text in _FIELD_TEXTS:
        if not all(fields):
            raise ImapSyntaxError("A field name is empty")
    elif text not in ((*_TEXTS, b"MIME", b"") if path else _TEXTS):
        raise ImapSyntaxError("Unknown section")
    return Section(path, text, fields)


_SECTION_FIELDS = re.compile(rb"(.+) \(([^()]+)\)\Z")


def section_of(octets: bytes) -> Section:
    """A section as a URL names it (RFC 5092 §5), decoded: "1.2", "2.HEADER.FIELDS (SUBJECT)"."""
    if not octets:
        return MESSAGE
    found = _SECTION_FIELDS.match(octets.upper())
    word, names = (found[1], found[2].split()) if found else (octets.upper(), [])
    path, text = _path(word)
    if bool(names) != (text in _FIELD_TEXTS):
        raise ImapSyntaxError("Unknown section")
    return _checked(path, text, tuple(names))


def _partial(command: ImapCommand) -> tuple[int, int]:
    if not command.accept(b"<"):
        return -1, 0
    start = command.number64()
    command.expect(b".")
    count = command.number64()
    if count == 0:
        raise ImapSyntaxError("A partial has at least one octet")
    command.expect(b">")
    return start, count
