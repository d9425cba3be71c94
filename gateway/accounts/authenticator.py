"""Logins: what a session asks, whatever protocol it speaks.

Owns      Authenticator, Peer, Login; the cache of logins that succeeded
Flow      start(mechanism, peer, challenge, done) → Login.respond(octets)… → done(Identity | Refusal), once.
          Both call-backs may be called before respond() returns, or later from the loop
Limits    auth.checks, auth.checks_waiting, auth.cache_max; a Login lives as long as its session
Errors    no exception: what goes wrong on our side is the refusal "unavailable", which is temporary, and is logged
Blocking  never; hashes are computed in threads.  A login known from shortly before is answered at once (20 us)
Security  passwords are not logged and not kept: the cache holds a keyed BLAKE2b of name and password under a key that
          this process made and nobody else knows.  Failures are held back (policy.auth says why and how long)
Standards RFC 4422 §3 (the exchange), RFC 4954 §4, RFC 5034, RFC 9051 §6.2.2; RFC 5802 §5.1 (salts of unknown users)
Bugs      an account whose SCRAM iterations differ from auth.scram_iterations can be told from one that does not exist

After done() with a Refusal the session may start another Login.  A session that ends, or whose client sends "*",
calls cancel().
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gateway.accounts.directory import Directory
from gateway.accounts.model import REFUSALS, Account, Identity, Refusal, SourceError
from gateway.accounts.source import Busy, Source, Verified
from gateway.accounts.tokens import Tokens
from gateway.config_accounts import AuthConfig
from gateway.log import Log
from gateway.metrics import Sample
from gateway.policy.auth import Throttle
from gateway.protocol import sasl
from gateway.protocol.scram import ScramKeys

logger = logging.getLogger(__name__)

Done = Callable[[Identity | Refusal], None]


class Peer(msgspec.Struct, frozen=True):
    """Who asks, and over what."""

    session: str  # session_id, for the log
    client: str  # "192.0.2.1:4711", for the log
    client_ip: str  # "192.0.2.1"; "" for a local socket
    service: str  # "submission", "pop3", "imap", "pop2", "http"
    tls: bool = False
    bindings: Mapping[str, bytes] = {}  # channel bindings: net.tls.channel_bindings()
    certificate_names: tuple[str, ...] = ()  # net.tls.certificate_names()


class _CachedLogin(msgspec.Struct, frozen=True):
    source: Source
    user: str
    verified: Verified
    until: float  # time.monotonic()


class Authenticator:
    """One for each worker."""

    def __init__(
        self,
        config: AuthConfig,
        directory: Directory,
        *,
        hostname: str,
        salt_key: bytes,
        log: Log,
        tokens: Tokens | None = None,
    ) -> None:
        """salt_key: the same in all workers: Database.salt_key()."""
        self.config = config
        self.directory = directory
        self.throttle = Throttle(config)
        self.hostname = hostname
        self.log = log
        self.tokens = tokens
        self._salt_key = salt_key
        self._cache_key = os.urandom(32)
        self._cache: dict[bytes, _CachedLogin] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._succeeded: dict[tuple[str, str], int] = {}  # by service, mechanism
        self._failed: dict[tuple[str, str], int] = {}  # by service, reason
        self._masters = frozenset(directory.user(name) for name in config.master_users)
        self._offers: dict[tuple[object, ...], tuple[str, ...]] = {}  # see mechanisms()

    def reload(self, config: AuthConfig, directory: Directory, tokens: Tokens | None) -> None:
        """New logins follow the new configuration; what is known of failures stays."""
        self.config = config
        self.throttle.config = config
        self.directory = directory
        self.tokens = tokens
        self._cache.clear()
        self._offers.clear()
        self._masters = frozenset(directory.user(name) for name in config.master_users)

    # -- what is offered -----------------------------------------------------------------------------------------------

    def allows(self, peer: Peer) -> bool:
        """May the client log in over this connection?  Without TLS only from auth.plaintext_auth."""
        return peer.tls or not peer.client_ip or peer.client_ip in self.config.plaintext_auth

    def keeps_secrets(self) -> bool:
        """Is there an account that asked for APOP?  A client that sees a timestamp may insist on it."""
        return "secret" in self.directory.abilities()

    def mechanisms(self, peer: Peer, wanted: Sequence[str] = ()) -> tuple[str, ...]:
        """SASL mechanisms to offer now, the best first; wanted: the listener's own list."""
        if not self.allows(peer):
            return ()
        able = self.directory.abilities()
        kind = (able, *wanted, bool(peer.bindings), bool(peer.certificate_names))
        offer = self._offers.get(kind)
        if offer is None:
            offer = self._offers[kind] = tuple(
                name
                for name in wanted or self.config.mechanisms
                if name in sasl.MECHANISMS and self._is_possible(name, peer, able)
            )
        return offer

    def _is_possible(self, name: str, peer: Peer, able: frozenset[str]) -> bool:
        if name.startswith("SCRAM-"):
            kind = name.removeprefix("SCRAM-").removesuffix("-PLUS")
            return kind in able and (not name.endswith("-PLUS") or bool(peer.bindings))
        if name in ("OAUTHBEARER", "XOAUTH2"):
            return self.tokens is not None
        if name == "CRAM-MD5":
            return "secret" in able
        return name != "EXTERNAL" or bool(peer.certificate_names)

    # -- logins --------------------------------------------------------------------------------------------------------

    def start(
        self,
        mechanism: str,
        peer: Peer,
        challenge: Callable[[bytes], None],
        done: Done,
        wanted: Sequence[str] = (),
    ) -> Login:
        """An exchange; go on with respond(): None when the client sent no initial response.

        challenge(octets): send them, base64 and framing are the session's.  wanted: as for mechanisms().
        """
        mechanism = mechanism.upper()
        offered = self.mechanisms(peer, wanted)
        if mechanism not in offered:
            known = mechanism in sasl.MECHANISMS and not self.allows(peer)
            return Login(self, mechanism, peer, None, challenge, done, "encryption" if known else "mechanism")
        context = sasl.Context(
            hostname=self.hostname,
            nonce=secrets.token_urlsafe(24),
            bindings=peer.bindings,
            plus_offered=any(name.endswith("-PLUS") for name in offered),
            certificate_names=peer.certificate_names,
            oauth_error=self.tokens.error_json() if self.tokens is not None else b"{}",
        )
        return Login(self, mechanism, peer, sasl.Exchange(mechanism, context), challenge, done)

    def check_password(self, peer: Peer, user: str, password: str, done: Done) -> Login:
        """POP3 USER and PASS, IMAP LOGIN, POP2 HELO: a name and a password in clear."""
        if not self.allows(peer):
            login = Login(self, "USER", peer, None, _no_challenge, done, "encryption")
        elif "\0" not in user and (account := self.cached(user, password)) is not None:  # the usual case, made short
            login = Login(self, "USER", peer, None, _no_challenge, done)
            login.let_in_again(account)
            return login
        else:
            exchange = sasl.Exchange("PLAIN", sasl.Context())
            login = Login(self, "USER", peer, exchange, _no_challenge, done)
        login.respond(b"\0".join((b"", user.encode(errors="replace"), password.encode(errors="replace"))))
        return login

    def check_apop(self, peer: Peer, user: str, timestamp: str, digest: str, done: Done) -> Login:
        """POP3 APOP (RFC 1939 §7); timestamp: as in our greeting, with its angle brackets."""
        login = Login(self, "APOP", peer, None, _no_challenge, done)
        login.judge_digest(user, timestamp, digest)
        return login

    # -- what a Login needs --------------------------------------------------------------------------------------------

    def cached(self, user: str, password: str) -> Account | None:
        """The account, when this very password was right a short while ago and still is."""
        key = self._cache_name(user, password)
        entry = self._cache.get(key)
        if entry is None:
            return None
        if entry.until > time.monotonic():
            try:
                account = self.directory.is_current(entry.source, entry.user, entry.verified)
            except SourceError:
                return None
            if account is not None:
                return account
        del self._cache[key]
        return None

    async def verify(self, user: str, password: str) -> Account | None:
        """The account whose password it is.  Raises SourceError."""
        found = await self.directory.verify(user, password)
        if found is None:
            return None
        source, verified = found
        config = self.config
        if config.cache_s and config.cache_max:
            if len(self._cache) >= config.cache_max:
                del self._cache[next(iter(self._cache))]
            self._cache[self._cache_name(user, password)] = _CachedLogin(
                source, user, verified, time.monotonic() + config.cache_s
            )
        return verified.account

    def mark_of(self, user: str, password: str) -> bytes:
        """Stands for a wrong password, so that the same one again is not counted again."""
        return self._cache_name(user, password)[:8]

    def _cache_name(self, user: str, password: str) -> bytes:
        # A third of what HMAC-SHA-256 costs, and as good (RFC 7693 §2.9).
        octets = f"{user}\0{password}".encode(errors="replace")
        return hashlib.blake2b(octets, key=self._cache_key, digest_size=32).digest()

    def keys_of_nobody(self, user: str, kind: str) -> ScramKeys:
        """What an unknown user is shown: always the same salt, as a real one would have."""
        seed = hmac.digest(self._salt_key, f"{kind}\0{user}".encode(errors="replace"), "sha512")
        size = 20 if kind == "SHA-1" else 32
        return ScramKeys(seed[:16], self.config.scram_iterations, os.urandom(size), os.urandom(size))

    def is_master(self, name: str) -> bool:
        return name in self._masters

    def count(self, peer: Peer, outcome: Identity | Refusal) -> None:
        """For the metrics."""
        if isinstance(outcome, Identity):
            key, table = (peer.service, outcome.mechanism), self._succeeded
        else:
            key, table = (peer.service, outcome.reason), self._failed
        table[key] = table.get(key, 0) + 1

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on in a task of its own."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def samples(self) -> Iterator[Sample]:
        """For Meter.add_source()."""
        for (service, mechanism), count in self._succeeded.items():
            labels = {"service": service, "mechanism": mechanism}
            yield Sample("gateway_auth_successes_total", "counter", "Logins", labels, count)
        for (service, reason), count in self._failed.items():
            labels = {"service": service, "reason": reason}
            yield Sample("gateway_auth_failures_total", "counter", "Logins refused", labels, count)
        yield Sample(
            "gateway_auth_failures_remembered",
            "gauge",
            "Clients and accounts that are slowed down",
            {},
            self.throttle.entries(),
        )

    async def close(self) -> None:
        """The worker stops."""
        for task in list(self._tasks):
            task.cancel()
        await self.directory.close()
        if self.tokens is not None:
            await self.tokens.close()


