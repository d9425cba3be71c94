"""Mailboxes as text: "local-part@domain", without the angle brackets.

The grammar itself (quoted local parts, address literals, source routes, UTF-8) is parsed natively: see
parse_command() in gateway._native.  Here are the questions people ask of a mailbox that was parsed already.

    Standards RFC 5321 §2.3.11, §4.1.2; RFC 6531 §3.3
"""

from __future__ import annotations


def domain_of(mailbox: str) -> str:
    """The domain, lower case; "" when there is none (the bare <Postmaster> of RFC 5321 §4.1.1.3)."""
    local_part, at, domain = mailbox.rpartition("@")
    return domain.lower() if at and local_part else ""


def local_part_of(mailbox: str) -> str:
    """The local part as written, quotes included: only its own domain may read meaning into it (RFC 5321 §2.4)."""
    local_part, at, _ = mailbox.rpartition("@")
    return local_part if at else mailbox


def needs_smtputf8(mailbox: str) -> bool:
    """True when the mailbox can only travel to a server that offers SMTPUTF8 (RFC 6531 §3.4)."""
    return not mailbox.isascii()
