"""A client's view of step: which reply belongs to what, told from the octets sent and the replies alone.

Owns      Step: one reply a command, one (LMTP: one a recipient) for content, and what was accepted
Standards RFC 5321 §4.1.1.4, §4.2, §4.5.2; RFC 2033 §4.2; RFC 3030 §2
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from tests.native import model_data, model_smtp

MAIL, RCPT, DATA, BDAT, RSET, QUIT, STARTTLS, XCLIENT = 4, 5, 6, 7, 8, 13, 14, 16
RESETTING = (1, 2, 3, MAIL, RSET, STARTTLS, XCLIENT)

Reply = tuple[int, bytes]  # code, last line
Accepted = tuple[list[str], bytes, bytes]  # recipients, content, last line of the first reply

_REPLY = re.compile(rb"((?:\d\d\d-[^\r\n]*\r\n)*)((\d\d\d)(?: [^\r\n]*)?\r\n)")


def split_replies(octets: bytes) -> list[Reply]:
    """Nothing but whole replies may have been sent (RFC 5321 §4.2)."""
    replies, at = [], 0
    while at < len(octets):
        found = _REPLY.match(octets, at)
        assert found, f"no reply: {octets[at : at + 80]!r}"
        codes = {line[:3] for line in found[0].split(b"\r\n")[:-1]}
        assert codes == {found[3]}, f"codes differ within a reply: {found[0]!r}"
        replies.append((int(found[3]), found[2]))
        at = found.end()
    return replies


class Step:
    """Walks over what was sent with the replies in their order."""

    def __init__(self, sent: bytes, *, lmtp: bool, line_octets: int, normalize: bool) -> None:
        self.sent = sent
        self.at = 0
        self.lmtp = lmtp
        self.line_octets = line_octets
        self.normalize = normalize
        self.recipients: list[str] = []
        self.chunks = b""
        self.accepted: list[Accepted] = []
        self.closed = False

    def check(self, replies: list[Reply], *, all_answered: bool = True) -> None:
        """Every reply has its command; no whole command is without reply, unless the server closed."""
        left = iter(replies)
        for code, line in left:
            assert not self.closed, f"{line!r} after the last reply"
            if code == 421:  # RFC 5321 §3.8: at any time
                self.closed = True
                continue
            command = self.command()
            assert command is not None, f"{line!r} answers nothing"
            self.at, verb, argument, last = command
            if verb == DATA and code == 354:
                self.on_data(left)
            elif verb == BDAT:
                self.on_chunk(int(str(argument)), bool(last), (code, line), left)
            else:
                self.on_reply(verb, argument, code)
        if all_answered and not self.closed:
            command = self.command()
            if command is not None and command[1] == BDAT:
                command = command if command[0] + int(str(command[2])) <= len(self.sent) else None
            assert command is None, f"no reply to {self.sent[self.at : self.at + 80]!r}"

    def command(self) -> tuple[int, int, object, object] | None:
        return model_smtp.parse_command(self.sent, self.at, self.line_octets)

    def on_reply(self, verb: int, argument: object, code: int) -> None:
        if verb == RCPT and code < 300:
            self.recipients.append(str(argument))
        elif code < 300 and verb in RESETTING:
            self.end_transaction()
        elif (verb == QUIT and code == 221) or (verb == STARTTLS and code == 501):
            self.closed = True

    def on_data(self, left: Iterator[Reply]) -> None:
        size = model_data.find_end_of_data(self.sent[self.at :])
        if size < 0:
            self.at = len(self.sent)
            return
        content = model_data.unstuff(self.sent[self.at : self.at + size - 3])
        if self.normalize:
            content = model_data.normalize(content)
        self.at += size
        self.on_content(content, left)

    def on_chunk(self, size: int, last: bool, reply: Reply, left: Iterator[Reply]) -> None:
        assert self.at + size <= len(self.sent), "replied before the end of the chunk"
        chunk = self.sent[self.at : self.at + size]
        self.at += size
        if not self.recipients:
            assert reply[0] >= 400
        elif last:
            self.on_content(self.chunks + chunk, itertools.chain([reply], left))
        elif reply[0] < 300:
            self.chunks += chunk
        else:
            self.end_transaction()

    def on_content(self, content: bytes, left: Iterator[Reply]) -> None:
        """RFC 2033 §4.2: in LMTP each recipient that was accepted has its own reply."""
        replies = list(itertools.islice(left, len(self.recipients) if self.lmtp else 1))
        if any(code == 421 for code, _ in replies):
            self.closed = True
        elif replies and len({code // 100 for code, _ in replies}) == 1 and replies[0][0] < 300:
            self.accepted.append((self.recipients, content, replies[0][1]))
        self.end_transaction()

    def end_transaction(self) -> None:
        self.recipients, self.chunks = [], b""
