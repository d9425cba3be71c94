"""What the server announces, in this state of this session.

Owns      capabilities()
Flow      CAPABILITIES of every module → those that are on → one line, made once for each service and state
Standards RFC 9051 §6.1.1, §7.2.2; RFC 8437 (what UNAUTHENTICATE takes back)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.server.imap.commands import MODULES
from gateway.server.imap.state import ANY, AUTHENTICATED, IN_NOT_AUTHENTICATED, Capability

if TYPE_CHECKING:
    from gateway.server.imap.service import ImapService
    from gateway.server.imap.session import ImapSession

BASE = (
    Capability(b"IMAP4rev2", states=ANY),
    Capability(b"IMAP4rev1", states=ANY),
)


def capabilities(session: ImapSession) -> bytes:
    """The names, separated by space; what STARTTLS and a login would change is up to date."""
    service = session.service
    if session.account is not None:
        return service.announced.get(AUTHENTICATED) or _fixed(service, AUTHENTICATED)
    offered = (session.may_start_tls, session.passwords, session.mechanisms)
    line = service.announced.get(offered)
    if line is None:
        words = [_fixed(service, IN_NOT_AUTHENTICATED)]
        if session.may_start_tls:
            words.append(b"STARTTLS")
        words += [b"AUTH=" + name.encode() for name in session.mechanisms]
        if not session.passwords:
            words.append(b"LOGINDISABLED")  # RFC 9051 §6.2.3
        line = service.announced[offered] = b" ".join(words)
    return line


def _fixed(service: ImapService, state: int) -> bytes:
    line = service.announced.get(state)
    if line is None:
        words = []
        offered = [*BASE, *(one for module in MODULES for one in getattr(module, "CAPABILITIES", ()))]
        for name, when, states in offered:
            if states & state and (when is None or when(service)):
                word = name if isinstance(name, bytes) else name(service)
                if word:
                    words.append(word)
        line = service.announced[state] = b" ".join(words)
    return line
