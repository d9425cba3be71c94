"""Which flags a mailbox has, and which of them the client may change.

Owns      SYSTEM, check_flags(), announce_flags(), flags_lines()
Standards RFC 9051 §2.3.2, §7.3.5 (FLAGS), §7.1 (PERMANENTFLAGS); RFC 4314 §5.1.1
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gateway.server.imap.state import Bad
from gateway.store.model import KEYWORDS_MAX, SYSTEM_FLAGS_LOWER

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.state import Selected

# The system flags, and the right that changing each needs.
SYSTEM = (("\\Answered", "w"), ("\\Flagged", "w"), ("\\Deleted", "t"), ("\\Seen", "s"), ("\\Draft", "w"))


def check_flags(flags: Iterable[str]) -> None:
    """Raises Bad for what looks like a system flag and is none, or is not the client's to set: \\Recent."""
    for flag in flags:
        if flag.startswith("\\") and flag.lower() not in SYSTEM_FLAGS_LOWER:
            raise Bad("There is no such system flag, or it cannot be set")


def announce_flags(session: ImapSession, selected: Selected) -> None:
    """FLAGS and PERMANENTFLAGS, when there are new keywords."""
    selected.view.keywords_told = len(selected.mailbox.keywords)
    for line in flags_lines(selected):
        session.untagged(line)


def flags_lines(selected: Selected) -> tuple[bytes, bytes]:
    """FLAGS and PERMANENTFLAGS as they are now."""
    keywords = selected.mailbox.keywords
    rights = selected.place.rights
    lasting: list[str] = []
    if not selected.read_only:
        lasting = [flag for flag, right in SYSTEM if right in rights]
        if "w" in rights:
            lasting += keywords
            if len(keywords) < KEYWORDS_MAX:
                lasting.append("\\*")
    return (
        b"FLAGS (%b)" % " ".join([*(flag for flag, _ in SYSTEM), *keywords]).encode(),
        b"OK [PERMANENTFLAGS (%b)] Limited" % " ".join(lasting).encode(),
    )
