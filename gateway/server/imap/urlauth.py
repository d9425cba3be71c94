"""URLs that let others read one message, or a part of it.

Owns      GENURLAUTH, RESETKEY; token_of(), for URLFETCH (urlfetch.py)
Limits    URLS_MAX a command
Security  tokens are HMAC-SHA-256 with a random key of the mailbox; they are compared in constant time
Standards RFC 4467; RFC 5092; RFC 5593 (access identifiers)
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from gateway._native import imap_string
from gateway.protocol.imap.url import BadUrl, message_url
from gateway.server.imap.state import (
    AUTHENTICATED,
    Bad,
    Capability,
    Completed,
    Handler,
    No,
    Outcome,
)

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession

URLS_MAX = 100
MECHANISM = b"INTERNAL"
_VERSION = "01"  # of our tokens


def token_of(key: bytes, rump: bytes) -> str:
    return _VERSION + hmac.new(key, rump, "sha256").hexdigest()


async def cmd_genurlauth(session: ImapSession, command: ImapCommand) -> Outcome:
    """RFC 4467 §7.1."""
    asked = []
    while not command.at_end():
        command.space()
        asked.append(command.astring())
        command.space()
        if command.atom().upper() != MECHANISM:
            raise Bad("INTERNAL is the only mechanism")
        if len(asked) > URLS_MAX:
            raise No(f"{URLS_MAX} URLs at most", b"LIMIT")
    if not asked:
        raise Bad("A URL is missing")
    made = []
    for octets in asked:
        try:
            url = message_url(octets)
            if not url.access or url.token or not url.host or url.mailbox is None:
                raise BadUrl("it needs a host, a mailbox and ;URLAUTH=")
            if url.user != session.account_name:
                raise BadUrl("only the owner gives access to it")
            mailbox = await session.account.mailbox(url.mailbox)
            if url.uidvalidity not in (None, mailbox.uidvalidity):
                raise BadUrl("UIDVALIDITY has changed")
            key = await session.account.url_key(mailbox.id, make=True)
            assert key is not None
        except BadUrl as error:
            raise Bad(f"Not a URL to give access with: {error}") from None
        made.append(imap_string(b"%b:internal:%b" % (octets, token_of(key, url.rump).encode())))
    session.untagged(b"GENURLAUTH " + b" ".join(made))
    return None


async def cmd_resetkey(session: ImapSession, command: ImapCommand) -> Outcome:
    """RFC 4467 §7.2."""
    mailbox: int | None = None
    if not command.at_end():
        command.space()
        name = command.mailbox()
        while not command.at_end():
            command.space()
            if command.atom().upper() != MECHANISM:
                raise Bad("INTERNAL is the only mechanism")
        mailbox = (await session.account.mailbox(name)).id
    await session.account.reset_url_keys(mailbox)
    return Completed("All keys are new", b"URLMECH INTERNAL")


COMMANDS = {
    b"GENURLAUTH": Handler(cmd_genurlauth, AUTHENTICATED, indexed=False),
    b"RESETKEY": Handler(cmd_resetkey, AUTHENTICATED, indexed=False),
}
CAPABILITIES = [Capability(b"URLAUTH")]
