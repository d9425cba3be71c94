"""The native IMAP reader and cursor against their model, cut at every octet.

    Standards RFC 9051 §4, §9; RFC 7888 §4; RFC 3516; RFC 3501 §5.1.3
"""

from __future__ import annotations

import model_imap as model
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_imap import INLINE, OPERATIONS, Target, call, comparable, decide, read_natively

from gateway import _native
from gateway._native import ImapCommand, ImapReader, ImapSyntaxError, decode_utf7, encode_utf7

few = settings(max_examples=150, deadline=None)
many = settings(max_examples=500, deadline=None)


def same(octets: bytes, text_octets_max: int = 100) -> None:
    expected = comparable(list(model.read(octets, text_octets_max, decide)))
    assert comparable(read_natively([octets], text_octets_max)) == expected
    single = [octets[i : i + 1] for i in range(len(octets))]
    assert comparable(read_natively(single, text_octets_max)) == expected
    for cut in range(1, len(octets)) if len(octets) < 60 else (1, len(octets) // 2, len(octets) - 1):
        assert comparable(read_natively([octets[:cut], octets[cut:]], text_octets_max)) == expected


PIECES = st.sampled_from(
    [
        b"a ", b"a1 ", b"UID ", b"uid fetch ", b"NOOP", b"APPEND x ", b"LOGIN ", b"\r\n", b"\n", b" \r\n", b"\r",
        b"{3}\r\nabc", b"{3+}\r\nabc", b"~{2}\r\n\0\1", b"{4+}\r\nabcd", b"{4}\r\n", b"{0}\r\n", b"{0+}\r\n",
        b"{00003+}\r\nx\r\n", b"{5}\n12345", b"{99999999999999999999}\r\n", b"{9223372036854775808+}\r\n",
        b"{1001+}\r\n" + b"y" * 1001, b"{1001}\r\n", b'"quoted \\" {3}"', b'"', b"(", b")", b"*", b"{", b"}", b"{}",
        b"{+}", b"{3+} ", b"~", b"x" * 50, b"\0", b"\xff", b" ",
    ]
)  # fmt: skip


@many
@given(st.lists(PIECES | st.binary(max_size=6), max_size=12).map(b"".join), st.sampled_from([20, 64, 100, 3000]))
@example(b"a NOOP {4+}\r\nabcd {3+}\r\nabc\r\nb NOOP\r\n", 100)
@example(b"a " + b"x" * 98 + b"{3+}\r\na\nb\r\nb NOOP\r\n", 100)
@example(b"a APPEND x {9+}\r\n123456789 {3}\r\nb NOOP\r\n", 100)
@example(b"a LOGIN {0+}\r\n {0}\r\n\r\n", 100)
def test_a_dialogue_however_it_is_cut(octets: bytes, text_octets_max: int) -> None:
    same(octets, text_octets_max)


def test_a_command_that_is_too_long_is_passed_over_to_its_end() -> None:
    long = b"a NOOP " + b"x" * 200
    for end in (b"\r\n", b"{3+}\r\n\r\n\n and more\r\n", b"{3}\r\n", b"{0+}\r\n{0+}\r\n\r\n"):
        same(long + end + b"b NOOP\r\n")
    found = read_natively([long + b"{3+}\r\na\r\n\r\nb NOOP\r\n"], 100)
    assert [kind for kind, _ in found] == ["too long", "refused", "command"]


# -- the cursor ----------------------------------------------------------------------------------------------------

ARGUMENTS = st.sampled_from(
    [
        b" ", b"1", b"0", b"10", b"4294967295", b"4294967296", b"9223372036854775807", b"9223372036854775808", b"$",
        b"1:*", b"*:4,7", b"5:3,9:9,", b"1:2:3", b"0:4", b"4294967296:1", b"1,,2", b"*", b"INBOX", b"inbox", b"&",
        b"&-", b"A&AMQ-", b"&AMQ", b"&AAA-", b"&2AA-", b"&BB8EQAQ4BDIENQRC-", b'"a \\" b"', b'"\\x"', b'"',
        b'"\xc3\xa4"', b'"\xff"', b"NIL", b"nil", b"{3}\r\nabc", b"~{2}\r\n\0a", b"{1}\r\n\0", b"{9}\r\nshort",
        b"\\Seen", b"\\*", b"\\", b"$Junk", b"(", b")", b"()", b"(\\Seen \\Deleted x)", b"(\\Seen  x)", b"BODY.PEEK[",
        b"HEADER.FIELDS (", b"]", b"<0.10>", b"1-Feb-2024", b'"29-feb-2023"', b"29-Feb-2000", b'"29-Feb-1900"',
        b"31-Apr-2020", b"01-Jan-1970", b"1-Jan-0000", b'" 1-Jan-1970 00:00:00 +0000"',
        b'"01-Dec-9999 23:59:60 -1200"', b'"1-Jan-2020 00:00:00 +0000"', b'"31-Dec-2016 24:00:00 +0000"',
        b'"05-May-2005 05:05:05 +0530"', b"%", b"a%b*", b"\x7f", b"\xc3\xa4",
    ]
)  # fmt: skip


def command_of(octets: bytes, *, utf8: bool = False) -> ImapCommand:
    reader = ImapReader(100_000)
    reader.utf8 = utf8
    reader.feed(octets)
    while (kind := reader.read()) == _native.LITERAL:
        reader.accept_inline()
    assert kind == _native.COMMAND
    return reader.command


@many
@given(
    st.lists(ARGUMENTS | st.binary(max_size=4), max_size=5).map(b" ".join)
    | st.lists(ARGUMENTS, max_size=4).map(b"".join),
    st.lists(st.sampled_from(OPERATIONS), max_size=10),
    st.booleans(),
)
def test_the_cursor_reads_what_the_grammar_says(arguments: bytes, operations: list[str], utf8: bool) -> None:
    line = b"t X " + arguments.replace(b"\n", b"n") if b"{" not in arguments else b"t X " + arguments
    expected = next(model.read(line + b"\r\n", 100_000, lambda *_: INLINE), None)
    if expected is None:
        return
    theirs = expected[1]
    theirs.utf8 = utf8
    reader = ImapReader(100_000)
    reader.utf8 = utf8
    reader.feed(line + b"\r\n")
    while reader.read() == _native.LITERAL:
        reader.accept_inline()
    ours = reader.command
    assert (ours.tag, ours.name) == (theirs.tag, theirs.name)
    for operation in operations:
        result = call(ours, operation)
        assert result == call(theirs, operation), operation
        if result is ImapSyntaxError:  # the command is answered: nobody reads on
            return


@pytest.mark.parametrize(
    ("arguments", "operation", "value"),
    [
        (b"BODY.peek[]", "word", b"BODY.PEEK"),
        (b"a]b", "astring", b"a]b"),
        (b"a]b", "atom", b"a"),
        (b'"a\\\\b\\""', "string", b'a\\b"'),
        (b"nil", "nstring", None),
        (b"InBoX", "mailbox", "INBOX"),
        (b"InBoX", "list_mailbox", "InBoX"),
        (b"a/%*", "list_mailbox", "a/%*"),
        (b"~peter/mail/&U,BTFw-/&ZeVnLIqe-", "mailbox", "~peter/mail/台北/日本語"),
        (b'"&AOQ- b"', "mailbox", "ä b"),
        (b"1-Feb-2024", "date", 1706745600),
        (b'"17-Jul-1996 02:44:25 -0700"', "date_time", 837596665),
        (b"$", "sequence_set", None),
        (b"(\\Seen $x)", "flag_list", ["\\Seen", "$x"]),
        (b"()", "flag_list", []),
    ],
)
def test_words(arguments: bytes, operation: str, value: object) -> None:
    command = command_of(b"t X " + arguments + b"\r\n")
    command.space()
    assert getattr(command, operation)() == value


@pytest.mark.parametrize(
    ("arguments", "operation"),
    [
        (b"&AGE-", "mailbox"),  # "a" needs no shift
        (b"&AOQ", "mailbox"),
        (b"&AOQ-&AOQ-", "mailbox"),
        (b"&AOR-", "mailbox"),  # bits left over
        (b"&2AA-", "mailbox"),  # half of a pair
        (b"&AAo-", "mailbox"),
        (b'"\xc3\xa4"', "mailbox"),
        (b'"a\tb"', "mailbox"),
        (b"4294967296", "number"),
        (b"0", "nz_number"),
        (b"1:0", "sequence_set"),
        (b"0*", "sequence_set"),
        (b"07", "sequence_set"),
        (b"1,", "sequence_set"),
        (b"1:2:3", "sequence_set"),
        (b"30-Feb-2024", "date"),
        (b"(a", "flag_list"),
    ],
)
def test_what_is_refused(arguments: bytes, operation: str) -> None:
    command = command_of(b"t X " + arguments + b"\r\n")
    command.space()
    with pytest.raises(ImapSyntaxError) as caught:
        getattr(command, operation)()
    assert str(caught.value).isascii() and "\n" not in str(caught.value)


def test_utf8_names() -> None:
    assert call_mailbox(b"\xc3\xa4") == "ä"
    assert call_mailbox(b"&AOQ-") == "&AOQ-"  # RFC 9051 §5.1: an ampersand is one
    for octets in (b"\xff", b"\xc2\x85", "\u2028".encode(), b"\xed\xa0\x80"):
        with pytest.raises(ImapSyntaxError):
            call_mailbox(octets)


def call_mailbox(octets: bytes) -> str:
    command = command_of(b"t X {%d+}\r\n%b\r\n" % (len(octets), octets), utf8=True)
    command.space()
    return command.mailbox()


def test_depth_and_items_are_bounded() -> None:
    command = command_of(b"t X " + b"(" * 33 + b"\r\n")
    command.space()
    for _ in range(32):
        command.expect(b"(")
    with pytest.raises(ImapSyntaxError, match="nest 32 deep"):
        command.accept(b"(")
    command = command_of(b"t X (" + b"a " * 10_001 + b"a)\r\n")
    command.space()
    with pytest.raises(ImapSyntaxError, match="10000 at most"):
        command.flag_list()
    command.rewind()
    command.space()
    command.expect(b"(")


def test_literals_that_go_elsewhere() -> None:
    reader = ImapReader(1000)
    first, second = Target(), Target()
    reader.feed(b"t APPEND x (\\Seen) {5+}\r\nhello")
    assert reader.read() == _native.LITERAL
    command = reader.command
    command.space()
    assert command.mailbox() == "x" and not command.awaits_literal()
    command.space()
    command.flag_list()
    command.space()
    assert command.awaits_literal() and command.peek() == ord("{")
    with pytest.raises(ImapSyntaxError):
        command.literal()
    with pytest.raises(ValueError):
        reader.read()
    reader.accept_target(first)
    assert reader.read() == _native.NEED_MORE
    reader.feed(b" ~{3}\r\n")
    assert reader.read() == _native.LITERAL and not command.awaits_literal()
    assert command.literal() is first
    command.space()
    assert command.awaits_literal() and command.peek() == ord("~")
    reader.accept_target(second)
    reader.feed(b"a\0b\r\n")
    assert reader.read() == _native.COMMAND and reader.command is command
    assert command.literal() is second
    command.end()
    assert (first.octets, second.octets) == (b"hello", b"a\0b")
    command.rewind()
    command.space()
    assert command.mailbox() == "x"


def test_a_line_outside_of_commands() -> None:
    reader = ImapReader(100)
    for octet in b"0123456789\r":
        reader.feed(bytes([octet]))
        assert reader.read_line(11) is None
    reader.feed(b"\nab\nx")
    assert reader.read_line(11) == b"0123456789"
    assert reader.read_line(11) == b"ab"
    for _ in range(100):
        reader.feed(b"x" * 10)
        assert reader.read_line(11) is None
        assert reader.unread_octets <= 12
    reader.feed(b"\nnext\r\n")
    assert reader.read_line(11) is True
    assert reader.read_line(11) == b"next"


# -- modified UTF-7 ------------------------------------------------------------------------------------------------

@few
@given(st.text(max_size=12) | st.text("&-,+ aä台\U0001f4e8", max_size=12))
def test_utf7_there_and_back(name: str) -> None:
    octets = encode_utf7(name)
    assert octets == model.encode_utf7(name)
    assert octets.isascii()
    assert decode_utf7(octets) == name


@few
@given(
    st.lists(st.sampled_from([b"&", b"-", b"AOQ", b"a", b"&AOQ-", b",", b"2D3cAA", b"="]), max_size=6).map(b"".join)
    | st.binary(max_size=8)
)
def test_utf7_that_is_not_as_it_should_be(octets: bytes) -> None:
    try:
        expected = model.decode_utf7(octets)
    except ValueError:
        with pytest.raises(ValueError):
            decode_utf7(octets)
    else:
        assert decode_utf7(octets) == expected
