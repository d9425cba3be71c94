"""smtp-blaster smtp, lmtp, submission: the source's commands that send.

Errors    exit 0 when something was accepted, 1 when nothing was, 2 for wrong usage
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import click

from smtp_blaster import cli_run
from smtp_blaster.plan import FORWARD_PATH, REVERSE_PATH, TLS_MODES, Plan, parse_octets

RETRY_S = 1.0


class Octets(click.ParamType[int]):
    """10240, 10k, 1.5m"""

    name = "octets"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_octets(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    options: list[cli_run.Option] = [
        click.argument("target", metavar="HOST:PORT"),
        # How much
        *cli_run.MUCH,
        # What
        click.option("--size", "size_octets", default="10240", show_default=True, type=Octets(),
                     help="Of a message: 10240, 10k, 1.5m."),
        click.option("--sizes", default="", metavar="MIX", help="1k:60,10k:30,1m:1 or lognormal:median=8k,p99=200k."),
        click.option("--corpus", default=None, type=click.Path(exists=True), metavar="PATH",
                     help="Real messages (.eml files, a Maildir, an mbox), with fresh Message-ID and Date."),
        click.option("--dots", is_flag=True, help="Begin every tenth line with a dot."),
        click.option("--recipients", default=1, show_default=True, type=click.IntRange(1, 1000), help="Of a message."),
        click.option("--from", "reverse_path", default=REVERSE_PATH, metavar="MAILBOX",
                     help="Or many: user{1..1000}@example.test."),
        click.option("--to", "forward_path", default=FORWARD_PATH, metavar="MAILBOX", help="The same."),
        # How
        click.option("--pipelining", is_flag=True, help="Use PIPELINING where it is offered."),
        click.option("--chunking", is_flag=True, help="BDAT instead of DATA."),
        click.option("--tls", default=None, type=click.Choice(TLS_MODES),
                     help="Default: off; starttls for submission. Any certificate will do."),
        *cli_run.USERS,
        click.option("--retry", "retry_s", is_flag=False, flag_value=str(RETRY_S), default="0", type=cli_run.SECONDS,
                     metavar="[SECONDS]",
                     help=f"Send again, so long [{RETRY_S:g}] after a 4xx or a break, under the same Message-ID."),
        *cli_run.HOW,
        # What comes out
        click.option("--calibrate", is_flag=True,
                     help="Then against its own sink: what the tool itself reaches and costs on this machine."),
        click.option("--ledger", default="", metavar="FILE", help="Write down what was accepted, refused, unknown."),
        *cli_run.OUT,
    ]  # fmt: skip
    return cli_run.with_options(command, options)


@click.command()
@_options
def smtp(**options: Any) -> None:
    """Send mail to an SMTP server."""
    cli_run.run(lambda rest: _plan("smtp", rest), options)


@click.command()
@_options
def lmtp(**options: Any) -> None:
    """Send mail to an LMTP server."""
    cli_run.run(lambda rest: _plan("lmtp", rest), options)


@click.command()
@_options
def submission(**options: Any) -> None:
    """Send mail to a submission server: as smtp, with AUTH, and STARTTLS unless told otherwise."""
    cli_run.run(lambda rest: _plan("submission", rest), options)


def _plan(protocol: str, options: dict[str, Any]) -> Plan:
    """Raises click.UsageError."""
    users = cli_run.users_of(options)
    tls = options.pop("tls") or ("starttls" if protocol == "submission" else "off")
    options["corpus"] = options["corpus"] or ""
    if not options["messages"] and not options["duration_s"]:
        options["messages"] = 1
    return cli_run.checked(Plan(protocol=protocol, tls=tls, auth=users, run=secrets.token_hex(6), **options))


for command in (smtp, lmtp, submission):
    command.epilog = cli_run.LIMITS
