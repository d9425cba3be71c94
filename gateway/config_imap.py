"""What can be configured about IMAP; see config_model.py.

Owns      ImapConfig
Standards RFC 9051 §4.3 (literals), §5.4 (autologout), RFC 7162 §4 (line length), RFC 7889 (APPENDLIMIT), RFC 2342,
          RFC 4314, RFC 5464, RFC 5465, RFC 9738 (MESSAGELIMIT), RFC 4467
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gateway.config_fields import DAY_S, MIB
from gateway.config_fields import Section as _Section
from gateway.config_fields import count as _count
from gateway.config_fields import seconds as _seconds
from gateway.config_fields import text as _text

_LEVEL = r"\A[^/*%\"\\\x00-\x1f]+\Z"  # of the hierarchy of mailboxes


class ImapConfig(_Section, frozen=True, kw_only=True):
    """What IMAP clients may do."""

    login_s: Annotated[
        float, _seconds(1.0, 3600.0, "wait for a client that has not logged in (Dovecot: 3 minutes)")
    ] = 180.0
    idle_s: Annotated[
        float,
        _seconds(1800.0, DAY_S, "wait for the next command, in IDLE too (RFC 9051 §5.4: at least 30 minutes)"),
    ] = 1860.0
    still_here_s: Annotated[
        float,
        _seconds(
            0.0,
            1800.0,
            'a client in IDLE is told "Still here" so often, lest a NAT forgets it; 0: never '
            "(Dovecot imap_idle_notify_interval 2 min)",
        ),
    ] = 120.0
    line_octets: Annotated[
        int,
        _count(8192, 16 * MIB, "longest command without its literals (RFC 7162 §4: at least 8192; Dovecot 64K)"),
    ] = 262_144
    literal_octets: Annotated[
        int, _count(4096, 64 * MIB, "longest literal but for APPEND's messages: names, search texts, METADATA")
    ] = 131_072
    command_octets: Annotated[
        int, _count(16_384, 256 * MIB, "a command with all such literals: more gets NO [TOOBIG]")
    ] = MIB
    append_octets: Annotated[
        int, _count(0, 2**32 - 1, "largest message of APPEND, APPENDLIMIT of RFC 7889; 0: limits.message_octets")
    ] = 0
    messages_per_command: Annotated[
        int,
        _count(
            0,
            2**32 - 1,
            "messages that one SEARCH, FETCH, STORE, COPY, MOVE, APPEND or UID EXPUNGE may be about, "
            "MESSAGELIMIT of RFC 9738 (§3: not below 1000); 0: any number",
        ),
    ] = 0
    other_users: Annotated[
        str,
        Meta(
            pattern=_LEVEL,
            description="the name below which mailboxes are that other users share, followed by the owner "
            "(RFC 2342; a new one leaves subscriptions behind)",
        ),
    ] = "Other Users"
    shared: Annotated[
        str,
        Meta(pattern=_LEVEL, description="the name below which the mailboxes of shared_account are"),
    ] = "Shared"
    shared_account: Annotated[
        str,
        _text(
            "the account whose mailboxes are everybody's, as far as their access rights go "
            "(`gateway mailbox acl`); empty: there are none"
        ),
    ] = ""
    acl_entries: Annotated[
        int, _count(1, 10_000, "identifiers one mailbox is shared with: more get NO [LIMIT]")
    ] = 200
    owners: Annotated[
        int, _count(1, 100_000, "other users whose mailboxes a LIST looks through; the rest is left out")
    ] = 1000
    metadata_octets: Annotated[
        int,
        _count(
            1024, 64 * MIB, "one annotation (RFC 5464 §4.1: at least 1024; Cyrus annotation sizes: 64K)"
        ),
    ] = 65_536
    metadata_entries: Annotated[
        int,
        _count(10, 100_000, "annotations a user keeps on one mailbox (RFC 5464 §4.1: at least 10)"),
    ] = 100
    metadata_account_octets: Annotated[
        int, _count(65_536, 2**40, "all annotations on mailboxes of one account; more get NO [METADATA TOOMANY]")
    ] = 16 * MIB
    submit_users: Annotated[
        tuple[str, ...],
        _text(
            "accounts that submission servers log in as: they alone may fetch the submit+ URLs that "
            "users give their mail away with (RFC 4467 §3, BURL of RFC 4468)"
        ),
    ] = ()
    comment: Annotated[
        str, _text("what clients are told about this server, /shared/comment of RFC 5464; empty: nothing")
    ] = ""
    admin: Annotated[
        str,
        _text("how to reach its administrator, a URI (mailto:…), /shared/admin of RFC 5464; empty: untold"),
    ] = ""
    notify_mailboxes: Annotated[
        int, _count(1, 1_000_000, "mailboxes a NOTIFY may watch; more get NO [NOTIFICATIONOVERFLOW]")
    ] = 10_000
    notify_octets: Annotated[
        int,
        _count(
            4096, 16 * MIB, "notifications that wait for a client; with more NOTIFY ends with NOTIFICATIONOVERFLOW"
        ),
    ] = 65_536
