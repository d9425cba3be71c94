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
