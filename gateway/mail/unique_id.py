"""How POP3 names messages over sessions: UIDL's unique ids, made of UID and UIDVALIDITY.

    Owns      UniqueIds
    Limits    70 octets (RFC 1939 §7)
    Errors    ValueError says what is wrong with a format
    Standards RFC 1939 §7, RFC 9051 §2.3.1.1
"""

from __future__ import annotations

import re

_ITEM = re.compile(r"%(0?\d{0,2})(X?)([uv])|%")
_LARGEST = 2**32 - 1


class UniqueIds:
    """A format such as "%08Xu%08Xv": %u is the UID, %v its UIDVALIDITY, X says hexadecimal, digits the width."""

    def __init__(self, pattern: str) -> None:
        if not all("!" <= c <= "~" for c in pattern):
            raise ValueError("may have printable ASCII characters only, no space")
        escaped = pattern.replace("{", "{{").replace("}", "}}")
        items = {m[3] for m in _ITEM.finditer(pattern)}
        if None in items:
            raise ValueError("has a % that is neither %u nor %v")
        if "u" not in items:
            raise ValueError("needs %u: every message must have a name of its own")
        self._format = _ITEM.sub(lambda m: f"{{{m[3]}:{m[1]}{m[2]}}}", escaped)
        if len(self.of(_LARGEST, _LARGEST)) > 70:
            raise ValueError("makes names of more than 70 characters")

    def of(self, uid: int, uidvalidity: int) -> bytes:
        return self._format.format(u=uid, v=uidvalidity).encode()
