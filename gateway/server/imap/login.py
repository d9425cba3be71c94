"""Who the client is, and what there is: the commands that need no mailbox.

Owns      CAPABILITY, NOOP, LOGOUT, LOGIN
Standards RFC 9051 §6.1, §6.2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.server.imap.state import ANY, PENDING, Completed, Handler, Outcome

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession


def cmd_capability(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    session.untagged(b"CAPABILITY " + session.capabilities())
    return None


def cmd_noop(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    return None


def cmd_logout(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    session.untagged(b"BYE Logging out")
    session.complete(b"OK", Completed("LOGOUT completed"))
    session.machine.stop()
    return PENDING


COMMANDS = {
    b"CAPABILITY": Handler(cmd_capability, ANY, indexed=False),
    b"NOOP": Handler(cmd_noop, ANY, indexed=False),
    b"LOGOUT": Handler(cmd_logout, ANY, indexed=False),
}
