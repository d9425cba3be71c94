"""What can be configured about the message store and about reading it; see config_model.py.

Owns      StoreConfig, PopConfig
Standards RFC 1939 §7, RFC 2449 §6.5, RFC 5530, RFC 6154, RFC 9208
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from gateway.config_fields import DAY_S, MIB
from gateway.config_fields import Section as _Section
from gateway.config_fields import count as _count
from gateway.config_fields import seconds as _seconds
from gateway.config_fields import text as _text


class StoreConfig(_Section, frozen=True, kw_only=True):
    """Where `store:` keeps mail: mailboxes that POP3 and IMAP read.  Amounts are per worker."""

    directory: Annotated[Path | None, _text("absent: store in state_dir")] = None
    threads: Annotated[
        int, _count(1, 256, "accounts worked on at once; they wait for the disk most of the time")
    ] = 4
    open_accounts: Annotated[
        int,
        _count(
            1,
            100_000,
            "accounts kept open (4 descriptors and up to 1.5 MiB each); more are reopened",
        ),
    ] = 256
    batch_messages: Annotated[
        int, _count(1, 10_000, "deliveries to one account that share a transaction and its sync")
    ] = 100
    batch_octets: Annotated[
        int, _count(65536, 1024 * MIB, "the same, of their content; one message may be larger")
    ] = 8 * MIB
    gather_s: Annotated[
        float,
        _seconds(
            0.0,
            10.0,
            "a busy worker lets deliveries to one account wait so long for others to share their "
            "transaction; the first is done at once (Dovecot tells its sessions after 0.5 s)",
        ),
    ] = 0.5
    flags_sync_s: Annotated[
        float,
        _seconds(
            0.0,
            60.0,
            "changes of flags alone are answered before they are on the disk, and are there so much later: only a "
            "crash of the host can take them back (Dovecot never waits for the disk with them); 0: on the disk first",
        ),
    ] = 0.5
    reclaim_s: Annotated[
        float,
        _seconds(
            0.0,
            DAY_S,
            "space of expunged messages is given back so much later, and that of all expunges since then with it "
            "(Dovecot's mdbox: when `doveadm purge` is run)",
        ),
    ] = 30.0
    waiting_octets: Annotated[
        int,
        _count(
            65536, 2**40, "content of deliveries that wait; above it they are told to come again"
        ),
    ] = 64 * MIB
    mailboxes: Annotated[
        int, _count(10, 1_000_000, "mailboxes of one account; more get NO [LIMIT] (RFC 5530)")
    ] = 10_000
    initial_mailboxes: Annotated[
        tuple[str, ...],
        _text(
            'mailboxes of a new account beside INBOX: "name \\\\Use", uses are those of RFC 6154'
        ),
    ] = (
        "Archive \\Archive",
        "Drafts \\Drafts",
        "Junk \\Junk",
        "Sent \\Sent",
        "Trash \\Trash",
    )
    over_quota: Annotated[
        Literal["defer", "reject"],
        _text("mail for a full account: tried again until queue.expire_s (4.2.2), or 552 5.2.2"),
    ] = "defer"


class PopConfig(_Section, frozen=True, kw_only=True):
    """What POP3 and POP2 clients see of a mailbox."""

    unique_id: Annotated[
        str,
        _text(
            "how UIDL names a message: %u its UID, %v the UIDVALIDITY, X for hexadecimal; clients "
            "fetch everything again when it changes.  The default is Dovecot's, Cyrus has %v.%u"
        ),
    ] = "%08Xu%08Xv"
    login_delay_s: Annotated[
        float,
        _seconds(0.0, DAY_S, "between two sessions of one account, LOGIN-DELAY of RFC 2449 §6.5"),
    ] = 0.0
    apop: Annotated[
        bool,
        _text(
            "offer APOP, which works for accounts made with `gateway user add --allow-apop`: it "
            "needs their passwords in recoverable form, and MD5"
        ),
    ] = False
    mark_seen: Annotated[bool, _text("fetching a message sets \\Seen, which IMAP clients show")] = (
        True
    )
