"""smtp-blaster pop3, imap: the source's commands that retrieve.

Errors    exit 0 when a task ran to its end, 1 when none did, 2 for wrong usage
"""

from __future__ import annotations

import secrets
from typing import Any

import click

from smtp_blaster import cli_run
from smtp_blaster.plan import MIXES, TLS_MODES, Plan


def _options(protocol: str, mix: str, *more: cli_run.Option) -> cli_run.Option:
    own: list[cli_run.Option] = [
        click.argument("target", metavar="HOST:PORT"),
        click.option("--mix", default=mix, show_default=True, type=click.Choice([*MIXES[protocol]]),
                     help="What a task is: see below."),
        *cli_run.MUCH,
        *more,
        click.option("--newest", default=10, show_default=True, type=click.IntRange(0, 10_000),
                     help="Messages that a task of the mix \"fetch\" takes."),
        click.option("--tls", default="off", show_default=True, type=click.Choice(TLS_MODES),
                     help="Any certificate will do."),
        *cli_run.USERS,
        *cli_run.HOW,
        *cli_run.OUT,
    ]  # fmt: skip
    return lambda command: cli_run.with_options(command, own)


@click.command()
@_options("pop3", "fetch")
def pop3(**options: Any) -> None:
    """Retrieve mail from a POP3 server.  A message of the options and figures is one task of the mix."""
    cli_run.run(lambda rest: _plan("pop3", rest), options)


@click.command()
@_options(
    "imap", "phone",
    click.option("--deliver", default="", metavar="lmtp://HOST:PORT",
                 help="Of the mix \"idle\": where its mail goes in; smtp:// as well."),
)  # fmt: skip
def imap(**options: Any) -> None:
    """Use an IMAP server as clients do.  A message of the options and figures is one task of the mix."""
    if options["mix"] == "idle" and options["lab"]:
        raise click.UsageError("idle: --lab reaches one server, and the deliveries go to another address")
    cli_run.run(lambda rest: _plan("imap", rest), options)


def _plan(protocol: str, options: dict[str, Any]) -> Plan:
    """Raises click.UsageError."""
    users = cli_run.users_of(options)
    if not options["messages"] and not options["duration_s"]:
        options["messages"] = 1
    return cli_run.checked(Plan(protocol=protocol, auth=users, run=secrets.token_hex(6), **options))


def _epilog(protocol: str) -> str:
    mixes = "\n".join(f"  {name:9} {what}" for name, what in MIXES[protocol].items())
    return f"\b\nMixes, and what a task of each is:\n{mixes}\n\n{cli_run.LIMITS}"


for command in (pop3, imap):
    command.epilog = _epilog(command.name or "")
