"""What a server offers in its EHLO reply, and the MAIL, RCPT and XCLIENT lines that make use of it.

    Owns      Capabilities; the rendering of ESMTP parameters
    Errors    a keyword or parameter that is not understood counts as not offered
    Standards RFC 5321 §4.1.1.1, RFC 1870, RFC 2034, RFC 2920, RFC 3030, RFC 3207, RFC 3461 §4, RFC 6152, RFC 6531,
              RFC 6533 §3, RFC 9422; XCLIENT of Postfix
"""

from __future__ import annotations

import ipaddress

import msgspec

from gateway._native import xtext_encode
from gateway.mail import envelope as env


class Capabilities(msgspec.Struct, frozen=True):
    """The EHLO reply, understood."""

    pipelining: bool = False
    eightbit: bool = False
    smtputf8: bool = False
    chunking: bool = False
    binarymime: bool = False
    dsn: bool = False
    starttls: bool = False
    size: bool = False
    max_octets: int = 0  # the limit SIZE named; 0 = none
    recipients_max: int = 0  # RCPTMAX; 0 = not known
    transactions_max: int = 0  # MAILMAX; 0 = not known
    xclient: tuple[str, ...] = ()  # attributes the peer takes


NO_CAPABILITIES = Capabilities()

_FLAGS = {
    "PIPELINING": "pipelining",
    "8BITMIME": "eightbit",
    "SMTPUTF8": "smtputf8",
    "CHUNKING": "chunking",
    "BINARYMIME": "binarymime",
    "DSN": "dsn",
    "STARTTLS": "starttls",
}


def parse_capabilities(text: str, *, pipelining: bool = True) -> Capabilities:
    """Of the text of an EHLO reply, whose first line is only a greeting; PIPELINING only when we want it."""
    found: dict[str, bool | int | tuple[str, ...]] = {}
    for line in text.split("\n")[1:]:
        keyword, *arguments = line.upper().split()[:100] or [""]
        if keyword in _FLAGS:
            found[_FLAGS[keyword]] = True
        elif keyword == "SIZE":
            found["size"] = True
            found["max_octets"] = _number(arguments[0]) if arguments else 0
        elif keyword == "LIMITS":
            for argument in arguments:
                name, _, value = argument.partition("=")
                if name == "RCPTMAX":
                    found["recipients_max"] = _number(value)
                elif name == "MAILMAX":
                    found["transactions_max"] = _number(value)
        elif keyword == "XCLIENT":
            found["xclient"] = tuple(arguments)
    if not pipelining:
        found.pop("pipelining", None)
    if "chunking" not in found:  # RFC 3030 §3: BINARYMIME is of no use without it
        found.pop("binarymime", None)
    return msgspec.convert(found, Capabilities)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


_RET = {env.RET_FULL: " RET=FULL", env.RET_HDRS: " RET=HDRS"}
_BODY = {env.BODY_7BIT: "", env.BODY_8BITMIME: " BODY=8BITMIME", env.BODY_BINARYMIME: " BODY=BINARYMIME"}


def render_mail(
    offered: Capabilities,
    reverse_path: str,
    size: int,
    *,
    body: int = env.BODY_7BIT,
    smtputf8: bool = False,
    ret: int = env.RET_UNSPECIFIED,
    envid: str = "",
) -> bytes:
    """The MAIL command line; `body` and `smtputf8` must be what the peer takes."""
    line = f"MAIL FROM:<{reverse_path}>"
    if offered.size:
        line += f" SIZE={size}"
    if body and offered.eightbit:
        line += _BODY[body]
    if smtputf8:
        line += " SMTPUTF8"
    if offered.dsn and (ret or envid):  # RFC 3461 §5.2.1: passed on as they came
        line += _RET.get(ret, "")
        if envid:
            line += f" ENVID={xtext_encode(envid)}"
    return (line + "\r\n").encode()


def render_rcpt(offered: Capabilities, recipient: env.Recipient, mailbox: str = "") -> bytes:
    """The RCPT command line; `mailbox` stands in for the forward-path when that had to be rewritten."""
    line = f"RCPT TO:<{mailbox or recipient.forward_path}>"
    if offered.dsn:
        if recipient.notify:
            line += f" NOTIFY={_notify(recipient.notify)}"
        if recipient.orcpt:
            line += f" ORCPT={_orcpt(recipient.orcpt)}"
    return (line + "\r\n").encode()


def _notify(notify: int) -> str:
    if notify & env.NOTIFY_NEVER:  # RFC 3461 §4.1: stands alone
        return "NEVER"
    words = ((env.NOTIFY_SUCCESS, "SUCCESS"), (env.NOTIFY_FAILURE, "FAILURE"), (env.NOTIFY_DELAY, "DELAY"))
    return ",".join(word for flag, word in words if notify & flag)


def _orcpt(orcpt: str) -> str:
    kind, _, address = orcpt.partition(";")
    if kind.lower() == "utf-8":  # RFC 6533 §3: utf-8-addr-xtext
        address = "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in address)
    return f"{kind};{xtext_encode(address)}"


def render_xclient(offered: Capabilities, envelope: env.Envelope) -> bytes:
    """The XCLIENT line that tells who our client was, in the attributes the peer takes; b"" when it takes none."""
    address, port = _client(envelope.client_address)
    values = {
        "NAME": "[UNAVAILABLE]",
        "ADDR": address,
        "PORT": port,
        "PROTO": "SMTP" if envelope.protocol == "SMTP" else "ESMTP",
        "HELO": envelope.client_name or "[UNAVAILABLE]",
    }
    words = [f"{name}={xtext_encode(values[name])}" for name in offered.xclient if name in values]
    return f"XCLIENT {' '.join(words)}\r\n".encode() if words else b""


def _client(client_address: str) -> tuple[str, str]:
    host, _, port = client_address.rpartition(":")
    host = host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "[UNAVAILABLE]", "[UNAVAILABLE]"
    return f"IPV6:{address}" if address.version == 6 else str(address), port
