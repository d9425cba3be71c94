"""URLFETCH: the octets that a URL of GENURLAUTH lets others read.

Owns      URLFETCH
Flow      URL → whom it is for → token → open_url() → its octets, as they are, or decoded, and their structure
Limits    URLS_MAX a command; large messages go out in slices
Errors    NIL for whatever must not or cannot be read, and not why (RFC 4467 §7.3)
Security  the token is compared in constant time, after it is clear that the URL is for this client; a "submit+" URL is
          for submission servers, whose accounts are imap.submit_users: we have no BURL ourselves
Standards RFC 4467; RFC 5092; RFC 5593 (access identifiers); RFC 5550 §3.7 (URL-PARTIAL); RFC 5524 (URLAUTH=BINARY)
"""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING

import msgspec

from gateway._native import imap_string
from gateway.mail.imap_facts import BODYSTRUCTURE, section
from gateway.mail.part_structure import decoded_structure, part_structure
from gateway.mail.sections import UnknownEncoding
from gateway.protocol.imap.url import BadUrl, MessageUrl, message_url
from gateway.server.imap.catenate import UrlOctets, open_url
from gateway.server.imap.state import AUTHENTICATED, Bad, Capability, Handler, No, Outcome
from gateway.server.imap.urlauth import MECHANISM, URLS_MAX, token_of
from gateway.store.errors import StoreError

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession

STRUCTURE, BINARY, BODY = b"BODYPARTSTRUCTURE", b"BINARY", b"BODY"


class Asked(msgspec.Struct, frozen=True):
    """A URL as it was sent, and in which forms it is wanted; (): as RFC 4467 has it."""

    url: bytes
    forms: tuple[bytes, ...] = ()


async def cmd_urlfetch(session: ImapSession, command: ImapCommand) -> Outcome:
    asked: list[Asked] = []
    while not command.at_end():
        command.space()
        asked.append(_asked(command))
        if len(asked) > URLS_MAX:
            raise No(f"{URLS_MAX} URLs at most", b"LIMIT")
    if not asked:
        raise Bad("A URL is missing")
    for one in asked:
        await _tell(session, one)
    return None


def _asked(command: ImapCommand) -> Asked:
    """RFC 5524 §5: url-fetch-arg."""
    if not command.accept(b"("):
        return Asked(command.astring())
    url = command.astring()
    forms: list[bytes] = []
    while not command.accept(b")"):
        command.space()
        form = command.word()
        if form not in (STRUCTURE, BINARY, BODY):
            raise Bad("BODYPARTSTRUCTURE, BINARY or BODY expected")
        if form in forms or {form, *forms} >= {BINARY, BODY}:  # RFC 5524 §3.1
            raise Bad("A form is asked for once, and BINARY without BODY")
        forms.append(form)
    return Asked(url, tuple(forms))


async def _tell(session: ImapSession, asked: Asked) -> None:
    """The response for one URL."""
    label = b"* URLFETCH " + imap_string(asked.url)
    opened: UrlOctets | None = None
    try:
        url = message_url(asked.url)
        opened = await _opened(session, url, decoded=BINARY in asked.forms)
        structure = _structure(opened, url) if STRUCTURE in asked.forms else b""
    except (BadUrl, StoreError):
        if opened is not None:
            opened.close()
        session.send(label, b" NIL\r\n")
        return
    except UnknownEncoding:  # RFC 5524 §3.2: that form alone cannot be had
        opened = None
        structure = b""
        if STRUCTURE in asked.forms:
            with_structure = await _opened(session, url)
            structure = _structure(with_structure, url)
            with_structure.close()
    try:
        session.mid_response = True
        session.send(label)
        if structure:
            session.send(b" (BODYPARTSTRUCTURE ", structure, b")")
        await _tell_octets(session, opened, asked.forms)
        session.send(b"\r\n")
    except StoreError as broken:
        session.break_off(broken)
        raise
    finally:
        session.mid_response = False
        if opened is not None:
            opened.close()


async def _tell_octets(session: ImapSession, opened: UrlOctets | None, forms: tuple[bytes, ...]) -> None:
    """opened: None when there is no decoding them."""
    if forms == (STRUCTURE,):
        return
    word, close = (b" (" + (BINARY if BINARY in forms else BODY) + b" ", b")") if forms else (b" ", b"")
    if opened is None:
        session.send(word, b"NIL", close)
        return
    session.send(word, b"%b{%d}\r\n" % (b"~" if opened.has_nul else b"", opened.size))
    async for piece in opened.read():
        session.send(piece if BINARY in forms else piece.replace(b"\0", b"\x80"))  # as FETCH does
        await session.drained()
    session.send(close)


def _structure(opened: UrlOctets, url: MessageUrl) -> bytes:
    """Of the part that the URL names, as its octets are told.  Raises BadUrl."""
    found = part_structure(section(opened.facts, BODYSTRUCTURE), url.section.path)
    if found is None:
        raise BadUrl("no such part")
    return decoded_structure(found, *opened.whole) if opened.whole else found


async def _opened(session: ImapSession, url: MessageUrl, *, decoded: bool = False) -> UrlOctets:
    """Raises BadUrl and StoreError for all that must not be read, UnknownEncoding for what cannot be decoded."""
    if url.mechanism != MECHANISM.decode() or not url.user or url.mailbox is None:
        raise BadUrl("no URLAUTH")
    if not _is_for(session, url.access.lower()):
        raise BadUrl("for others")
    if url.expires is not None and url.expires < time.time():
        raise BadUrl("expired")
    account = session.service.store.account(url.user, create=False)
    mailbox = await account.mailbox(url.mailbox)
    key = await account.url_key(mailbox.id)
    if key is None or not hmac.compare_digest(token_of(key, url.rump), url.token):
        raise BadUrl("not ours")
    opened = await open_url(account, mailbox.id, mailbox.uidvalidity, url, decoded=decoded)
    if decoded:
        try:
            await opened.decode(url.start, url.count)
        except BaseException:
            opened.close()
            raise
    return opened


def _is_for(session: ImapSession, access: str) -> bool:
    """RFC 4467 §3: every session of ours belongs to somebody; who submits for others, the configuration says."""
    if access.startswith("submit+"):
        return session.account_name in session.service.config.submit_users
    return access in ("anonymous", "authuser", f"user+{session.account_name.lower()}")


COMMANDS = {b"URLFETCH": Handler(cmd_urlfetch, AUTHENTICATED, indexed=False)}
CAPABILITIES = [Capability(b"URLAUTH=BINARY"), Capability(b"URL-PARTIAL")]
