"""What the load tool reads of IMAP and POP3: against slow models, cut at every octet; and how its plans are checked."""

from __future__ import annotations

import asyncio

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from smtp_blaster.answers import ImapAnswers
from smtp_blaster.cli import main
from smtp_blaster.plan import Plan, check
from smtp_blaster.pop3 import Pop3Session
from smtp_blaster.retrieval import Answer

text = st.text("aZ 09(){}*+\\\"", max_size=24).map(str.encode)
literal = st.binary(max_size=40).map(lambda octets: (b"{%d}\r\n" % len(octets), octets))
FETCHES = (b"* 7 FETCH (BODY[] ", b"* 12 FETCH (FLAGS ())")
begin = st.sampled_from([*FETCHES, b"* OK ", b"* 4 EXISTS", b"A1 OK ", b"+ ", b"* FETCH ", b"* 9 FETCHED "])


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, list[bytes], int]:
    """Octets, the lines that are to be seen in them, and the number of FETCH responses."""
    octets, lines, fetched = b"", [], 0
    for _ in range(draw(st.integers(0, 5))):
        line = draw(begin)
        is_fetch = line in FETCHES
        whole = line
        for _ in range(draw(st.integers(0, 3))):
            announced, content = draw(literal)
            before = draw(text)
            line += before + announced
            whole += before + announced + content
        end = draw(text.filter(lambda octets: not octets.endswith(b"}")))
        octets += whole + end + b"\r\n"
        if is_fetch:
            fetched += 1
        else:
            lines.append(line + end)
    return octets, lines, fetched


@given(responses(), st.lists(st.integers(0, 400), max_size=6))
def test_answers_are_read_however_they_are_cut(made: tuple[bytes, list[bytes], int], cuts: list[int]) -> None:
    octets, lines, fetched = made
    for at in [sorted({min(cut, len(octets)) for cut in cuts}), range(len(octets))]:
        answers, seen, before = ImapAnswers(), [], 0
        for cut in [*at, len(octets)]:
            seen += answers.feed(octets[before:cut])
            before = cut
        assert seen == lines
        assert (answers.fetched, answers.octets) == (fetched, len(octets))


def test_a_line_is_bounded() -> None:
    answers = ImapAnswers()
    with pytest.raises(ValueError, match="line without an end"):
        for _ in range(100):
            answers.feed(b"* OK {1}\r\nx" + b"y" * 5000 + b" {1}\r\nz")
    with pytest.raises(ValueError, match="literal of"):
        ImapAnswers().feed(b"* 1 FETCH (BODY[] {9999999999}\r\n")


class Heard(Pop3Session):
    """Only the reader of it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.steps: list[bool] = []

    def answered(self, answer: Answer) -> None:
        self.heard.append((answer.word, answer.text))
        self._has_lines = bool(self.steps) and self.steps.pop(0)


line = st.text("ab.-+OK ", max_size=8).map(str.encode)
body = st.lists(line, max_size=4).map(
    lambda lines: b"".join((b"." + each if each.startswith(b".") else each) + b"\r\n" for each in lines)
)


@given(st.lists(st.tuples(st.booleans(), body), max_size=4))
def test_pop3_answers_of_several_lines_end_where_they_do(answers: list[tuple[bool, bytes]]) -> None:
    octets = b"".join(
        b"+OK %d\r\n" % index + (some + b".\r\n" if has else b"") for index, (has, some) in enumerate(answers)
    )
    expected = [("+OK", b"%d" % index) for index in range(len(answers))]
    for size in (1, 2, 3, 5, 7, len(octets) or 1):
        session = Heard()
        session.steps = [has for has, _ in answers]
        session._has_lines = bool(session.steps) and session.steps.pop(0)
        for start in range(0, len(octets), size):
            session.read(octets[start : start + size])
        assert session.heard == expected


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({"protocol": "imap", "mix": "nonsense"}, "expected one of login"),
        ({"protocol": "pop3", "mix": "idle"}, "expected one of login"),
        ({"protocol": "imap", "mix": "phone", "auth": ()}, "whose mail"),
        ({"protocol": "imap", "mix": "idle"}, "lmtp://HOST:PORT"),
        ({"protocol": "imap", "mix": "idle", "deliver": "lmtp://x:1", "duration_s": 2000.0}, "RFC 2177"),
        (
            {"protocol": "imap", "mix": "idle", "deliver": "lmtp://x:1", "auth": ("a:b",), "duration_s": 9.0},
            "must be mailboxes",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_run_says_why(plan: dict, text: str) -> None:
    whole = {"target": "127.0.0.1:1", "messages": 1, "auth": ("a@example.test:b",), **plan}
    with pytest.raises(ValueError, match=text):
        check(Plan(**whole))


def test_it_goes_nowhere_without_a_word() -> None:
    found = CliRunner().invoke(main, ["imap", "192.0.2.1:143", "--auth", "a:b"])
    assert found.exit_code == 2
    assert "--i-own-this-target" in found.output


def test_a_server_that_says_nonsense_ends_the_connection() -> None:
    from smtp_blaster.source import Source

    async def both() -> object:
        async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 I am not IMAP\r\n")
            await reader.read()
            writer.close()

        server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        plan = Plan(target=f"127.0.0.1:{port}", protocol="imap", mix="phone", auth=("a:b",), messages=1, duration_s=1.0)
        found = await Source(plan).run()
        server.close()
        return found

    found = asyncio.run(both())
    assert found.accepted == 0
    assert any("no answer: b'220 I am" in trouble for trouble in found.troubles), found.troubles
