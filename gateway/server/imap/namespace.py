"""NAMESPACE: where the user's own, other users' and shared mailboxes are.

Owns      NAMESPACE
Standards RFC 9051 §6.3.10, RFC 2342
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.protocol.imap.response import mailbox_octets
from gateway.server.imap.access import prefixes
from gateway.server.imap.state import AUTHENTICATED, Capability, Handler, Outcome
from gateway.store.names import SEPARATOR

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession


def cmd_namespace(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    paths = prefixes(session.service.config)
    shared = paths.shared if paths.shared_account != session.account_name else ""
    parts = [b'(("" "/"))']
    for top in (paths.others, shared):
        if top:
            name = mailbox_octets(f"{top}{SEPARATOR}", session.machine.utf8)
            parts.append(b'((%b "/"))' % name)
        else:
            parts.append(b"NIL")
    session.untagged(b"NAMESPACE " + b" ".join(parts))
    return None


COMMANDS = {b"NAMESPACE": Handler(cmd_namespace, AUTHENTICATED, indexed=False)}
CAPABILITIES = [Capability(b"NAMESPACE")]
