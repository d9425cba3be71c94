"""Accounts in an LDAP directory: found by a search, verified by a bind.

Owns      LdapSource
Limits    `connections` threads, each with one connection that searches; a bind takes a connection of its own
Errors    SourceError when the server cannot be asked, or finds two entries; a wrong password is WRONG
Blocking  never the loop: bonsai's own asyncio mode polls a socket that is always writable, so it is used in threads
Security  an empty password is refused before it is sent: RFC 4513 §5.1.2 would make it an anonymous bind.  What a
          user typed is escaped in filters (RFC 4515 §3) and names (RFC 4514 §2.4).  Certificates must verify
Standards RFC 4511, RFC 4513 §5.1.3 (simple bind), RFC 4516 (URLs)
Bugs      an unknown user costs the directory a bind that fails at once, a known one the check of a hash

bonsai (libldap) is an extra of the package: pip install mail-gateway[ldap].
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from gateway.accounts.model import Account, SourceError
from gateway.accounts.source import UNKNOWN, WRONG, Busy, RemoteSource, Verified, first_line
from gateway.config_accounts import AccountSourceConfig

T = TypeVar("T")

WAITING_MAX = 200  # questions behind those that are asked now


class LdapSource(RemoteSource):
    """One server."""

    name = "ldap"

    def __init__(self, config: AccountSourceConfig) -> None:
        """Raises SourceError when bonsai is not installed."""
        super().__init__(cache_s=config.cache_s, next_on_failure=config.next_on_failure)
        try:
            import bonsai
        except ImportError:
            raise SourceError("ldap needs bonsai: pip install 'mail-gateway[ldap]'") from None
        self._bonsai: Any = bonsai
        self._config = config
        self._pool = ThreadPoolExecutor(config.connections, thread_name_prefix="ldap")
        self._waiting = 0
        self._own = threading.local()  # .connection: the one this thread searches with

    async def find(self, user: str) -> Account | None:
        dn = await self._run(self._find_dn, user)
        return self.remember(user, None if dn is None else Account(user, source=self.name))

    async def verify(self, user: str, password: str) -> Verified | bool:
        if not password:
            return WRONG
        found = await self._run(self._verify, user, password)
        if not isinstance(found, bool):
            self.remember(user, found.account)
        return found

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- in a thread -----------------------------------------------------------------------------------

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        if self._waiting >= WAITING_MAX:
            raise Busy("too many questions to the directory wait")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, function, *arguments)
        except (self._bonsai.LDAPError, OSError) as error:
            raise SourceError(f"{self._config.url}: {error}") from None
        finally:
            self._waiting -= 1

    def _client(self, dn: str, password: str) -> Any:
        config = self._config
        client = self._bonsai.LDAPClient(config.url, config.starttls and config.url.startswith("ldap:"))
        client.set_cert_policy("demand")
        if dn:
            client.set_credentials("SIMPLE", user=dn, password=password)
        return client

    def _verify(self, user: str, password: str) -> Verified | bool:
        dn = self._find_dn(user)
        known = dn is not None
        if dn is None:  # as many round trips as for the others
            dn = f"cn={secrets.token_hex(8)},{self._config.base or 'cn=nobody'}"
        try:
            connection = self._client(dn, password).connect(timeout=self._config.timeout_s)
        except self._bonsai.AuthenticationError:
            return WRONG if known else UNKNOWN
        except (self._bonsai.InvalidDN, self._bonsai.NoSuchObjectError):
            return UNKNOWN
        connection.close()
        return Verified(Account(user, source=self.name)) if known else UNKNOWN

    def _find_dn(self, user: str) -> str | None:
        local_part, _, domain = user.rpartition("@")
        fields = {"user": user, "local_part": local_part, "domain": domain}
        if self._config.dn_template:
            escape = self._bonsai.escape_attribute_value
            dn = _filled(self._config.dn_template, {k: escape(v) for k, v in fields.items()})
            entries = self._search(dn, self._bonsai.LDAPSearchScope.BASE, "(objectClass=*)")
        else:
            escape = self._bonsai.escape_filter_exp
            wanted = _filled(self._config.filter, {k: escape(v) for k, v in fields.items()})
            entries = self._search(self._config.base, self._bonsai.LDAPSearchScope.SUBTREE, wanted)
        if len(entries) > 1:
            raise SourceError(f"{self._config.url}: {len(entries)} entries for {user}")
        return str(entries[0].dn) if entries else None

    def _search(self, base: str, scope: Any, wanted: str) -> list[Any]:
        """With the connection this thread has; a connection that went stale is made anew once."""
        for again in (False, True):
            connection = getattr(self._own, "connection", None)
            try:
                if connection is None:
                    connection = self._own.connection = self._open()
                found: list[Any] = connection.search(
                    base, scope, wanted, attrlist=["1.1"], timeout=self._config.timeout_s, sizelimit=2
                )
                return found
            except (self._bonsai.NoSuchObjectError, self._bonsai.InvalidDN):
                return []
            except self._bonsai.LDAPError:
                self._own.connection = None
                if again or connection is None:
                    raise
                with contextlib.suppress(self._bonsai.LDAPError):
                    connection.close()
        raise AssertionError("unreachable")

    def _open(self) -> Any:
        config = self._config
        password = ""
        if config.bind_password_file is not None:
            password = first_line(config.bind_password_file)
        return self._client(config.bind_dn, password).connect(timeout=config.timeout_s)


def _filled(template: str, fields: dict[str, str]) -> str:
    """In one pass: what is filled in is not looked at again."""
    return re.sub(r"\{(user|local_part|domain)\}", lambda found: fields[found[1]], template)
