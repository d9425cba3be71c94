"""The native SMTP grammar against its model, on chosen and on drawn input.

    Standards RFC 5321 §4.1, §4.2, §4.5.3.1; RFC 6531 §3.3; RFC 3030 §2; RFC 3461 §4
"""

from __future__ import annotations

from types import ModuleType

import model_smtp as model
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway._native import smtp as native

BOTH = pytest.mark.parametrize("kernel", [native, model], ids=["native", "model"])
few = settings(max_examples=200, deadline=None)
many = settings(max_examples=600, deadline=None)


def parse(kernel: ModuleType, line: bytes, *, utf8: bool = True, lenient: bool = False) -> object:
    """(verb, a, b) of one whole line."""
    result = kernel.parse_command(line, 0, 1024, utf8, lenient)
    assert result is not None and result[0] == len(line)
    return result[1:]


def test_constants_agree() -> None:
    assert [getattr(native, verb) for verb in model.VERBS] == list(range(1, 18))
    for name in ("UNKNOWN", "ERROR", "LINE_TOO_LONG", "SYNTAX", "BARE_LF", "NUL", "EIGHT_BIT"):
        assert getattr(native, name) == getattr(model, name)
    for name in ("BAD_PATH", "BAD_PARAM", "PATH_TOO_LONG"):
        assert getattr(native, name) == getattr(model, name)


@BOTH
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"EHLO mx.example.org \r\n", (native.EHLO, "mx.example.org", None)),
        (b"helo\r\n", (native.HELO, "", None)),
        (b"LHLO [IPv6:::1]\r\n", (native.LHLO, "[IPv6:::1]", None)),
        (b"MAIL FROM:<a@b>\r\n", (native.MAIL, "a@b", ())),
        (b"mail from: <a@b.c>  \r\n", (native.MAIL, "a@b.c", ())),
        (b"MAIL FROM:<>\r\n", (native.MAIL, "", ())),
        (
            b"MAIL FROM:<> size=10 SMTPUTF8 RET=HDRS\r\n",
            (native.MAIL, "", (("SIZE", "10"), ("SMTPUTF8", None), ("RET", "HDRS"))),
        ),
        (b"RCPT TO:<@a.b,@c:u@d>\r\n", (native.RCPT, "u@d", ())),
        (b"RCPT TO:<Postmaster>\r\n", (native.RCPT, "Postmaster", ())),
        (b"RCPT TO:<postMASTER@x> NOTIFY=NEVER\r\n", (5, "postMASTER@x", (("NOTIFY", "NEVER"),))),
        (rb'RCPT TO:<"a b\"@c"@[192.0.2.1]>' + b"\r\n", (5, r'"a b\"@c"@[192.0.2.1]', ())),
        (b'RCPT TO:<""@x>\r\n', (5, '""@x', ())),
        (b"RCPT TO:<u@[IPv6:2001:db8::192.0.2.1]>\r\n", (5, "u@[IPv6:2001:db8::192.0.2.1]", ())),
        (b"RCPT TO:<u@[x25:31.42]>\r\n", (5, "u@[x25:31.42]", ())),
        ("RCPT TO:<müller@gänse.example>\r\n".encode(), (5, "müller@gänse.example", ())),
        (b"RCPT TO:<a@b> ORCPT=rfc822;x=y@z\r\n", (5, "a@b", (("ORCPT", "rfc822;x=y@z"),))),
        (b"DATA\r\n", (native.DATA, "", None)),
        (b"BDAT 86 LAST\r\n", (native.BDAT, 86, True)),
        (b"bdat 0\r\n", (native.BDAT, 0, False)),
        (b"RSET\r\n", (native.RSET, "", None)),
        (b"NOOP x y\r\n", (native.NOOP, "x y", None)),
        (b"QUIT\r\n", (native.QUIT, "", None)),
        (b"StartTLS\r\n", (native.STARTTLS, "", None)),
        (b"AUTH PLAIN =\r\n", (native.AUTH, "PLAIN =", None)),
        (b"XCLIENT NAME=a\r\n", (native.XCLIENT, "NAME=a", None)),
        (b"ETRN example.org\r\n", (native.ETRN, "example.org", None)),
        (b"GET / HTTP/1.1\r\n", (native.UNKNOWN, "/ HTTP/1.1", "GET")),
        (b"\r\n", (native.UNKNOWN, "", "")),
        (b" NOOP\r\n", (native.UNKNOWN, "NOOP", "")),
    ],
)
def test_good_commands(kernel: ModuleType, line: bytes, expected: object) -> None:
    assert parse(kernel, line) == expected


