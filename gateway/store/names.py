"""Names of mailboxes and of accounts' directories.

Owns      mailbox_name(), is_below(), account_directory(), account_names()
Files     <store>/<aa>/<account, percent-encoded>/
Limits    NAME_OCTETS_MAX, DEPTH_MAX
Security  no name leaves the store's directory; what a terminal would obey is refused
Standards RFC 9051 §5.1 (names), RFC 5198 §3 (NFC, no controls)
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from gateway.store.errors import BadName, NoSuchAccount

SEPARATOR = "/"
NAME_OCTETS_MAX = 1000
DEPTH_MAX = 50
ACCOUNT_OCTETS_MAX = 250  # as a directory: a file name has 255

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # RFC 5198 §2, RFC 6855 §3

_UNSAFE = re.compile(r"[\x00-\x20%/\x7f]|\A\.")  # what a directory must not be called
_ESCAPED = re.compile(r"%([0-9A-F]{2})")


@lru_cache(maxsize=256)
def mailbox_name(name: str) -> str:
    """The name as it is kept: NFC, INBOX in capitals.  Raises BadName."""
    if name.isascii():
        normal = name
    else:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise BadName("a mailbox name is UTF-8") from None
        normal = unicodedata.normalize("NFC", name)
    if normal[:5].upper() == "INBOX" and normal[5:6] in ("", SEPARATOR):  # RFC 9051 §5.1
        normal = "INBOX" + normal[5:]
    if not normal or len(normal.encode()) > NAME_OCTETS_MAX:
        raise BadName(f"a mailbox name has 1 to {NAME_OCTETS_MAX} octets")
    parts = normal.split(SEPARATOR)
    if "" in parts:
        raise BadName(
            'a mailbox name neither begins nor ends with "/", nor has two of them in a row'
        )
    if len(parts) > DEPTH_MAX:
        raise BadName(f"mailboxes nest {DEPTH_MAX} deep at most")
    if _FORBIDDEN.search(normal):
        raise BadName("a mailbox name has no control characters")
    return normal


def is_below(name: str, parent: str) -> bool:
    """True when name lies below parent, at any depth."""
    return name.startswith(parent + SEPARATOR)


def account_directory(store: Path, account: str) -> Path:
    """Raises NoSuchAccount for what cannot be an account's name."""
    octets = account.encode("utf-8", "surrogateescape")
    encoded = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", account)
    if not encoded or len(encoded.encode("utf-8", "surrogateescape")) > ACCOUNT_OCTETS_MAX:
        raise NoSuchAccount(f"an account's name has 1 to {ACCOUNT_OCTETS_MAX} octets")
    return store / hashlib.sha256(octets).hexdigest()[:2] / encoded


def account_names(store: Path) -> Iterator[str]:
    """Every account that has a directory, in no particular order."""
    for shard in sorted(store.glob("[0-9a-f][0-9a-f]")):
        for path in sorted(shard.iterdir()):
            if (path / "store.db").exists():
                yield _ESCAPED.sub(lambda found: chr(int(found[1], 16)), path.name)
