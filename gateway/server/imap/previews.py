"""The previews of messages that clients asked for lately.

Owns      Previews
Limits    OCTETS_MAX of a worker's memory; the ones that nobody asked for longest are forgotten
Blocking  never
Standards RFC 8970 §3 (a preview may be kept: a message does not change)

To make one costs 80 us, to keep it in a table a transaction of twice as much, and to make it at delivery those 80 us
for every message, most of which are never asked about: so they stay in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

OCTETS_MAX = 4 << 20  # some 10,000 of them
OVERHEAD_OCTETS = 200  # of each: its key and its place

# The account, the mailbox's UIDVALIDITY (an account that was removed and made again has another one).
Where = tuple[str, int]


class Previews:
    """Of one worker."""

    def __init__(self, octets_max: int = OCTETS_MAX) -> None:
        self._octets_max = octets_max
        self._octets = 0
        self._found: dict[tuple[Where, int], bytes] = {}  # the longest unused first

    def find(self, where: Where, keys: Sequence[int]) -> list[bytes] | None:
        """As they are sent; None when one of them has to be made.  keys: Record.message."""
        found = self._found
        values = []
        for key in keys:
            value = found.pop((where, key), None)
            if value is None:
                return None
            found[where, key] = value
            values.append(value)
        return values

    def keep(self, where: Where, keys: array[int], values: Sequence[bytes]) -> None:
        """What was made, in the order of the keys."""
        found = self._found
        for key, value in zip(keys, values, strict=True):
            before = found.pop((where, key), None)
            if before is not None:
                self._octets -= len(before) + OVERHEAD_OCTETS
            found[where, key] = value
            self._octets += len(value) + OVERHEAD_OCTETS
        while self._octets > self._octets_max:
            self._octets -= len(found.pop(next(iter(found)))) + OVERHEAD_OCTETS
