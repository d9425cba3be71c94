"""What the rest of the house learns about accounts: values, no I/O.

Owns      Account, Record; Deliveries, Unknown, Unavailable; Identity, Refusal
Errors    Unavailable is also an exception's argument: see SourceError
Standards RFC 5321 §4.2.3, RFC 4954 §6, RFC 3206 §4, RFC 5530 §3 (how each protocol says no)
"""

from __future__ import annotations

import msgspec

from gateway.mail.reply import Reply


class SourceError(Exception):
    """A source of accounts cannot be asked now; str() is for the log.  Always temporary."""


class Account(msgspec.Struct, frozen=True):
    """One mailbox owner."""

    name: str  # local-part@domain in normal form: the key under which the store keeps the mail
    quota_octets: int | None = None  # 0: no limit; None: accounts.quota_octets (never in answers)
    quota_messages: int | None = None  # 0: no limit; None: accounts.quota_messages (likewise)
    disabled: bool = False  # may not log in and gets no mail
    source: str = ""  # which source knows it, for the log


class Record(msgspec.Struct, frozen=True):
    """An account with what a local source keeps to verify it."""

    account: Account
    verifier: str  # of passwords.py: "$argon2id$…", "{SSHA256}…"; "": no password fits
    scram: dict[str, str] = {}  # by hash, "SHA-256" or "SHA-1": keys as passwords.scram_text() writes them
    secret: str | None = None  # the password itself, for APOP and CRAM-MD5 alone


# -- where mail for an address goes ----------------------------------------------------------------


class Delivery(msgspec.Struct, frozen=True):
    """Mail for one account."""

    account: Account
    address: str  # by which it was found: alice+news@example.org, in normal form
    mailbox: str = "INBOX"  # a wish: INBOX when there is no such mailbox


class Deliveries(msgspec.Struct, frozen=True):
    """The address exists: its mail goes to all of these."""

    local: tuple[Delivery, ...] = ()  # each account once
    forward: tuple[str, ...] = ()  # mailboxes elsewhere, RFC 5321 §3.9.1: the reverse-path stays

    def addresses(self) -> list[str]:
        """What to put into the envelope instead of the address, when some of it is not for the store."""
        return [*(delivery.address for delivery in self.local), *self.forward]


class Unknown(msgspec.Struct, frozen=True):
    """No mail is taken for the address: 550 5.1.1, or 5.2.1 when the account is disabled."""

    disabled: bool = False


class Unavailable(msgspec.Struct, frozen=True):
    """Nobody can tell now: a transient failure."""

    reason: str


Resolution = Deliveries | Unknown | Unavailable

# -- how a login ends ------------------------------------------------------------------------------


class Identity(msgspec.Struct, frozen=True):
    """The client is this account (or acts for it)."""

    account: Account
    mechanism: str  # "PLAIN", "SCRAM-SHA-256-PLUS", "APOP" …
    authenticated_as: str  # the account whose secret was shown; another one for a master user
    cached: bool = False  # known from a login shortly before

    @property
    def is_master(self) -> bool:
        return self.authenticated_as != self.account.name


class Refusal(msgspec.Struct, frozen=True):
    """The client is not let in, and how each protocol says so."""

    reason: str  # the key in REFUSALS: for logs and metrics
    smtp: Reply  # RFC 4954 §4, §6
    pop3: str  # the response code of RFC 2449 §8.1.1 without brackets; "": none
    imap: str  # the response code of RFC 5530 §3; "BAD" stands for a tagged BAD
    text: str

    @property
    def is_temporary(self) -> bool:
        return not self.smtp.is_permanent


def _refusal(reason: str, code: int, enhanced: str, pop3: str, imap: str, text: str) -> Refusal:
    return Refusal(reason, Reply(code, enhanced, text), pop3, imap, text)


REFUSALS = {
    refusal.reason: refusal
    for refusal in (
        # One answer for unknown users, wrong passwords and disabled accounts: it tells a stranger nothing.
        _refusal(
            "credentials", 535, "5.7.8", "AUTH", "AUTHENTICATIONFAILED", "Authentication failed"
        ),
        _refusal("disabled", 535, "5.7.8", "AUTH", "AUTHORIZATIONFAILED", "The account is disabled"),
        _refusal(
            "authorization", 535, "5.7.8", "AUTH", "AUTHORIZATIONFAILED", "You may not act for others"
        ),
        _refusal(
            "unavailable", 454, "4.7.0", "SYS/TEMP", "UNAVAILABLE", "Cannot verify now; try again later"
        ),
        _refusal("busy", 454, "4.7.0", "SYS/TEMP", "UNAVAILABLE", "Too many logins; try again later"),
        _refusal(
            "throttled", 454, "4.7.0", "SYS/TEMP", "UNAVAILABLE", "Too many failures; try again later"
        ),
        _refusal("mechanism", 504, "5.5.4", "", "CANNOT", "Mechanism not available"),
        _refusal(
            "encryption", 538, "5.7.11", "AUTH", "PRIVACYREQUIRED", "Start TLS before you log in"
        ),
        _refusal("malformed", 501, "5.5.2", "", "BAD", "Malformed authentication response"),
        _refusal("cancelled", 501, "5.7.0", "", "BAD", "Authentication cancelled"),
    )
}
