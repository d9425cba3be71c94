"""What the store says no with.

Owns      StoreError and its kinds
Errors    `transient` tells whether trying again may help; `enhanced` is the status of RFC 3463 a
          delivery is answered with; `code` the response code of RFC 9051 §7.1 for IMAP, or ""
Standards RFC 3463, RFC 5530
"""

from __future__ import annotations


class StoreError(Exception):
    """str() says what is wrong, for people.  Nobody but the account (or message) asked for is concerned."""

    enhanced = "4.3.0"
    code = ""
    transient = True


class NoSuchAccount(StoreError):
    """There is no such account, or it never got mail."""

    enhanced, code, transient = "5.1.1", "NONEXISTENT", False


class NoSuchMailbox(StoreError):
    """The account has no mailbox of that name (or not any more)."""

    enhanced, code, transient = "5.1.1", "NONEXISTENT", False


class MailboxExists(StoreError):
    """There is a mailbox of that name already."""

    enhanced, code, transient = "5.3.0", "ALREADYEXISTS", False


class BadName(StoreError):
    """No mailbox may be called so, or this must not be done to that mailbox."""

    enhanced, code, transient = "5.1.3", "CANNOT", False


class LimitReached(StoreError):
    """More mailboxes, keywords, octets … than the configuration allows."""

    enhanced, code, transient = "5.3.4", "LIMIT", False


class OverQuota(StoreError):
    """The account has used up its quota (RFC 9208)."""

    enhanced, code = "4.2.2", "OVERQUOTA"


class StoreFull(StoreError):
    """The disk has no room."""

    enhanced, code = "4.3.1", "UNAVAILABLE"


class StoreBusy(StoreError):
    """Others hold the account, or too much waits for it already."""

    enhanced, code = "4.3.2", "INUSE"


class TooSoon(StoreError):
    """The account was logged in to a short while ago (LOGIN-DELAY of RFC 2449)."""

    enhanced, code = "4.3.2", "INUSE"


class StoreDamaged(StoreError):
    """What is on the disk is not what was written: `gateway mailbox check` names and repairs it."""

    code = "CORRUPTION"


class MessageGone(StoreError):
    """The message was expunged meanwhile."""

    code, transient = "EXPUNGEISSUED", False


class NotNow(Exception):
    """It cannot be done without waiting: a thread has to.  Never leaves the store."""
