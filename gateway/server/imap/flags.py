"""Which flags a mailbox has, and which of them the client may change.

Owns      SYSTEM, announce_flags()
Standards RFC 9051 §2.3.2, §7.3.5 (FLAGS), §7.1 (PERMANENTFLAGS); RFC 4314 §5.1.1
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.store.model import KEYWORDS_MAX

if TYPE_CHECKING:
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.state import Selected

# The system flags, and the right that changing each needs.
SYSTEM = (("\\Answered", "w"), ("\\Flagged", "w"), ("\\Deleted", "t"), ("\\Seen", "s"), ("\\Draft", "w"))


def announce_flags(session: ImapSession, selected: Selected) -> None:
    """FLAGS and PERMANENTFLAGS, at SELECT and when there are new keywords."""
    keywords = selected.mailbox.keywords
    rights = selected.place.rights
    selected.view.keywords_told = len(keywords)
    session.untagged(b"FLAGS (%b)" % " ".join([*(flag for flag, _ in SYSTEM), *keywords]).encode())
    lasting: list[str] = []
    if not selected.read_only:
        lasting = [flag for flag, right in SYSTEM if right in rights]
        if "w" in rights:
            lasting += keywords
            if len(keywords) < KEYWORDS_MAX:
                lasting.append("\\*")
    session.untagged(b"OK [PERMANENTFLAGS (%b)] Limited" % " ".join(lasting).encode())
