"""Verdicts on content from the facts that the decoder gathered: no octet is read again.

Owns      check_content()
Errors    none: None or the Reply that refuses
Standards RFC 5321 §2.3.8 (bare CR and LF), §4.5.3.1.7 (size), §6.3 (loops); RFC 3030 §3 (binary content)
"""

from __future__ import annotations

from gateway.mail import envelope as env
from gateway.mail import replies
from gateway.mail.reply import Reply


def check_content(
    facts: env.Facts, overflow: bool, reject_bare: bool, body: int, received_max: int
) -> Reply | None:
    """None when the content may be kept."""
    if overflow:
        return replies.MESSAGE_TOO_BIG
    if facts.received > received_max:
        return replies.TOO_MANY_HOPS
    if reject_bare and body != env.BODY_BINARYMIME:
        if facts.bare_lf or facts.bare_cr:
            return replies.BARE_LINE_END
        if facts.has_nul:
            return replies.NUL_IN_CONTENT
    return None
