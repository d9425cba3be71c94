"""GETMETADATA and SETMETADATA: annotations of mailboxes and of the server.

Owns      GETMETADATA, SETMETADATA; metadata_response(), may_annotate()
Flow      /private entries belong to the user who set them, whoever owns the mailbox; /shared ones to the mailbox.
          Those of the server: /private ones are kept in the user's own account, /shared ones are the configuration's
Limits    config.metadata_octets, metadata_entries, metadata_account_octets
Errors    No: METADATA MAXSIZE, TOOMANY, NOPERM …
Standards RFC 5464, RFC 6154 §4 (/private/specialuse)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gateway._native import imap_nstring
from gateway.protocol.imap.metadata import below, parse_getmetadata, parse_setmetadata
from gateway.protocol.imap.notify import MAILBOX_METADATA_CHANGE, SERVER_METADATA_CHANGE
from gateway.protocol.imap.response import mailbox_octets
from gateway.server.imap.access import Place, refuse
from gateway.server.imap.state import AUTHENTICATED, Capability, Completed, Handler, No, Outcome
from gateway.store.annotation import PRIVATE, SHARED, TooMany
from gateway.store.mailboxes import SPECIAL_USES

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession

SERVER = 0  # the mailbox of the server's entries
SPECIAL_USE = "/private/specialuse"


def may_annotate(rights: frozenset[str]) -> bool:
    """RFC 5464 §3.3."""
    return "l" in rights and bool(rights & set("rswip"))


def metadata_response(name: bytes, values: Mapping[str, bytes | None]) -> bytes:
    """The whole response; name: as mailbox_octets() made it."""
    pairs = [
        b"%b %b" % (entry_octets(entry), _value_octets(value)) for entry, value in values.items()
    ]
    return b"* METADATA %b (%b)\r\n" % (name, b" ".join(pairs))


def entry_octets(entry: str) -> bytes:
    """As an astring."""
    octets = entry.encode()
    return b'"%b"' % octets if b" " in octets else octets


def _value_octets(value: bytes | None) -> bytes:
    if value is not None and b"\0" in value:  # RFC 5464 §5: literal8
        return b"~{%d}\r\n%b" % (len(value), value)
    return imap_nstring(value)


async def cmd_getmetadata(session: ImapSession, command: ImapCommand) -> Outcome:
    request = parse_getmetadata(command)
    known = await _known(session, request.mailbox)
    found = {
        name: value
        for name, value in sorted(known.items())
        if any(below(name, entry, request.depth) for entry in request.entries)
    }
    longest = 0
    if request.maxsize is not None:
        longest = max((len(v) for v in found.values() if len(v) > request.maxsize), default=0)
        found = {name: value for name, value in found.items() if len(value) <= request.maxsize}
    values: dict[str, bytes | None] = dict(found)
    if (
        request.depth == 0
    ):  # §4.2: there is a response; what does not exist is NIL, as in RFC 9590 §3
        values |= {entry: None for entry in request.entries if entry not in known}
    if values:
        session.send(
            metadata_response(mailbox_octets(request.mailbox, session.machine.utf8), values)
        )
    if longest:
        return Completed("", b"METADATA LONGENTRIES %d" % longest)
    return None


async def _known(session: ImapSession, mailbox: str) -> dict[str, bytes]:
    user = session.account_name
    if not mailbox:
        own = await session.account.annotations(SERVER, user)
        known = {one.entry: one.value for one in own if one.entry.startswith(PRIVATE)}
        config = session.service.config
        for entry, text in (("/shared/comment", config.comment), ("/shared/admin", config.admin)):
            if text:
                known[entry] = text.encode()
        return known
    place = await _place(session, mailbox)
    assert place.mailbox is not None
    known = {
        one.entry: one.value for one in await place.account.annotations(place.mailbox.id, user)
    }
    if place.is_of(user) and place.mailbox.special_use:
        known[SPECIAL_USE] = " ".join(place.mailbox.special_use).encode()
    return known


async def _place(session: ImapSession, mailbox: str) -> Place:
    place = await session.place(mailbox)
    if place.mailbox is None or not may_annotate(place.rights):
        raise refuse(mailbox, place.rights if place.mailbox is not None else frozenset())
    return place


async def cmd_setmetadata(session: ImapSession, command: ImapCommand) -> Outcome:
    mailbox, values = parse_setmetadata(command)
    config = session.service.config
    for value in values.values():
        if value is not None and len(value) > config.metadata_octets:
            raise No("An annotation is too long", b"METADATA MAXSIZE %d" % config.metadata_octets)
    user = session.account_name
    special_use: str | None = None
    if not mailbox:
        if any(entry.startswith(SHARED) for entry in values):
            raise No("The server's shared annotations are read-only", b"NOPERM")
        account, number = session.account, SERVER
    else:
        place = await _place(session, mailbox)
        assert place.mailbox is not None
        if "w" not in place.rights and any(entry.startswith(SHARED) for entry in values):
            raise refuse(mailbox, place.rights)
        account, number = place.account, place.mailbox.id
        if SPECIAL_USE in values:
            if not place.is_of(user):
                raise No("Only its owner says what a mailbox is for", b"NOPERM")
            special_use = _uses(values.pop(SPECIAL_USE))
    if session.notify is not None:
        kind = MAILBOX_METADATA_CHANGE if mailbox else SERVER_METADATA_CHANGE
        session.notify.expect(kind, mailbox)
    try:
        if values:
            await account.set_annotations(
                number, user, values, config.metadata_entries, config.metadata_account_octets
            )
    except TooMany as error:
        raise No(str(error), b"METADATA TOOMANY") from None
    if special_use is not None:
        await account.set_special_use(place.name, special_use.split())
    return None


def _uses(value: bytes | None) -> str:
    """RFC 6154 §4: words as the attributes have them."""
    words = (value or b"").decode("ascii", "replace").split()
    known = {use.lower(): use for use in SPECIAL_USES}
    for word in words:
        if word.lower() not in known:
            raise No(f"A mailbox's use is one of {' '.join(SPECIAL_USES)}", b"USEATTR")
    return " ".join(known[word.lower()] for word in words)


COMMANDS = {
    b"GETMETADATA": Handler(cmd_getmetadata, AUTHENTICATED, indexed=False),
    b"SETMETADATA": Handler(cmd_setmetadata, AUTHENTICATED, indexed=False),
}
CAPABILITIES = [Capability(b"METADATA")]
