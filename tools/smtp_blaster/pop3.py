"""POP3 from the client's side: set-up, answers of one line and of several, mixes.

Owns      Pop3Session; plan.MIXES has the mixes' names, and what a task of each is
Limits    LINE_MAX octets of a line; of an answer of several lines nothing is kept
Standards RFC 1939, RFC 2449 (CAPA), RFC 2595 (STLS), RFC 5034 (AUTH)
"""

from __future__ import annotations

from smtp_blaster.retrieval import Answer, RetrievalSession, Script, Step
from smtp_blaster.tally import AUTH, GREETING, NAMES, STARTTLS

STAT, UIDL, RETR = (NAMES.index(name) for name in ("stat", "uidl", "retr"))
LINE_MAX = 65536
END = b"\r\n.\r\n"


class Pop3Session(RetrievalSession):
    is_short = True

    _has_lines = False  # the answer that is awaited has several, where it is positive
    _head = b""  # its first line, when that has come
    _held = b""  # a line without its end
    _tail = b""  # the last octets of the lines that came

    def asked(self, step: Step) -> None:
        self._has_lines = step.has_lines

    def line(self, step: Step) -> bytes:
        return step.octets + b"\r\n"

    def read(self, data: bytes) -> None:
        while data:
            if self._head:
                data = self._lines(data)
                continue
            line, end, data = (self._held + data).partition(b"\r\n")
            if not end:
                self._held = line
                if len(line) > LINE_MAX:
                    raise ValueError("a line without an end")
                return
            self._held = b""
            if self._has_lines and line.startswith(b"+OK"):
                self._head, self._tail = line, b"\r\n"
            else:
                self._answer(line)

    def _lines(self, data: bytes) -> bytes:
        """Octets of an answer of several lines: the end is looked for, no line is.  Returns what stands behind it."""
        tail = self._tail
        at = (tail + data[: len(END)]).find(END)  # it may begin in what came before
        at = data.find(END) if at < 0 else at - len(tail)
        if at == -1 and not (tail + data[:4]).startswith(END, len(tail) - 1):
            self._tail = (tail + data[-len(END) :])[-len(END) + 1 :]
            return b""
        head, self._head, self._tail = self._head, b"", b""
        self._answer(head)
        return data[at + len(END) :]

    def _answer(self, line: bytes) -> None:
        word, _, text = line.partition(b" ")
        if word == b"+":
            self.answered(Answer(True, "+", text, []))
        elif word in (b"+OK", b"-ERR"):
            self.answered(Answer(word == b"+OK", word.decode(), text, []))
        else:
            raise ValueError(f"no answer: {line[:60]!r}")

    def set_up(self) -> Script:
        plan = self._source.plan
        yield Step(GREETING)
        if plan.tls == "starttls":
            yield Step(STARTTLS, b"STLS")
        if plan.auth_mechanism:
            yield from self.authenticate(b"AUTH")
        else:
            name, password = self.user()
            yield Step(AUTH, b"USER " + name.encode())
            yield Step(AUTH, b"PASS " + password.encode())

    def task(self, number: int) -> Script:
        mix, newest = self._source.plan.mix, self._source.plan.newest
        answer = yield Step(STAT, b"STAT")
        if mix == "login":
            return
        count = int(answer.text.split()[0])  # RFC 1939 §5: "+OK nn mm"
        if mix == "fetch":
            yield Step(UIDL, b"UIDL", has_lines=True)
        first = max(1, count - newest + 1) if mix == "fetch" else 1
        for each in range(first, count + 1):
            yield Step(RETR, b"RETR %d" % each, has_lines=True)
