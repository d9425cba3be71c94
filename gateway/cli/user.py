"""`gateway user`: the accounts of the embedded database.

Flow      options → Record → accounts.db; running workers see the change with the next login
Errors    exit 1 when the account exists, or does not; 2 for a bad name or password; 75 when the database is locked
"""

from __future__ import annotations

import contextlib
import datetime
import re
from typing import Any, NoReturn

import click

from gateway.accounts.build import hasher_of
from gateway.accounts.database import Listed
from gateway.accounts.embedded import make_record
from gateway.accounts.model import Account, Record
from gateway.cli.accounts_file import name_or_exit, new_password, opened, read_password
from gateway.cli.common import (
    USAGE,
    config_option,
    fail,
    json_option,
    load_or_exit,
    print_json,
    print_table,
    size,
)
from gateway.config_model import Config
from gateway.store.account import AccountFile
from gateway.store.account_sharing import forget_user
from gateway.store.errors import StoreError
from gateway.store.names import account_directory
from gateway.store.shares import Shares

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
DEFAULT = -1  # the option says "default"


class _Amount(click.ParamType[int]):
    """ "500000", "10G" → a number; "none" → 0, no limit; "default" → DEFAULT."""

    name = "AMOUNT"

    def __init__(self, units: bool) -> None:
        self._units = units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if text in ("none", "default"):
            return 0 if text == "none" else DEFAULT
        match = re.fullmatch(r"(\d{1,18})([KMGT]?)", text.upper())
        if match is None or (match[2] and not self._units):
            allowed = "500M, 10G, none or default" if self._units else "100000, none or default"
            self.fail(f"{value!r} is no amount; use {allowed}", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


OCTETS, MESSAGES = _Amount(True), _Amount(False)


@click.group("user")
def command() -> None:
    """Add, list, change and remove accounts."""


@command.command("add")
@click.argument("name")
@click.option("--quota-octets", type=OCTETS, default="default", help="500M, 10G or none")
@click.option("--quota-messages", type=MESSAGES, default="default", help="a number, or none")
@click.option("--password-stdin", is_flag=True, help="read the password from standard input")
@click.option("--generate", is_flag=True, help="make a password and print it")
@click.option("--scram-sha-1", is_flag=True, help="also keep keys for SCRAM-SHA-1")
@click.option(
    "--allow-apop",
    is_flag=True,
    help="also keep the password itself: APOP and CRAM-MD5 cannot work without it",
)
@config_option
def add(
    name: str,
    quota_octets: int,
    quota_messages: int,
    password_stdin: bool,
    generate: bool,
    scram_sha_1: bool,
    allow_apop: bool,
    config_file: str,
) -> None:
    """Add the account NAME, a mailbox local-part@domain."""
    config = load_or_exit(config_file)
    account = Account(name_or_exit(config, name), _own(quota_octets), _own(quota_messages))
    with opened(config) as database:
        if database.record(account.name) is not None:
            fail(f"{account.name} exists; `gateway user passwd` changes its password")
        password = new_password() if generate else read_password(password_stdin)
        record = _record(config, account, password, allow_apop, scram_sha_1)
        if not database.add(record):
            fail(f"{account.name} was added by somebody else meanwhile")
    if generate:
        click.echo(password)
    _warn_if_not_embedded(config)


@command.command("passwd")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="read the password from standard input")
@click.option("--generate", is_flag=True, help="make a password and print it")
@click.option("--scram-sha-1/--no-scram-sha-1", default=None, help="keep keys for SCRAM-SHA-1")
@click.option(
    "--allow-apop/--no-apop", default=None, help="keep the password itself, for APOP and CRAM-MD5"
)
@config_option
def passwd(
    name: str,
    password_stdin: bool,
    generate: bool,
    scram_sha_1: bool | None,
    allow_apop: bool | None,
    config_file: str,
) -> None:
    """Set the password of NAME; what it may be used for stays unless an option says otherwise."""
    config = load_or_exit(config_file)
    account_name = name_or_exit(config, name)
    with opened(config) as database:
        old = database.record(account_name)
        if old is None:
            _not_found(account_name)
        password = new_password() if generate else read_password(password_stdin)
        record = _record(
            config,
            old.account,
            password,
            old.secret is not None if allow_apop is None else allow_apop,
            "SHA-1" in old.scram if scram_sha_1 is None else scram_sha_1,
        )
        if not database.set_password(record):
            _not_found(account_name)
    if generate:
        click.echo(password)


