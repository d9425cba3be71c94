"""Makes the accounts of a worker, or of a command, out of the configuration.

Owns      Accounts, open_accounts()
Errors    SourceError: the database or a file cannot be opened
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from gateway.accounts.authenticator import Authenticator
from gateway.accounts.database import Database
from gateway.accounts.directory import Directory
from gateway.accounts.embedded import EmbeddedSource
from gateway.accounts.files import FileSource, parse_htpasswd, parse_passwd_file
from gateway.accounts.model import SourceError
from gateway.accounts.passwords import Hasher
from gateway.accounts.source import Checks, Source
from gateway.accounts.tokens import Tokens
from gateway.config_accounts import AccountsConfig, AccountSourceConfig, AuthConfig
from gateway.log import Log

RETIRE_S = 120.0  # above the longest question: timeout_s of a source, and the longest delay of a login

EMBEDDED = AccountSourceConfig(type="embedded")


class Accounts:
    """All that a worker has of it: `directory` for mail, `auth` for logins."""

    def __init__(
        self,
        accounts: AccountsConfig,
        auth: AuthConfig,
        path: Path,
        *,
        hostname: str,
        is_local: Callable[[str], bool],
        log: Log,
    ) -> None:
        """path: of the database; is_local: see Directory.  Raises SourceError."""
        self.database = Database(path)
        self.checks = Checks(auth.checks, auth.checks_waiting)
        self.directory = self._directory(accounts, auth, is_local)
        self.auth = Authenticator(
            auth,
            self.directory,
            hostname=hostname,
            salt_key=self.database.salt_key(),
            log=log,
            tokens=_tokens(auth),
        )

    def reload(
        self, accounts: AccountsConfig, auth: AuthConfig, *, is_local: Callable[[str], bool]
    ) -> None:
        """Logins and look-ups from now on follow the new configuration.  Raises SourceError.

        auth.checks and auth.checks_waiting are taken at the start of the worker.
        """
        directory = self._directory(accounts, auth, is_local)
        retired = self.directory, self.auth.tokens
        self.directory = directory
        self.auth.reload(auth, directory, _tokens(auth))
        self.auth.run(_retire(*retired))

    def _directory(
        self, accounts: AccountsConfig, auth: AuthConfig, is_local: Callable[[str], bool]
    ) -> Directory:
        sources = make_sources(accounts, auth, self.database, self.checks)
        return Directory(accounts, self.database, sources, is_local=is_local)

    async def close(self) -> None:
        await self.auth.close()
        self.checks.close()
        self.database.close()


async def _retire(directory: Directory, tokens: Tokens | None) -> None:
    """Close what a reload replaced, when no login waits for it any more."""
    await asyncio.sleep(RETIRE_S)
    await directory.close()
    if tokens is not None:
        await tokens.close()


def hasher_of(auth: AuthConfig) -> Hasher:
    """Makes new verifiers as [auth] wants them."""
    return Hasher(
        time_cost=auth.argon2_time_cost,
        memory_kib=auth.argon2_memory_kib,
        parallelism=auth.argon2_parallelism,
        scram_iterations=auth.scram_iterations,
    )


def make_sources(
    accounts: AccountsConfig, auth: AuthConfig, database: Database, checks: Checks
) -> list[Source]:
    """One for each [[accounts.source]]; the embedded one without any."""
    return [
        make_source(config, accounts, auth, database, checks)
        for config in accounts.source or (EMBEDDED,)
    ]


def make_source(
    config: AccountSourceConfig,
    accounts: AccountsConfig,
    auth: AuthConfig,
    database: Database,
    checks: Checks,
) -> Source:
    """What one [[accounts.source]] means.  Raises SourceError."""
    if config.type == "ldap":
        from gateway.accounts.ldap import LdapSource  # an extra

        return LdapSource(config)
    if config.type == "http":
        from gateway.accounts.web import WebSource  # brings aiohttp: 13 MB

        return WebSource(config)
    hasher = hasher_of(auth)
    if config.type == "embedded":
        return EmbeddedSource(database, hasher, checks, next_on_failure=config.next_on_failure)
    if config.file is None:
        raise SourceError(f"accounts.source: {config.type} needs file")
    return FileSource(
        config.file,
        parse_htpasswd if config.type == "htpasswd" else parse_passwd_file,
        checks,
        name=config.type,
        default_domain=accounts.default_domain,
        nobody=hasher.nobody,
        next_on_failure=config.next_on_failure,
    )


def _tokens(auth: AuthConfig) -> Tokens | None:
    oauth = auth.oauth
    configured = oauth.introspection_url or oauth.jwks_url or oauth.jwks_file
    return Tokens(oauth) if configured else None
