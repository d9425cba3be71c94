"""ESMTP parameters of MAIL and RCPT, attributes of XCLIENT, checked and turned into values.

Owns      the meaning of SIZE, BODY, SMTPUTF8, RET, ENVID, NOTIFY, ORCPT; of XCLIENT's attributes
Errors    a Reply that says what is wrong, instead of the value
Standards RFC 1870 §6, RFC 3030 §3, RFC 3461 §4, RFC 5321 §4.1.1.11, RFC 6152 §2, RFC 6531 §3.4; XCLIENT of Postfix
"""

from __future__ import annotations

import ipaddress

import msgspec

from gateway import _native as smtp
from gateway.mail import envelope as env
from gateway.mail import replies
from gateway.mail.reply import Reply

ENVID_OCTETS = 100  # RFC 3461 §4.4
ORCPT_OCTETS = 500  # RFC 3461 §4.2

_BODY = {"7BIT": env.BODY_7BIT, "8BITMIME": env.BODY_8BITMIME, "BINARYMIME": env.BODY_BINARYMIME}
_RET = {"FULL": env.RET_FULL, "HDRS": env.RET_HDRS}
_NOTIFY = {"SUCCESS": env.NOTIFY_SUCCESS, "FAILURE": env.NOTIFY_FAILURE, "DELAY": env.NOTIFY_DELAY}

XCLIENT_ATTRIBUTES = ("NAME", "ADDR", "PORT", "PROTO", "HELO")
_NOT_KNOWN = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")

Parameters = tuple[tuple[str, str | None], ...]


class MailParameters(msgspec.Struct, frozen=True):
    """What MAIL carried beside the reverse-path."""

    size: int = 0  # octets the client announced; 0 when it did not
    body: int = env.BODY_7BIT
    smtputf8: bool = False
    ret: int = env.RET_UNSPECIFIED
    envid: str = ""


def parse_mail_parameters(
    params: Parameters, max_message_octets: int, *, auth: bool = False
) -> MailParameters | Reply:
    """The parameters of MAIL; the reply to send when one is wrong, unknown, twice, or too big (RFC 1870 §6.1).

    auth: AUTH was offered to the client.
    """
    size, body, smtputf8, ret, envid = 0, env.BODY_7BIT, False, env.RET_UNSPECIFIED, ""
    seen: set[str] = set()
    for keyword, value in params:
        if keyword in seen:
            return replies.BAD_PARAMETER.with_text(f"{keyword} given twice")
        seen.add(keyword)
        if keyword == "SIZE":
            if value is None or not (value.isascii() and value.isdigit()) or len(value) > 20:
                return replies.BAD_PARAMETER.with_text("SIZE needs a number of octets")
            size = int(value)
            if max_message_octets and size > max_message_octets:
                return replies.MESSAGE_TOO_BIG
        elif keyword == "BODY":
            found = _BODY.get((value or "").upper())
            if found is None:
                return replies.BAD_PARAMETER.with_text("BODY is 7BIT, 8BITMIME or BINARYMIME")
            body = found
        elif keyword == "SMTPUTF8":
            if value is not None:
                return replies.BAD_PARAMETER.with_text("SMTPUTF8 takes no value")
            smtputf8 = True
        elif keyword == "RET":
            found = _RET.get((value or "").upper())
            if found is None:
                return replies.BAD_PARAMETER.with_text("RET is FULL or HDRS")
            ret = found
        elif keyword == "ENVID":
            decoded = _xtext(value, ENVID_OCTETS)
            if decoded is None:
                return replies.BAD_PARAMETER.with_text("ENVID needs xtext of 1 to 100 characters")
            envid = decoded
        elif keyword == "AUTH" and auth:
            # RFC 4954 §5: taken, and not believed: who sends is who authenticated.
            if value != "<>" and _xtext(value, ORCPT_OCTETS) is None:
                return replies.BAD_PARAMETER.with_text("AUTH needs a mailbox in xtext, or <>")
        else:
            return replies.UNKNOWN_PARAMETER.with_text(
                f"MAIL parameter {keyword} is not implemented"
            )
    return MailParameters(size, body, smtputf8, ret, envid)


def parse_rcpt_parameters(forward_path: str, params: Parameters) -> env.Recipient | Reply:
    """The recipient with its parameters, or the reply to send when one is wrong."""
    notify, orcpt = env.NOTIFY_DEFAULT, ""
    seen: set[str] = set()
    for keyword, value in params:
        if keyword in seen:
            return replies.BAD_PARAMETER.with_text(f"{keyword} given twice")
        seen.add(keyword)
        if keyword == "NOTIFY":
            parsed = _notify(value or "")
            if parsed is None:
                return replies.BAD_PARAMETER.with_text(
                    "NOTIFY is NEVER, or a list of SUCCESS, FAILURE and DELAY"
                )
            notify = parsed
        elif keyword == "ORCPT":
            kind, semicolon, address = (value or "").partition(";")
            decoded = _xtext(address, ORCPT_OCTETS)
            if not kind or not semicolon or decoded is None:
                return replies.BAD_PARAMETER.with_text("ORCPT is addr-type;xtext")
            orcpt = f"{kind};{decoded}"
        else:
            return replies.UNKNOWN_PARAMETER.with_text(
                f"RCPT parameter {keyword} is not implemented"
            )
    return env.Recipient(forward_path, notify, orcpt)


def parse_xclient(argument: str) -> dict[str, str] | Reply:
    """The attributes by name: ADDR an IP address, PORT a number, "" for what the proxy does not know."""
    attributes: dict[str, str] = {}
    for word in argument.split():
        name, _, value = word.partition("=")
        name = name.upper()
        try:
            value = smtp.xtext_decode(value)
            if name not in XCLIENT_ATTRIBUTES or not value.isprintable() or not value:
                return replies.BAD_PARAMETER
            if value.upper() in _NOT_KNOWN:
                value = ""
            elif name == "ADDR":
                is_v6 = value[:5].upper() == "IPV6:"
                value = str(ipaddress.IPv6Address(value[5:]) if is_v6 else ipaddress.ip_address(value))
            elif name == "PORT" and not (value.isdecimal() and int(value) <= 65535):
                return replies.BAD_PARAMETER
        except ValueError:
            return replies.BAD_PARAMETER
        attributes[name] = value
    return attributes


def _notify(value: str) -> int | None:
    if value.upper() == "NEVER":
        return env.NOTIFY_NEVER
    notify = 0
    for word in value.upper().split(","):
        flag = _NOTIFY.get(word)  # RFC 3461 §4.1: NEVER stands alone
        if flag is None:
            return None
        notify |= flag
    return notify


def _xtext(value: str | None, max_octets: int) -> str | None:
    if not value or len(value) > max_octets:
        return None
    try:
        decoded = smtp.xtext_decode(value)
    except ValueError:
        return None
    # Control characters would end up in headers of a report.
    return decoded if decoded.isprintable() else None
