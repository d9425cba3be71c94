"""Logins: right, wrong, unknown, busy, again; what they cost and what they tell."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
from accounts_rig import ALICE, BOB, CHEAP, Rig, run, scram_responses

from gateway.accounts import passwords
from gateway.accounts.build import hasher_of
from gateway.accounts.embedded import make_record
from gateway.accounts.model import REFUSALS, Account, Identity, Refusal
from gateway.config_accounts import AccountsConfig, AuthConfig


def accepted(outcome: Identity | Refusal) -> Identity:
    assert isinstance(outcome, Identity), outcome
    return outcome


def refused(outcome: Identity | Refusal) -> str:
    assert isinstance(outcome, Refusal), outcome
    return outcome.reason


def test_a_password_lets_in_and_others_do_not(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE, quota_octets=1000)
        identity = accepted(await rig.login("Alice", "secret"))
        assert identity.account.name == ALICE
        assert identity.account.quota_octets == 1000
        assert identity.account.quota_messages == 0, "the default"
        assert not identity.is_master and not identity.cached
        assert rig.log.last("authenticated")["account"] == ALICE
        for user, password in (("alice", "Secret"), ("alice", "secret "), ("carol", "secret"), ("", "x")):
            assert refused(await rig.login(user, password)) in ("credentials", "malformed")
        assert "secret" not in str(rig.log.events).replace("wrong secret", "")
        await rig.accounts.close()

    run(work)


def test_a_login_is_known_again_until_the_password_changes(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE)
        await rig.login("alice", "secret")
        checks = rig.accounts.checks.total
        identity = accepted(await rig.login("alice@EXAMPLE.test", "secret"))
        assert identity.cached and rig.accounts.checks.total == checks, "no hash was computed"
        record = make_record(Account(ALICE), "changed", hasher_of(rig.auth_config))
        assert rig.database.set_password(record)
        assert refused(await rig.login("alice", "secret")) == "credentials"
        assert not accepted(await rig.login("alice", "changed")).cached
        assert rig.database.remove(ALICE)
        assert refused(await rig.login("alice", "changed")) == "credentials"
        await rig.accounts.close()

    run(work)


def test_what_another_process_changes_is_seen_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        rig, other = Rig(tmp_path), Rig(tmp_path)
        other.add(ALICE)
        accepted(await rig.login("alice", "secret"))
        other.database.set_disabled(ALICE, True)
        assert refused(await rig.login("alice", "secret")) == "disabled"
        assert refused(await rig.login("alice", "wrong")) == "credentials", "told to its owner alone"
        await rig.accounts.close()
        await other.accounts.close()

    run(work)


def test_unknown_users_cost_what_known_ones_cost(tmp_path: Path, monkeypatch: Any) -> None:
    """One Argon2 check with the same parameters, whoever the user is."""
    costs: list[list[str]] = []
    real = passwords.verify

    def counted(verifier: str, password: str) -> bool:
        costs.append(verifier.split("$")[1:4])
        return real(verifier, password)

    monkeypatch.setattr(passwords, "verify", counted)

    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE)
        for user in ("alice", "carol", "@", "x" * 400):
            costs.clear()
            assert refused(await rig.login(user, "wrong")) == "credentials"
            assert costs == [["argon2id", "v=19", "m=8,t=1,p=1"]], user
        await rig.accounts.close()

    run(work)


def test_hashes_are_computed_beside_the_loop_a_few_at_a_time(tmp_path: Path, monkeypatch: Any) -> None:
    gate = threading.Event()
    running: list[int] = []
    most = 0

    def slow(_verifier: str, _password: str) -> bool:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        gate.wait(20)
        running.pop()
        return False

    monkeypatch.setattr(passwords, "verify_prepared", slow)

    async def work() -> None:
        rig = Rig(tmp_path, AuthConfig(**CHEAP, checks=2, checks_waiting=3))
        rig.add(ALICE)
        logins = [asyncio.ensure_future(rig.login("alice", f"x{i}")) for i in range(9)]
        await asyncio.sleep(0.05)  # the loop turns while two threads wait
        done = [login for login in logins if login.done()]
        assert [refused(login.result()) for login in done] == ["busy"] * 4
        assert REFUSALS["busy"].is_temporary
        gate.set()
        assert [refused(o) for o in await asyncio.gather(*logins)].count("credentials") == 5
        assert most == 2
        await rig.accounts.close()

    run(work)


def test_a_refusal_is_held_back_and_a_session_that_left_hears_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path, AuthConfig(**{**CHEAP, "failure_delay_s": 0.05, "failure_delay_max_s": 0.2}))
        rig.add(ALICE)
        heard: list[Any] = []
        login = rig.auth.check_password(rig.peer(), "alice", "wrong", heard.append)
        for _ in range(200):
            if rig.log.events:
                break
            await asyncio.sleep(0.005)
        assert rig.log.last("auth_failed")["delay_s"] == 0.05
        assert not heard
        login.cancel()
        await asyncio.sleep(0.1)
        assert not heard
        assert refused(await rig.login("alice", "wrong 2")) == "credentials"
        assert rig.log.last("auth_failed")["delay_s"] == 0.1
        accepted(await rig.login("alice", "secret"))
        await rig.accounts.close()

    run(work)


def test_a_source_that_fails_is_a_temporary_refusal(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE)
        rig.database._connection.execute("DROP TABLE account")
        outcome = await rig.login("alice", "secret")
        assert refused(outcome) == "unavailable"
        assert isinstance(outcome, Refusal) and outcome.is_temporary
        assert "no such table" in rig.log.last("auth_failed")["detail"]
        await rig.accounts.close()

    run(work)


def test_nothing_is_offered_in_clear_except_to_loopback(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE)
        clear = rig.peer(tls=False)
        assert rig.auth.mechanisms(clear) == ()
        assert refused(await rig.login("alice", "secret", clear)) == "encryption"
        _, outcome = await rig.exchange("PLAIN", b"\0alice\0secret", peer=clear)
        assert refused(outcome) == "encryption"
        for ip in ("127.0.0.1", "::1", ""):
            assert "PLAIN" in rig.auth.mechanisms(rig.peer(ip, tls=False))
        assert rig.auth.mechanisms(rig.peer()) == ("SCRAM-SHA-256", "PLAIN", "LOGIN")
        bound = rig.peer(bindings={"tls-server-end-point": b"x"}, certificate_names=("a@b",))
        assert rig.auth.mechanisms(bound) == ("SCRAM-SHA-256", "PLAIN", "LOGIN", "EXTERNAL")
        plus = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")
        assert rig.auth.mechanisms(bound, plus) == plus
        assert rig.auth.mechanisms(rig.peer(), plus) == plus[1:]
        assert rig.auth.mechanisms(bound, ("LOGIN", "CRAM-MD5")) == ("LOGIN",)
        rig.add(BOB, allow_apop=True)
        assert rig.auth.mechanisms(bound, ("LOGIN", "CRAM-MD5")) == ("LOGIN", "CRAM-MD5")
        _, outcome = await rig.exchange("CRAM-MD5", None)
        assert refused(outcome) == "mechanism", "not in auth.mechanisms"
        await rig.accounts.close()

    run(work)


def test_scram_and_the_salt_of_nobody(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE)
        _, outcome = await rig.exchange("SCRAM-SHA-256", *scram_responses("alice", "secret"))
        assert accepted(outcome).mechanism == "SCRAM-SHA-256"
        _, outcome = await rig.exchange("scram-sha-256", *scram_responses("alice", "wrong"))
        assert refused(outcome) == "credentials"
        shown = []
        for _ in range(2):
            challenges, outcome = await rig.exchange(
                "SCRAM-SHA-256", *scram_responses("carol", "secret")
            )
            assert refused(outcome) == "credentials"
            shown.append(challenges[0].split(b",", 1)[1])
        assert shown[0] == shown[1], "the same salt each time, as a real user has"
        other = Rig(tmp_path)
        assert other.auth.keys_of_nobody("carol", "SHA-256").salt == (
            rig.auth.keys_of_nobody("carol", "SHA-256").salt
        ), "and in each worker"
        await rig.accounts.close()
        await other.accounts.close()

    run(work)


def test_scram_plus_and_somebody_who_hides_it(tmp_path: Path) -> None:
    async def work() -> None:
        mechanisms = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")
        rig = Rig(tmp_path, AuthConfig(**CHEAP, mechanisms=mechanisms))
        rig.add(ALICE)
        peer = rig.peer(bindings={"tls-server-end-point": b"certificate"})
        flag = "p=tls-server-end-point"
        good = scram_responses("alice", "secret", flag=flag, binding=b"certificate")
        _, outcome = await rig.exchange("SCRAM-SHA-256-PLUS", *good, peer=peer)
        assert accepted(outcome).mechanism == "SCRAM-SHA-256-PLUS"
        bad = scram_responses("alice", "secret", flag=flag, binding=b"another")
        _, outcome = await rig.exchange("SCRAM-SHA-256-PLUS", *bad, peer=peer)
        assert refused(outcome) == "credentials"
        hidden = scram_responses("alice", "secret", flag="y")
        _, outcome = await rig.exchange("SCRAM-SHA-256", *hidden, peer=peer)
        assert refused(outcome) == "malformed"
        await rig.accounts.close()

    run(work)


def test_apop_and_cram_md5_need_the_password_itself(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path, AuthConfig(**CHEAP, mechanisms=("CRAM-MD5", "PLAIN")))
        rig.add(ALICE, "tanstaaf", allow_apop=True)
        rig.add(BOB, "tanstaaf")
        stamp = "<1896.697170952@dbc.mtview.ca.us>"  # RFC 1939 §7

        async def apop(user: str, digest: str) -> Identity | Refusal:
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            rig.auth.check_apop(rig.peer(tls=False), user, stamp, digest, done.set_result)
            return await done  # type: ignore[no-any-return]

        digest = "c4c9334bac560ecc979e58001b3e22fb"
        assert hashlib.md5((stamp + "tanstaaf").encode()).hexdigest() == digest
        assert accepted(await apop("alice", digest)).mechanism == "APOP"
        assert refused(await apop("alice", digest[:-1] + "0")) == "credentials"
        for user in ("bob", "carol"):
            empty = hashlib.md5(stamp.encode()).hexdigest()
            assert refused(await apop(user, digest)) == "credentials"
            assert refused(await apop(user, empty)) == "credentials", "no secret is not an empty one"

        def response(challenge: bytes) -> bytes:
            import hmac

            return b"alice " + hmac.new(b"tanstaaf", challenge, "md5").hexdigest().encode()

        _, outcome = await rig.exchange("CRAM-MD5", None, response)
        assert accepted(outcome).account.name == ALICE
        await rig.accounts.close()

    run(work)


def test_only_master_users_act_for_others(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path, AuthConfig(**CHEAP, master_users=("root",)))
        for name in (ALICE, BOB, "root@example.test"):
            rig.add(name)
        _, outcome = await rig.exchange("PLAIN", b"alice\0alice@example.test\0secret")
        assert accepted(outcome).account.name == ALICE, "the same name is no other"
        _, outcome = await rig.exchange("PLAIN", b"bob\0alice\0secret")
        assert refused(outcome) == "authorization"
        _, outcome = await rig.exchange("PLAIN", b"bob\0root\0secret")
        identity = accepted(outcome)
        assert (identity.account.name, identity.authenticated_as) == (BOB, "root@example.test")
        assert identity.is_master
        _, outcome = await rig.exchange("PLAIN", b"carol\0root\0secret")
        assert refused(outcome) == "authorization"
        _, outcome = await rig.exchange("PLAIN", b"bob\0root\0wrong")
        assert refused(outcome) == "credentials"
        _, outcome = await rig.exchange(
            "SCRAM-SHA-256", *scram_responses("root", "secret", authzid="bob")
        )
        assert accepted(outcome).account.name == BOB
        rig.database.set_disabled(BOB, True)
        _, outcome = await rig.exchange("PLAIN", b"bob\0root\0secret")
        assert refused(outcome) == "disabled"
        await rig.accounts.close()

    run(work)


def test_external_takes_the_account_that_the_certificate_names(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE)
        rig.add(BOB)
        peer = rig.peer(certificate_names=("ALICE@example.test",))
        _, outcome = await rig.exchange("EXTERNAL", b"", peer=peer)
        assert accepted(outcome).account.name == ALICE
        _, outcome = await rig.exchange("EXTERNAL", b"bob", peer=peer)
        assert refused(outcome) == "authorization"
        stranger = rig.peer(certificate_names=("carol@example.test",))
        _, outcome = await rig.exchange("EXTERNAL", b"", peer=stranger)
        assert refused(outcome) == "credentials"
        await rig.accounts.close()

    run(work)


def test_a_reload_replaces_the_sources_and_keeps_the_failures(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path, AuthConfig(**{**CHEAP, "failure_delay_s": 0.01, "failure_delay_max_s": 1.0}))
        rig.add(ALICE)
        await rig.login("alice", "wrong")
        accepted(await rig.login("alice", "secret"))
        auth = AuthConfig(**CHEAP, mechanisms=("LOGIN",))
        accounts = AccountsConfig(default_domain="example.test")
        rig.accounts.reload(accounts, auth, is_local=lambda _: True)
        assert rig.accounts.directory is rig.auth.directory is not rig.directory
        assert rig.auth.mechanisms(rig.peer()) == ("LOGIN",)
        assert rig.auth.throttle.entries() == 2
        assert not accepted(await rig.login("alice", "secret")).cached
        await rig.accounts.close()

    run(work)


def test_what_is_counted(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE)
        await rig.login("alice", "secret")
        await rig.login("alice", "wrong")
        await rig.login("carol", "wrong")
        samples = {(s.name, *s.labels.values()): s.value for s in rig.auth.samples()}
        assert samples["gateway_auth_successes_total", "pop3", "USER"] == 1
        assert samples["gateway_auth_failures_total", "pop3", "credentials"] == 2
        assert samples["gateway_auth_failures_remembered",] == 4
        await rig.accounts.close()

    run(work)


def test_the_cache_is_bounded_and_keeps_no_password(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path, AuthConfig(**CHEAP, cache_max=3))
        for i in range(6):
            rig.add(f"u{i}@example.test", f"password-{i}")
            accepted(await rig.login(f"u{i}", f"password-{i}"))
        assert len(rig.auth._cache) == 3
        assert "password-5" not in str(rig.auth._cache)
        assert accepted(await rig.login("u5", "password-5")).cached
        assert not accepted(await rig.login("u0", "password-0")).cached
        off = Rig(tmp_path, AuthConfig(**CHEAP, cache_s=0.0))
        accepted(await off.login("u0", "password-0"))
        assert not accepted(await off.login("u0", "password-0")).cached
        await rig.accounts.close()
        await off.accounts.close()

    run(work)


@pytest.mark.parametrize("reason", sorted(REFUSALS))
def test_every_refusal_has_its_words_in_each_protocol(reason: str) -> None:
    refusal = REFUSALS[reason]
    assert refusal.is_temporary == (refusal.smtp.code == 454)
    assert refusal.is_temporary == (refusal.imap == "UNAVAILABLE")
    assert refusal.is_temporary == (refusal.pop3 == "SYS/TEMP")
