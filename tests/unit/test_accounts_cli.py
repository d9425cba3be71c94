"""`gateway user` and `gateway alias`: what they change, say and return."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.accounts.database import Database
from gateway.accounts.passwords import verify_prepared
from gateway.cli import main
from gateway.config import load
from gateway.store.account import AccountFile
from gateway.store.account_sharing import acl, set_acl
from gateway.store.names import account_directory
from gateway.store.shares import Shares

CONFIG = """
hostname = "mx.example.test"
state_dir = "state"
[[listen]]
service = "smtp"
address = "127.0.0.1:0"
[[route]]
domains = ["example.test"]
next_hop = ["store:"]
[accounts]
default_domain = "example.test"
[auth]
argon2_time_cost = 1
argon2_memory_kib = 64
scram_iterations = 4096
"""


class Commands:
    def __init__(self, where: Path) -> None:
        self.file = where / "edge.toml"
        self.file.write_text(CONFIG)
        self.database_file = where / "state" / "accounts.db"

    def __call__(self, *words: str, stdin: str | None = None, code: int = 0) -> str:
        result: Result = CliRunner().invoke(main, [*words, "--config", str(self.file)], input=stdin)
        assert result.exit_code == code, result.output
        return result.output

    def password_is(self, name: str, password: str) -> bool:
        record = Database(self.database_file).record(name)
        assert record is not None
        return verify_prepared(record.verifier, password)


@pytest.fixture
def gateway(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def test_add_list_passwd_remove(gateway: Commands) -> None:
    gateway("user", "add", "alice", "--quota-octets", "2G", stdin="secret\n")
    assert gateway.password_is("alice@example.test", "secret")
    made = gateway("user", "add", "bob@example.test", "--generate", "--allow-apop").strip()
    assert gateway.password_is("bob@example.test", made)
    listed = json.loads(gateway("user", "list", "--json"))
    assert [(a["name"], a["quota_octets"], a["mechanisms"]) for a in listed] == [
        ("alice@example.test", 2 << 30, ["PLAIN", "SCRAM-SHA-256"]),
        ("bob@example.test", 10 << 30, ["PLAIN", "SCRAM-SHA-256", "APOP", "CRAM-MD5"]),
    ]
    assert "alice@example.test" in gateway("user", "list")
    gateway("user", "passwd", "bob", "--no-apop", "--scram-sha-1", stdin="new\n")
    assert gateway.password_is("bob@example.test", "new")
    listed = json.loads(gateway("user", "list", "--json"))
    assert listed[1]["mechanisms"] == ["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256"]
    gateway("user", "passwd", "bob", stdin="newer\n")
    assert "SCRAM-SHA-1" in gateway("user", "list", "--json"), "what it was used for stays"
    gateway("user", "disable", "bob")
    assert json.loads(gateway("user", "list", "--json"))[1]["disabled"]
    gateway("user", "enable", "bob")
    gateway("user", "remove", "bob")
    assert len(json.loads(gateway("user", "list", "--json"))) == 1


def test_a_removed_account_leaves_no_rights(gateway: Commands) -> None:
    """Whoever gets the name later starts with nothing."""
    for name in ("alice", "bob"):
        gateway("user", "add", name, "--generate")
    config = load(str(gateway.file))
    directory = account_directory(config.store_dir, "alice@example.test")
    with contextlib.closing(AccountFile(directory, config.store, create=True)) as file:
        inbox = file.mailbox("INBOX").id
        for user in ("bob@example.test", "-bob@example.test", "carol@example.test"):
            shares = Shares(config.store_dir)
            set_acl(file, "alice@example.test", shares, inbox, user, "", frozenset("lr"), 10)
            shares.close()
        gateway("user", "remove", "bob")
        assert acl(file, inbox) == {"carol@example.test": "lr"}
        shares = Shares(config.store_dir)
        assert shares.owners("bob@example.test") == []
        assert shares.owners("carol@example.test") == ["alice@example.test"]
        shares.close()


def test_quota(gateway: Commands) -> None:
    gateway("user", "add", "alice", "--generate")
    assert "10.0G (accounts.quota_octets)" in gateway("user", "quota", "alice")
    assert "octets: no limit\n" in gateway("user", "quota", "alice", "--octets", "none")
    shown = json.loads(gateway("user", "quota", "alice", "--messages", "7", "--json"))
    assert (shown["quota_octets"], shown["quota_messages"]) == (0, 7)
    assert "10.0G (" in gateway("user", "quota", "alice", "--octets", "default")


@pytest.mark.parametrize(
    ("words", "stdin", "code", "says"),
    [
        (["user", "add", "alice"], "x\n", 1, "gateway user passwd"),
        (["user", "add", "a b@c d"], "x\n", 2, "is no local-part@domain"),
        (["user", "add", "@example.test"], "x\n", 2, "is no local-part@domain"),
        (["user", "add", "carol"], "", 2, "standard input"),
        (["user", "add", "carol"], "a\tb\n", 2, "choose another one"),
        (["user", "add", "carol"], "x" * 2000, 2, "longer than 1024"),
        (["user", "add", "carol", "--quota-octets", "5X"], "x\n", 2, "use 500M, 10G"),
        (["user", "passwd", "carol"], "x\n", 1, "gateway user list"),
        (["user", "remove", "carol"], None, 1, "gateway user list"),
        (["user", "quota", "carol"], None, 1, "gateway user list"),
        (["alias", "remove", "carol"], None, 1, "gateway alias list"),
        (["alias", "add", "carol"], None, 2, "Missing argument"),
    ],
)
def test_errors_say_what_to_do(
    gateway: Commands, words: list[str], stdin: str | None, code: int, says: str
) -> None:
    gateway("user", "add", "alice", "--generate")
    assert says in gateway(*words, stdin=stdin, code=code)


def test_aliases(gateway: Commands) -> None:
    assert "2 new" in gateway("alias", "add", "Sales", "alice", "bob@other.test")
    assert "0 new" in gateway("alias", "add", "sales@example.test", "alice")
    gateway("alias", "add", "@Example.TEST", "alice")
    assert json.loads(gateway("alias", "list", "--json")) == [
        {"address": "@example.test", "targets": ["alice@example.test"]},
        {"address": "sales@example.test", "targets": ["alice@example.test", "bob@other.test"]},
    ]
    assert "bob@other.test" in gateway("alias", "list")
    gateway("alias", "remove", "sales", "alice")
    gateway("alias", "remove", "@example.test")
    assert json.loads(gateway("alias", "list", "--json")) == [
        {"address": "sales@example.test", "targets": ["bob@other.test"]}
    ]


def test_check_asks_the_sources(gateway: Commands, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("alice:{NOPE}x\n")
    source = f'[[accounts.source]]\ntype = "htpasswd"\nfile = "{users}"\n'
    gateway.file.write_text(CONFIG + source)
    assert "htpasswd has no {NOPE}" in gateway("check")
    users.unlink()
    assert "No such file" in gateway("check")
    gateway.file.write_text(CONFIG + '[[accounts.source]]\ntype = "ldap"\nurl = "http://x"\n')
    output = gateway("check", code=2)
    assert "accounts.source[0].url: expected ldap://…" in output
    assert "accounts.source[0]: needs either base (and filter) or dn_template" in output
    gateway.file.write_text(CONFIG.replace("[auth]", '[auth]\nmechanisms = ["PLAIN", "MD5"]'))
    assert 'auth.mechanisms[1]: "MD5" is not known' in gateway("check", code=2)
