"""APPEND: messages that the client brings.

Owns      APPEND; begin_literal(), new_message(), append_code(), for REPLACE too
Flow      large literals → Upload, as they come → all messages of the command → one transaction → APPENDUID
Limits    service.append_octets a message; what a session holds counts among the store's waiting_octets, beyond that
          messages go to the disk; a client is not read while UPLOAD_OCTETS wait for that
Errors    NO [TRYCREATE], [TOOBIG], [OVERQUOTA], [BADURL]; nothing is added then, of none of the messages
Security  a literal is refused before the client sends it, where it waits for that
Standards RFC 9051 §6.3.12; RFC 3502 (MULTIAPPEND); RFC 4315 (APPENDUID); RFC 4469 (CATENATE); RFC 7889 (APPENDLIMIT);
          RFC 6855 §4 (UTF8); RFC 3516 §4.4; RFC 4314 §4 (rights); RFC 9738 §3.1
"""

from __future__ import annotations

from array import array
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from gateway._native import ImapSyntaxError, format_set
from gateway.mail.imap_rights import NONE
from gateway.protocol.imap.append import AppendMessage, append_messages, append_target
from gateway.server.imap.access import own_name, refuse
from gateway.server.imap.catenate import read_url
from gateway.server.imap.copy import target
from gateway.server.imap.flags import SYSTEM, check_flags
from gateway.server.imap.message_limit import refuse_more
from gateway.server.imap.state import (
    AUTHENTICATED,
    PENDING,
    Bad,
    Capability,
    Completed,
    Handler,
    No,
    Outcome,
)
from gateway.store.errors import NoSuchMailbox, StoreError
from gateway.store.upload import NewMessage, Upload

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.access import Place
    from gateway.server.imap.service import ImapService
    from gateway.server.imap.session import ImapSession
    from gateway.store.model import Delivered

_RIGHTS = {flag.lower(): right for flag, right in SYSTEM}


def cmd_append(session: ImapSession, command: ImapCommand) -> Outcome | Coroutine[Any, Any, Outcome]:
    try:
        command.space()
        name = command.mailbox()
        messages = append_messages(command)
        refuse_more(session, len(messages))
        own = own_name(session, name)
        if own is None or not all(message.is_whole for message in messages):
            return _append(session, name, messages)
        new = [_whole(session, message, message.flags) for message in messages]
    except BaseException:
        session.discard_uploads()
        raise
    answer = session.answer_later()

    def done(delivered: list[Delivered] | StoreError) -> None:
        session.discard_uploads()
        if isinstance(delivered, NoSuchMailbox):
            missing = refuse(own, NONE)
            missing.code = b"TRYCREATE"  # RFC 9051 §6.3.12
            answer(missing)
        elif isinstance(delivered, StoreError):
            answer(delivered)
        else:
            answer(Completed("", append_code(delivered)))

    session.account.append_then(own, new, done, session.own_quota)
    return PENDING


async def _append(session: ImapSession, name: str, messages: list[AppendMessage]) -> Outcome:
    """The same to somebody else's mailbox, and of what has to be put together first."""
    try:
        place = await target(session, name)
        assert place.mailbox is not None
        new = [await new_message(session, place, message) for message in messages]
        quota = await session.quota_of(place.owner)
        delivered = await place.account.append(place.mailbox.id, new, quota)
    finally:
        session.discard_uploads()
    return Completed("", append_code(delivered))


def append_code(delivered: list[Delivered]) -> bytes:
    """APPENDUID (RFC 4315 §3)."""
    uids = array("I", (one.uid for one in delivered))
    return b"APPENDUID %d %b" % (delivered[0].uidvalidity, format_set(uids))


# -- literals as they come -------------------------------------------------------------------------------------------


def begin_literal(session: ImapSession, command: ImapCommand, size: int) -> None:
    """A literal is announced that the command does not hold."""
    service = session.service
    if size > service.append_octets:
        text = f"A message has {service.append_octets} octets at most"
        _refuse(session, No(text, b"TOOBIG"))
        return
    upload = session.account.upload_small(size)
    if upload is None:
        session.later(_begin_large(session, command))
    else:
        session.uploads.append(upload)
        session.machine.accept_literal(upload)


async def _begin_large(session: ImapSession, command: ImapCommand) -> None:
    """Where it is going is known before the client sends it."""
    try:
        place = await target(session, append_target(command))
    except (No, StoreError, ImapSyntaxError) as error:
        _refuse(session, error)
        return
    upload = place.account.upload_large(session.upload_written)
    session.uploads.append(upload)
    session.machine.accept_literal(upload)


def _refuse(session: ImapSession, error: Exception) -> None:
    session.discard_uploads()
    status = b"BAD" if isinstance(error, ImapSyntaxError) else b"NO"
    session.machine.refuse_literal(status, _code(error), str(error))


def _code(error: Exception) -> bytes:
    code = getattr(error, "code", b"")
    return code.encode() if isinstance(code, str) else code


# -- messages --------------------------------------------------------------------------------------------------------


async def new_message(session: ImapSession, place: Place, message: AppendMessage) -> NewMessage:
    """As the store takes it."""
    flags = [flag for flag in message.flags if _RIGHTS.get(flag.lower(), "w") in place.rights]
    if message.is_whole:
        return _whole(session, message, flags)
    return (await _joined(session, place, message)).message(flags, message.internal_date)


def _whole(session: ImapSession, message: AppendMessage, flags: list[str]) -> NewMessage:
    """One that is there in one piece."""
    _check_utf8(session, message)
    octets = message.pieces[0].octets
    upload = isinstance(octets, Upload)
    if not (octets.size if upload else octets):
        raise No("An empty message is not kept")  # RFC 3502 §6.3.11: so a client changes its mind
    if upload:
        new: NewMessage = octets.message(flags, message.internal_date)
        return new
    return NewMessage([octets], None, flags, message.internal_date)


def _check_utf8(session: ImapSession, message: AppendMessage) -> None:
    if message.utf8 and not session.machine.utf8:
        raise Bad("ENABLE UTF8=ACCEPT comes first")  # RFC 6855 §4
    check_flags(message.flags)


async def _joined(session: ImapSession, place: Place, message: AppendMessage) -> Upload:
    """The pieces of CATENATE, one behind the other, in an upload of their own (RFC 4469 §3)."""
    _check_utf8(session, message)
    limit = session.service.append_octets
    joined = place.account.upload_large(session.upload_written)
    session.uploads.append(joined)
    for piece in message.pieces:
        if piece.url is not None:
            async for octets in read_url(session, piece.url):
                joined.write(octets)
                await joined.drained()
        elif isinstance(piece.octets, Upload):
            async for octets in piece.octets.read():
                joined.write(octets)
                await joined.drained()
        else:
            joined.write(piece.octets)
        if joined.size > limit:
            raise No(f"A message has {limit} octets at most", b"TOOBIG")
    if not joined.size:
        raise No("An empty message is not kept")
    return joined


def _append_limit(service: ImapService) -> bytes:
    return b"APPENDLIMIT=%d" % service.append_octets


COMMANDS = {b"APPEND": Handler(cmd_append, AUTHENTICATED, indexed=False, literal=begin_literal)}
CAPABILITIES = [
    Capability(b"MULTIAPPEND"),
    Capability(b"CATENATE"),
    Capability(_append_limit),
]
