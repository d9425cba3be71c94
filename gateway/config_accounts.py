"""What can be configured about accounts and logins; see config_model.py.

Owns      AccountsConfig, AuthConfig and the sections within them
Standards RFC 9106 §4 (Argon2), RFC 7677 §4 (SCRAM), RFC 8314 §3, RFC 5233, RFC 7662, RFC 7517
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from gateway.config_fields import DAY_S, MIB
from gateway.config_fields import Section as _Section
from gateway.config_fields import count as _count
from gateway.config_fields import seconds as _seconds
from gateway.config_fields import text as _text
from gateway.config_values import Networks


class AccountSourceConfig(_Section, frozen=True, kw_only=True):
    """Where accounts are looked up, the first source that knows a user decides.

    Without any: the embedded database alone.
    """

    type: Annotated[
        Literal["embedded", "htpasswd", "passwd-file", "ldap", "http"],
        _text(
            '"embedded": what `gateway user` keeps in state_dir; "htpasswd": name:hash lines; '
            '"passwd-file": as Dovecot reads them; "ldap": a directory; "http": a web service'
        ),
    ]
    file: Annotated[
        Path | None, _text("htpasswd and passwd-file: read again as soon as it changes")
    ] = None
    url: Annotated[
        str, _text("ldap://host[:port], ldaps://… or ldapi://path; http(s)://… of the web service")
    ] = ""
    starttls: Annotated[bool, _text("ldap: encrypt an ldap:// connection (RFC 4511 §4.14)")] = True
    bind_dn: Annotated[
        str, _text("ldap: who searches for users; empty: anonymous, or dn_template")
    ] = ""
    bind_password_file: Annotated[
        Path | None, _text("ldap: first line: the password of bind_dn")
    ] = None
    base: Annotated[str, _text("ldap: where users are searched, the whole subtree")] = ""
    filter: Annotated[
        str, _text("ldap: finds one entry; {user}, {local_part} and {domain} are filled in")
    ] = "(mail={user})"
    dn_template: Annotated[
        str,
        _text(
            'ldap: the entry itself, "uid={local_part},ou=people,dc=example,dc=org"; then nothing '
            "is searched"
        ),
    ] = ""
    secret_file: Annotated[
        Path | None, _text("http: first line: sent as Authorization: Bearer …")
    ] = None
    timeout_s: Annotated[
        float, _seconds(0.1, 60.0, "ldap and http: one question (Postfix ldap timeout 10)")
    ] = 10.0
    connections: Annotated[int, _count(1, 1000, "ldap and http: at once, for each worker")] = 4
    cache_s: Annotated[
        float, _seconds(0.0, DAY_S, "ldap and http: how long it is remembered who exists")
    ] = 60.0
    next_on_failure: Annotated[
        bool, _text("true: a wrong password asks the next source instead of being refused")
    ] = False


class AccountsConfig(_Section, frozen=True, kw_only=True):
    """Who has a mailbox here: `store:` routes take mail for these, everybody else gets 550 5.1.1."""

    default_domain: Annotated[
        str,
        _text('added to names without "@" at login and in `gateway user`; empty: none is'),
    ] = ""
    postmaster: Annotated[
        str,
        _text(
            "account that gets the mail for postmaster@ of every local domain where neither an "
            "account nor an alias does (RFC 5321 §4.5.1)"
        ),
    ] = ""
    separator: Annotated[
        str,
        Meta(
            max_length=1,
            description="alice+news@ is delivered to alice (RFC 5233; Postfix "
            "recipient_delimiter); empty: off",
        ),
    ] = "+"
    sub_address_mailbox: Annotated[
        bool,
        _text('deliver alice+news@ into her mailbox "news" when it exists, else into INBOX'),
    ] = False
    quota_octets: Annotated[
        int, _count(0, 2**60, "of an account that has no quota of its own; 0: no limit")
    ] = 10 * 1024 * MIB
    quota_messages: Annotated[int, _count(0, 10**12, "the same, in messages; 0: no limit")] = 0
    alias_depth: Annotated[
        int, _count(1, 1000, "aliases of aliases (sendmail MaxAliasRecursion 10)")
    ] = 10
    alias_targets: Annotated[
        int, _count(1, 100_000, "addresses one alias may stand for (Postfix: 1000)")
    ] = 1000
    source: tuple[AccountSourceConfig, ...] = ()


class OAuthConfig(_Section, frozen=True, kw_only=True):
    """Who judges the tokens of OAUTHBEARER (RFC 7628) and XOAUTH2; without it neither is offered."""

    introspection_url: Annotated[str, _text("ask there about each token (RFC 7662)")] = ""
    client_id: Annotated[str, _text("who we are there")] = ""
    client_secret_file: Annotated[Path | None, _text("first line: our secret there")] = None
    jwks_url: Annotated[str, _text("or: keys that sign the tokens, which are JWT (RFC 7517)")] = ""
    jwks_file: Annotated[Path | None, _text("the same from a file")] = None
    issuer: Annotated[str, _text('the "iss" a token must carry; needed with keys')] = ""
    audience: Annotated[str, _text('an "aud" a token must carry; empty: any')] = ""
    scope: Annotated[str, _text("a scope a token must carry; empty: any")] = ""
    user_claim: Annotated[str, _text("the claim that names the account")] = "email"
    timeout_s: Annotated[float, _seconds(0.1, 60.0, "one question")] = 10.0
    cache_s: Annotated[
        float, _seconds(0.0, 3600.0, "a token is believed so long, never past its end")
    ] = 60.0
    openid_configuration: Annotated[
        str, _text("URL told to clients whose token failed (RFC 7628 §3.2.2)")
    ] = ""


class AuthConfig(_Section, frozen=True, kw_only=True):
    """How clients prove who they are, and what guessing costs them."""

    mechanisms: Annotated[
        tuple[str, ...],
        _text(
            "SASL mechanisms, the best first; what the accounts or the connection cannot do is left "
            "out.  Only by naming them: SCRAM-SHA-256-PLUS (binds to our certificate, RFC 5929; GNU "
            "SASL's clients prefer it and then want tls-exporter, which Python's TLS lacks), "
            "SCRAM-SHA-1, SCRAM-SHA-1-PLUS and CRAM-MD5 (weak)"
        ),
    ] = ("SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN", "EXTERNAL")
    plaintext_auth: Annotated[
        Networks,
        _text("clients that may log in without TLS (RFC 8314 §3); loopback: nobody can listen"),
    ] = Networks.parse(["127.0.0.0/8", "::1/128"])
    master_users: Annotated[
        tuple[str, ...],
        _text("accounts that may act for any other, by the authzid of SASL PLAIN and the like"),
    ] = ()
    argon2_time_cost: Annotated[
        int, _count(1, 1000, "passes over the memory (RFC 9106 §4, second choice: 3)")
    ] = 3
    argon2_memory_kib: Annotated[
        int, _count(8, 4 * MIB, "memory of one check (RFC 9106 §4, second choice: 64 MiB)")
    ] = 64 * 1024
    argon2_parallelism: Annotated[int, _count(1, 255, "lanes of one check (RFC 9106 §4: 4)")] = 4
    scram_iterations: Annotated[
        int,
        _count(
            4096,
            10**7,
            "of new passwords; each login costs the client so many.  RFC 7677 §4: at least 4096, "
            "far too few should the database be stolen; Cyrus SASL's clients take no more than 65536",
        ),
    ] = 65_536
    checks: Annotated[
        int,
        _count(1, 64, "password checks at once in a worker; each takes argon2_memory_kib"),
    ] = 2
    checks_waiting: Annotated[
        int, _count(1, 100_000, "more that wait; then logins fail for the moment")
    ] = 200
    cache_s: Annotated[
        float,
        _seconds(
            0.0,
            DAY_S,
            "a login that succeeded is known again so long without the work of a check: mail "
            "clients log in every minute.  Kept as a keyed hash, in memory, and forgotten when the "
            "password changes (ldap and http: at the end of the time); 0: never",
        ),
    ] = 600.0
    cache_max: Annotated[int, _count(0, 10**7, "logins known at once (about 0.5 KiB each)")] = (
        10_000
    )
    failure_delay_s: Annotated[
        float,
        _seconds(
            0.0,
            60.0,
            "before a refusal; doubles with each failure (Dovecot auth_failure_delay 2 s)",
        ),
    ] = 2.0
    failure_delay_max_s: Annotated[
        float, _seconds(0.0, 300.0, "the longest such delay (Dovecot: 15 s)")
    ] = 15.0
    failures_kept_s: Annotated[
        float, _seconds(1.0, DAY_S, "a client or an account without failures starts anew after it")
    ] = 900.0
    failures_max: Annotated[
        int, _count(100, 10**7, "clients and accounts with failures remembered (0.3 KiB each)")
    ] = 50_000
    wait_max_s: Annotated[
        float,
        _seconds(
            0.0,
            600.0,
            "a login waits so long for its turn behind failures of its own address, then it fails "
            "for the moment",
        ),
    ] = 60.0
    known_s: Annotated[
        float,
        _seconds(
            0.0,
            365 * DAY_S,
            "an address that logged in to an account is not slowed by others' failures so long",
        ),
    ] = 30 * DAY_S
    oauth: OAuthConfig = OAuthConfig()


class SubmissionConfig(_Section, frozen=True, kw_only=True):
    """Listeners with service = "submission": mail from users, after AUTH alone (RFC 6409)."""

    any_sender: Annotated[
        bool,
        _text(
            "true: an authenticated client may send as anybody; else the reverse-path must be the "
            "account's name, one of its sub-addresses, or an alias that leads to it (RFC 6409 §6.1)"
        ),
    ] = False
    add_fields: Annotated[
        bool, _text("add Date and Message-ID where they are missing (RFC 6409 §8.1, §8.2)")
    ] = True
