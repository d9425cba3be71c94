"""smtp-blaster ledger: what came of a run, from its files."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from smtp_blaster import ledger
from smtp_blaster.cli_output import show


@click.command("ledger")
@click.argument("accepted", type=click.Path(exists=True, path_type=Path))
@click.argument("delivered", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def compare_ledgers(accepted: Path, delivered: Path, as_json: bool) -> None:
    """Compare the source's ledger with the sink's: what was lost, altered, delivered twice."""
    try:
        difference = ledger.compare(ledger.read(accepted), ledger.read(delivered))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    show(msgspec.to_builtins(difference), as_json)
    sys.exit(0 if difference.is_clean else 1)
