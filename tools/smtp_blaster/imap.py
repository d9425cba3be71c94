"""IMAP from the client's side: set-up, tagged commands, answers.

Owns      ImapSession
Flow      answers.ImapAnswers → lines → answered()
Limits    LINES_MAX untagged lines of an answer are kept
Standards RFC 9051 and 3501; RFC 4959 (SASL-IR); RFC 2177 (IDLE)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtp_blaster.answers import ImapAnswers
from smtp_blaster.imap_mixes import State
from smtp_blaster.retrieval import Answer, RetrievalSession, Script, Step
from smtp_blaster.speaker import LOGOUT
from smtp_blaster.tally import AUTH, GREETING, STARTTLS

if TYPE_CHECKING:
    from smtp_blaster.source import Source
    from smtp_blaster.supply import Message

LINES_MAX = 10_000


class ImapSession(RetrievalSession):
    farewell = Step(LOGOUT, b"LOGOUT")

    def __init__(self, source: Source, first: Message | None) -> None:
        self.is_short = source.plan.mix == "login"
        super().__init__(source, first)
        self._answers = ImapAnswers()
        self._lines: list[bytes] = []
        self._number = 0
        self._tag = b""  # of the command that is answered, with the space behind it; empty: the greeting
        self.state = State(source.plan)

    def task(self, number: int) -> Script:
        return self.state.task(number)

    def line(self, step: Step) -> bytes:
        if step.is_continued:
            return step.octets + b"\r\n"
        self._number += 1
        self._tag = b"A%d " % self._number
        return self._tag + step.octets + b"\r\n"

    def read(self, data: bytes) -> None:
        for line in self._answers.feed(data):
            if self._tag and line.startswith(self._tag):
                word, _, text = line[len(self._tag) :].partition(b" ")
                lines, self._lines = self._lines, []
                self.answered(Answer(word.upper() == b"OK", word.decode("ascii", "replace"), text, lines))
            elif line.startswith(b"+"):
                lines, self._lines = self._lines, []
                self.answered(Answer(True, "+", line[2:], lines))
            elif not line.startswith(b"* "):
                raise ValueError(f"no answer: {line[:60]!r}")
            elif not self._tag:
                self._greeted(line)
            else:
                self._untagged(line)

    def _greeted(self, line: bytes) -> None:
        _, word, text = [*line.split(b" ", 2), b""][:3]
        self._tag = b"* BYE"  # nothing is awaited under a tag yet
        self.answered(Answer(word.upper() in (b"OK", b"PREAUTH"), word.decode("ascii", "replace"), text, []))

    def _untagged(self, line: bytes) -> None:
        if len(self._lines) < LINES_MAX:
            self._lines.append(line)

    def set_up(self) -> Script:
        plan = self._source.plan
        greeting = yield Step(GREETING)
        if plan.tls == "starttls":
            yield Step(STARTTLS, b"STARTTLS")
        if greeting.word.upper() == "PREAUTH":
            pass
        elif plan.auth_mechanism:
            yield from self.authenticate(b"AUTHENTICATE")
        else:
            name, password = self.user()
            yield Step(AUTH, b"LOGIN " + quoted(name) + b" " + quoted(password))
        yield from self.state.begin()


def quoted(text: str) -> bytes:
    """A quoted string (RFC 9051 §4.3)."""
    return b'"' + text.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'
