"""All sources together: who exists, where mail for an address goes, whose password this is.

Owns      Directory
Flow      resolve(forward_path) → aliases → account → sub-address → catch-all → Deliveries, Unknown or Unavailable
          verify(user, password): the sources in their order, the first that knows the user decides
Limits    accounts.alias_depth, accounts.alias_targets; MISSES remote look-ups for one address; RECENT_S, for which
          an address that leads somewhere keeps leading there
Errors    Unavailable and SourceError are transient; an alias that leads in a circle is Unavailable, too:
          somebody will repair it, and the mail must not bounce until then
Blocking  embedded and file sources answer at once, ldap and http in a task: then done() is called later
Security  a user that no source knows costs one hash like a user that exists
Standards RFC 5321 §3.9.1 (aliases), RFC 5233 (sub-addresses), §4.5.1 (postmaster)
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Any

import msgspec

from gateway.accounts.database import Database
from gateway.accounts.model import (
    Account,
    Deliveries,
    Delivery,
    Resolution,
    SourceError,
    Unavailable,
    Unknown,
)
from gateway.accounts.names import normal_user
from gateway.accounts.source import UNKNOWN, WRONG, Ask, LocalSource, Source, Verified
from gateway.config_accounts import AccountsConfig
from gateway.protocol.scram import ScramKeys

logger = logging.getLogger(__name__)

# A message is asked for at RCPT and again at its delivery, and a burst comes for one address.
RECENT_S = 1.0
RECENT_MAX = 10_000
MISSES = 100  # more remote look-ups than this for one address: an alias to a long list elsewhere


class Directory:
    """Answers for one configuration; a reload makes a new one."""

    def __init__(
        self,
        config: AccountsConfig,
        database: Database,
        sources: Sequence[Source],
        *,
        is_local: Callable[[str], bool],
    ) -> None:
        """is_local: is this domain (normal form) delivered into the store?"""
        self.config = config
        self.sources = tuple(sources)
        self._database = database
        self._is_local = is_local
        self._tasks: set[asyncio.Task[None]] = set()
        self._recent: dict[str, tuple[float, int, Deliveries]] = {}  # until when, own changes

    # -- mail ----------------------------------------------------------------------------------------------------------

    def resolve(self, forward_path: str, done: Callable[[Resolution], None]) -> None:
        """Where mail for the address goes; done() is called before this returns unless a remote source is asked."""
        recent = self._recent.get(forward_path)
        changes = self._database.own_changes
        if recent is not None and monotonic() < recent[0] and changes == recent[1]:
            done(recent[2])
            return
        known: dict[tuple[Source, str], Account | None] = {}
        try:
            found = self._resolve(forward_path, known)
            if isinstance(found, Deliveries):
                if len(self._recent) >= RECENT_MAX:
                    self._recent.clear()
                self._recent[forward_path] = (monotonic() + RECENT_S, changes, found)
            done(found)
        except _Miss as miss:
            self._later(self._ask_and_resolve(forward_path, known, miss, done))

    async def _ask_and_resolve(
        self,
        forward_path: str,
        known: dict[tuple[Source, str], Account | None],
        miss: _Miss,
        done: Callable[[Resolution], None],
    ) -> None:
        result: Resolution = Unavailable(f"more than {MISSES} look-ups")
        for _ in range(MISSES):
            try:
                known[miss.source, miss.user] = await miss.source.find(miss.user)
                result = self._resolve(forward_path, known)
                break
            except _Miss as another:
                miss = another
            except SourceError as error:
                result = Unavailable(str(error))
                break
        done(result)

    def _resolve(
        self, forward_path: str, known: dict[tuple[Source, str], Account | None]
    ) -> Resolution:
        address = normal_user(unquoted(forward_path))
        if not address:
            return Unknown()
        deliveries: dict[str, Delivery] = {}
        forward: dict[str, None] = {}
        disabled = False
        todo = [(address, 0, frozenset[str]())]
        seen: set[str] = set()
        try:
            while todo:
                at, depth, above = todo.pop()
                if at in seen and at not in above:
                    continue  # another way to the same address: it was followed already
                seen.add(at)
                if depth > self.config.alias_depth:
                    return Unavailable(f"aliases of {address} are nested too deep")
                targets = () if at in above else self._targets(at)
                found = None if targets else self._mailbox(at, known)
                if found is None and not targets:
                    if at in above:
                        return Unavailable(f"aliases of {address} lead in a circle: {at}")
                    targets = self._remaining(at, above)
                if targets:
                    todo += [(target, depth + 1, above | {at}) for target in reversed(targets)]
                elif found is not None and found.account.disabled:
                    disabled = True
                elif found is not None:
                    deliveries.setdefault(found.account.name, found)
                elif depth and not self._is_local(at.rpartition("@")[2]):
                    forward[at] = None
                if len(deliveries) + len(forward) + len(todo) > self.config.alias_targets:
                    return Unavailable(f"{address} stands for more than accounts.alias_targets")
        except SourceError as error:
            return Unavailable(str(error))
        if not deliveries and not forward:
            return Unknown(disabled)
        return Deliveries(tuple(deliveries.values()), tuple(forward))

    def _targets(self, address: str) -> tuple[str, ...]:
        """What an alias of this name, with or without its sub-address, stands for."""
        found = self._database.targets(address)
        if not found:
            base, _ = self._split(address)
            found = self._database.targets(base) if base else ()
        return found

    def _remaining(self, address: str, above: frozenset[str]) -> tuple[str, ...]:
        """Who gets mail for an address that nobody has: the catch-all's targets, or the postmaster."""
        local_part, _, domain = address.rpartition("@")
        targets = self._database.targets("@" + domain)
        postmaster = normal_user(self.config.postmaster, self.config.default_domain)
        if not targets and local_part == "postmaster" and postmaster and self._is_local(domain):
            targets = (postmaster,)  # RFC 5321 §4.5.1
        return tuple(t for t in targets if t != address and t not in above)

    def _mailbox(
        self, address: str, known: dict[tuple[Source, str], Account | None]
    ) -> Delivery | None:
        account = self._peek(address, known)
        if account is not None:
            return Delivery(account, address)
        base, detail = self._split(address)
        account = self._peek(base, known) if base else None
        if account is None:
            return None
        mailbox = detail if self.config.sub_address_mailbox else "INBOX"
        return Delivery(account, address, mailbox)

    def _split(self, address: str) -> tuple[str, str]:
        """("alice@example.org", "news") of alice+news@example.org; ("", "") without a sub-address."""
        local_part, _, domain = address.rpartition("@")
        separator = self.config.separator
        at = local_part.find(separator) if separator else -1
        if at <= 0 or at == len(local_part) - 1:
            return "", ""
        return f"{local_part[:at]}@{domain}", local_part[at + 1 :]

    def _peek(self, user: str, known: dict[tuple[Source, str], Account | None]) -> Account | None:
        for source in self.sources:
            key = (source, user)
            if key in known:
                account = known[key]
            else:
                try:
                    account = source.peek(user)
                except Ask:
                    raise _Miss(source, user) from None
            if account is not None:
                return self._complete(account)
        return None

    # -- logins --------------------------------------------------------------------------------------------------------

    def user(self, text: str) -> str:
        """The normal form of a name typed at login; "" when it can be nobody's."""
        return normal_user(text, self.config.default_domain)

    def abilities(self) -> frozenset[str]:
        """What works for every account of every source."""
        common = None
        for source in self.sources:
            can = source.abilities()
            common = can if common is None else common & can
        return common or frozenset()

    async def find(self, user: str) -> Account | None:
        """The account of this name.  Raises SourceError."""
        for source in self.sources:
            account = await source.find(user)
            if account is not None:
                return self._complete(account)
        return None

    async def verify(self, user: str, password: str) -> tuple[Source, Verified] | None:
        """Who says that the password is right; None: nobody.  Raises SourceError."""
        paid = False  # somebody computed a hash for this user
        for source in self.sources:
            found = await source.verify(user, password) if user else UNKNOWN
            if isinstance(found, Verified):
                return source, Verified(self._complete(found.account), found.mark)
            paid |= found is WRONG
            if found is WRONG and not source.next_on_failure:
                break
        local = [source for source in self.sources if isinstance(source, LocalSource)]
        if not paid and local:  # unknown: the same work for nothing
            await local[-1].compute(local[-1].nobody(), password)
        return None

    def is_current(self, source: Source, user: str, verified: Verified) -> Account | None:
        """The account that verify() found earlier, None when its password changed or it is gone.

        Raises SourceError.
        """
        account = source.is_current(user, verified)
        return None if account is None else self._complete(account)

    async def keys(
        self, user: str, kind: str, nobody: ScramKeys
    ) -> tuple[Account, ScramKeys] | None:
        """For SCRAM.  Raises SourceError."""
        for source in self.sources:
            found = await source.keys(user, kind, nobody)
            if found is not None:
                return self._complete(found[0]), found[1]
        return None

    async def secret(self, user: str) -> tuple[Account, str] | None:
        """For APOP and CRAM-MD5.  Raises SourceError."""
        for source in self.sources:
            found = await source.secret(user)
            if found is not None:
                return self._complete(found[0]), found[1]
        return None

    def _complete(self, account: Account) -> Account:
        """With the quotas of the configuration where it has none of its own."""
        if account.quota_octets is not None and account.quota_messages is not None:
            return account
        octets, messages = account.quota_octets, account.quota_messages
        return msgspec.structs.replace(
            account,
            quota_octets=self.config.quota_octets if octets is None else octets,
            quota_messages=self.config.quota_messages if messages is None else messages,
        )

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("look-up failed", exc_info=task.exception())

    async def close(self) -> None:
        """No more questions."""
        for source in self.sources:
            await source.close()


def unquoted(mailbox: str) -> str:
    """RFC 5321 §4.1.2: the quoted form of a local part names the same mailbox."""
    local_part, _, domain = mailbox.rpartition("@")
    if len(local_part) < 2 or local_part[0] != '"':
        return mailbox
    return re.sub(r"\\(.)", r"\1", local_part[1:-1]) + "@" + domain


class _Miss(Exception):
    def __init__(self, source: Source, user: str) -> None:
        super().__init__(user)
        self.source = source
        self.user = user
