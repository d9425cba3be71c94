"""The normal form of what people type as their name.

Owns      normal_user()
Standards RFC 8265 §3.3 (UsernameCaseMapped: lower case, NFC), RFC 5890 (domains)
"""

from __future__ import annotations

import unicodedata

from gateway.mail.address import normal_mailbox

NAME_OCTETS_MAX = 320  # RFC 5321 §4.5.3.1: local part 64, "@", domain 255


def normal_user(text: str, default_domain: str = "") -> str:
    """The name under which an account is looked up; "" for what can be nobody's name."""
    text = unicodedata.normalize("NFC", text.strip())
    if "@" not in text and default_domain:
        text = f"{text}@{default_domain}"
    if not text.isprintable() or not text or text[0] == "@" or text[-1] == "@":
        return ""
    if any(c.isspace() for c in text.rpartition("@")[2]):
        return ""
    if "@" not in text or len(text.encode(errors="replace")) > NAME_OCTETS_MAX:
        return ""
    return normal_mailbox(text)
