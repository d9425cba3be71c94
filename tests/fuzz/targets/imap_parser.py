"""IMAP's reader and cursor: what they find is what the slow model finds, however the octets are cut."""

from __future__ import annotations

from gateway import _native
from gateway._native import ImapReader, ImapSyntaxError
from tests.fuzz.octets import cut, options
from tests.native import model_imap as model

MAX_OCTETS = 1500
RUNS = 4000
WORDS = (
    b"a FETCH 1:* (FLAGS)\r\n",
    b"UID ",
    b"{3}\r\nabc",
    b"{3+}\r\nabc",
    b"~{2+}\r\n\0a",
    b"{4+}\r\nabcd",
    b"{2000+}\r\n",
    b"APPEND x ",
    b'"a \\" b"',
    b"(\\Seen $x)",
    b"1:*,7,9:4",
    b"&AOQ-",
    b"INBOX",
    b'"17-Jul-1996 02:44:25 -0700"',
    b"29-Feb-2024",
    b"NIL",
    b"\r\n",
)
CURSOR_STEPS = 8


def seeds() -> list[bytes]:
    steps = {name: at for at, name in enumerate(model.OPERATIONS)}

    def options_of(*names: str, how: int = 1, limit: int = 200, utf8: int = 0) -> bytes:
        return bytes([how, limit, utf8, *(steps[name] for name in names)]).ljust(3 + CURSOR_STEPS, b"\0")

    return [
        options_of("space", "sequence_set", "space") + b"a FETCH 1:*,5 (FLAGS BODY[HEADER.FIELDS (x)])\r\nb NOOP\r\n",
        options_of("space", "astring", "space", "astring") + b'a LOGIN {3}\r\nabc {2+}\r\nxy\r\nb LOGIN "a\\"" b\r\n',
        options_of("space", "mailbox", "space", "flag_list", "space", "date_time", "space", "literal")
        + b'a APPEND &AOQ- (\\Seen) "17-Jul-1996 02:44:25 -0700" ~{5+}\r\n12\0\r\n\r\n',
        options_of("space", "mailbox", utf8=1) + b"a SELECT {2}\r\n\xc3\xa4\r\n",
        options_of("space", "date", "space", "number", how=7) + b"a SEARCH 29-Feb-2024 4294967296\r\n",
        options_of(limit=30) + b"a NOOP " + b"x" * 40 + b"{3+}\r\na\r\n{4+}\r\n1234\r\nb NOOP\r\n",
    ]


def check(data: bytes) -> None:
    (how, limit, utf8, *steps), octets = options(data, 3 + CURSOR_STEPS)
    text_octets_max = 20 + limit
    expected = list(model.read(octets, text_octets_max, model.decide))
    found = model.read_natively(cut(octets, how), text_octets_max)
    assert model.comparable(found) == model.comparable(expected)
    # the first command again, read by the grammar's rules
    reader = ImapReader(1 << 20)
    reader.utf8 = bool(utf8 & 1)
    reader.feed(octets)
    while (kind := reader.read()) == _native.LITERAL:
        reader.accept_inline()
    first = next(model.read(octets, 1 << 20, lambda *_: model.INLINE), None)
    assert (kind == _native.COMMAND) == (first is not None)
    if first is None:
        return
    ours, theirs = reader.command, first[1]
    theirs.utf8 = reader.utf8
    for step in steps:
        name = model.OPERATIONS[step % len(model.OPERATIONS)]
        result = model.call(ours, name)
        assert result == model.call(theirs, name), name
        if result is ImapSyntaxError:
            return