def _no_challenge(_octets: bytes) -> None:
    raise AssertionError("a password needs no challenge")


class Login:
    """One attempt of one session."""

    __slots__ = (
        "_account",
        "_auth",
        "_cached",
        "_challenge",
        "_done",
        "_exchange",
        "_mark",
        "_peer",
        "_refused",
        "_timer",
        "_user",
        "mechanism",
    )

    def __init__(
        self,
        auth: Authenticator,
        mechanism: str,
        peer: Peer,
        exchange: sasl.Exchange | None,
        challenge: Callable[[bytes], None],
        done: Done,
        refused: str = "",
    ) -> None:
        self.mechanism = mechanism
        self._auth = auth
        self._peer = peer
        self._exchange = exchange
        self._challenge = challenge
        self._done: Done | None = done  # None: it was called, or nobody waits any more
        self._refused = refused  # why it cannot even begin
        self._user = ""
        self._mark = b""
        self._account: Account | None = None  # whose secret was looked at
        self._cached = False
        self._timer: asyncio.TimerHandle | None = None

    def respond(self, response: bytes | None) -> None:
        """What the client sent, decoded from base64; None at the start when it sent nothing."""
        if self._refused:
            self._refuse(self._refused)
        elif self._exchange is not None and self._done is not None:
            self._advance(self._exchange.step(response))

    def cancel(self) -> None:
        """The client gave up, or is gone: done() is not called any more.  What it owes stays owed."""
        self._done = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- the exchange --------------------------------------------------------------------------------------------------

    def _advance(self, outcome: sasl.Outcome) -> None:
        while isinstance(outcome, sasl.Pending):
            question = outcome.question
            self._user = self._auth.directory.user(question.user)
            if isinstance(question, sasl.CheckPassword) and self._exchange is not None:
                self._mark = self._auth.mark_of(self._user, question.password)
                self._account = self._auth.cached(self._user, question.password)
                if self._account is not None:
                    self._cached = True
                    outcome = self._exchange.answer(True)
                    continue
            self._when_admitted(lambda question=question: self._ask(question))  # type: ignore[misc]
            return
        if isinstance(outcome, sasl.Challenge):
            if self._done is not None:
                self._challenge(outcome.data)
        elif isinstance(outcome, sasl.Success):
            self._settle(outcome)
        elif outcome.malformed:
            self._refuse("malformed", outcome.reason)
        else:
            self._fail(outcome.reason)

    def _when_admitted(self, go_on: Callable[[], Coroutine[Any, Any, None]]) -> None:
        auth = self._auth
        wait_s = auth.throttle.admit(self._peer.client_ip, self._user, time.monotonic())
        if wait_s is None:
            self._refuse("throttled")
        elif wait_s:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(wait_s, lambda: auth.run(go_on()))
        else:
            auth.run(go_on())

    async def _ask(self, question: sasl.Question) -> None:
        """Find the answer and go on with it."""
        assert self._exchange is not None
        try:
            answer: bool | str | ScramKeys | None
            if isinstance(question, sasl.CheckPassword):
                self._account = await self._auth.verify(self._user, question.password)
                answer = self._account is not None
            elif isinstance(question, sasl.FindKeys):
                answer = await self._find_keys(question.kind)
            elif isinstance(question, sasl.FindSecret):
                answer = await self._find_secret()
            else:
                assert self._auth.tokens is not None
                answer = await self._auth.tokens.owner(question.token)
            self._advance(self._exchange.answer(answer))
        except Exception as error:
            self._unavailable(error)

    async def _find_keys(self, kind: str) -> ScramKeys:
        nobody = self._auth.keys_of_nobody(self._user, kind)
        found = await self._auth.directory.keys(self._user, kind, nobody) if self._user else None
        if found is None:
            return nobody
        self._account, keys = found
        return keys

    async def _find_secret(self) -> str | None:
        found = await self._auth.directory.secret(self._user) if self._user else None
        if found is None:
            return None
        self._account, secret = found
        return secret

    def judge_digest(self, user: str, timestamp: str, digest: str) -> None:
        """APOP: no exchange, one answer (RFC 1939 §7)."""
        self._user = self._auth.directory.user(user)

        async def judge() -> None:
            try:
                secret = await self._find_secret()
                signed = (timestamp + (secret or "")).encode(errors="replace")
                wanted = _md5_hex(signed).encode()
                same = hmac.compare_digest(wanted, digest.lower().encode(errors="replace"))
                if secret is None or not same:
                    self._fail("wrong digest")
                else:
                    self._settle(sasl.Success(user, ""))
            except Exception as error:
                self._unavailable(error)

        self._when_admitted(judge)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _settle(self, success: sasl.Success) -> None:
        """The secret is right; may the account log in, and as whom?"""
        account = self._account
        wanted = self._auth.directory.user(success.authzid) if success.authzid else ""
        if account is not None and (not success.authzid or wanted == account.name):
            self._let_in(account, account)
        else:
            self._auth.run(self._look_up_and_settle(success.authcid, success.authzid))

    async def _look_up_and_settle(self, authcid: str, authzid: str) -> None:
        auth = self._auth
        directory = auth.directory
        try:
            account = self._account
            if account is None:  # a token or a certificate named it
                self._user = directory.user(authcid)
                account = await directory.find(self._user) if self._user else None
            if account is None:
                self._fail("no such account")
                return
            wanted = directory.user(authzid) if authzid else account.name
            target: Account | None = account
            if wanted != account.name:
                if not auth.is_master(account.name):
                    self._refuse("authorization", f"authzid {authzid!r}")
                    return
                target = await directory.find(wanted) if wanted else None
            if target is None:
                self._refuse("authorization", f"authzid {authzid!r}")
            else:
                self._let_in(account, target)
        except Exception as error:
            self._unavailable(error)

    def let_in_again(self, account: Account) -> None:
        """This very password was right a short while ago: cached() gave the account."""
        self._cached = True
        self._let_in(account, account)

    def _let_in(self, account: Account, target: Account) -> None:
        if account.disabled or target.disabled:
            self._refuse("disabled")
            return
        auth, peer = self._auth, self._peer
        auth.throttle.succeeded(peer.client_ip, account.name, time.monotonic())
        identity = Identity(target, self.mechanism, account.name, self._cached)
        auth.log.event(
            "authenticated",
            session=peer.session,
            client=peer.client,
            service=peer.service,
            account=target.name,
            mechanism=self.mechanism,
            cached=self._cached,
            **({"authenticated_as": account.name} if identity.is_master else {}),
        )
        self._finish(identity)

    def _fail(self, detail: str) -> None:
        """A wrong secret, or nobody's: counted, and held back."""
        auth, peer = self._auth, self._peer
        delay_s = auth.throttle.failed(peer.client_ip, self._user, time.monotonic(), self._mark)
        self._log_refusal("credentials", detail, delay_s)
        auth.count(peer, REFUSALS["credentials"])
        if delay_s and self._done is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay_s, self._call_done, REFUSALS["credentials"])
        else:
            self._call_done(REFUSALS["credentials"])

    def _refuse(self, reason: str, detail: str = "") -> None:
        self._log_refusal(reason, detail, 0.0)
        self._finish(REFUSALS[reason])

    def _unavailable(self, error: Exception) -> None:
        if not isinstance(error, SourceError):
            logger.exception("session %s: unexpected error", self._peer.session)
        self._refuse("busy" if isinstance(error, Busy) else "unavailable", str(error))

    def _log_refusal(self, reason: str, detail: str, delay_s: float) -> None:
        peer = self._peer
        self._auth.log.event(
            "auth_failed",
            session=peer.session,
            client=peer.client,
            service=peer.service,
            account=self._user,
            mechanism=self.mechanism,
            reason=reason,
            detail=detail,
            delay_s=round(delay_s, 3),
        )

    def _finish(self, outcome: Identity | Refusal) -> None:
        self._auth.count(self._peer, outcome)
        self._call_done(outcome)

    def _call_done(self, outcome: Identity | Refusal) -> None:
        self._timer = None
        done, self._done = self._done, None
        if done is not None:
            done(outcome)


def _md5_hex(octets: bytes) -> str:
    import hashlib

    return hashlib.md5(octets, usedforsecurity=False).hexdigest()
