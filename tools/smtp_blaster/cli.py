"""smtp-blaster: the command.  Each side of it is a module of its own.

Errors    exit 0 done, 1 failed (nothing accepted; a ledger with losses), 2 usage
"""

from __future__ import annotations

import click

from smtp_blaster.cli_ledger import compare_ledgers
from smtp_blaster.cli_sink import sink
from smtp_blaster.cli_source import lmtp, smtp, submission


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Loads an SMTP or LMTP server, takes its mail at the other end, and proves what arrived."""


for command in (smtp, lmtp, submission, sink, compare_ledgers):
    main.add_command(command)
