"""What an IMAP client does, as scripts: the mixes.

Owns      State (one connection's); plan.MIXES has the names, and what a task of each is
Standards RFC 9051, RFC 3501
"""

from __future__ import annotations

import re
from collections.abc import Callable

from smtp_blaster.plan import Plan
from smtp_blaster.retrieval import Answer, Script, Step
from smtp_blaster.tally import NAMES

LIST, STATUS, SELECT, FETCH, SEARCH, STORE, NOOP = (
    NAMES.index(name) for name in ("list", "status", "select", "fetch", "search", "store", "noop")
)
FACTS = b"UID FLAGS INTERNALDATE RFC822.SIZE"
HEADERS = b"BODY.PEEK[HEADER.FIELDS (FROM TO CC SUBJECT DATE MESSAGE-ID REFERENCES IN-REPLY-TO CONTENT-TYPE)]"
WORDS = ("linux", "meeting", "invoice", "report", "list")
SEARCHES = (
    b'SUBJECT "%s"', b'FROM "%s"', b"UNSEEN", b'TEXT "%s"', b"SINCE 1-Jan-2002 UNDELETED",
    b'OR SUBJECT "%s" FROM "%s"',
)  # fmt: skip
_EXISTS = re.compile(rb"\* ([0-9]+) EXISTS")
_NAME = re.compile(rb'\* LIST \([^)]*\) (?:NIL|"(?:[^"\\]|\\.)*") (.+)')


class State:
    """What a client remembers between its tasks."""

    def __init__(self, plan: Plan) -> None:
        self._newest = plan.newest
        self._mix: Callable[[int], Script] = {
            "login": self.login, "fetch": self.fetch, "search": self.search, "phone": self.phone,
            "desktop": self.desktop,
        }.get(plan.mix, self.login)  # fmt: skip
        self._selects_first = plan.mix in ("fetch", "search")
        self.exists = 0  # messages of the mailbox

    def begin(self) -> Script:
        """The end of the set-up."""
        if self._selects_first:
            self._selected((yield Step(SELECT, b"SELECT INBOX")))

    def task(self, number: int) -> Script:
        return self._mix(number)

    def see(self, line: bytes) -> bool:
        """True for an untagged EXISTS."""
        found = _EXISTS.fullmatch(line)
        if found:
            self.exists = int(found[1])
        return found is not None

    def _selected(self, answer: Answer) -> None:
        for line in answer.lines:
            self.see(line)

    def _last(self, count: int) -> range:
        """Sequence numbers of so many newest messages."""
        return range(max(1, self.exists - count + 1), self.exists + 1)

    # -- tasks -------------------------------------------------------------------------------------

    def login(self, number: int) -> Script:
        self._selected((yield Step(SELECT, b"SELECT INBOX")))

    def fetch(self, number: int) -> Script:
        self._selected((yield Step(NOOP, b"NOOP")))
        last = self._last(self._newest)
        if last:
            yield Step(FETCH, b"FETCH %d:%d (UID FLAGS RFC822.SIZE)" % (last[0], last[-1]))
        for each in last:
            yield Step(FETCH, b"FETCH %d (BODY.PEEK[])" % each)

    def search(self, number: int) -> Script:
        word = WORDS[number // len(SEARCHES) % len(WORDS)].encode()
        what = SEARCHES[number % len(SEARCHES)].replace(b"%s", word)
        yield Step(SEARCH, b"UID SEARCH " + what)

    def phone(self, number: int) -> Script:
        self._selected((yield Step(SELECT, b"SELECT INBOX")))
        last = self._last(50)
        if not last:
            return
        yield Step(FETCH, b"FETCH %d:%d (%s ENVELOPE BODYSTRUCTURE)" % (last[0], last[-1], FACTS))
        for each in last[-5:]:
            yield Step(FETCH, b"FETCH %d (BODY.PEEK[TEXT]<0.4096>)" % each)
        yield Step(STORE, b"STORE %d %sFLAGS (\\Seen)" % (last[-1], b"+-"[number % 2 : number % 2 + 1]))

    def desktop(self, number: int) -> Script:
        listed = yield Step(LIST, b'LIST "" "*"')
        names = [found[1] for line in listed.lines if (found := _NAME.fullmatch(line))]
        for name in names[:10]:
            yield Step(STATUS, b"STATUS " + name + b" (MESSAGES UNSEEN UIDNEXT UIDVALIDITY)")
        self._selected((yield Step(SELECT, b"SELECT INBOX")))
        if not self.exists:
            return
        yield Step(FETCH, b"FETCH 1:* (UID FLAGS)")
        last = self._last(100)
        yield Step(FETCH, b"FETCH %d:%d (%s %s)" % (last[0], last[-1], FACTS, HEADERS))
        for each in last[-10:]:
            yield Step(FETCH, b"FETCH %d (BODY.PEEK[])" % each)
