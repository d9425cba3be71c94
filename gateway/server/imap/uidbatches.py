"""UIDBATCHES: ranges of UIDs with as many messages each as the client asks for.

Owns      UIDBATCHES
Flow      size → sequence numbers where batches end → their UIDs, looked up in the chunks of the view
Limits    BATCH_MESSAGES_MIN; with messages_per_command a batch is what one command can be about
Errors    NO [TOOFEW] for smaller batches; BAD [CLIENTBUG] for a range that is upside down
Standards RFC 10022
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway._native import imap_string
from gateway.server.imap.state import SELECTED, Bad, Capability, Handler, No, Outcome

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.view import View

BATCH_MESSAGES_MIN = 500  # RFC 10022 §3.1.3: a client may always ask for so many


def cmd_uidbatches(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    size = command.nz_number()
    first, last = 1, 2**32
    if not command.at_end():
        command.space()
        first = last = command.nz_number()
        if not command.at_end():
            command.expect(b":")
            last = command.nz_number()
    command.end()
    if last < first:
        raise Bad("The first batch comes first", b"CLIENTBUG")
    if size < BATCH_MESSAGES_MIN:
        raise No(f"A batch has {BATCH_MESSAGES_MIN} messages at least", b"TOOFEW")
    limit = session.service.config.messages_per_command
    if limit:
        size = min(size, limit)
    assert session.selected is not None
    line = b"UIDBATCHES (TAG %b)" % imap_string(command.tag)
    found = batches(session.selected.view, size, first, last)
    if found:
        line += b" " + b",".join(b"%d:%d" % batch for batch in found)
    session.untagged(line)
    return None


def batches(view: View, size: int, first: int, last: int) -> list[tuple[int, int]]:
    """(highest UID, lowest UID) of batch first to last, the newest is number 1; together they leave no UID out."""
    last = min(last, -(-view.count // size))
    found = []
    high = 0
    for batch in range(first, last + 1):
        if not high:
            # What the batch before, which was not asked for, leaves.
            high = view.last_uid if batch == 1 else view.uid_of(view.count - (batch - 1) * size + 1) - 1
        rest = view.count - batch * size  # messages that are older
        low = view.uid_of(rest + 1) if rest > 0 else 1
        found.append((high, low))
        high = low - 1
    return found


COMMANDS = {b"UIDBATCHES": Handler(cmd_uidbatches, SELECTED)}
CAPABILITIES = [Capability(b"UIDBATCHES")]
