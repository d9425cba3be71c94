"""IDLE: the client waits for what changes.

Owns      IDLE
Flow      begin → the watch tells the session → updates → DONE.  No task and no timer belongs to a session that waits:
          the sweep of all deadlines says "Still here"
Standards RFC 9051 §6.3.13, RFC 2177
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.server.imap import updates
from gateway.server.imap.state import AUTHENTICATED, PENDING, Capability, Handler, Outcome

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession


def cmd_idle(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    session.machine.begin_idle()
    session.idling = True
    session.idle_since = time.monotonic()
    if session.selected is not None:
        watch = session.selected.view.watch
        watch.tell(session)
        session.poll()
        if not watch.is_stale:  # else it tells soon
            updates.report(session)
    return PENDING


COMMANDS = {b"IDLE": Handler(cmd_idle, AUTHENTICATED, indexed=False)}
CAPABILITIES = [Capability(b"IDLE")]
