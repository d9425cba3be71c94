"""Sources of accounts with the real thing: htpasswd's and doveadm's hashes, slapd, issuers of tokens."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from accounts_rig import ALICE, CHEAP, Rig, run, scram_responses
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from interop_peers import free_port, listening, need, wait_for
from login_peers import Issuer, bearer

from gateway.accounts.check import ask_sources
from gateway.accounts.model import Deliveries, Identity, Refusal, Unavailable, Unknown
from gateway.accounts.passwords import Hasher, scram_keys, scram_text, verify
from gateway.config_accounts import AccountsConfig, AccountSourceConfig, AuthConfig, OAuthConfig

PASSWORD = "pässword: {1}"


def output(*words: str, **options: Any) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True, **options)
    return done.stdout.strip()


# -- hashes that others made -----------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-B", "-m", "-s", "-2", "-5", "-d"])
def test_htpasswd(option: str) -> None:
    """bcrypt, Apache's MD5, SHA-1, SHA-256-crypt, SHA-512-crypt, DES-crypt."""
    password = "secret" if option == "-d" else PASSWORD
    line = output(need("htpasswd"), "-n", "-i", option, "alice", input=password)
    verifier = line.partition(":")[2]
    assert verify(verifier, password)
    assert not verify(verifier, "x" + password)


SCHEMES = (
    "ARGON2ID ARGON2I SHA512-CRYPT SHA256-CRYPT BLF-CRYPT MD5-CRYPT CRYPT DES-CRYPT PBKDF2 "
    "SSHA SSHA256 SSHA512 SHA SHA1 SHA256 SHA512 SMD5 LDAP-MD5 PLAIN-MD5 PLAIN CLEARTEXT "
    "SHA256.HEX SSHA512.HEX SHA512.b64 SCRAM-SHA-1 SCRAM-SHA-256"
)


@pytest.mark.parametrize("scheme", SCHEMES.split())
def test_doveadm(scheme: str) -> None:
    rounds = ["-r", "5"] if scheme == "BLF-CRYPT" else []
    password = "secret" if scheme == "DES-CRYPT" else PASSWORD
    verifier = output(need("doveadm"), "-O", "pw", "-s", scheme, *rounds, "-p", password)
    assert verify(verifier, password), verifier
    assert not verify(verifier, "x" + password)


