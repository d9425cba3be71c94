"""smtp-blaster: the command.  Each side of it is a module of its own, imported when it is asked for.

Errors    exit 0 done, 1 failed (nothing accepted; a ledger with losses), 2 usage
"""

from __future__ import annotations

from importlib import import_module

import click

# command → module and what it is called there
COMMANDS = {
    "smtp": ("cli_source", "smtp"),
    "lmtp": ("cli_source", "lmtp"),
    "submission": ("cli_source", "submission"),
    "pop3": ("cli_retrieval", "pop3"),
    "imap": ("cli_retrieval", "imap"),
    "sink": ("cli_sink", "sink"),
    "ledger": ("cli_ledger", "compare_ledgers"),
    "report": ("cli_report", "report"),
    "compare": ("cli_report", "compare"),
}


class _Commands(click.Group):
    """A sink needs no source, and the other way round: each starts sooner alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"smtp_blaster.{module}"), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Loads a mail server with SMTP, LMTP, POP3 or IMAP, takes its mail at the other end, and proves what arrived."""
