"""`gateway alias`: addresses that stand for others.

Errors    exit 1 when there is no such alias; 2 for a bad address; 75 when the database is locked
"""

from __future__ import annotations

import click

from gateway.cli.accounts_file import name_or_exit, opened
from gateway.cli.common import (
    config_option,
    fail,
    json_option,
    load_or_exit,
    print_json,
    print_table,
)


@click.group("alias")
def command() -> None:
    """Add, list and remove aliases; "@domain" is the catch-all of a domain."""


@command.command("add")
@click.argument("address")
@click.argument("targets", nargs=-1, required=True)
@config_option
def add(address: str, targets: tuple[str, ...], config_file: str) -> None:
    """Mail for ADDRESS goes to TARGETS, here or elsewhere; an ADDRESS with an account that shall
    keep its mail is one of its own TARGETS."""
    config = load_or_exit(config_file)
    alias = name_or_exit(config, address, catch_all=True)
    chosen = [name_or_exit(config, target) for target in targets]
    with opened(config) as database:
        added = database.add_alias(alias, chosen)
    click.echo(f"{alias}: {added} new target(s)")


@command.command("remove")
@click.argument("address")
@click.argument("targets", nargs=-1)
@config_option
def remove(address: str, targets: tuple[str, ...], config_file: str) -> None:
    """Remove TARGETS from ADDRESS, or all of them."""
    config = load_or_exit(config_file)
    alias = name_or_exit(config, address, catch_all=True)
    chosen = [name_or_exit(config, target) for target in targets]
    with opened(config) as database:
        removed = database.remove_alias(alias, chosen)
    if not removed:
        fail(f"{alias} has no such target; `gateway alias list` shows all")


@command.command("list")
@config_option
@json_option
def list_(config_file: str, as_json: bool) -> None:
    """All aliases."""
    config = load_or_exit(config_file)
    with opened(config) as database:
        aliases = database.aliases()
    if as_json:
        print_json([{"address": address, "targets": found} for address, found in aliases.items()])
        return
    rows = [(address, ", ".join(found)) for address, found in aliases.items()]
    print_table(f"{len(rows)} alias(es)", ("address", "goes to"), rows)