@BOTH
@pytest.mark.parametrize(
    ("line", "reason", "verb"),
    [
        (b"MAIL FROM:<a@b>\n", native.BARE_LF, native.MAIL),
        (b"\n", native.BARE_LF, native.UNKNOWN),
        (b"RCPT TO:<a\0@b>\r\n", native.NUL, native.RCPT),
        (b"RCPT TO:<a\r@b>\r\n", native.SYNTAX, native.RCPT),
        (b"NOOP \x7f\r\n", native.SYNTAX, native.NOOP),
        (b"MAIL FROM:<\xff@b>\r\n", native.EIGHT_BIT, native.MAIL),
        (b"MAIL FROM:<\xed\xa0\x80@b>\r\n", native.EIGHT_BIT, native.MAIL),  # surrogate
        (b"MAIL FROM:<\xc0\xaf@b>\r\n", native.EIGHT_BIT, native.MAIL),  # overlong
        (b"MAIL FROM:<\xe2\x82@b>\r\n", native.EIGHT_BIT, native.MAIL),  # cut short
        (b"MAIL FROM:<\xf4\x90\x80\x80@b>\r\n", native.EIGHT_BIT, native.MAIL),  # too high
        (b"MAIL <a@b>\r\n", native.SYNTAX, native.MAIL),
        (b"MAIL\r\n", native.SYNTAX, native.MAIL),
        (b"MAIL FROM:a@b\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a@b\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<Postmaster>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<.a@b>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a..b@c>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a.@c>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a@b.>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a@-b>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a@b->\r\n", native.BAD_PATH, native.MAIL),
        (b'MAIL FROM:<"a"b@c>\r\n', native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a@[300.1.1.1]>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a@[IPv6:1::2::3]>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<a@[IPv6:]>\r\n", native.BAD_PATH, native.MAIL),
        (b"MAIL FROM:<@x:>\r\n", native.BAD_PATH, native.MAIL),
        (b"RCPT TO:<>\r\n", native.BAD_PATH, native.RCPT),
        (b"RCPT TO:<a@b>x\r\n", native.BAD_PARAM, native.RCPT),
        (b"MAIL FROM:<a@b> SIZE=\r\n", native.BAD_PARAM, native.MAIL),
        (b"MAIL FROM:<a@b> -X=1\r\n", native.BAD_PARAM, native.MAIL),
        (b"MAIL FROM:<a@b> =\r\n", native.BAD_PARAM, native.MAIL),
        (b"MAIL FROM:<%s@b>\r\n" % (b"a" * 65), native.PATH_TOO_LONG, native.MAIL),
        (b"RCPT TO:<a@%s>\r\n" % (b"b" * 256), native.PATH_TOO_LONG, native.RCPT),
        (b"RCPT TO:<abc@%s>\r\n" % (b"b" * 251), native.PATH_TOO_LONG, native.RCPT),
        (b"DATA now\r\n", native.SYNTAX, native.DATA),
        (b"STARTTLS x\r\n", native.SYNTAX, native.STARTTLS),
        (b"BDAT\r\n", native.SYNTAX, native.BDAT),
        (b"BDAT -1\r\n", native.SYNTAX, native.BDAT),
        (b"BDAT 1 FIRST\r\n", native.SYNTAX, native.BDAT),
        (b"BDAT 99999999999999999999\r\n", native.SYNTAX, native.BDAT),
    ],
)
def test_bad_commands_name_reason_and_verb(
    kernel: ModuleType, line: bytes, reason: int, verb: int
) -> None:
    assert parse(kernel, line) == (native.ERROR, reason, verb)


@BOTH
def test_paths_at_their_limits(kernel: ModuleType) -> None:
    longest_local = b"MAIL FROM:<%s@b>\r\n" % (b"a" * 64)
    longest_path = b"RCPT TO:<ab@%s>\r\n" % (b"b" * 251)
    for line in (longest_local, longest_path):
        assert parse(kernel, line)[0] in (native.MAIL, native.RCPT)  # type: ignore[index]


@BOTH
def test_eight_bit_is_refused_without_smtputf8(kernel: ModuleType) -> None:
    line = "MAIL FROM:<ü@b>\r\n".encode()
    assert parse(kernel, line, utf8=False) == (native.ERROR, native.EIGHT_BIT, native.MAIL)


@BOTH
def test_lenient_takes_a_plain_mailbox(kernel: ModuleType) -> None:
    line = b"MAIL FROM: a@b SIZE=3\r\n"
    assert parse(kernel, line, lenient=True) == (native.MAIL, "a@b", (("SIZE", "3"),))
    assert parse(kernel, b"RCPT TO:postmaster\r\n", lenient=True) == (5, "postmaster", ())
    refused = (native.ERROR, native.BAD_PATH, native.MAIL)
    assert parse(kernel, b"MAIL FROM:a@b>\r\n", lenient=True) == refused


@BOTH
def test_lines_that_are_too_long_keep_step(kernel: ModuleType) -> None:
    data = b"NOOP " + b"x" * 20 + b"\r\nQUIT\r\n"
    too_long = (27, native.ERROR, native.LINE_TOO_LONG, native.NOOP)
    assert kernel.parse_command(data, 0, 26) == too_long
    assert kernel.parse_command(data, 0, 27) == (27, native.NOOP, "x" * 20, None)
    assert kernel.parse_command(data, 27, 27) == (33, native.QUIT, "", None)
    assert kernel.parse_command(data[:20], 0, 21) is None
    endless = (20, native.ERROR, native.LINE_TOO_LONG, -1)
    assert kernel.parse_command(data[:20], 0, 20) == endless
    assert kernel.skip_line(data, 3) == 27
    assert kernel.skip_line(data[:26], 3) == -1


def test_no_params_is_one_object() -> None:
    first = native.parse_command(b"MAIL FROM:<a@b>\r\n", 0, 512)
    second = native.parse_command(b"RCPT TO:<a@b>\r\n", 0, 512)
    assert first is not None and second is not None and first[3] is second[3]


def test_offsets_outside_of_data_are_refused() -> None:
    for pos in (-1, 6):
        with pytest.raises(ValueError, match="outside"):
            native.parse_command(b"NOOP\n", pos, 512)
        with pytest.raises(ValueError, match="outside"):
            native.skip_line(b"NOOP\n", pos)


SPICE = [
    *"<>@:,.\"\\[]=-+ \t\r\n\0_", "a", "b1", "x-y", "ü", "名", "IPv6:", "::1", "1.2.3.4", "SIZE=1",
    "SMTPUTF8", "postmaster", "\x7f", "MAIL FROM:", "RCPT TO:<", "BDAT 7", " LAST", "DATA", "NOOP",
]  # fmt: skip
spiced = st.lists(
    st.one_of(st.sampled_from(SPICE).map(str.encode), st.binary(min_size=1, max_size=2)),
    max_size=12,
).map(b"".join)
prefixes = st.sampled_from(
    [b"", b"MAIL FROM:<", b"RCPT TO:<", b"Mail from:<a@b> ", b"RCPT TO:<a@[", b"BDAT ", b"Rcpt to:"]
)
endings = st.sampled_from([b"\r\n", b">\r\n", b"@b>\r\n", b"]>\r\n", b"\n", b""])


@many
@given(prefixes, spiced, endings, st.booleans(), st.booleans(), st.integers(2, 60))
def test_commands_agree_with_the_model(
    prefix: bytes, middle: bytes, ending: bytes, utf8: bool, lenient: bool, limit: int
) -> None:
    data = prefix + middle + ending
    for max_octets in (limit, 1024):
        pos = 0
        while pos < len(data):
            got = native.parse_command(data, pos, max_octets, utf8, lenient)
            assert got == model.parse_command(data, pos, max_octets, utf8, lenient)
            if got is None:
                break
            pos = got[0]


@few
@given(st.binary(max_size=80), st.integers(2, 90))
def test_any_octets_are_survived(data: bytes, limit: int) -> None:
    assert native.parse_command(data, 0, limit) == model.parse_command(data, 0, limit)
    assert native.skip_line(data, 0) == model.skip_line(data, 0)


@few
@given(prefixes, spiced, endings)
def test_a_command_that_is_not_whole_waits(prefix: bytes, middle: bytes, ending: bytes) -> None:
    data = prefix + middle + ending
    whole = native.parse_command(data, 0, 1024)
    for cut in range(len(data)):
        part = native.parse_command(data[:cut], 0, 1024)
        assert part is None or part == whole


def outcome(function: object, argument: object) -> object:
    try:
        return function(argument)  # type: ignore[operator]
    except ValueError:
        return ValueError


@many
@given(st.one_of(spiced, st.tuples(spiced, spiced).map(b"@".join), st.binary(max_size=20)))
def test_mailboxes_agree_with_the_model(data: bytes) -> None:
    assert outcome(native.parse_mailbox, data) == outcome(model.parse_mailbox, data)
    text = data.decode("utf-8", "replace")
    assert outcome(native.parse_mailbox, text) == outcome(model.parse_mailbox, text)


@BOTH
def test_mailbox_parts_are_kept_as_written(kernel: ModuleType) -> None:
    assert kernel.parse_mailbox('"A@b"@EXAMPLE.org') == ('"A@b"', "EXAMPLE.org")
    for bad in ("", "a", "@b", "a@", "a@b c", "a" * 65 + "@b", "a@" + "b" * 256):
        with pytest.raises(ValueError, match="mailbox"):
            kernel.parse_mailbox(bad)


@few
@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=20))
def test_xtext_round_trip(text: str) -> None:
    encoded = native.xtext_encode(text)
    assert encoded == model.xtext_encode(text)
    assert outcome(native.xtext_decode, encoded) == outcome(model.xtext_decode, encoded)
    if "\x7f" not in text:
        assert native.xtext_decode(encoded) == text