@command.command("list")
@config_option
@json_option
def list_(config_file: str, as_json: bool) -> None:
    """All accounts of the database."""
    config = load_or_exit(config_file)
    with opened(config) as database:
        accounts = database.accounts()
    if as_json:
        print_json([_shown(config, listed) for listed in accounts])
        return
    rows = []
    for listed in accounts:
        shown = _shown(config, listed)
        rows.append(
            (
                listed.name,
                size(shown["quota_octets"]) if shown["quota_octets"] else "none",
                shown["quota_messages"] or "none",
                "disabled" if listed.disabled else "",
                shown["created_at"][:10],
                " ".join(listed.mechanisms),
            )
        )
    columns = ("account", ">quota", ">messages", "", "created", "mechanisms")
    print_table(f"{len(rows)} account(s)", columns, rows)
    _warn_if_not_embedded(config)


@command.command("remove")
@click.argument("name")
@config_option
def remove(name: str, config_file: str) -> None:
    """Remove the account NAME, and its rights on others' mailboxes.  Its mail stays where it is."""
    config = load_or_exit(config_file)
    account_name = name_or_exit(config, name)
    with opened(config) as database:
        if not database.remove(account_name):
            _not_found(account_name)
    shares = Shares(config.store_dir)
    try:
        for owner in shares.owners(account_name):
            with contextlib.closing(
                AccountFile(account_directory(config.store_dir, owner), config.store)
            ) as file:
                forget_user(file, owner, shares, account_name)
    except StoreError as error:
        fail(f"{account_name} is removed, but may still be named in access lists: {error}")
    finally:
        shares.close()


@command.command("disable")
@click.argument("name")
@config_option
def disable(name: str, config_file: str) -> None:
    """NAME can neither log in nor get mail (550 5.2.1)."""
    _set_disabled(config_file, name, True)


@command.command("enable")
@click.argument("name")
@config_option
def enable(name: str, config_file: str) -> None:
    """NAME can log in and get mail again."""
    _set_disabled(config_file, name, False)


@command.command("quota")
@click.argument("name")
@click.option("--octets", type=OCTETS, help="500M, 10G, none, or default")
@click.option("--messages", type=MESSAGES, help="a number, none, or default")
@config_option
@json_option
def quota(
    name: str, octets: int | None, messages: int | None, config_file: str, as_json: bool
) -> None:
    """Show the quota of NAME, or change it."""
    config = load_or_exit(config_file)
    account_name = name_or_exit(config, name)
    with opened(config) as database:
        record = database.record(account_name)
        if record is None:
            _not_found(account_name)
        if octets is not None or messages is not None:
            account = record.account
            database.set_quota(
                account_name,
                account.quota_octets if octets is None else _own(octets),
                account.quota_messages if messages is None else _own(messages),
            )
        listed = next(each for each in database.accounts() if each.name == account_name)
    shown = _shown(config, listed)
    if as_json:
        print_json(shown)
        return
    for key, own in (("quota_octets", listed.quota_octets), ("quota_messages", listed.quota_messages)):
        amount = size(shown[key]) if key == "quota_octets" else str(shown[key])
        origin = "" if own is not None else f" (accounts.{key})"
        click.echo(f"{key.removeprefix('quota_')}: {amount if shown[key] else 'no limit'}{origin}")


def _set_disabled(config_file: str, name: str, disabled: bool) -> None:
    config = load_or_exit(config_file)
    account_name = name_or_exit(config, name)
    with opened(config) as database:
        if not database.set_disabled(account_name, disabled):
            _not_found(account_name)


def _record(
    config: Config, account: Account, password: str, allow_apop: bool, sha1: bool
) -> Record:
    try:
        return make_record(
            account, password, hasher_of(config.auth), allow_apop=allow_apop, sha1=sha1
        )
    except ValueError as error:
        fail(f"{error}; choose another one", USAGE)


def _own(amount: int) -> int | None:
    return None if amount == DEFAULT else amount


def _shown(config: Config, listed: Listed) -> dict[str, Any]:
    """An account for programs: quotas with the defaults filled in, 0: no limit."""
    octets, messages = listed.quota_octets, listed.quota_messages
    return {
        "name": listed.name,
        "quota_octets": config.accounts.quota_octets if octets is None else octets,
        "quota_messages": config.accounts.quota_messages if messages is None else messages,
        "disabled": listed.disabled,
        "mechanisms": listed.mechanisms,
        "created_at": _instant(listed.created_at),
        "password_changed_at": _instant(listed.changed_at),
    }


def _instant(ns: int) -> str:
    return datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC).isoformat()


def _not_found(name: str) -> NoReturn:
    fail(f"there is no account {name}; `gateway user list` shows all")


def _warn_if_not_embedded(config: Config) -> None:
    sources = config.accounts.source
    if sources and not any(source.type == "embedded" for source in sources):
        click.echo('warning: no [[accounts.source]] has type = "embedded": these are not used', err=True)
