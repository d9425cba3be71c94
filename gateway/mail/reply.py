"""Replies: the only thing that becomes text for an SMTP peer, and the one table of those we send.

Owns      Reply; the named replies every other module uses
Errors    ValueError when code and enhanced status disagree in class (RFC 3463 §2)
Standards RFC 5321 §4.2, RFC 2034, RFC 3463, RFC 5248, RFC 7505, RFC 9422
"""

from __future__ import annotations


class Reply:
    """code, enhanced status and text; `encoded` is the octets on the wire, rendered once.

    text may hold several lines ("\\n" between them).  A reply with close=True ends the connection after it is sent.
    """

    __slots__ = ("close", "code", "encoded", "enhanced", "text")

    def __init__(self, code: int, enhanced: str, text: str, *, close: bool = False) -> None:
        if not 200 <= code <= 599:
            raise ValueError(f"reply code {code} is outside 200..599")
        # RFC 2034 §4: 2xx, 4xx and 5xx replies carry a status of their own class; 3xx and EHLO/greeting carry none.
        if enhanced and int(enhanced[0]) != code // 100:
            raise ValueError(f"enhanced status {enhanced} does not go with {code}")
        self.code = code
        self.enhanced = enhanced
        self.text = text
        self.close = close
        prefix = f"{enhanced} " if enhanced else ""
        lines = text.split("\n")
        rendered = [f"{code}-{prefix}{line}\r\n" for line in lines[:-1]]
        rendered.append(f"{code} {prefix}{lines[-1]}\r\n")
        self.encoded = "".join(rendered).encode()

    @property
    def is_positive(self) -> bool:
        return self.code < 400

    @property
    def is_permanent(self) -> bool:
        return self.code >= 500

    def with_text(self, text: str) -> Reply:
        """The same verdict in other words."""
        return Reply(self.code, self.enhanced, text, close=self.close)

    def __str__(self) -> str:
        return (
            f"{self.code} {self.enhanced} {self.text}"
            if self.enhanced
            else f"{self.code} {self.text}"
        )

    def __repr__(self) -> str:
        return f"Reply({self.code}, {self.enhanced!r}, {self.text!r}, close={self.close})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and (self.encoded, self.close) == (
            other.encoded,
            other.close,
        )

    def __hash__(self) -> int:
        return hash((self.encoded, self.close))
