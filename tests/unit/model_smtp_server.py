"""A small strict SMTP and LMTP server in memory, which answers as its plan says: for testing the client machine.

Standards RFC 5321 §4.1.4 (order of commands), RFC 2033, RFC 2920, RFC 3030
"""

from __future__ import annotations

import re
from typing import Any


class Plan:
    """The replies to one message, which is recognised by its mailboxes: m<number> or r<index>.m<number>."""

    def __init__(self, mail: int = 250, rcpts: tuple[int, ...] = (250,), data: int = 354, final: int = 250) -> None:
        self.mail = mail
        self.rcpts = rcpts
        self.data = data
        self.final = final
        self.finals = tuple(final for _ in rcpts)  # LMTP: by recipient

    def __repr__(self) -> str:
        return f"Plan({self.mail}, {self.rcpts}, {self.data}, {self.final})"


class ModelServer:
    """feed(octets from the client) gives the octets of the replies."""

    def __init__(
        self,
        plans: list[Plan],
        *,
        offers: tuple[str, ...] = (),
        lmtp: bool = False,
        keeps_failed: bool = True,  # a transaction whose BDAT failed stays open until RSET
        lenient_data: bool = False,  # 354 although no recipient was accepted
    ) -> None:
        self.plans = plans
        self.offers = offers
        self.lmtp = lmtp
        self.keeps_failed = keeps_failed
        self.lenient_data = lenient_data
        self.received: list[tuple[int, tuple[int, ...], bytes]] = []  # message, accepted recipients, content
        self.commands: list[str] = []
        self.outstanding_max = 0  # commands in one feed()
        self._buffer = b""
        self._mode = "command"
        self._left = 0
        self._reset()

    def _reset(self) -> None:
        self._number = -1
        self._accepted: list[int] = []
        self._content = b""

    @property
    def _plan(self) -> Plan:
        return self.plans[self._number]

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        replies: list[bytes] = []
        while True:
            if self._mode == "data":
                if self._buffer.startswith(b".\r\n"):  # right behind the 354
                    content, self._buffer = b"", self._buffer[3:]
                else:
                    end = self._buffer.find(b"\r\n.\r\n")
                    if end < 0:
                        return b"".join(replies)
                    content, self._buffer = self._buffer[: end + 2], self._buffer[end + 5 :]
                content = re.sub(rb"(?m)^\.", b"", content)
                self._mode = "command"
                replies += self._end_of_data(content)
                self._reset()
            elif self._mode == "bdat":
                if len(self._buffer) < self._left:
                    return b"".join(replies)
                content, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
                self._mode = "command"
                replies += self._end_of_bdat(content)
            else:
                line, crlf, rest = self._buffer.partition(b"\r\n")
                if not crlf:
                    return b"".join(replies)
                self._buffer = rest
                replies.append(self._command(line.decode()))

    @staticmethod
    def _line(code: int, text: str = "as planned") -> bytes:
        return f"{code} {text}\r\n".encode()

    def _end_of_data(self, content: bytes) -> list[bytes]:
        if not self._accepted:
            return [self._line(554, "no valid recipients")]
        plan = self._plan
        if not self.lmtp:
            if 200 <= plan.final <= 299:
                self.received.append((self._number, tuple(self._accepted), content))
            return [self._line(plan.final)]
        kept = tuple(i for i in self._accepted if 200 <= plan.finals[i] <= 299)
        if kept:
            self.received.append((self._number, kept, content))
        return [self._line(plan.finals[i]) for i in self._accepted]

    def _end_of_bdat(self, content: bytes) -> list[bytes]:
        if self._number < 0:
            return [self._line(503, "no MAIL")]
        replies = self._end_of_data(content)
        if not self.keeps_failed or any(reply.startswith(b"2") for reply in replies):
            self._reset()
        return replies

    def _command(self, line: str) -> bytes:
        self.commands.append(line)
        verb = line[:4].upper()
        if verb in ("EHLO", "LHLO"):
            self._reset()
            lines = ["model.example", *self.offers]
            shown = [f"250-{text}\r\n" for text in lines[:-1]] + [f"250 {lines[-1]}\r\n"]
            return "".join(shown).encode()
        handler: Any = getattr(self, f"_on_{verb.lower()}", None)
        return handler(line) if handler else self._line(500, "unknown")

    def _on_mail(self, line: str) -> bytes:
        if self._number >= 0:
            return self._line(503, "nested MAIL")
        number = int(re.search(r"<m(\d+)@", line)[1])  # type: ignore[index]
        code = self.plans[number].mail
        if 200 <= code <= 299:
            self._number = number
        return self._line(code)

    def _on_rcpt(self, line: str) -> bytes:
        if self._number < 0:
            return self._line(503, "no MAIL")
        index, number = (int(text) for text in re.search(r"<r(\d+)\.m(\d+)@", line).groups())  # type: ignore[union-attr]
        assert number == self._number
        code = self._plan.rcpts[index]
        if 200 <= code <= 299:
            self._accepted.append(index)
        return self._line(code)

    def _on_data(self, line: str) -> bytes:
        if not self._accepted and not (self.lenient_data and self._number >= 0):
            return self._line(503, "no RCPT")
        code = self._plan.data
        if 300 <= code <= 399:
            self._mode = "data"
        return self._line(code)

    def _on_bdat(self, line: str) -> bytes:
        found = re.fullmatch(r"BDAT (\d+) LAST", line)
        assert found, line
        self._left = int(found[1])
        self._mode = "bdat"
        return b""

    def _on_rset(self, line: str) -> bytes:
        self._reset()
        return self._line(250)

    def _on_quit(self, line: str) -> bytes:
        return self._line(221)