@few
@given(st.text(st.sampled_from("+2B0dDe3=aü \x7f\n~!"), max_size=12))
def test_xtext_decoding_agrees_with_the_model(text: str) -> None:
    assert outcome(native.xtext_decode, text) == outcome(model.xtext_decode, text)


@BOTH
@pytest.mark.parametrize("text", ["+0D+0A", "+", "+G0", "a b", "a=b", "+FF", "+00"])
def test_bad_xtext_is_refused(kernel: ModuleType, text: str) -> None:
    with pytest.raises(ValueError):
        kernel.xtext_decode(text)


@BOTH
def test_replies(kernel: ModuleType) -> None:
    feed = kernel.ReplyParser().feed
    assert feed(b"220 mx ESMTP\r\n250-mx\r\n250-SIZE 10\r\n250 DSN\r\n") == [
        (220, "", "mx ESMTP"),
        (250, "", "mx\nSIZE 10\nDSN"),
    ]
    assert feed(b"250 2.1.0 Ok\r\n550-5.1.1 no\r\n550 5.1.1 such\tuser\0\r\n354\r\n250 \r\n") == [
        (250, "2.1.0", "Ok"),
        (550, "5.1.1", "no\nsuch user?"),
        (354, "", ""),
        (250, "", ""),
    ]
    assert feed(b"450 5.1.1 class differs\r\n250 2.1 a\r\n250 2.1.0a\r\n250 2.1.0\n") == [
        (450, "", "5.1.1 class differs"),
        (250, "", "2.1 a"),
        (250, "", "2.1.0a"),
        (250, "2.1.0", ""),
    ]


