"""smtp-blaster sink: the sink's command.

Errors    exit 0 done, 1 the ledger's disk failed or a process of the sink died, 2 usage
"""

from __future__ import annotations

from typing import Any

import click
import msgspec

from smtp_blaster.cli_output import show
from smtp_blaster.sink import EOD_RULES, Fault, Sink, SinkPlan
from smtp_blaster.sink_faults import ACTIONS, STAGES, TIMED
from smtp_blaster.sink_processes import serve

_EPILOG = "\b\nFaults: STAGE=ACTION[@CONDITION]..., the first that strikes is the one\n" + "\n".join(
    [
        f"  STAGE      {', '.join(STAGES[:6])},",
        f"             {', '.join(STAGES[6:])}, or all",
        "             (content: behind the final dot; transfer: within the content)",
        "  ACTION     CODE or CODE:TEXT  answer so",
        *(f"             {word:18} {what}" for word, what in ACTIONS.items()),
        *(f"             {word + ':T':18} {what}" for word, what in TIMED.items()),
        "  T          0.5, 500ms, 5s, 2m; 1s-3s: evenly between; ~2s: exponential around",
        "  CONDITION  0.1                probability",
        "             first:N            the first N attempts of a message: greylisting",
        "             nth:N              every Nth time",
        "             from:T, until:T    since the start of the sink",
        "             every:T            again and again: all=pause:5s@every:30s",
        "             sender:REGEX       in the reverse-path",
        "             recipient:REGEX    in the forward-path",
    ]
)


@click.command(epilog=_EPILOG)
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
    "--fault", "faults", multiple=True, metavar="STAGE=ACTION[@CONDITION]", help="See below."
)
@click.option(
    "--seed", default=1, show_default=True, help="Connection N meets the same faults each time."
)
@click.option("--max-connections", default=0, type=click.IntRange(0), help="421 beyond so many.")
@click.option("--max-recipients", default=0, type=click.IntRange(0), help="452 beyond so many.")
@click.option(
    "--receive-buffer",
    "receive_buffer_octets",
    default=0,
    type=click.IntRange(0),
    help="Octets a connection takes in ahead: a small one makes a small window.",
)
@click.option(
    "--eod",
    default="strict",
    type=click.Choice(list(EOD_RULES)),
    show_default=True,
    help="What ends the data.",
)
@click.option("--without", multiple=True, metavar="EXTENSION", help="Do not offer it.")
@click.option("--ledger", default="", metavar="FILE", help="Write down what was taken.")
@click.option("--append", is_flag=True, help="Go on with the ledger of a sink that was killed.")
@click.option("--certificate", default="", metavar="FILE", help="PEM; STARTTLS is offered.")
@click.option("--key", default="", metavar="FILE", help="PEM, when it is not in the certificate's.")
@click.option(
    "--tls",
    default="starttls",
    show_default=True,
    type=click.Choice(["starttls", "implicit"]),
    help="How, with a certificate.",
)
@click.option(
    "--auth",
    multiple=True,
    metavar="USER:PASSWORD|any",
    help="Offer AUTH: PLAIN, LOGIN and, unless any, SCRAM.",
)
@click.option("--require-auth", is_flag=True, help="530 to MAIL before AUTH.")
@click.option(
    "--processes", default=1, show_default=True, type=click.IntRange(1, 64), help="On one port."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def sink(faults: tuple[str, ...], as_json: bool, processes: int, **options: Any) -> None:
    """Take mail, SMTP or LMTP, until told to stop (Ctrl-C, SIGTERM); fail as told."""
    try:
        plan = SinkPlan(faults=tuple(Fault.parse(text) for text in faults), **options)
        Sink(msgspec.structs.replace(plan, ledger=""))  # what is wrong with it shows before anything starts
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    try:
        result = serve(plan, processes, lambda port: click.echo(f"listening at port {port}", err=True))
    except OSError as error:
        raise click.ClickException(str(error)) from error
    show(msgspec.to_builtins(result), as_json)
