"""IMAP URLs that name (a part of) a message: for CATENATE, GENURLAUTH and URLFETCH.

Owns      MessageUrl, message_url()
Errors    BadUrl
Limits    URL_OCTETS_MAX
Standards RFC 5092 §5, §6; RFC 4467 §3 (EXPIRE, URLAUTH); RFC 5550 §3.7 (PARTIAL)
"""

from __future__ import annotations

import re
from calendar import timegm
from datetime import datetime
from urllib.parse import unquote_to_bytes

import msgspec

from gateway._native import ImapSyntaxError
from gateway.protocol.imap.fetch import MESSAGE, Section, section_of

URL_OCTETS_MAX = 8192


class BadUrl(ValueError):
    """It is no URL of a message."""


class MessageUrl(msgspec.Struct, frozen=True):
    """What the URL says, decoded."""

    mailbox: str | None  # None: the selected one
    uid: int
    uidvalidity: int | None = None
    section: Section = MESSAGE
    start: int = 0  # of the partial
    count: int | None = None  # None: to the end
    user: str = ""  # whose mailbox it is; "": the one who asks
    host: str = ""  # "": a relative URL
    expires: float | None = None  # seconds since 1970
    access: str = ""  # of URLAUTH: "anonymous", "authuser", "user+…", "submit+…"
    mechanism: str = ""
    token: str = ""  # hexadecimal
    rump: bytes = b""  # what the token is made from: the URL up to and with the access


_URL = re.compile(
    rb"""
    (?: imap:// (?:(?P<user>[^/@;]+)(?:;AUTH=[^/@]*)?@)? (?P<host>[^/@;]+) (?=/) )?
    (?: /?(?P<mailbox>[^;]*?) (?:;UIDVALIDITY=(?P<uidvalidity>[1-9][0-9]{0,9}))? /? )?
    ;UID=(?P<uid>[1-9][0-9]{0,9})
    (?: /?;SECTION=(?P<section>[^;]*?) )?
    (?: /?;PARTIAL=(?P<start>[0-9]{1,19})(?:\.(?P<count>[1-9][0-9]{0,18}))? )?
    (?P<rest> (?: ;EXPIRE=(?P<expires>[-0-9T:.Z+]+) )? ;URLAUTH=(?P<access>[^:;]+)
      (?: :(?P<mechanism>[-A-Z0-9.]+):(?P<token>[0-9A-F]{32,}) )?
    )? /?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ACCESS = re.compile(r"anonymous|authuser|(?:user|submit)\+[^\x00-\x20\x7f]+", re.IGNORECASE)


def message_url(url: bytes) -> MessageUrl:
    """Raises BadUrl."""
    found = _URL.fullmatch(url) if len(url) <= URL_OCTETS_MAX else None
    if found is None:
        raise BadUrl("not the URL of a message")
    mailbox = _text(found["mailbox"] or b"")
    try:
        section = section_of(unquote_to_bytes(found["section"] or b""))
    except ImapSyntaxError:
        raise BadUrl("no such section") from None
    access = _text(found["access"] or b"")
    if access and not _ACCESS.fullmatch(access):
        raise BadUrl("no such access")
    return MessageUrl(
        mailbox or None,
        int(found["uid"]),
        int(found["uidvalidity"]) if found["uidvalidity"] else None,
        section,
        int(found["start"] or 0),
        int(found["count"]) if found["count"] else None,
        _text(found["user"] or b""),
        (found["host"] or b"").decode("ascii", "replace").lower(),
        _time(found["expires"]),
        access,
        (found["mechanism"] or b"").decode().upper(),
        (found["token"] or b"").decode().lower(),
        url[: found.end("access")] if access else b"",
    )


def _text(octets: bytes) -> str:
    try:
        return unquote_to_bytes(octets).decode()
    except UnicodeDecodeError:
        raise BadUrl("not UTF-8") from None


def _time(octets: bytes | None) -> float | None:
    """date-time of RFC 3339."""
    if octets is None:
        return None
    try:
        at = datetime.fromisoformat(octets.decode().upper())
    except ValueError:
        raise BadUrl("no date and time") from None
    return at.timestamp() if at.tzinfo else float(timegm(at.timetuple()))
