"""Which messages a client that was away does not have any more.

Owns      vanished_since()
Standards RFC 7162 §3.2.6 (FETCH with VANISHED), §3.2.5.1 (QRESYNC), §3.2.10 (VANISHED)
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from gateway._native import format_ranges
from gateway.store.model import ranges_of

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession


async def vanished_since(session: ImapSession, modseq: int, wanted: bytes) -> None:
    """Tell by VANISHED (EARLIER) which UIDs of the ranges were expunged after modseq.

    Where the store's history does not go back so far, all UIDs of the ranges that are not there (RFC 7162 §3.2.6).
    """
    selected = session.selected
    assert selected is not None
    view = selected.view
    changes = await selected.place.account.changes(view.mailbox.id, modseq)
    if changes.complete:
        gone = common_ranges(changes.expunged, wanted)
    else:
        gone = common_ranges(wanted, array("I", (1, view.mailbox.uidnext - 1)).tobytes())
    gone = without(gone, ranges_of(array("I", view.uids_of(gone))))
    if gone:
        session.untagged(b"VANISHED (EARLIER) " + format_ranges(gone))


def common_ranges(one: bytes, other: bytes) -> bytes:
    """What is in both; all ranges ascend and are apart."""
    a, b = array("I", one), array("I", other)
    found = array("I")
    i = j = 0
    while i < len(a) and j < len(b):
        first, last = max(a[i], b[j]), min(a[i + 1], b[j + 1])
        if first <= last:
            found.extend((first, last))
        if a[i + 1] < b[j + 1]:
            i += 2
        else:
            j += 2
    return found.tobytes()


def without(ranges: bytes, others: bytes) -> bytes:
    """What is in the first ranges and not in the others."""
    a, b = array("I", ranges), array("I", others)
    found = array("I")
    j = 0
    for i in range(0, len(a), 2):
        first, last = a[i], a[i + 1]
        while j < len(b) and b[j + 1] < first:
            j += 2
        k = j
        while k < len(b) and b[k] <= last:
            if b[k] > first:
                found.extend((first, b[k] - 1))
            first = b[k + 1] + 1
            k += 2
        if first <= last:
            found.extend((first, last))
    return found.tobytes()
