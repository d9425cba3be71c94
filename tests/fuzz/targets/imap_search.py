"""SEARCH, SORT, THREAD and ESEARCH: a request within its bounds, or an error that can be shown; nothing else."""

from __future__ import annotations

from gateway._native import LITERAL, ImapReader, ImapSyntaxError
from gateway.protocol.imap import search
from tests.fuzz.octets import options

MAX_OCTETS = 1000
RUNS = 3000
CODE = ("gateway.protocol.imap.search",)
WORDS = (
    b"RETURN (MIN MAX ALL COUNT SAVE UPDATE CONTEXT RELEVANCY) ",
    b"RETURN (PARTIAL -1:-100) ",
    b"CHARSET utf-8 ",
    b"(REVERSE DATE DISPLAYFROM) UTF-8 ",
    b"REFERENCES UTF-8 ",
    b"IN (mailboxes (a b) subtree c selected) ",
    b"OR ",
    b"NOT ",
    b"FUZZY ",
    b"(SEEN ",
    b") ",
    b'HEADER a "b" ',
    b"TEXT {2+}\r\nab ",
    b"KEYWORD $x ",
    b"SENTON 1-Jan-2020 ",
    b"SAVEDBEFORE 1-Jan-2020 ",
    b"OLDER 1 ",
    b'MODSEQ "a" all 7 ',
    b"UID 1:*,$ ",
    b"THREADID T1 ",
)
READERS = (search.search_request, search.sort_request, search.thread_request, search.esearch_request)


def seeds() -> list[bytes]:
    return [
        b"\0RETURN (MIN) CHARSET UTF-8 OR SEEN (NOT 1:3 TEXT {2+}\r\nab)",
        b"\1RETURN (ALL) (REVERSE DATE SUBJECT) UTF-8 FUZZY SUBJECT a",
        b"\2REFERENCES UTF-8 SENTSINCE 1-Jan-2020 LARGER 7 UID 3:*",
        b'\3IN (selected mailboxes ("a" b) subtree-one c) RETURN (COUNT) HEADER a "b"',
        b"\0MODSEQ 5 KEYWORD x UNKEYWORD y SAVEDON 1-Jan-2020 YOUNGER 3 EMAILID M1 $",
    ]


def keys_in(key: search.Key, depth: int = 0) -> int:
    """How many keys; they may not be deeper than is allowed."""
    assert depth <= 2 * search.DEPTH_MAX
    if isinstance(key, search.And | search.Or):
        return 1 + sum(keys_in(one, depth + 1) for one in key.keys)
    if isinstance(key, search.Not):
        return 1 + keys_in(key.key, depth + 1)
    return 1


def check(data: bytes) -> None:
    (which,), octets = options(data, 1)
    reader = ImapReader(1 << 16)
    reader.feed(b"a SEARCH " + octets + b"\r\n")
    while (kind := reader.read()) == LITERAL:
        reader.accept_inline()
    if not kind:
        return
    try:
        request = READERS[which % len(READERS)](reader.command)
    except (ImapSyntaxError, search.BadCharset) as error:
        assert str(error)
        return
    if isinstance(request, tuple) and isinstance(request[0], search.Sources):
        request = request[1]
    assert keys_in(request.key) <= 3 * search.KEYS_MAX
    if request.returns is not None and request.returns.partial is not None:
        first, last = request.returns.partial
        assert abs(first) <= abs(last) and (first > 0) == (last > 0)
