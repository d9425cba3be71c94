"""smtp-blaster report and compare: saved runs as pages and tables.

Errors    exit 0 done, 1 the page could not be written, 2 a file that is no run, or a library is missing
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from smtp_blaster import result
from smtp_blaster.result import Run

_RUN = click.Path(exists=True, dir_okay=False, path_type=Path)
_PAGE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("files", nargs=-1, required=True, type=_RUN, metavar="RUN.json...")
@click.option("--output", "-o", type=_PAGE, metavar="FILE.html", help="Default: RUN.html.")
def report(files: tuple[Path, ...], output: Path | None) -> None:
    """Make one page of a saved run, to read anywhere; of several, laid over each other."""
    runs = _load(files)
    page = output or files[0].with_suffix(".html")
    _write(page, runs)
    click.echo(str(page))


@click.command()
@click.argument("files", nargs=-1, required=True, type=_RUN, metavar="A.json B.json...")
@click.option("--output", "-o", type=_PAGE, metavar="FILE.html", help="A page, with plots.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def compare(files: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Tell what differs between saved runs, in ratios to the first."""
    from smtp_blaster import compare as comparing

    runs = _load(files)
    try:
        found = comparing.compare(runs)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if output is not None:
        _write(output, runs)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for index, name in enumerate(found.names):
        table.add_column(name, justify="right")
        if index:
            table.add_column("ratio", justify="right")
    colours = {"better": "green", "worse": "red", "same": "dim"}
    for row in found.rows:
        cells = [comparing.figure_says(row.values[0], row.unit)]
        for value, ratio, noise, verdict in zip(
            row.values[1:], row.ratios, row.noise, row.verdicts, strict=True
        ):
            said = comparing.ratio_says(ratio, noise)
            colour = colours.get(verdict)
            cells += [comparing.figure_says(value, row.unit), f"[{colour}]{said}[/]" if colour else said]
        table.add_row(row.name, *cells)
    console = Console(highlight=False)
    console.print(table)
    for note in (*found.notes, comparing.noise_says(found)):
        console.print(note, style="dim", markup=False)


def _load(files: tuple[Path, ...]) -> list[tuple[str, Run]]:
    """By the names of the files, with their folders where the names alone are the same."""
    try:
        runs = [result.load(path) for path in files]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    names = [path.stem for path in files]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")) for path in files]
    return list(zip(names, runs, strict=True))


def _write(page: Path, runs: list[tuple[str, Run]]) -> None:
    try:
        from smtp_blaster.report import write
    except ImportError as error:
        raise click.UsageError(
            f"a page needs the libraries of the report extra ({error}): pip install 'mail-gateway[report]'"
        ) from error
    try:
        write(page, runs)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
