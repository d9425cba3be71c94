"""The command `gateway`.  Each command is a module of this package, imported when it is asked for:
the workers that `serve` starts must not carry what only people's commands need (rich: 8 MB).

    Errors    exit codes: 0 done, 1 failed, 2 usage or configuration, 75 temporary (sysexits.h
              EX_TEMPFAIL); an error says what to do next
"""

from __future__ import annotations

from importlib import import_module

import click

# command → module and what `gateway --help` says about it
COMMANDS = {
    "serve": "run the gateway in the foreground",
    "init": "write a first configuration, with a key and a certificate",
    "check": "tell what is wrong with a configuration, and what it means",
    "user": "add, list, change and remove accounts",
    "alias": "addresses that stand for others",
    "mailbox": "see, check, import, export, expunge and share the mail of accounts",
    "queue": "see and change what waits for delivery",
    "trace": "tell the life of a message",
    "top": "watch a running gateway",
    "version": "print the version",
}


class _Commands(click.Group):
    """A group whose commands are imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"gateway.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A high-throughput mail gateway."""