@BOTH
def test_replies_before_garbage_are_reported_first(kernel: ModuleType) -> None:
    parser = kernel.ReplyParser()
    assert parser.feed(b"250 ok\r\nHTTP/1.1 400\r\n250 ok\r\n") == [(250, "", "ok")]
    assert parser.broken
    with pytest.raises(ValueError):
        parser.feed(b"250 ok\r\n")


@BOTH
@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"25\r\n",
        b"250x\r\n",
        b"SSH-2.0\r\n",
        b"250 " + b"x" * 2045,
        b"250 " + b"x" * 2045 + b"\n",
        b"250-x\r\n" * 128,
    ],
)
def test_bad_replies_are_refused(kernel: ModuleType, data: bytes) -> None:
    with pytest.raises(ValueError):
        kernel.ReplyParser().feed(data)


def drain(parser: object, pieces: list[bytes]) -> tuple[list[object], bool]:
    replies: list[object] = []
    for piece in pieces:
        try:
            replies += parser.feed(piece)  # type: ignore[attr-defined]
        except ValueError:
            break
    return replies, parser.broken  # type: ignore[attr-defined]


reply_octets = st.lists(
    st.one_of(
        st.sampled_from(
            [b"250 2.0.0 Ok\r\n", b"250-", b"354 ", b"5.1.1 ", b"\r\n", b"\n", b"550 5.1.1 no",
             b"\t", b"\xc3\xbc", b"x" * 1030, b"\0", b"2.1.0", b"421-4.3.2 bye\r\n"]
        ),
        st.binary(min_size=1, max_size=2),
    ),
    max_size=10,
).map(b"".join)  # fmt: skip


@few
@given(reply_octets)
def test_replies_agree_with_the_model_cut_anywhere(data: bytes) -> None:
    whole = drain(native.ReplyParser(), [data])
    assert whole == drain(model.ReplyParser(), [data])
    for cut in range(0, len(data), 1 + len(data) // 40):
        assert drain(native.ReplyParser(), [data[:cut], data[cut:]]) == whole
    if len(data) < 200:
        assert drain(native.ReplyParser(), [bytes([octet]) for octet in data]) == whole
