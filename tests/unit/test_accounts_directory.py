"""Where mail for an address goes: accounts, aliases, sub-addresses, catch-alls, other sources."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from accounts_rig import ALICE, BOB, CHEAP, Rig, run
from aiohttp import web

from gateway.accounts.database import Database
from gateway.accounts.model import Deliveries, Identity, Refusal, SourceError, Unavailable, Unknown
from gateway.accounts.names import normal_user
from gateway.config_accounts import AccountsConfig, AccountSourceConfig, AuthConfig


def targets(found: Any) -> tuple[list[str], list[str]]:
    assert isinstance(found, Deliveries), found
    return sorted(delivery.account.name for delivery in found.local), sorted(found.forward)


def test_accounts_and_nobody(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE)
        for address in (ALICE, "Alice@EXAMPLE.test", '"alice"@example.test', '"a\\lice"@example.test'):
            assert targets(await rig.resolve(address)) == ([ALICE], [])
        for address in ("carol@example.test", "alice@other.test", "alice", "@example.test", ""):
            assert await rig.resolve(address) == Unknown()
        rig.database.set_disabled(ALICE, True)
        assert await rig.resolve(ALICE) == Unknown(disabled=True)
        await rig.accounts.close()

    run(work)


def test_aliases_lead_to_one_or_many_here_and_elsewhere(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.add(ALICE)
        rig.add(BOB)
        add = rig.database.add_alias
        add("all@example.test", ["sales@example.test", "carol@other.test"])
        add("sales@example.test", [ALICE, BOB])
        add(BOB, [BOB, "bob@home.test"])  # keeps his own copy
        found = await rig.resolve("all@example.test")
        assert targets(found) == ([ALICE, BOB], ["bob@home.test", "carol@other.test"])
        assert targets(await rig.resolve("sales+x@example.test"))[0] == [ALICE, BOB]
        assert targets(await rig.resolve(BOB)) == ([BOB], ["bob@home.test"])
        assert isinstance(found, Deliveries)
        assert set(found.addresses()) == {ALICE, BOB, "bob@home.test", "carol@other.test"}
        assert rig.database.remove_alias("sales@example.test", [ALICE]) == 1
        assert targets(await rig.resolve("sales@example.test"))[0] == [BOB]
        await rig.accounts.close()

    run(work)


def test_circles_and_crowds_are_bounded(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path, accounts=AccountsConfig(alias_depth=5, alias_targets=50))
        rig.add(ALICE)
        add = rig.database.add_alias
        add("a@example.test", ["b@example.test"])
        add("b@example.test", ["a@example.test", ALICE])
        assert "circle" in str(await rig.resolve("a@example.test"))
        for i in range(7):
            add(f"d{i}@example.test", [f"d{i + 1}@example.test"])
        assert "too deep" in str(await rig.resolve("d0@example.test"))
        add("crowd@example.test", [f"u{i}@other.test" for i in range(60)])
        assert "alias_targets" in str(await rig.resolve("crowd@example.test"))
        for i in range(30):  # 2**30 paths, if they were walked
            add(f"e{i}@example.test", [f"e{i + 1}@example.test", f"f{i + 1}@example.test"])
            add(f"f{i}@example.test", [f"e{i + 1}@example.test", f"f{i + 1}@example.test"])
        assert isinstance(await rig.resolve("e0@example.test"), Unavailable)
        deep = Rig(tmp_path, accounts=AccountsConfig(alias_depth=1000))
        add("e30@example.test", [ALICE])
        add("f30@example.test", [ALICE])
        assert targets(await deep.resolve("e0@example.test"))[0] == [ALICE]
        await deep.accounts.close()
        await rig.accounts.close()

    run(work)


def test_sub_addresses(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path, accounts=AccountsConfig(sub_address_mailbox=True))
        rig.add(ALICE)
        rig.add("a+b@example.test")
        found = await rig.resolve("alice+News.Weekly@example.test")
        assert isinstance(found, Deliveries)
        assert [(d.account.name, d.mailbox) for d in found.local] == [(ALICE, "news.weekly")]
        assert targets(await rig.resolve("a+b@example.test"))[0] == ["a+b@example.test"]
        for address in ("+alice@example.test", "alice+@example.test", "carol+x@example.test"):
            assert await rig.resolve(address) == Unknown(), address
        off = Rig(tmp_path, accounts=AccountsConfig(separator=""))
        assert await off.resolve("alice+x@example.test") == Unknown()
        minus = Rig(tmp_path, accounts=AccountsConfig(separator="-"))
        assert targets(await minus.resolve("alice-x@example.test"))[0] == [ALICE]
        for each in (rig, off, minus):
            await each.accounts.close()

    run(work)


def test_catch_all_and_postmaster(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path, accounts=AccountsConfig(postmaster=ALICE))
        rig.add(ALICE)
        rig.add(BOB)
        assert targets(await rig.resolve("Postmaster@example.test"))[0] == [ALICE]
        assert await rig.resolve("postmaster@other.test") == Unknown(), "not our domain"
        rig.database.add_alias("@example.test", [BOB])
        assert targets(await rig.resolve("nobody@example.test"))[0] == [BOB]
        assert targets(await rig.resolve(ALICE))[0] == [ALICE], "who exists is not caught"
        assert await rig.resolve("nobody@other.test") == Unknown()
        rig.database.remove(BOB)
        assert await rig.resolve("nobody@example.test") == Unknown()
        await rig.accounts.close()

    run(work)


def test_a_database_that_fails_is_temporary(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(tmp_path)
        rig.database._connection.execute("DROP TABLE alias")
        assert isinstance(await rig.resolve(ALICE), Unavailable)
        await rig.accounts.close()

    run(work)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Alice", "alice@example.test"),
        (" alice@Example.TEST ", "alice@example.test"),
        ("jo\u0308rg@münchen.example", "jörg@xn--mnchen-3ya.example"),
        ("", ""),
        ("@x.test", ""),
        ("a\nb@x.test", ""),
        ("a" * 400 + "@x.test", ""),
    ],
)
def test_names_have_one_form(typed: str, name: str) -> None:
    assert normal_user(typed, "example.test") == name


# -- the database ----------------------------------------------------------------------------------


def test_the_database_is_ours_alone_and_of_a_known_version(tmp_path: Path) -> None:
    path = tmp_path / "accounts.db"
    database = Database(path)
    database.add_alias("a@x.test", ["b@x.test"])
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}
    assert database.check() == []
    database._connection.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SourceError, match="version 99"):
        Database(path)
    path.write_bytes(os.urandom(8192))
    with pytest.raises(SourceError, match="not a database"):
        Database(path)


# -- files -----------------------------------------------------------------------------------------


def source(kind: str, **keys: Any) -> AccountSourceConfig:
    return AccountSourceConfig(type=kind, **keys)  # type: ignore[arg-type]


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    async def work() -> None:
        users = tmp_path / "users"
        users.write_text("# ours\nalice:{PLAIN}secret\n\nbroken\nbob:{NOPE}x\ncarol:{SHA}!\n")
        config = AccountsConfig(
            default_domain="example.test", source=(source("passwd-file", file=users),)
        )
        rig = Rig(tmp_path, accounts=config)
        assert isinstance(await rig.login("alice", "secret"), Identity)
        assert rig.directory.abilities() == frozenset(), "carol has no such keys"
        assert [p.partition(":")[2] for p in rig.directory.sources[0].problems()] == [
            "4: expected name:hash",
            "5: {NOPE} is not supported; known: " + ", ".join(sorted(known_schemes())),
        ]
        outcome = await rig.login("carol", "x")
        assert isinstance(outcome, Refusal) and outcome.reason == "unavailable", "not her fault"
        users.write_text(
            "alice:{PLAIN}changed::::::userdb_quota_rule=*:storage=1G:messages=7 nologin\n"
        )
        assert isinstance(await rig.login("alice", "secret"), Refusal)
        assert await rig.resolve(ALICE) == Unknown(disabled=True)
        assert rig.directory.abilities() == {"SHA-256", "SHA-1", "secret"}
        account = await rig.directory.find(ALICE)
        assert account is not None
        assert (account.quota_octets, account.quota_messages) == (2**30, 7)
        users.unlink()
        assert isinstance(await rig.resolve(ALICE), Unavailable), "not unknown"
        await rig.accounts.close()

    run(work)


def known_schemes() -> set[str]:
    from gateway.accounts.passwords import _SCHEMES

    return set(_SCHEMES)


def test_sources_are_asked_in_their_order(tmp_path: Path) -> None:
    async def work() -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        first.write_text("alice:{PLAIN}one\n")
        second.write_text("alice:{PLAIN}two\nbob:{PLAIN}two\n")

        async def outcome(user: str, password: str, **keys: Any) -> bool:
            config = AccountsConfig(
                default_domain="example.test",
                source=(source("passwd-file", file=first, **keys), source("passwd-file", file=second)),
            )
            rig = Rig(tmp_path, accounts=config)
            found = await rig.login(user, password)
            await rig.accounts.close()
            return isinstance(found, Identity)

        assert await outcome("alice", "one")
        assert not await outcome("alice", "two"), "the first that knows her decides"
        assert await outcome("alice", "two", next_on_failure=True)
        assert await outcome("bob", "two")
        assert not await outcome("carol", "two")

    run(work)


# -- a web service ---------------------------------------------------------------------------------


class Service:
    """A web service that knows alice, and can be made to misbehave."""

    def __init__(self) -> None:
        self.questions: list[dict[str, str]] = []
        self.headers: list[str] = []
        self.answer: Any = None

    async def start(self) -> str:
        app = web.Application()
        app.router.add_post("/", self.handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}/"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        question = await request.json()
        self.questions.append(question)
        self.headers.append(request.headers.get("Authorization", ""))
        if self.answer is not None:
            return await self.answer(request)  # type: ignore[no-any-return]
        known = question["user"] == ALICE
        right = known and question.get("password") == "secret"
        return web.json_response({"known": known, "right": right, "quota_octets": 5})


def test_a_web_service_is_asked_once_and_remembered(tmp_path: Path) -> None:
    async def work() -> None:
        service = Service()
        url = await service.start()
        (tmp_path / "token").write_text("t0ken\nrest")
        config = AccountsConfig(
            default_domain="example.test",
            source=(source("http", url=url, secret_file=tmp_path / "token", timeout_s=1.0),),
        )
        rig = Rig(tmp_path, accounts=config)
        rig.database.add_alias("sales@example.test", [ALICE, "carol@example.test"])
        assert targets(await rig.resolve(ALICE)) == ([ALICE], [])
        assert targets(await rig.resolve("sales@example.test")) == ([ALICE], [])
        assert [q["user"] for q in service.questions] == [ALICE, "carol@example.test"]
        assert service.headers[0] == "Bearer t0ken"
        identity = await rig.login("alice", "secret")
        assert isinstance(identity, Identity) and identity.account.quota_octets == 5
        asked = len(service.questions)
        assert isinstance(await rig.login("alice", "secret"), Identity)
        assert len(service.questions) == asked
        assert isinstance(await rig.login("alice", "wrong"), Refusal)
        assert "SCRAM-SHA-256" not in rig.auth.mechanisms(rig.peer())
        await rig.accounts.close()
        await service.runner.cleanup()

    run(work)


async def _error(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


async def _text(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="yes, please")


async def _number(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"known": "yes"})


async def _elsewhere(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("http://127.0.0.1:1/")


async def _never(_request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


@pytest.mark.parametrize("answer", [_error, _text, _number, _elsewhere, _never])
def test_a_web_service_that_misbehaves_is_a_temporary_failure(tmp_path: Path, answer: Any) -> None:
    async def work() -> None:
        service = Service()
        service.answer = answer
        config = AccountsConfig(
            default_domain="example.test",
            source=(source("http", url=await service.start(), timeout_s=0.2),),
        )
        rig = Rig(tmp_path, accounts=config)
        assert isinstance(await rig.resolve(ALICE), Unavailable)
        outcome = await rig.login("alice", "secret")
        assert isinstance(outcome, Refusal) and outcome.is_temporary
        assert "127.0.0.1" in rig.log.last("auth_failed")["detail"]
        await rig.accounts.close()
        await service.runner.shutdown()

    run(work)


def test_unknown_users_of_a_file_cost_what_its_users_cost(tmp_path: Path, monkeypatch: Any) -> None:
    from gateway.accounts import passwords

    asked: list[str] = []
    real = passwords.verify

    def counted(verifier: str, password: str) -> bool:
        asked.append(verifier[:7])
        return real(verifier, password)

    monkeypatch.setattr(passwords, "verify", counted)

    async def work() -> None:
        users = tmp_path / "users"
        users.write_text("alice:$2y$04$4vCUZHPuBmWzzkKNUNSaUuHV1ZmXcvTEKGuaqbVLfB.xYEbqVp6/u\n")
        config = AccountsConfig(
            default_domain="example.test", source=(source("htpasswd", file=users),)
        )
        rig = Rig(tmp_path, AuthConfig(**CHEAP), config)
        await rig.login("alice", "wrong")
        await rig.login("carol", "wrong")
        assert asked == ["$2y$04$"] * 2
        await rig.accounts.close()

    run(work)
