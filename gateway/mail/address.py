"""Mailboxes as text: "local-part@domain", without the angle brackets.

The grammar itself (quoted local parts, address literals, source routes, UTF-8) is parsed natively: see
parse_command() in gateway._native.  Here are the questions people ask of a mailbox that was parsed already.

    Standards RFC 5321 §2.3.11, §4.1.2; RFC 5890; RFC 6531 §3.3
"""

from __future__ import annotations

import idna


def domain_of(mailbox: str) -> str:
    """The domain, lower case; "" when there is none (the bare <Postmaster> of RFC 5321 §4.1.1.3)."""
    local_part, at, domain = mailbox.rpartition("@")
    return domain.lower() if at and local_part else ""


def normal_domain(domain: str) -> str:
    """Lower case, A-labels (RFC 5890): the form in which domains are compared."""
    if domain.isascii():
        return domain.lower()
    try:
        return idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        return domain.lower()


def normal_mailbox(mailbox: str) -> str:
    """For comparing mailboxes: RFC 5321 §2.4 lets only the final host fold the local part's case;
    a list of recipients or accounts is that host's word, and all we know of fold it."""
    local_part, _, domain = mailbox.rpartition("@")
    return f"{local_part.lower()}@{normal_domain(domain)}"
