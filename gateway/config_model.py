"""What can be configured: every key with its type, range, default and the default's source.

One frozen Struct per section of the file.  The description of a field is the only documentation of
its key: the commented file that `gateway init` writes and the messages of config.py are made of it.

    Owns      Config and its sections; those about accounts are in config_accounts.py
    Limits    sizes are octets (_octets), durations seconds (_s); 0 means "no limit" only where the
              description says so
    Standards RFC 5321 §4.5.3.1 (sizes), §4.5.3.2 (timeouts), §4.5.4.1 (retries), §6.3 (loops)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from gateway.config_accounts import AccountsConfig, AuthConfig, SubmissionConfig
from gateway.config_fields import DAY_S, MIB
from gateway.config_fields import Section as _Section
from gateway.config_fields import count as _count
from gateway.config_fields import part as _part
from gateway.config_fields import seconds as _seconds
from gateway.config_fields import text as _text
from gateway.config_imap import ImapConfig
from gateway.config_store import PopConfig, StoreConfig
from gateway.config_values import Address, Networks

Durability = Literal["inline", "fsync", "memory"]
Service = Literal["smtp", "submission", "lmtp", "pop3", "pop2", "imap", "http"]
ListenTls = Literal["off", "starttls", "implicit"]
RouteTls = Literal["off", "opportunistic", "required", "verify"]


class SniConfig(_Section, frozen=True, kw_only=True):
    """One more certificate, chosen by the server name the client asks for (RFC 6066 §3)."""

    names: Annotated[
        tuple[str, ...],
        _text(
            "server names that get this certificate; empty: the DNS names in the certificate itself"
        ),
    ] = ()
    certificate: Annotated[Path, _text("PEM file: certificate, then its chain")]
    key: Annotated[Path, _text("PEM file with the private key, without a pass phrase")]


class TlsConfig(_Section, frozen=True, kw_only=True):
    """The certificate we show and the certificates we trust.  Read again on SIGHUP."""

    certificate: Annotated[
        Path | None,
        _text("PEM file: certificate, then its chain; needed as soon as a listener offers TLS"),
    ] = None
    key: Annotated[Path | None, _text("PEM file with the private key, without a pass phrase")] = (
        None
    )
    min_version: Annotated[
        Literal["1.2", "1.3"],
        _text("oldest TLS version taken and offered (RFC 9325 §3.1.1)"),
    ] = "1.2"
    ca_file: Annotated[
        Path | None,
        _text(
            'PEM file of trusted authorities for routes with tls = "verify" and for https; '
            "absent: the system's"
        ),
    ] = None
    client_ca_file: Annotated[
        Path | None,
        _text(
            "PEM file of authorities whose client certificates we ask for; the e-mail address in "
            "one is who the client is (SASL EXTERNAL); absent: clients are not asked"
        ),
    ] = None
    sni: Annotated[tuple[SniConfig, ...], _text("certificates by server name")] = ()


class ListenConfig(_Section, frozen=True, kw_only=True):
    """A port we serve.  Repeat the section for each."""

    service: Annotated[Service, _text("what is spoken there")]
    address: Annotated[
        Address,
        _text("host:port, [v6]:port or unix:/path; a numeric host, 0.0.0.0 and [::] for all"),
    ]
    tls: Annotated[
        ListenTls,
        _text(
            '"starttls" (RFC 3207; RFC 2595 in POP3, RFC 9051 in IMAP), "implicit": TLS from the first octet '
            '(RFC 8314 §3), or "off"'
        ),
    ] = "off"
    durability: Annotated[
        Durability,
        _text(
            'when we say 250: "inline" after the next hop took it, "fsync" after it is on our '
            "disk, "
            '"memory" after it was handed to the disk writer (a crash of the host loses it)'
        ),
    ] = "fsync"
    proxy_protocol: Annotated[
        Networks,
        _text("load balancers that must send a PROXY header (v1 or v2) first; empty: none may"),
    ] = Networks()
    xclient_from: Annotated[
        Networks, _text("clients that may use XCLIENT to speak for another client")
    ] = Networks()
    bare_newline: Annotated[
        Literal["normalize", "reject"],
        _text(
            "bare CR or LF in mail data: repair it, or refuse the message; neither ever ends it "
            "(RFC 5321 §2.3.8)"
        ),
    ] = "normalize"
    max_message_octets: Annotated[
        int, _count(0, 2**40, "largest message here; 0: limits.message_octets")
    ] = 0
    auth_mechanisms: Annotated[
        tuple[str, ...], _text("SASL mechanisms here, the best first; empty: auth.mechanisms")
    ] = ()
    preauth: Annotated[
        str,
        _text(
            "IMAP on a unix socket: whoever can connect is this account, without a login (PREAUTH of "
            "RFC 9051 §7.1.4); empty: clients log in"
        ),
    ] = ""
    mode: Annotated[
        int,
        Meta(ge=0, le=0o777, description="permissions of a unix socket", extra={"octal": True}),
    ] = 0o660


class AccessConfig(_Section, frozen=True, kw_only=True):
    """Who may do what."""

    relay_from: Annotated[
        Networks,
        _text(
            'clients that may send to any route, the catch-all "*" too; all others only to '
            "named domains"
        ),
    ] = Networks.parse(["127.0.0.0/8", "::1/128"])
    open_relay: Annotated[
        bool,
        _text("true: relay_from may contain the whole Internet (for closed test networks only)"),
    ] = False


class LimitsConfig(_Section, frozen=True, kw_only=True):
    """What one client, one session and one worker may use.  Counts are per worker."""

    message_octets: Annotated[
        int,
        _count(
            65536,  # RFC 5321 §4.5.3.1.7: at least 64K octets
            2**40,
            "largest message, SIZE of RFC 1870 (a 25 MB attachment is 34 MB in base64; the big "
            "providers take 50 MB)",
        ),
    ] = 50 * MIB
    recipients: Annotated[
        int,
        _count(
            100,
            100_000,
            "recipients of one transaction, RCPTMAX of RFC 9422 "
            "(RFC 5321 §4.5.3.1.8: at least 100; Postfix smtpd_recipient_limit 1000)",
        ),
    ] = 1000
    transactions: Annotated[
        int,
        _count(
            0,
            10**9,
            "messages of one session, MAILMAX of RFC 9422; 0: no limit (they cost nothing kept "
            "open)",
        ),
    ] = 0
    command_octets: Annotated[
        int,
        _count(
            1024,  # RFC 5321 §4.5.3.1.4: 512, and what each extension adds
            65536,
            "longest command line with CRLF (RFC 5321 §4.5.3.1.4 and its extensions; Postfix "
            "line_length_limit 2048)",
        ),
    ] = 2048
    received_fields: Annotated[
        int, _count(10, 1000, "Received fields that make a mail loop (RFC 5321 §6.3: at least 100)")
    ] = 100
    sessions: Annotated[
        int,
        _count(
            1, 1_000_000, "sessions at once; more get 421 (about 8 KiB and one descriptor each)"
        ),
    ] = 10_000
    sessions_per_client: Annotated[
        int,
        _count(
            0,
            1_000_000,
            "sessions at once from one address outside relay_from; 0: no limit "
            "(Postfix smtpd_client_connection_count_limit 50)",
        ),
    ] = 50
    errors: Annotated[
        int,
        _count(
            1,
            10_000,
            "refused commands after which a session ends (Postfix smtpd_hard_error_limit 20)",
        ),
    ] = 20
    junk_commands: Annotated[
        int,
        _count(
            1,
            100_000,
            "NOOP, RSET, VRFY, EHLO … without a message between (Postfix "
            "smtpd_junk_command_limit 100)",
        ),
    ] = 100
    error_delay_s: Annotated[
        float,
        _seconds(
            0.0,
            60.0,
            "pause before a refusal when half of errors is used up (Postfix "
            "smtpd_error_sleep_time 1s)",
        ),
    ] = 1.0
    command_s: Annotated[
        float, _seconds(1.0, 3600.0, "wait for the next command (RFC 5321 §4.5.3.2.7: 5 minutes)")
    ] = 300.0
    data_block_s: Annotated[
        float,
        _seconds(
            1.0, 3600.0, "wait for the next octets of mail data (RFC 5321 §4.5.3.2.5: 3 minutes)"
        ),
    ] = 180.0
    data_octets_per_s: Annotated[
        int,
        _count(
            0,
            10**9,
            "slowest mail data taken, measured after its first minute; 0: any (Postfix "
            "smtpd_min_data_rate 500)",
        ),
    ] = 500
    write_s: Annotated[
        float,
        _seconds(1.0, 3600.0, "wait for a client that does not read our replies (as command_s)"),
    ] = 300.0
    tls_handshake_s: Annotated[
        float, _seconds(1.0, 600.0, "wait for a TLS handshake (uvloop and asyncio: 60 s)")
    ] = 60.0
    greeting_delay_s: Annotated[
        float,
        _seconds(
            0.0,
            60.0,
            "wait before the 220; who talks earlier is refused "
            "(RFC 5321 §4.3.1; Postfix postscreen_greet_wait 6s). 0: greet at once; not for "
            "relay_from",
        ),
    ] = 0.0
    heartbeat_s: Annotated[
        float,
        _seconds(
            0.0,
            86_400.0,
            "a worker whose event loop does not turn for so long is killed and started again (Erlang's "
            "heart: 60 s; our longest pause is far below 1 s); 0: never",
        ),
    ] = 60.0
    memory_octets: Annotated[
        int,
        _count(
            4 * MIB,
            2**40,
            "mail data being received that a worker holds in memory; above it content goes to disk "
            "in small pieces, new mail gets 452 and new connections 421",
        ),
    ] = 256 * MIB
    backlog: Annotated[
        int,
        _count(
            1,
            65535,
            "connections the kernel queues for accept (bounded by net.core.somaxconn, 4096)",
        ),
    ] = 1024
    shed_backlog: Annotated[
        float,
        _seconds(
            0.0, 1.0, "part of the backlog that waits all the time: above it some mail is refused; 0: never"
        ),
    ] = 0.75
    shed_turn_s: Annotated[
        float,
        _seconds(
            0.0,
            60.0,
            "a command waits so long before it is read: above it some mail is refused, that of relay_from last "
            "(one turn of the event loop, some 25 us for each busy session); 0: never",
        ),
    ] = 0.02
    shed_commit_s: Annotated[
        float,
        _seconds(
            0.0,
            60.0,
            "no message is on the disk sooner: above it some mail is refused (a sync takes 0.1-30 ms); 0: never",
        ),
    ] = 1.0
    shed_queue_s: Annotated[
        float,
        _seconds(
            0.0,
            86_400.0,
            "mail waits so long for our own CPU before it is sent on: above it some is refused; 0: never",
        ),
    ] = 0.5
    shed_route_s: Annotated[
        float,
        _seconds(
            0.0,
            60 * DAY_S,
            "mail waits so long for a next hop that is up but slower than its senders: recipients there get 450, "
            "but for relay_from and routes with rate_per_s (RFC 5321 §4.5.4.1: a sender tries again after 30 minutes); "
            "0: never",
        ),
    ] = 1800.0


class SpoolConfig(_Section, frozen=True, kw_only=True):
    """The log on disk that owns mail between our 250 and its end.  All amounts are per worker."""

    segment_octets: Annotated[
        int,
        _count(
            64 * 1024,
            1024 * MIB,
            "one file of the log, a multiple of 4096; large: switching is rare, small: compaction "
            "and start-up are short (0.5 s at 100 MB/s)",
        ),
    ] = 64 * MIB
    spare_segments: Annotated[
        int,
        _count(1, 64, "files kept ready beside the one being written (making one takes 0.1-0.2 s)"),
    ] = 2
    compact_below: Annotated[
        float,
        _part("part of a full file that must be live; below it, what lives is copied forward"),
    ] = 0.25
    compact_below_when_full: Annotated[
        float, _part("the same when the disk is short: more copying, less space")
    ] = 0.75
    compact_step_octets: Annotated[
        int, _count(4096, 64 * MIB, "copied in one turn of the event loop (below 1 ms)")
    ] = 64 * 1024
    min_free_octets: Annotated[
        int,
        _count(
            0,
            2**50,
            "free space below which mail gets 452 4.3.1 while results are still written (Postfix "
            "queue_minfree: at least 1.5 times the largest message)",
        ),
    ] = 256 * MIB
    memory_octets: Annotated[
        int,
        _count(0, 2**40, "content of queued mail kept in memory; the rest is read back from disk"),
    ] = 64 * MIB
    messages_max: Annotated[
        int, _count(1, 10**9, "messages in the spool; more get 452 (about 1.5 KiB of memory each)")
    ] = 1_000_000
    chunk_octets: Annotated[
        int, _count(1024, 64 * MIB, "larger messages go into the log in such pieces as they arrive")
    ] = 256 * 1024
    message_pending_octets: Annotated[
        int,
        _count(
            1024, 2**40, "of one message in memory and not on disk, before its sender has to wait"
        ),
    ] = 1 * MIB
    pending_octets: Annotated[
        int, _count(1024, 2**40, "the same for all messages together (16 large ones at once)")
    ] = 16 * MIB
    commit_pending_octets: Annotated[
        int,
        _count(1024, 2**40, "of small messages that wait for the disk; above it, 452 at once"),
    ] = 64 * MIB
    group_octets: Annotated[
        int,
        _count(8192, 16 * MIB, "most that is written at once (more gained nothing when measured)"),
    ] = 1 * MIB
    gather_s: Annotated[
        float,
        _seconds(
            0.0,
            1.0,
            "a busy worker waits so long for more mail to write at once; an idle one never",
        ),
    ] = 0.0005
    results_delay_s: Annotated[
        float, _seconds(0.0, 10.0, "results wait so long for a message to be written with")
    ] = 0.005
    probe_interval_s: Annotated[
        float, _seconds(0.01, 3600.0, "how often a disk that failed is tried again")
    ] = 1.0
    write_method: Annotated[
        Literal["auto", "direct", "dsync", "fdatasync"],
        _text(
            'O_DIRECT and O_DSYNC, RWF_DSYNC, or fdatasync; "auto": the first that the file '
            "system takes"
        ),
    ] = "auto"


class QueueConfig(_Section, frozen=True, kw_only=True):
    """When mail that could not be delivered at once is tried again, and when we give up."""

    retry_s: Annotated[
        tuple[Annotated[float, Meta(ge=1.0, le=7 * DAY_S)], ...],
        Meta(
            min_length=1,
            description="waits between attempts; the last one repeats "
            "(RFC 5321 §4.5.4.1: 30 minutes and more, sooner at first; Postfix 300 to 4000)",
        ),
    ] = (300.0, 600.0, 1200.0, 2400.0, 3600.0)
    expire_s: Annotated[
        float, _seconds(60.0, 60 * DAY_S, "give up and report (RFC 5321 §4.5.4.1: 4 to 5 days)")
    ] = 5 * DAY_S
    bounce_expire_s: Annotated[
        float,
        _seconds(
            60.0, 60 * DAY_S, "give up a report itself (Postfix bounce_queue_lifetime: 5 days)"
        ),
    ] = 5 * DAY_S
    delay_warning_s: Annotated[
        float,
        _seconds(
            0.0,
            60 * DAY_S,
            "tell the sender that it is delayed (RFC 3461 DELAY; sendmail: 4 h); 0: never",
        ),
    ] = 14_400.0
    connect_retry_s: Annotated[
        tuple[Annotated[float, Meta(ge=0.1, le=DAY_S)], ...],
        Meta(
            min_length=1,
            description="waits of a whole route after none of its next hops could be connected to; "
            "the last one repeats (Postfix minimal_backoff_time: 300)",
        ),
    ] = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
    max_connections: Annotated[
        int,
        _count(
            1,
            1_000_000,
            "connections of a worker to all SMTP and LMTP next hops together, and as many to web "
            "hooks (Postfix default_process_limit 100, a process each; ours are 10 KiB)",
        ),
    ] = 1000
    inline_wait_s: Annotated[
        float,
        _seconds(
            0.0,
            540.0,
            'durability "inline": wait for a free connection, then 451 '
            "(RFC 5321 §4.5.3.2.6: clients wait 10 minutes)",
        ),
    ] = 60.0


class DeliveryConfig(_Section, frozen=True, kw_only=True):
    """How we speak to next hops.  RFC 5321 §4.5.3.2 sets the timeouts."""

    connect_s: Annotated[
        float, _seconds(0.1, 3600.0, "connect (Postfix smtp_connect_timeout 30s)")
    ] = 30.0
    greeting_s: Annotated[
        float, _seconds(0.1, 3600.0, "wait for 220 (RFC 5321 §4.5.3.2.1: 5 minutes)")
    ] = 300.0
    helo_s: Annotated[
        float, _seconds(0.1, 3600.0, "wait for EHLO's reply (Postfix smtp_helo_timeout 300s)")
    ] = 300.0
    tls_handshake_s: Annotated[
        float,
        _seconds(0.1, 3600.0, "STARTTLS's reply, and the TLS handshake (uvloop and asyncio: 60 s)"),
    ] = 60.0
    avoid_tls_s: Annotated[
        float,
        _seconds(
            0.0,
            DAY_S,
            'with tls = "opportunistic": how long a next hop whose TLS broke is spoken to in clear '
            "at once (one retry in Postfix's minimal_backoff_time, 300 s, pays for trying); 0: never",
        ),
    ] = 300.0
    avoid_pipelining_s: Annotated[
        float,
        _seconds(
            0.0,
            30 * DAY_S,
            "how long PIPELINING (RFC 2920) is not used with a next hop that answered 503 to it "
            "(longer than the waits in queue.retry_s)",
        ),
    ] = DAY_S
    mail_s: Annotated[
        float, _seconds(0.1, 3600.0, "wait for MAIL's reply (RFC 5321 §4.5.3.2.2: 5 minutes)")
    ] = 300.0
    rcpt_s: Annotated[
        float, _seconds(0.1, 3600.0, "wait for RCPT's reply (RFC 5321 §4.5.3.2.3: 5 minutes)")
    ] = 300.0
    data_init_s: Annotated[
        float, _seconds(0.1, 3600.0, "wait for 354 (RFC 5321 §4.5.3.2.4: 2 minutes)")
    ] = 120.0
    data_block_s: Annotated[
        float,
        _seconds(
            0.1, 3600.0, "wait until a block could be written (RFC 5321 §4.5.3.2.5: 3 minutes)"
        ),
    ] = 180.0
    data_done_s: Annotated[
        float,
        _seconds(
            0.1, 3600.0, "wait for the verdict on the message (RFC 5321 §4.5.3.2.6: 10 minutes)"
        ),
    ] = 600.0
    http_s: Annotated[float, _seconds(0.1, 3600.0, "whole HTTP request (aiohttp: 5 minutes)")] = (
        300.0
    )
    idle_s: Annotated[
        float,
        _seconds(
            0.0,
            300.0,
            "keep an unused connection for the next message (servers close at 10 s under stress)",
        ),
    ] = 5.0
    max_connections: Annotated[
        int,
        _count(
            1,
            10_000,
            "connections to one next hop (Postfix default_destination_concurrency_limit 20)",
        ),
    ] = 20
    initial_connections: Annotated[
        int,
        _count(
            1,
            10_000,
            "connections before success earns more (Postfix initial_destination_concurrency 5)",
        ),
    ] = 5
    recipients: Annotated[
        int,
        _count(
            1,
            1000,
            "recipients of one transaction, unless the peer's LIMITS says less "
            "(Postfix default_destination_recipient_limit 50; RFC 5321 §4.5.3.1.8: peers must "
            "take 100)",
        ),
    ] = 50
    messages_per_connection: Annotated[
        int, _count(0, 10**9, "messages over one connection; 0: as many as come")
    ] = 0


class RouteConfig(_Section, frozen=True, kw_only=True):
    """Where mail goes: the first route that names the recipient's domain; without one 550 5.7.1."""

    domains: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description='"example.org", ".example.org" (all below it), or "*" (any, for clients '
            "in relay_from only)",
        ),
    ]
    recipients: Annotated[
        tuple[str, ...], _text("mailboxes that exist here, all others get 550 5.1.1; empty: any")
    ] = ()
    next_hop: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="tried in this order: mx:, smtp://host:port, smtps://host:port, "
            "lmtp://host:port, "
            "lmtp+unix:/path, store:, maildir:/path, http(s)://…, discard:",
        ),
    ]
    tls: Annotated[
        RouteTls,
        _text(
            'to the next hop: "opportunistic" when offered, "required", "verify" (and its '
            'name), "off" (RFC 3207)'
        ),
    ] = "opportunistic"
    tls_name: Annotated[
        str, _text('name that tls = "verify" expects in the certificate; empty: the host\'s')
    ] = ""
    max_connections: Annotated[int, _count(0, 10_000, "0: delivery.max_connections")] = 0
    recipients_per_transaction: Annotated[int, _count(0, 1000, "0: delivery.recipients")] = 0
    messages_per_connection: Annotated[
        int, _count(0, 10**9, "0: delivery.messages_per_connection")
    ] = 0
    rate_per_s: Annotated[float, _seconds(0.0, 10**6, "messages started a second; 0: no limit")] = (
        0.0
    )
    source_addresses: Annotated[
        tuple[str, ...],
        _text("our addresses to connect from, in turn; one that is not up is left out"),
    ] = ()
    xclient: Annotated[bool, _text("tell a next hop that offers XCLIENT who our client was")] = (
        False
    )
    hold: Annotated[bool, _text("keep the mail queued until `gateway queue release`")] = False
    http_format: Annotated[
        Literal["raw", "json"],
        _text("http next hops: the message itself, or envelope and parsed parts as JSON"),
    ] = "raw"
    http_headers: Annotated[
        dict[str, str], _text("http next hops: header fields to add, for tokens and the like")
    ] = {}  # noqa: RUF012  (msgspec copies it)
    http_secret: Annotated[
        str, _text("http next hops: sign each request with HMAC-SHA256; empty: unsigned")
    ] = ""


