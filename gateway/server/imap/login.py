"""Who the client is, and what it wants of the connection: the commands that need no mailbox.

Owns      CAPABILITY, NOOP, LOGOUT, ID, STARTTLS, AUTHENTICATE, LOGIN, UNAUTHENTICATE, ENABLE, COMPRESS
Flow      AUTHENTICATE and LOGIN → server/login.py; the tagged line comes with its answer
Security  names and passwords are not logged; nothing that was sent before TLS counts (RFC 9051 §11.1)
Standards RFC 9051 §6.1, §6.2, §6.3.1; RFC 2971 (ID), RFC 4959 (SASL-IR), RFC 4978 (COMPRESS), RFC 5161 (ENABLE),
          RFC 8437 (UNAUTHENTICATE)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway._native import imap_nstring
from gateway.server.imap.state import (
    ANY,
    AUTHENTICATED,
    NOT_AUTHENTICATED,
    PENDING,
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

ID_FIELDS_MAX = 30  # RFC 2971 §3.3
ID_LOGGED = (b"name", b"version", b"os", b"vendor")
ID_LOGGED_OCTETS = 64

# What ENABLE can do (RFC 5161): a word, and what comes with it.
EXTENSIONS: dict[bytes, tuple[bytes, ...]] = {
    b"CONDSTORE": (),
    b"QRESYNC": (b"CONDSTORE",),  # RFC 7162 §3.2.3
    b"IMAP4REV2": (),
    b"UTF8=ACCEPT": (),
    b"UIDONLY": (),
}


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
    session.complete(b"OK", None)
    session.machine.stop()
    return PENDING


def cmd_id(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    fields: dict[bytes, bytes] = {}
    if not command.accept(b"NIL"):
        command.expect(b"(")
        while not command.accept(b")"):
            if fields:
                command.space()
            if len(fields) == ID_FIELDS_MAX:
                raise Bad(f"At most {ID_FIELDS_MAX} fields")
            name = command.string().lower()
            command.space()
            fields[name] = command.nstring() or b""
    command.end()
    told = {
        f"client_{name.decode()}": fields[name][:ID_LOGGED_OCTETS].decode(errors="replace")
        for name in ID_LOGGED
        if fields.get(name)
    }
    if told:
        service = session.service
        service.log.event(
            "client_id", session=session.session_id, service=service.name, account=session.account_name, **told
        )
    ours = [b"name", b"mail-gateway"]
    if session.account is not None:  # not before: it would help somebody choose an attack
        ours += [b"version", session.service.version.encode()]
    session.untagged(b"ID (" + b" ".join(map(imap_nstring, ours)) + b")")
    return None


# -- TLS ---------------------------------------------------------------------------------------------------------------


def cmd_starttls(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    if not session.may_start_tls:
        raise Bad("TLS is not available here" if session.peer.tls is False else "TLS is active already")
    if session.service.tls is None or session.service.tls.server is None:
        raise No("TLS is not available now", b"UNAVAILABLE")
    if session.machine.unread_octets:  # CVE-2011-0411: sent in the clear, meant to count as sent under TLS
        raise Bad("Nothing may follow STARTTLS before the answer")
    session.complete(b"OK", Completed("Begin TLS"))
    session.start_tls()
    return PENDING


# -- logins ------------------------------------------------------------------------------------------------------------


def cmd_login(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    user = command.astring()
    command.space()
    password = command.astring()
    command.end()
    session.check_password(user.decode(errors="replace"), password.decode(errors="replace"))
    return PENDING


def cmd_authenticate(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    mechanism = command.atom().decode("ascii", "replace")
    session.exchange(mechanism, command.initial_response())
    return PENDING


def cmd_unauthenticate(session: ImapSession, command: ImapCommand) -> Outcome:
    command.end()
    session.sign_out()
    session.complete(b"OK", None)
    if session.machine.compressed:  # RFC 8437 §4.1: it ends with this line
        session.machine.uncompress()
    return PENDING


# -- what the client understands ---------------------------------------------------------------------------------------


def cmd_enable(session: ImapSession, command: ImapCommand) -> Outcome:
    words = []
    while not command.at_end():
        command.space()
        words.append(command.atom().upper())
    if not words:
        raise Bad("Enable what?")
    new = []
    for word in words:
        if word in EXTENSIONS and word not in session.enabled:
            session.enable(word)
            for other in EXTENSIONS[word]:
                session.enable(other)
            new.append(word)
    session.untagged(b" ".join([b"ENABLED", *new]))
    return None


def cmd_compress(session: ImapSession, command: ImapCommand) -> Outcome:
    command.space()
    mechanism = command.atom().upper()
    command.end()
    if mechanism != b"DEFLATE":
        raise Bad("Only DEFLATE is known")
    if session.machine.compressed:
        raise No("Compression is active already", b"COMPRESSIONACTIVE")  # RFC 4978 §3
    session.complete(b"OK", Completed("DEFLATE active"))
    session.machine.compress()
    return PENDING


COMMANDS = {
    b"CAPABILITY": Handler(cmd_capability, ANY, indexed=False),
    b"NOOP": Handler(cmd_noop, ANY, indexed=False),
    b"LOGOUT": Handler(cmd_logout, ANY, indexed=False),
    b"ID": Handler(cmd_id, ANY, indexed=False),
    b"STARTTLS": Handler(cmd_starttls, NOT_AUTHENTICATED),
    b"LOGIN": Handler(cmd_login, NOT_AUTHENTICATED),
    b"AUTHENTICATE": Handler(cmd_authenticate, NOT_AUTHENTICATED),
    b"UNAUTHENTICATE": Handler(cmd_unauthenticate, AUTHENTICATED, indexed=False),
    b"ENABLE": Handler(cmd_enable, AUTHENTICATED, indexed=False),
    b"COMPRESS": Handler(cmd_compress, AUTHENTICATED, indexed=False),
}
CAPABILITIES = [
    Capability(b"SASL-IR", states=ANY),
    Capability(b"LITERAL+", states=ANY),
    Capability(b"ID", states=ANY),
    Capability(b"ENABLE", states=ANY),
    Capability(b"UNAUTHENTICATE"),
    Capability(b"COMPRESS=DEFLATE"),
    Capability(b"UTF8=ACCEPT"),
    Capability(b"INPROGRESS"),
]
