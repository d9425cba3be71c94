"""How a sink finds the end of the data: as RFC 5321 says, or as lenient servers do.

    Owns      EOD_RULES, DataReader
    Limits    content that nobody wants is not kept
    Standards RFC 5321 §4.1.1.4 (end of data), §4.5.2 (transparency)

Three rules, to show what smuggled mail becomes behind receivers of each kind: strict ends at CRLF "."
CRLF only, lenient-lf takes LF for CRLF, lenient-any takes any of CR, LF and CRLF and drops NULs.
"""

from __future__ import annotations

import re

# Group 1 is what is not content.  A made-up line end stands before the first line.
EOD_RULES = {
    "strict": re.compile(rb"\r\n(\.\r\n)"),
    "lenient-lf": re.compile(rb"\n(\.\r?\n)"),
    "lenient-any": re.compile(rb"[\r\n]\0*(\.\0*(?:\r\n|\r(?=[^\n])|\n))"),
}
_STUFFED = {
    "strict": re.compile(rb"(\r\n)\."),
    "lenient-lf": re.compile(rb"(\n)\."),
    "lenient-any": re.compile(rb"([\r\n])\."),
}
_FIRST_LINE_END = b"\r\n"
_SEAM_OCTETS = 8  # an end of data may begin so far before the end of what was searched


class DataReader:
    """Takes what follows 354, piece by piece."""

    __slots__ = ("_eod", "_keeps", "_parts", "_rule", "octets")

    def __init__(self, eod: str, *, keeps: bool) -> None:
        self._eod = eod
        self._rule = EOD_RULES[eod]
        self._keeps = keeps
        self._parts = [_FIRST_LINE_END]
        self.octets = 0  # of content, dots of transparency included

    def feed(self, octets: bytes) -> bytes | None:
        """What stands behind the end of the data; None while it has not come."""
        seam = self._parts.pop()  # looked at again: an end of data may lie over it
        window = seam + octets
        found = self._rule.search(window)
        end = len(window) if found is None else found.start(1)
        self.octets += end - len(seam)
        if found is not None:
            self._parts.append(window[:end])
            return window[found.end(1) :]
        cut = max(0, end - _SEAM_OCTETS)
        if self._keeps:
            self._parts.append(window[:cut])
        self._parts.append(window[cut:])
        return None

    def content(self) -> bytes:
        """All of it, without the dots of transparency; only with keeps."""
        stuffed = b"".join(self._parts)
        return _STUFFED[self._eod].sub(rb"\1", stuffed)[len(_FIRST_LINE_END) :]
