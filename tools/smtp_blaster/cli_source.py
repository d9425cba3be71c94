"""smtp-blaster smtp, lmtp: the source's commands."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec
import uvloop

from smtp_blaster.cli_output import show
from smtp_blaster.plan import FORWARD_PATH, REVERSE_PATH, Plan
from smtp_blaster.source import Source
from smtp_blaster.target import TargetRefused


def _source_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.argument("target", metavar="HOST:PORT"),
        click.option("--connections", default=1, show_default=True, type=click.IntRange(1, 60000)),
        click.option("--messages", default=0, type=click.IntRange(0), help="Stop after so many."),
        click.option(
            "--duration",
            "duration_s",
            default=0.0,
            type=click.FloatRange(0),
            help="Stop after so many s.",
        ),
        click.option(
            "--rate",
            default=0.0,
            type=click.FloatRange(0),
            help="Messages/s (open loop); 0: as fast as it goes.",
        ),
        click.option(
            "--size", "size_octets", default=10240, show_default=True, help="Octets a message."
        ),
        click.option("--recipients", default=1, show_default=True, type=click.IntRange(1, 1000)),
        click.option(
            "--per-connection", default=0, help="Messages before QUIT and a new connection; 0: all."
        ),
        click.option("--pipelining", is_flag=True, help="Use PIPELINING where it is offered."),
        click.option("--chunking", is_flag=True, help="BDAT instead of DATA."),
        click.option("--dots", is_flag=True, help="Begin every tenth line with a dot."),
        click.option(
            "--tls",
            default="off",
            type=click.Choice(["off", "starttls", "implicit"]),
            show_default=True,
        ),
        click.option("--from", "reverse_path", default=REVERSE_PATH, metavar="MAILBOX"),
        click.option("--to", "forward_path", default=FORWARD_PATH, metavar="MAILBOX"),
        click.option("--ledger", default="", metavar="FILE", help="Write down what was accepted."),
        click.option("--seed", default=1, show_default=True),
        click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table."),
        click.option(
            "--i-own-this-target",
            "owned",
            is_flag=True,
            help="The target is mine, though not on this host.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _run_source(protocol: str, options: dict[str, Any]) -> None:
    as_json = options.pop("as_json")
    if not options["messages"] and not options["duration_s"]:
        options["messages"] = 1
    try:
        source = Source(Plan(protocol=protocol, run=secrets.token_hex(6), **options))
    except (TargetRefused, ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    result = uvloop.run(source.run())
    show(msgspec.to_builtins(result), as_json)
    sys.exit(0 if result.accepted else 1)


@click.command()
@_source_options
def smtp(**options: Any) -> None:
    """Send mail to an SMTP server."""
    _run_source("smtp", options)


@click.command()
@_source_options
def lmtp(**options: Any) -> None:
    """Send mail to an LMTP server."""
    _run_source("lmtp", options)
