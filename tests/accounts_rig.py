"""What the tests of accounts share: an authenticator with cheap hashes and a log that can be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from gateway.accounts.authenticator import Login, Peer
from gateway.accounts.build import Accounts, hasher_of
from gateway.accounts.embedded import make_record
from gateway.accounts.model import Account, Identity, Refusal, Resolution
from gateway.config_accounts import AccountsConfig, AuthConfig
from gateway.protocol.scram import ScramKeys, derive_keys

CHEAP: dict[str, Any] = {
    "argon2_time_cost": 1,
    "argon2_memory_kib": 8,
    "argon2_parallelism": 1,
    "scram_iterations": 4096,
    "failure_delay_s": 0.0,
    "failure_delay_max_s": 0.0,
}
ALICE, BOB = "alice@example.test", "bob@example.test"
HOME = "198.51.100.1"


class Events:
    """Instead of a Log."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def last(self, name: str) -> dict[str, Any]:
        return next(fields for found, fields in reversed(self.events) if found == name)


class Rig:
    """Accounts in a directory of their own; use it within a running loop."""

    def __init__(
        self, where: Path, auth: AuthConfig | None = None, accounts: AccountsConfig | None = None
    ) -> None:
        self.auth_config = auth or AuthConfig(**CHEAP)
        self.log = Events()
        self.accounts = Accounts(
            accounts or AccountsConfig(default_domain="example.test"),
            self.auth_config,
            where / "accounts.db",
            hostname="mx.example.test",
            is_local=lambda domain: domain == "example.test",
            log=self.log,  # type: ignore[arg-type]
        )
        self.database = self.accounts.database
        self.auth = self.accounts.auth
        self.directory = self.accounts.directory

    def add(self, name: str, password: str = "secret", **how: Any) -> None:
        quotas = {k: how.pop(k) for k in ("quota_octets", "quota_messages") if k in how}
        record = make_record(Account(name, **quotas), password, hasher_of(self.auth_config), **how)
        assert self.database.add(record)

    def peer(self, client_ip: str = HOME, **how: Any) -> Peer:
        return Peer("s-1", f"{client_ip}:4711", client_ip, "pop3", **{"tls": True, **how})

    async def login(
        self, user: str, password: str, peer: Peer | None = None
    ) -> Identity | Refusal:
        """USER and PASS."""
        done: asyncio.Future[Identity | Refusal] = asyncio.get_running_loop().create_future()
        self.auth.check_password(peer or self.peer(), user, password, done.set_result)
        return await asyncio.wait_for(done, 60)

    async def exchange(
        self,
        mechanism: str,
        *responses: bytes | Callable[[bytes], bytes] | None,
        peer: Peer | None = None,
    ) -> tuple[list[bytes], Identity | Refusal]:
        """The challenges and the end; a function makes its response out of the last challenge."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Identity | Refusal] = loop.create_future()
        challenges: list[bytes] = []
        todo = list(responses)

        def respond(login: Login) -> None:
            response = todo.pop(0)
            login.respond(response(challenges[-1]) if callable(response) else response)

        def challenged(octets: bytes) -> None:
            challenges.append(octets)
            loop.call_soon(lambda: respond(login))

        login = self.auth.start(mechanism, peer or self.peer(), challenged, done.set_result)
        respond(login)
        return challenges, await asyncio.wait_for(done, 60)

    async def resolve(self, address: str) -> Resolution:
        done: asyncio.Future[Resolution] = asyncio.get_running_loop().create_future()
        self.directory.resolve(address, done.set_result)
        return await asyncio.wait_for(done, 60)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On a loop as the workers have it."""
    uvloop.run(work())


def scram_responses(
    user: str, password: str, *, authzid: str = "", flag: str = "n", binding: bytes = b""
) -> list[Callable[[bytes], bytes] | bytes]:
    """A client's three messages for SCRAM-SHA-256."""
    import base64
    import hashlib
    import hmac

    header = f"{flag},{'a=' + authzid if authzid else ''},".encode()
    bare = f"n={user},r=clientnonce".encode()

    def final(server_first: bytes) -> bytes:
        nonce, salt, iterations = (part[2:] for part in server_first.split(b",", 2))
        keys: ScramKeys = derive_keys(
            password.encode(), "SHA-256", int(iterations), base64.b64decode(salt)
        )
        without = b"c=" + base64.b64encode(header + binding) + b",r=" + nonce
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), keys.salt, keys.iterations)
        signed = b",".join((bare, server_first, without))
        signature = hmac.digest(keys.stored_key, signed, "sha256")
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        return without + b",p=" + base64.b64encode(proof)

    return [header + bare, final, b""]
