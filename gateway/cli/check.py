"""`gateway check`: what is wrong with a configuration, and what it means."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import click

from gateway.accounts.check import ask_sources
from gateway.cli.common import USAGE, config_option, json_option, print_json, print_table
from gateway.config import ConfigError, load
from gateway.config_checks import warnings_for
from gateway.config_model import Config
from gateway.net.egress import missing
from gateway.net.netlink import Netlink, NetlinkError


@click.command("check")
@config_option
@json_option
def command(config_file: str, as_json: bool) -> None:
    """Tell what would be listened on and where mail would go.  Exit 0, or 2 with all errors."""
    try:
        config = load(config_file)
    except ConfigError as error:
        if as_json:
            problems = [problem._asdict() for problem in error.problems]
            print_json({"file": config_file, "ok": False, "errors": problems, "warnings": []})
        else:
            click.echo(str(error), err=True)
        sys.exit(USAGE)
    warnings = [*warnings_for(config), *_source_warnings(config), *_ask_sources(config)]
    if as_json:
        print_json(
            {"file": config_file, "ok": True, "errors": [], "warnings": warnings, **_facts(config)}
        )
        return
    print_table(
        f"{config.hostname}: {config.worker_count} worker(s), state in {config.state_dir}",
        ("service", "address", "tls", "durability", ">largest message"),
        [
            (
                listen.service,
                listen.address,
                listen.tls,
                "-" if listen.service == "http" else listen.durability,
                "-"
                if listen.service == "http"
                else listen.max_message_octets or config.limits.message_octets,
            )
            for listen in config.listen
        ],
    )
    print_table(
        "\nroutes, the first match wins",
        ("domains", "recipients", "next hops", "tls", "for"),
        [
            (
                ", ".join(route.domains),
                len(route.recipients) or "any",
                ", ".join(route.next_hop) + (" (held)" if route.hold else ""),
                route.tls,
                "clients that may relay" if "*" in route.domains else "everybody",
            )
            for route in config.route
        ],
    )
    click.echo(f"\nmay relay: {', '.join(config.access.relay_from) or 'nobody'}")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _source_warnings(config: Config) -> Iterator[str]:
    """Source addresses that this host does not have, or not on a link that is up."""
    if not any(route.source_addresses for route in config.route):
        return
    netlink = Netlink()
    try:
        up = asyncio.run(netlink.addresses())
    except NetlinkError as error:
        yield f"route.source_addresses: the addresses of this host cannot be read: {error}"
        return
    finally:
        netlink.close()
    for index, route in enumerate(config.route):
        for address in missing(route.source_addresses, up):
            yield (
                f"route[{index}].source_addresses: {address} is not up on this host; it is left out, and "
                "without another of its family the mail waits"
            )


def _ask_sources(config: Config) -> list[str]:
    """What is wrong with the accounts; a database that no gateway made yet is none."""
    if not config.accounts.source and not config.accounts_file.exists():
        return []
    return asyncio.run(ask_sources(config.accounts, config.auth, config.accounts_file))


def _facts(config: Config) -> dict[str, object]:
    return {
        "hostname": config.hostname,
        "workers": config.worker_count,
        "state_dir": str(config.state_dir),
        "listen": [
            {
                "service": listen.service,
                "address": str(listen.address),
                "tls": listen.tls,
                "durability": listen.durability,
            }
            for listen in config.listen
        ],
        "route": [
            {"domains": route.domains, "next_hop": route.next_hop, "tls": route.tls}
            for route in config.route
        ],
        "relay_from": list(config.access.relay_from),
    }