class LogConfig(_Section, frozen=True, kw_only=True):
    """What happened, one line an event."""

    file: Annotated[Path | None, _text("absent: standard output; reopened on SIGUSR1")] = None
    format: Annotated[
        Literal["auto", "json", "text"],
        _text('"auto": readable text on a terminal, JSON everywhere else'),
    ] = "auto"
    level: Annotated[
        Literal["debug", "info", "warning", "error"], _text("least important level written")
    ] = "info"
    flush_s: Annotated[float, _seconds(0.0, 10.0, "how long a line may wait for company")] = 0.1
    backlog_octets: Annotated[
        int,
        _count(
            65536,
            2**34,
            "lines kept while the reader of our output sleeps; more are counted as lost",
        ),
    ] = 8 * MIB


class MetricsConfig(_Section, frozen=True, kw_only=True):
    """/metrics on the http service."""

    allow_from: Annotated[Networks, _text("clients that may read it")] = Networks.parse(
        ["127.0.0.0/8", "::1/128"]
    )


class TraceConfig(_Section, frozen=True, kw_only=True):
    """What `gateway trace` reads: the log's lines about messages, kept in state_dir/history."""

    enabled: Annotated[bool, _text("keep it")] = True
    file_octets: Annotated[
        int, _count(MIB, 2**34, "size at which a new file begins (and every day at 0:00 UTC)")
    ] = 64 * MIB
    keep_s: Annotated[float, _seconds(3600.0, 3650 * DAY_S, "age at which a file is removed")] = (
        7 * DAY_S
    )
    keep_octets: Annotated[
        int, _count(MIB, 2**44, "size of all files of a worker; the oldest go first")
    ] = 1024 * MIB


