"""smtp-blaster: the command.

Errors    exit 0 done, 1 failed (nothing accepted; a ledger with losses), 2 usage
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from smtp_blaster import ledger
from smtp_blaster.sink import EOD_RULES, Fault, Sink, SinkPlan
from smtp_blaster.source import FORWARD_PATH, REVERSE_PATH, Plan, Source
from smtp_blaster.target import TargetRefused


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Loads an SMTP or LMTP server, takes its mail at the other end, and proves what arrived."""


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
    _show(msgspec.to_builtins(result), as_json)
    sys.exit(0 if result.accepted else 1)


@main.command()
@_source_options
def smtp(**options: Any) -> None:
    """Send mail to an SMTP server."""
    _run_source("smtp", options)


@main.command()
@_source_options
def lmtp(**options: Any) -> None:
    """Send mail to an LMTP server."""
    _run_source("lmtp", options)


@main.command()
@click.argument("address", metavar="HOST:PORT")
@click.option("--messages", default=0, type=click.IntRange(0), help="Stop after so many.")
@click.option(
    "--duration",
    "duration_s",
    default=3600.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Stop after so many s.",
)
@click.option(
    "--eod",
    default="strict",
    type=click.Choice(list(EOD_RULES)),
    show_default=True,
    help="What ends the data.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="STAGE=ACTION[@PROBABILITY]",
    help="ACTION: a reply code, drop, or delay:SECONDS.",
)
@click.option("--without", multiple=True, metavar="EXTENSION", help="Do not offer it.")
@click.option("--ledger", default="", metavar="FILE", help="Write down what was taken.")
@click.option("--certificate", default="", metavar="FILE", help="PEM; STARTTLS is offered.")
@click.option("--key", default="", metavar="FILE")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def sink(faults: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Take mail, SMTP or LMTP, until told to stop (Ctrl-C, SIGTERM)."""
    try:
        plan = SinkPlan(faults=tuple(Fault.parse(text) for text in faults), **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    async def serve() -> dict[str, Any]:
        server = Sink(plan)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.finished.set)
        return msgspec.to_builtins(await server.run())  # type: ignore[no-any-return]

    _show(uvloop.run(serve()), as_json)


@main.command("ledger")
@click.argument("accepted", type=click.Path(exists=True, path_type=Path))
@click.argument("delivered", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def compare(accepted: Path, delivered: Path, as_json: bool) -> None:
    """Compare the source's ledger with the sink's: what was lost, altered, delivered twice."""
    try:
        difference = ledger.compare(ledger.read(accepted), ledger.read(delivered))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    _show(msgspec.to_builtins(difference), as_json)
    sys.exit(0 if difference.is_clean else 1)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(result))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            value = "  ".join(f"{key}: {round(number, 3)}" for key, number in value.items())
        elif isinstance(value, float):
            value = round(value, 2)
        click.echo(f"{name.replace('_', ' '):22}  {value}")
