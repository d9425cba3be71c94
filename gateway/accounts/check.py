"""What is wrong with [accounts] and [auth], and what an operator should know of their sources.

Owns      check_config() for the configuration as text, ask_sources() for what it names
Errors    none raised: problems are (key path, message), advice is sentences
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from gateway.accounts.build import EMBEDDED, make_source
from gateway.accounts.database import Database
from gateway.accounts.model import SourceError
from gateway.accounts.names import normal_user
from gateway.accounts.source import Checks
from gateway.config_accounts import AccountsConfig, AccountSourceConfig, AuthConfig, OAuthConfig
from gateway.protocol.sasl import MECHANISMS

Problem = tuple[tuple[str | int, ...], str]

_SCHEMES = {"ldap": ("ldap", "ldaps", "ldapi"), "http": ("http", "https")}


def check_config(accounts: AccountsConfig, auth: AuthConfig) -> Iterator[Problem]:
    """Every contradiction in them."""
    default = accounts.default_domain
    if default and not normal_user("any", default):
        yield ("accounts", "default_domain"), f'"{default}" is no domain'
    if accounts.postmaster and not normal_user(accounts.postmaster, default):
        yield ("accounts", "postmaster"), f'"{accounts.postmaster}" is no local-part@domain'
    if accounts.separator and (accounts.separator.isalnum() or accounts.separator in '@". '):
        yield ("accounts", "separator"), f'"{accounts.separator}" cannot separate; use + or -'
    for index, source in enumerate(accounts.source):
        yield from _check_source(source, ("accounts", "source", index))
    yield from check_mechanisms(auth.mechanisms, ("auth", "mechanisms"))
    if auth.argon2_memory_kib < 8 * auth.argon2_parallelism:
        yield ("auth", "argon2_memory_kib"), "must be at least 8 times argon2_parallelism (RFC 9106 §3.1)"
    if auth.failure_delay_s > auth.failure_delay_max_s:
        yield ("auth", "failure_delay_s"), "is more than failure_delay_max_s"
    for index, name in enumerate(auth.master_users):
        if not normal_user(name, default):
            yield ("auth", "master_users", index), f'"{name}" is no local-part@domain'
    yield from _check_oauth(auth.oauth)


def check_mechanisms(names: tuple[str, ...], at: tuple[str | int, ...]) -> Iterator[Problem]:
    """Of auth.mechanisms, or of a listener's own."""
    for index, name in enumerate(names):
        if name not in MECHANISMS:
            yield (*at, index), f'"{name}" is not known; use of: {", ".join(MECHANISMS)}'


def _check_source(source: AccountSourceConfig, at: tuple[str | int, ...]) -> Iterator[Problem]:
    if source.type in ("htpasswd", "passwd-file") and source.file is None:
        yield (*at, "file"), f'is missing: type = "{source.type}" reads it'
    if source.type in _SCHEMES:
        schemes = _SCHEMES[source.type]
        try:
            url = urlsplit(source.url)
            fits = url.scheme in schemes and (bool(url.hostname) or url.scheme == "ldapi")
        except ValueError:
            fits = False
        if not fits:
            yield (*at, "url"), f"expected {'://… or '.join(schemes)}://…"
    if source.type == "ldap":
        if bool(source.base) == bool(source.dn_template):
            yield at, "needs either base (and filter) or dn_template"
        if source.base and "{" not in source.filter:
            yield (*at, "filter"), "names no {user}, {local_part} or {domain}: everybody would be found"
        if source.dn_template and "{" not in source.dn_template:
            yield (*at, "dn_template"), "names no {user}, {local_part} or {domain}"
        if bool(source.bind_dn) != bool(source.bind_password_file):
            yield (*at, "bind_dn"), "goes with bind_password_file"


def _check_oauth(oauth: OAuthConfig) -> Iterator[Problem]:
    ways = [key for key in ("introspection_url", "jwks_url", "jwks_file") if getattr(oauth, key)]
    if len(ways) > 1:
        yield ("auth", "oauth", ways[1]), f"cannot stand beside {ways[0]}: one of them judges the tokens"
    if ways and ways[0] != "introspection_url" and not oauth.issuer:
        yield ("auth", "oauth", "issuer"), "is missing: whose tokens the keys sign"
    for key in ("introspection_url", "jwks_url"):
        url = getattr(oauth, key)
        if url and urlsplit(url).scheme not in ("http", "https"):
            yield ("auth", "oauth", key), "expected https://…"


def advice(accounts: AccountsConfig, auth: AuthConfig) -> Iterator[str]:
    """What works and is still worth a look."""
    for index, source in enumerate(accounts.source):
        url = urlsplit(source.url)
        in_clear = url.scheme == "http" or (url.scheme == "ldap" and not source.starttls)
        if in_clear and url.hostname not in ("127.0.0.1", "::1", "localhost"):
            yield f"accounts.source[{index}]: passwords go to {url.hostname} in clear"
    weak = [name for name in auth.mechanisms if name == "CRAM-MD5" or "SHA-1" in name]
    if weak:
        yield f"auth.mechanisms: {', '.join(weak)}: weak, for old clients only"
    if auth.plaintext_auth:
        outside = [str(n) for n in auth.plaintext_auth.networks if not n.is_loopback]
        if outside:
            yield f"auth.plaintext_auth: passwords in clear from {', '.join(outside)}"


async def ask_sources(accounts: AccountsConfig, auth: AuthConfig, path: Path) -> list[str]:
    """Can each source be asked, and can everything in it be used?  path: of the database."""
    checks = Checks(1, 1)
    found: list[str] = []
    try:
        # Before the first start there is no database yet, and nothing wrong with that.
        with closing(Database(path if path.exists() else Path(":memory:"))) as database:
            for config in accounts.source or (EMBEDDED,):
                try:
                    source = make_source(config, accounts, auth, database, checks)
                    found += [f"accounts: {problem}" for problem in source.problems()]
                    await source.find("gateway-check@example.invalid")
                    await source.close()
                except SourceError as error:
                    found.append(f"accounts: {error}")
    except SourceError as error:
        found.append(str(error))
    checks.close()
    return found
