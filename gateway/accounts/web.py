"""Accounts behind a web service: one POST, one JSON answer.

Owns      WebSource
Flow      POST {"question": "find" | "verify", "user": …, "password": …} → 200
          {"known": true, "right": true, "disabled": false, "quota_octets": 0, "quota_messages": 0}
Limits    `connections` requests at once; ANSWER_OCTETS of an answer
Errors    everything but 200 with such an object is SourceError: temporary, with what came instead
Blocking  never; aiohttp is imported with the first source of this kind (13 MB)
Security  redirects are not followed; https verifies; http:// carries passwords in clear and is for loopback alone
Standards RFC 9110 §9.3.3, RFC 6750 §2.1 (Authorization: Bearer)

"right" is looked at for "verify" alone; what is missing is false, or the default quota.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.accounts.model import Account, SourceError
from gateway.accounts.source import UNKNOWN, WRONG, Busy, RemoteSource, Verified, first_line
from gateway.config_accounts import AccountSourceConfig

if TYPE_CHECKING:
    import aiohttp

ANSWER_OCTETS = 64 * 1024
WAITING_MAX = 200


class _Answer(msgspec.Struct):
    known: bool
    right: bool = False
    disabled: bool = False
    quota_octets: int | None = None
    quota_messages: int | None = None


class WebSource(RemoteSource):
    """One service."""

    name = "http"

    def __init__(self, config: AccountSourceConfig) -> None:
        super().__init__(cache_s=config.cache_s, next_on_failure=config.next_on_failure)
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        self._waiting = 0

    async def find(self, user: str) -> Account | None:
        answer = await self._ask({"question": "find", "user": user})
        return self.remember(user, self._account(user, answer) if answer.known else None)

    async def verify(self, user: str, password: str) -> Verified | bool:
        answer = await self._ask({"question": "verify", "user": user, "password": password})
        if not answer.known:
            return UNKNOWN
        if not answer.right:
            return WRONG
        account = self._account(user, answer)
        self.remember(user, account)
        return Verified(account)

    def _account(self, user: str, answer: _Answer) -> Account:
        return Account(
            user, answer.quota_octets, answer.quota_messages, answer.disabled, self.name
        )

    async def _ask(self, question: dict[str, str]) -> _Answer:
        import aiohttp

        config = self._config
        if self._waiting >= WAITING_MAX:
            raise Busy(f"too many questions to {config.url} wait")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=config.connections),
                timeout=aiohttp.ClientTimeout(total=config.timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        headers = {}
        if config.secret_file is not None:
            headers["Authorization"] = f"Bearer {first_line(config.secret_file)}"
        self._waiting += 1
        try:
            async with self._session.post(
                config.url, json=question, headers=headers, allow_redirects=False
            ) as response:
                octets = await response.content.read(ANSWER_OCTETS)
                if response.status != 200:
                    raise SourceError(f"{config.url}: HTTP {response.status}")
                return msgspec.json.decode(octets, type=_Answer)
        except msgspec.DecodeError as error:
            raise SourceError(f"{config.url}: {error}") from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise SourceError(f"{config.url}: {error or type(error).__name__}") from None
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
