"""smtp-blaster sink: the sink's command."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import click
import msgspec
import uvloop

from smtp_blaster.cli_output import show
from smtp_blaster.sink import EOD_RULES, Fault, Sink, SinkPlan


@click.command()
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

    show(uvloop.run(serve()), as_json)