def test_dovecot_reads_what_we_write() -> None:
    hasher = Hasher(time_cost=1, memory_kib=64, parallelism=1, scram_iterations=4096)
    ours = {
        "{ARGON2ID}": hasher.hash(PASSWORD),
        "{SCRAM-SHA-256}": scram_text(scram_keys(PASSWORD, "SHA-256", 4096)),
    }
    for scheme, verifier in ours.items():
        done = subprocess.run(
            [need("doveadm"), "-O", "pw", "-t", scheme + verifier, "-p", PASSWORD],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "(verified)" in done.stdout, (scheme, done.stderr)


def test_a_passwd_file_of_dovecots_hashes(tmp_path: Path) -> None:
    async def work() -> None:
        users = tmp_path / "users"
        lines = []
        for name, scheme in (("alice", "SCRAM-SHA-256"), ("bob", "PLAIN")):
            verifier = output(need("doveadm"), "-O", "pw", "-s", scheme, "-p", "secret")
            lines.append(f"{name}:{verifier}:1000:1000::/home/{name}::\n")
        users.write_text("".join(lines))
        source = AccountSourceConfig(type="passwd-file", file=users)
        config = AccountsConfig(default_domain="example.test", source=(source,))
        rig = Rig(tmp_path, accounts=config)
        assert "SCRAM-SHA-256" in rig.auth.mechanisms(rig.peer())
        for user in ("alice", "bob"):
            _, outcome = await rig.exchange("SCRAM-SHA-256", *scram_responses(user, "secret"))
            assert isinstance(outcome, Identity), user
            _, outcome = await rig.exchange("SCRAM-SHA-256", *scram_responses(user, "wrong"))
            assert isinstance(outcome, Refusal), user
            assert isinstance(await rig.login(user, "secret"), Identity)
        await rig.accounts.close()

    run(work)


# -- slapd -----------------------------------------------------------------------------------------

SLAPD_CONF = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {where}/slapd.pid
database mdb
suffix "dc=example,dc=test"
rootdn "cn=admin,dc=example,dc=test"
rootpw admin
directory {where}/db
"""
ENTRIES = """
dn: dc=example,dc=test
objectClass: domain
dc: example

dn: uid=alice,dc=example,dc=test
objectClass: inetOrgPerson
uid: alice
cn: Alice
sn: A
mail: alice@example.test
userPassword: secret

dn: uid=twin1,dc=example,dc=test
objectClass: inetOrgPerson
uid: twin1
cn: T
sn: T
mail: twin@example.test
userPassword: secret

dn: uid=twin2,dc=example,dc=test
objectClass: inetOrgPerson
uid: twin2
cn: T
sn: T
mail: twin@example.test
userPassword: secret
"""


class Slapd:
    def __init__(self, where: Path) -> None:
        self.where = where
        (where / "db").mkdir()
        conf = where / "slapd.conf"
        conf.write_text(SLAPD_CONF.format(where=where))
        output(need("slapadd"), "-f", str(conf), input=ENTRIES)
        self.url = f"ldap://127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        words = [need("slapd"), "-d", "0", "-h", self.url, "-f", str(self.where / "slapd.conf")]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: listening(int(self.url.rpartition(":")[2])), "slapd")

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def slapd(tmp_path: Path) -> Iterator[Slapd]:
    pytest.importorskip("bonsai", reason="pip install mail-gateway[ldap] (needs ldap.h)")
    need("slapd")
    where = tmp_path / "slapd"
    where.mkdir()
    server = Slapd(where)
    yield server
    server.stop()


def ldap(slapd: Slapd, **keys: Any) -> AccountsConfig:
    source = AccountSourceConfig(
        type="ldap", url=slapd.url, starttls=False, timeout_s=5.0, cache_s=0.0, **keys
    )
    return AccountsConfig(default_domain="example.test", source=(source,))


@pytest.mark.parametrize("way", ["search", "search as admin", "template"])
def test_ldap_binds(tmp_path: Path, slapd: Slapd, way: str) -> None:
    async def work() -> None:
        keys: dict[str, Any] = {"base": "dc=example,dc=test"}
        if way == "search as admin":
            (tmp_path / "password").write_text("admin\n")
            keys["bind_dn"] = "cn=admin,dc=example,dc=test"
            keys["bind_password_file"] = tmp_path / "password"
        elif way == "template":
            keys = {"dn_template": "uid={local_part},dc=example,dc=test"}
        rig = Rig(tmp_path, AuthConfig(**CHEAP, cache_s=0.0), ldap(slapd, **keys))
        assert rig.auth.mechanisms(rig.peer()) == ("PLAIN", "LOGIN"), "the directory keeps its secrets"
        identity = await rig.login("alice", "secret")
        assert isinstance(identity, Identity), identity
        assert identity.account.name == ALICE
        for user, password in (("alice", "wrong"), ("carol", "secret"), ("*", "secret")):
            outcome = await rig.login(user, password)
            assert isinstance(outcome, Refusal) and outcome.reason == "credentials", (user, outcome)
        # An empty password would be an anonymous bind, and a success: RFC 4513 §5.1.2.
        assert isinstance(await rig.login("alice", ""), Refusal)
        assert isinstance(await rig.resolve(ALICE), Deliveries)
        assert await rig.resolve("carol@example.test") == Unknown()
        for odd in (')(uid=*"@example.test', "a,dc=x@example.test", "a\\2a@example.test"):
            assert await rig.resolve(odd) == Unknown(), odd
        assert len(await asyncio.gather(*(rig.login("alice", "secret") for _ in range(20)))) == 20
        await rig.accounts.close()

    run(work)


def test_ldap_that_cannot_be_asked_is_temporary_and_comes_back(tmp_path: Path, slapd: Slapd) -> None:
    async def work() -> None:
        config = ldap(slapd, base="dc=example,dc=test")
        rig = Rig(tmp_path, AuthConfig(**CHEAP, cache_s=0.0), config)
        assert isinstance(await rig.login("alice", "secret"), Identity)
        twins = await rig.resolve("twin@example.test")
        assert isinstance(twins, Unavailable) and "2 entries" in twins.reason
        assert await ask_sources(config, rig.auth_config, tmp_path / "accounts.db") == []
        slapd.stop()
        assert isinstance(await rig.resolve(ALICE), Unavailable)
        outcome = await rig.login("alice", "secret")
        assert isinstance(outcome, Refusal) and outcome.reason == "unavailable"
        assert slapd.url in rig.log.last("auth_failed")["detail"]
        told = await ask_sources(config, rig.auth_config, tmp_path / "accounts.db")
        assert told and slapd.url in told[0]
        slapd.start()
        assert isinstance(await rig.login("alice", "secret"), Identity), "a stale connection is renewed"
        await rig.accounts.close()

    run(work)


# -- tokens ----------------------------------------------------------------------------------------


def confused(claims: dict[str, Any], public_key: dict[str, Any]) -> str:
    """RFC 8725 §2.1: signed with what everybody knows."""

    def b64(octets: bytes) -> str:
        return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

    header = {"alg": "HS256", "kid": public_key["kid"]}
    signed = ".".join(b64(json.dumps(part).encode()) for part in (header, claims))
    return f"{signed}.{b64(hmac.digest(json.dumps(public_key).encode(), signed.encode(), 'sha256'))}"


async def with_token(rig: Rig, token: str, user: str = ALICE) -> str:
    """The account, or the reason of the refusal."""
    challenges, outcome = await rig.exchange("OAUTHBEARER", bearer(token, user), b"\x01")
    if isinstance(outcome, Identity):
        return outcome.account.name
    if outcome.reason == "credentials" and challenges:
        assert json.loads(challenges[0])["status"] == "invalid_token"
    return outcome.reason


def test_tokens_by_introspection(tmp_path: Path) -> None:
    async def work() -> None:
        issuer = Issuer()
        url = await issuer.start()
        (tmp_path / "secret").write_text("s3cret")
        oauth = OAuthConfig(
            introspection_url=url + "/introspect",
            client_id="gateway",
            client_secret_file=tmp_path / "secret",
            scope="mail",
        )
        rig = Rig(tmp_path, AuthConfig(**CHEAP, oauth=oauth))
        rig.add(ALICE)
        rig.add("bob@example.test")
        good = {"email": "Alice@example.test", "scope": "openid mail", "exp": time.time() + 60}
        issuer.active = {
            "good": good,
            "narrow": {**good, "scope": "openid"},
            "old": {**good, "exp": time.time() - 1},
            "stranger": {**good, "email": "carol@example.test"},
        }
        assert await with_token(rig, "good") == ALICE
        asked = issuer.asked
        assert await with_token(rig, "good") == ALICE
        assert issuer.asked == asked, "believed for a while"
        assert await with_token(rig, "good", "bob@example.test") == "authorization"
        for token in ("narrow", "old", "none"):
            assert await with_token(rig, token) == "credentials", token
        assert await with_token(rig, "stranger", "carol@example.test") == "credentials"
        message = b"user=alice\x01auth=Bearer good\x01\x01"
        _, outcome = await rig.exchange("XOAUTH2", message)
        assert isinstance(outcome, Identity)
        issuer.status = 500
        assert await with_token(rig, "another") == "unavailable"
        await issuer.runner.cleanup()
        assert await with_token(rig, "yet another") == "unavailable"
        await rig.accounts.close()

    run(work)


@pytest.mark.parametrize("kind", ["RS256", "ES256"])
def test_tokens_by_signature(tmp_path: Path, kind: str) -> None:
    async def work() -> None:
        issuer = Issuer()
        url = await issuer.start()

        def new_key() -> Any:
            if kind == "RS256":
                return rsa.generate_private_key(public_exponent=65537, key_size=2048)
            return ec.generate_private_key(ec.SECP256R1())

        key = new_key()
        issuer.add_key(key, "k1")
        oauth = OAuthConfig(jwks_url=url + "/keys", issuer="https://issuer.test", audience="mail")
        rig = Rig(tmp_path, AuthConfig(**CHEAP, oauth=oauth))
        rig.add(ALICE)
        now = time.time()
        claims = {"email": ALICE, "iss": "https://issuer.test", "aud": "mail", "exp": now + 600}

        def sign(with_key: Any = key, key_id: str = "k1", algorithm: str = kind, **other: Any) -> str:
            body = {k: v for k, v in {**claims, **other}.items() if v is not None}
            return jwt.encode(body, with_key, algorithm=algorithm, headers={"kid": key_id})

        assert await with_token(rig, sign()) == ALICE
        bad = {
            "expired": sign(exp=now - 120),
            "no end": sign(exp=None),
            "another issuer": sign(iss="https://evil.test"),
            "another audience": sign(aud="web"),
            "another key": sign(new_key()),
            "unsigned": jwt.encode(claims, "", algorithm="none", headers={"kid": "k1"}),
            "the public key as a secret": confused(claims, issuer.keys[0]),
            "no token": "abc.def",
        }
        for why, token in bad.items():
            assert await with_token(rig, token) == "credentials", why
        asked = issuer.asked
        other = new_key()
        issuer.add_key(other, "k2")
        for i in range(5):  # invented key ids make no requests
            assert await with_token(rig, sign(other, f"invented {i}")) == "credentials"
        assert issuer.asked == asked
        assert rig.auth.tokens is not None
        rig.auth.tokens._keys_at -= 31  # half a minute later
        assert await with_token(rig, sign(other, "k2", n=1)) == ALICE, "a new key is fetched"
        await rig.accounts.close()
        await issuer.runner.cleanup()

    run(work)
