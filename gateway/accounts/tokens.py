"""OAuth tokens: whose is it, says an introspection endpoint or a signature.

Owns      Tokens
Flow      owner(token) → cache → RFC 7662 POST, or JWT verified with the issuer's keys → name of the account
Files     auth.oauth.jwks_file, read again when it changed
Limits    CACHE_MAX tokens for cache_s and never past their "exp"; answers of ANSWER_OCTETS; keys fetched at most
          once in KEYS_MIN_S, so that invented key ids make no requests
Errors    SourceError: the issuer cannot be asked now (transient); None: the token is not valid
Blocking  never; aiohttp and PyJWT are imported with the first token (26 MB)
Security  tokens are kept as SHA-256 alone; only signatures by public keys count, never "none" or HMAC (RFC 8725 §3.1)
Standards RFC 6749 §2.3.1, RFC 7662, RFC 7517, RFC 7519, RFC 7628 §3.2.2, RFC 8725
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import orjson

from gateway.accounts.model import SourceError
from gateway.accounts.source import first_line
from gateway.config_accounts import OAuthConfig

if TYPE_CHECKING:
    import aiohttp
    import jwt

CACHE_MAX = 10_000
ANSWER_OCTETS = 256 * 1024
KEYS_MIN_S = 30.0
KEYS_MAX_S = 3600.0  # keys are fetched again after an hour at most
LEEWAY_S = 30.0  # clocks differ
# Signatures by public keys (RFC 7518 §3.1, RFC 8037): a secret shared with the issuer would be no key set.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


class Tokens:
    """One for each worker."""

    def __init__(self, config: OAuthConfig) -> None:
        self._config = config
        self._cache: dict[bytes, tuple[str | None, float]] = {}  # → owner, until
        self._session: aiohttp.ClientSession | None = None
        self._keys: jwt.PyJWKSet | None = None
        self._keys_at = 0.0
        self._keys_lock = asyncio.Lock()
        self._file_stamp: tuple[int, int] = (0, 0)

    def error_json(self) -> bytes:
        """What a client learns whose token failed (RFC 7628 §3.2.2)."""
        error = {"status": "invalid_token"}
        if self._config.scope:
            error["scope"] = self._config.scope
        if self._config.openid_configuration:
            error["openid-configuration"] = self._config.openid_configuration
        return orjson.dumps(error)

    async def owner(self, token: str) -> str | None:
        """The account the token was given to, as its claim names it.  Raises SourceError."""
        digest = hashlib.sha256(token.encode()).digest()
        known = self._cache.get(digest)
        now = time.time()
        if known is not None and known[1] > now:
            return known[0]
        if self._config.introspection_url:
            claims = await self._introspect(token)
        else:
            claims = await self._decode(token)
        owner = self._judge(claims)
        if self._config.cache_s:
            until = now + self._config.cache_s
            expires = (claims or {}).get("exp")
            if isinstance(expires, int | float):
                until = min(until, expires)
            if len(self._cache) >= CACHE_MAX:
                del self._cache[next(iter(self._cache))]
            self._cache[digest] = (owner, until)
        return owner

    def _judge(self, claims: dict[str, Any] | None) -> str | None:
        config = self._config
        if claims is None:
            return None
        scopes = claims.get("scope", "")
        scopes = scopes.split() if isinstance(scopes, str) else scopes
        if config.scope and config.scope not in scopes:
            return None
        audience = claims.get("aud", [])
        if config.audience and config.audience not in (
            [audience] if isinstance(audience, str) else audience
        ):
            return None
        if config.issuer and claims.get("iss", config.issuer) != config.issuer:
            return None
        owner = claims.get(config.user_claim)
        return owner if isinstance(owner, str) and owner else None

    # -- RFC 7662 --------------------------------------------------------------------------------------

    async def _introspect(self, token: str) -> dict[str, Any] | None:
        config = self._config
        headers = {}
        if config.client_secret_file is not None:  # RFC 6749 §2.3.1: both are form-encoded first
            words = (config.client_id, first_line(config.client_secret_file))
            pair = ":".join(quote_plus(word) for word in words)
            headers["Authorization"] = "Basic " + b64encode(pair.encode()).decode()
        form = {"token": token, "token_type_hint": "access_token"}
        answer = await self._request("POST", config.introspection_url, data=form, headers=headers)
        if not isinstance(answer, dict) or not isinstance(answer.get("active"), bool):
            raise SourceError(f"{config.introspection_url}: no introspection response (RFC 7662 §2.2)")
        expires = answer.get("exp")
        if not answer["active"] or (isinstance(expires, int | float) and expires < time.time()):
            return None
        return answer

    # -- JWT -------------------------------------------------------------------------------------------

    async def _decode(self, token: str) -> dict[str, Any] | None:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            return None
        key = await self._key(header.get("kid"))
        if key is None or header.get("alg") not in ALGORITHMS:
            return None
        algorithm = key.algorithm_name if key.algorithm_name in ALGORITHMS else header["alg"]
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._config.issuer,
                audience=self._config.audience or None,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss"], "verify_aud": bool(self._config.audience)},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        return claims

    async def _key(self, key_id: object) -> jwt.PyJWK | None:
        """The key of this id; without an id the only one there is."""
        async with self._keys_lock:  # one fetch for all who wait
            for again in (False, True):
                keys = await self._key_set(again)
                found = [key for key in keys.keys if key_id is None or key.key_id == key_id]
                if len(found) == 1:
                    return found[0]
        return None

    async def _key_set(self, again: bool) -> jwt.PyJWKSet:
        config, now = self._config, time.monotonic()
        age = now - self._keys_at
        if config.jwks_file is not None:
            stamp = _stamp(config.jwks_file)
            if self._keys is None or stamp != self._file_stamp:
                self._keys = parse_keys(_read(config.jwks_file), str(config.jwks_file))
                self._file_stamp = stamp
            return self._keys
        if self._keys is None or age > KEYS_MAX_S or (again and age > KEYS_MIN_S):
            self._keys_at = now
            answer = await self._request("GET", config.jwks_url)
            self._keys = parse_keys(orjson.dumps(answer), config.jwks_url)
        return self._keys

    # -- HTTP ------------------------------------------------------------------------------------------

    async def _request(self, method: str, url: str, **how: Any) -> Any:
        import aiohttp

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._config.timeout_s)
            self._session = aiohttp.ClientSession(
                timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
            )
        try:
            async with self._session.request(method, url, allow_redirects=False, **how) as response:
                if response.status != 200:
                    raise SourceError(f"{url}: HTTP {response.status}")
                octets = await response.content.read(ANSWER_OCTETS)
                return orjson.loads(octets)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise SourceError(f"{url}: {error or type(error).__name__}") from None
        except orjson.JSONDecodeError:
            raise SourceError(f"{url}: the answer is not JSON") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def parse_keys(octets: bytes, origin: str) -> jwt.PyJWKSet:
    """The keys of a JWK set (RFC 7517 §5).  Raises SourceError."""
    import jwt

    try:
        return jwt.PyJWKSet.from_json(octets.decode())
    except (jwt.PyJWTError, ValueError, AttributeError, TypeError) as error:
        raise SourceError(f"{origin}: no usable key in it ({error})") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
    return found.st_mtime_ns, found.st_ino
