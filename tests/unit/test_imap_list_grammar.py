"""Patterns of LIST against a slow model; the arguments of LIST, STATUS and METADATA."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway._native import COMMAND, ImapCommand, ImapReader, ImapSyntaxError
from gateway.protocol.imap.list import (
    ListRequest,
    Pattern,
    parse_list,
    parse_lsub,
    parse_status,
)
from gateway.protocol.imap.metadata import (
    EVER,
    GetMetadata,
    below,
    parse_getmetadata,
    parse_setmetadata,
)


def model(pattern: str, name: str) -> bool:
    """RFC 9051 §6.3.9, word by word: which prefixes of the name does each prefix of the pattern match?"""
    reached = {0}
    for sign in pattern:
        if sign in "*%":
            grown = set(reached)
            for start in reached:
                for end in range(start, len(name)):
                    if sign == "%" and name[end] == "/":
                        break
                    grown.add(end + 1)
            reached = grown
        else:
            reached = {at + 1 for at in reached if at < len(name) and name[at] == sign}
    return len(name) in reached


@settings(max_examples=800, deadline=None)
@given(st.text("aab/%*", max_size=12), st.text("aab/", max_size=14))
def test_patterns_match_what_the_model_matches(pattern: str, name: str) -> None:
    assert Pattern([pattern]).matches(name) == model(pattern, name)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab/%*", max_size=6), max_size=3), st.text("ab/", max_size=8))
def test_any_of_several_patterns(patterns: list[str], name: str) -> None:
    assert Pattern(patterns).matches(name) == any(model(one, name) for one in patterns)


@settings(max_examples=500, deadline=None)
@given(
    st.text("ab/%*", max_size=6), st.text("ab/", min_size=1, max_size=4), st.text("ab/", max_size=4)
)
def test_what_may_lie_below(pattern: str, name: str, more: str) -> None:
    if not Pattern([pattern]).may_lie_below(name):
        assert not model(pattern, name)
        assert not model(pattern, f"{name}/{more}")


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("ab/%*", max_size=5), min_size=1, max_size=3), st.text("ab/", max_size=6))
def test_what_matches_begins_with_the_prefix(patterns: list[str], name: str) -> None:
    pattern = Pattern(patterns)
    if pattern.matches(name):
        assert name.startswith(pattern.prefix)


def test_the_prefix_is_as_long_as_can_be() -> None:
    assert Pattern(["ab/c*", "ab/cd"]).prefix == "ab/c"
    assert Pattern(["inbox"]).prefix == "INBOX"
    assert Pattern(["in%"]).prefix == ""
    assert Pattern(["IN%"]).prefix == "IN"
    assert Pattern([]).prefix == ""


@pytest.mark.parametrize(
    "pattern",
    ["*a" * 40 + "b", "%a" * 40 + "b", "*a%" * 40 + "b", "%*" * 100 + "b", "*%a%" * 40 + "b"],
)
def test_no_pattern_takes_for_ever(pattern: str) -> None:
    for name in ("a" * 1000, "a/" * 500, "ab" * 500 + "a"):
        assert not Pattern([pattern]).matches(name)


def test_inbox_is_inbox_in_any_case() -> None:
    assert Pattern(["inbox"]).matches("INBOX")
    assert Pattern(["In%"]).matches("INBOX")
    assert Pattern(["inbox/%"]).matches("INBOX/x")
    assert not Pattern(["inbox"]).matches("INBOX/x")
    assert not Pattern(["in%"]).matches("INBOX/x")
    assert Pattern(["e\N{COMBINING ACUTE ACCENT}*"]).matches("\N{LATIN SMALL LETTER E WITH ACUTE}x")


def command(text: bytes) -> ImapCommand:
    reader = ImapReader(10_000)
    reader.feed(b"a X " + text + b"\r\n")
    assert reader.read() == COMMAND
    return reader.command


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b'"" ""', ListRequest()),
        (b'"" *', ListRequest(("*",))),
        (b"a/ %", ListRequest(("a/%",))),
        (b'"" (a "b c")', ListRequest(("a", "b c"), True)),
        (b'() "" ""', ListRequest(("",), True)),
        (
            b'(subscribed recursivematch remote) "" "%"',
            ListRequest(("%",), True, subscribed=True, recursive=True, return_subscribed=True),
        ),
        (b'(SPECIAL-USE) "" *', ListRequest(("*",), True, special_use=True)),
        (b'"" * RETURN ()', ListRequest(("*",), True)),
        (
            b'"" * return (children special-use subscribed status (messages unseen messages) myrights)',
            ListRequest(
                ("*",), True, return_subscribed=True, status=(b"MESSAGES", b"UNSEEN"), rights=True
            ),
        ),
        (
            b'"" * RETURN (METADATA (/shared/Comment "/private/x y"))',
            ListRequest(("*",), True, metadata=("/shared/comment", "/private/x y")),
        ),
        (b'"" &AOk-*', ListRequest(("\N{LATIN SMALL LETTER E WITH ACUTE}*",))),
    ],
)
def test_list(text: bytes, wanted: ListRequest) -> None:
    assert parse_list(command(text)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'""',
        b'"" ()',
        b'"" * x',
        b'(RECURSIVEMATCH) "" *',
        b'(RECURSIVEMATCH REMOTE) "" *',
        b'(NOSUCH) "" *',
        b'"" * RETURN (NOSUCH)',
        b'"" * RETURN (STATUS)',
        b'"" * RETURN (STATUS (NOSUCH))',
        b'"" * RETURN (METADATA)',
        b'"" * RETURN (SUBSCRIBED',
        b'"" * RETURN (SUBSCRIBED) x',
        b'"" * RETURN SUBSCRIBED',
    ],
)
def test_list_refuses(text: bytes) -> None:
    with pytest.raises(ImapSyntaxError):
        parse_list(command(text))


def test_lsub_and_status() -> None:
    assert parse_lsub(command(b'"" "%"')) == "%"
    assert parse_lsub(command(b"a/ b")) == "a/b"
    assert parse_lsub(command(b'a ""')) == ""
    assert parse_status(command(b"inbox (messages DELETED-STORAGE)")) == (
        "INBOX",
        (b"MESSAGES", b"DELETED-STORAGE"),
    )
    for bad in (b"inbox", b"inbox ()", b"inbox (X)", b"inbox (MESSAGES) x", b"(MESSAGES)"):
        with pytest.raises(ImapSyntaxError):
            parse_status(command(bad))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b'"" /shared/comment', GetMetadata("", ("/shared/comment",), None, 0)),
        (b'INBOX "/Shared/A B"', GetMetadata("INBOX", ("/shared/a b",), None, 0)),
        (
            b"(DEPTH infinity) INBOX (/private /shared/x)",
            GetMetadata("INBOX", ("/private", "/shared/x"), None, EVER),
        ),
        (
            b"INBOX (maxsize 1024 depth 1) (/shared/x)",
            GetMetadata("INBOX", ("/shared/x",), 1024, 1),
        ),
        (b"INBOX (MAXSIZE 0) /shared/x", GetMetadata("INBOX", ("/shared/x",), 0, 0)),
        (b'INBOX ("/shared/x")', GetMetadata("INBOX", ("/shared/x",), None, 0)),
    ],
)
def test_getmetadata(text: bytes, wanted: GetMetadata) -> None:
    assert parse_getmetadata(command(text)) == wanted


@pytest.mark.parametrize("text", [b"", b"INBOX", b"INBOX (", b"INBOX (DEPTH", b"(MAXSIZE 7", b"INBOX (DEPTH 1) ("])
def test_getmetadata_that_ends_too_early(text: bytes) -> None:
    with pytest.raises(ImapSyntaxError):
        parse_getmetadata(command(text))


def test_setmetadata() -> None:
    assert parse_setmetadata(command(b'INBOX (/private/X "a" /shared/y NIL)')) == (
        "INBOX",
        {"/private/x": b"a", "/shared/y": None},
    )
    for bad in (
        b"INBOX",
        b"INBOX ()",
        b"INBOX (/private/x)",
        b"INBOX (/private/x a /private/X b)",
        b"INBOX (/other/x a)",
        b"INBOX (/private/x* a)",
        b"INBOX (/private/%x a)",
        b"INBOX (/private//x a)",
        b"INBOX (/private/x/ a)",
        b"INBOX (/shared/vendor a)",
        b"INBOX (/shared/vendor/token a)",
        b'INBOX ("/private/\xc3\xa9" a)',
        b'INBOX (/private/x "a") x',
    ):
        with pytest.raises(ImapSyntaxError):
            parse_setmetadata(command(bad))


def test_depth() -> None:
    assert below("/a/b", "/a/b", 0)
    assert not below("/a/b/c", "/a/b", 0)
    assert below("/a/b/c", "/a/b", 1)
    assert not below("/a/b/c/d", "/a/b", 1)
    assert below("/a/b/c/d", "/a/b", EVER)
    assert not below("/a/bc", "/a/b", EVER)
