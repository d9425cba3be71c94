"""The fields we add on top of a message, Received and Return-Path; dates as fields spell them.

    Owns      ReceivedStamp, return_path(), date_time(), transmission_type(), address_literal()
    Limits    lines fold at 78 octets; what a peer says of itself is cut at 64 octets, unless it
              is a domain
    Errors    ValueError for a mailbox or host name that would break out of its field
    Security  a HELO argument is the peer's to choose: unless it is a domain or an address literal
              it goes into a comment, with every octet that means something there replaced
    Standards RFC 5321 §4.4, RFC 5322 §3.3 §3.6.7, RFC 3848, RFC 6531 §3.7.3 §4.3
    Bugs      the "for" clause is left out for mailboxes that need quoting or UTF-8
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# RFC 5321 §4.1.2 Domain, with the underscore of real hosts (an RFC 5322 atom may have it);
# 255 octets: §4.5.3.1.2
_DOMAIN = re.compile(r"(?=.{1,255}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]*)(?:\.[A-Za-z0-9_-]+)*\.?\Z")
_ADDRESS_LITERAL = re.compile(r"\[[A-Za-z0-9:.-]{2,80}\]\Z")
# RFC 5322 §3.2.3 dot-atom "@" domain: needs no quoting anywhere
_PLAIN_MAILBOX = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@(?:[A-Za-z0-9.-]+|\[[A-Za-z0-9:.]+\])\Z"
)
_UNSAFE_IN_COMMENT = re.compile(r"[^A-Za-z0-9 !#$%&'*+,./:;=?@^_`{|}~\[\]-]")
_BREAKS_FIELD = re.compile(r"[\r\n\0]")
_HOSTILE_MAX_OCTETS = 64
_LINE_OCTETS = 78  # RFC 5322 §2.1.1


@lru_cache(maxsize=4)
def _date_time_of_second(second: int) -> str:
    t = datetime.fromtimestamp(second, UTC)
    return (
        f"{_DAYS[t.weekday()]}, {t.day:02d} {_MONTHS[t.month - 1]} {t.year} "
        f"{t.hour:02d}:{t.minute:02d}:{t.second:02d} +0000"
    )


def date_time(now: int) -> str:
    """now (ns UTC) as RFC 5322 §3.3 date-time, in UTC.  Rendered once a second."""
    return _date_time_of_second(now // 1_000_000_000)


def transmission_type(
    *,
    lmtp: bool = False,
    extended: bool = True,
    tls: bool = False,
    authenticated: bool = False,
    smtputf8: bool = False,
) -> str:
    """The "with" keyword (RFC 3848; RFC 6531 §4.3 for mail that was sent with SMTPUTF8)."""
    if not (lmtp or extended):
        return "SMTP"
    base = "LMTP" if lmtp else "ESMTP"
    if smtputf8:
        base = "UTF8LMTP" if lmtp else "UTF8SMTP"
    return base + ("S" if tls else "") + ("A" if authenticated else "")


def address_literal(address: str) -> str:
    """[192.0.2.1] or [IPv6:2001:db8::1] (RFC 5321 §4.1.3); "" for a Unix socket.

    address may carry a port, as in Envelope.client_address: "192.0.2.1:4711", "[2001:db8::1]:4711".
    """
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    if not address or address == "unix":
        return ""
    address = address.partition("%")[0]  # the zone of a link-local address is our own affair
    if address.lower().startswith("ipv6:"):
        address = address[5:]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def is_domain(name: str) -> bool:
    """True when name reads as a domain (RFC 5321 §4.1.2) and may stand unquoted in a field."""
    return _DOMAIN.match(name) is not None


def comment_text(text: str) -> str:
    """text made safe inside a comment: nothing is left that quotes, nests, ends or folds it."""
    return _UNSAFE_IN_COMMENT.sub("?", text[:_HOSTILE_MAX_OCTETS])


def _fold(words: list[str]) -> str:
    """Words joined by SP, or by CRLF HTAB where a line would pass 78 octets."""
    lines: list[str] = []
    line = words[0]
    for word in words[1:]:
        if len(line) + 1 + len(word) > _LINE_OCTETS:
            lines.append(line)
            line = "\t" + word
        else:
            line = f"{line} {word}"
    lines.append(line)
    return "\r\n".join(lines)


class ReceivedStamp:
    """The Received field of one session: what stays is rendered once, line() adds the rest.

    Make a new one whenever the session's facts change: after EHLO, STARTTLS and AUTH.
    """

    __slots__ = ("_prefix", "_prefix_utf8")

    def __init__(
        self,
        *,
        hostname: str,
        client_name: str,
        client_address: str,
        reverse_name: str = "",
        tls: str = "",
        lmtp: bool = False,
        extended: bool = True,
        authenticated: bool = False,
    ) -> None:
        """client_name: the HELO argument; reverse_name: a verified DNS name; tls: "version cipher".

        Each may be "".  client_address as in Envelope.
        """
        if not _DOMAIN.match(hostname) and not _ADDRESS_LITERAL.match(hostname):
            raise ValueError(f"hostname {hostname!r} is neither a domain nor an address literal")
        literal = address_literal(client_address)
        # RFC 5321 §4.4: From-domain is what the client said of itself, TCP-info what we know of it.
        info = [reverse_name] if _DOMAIN.match(reverse_name) else []
        if literal:
            info.append(literal)
        if _DOMAIN.match(client_name) or _ADDRESS_LITERAL.match(client_name):
            words = ["from", client_name]
        else:
            words = ["from", literal or "unknown"]
            if client_name:
                info.append("name=" + comment_text(client_name).replace(" ", "?"))
        if info:
            info[0] = "(" + info[0]
            info[-1] += ")"
        words += info
        if tls:
            words += f"({comment_text(tls)})".split(" ")
        prefixes = []
        for smtputf8 in (False, True):
            keyword = transmission_type(
                lmtp=lmtp,
                extended=extended,
                tls=bool(tls),
                authenticated=authenticated,
                smtputf8=smtputf8,
            )
            by = _fold(["\tby", hostname, "with", keyword, "id " + "x" * 12])[:-12]
            prefixes.append(f"{_fold(['Received:', *words])}\r\n{by}")
        self._prefix, self._prefix_utf8 = prefixes

    def line(
        self, queue_id: str, for_mailbox: str | None, now: int, smtputf8: bool = False
    ) -> bytes:
        """The whole field with its last CRLF.  for_mailbox: the only recipient, else None.

        RFC 5321 §7.2: naming one of several recipients would disclose it to the others.
        """
        prefix = self._prefix_utf8 if smtputf8 else self._prefix
        date = _date_time_of_second(now // 1_000_000_000)
        if for_mailbox is not None and _PLAIN_MAILBOX.match(for_mailbox):
            return f"{prefix}{queue_id}\r\n\tfor <{for_mailbox}>;\r\n\t{date}\r\n".encode()
        return f"{prefix}{queue_id};\r\n\t{date}\r\n".encode()


def return_path(reverse_path: str) -> bytes:
    """The field that final delivery puts on top (RFC 5321 §4.4); "" is the null reverse-path."""
    if _BREAKS_FIELD.search(reverse_path):
        raise ValueError(f"reverse-path {reverse_path!r} would break out of its field")
    return f"Return-Path: <{reverse_path}>\r\n".encode()
