"""URLs that let others read one message, or a part of it.

Owns      GENURLAUTH, URLFETCH, RESETKEY
Limits    URLS_MAX a command; large messages go out in slices
Errors    URLFETCH answers NIL to whatever must not or cannot be read, and does not tell why (RFC 4467 §7.3)
Security  tokens are HMAC-SHA-256 with a random key of the mailbox; they are compared in constant time
Standards RFC 4467; RFC 5092; RFC 5593 (access identifiers); RFC 5550 §3.7 (URL-PARTIAL)
Bugs      "submit+" URLs are good for nobody: no submission server of ours fetches them
"""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING

from gateway._native import imap_string
from gateway.protocol.imap.url import BadUrl, MessageUrl, message_url
from gateway.server.imap.catenate import UrlOctets, open_url
from gateway.server.imap.state import (
    AUTHENTICATED,
    Bad,
    Capability,
    Completed,
    Handler,
    No,
    Outcome,
)
from gateway.store.errors import StoreError

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession

URLS_MAX = 100
MECHANISM = b"INTERNAL"
_VERSION = "01"  # of our tokens


def _token(key: bytes, rump: bytes) -> str:
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
        made.append(imap_string(b"%b:internal:%b" % (octets, _token(key, url.rump).encode())))
    session.untagged(b"GENURLAUTH " + b" ".join(made))
    return None


async def cmd_urlfetch(session: ImapSession, command: ImapCommand) -> Outcome:
    """RFC 4467 §7.3."""
    asked = []
    while not command.at_end():
        command.space()
        asked.append(command.astring())
        if len(asked) > URLS_MAX:
            raise No(f"{URLS_MAX} URLs at most", b"LIMIT")
    if not asked:
        raise Bad("A URL is missing")
    for octets in asked:
        label = b"* URLFETCH %b " % imap_string(octets)
        try:
            opened = await _opened(session, message_url(octets))
        except (BadUrl, StoreError):
            session.send(label, b"NIL\r\n")
            continue
        try:
            session.mid_response = True
            session.send(label, b"{%d}\r\n" % opened.size)
            async for piece in opened.read():
                session.send(piece)
                await session.drained()
            session.send(b"\r\n")
        except StoreError as broken:
            session.break_off(broken)
            raise
        finally:
            session.mid_response = False
            opened.close()
    return None


async def _opened(session: ImapSession, url: MessageUrl) -> UrlOctets:
    """Raises BadUrl and StoreError for all that must not be read."""
    if url.mechanism != MECHANISM.decode() or not url.user or url.mailbox is None:
        raise BadUrl("no URLAUTH")
    if not _is_for(session, url.access.lower()):
        raise BadUrl("for others")
    if url.expires is not None and url.expires < time.time():
        raise BadUrl("expired")
    account = session.service.store.account(url.user, create=False)
    mailbox = await account.mailbox(url.mailbox)
    key = await account.url_key(mailbox.id)
    if key is None or not hmac.compare_digest(_token(key, url.rump), url.token):
        raise BadUrl("not ours")
    return await open_url(account, mailbox.id, mailbox.uidvalidity, url)


def _is_for(session: ImapSession, access: str) -> bool:
    """RFC 4467 §3: every session of ours belongs to somebody."""
    return access in ("anonymous", "authuser", f"user+{session.account_name.lower()}")


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
    b"URLFETCH": Handler(cmd_urlfetch, AUTHENTICATED, indexed=False),
    b"RESETKEY": Handler(cmd_resetkey, AUTHENTICATED, indexed=False),
}
CAPABILITIES = [Capability(b"URLAUTH"), Capability(b"URL-PARTIAL")]