class DnsConfig(_Section, frozen=True, kw_only=True):
    """How names are resolved."""

    timeout_s: Annotated[float, _seconds(0.1, 60.0, "one query (resolv.conf(5): 5 s)")] = 5.0
    cache_max: Annotated[int, _count(0, 10**7, "answers kept, each for a minute")] = 10_000
    stale_s: Annotated[
        float,
        _seconds(
            0.0,
            30 * DAY_S,
            "while name servers fail: answers are used for so much longer (RFC 8767 §5: 1 to 3 days)",
        ),
    ] = DAY_S
    threads: Annotated[
        int,
        _count(
            1,
            256,
            "names asked for at once; a silent name server keeps one for 10 s (resolv.conf(5): two "
            "tries of 5 s)",
        ),
    ] = 16


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    hostname: Annotated[
        str,
        _text(
            "how we call ourselves in greetings, EHLO and Received (RFC 5321 §4.1.1.1: fully "
            "qualified)"
        ),
    ]
    state_dir: Annotated[Path, _text("spool, history, control sockets and store")] = Path(
        "/var/lib/gateway"
    )
    workers: Annotated[int, _count(0, 256, "processes; 0: one for each CPU we may use")] = 0
    user: Annotated[str, _text("account the workers run as when started by root; empty: stay")] = ""
    group: Annotated[str, _text("its group; empty: the account's own")] = ""
    drain_s: Annotated[
        float,
        _seconds(
            0.0,
            3600.0,
            "on SIGTERM: time for running sessions and deliveries (systemd kills after 90 s)",
        ),
    ] = 30.0
    tls: TlsConfig = TlsConfig()
    listen: Annotated[tuple[ListenConfig, ...], Meta(min_length=1)]
    access: AccessConfig = AccessConfig()
    limits: LimitsConfig = LimitsConfig()
    spool: SpoolConfig = SpoolConfig()
    queue: QueueConfig = QueueConfig()
    delivery: DeliveryConfig = DeliveryConfig()
    route: tuple[RouteConfig, ...] = ()
    accounts: AccountsConfig = AccountsConfig()
    auth: AuthConfig = AuthConfig()
    submission: SubmissionConfig = SubmissionConfig()
    store: StoreConfig = StoreConfig()
    pop: PopConfig = PopConfig()
    imap: ImapConfig = ImapConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    trace: TraceConfig = TraceConfig()
    dns: DnsConfig = DnsConfig()

    @property
    def worker_count(self) -> int:
        """Workers to start: what was asked for, or the CPUs this process may use."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def descriptors(self) -> int:
        """Open files and sockets that one worker may need."""
        default = self.delivery.max_connections
        out = sum((route.max_connections or default) * len(route.next_hop) for route in self.route)
        out = min(out, 2 * self.queue.max_connections)
        return self.limits.sessions + out + 1024  # segments, listeners, control, DNS, HTTP

    @property
    def spool_dir(self) -> Path:
        return self.state_dir / "spool"

    @property
    def history_dir(self) -> Path:
        return self.state_dir / "history"

    @property
    def control_dir(self) -> Path:
        return self.state_dir / "control"

    @property
    def accounts_file(self) -> Path:
        return self.state_dir / "accounts.db"

    @property
    def store_dir(self) -> Path:
        return self.store.directory or self.state_dir / "store"
