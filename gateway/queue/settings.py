"""The [queue] and [[route]] sections of the config, with every default and where it comes from.

    Owns      RouteSettings, QueueSettings (frozen; msgspec checks types and refuses unknown keys)
    Limits    everything the queue holds or opens is bounded by a key here
    Errors    check() methods raise ValueError("key: what is allowed")
    Standards RFC 5321 §4.5.3.1.8 (recipients), §4.5.4.1 (retries, give-up time)
"""

from __future__ import annotations

from typing import Literal

import msgspec

HOUR_S = 3600.0
DAY_S = 86400.0


class RouteSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One [[route]]: which recipients it is for, where they go, and how."""

    # -- which recipients ------------------------------------------------------------------------
    domains: list[str] = []  # "example.org", ".example.org" (its subdomains), "*" (all others)
    recipients: list[str] = []  # only these mailboxes ("alice@example.org"); empty: all of domains

    # -- where to --------------------------------------------------------------------------------
    next_hop: list[str]  # tried in this order; a later one is for when those before it are down
    hold: bool = False  # keep what arrives until an operator releases it

    # -- how many, how fast ----------------------------------------------------------------------
    max_connections: int = 20  # Postfix's default_destination_concurrency_limit
    initial_connections: int = 5  # Postfix's initial_destination_concurrency; grows from there
    rate_per_s: float = 0.0  # messages a second, 0 = no limit
    rate_burst: int = 10  # messages that may go at once after a pause, when there is a rate
    recipients_per_transaction: int = 100  # RFC 5321 §4.5.3.1.8: any server must take 100
    messages_per_connection: int = 0  # 0 = no limit but the peer's (RFC 9422 MAILMAX)

    # -- SMTP and LMTP ---------------------------------------------------------------------------
    tls: Literal["off", "opportunistic", "required", "verify"] = "opportunistic"  # RFC 3207
    tls_name: str = ""  # name the certificate must show with tls = "verify"; "" = the host
    helo: str = ""  # EHLO argument; "" = hostname
    source_addresses: list[str] = []  # ours to connect from, in turn; empty = the kernel's choice
    xclient: bool = False  # pass on the client's name and address to a peer that offers XCLIENT
    pipelining: bool = True  # use what the peer offers; False for peers that offer and cannot
    chunking: bool = True
    connect_timeout_s: float = 30.0  # Postfix's smtp_connect_timeout
    reply_timeout_s: float = 300.0  # RFC 5321 §4.5.3.2.1-3: 5 minutes
    data_timeout_s: float = 600.0  # RFC 5321 §4.5.3.2.6: 10 minutes after the final dot
    idle_timeout_s: float = 10.0  # an unused connection stays open so long; peers allow 300 s

    # -- HTTP ------------------------------------------------------------------------------------
    http_format: Literal["raw", "json"] = "raw"  # message/rfc822, or envelope and parts as JSON
    http_secret: str = ""  # signs each request (HMAC-SHA256); "" = unsigned
    http_headers: dict[str, str] = {}  # added to each request, for tokens
    http_timeout_s: float = 60.0  # for the whole request

    def check(self) -> None:
        """Raises ValueError for values that types alone do not rule out."""
        if not self.domains and not self.recipients:
            raise ValueError("domains: name at least one domain (or recipients)")
        if not self.next_hop:
            raise ValueError("next_hop: name at least one next hop")
        for mailbox in self.recipients:
            if "@" not in mailbox:
                raise ValueError(f"recipients: {mailbox!r} is not local-part@domain")
        _check_range("max_connections", self.max_connections, 1, 10_000)
        _check_range("initial_connections", self.initial_connections, 1, 10_000)
        _check_range("rate_per_s", self.rate_per_s, 0, 1_000_000)
        _check_range("rate_burst", self.rate_burst, 1, 1_000_000)
        _check_range("recipients_per_transaction", self.recipients_per_transaction, 1, 10_000)
        _check_range("messages_per_connection", self.messages_per_connection, 0, 1_000_000)
        for key in ("connect", "reply", "data", "idle", "http"):
            _check_range(f"{key}_timeout_s", getattr(self, f"{key}_timeout_s"), 0.1, DAY_S)


class QueueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[queue]: when to try again, when to give up, how much to have in hand."""

    # RFC 5321 §4.5.4.1: two attempts in the first hour, then one every two or three hours; the
    # first two are earlier because a next hop of one's own is mostly back within minutes.
    # The last is repeated.
    retry_s: tuple[float, ...] = (300.0, 900.0, 1800.0, 3600.0, 7200.0, 10800.0)
    retry_jitter: float = 0.1  # each wait is up to so much longer: deferred mail spreads out
    expire_s: float = 5 * DAY_S  # RFC 5321 §4.5.4.1: at least 4-5 days
    delay_warning_s: float = 4 * HOUR_S  # one report to the sender; 0 = none.  RFC 3461 §5.2.7

    # How long a lane waits after no next hop of it could be connected to; the last is repeated.
    connect_retry_s: tuple[float, ...] = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)

    active_per_lane: int = 20_000  # messages in hand; Postfix's qmgr_message_active_limit
    inline_wait_s: float = 60.0  # durability "inline": wait so long for a free connection
    report_content_octets: int = 50_000  # else only the header; Postfix bounce_size_limit
    report_window_s: float = 5.0  # one report for what fails of one message within this time

    def check(self) -> None:
        """Raises ValueError for values that types alone do not rule out."""
        for key in ("retry_s", "connect_retry_s"):
            waits = getattr(self, key)
            if not waits:
                raise ValueError(f"{key}: a list of at least one number of seconds")
            for wait in waits:
                _check_range(key, wait, 0.1, 30 * DAY_S)
        _check_range("retry_jitter", self.retry_jitter, 0, 1)
        _check_range("expire_s", self.expire_s, 1, 365 * DAY_S)
        _check_range("delay_warning_s", self.delay_warning_s, 0, 365 * DAY_S)
        _check_range("active_per_lane", self.active_per_lane, 1, 10_000_000)
        _check_range("inline_wait_s", self.inline_wait_s, 0, 600)  # below the client's 10 minutes
        _check_range("report_content_octets", self.report_content_octets, 0, 100_000_000)
        _check_range("report_window_s", self.report_window_s, 0, HOUR_S)


def _check_range(key: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{key}: {value:g} is outside {lowest:g} … {highest:g}")
