"""The embedded source: accounts of the database, Argon2id and SCRAM keys side by side.

Owns      EmbeddedSource, make_record()
"""

from __future__ import annotations

from time import monotonic

from gateway.accounts.database import Database
from gateway.accounts.model import Account, Record, SourceError
from gateway.accounts.passwords import Hasher, prepared, scram_keys, scram_text
from gateway.accounts.source import Checks, LocalSource

LOOK_S = 1.0  # a first account that asks for APOP is offered it so much later

_SCRAM = frozenset({"SHA-256", "SHA-1"})
_SCRAM_AND_SECRET = _SCRAM | {"secret"}


class EmbeddedSource(LocalSource):
    """What `gateway user` writes."""

    name = "embedded"
    prepares = True

    def __init__(
        self, database: Database, hasher: Hasher, checks: Checks, *, next_on_failure: bool = False
    ) -> None:
        super().__init__(checks, next_on_failure=next_on_failure)
        self._database = database
        self._hasher = hasher
        self._has_secrets = False
        self._looked_at = (-LOOK_S, 0)  # time.monotonic(), changes of our own

    def record(self, user: str) -> Record | None:
        return self._database.record(user)

    def nobody(self) -> str:
        return self._hasher.nobody

    def abilities(self) -> frozenset[str]:
        # APOP and CRAM-MD5 are offered as soon as one account asked for them; for the others they fail.
        now, changes = monotonic(), self._database.own_changes
        if now >= self._looked_at[0] + LOOK_S or changes != self._looked_at[1]:  # every greeting asks
            self._looked_at = (now, changes)
            try:
                self._has_secrets = self._database.has_secrets()
            except SourceError:
                self._has_secrets = False
        return _SCRAM_AND_SECRET if self._has_secrets else _SCRAM

    def problems(self) -> list[str]:
        return self._database.check()


def make_record(
    account: Account, password: str, hasher: Hasher, *, allow_apop: bool = False, sha1: bool = False
) -> Record:
    """What is kept of a new password.  Computes for 0.1 s.  Raises ValueError for one nobody could type.

    allow_apop: the password itself is kept, too; sha1: keys for SCRAM-SHA-1, too.
    """
    kinds = ("SHA-256", "SHA-1") if sha1 else ("SHA-256",)
    return Record(
        account,
        hasher.hash(password),
        {kind: scram_text(scram_keys(password, kind, hasher.scram_iterations)) for kind in kinds},
        prepared(password) if allow_apop else None,
    )
