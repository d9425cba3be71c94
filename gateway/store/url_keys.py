"""The secrets that URLAUTH tokens of a mailbox are made with.

Owns      url_key(), make_url_key(), reset_url_keys()
Files     table annotation, as entries of a user that nobody is
Security  a key never leaves the server; a new one makes all URLs given out for that mailbox worthless
Standards RFC 4467 §4 (mailbox access key), §7.2 (RESETKEY)
"""

from __future__ import annotations

import secrets

from gateway.store.database import Database

KEY_OCTETS = 32  # RFC 4467 §4: 128 bits at least
_NOBODY, _ENTRY = "\0", "urlauth"


def url_key(database: Database, mailbox: int) -> bytes | None:
    """The mailbox's key; None: it never had one.  Within a transaction of the caller, as the other."""
    found = database.row(
        "SELECT value FROM annotation WHERE mailbox=? AND user=? AND entry=?",
        (mailbox, _NOBODY, _ENTRY),
    )
    return None if found is None else found[0]


def make_url_key(database: Database, mailbox: int) -> bytes:
    key = secrets.token_bytes(KEY_OCTETS)
    database.execute(
        "INSERT OR REPLACE INTO annotation VALUES(?,?,?,?,0)", (mailbox, _NOBODY, _ENTRY, key)
    )
    return key


def reset_url_keys(database: Database, mailbox: int | None) -> None:
    """The mailbox's key is forgotten; None: those of all."""
    database.execute(
        "DELETE FROM annotation WHERE user=? AND entry=? AND (?3 IS NULL OR mailbox=?3)",
        (_NOBODY, _ENTRY, mailbox),
    )
