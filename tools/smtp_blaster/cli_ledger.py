"""smtp-blaster ledger: the proof, by command.

Errors    exit 0 clean, 1 something lost, altered or twice without a reason, 2 usage
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click
import msgspec

from smtp_blaster import ledger, ledger_mailbox, result
from smtp_blaster.ledger_file import Row

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
ENTRY_OCTETS = 130  # about; only the progress bar uses it

# field → what it says, in the order of the table
_MEANING = {
    "accepted": "(message, recipient) pairs with a 250",
    "delivered": "copies that arrived",
    "lost": "accepted, never delivered",
    "altered": "delivered with other octets",
    "duplicated": "copies beyond the first",
    "duplicated_explained": "… behind a lost reply or a kill (RFC 1047)",
    "duplicated_unexplained": "… without a reason",
    "unpromised": "delivered without having been accepted",
    "unpromised_unknown": "… the source had no reply to the content",
    "unpromised_refused": "… the source had a negative reply",
    "refused": "with a negative reply, nor accepted later",
    "unknown": "no reply to the content, nor accepted later",
    "kills": "marked, or seen in the sink's ledgers",
}
_FAILURES = ("lost", "altered", "duplicated_unexplained")


class _ManyFiles(click.Command):
    """Lets --accepted and its kin take several words: --accepted A B --delivered C."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in _REPEATED else ""
                spread.append(word)
            elif option:
                spread += [word] if spread[-1] == option else [option, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


_REPEATED = ("--accepted", "--delivered", "--delivered-maildir", "--delivered-mbox", "--kills")


@click.command("ledger", cls=_ManyFiles)
@click.argument("files", nargs=-1, type=_FILE, metavar="[ACCEPTED DELIVERED]")
@click.option("--accepted", multiple=True, type=_FILE, help="Ledgers of sources.")
@click.option("--delivered", multiple=True, type=_FILE, help="Ledgers of sinks.")
@click.option("--delivered-maildir", multiple=True, type=_FOLDER, help="Trees with Maildirs.")
@click.option("--delivered-mbox", multiple=True, type=_FILE, help="mbox files.")
@click.option(
    "--kills",
    multiple=True,
    type=_FILE,
    help="When something was killed: lines of '#', killed, Unix time in ns, what; tab separated.",
)
@click.option(
    "--window",
    "window_s",
    default=ledger.WINDOW_S,
    show_default=True,
    type=click.FloatRange(0),
    help="How long before a kill a copy may have come that comes again, s.",
)
@click.option(
    "--into", type=_FILE, metavar="RUN.json", help="Put the verdict into a saved run, for its report."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def compare_ledgers(
    files: tuple[Path, ...],
    accepted: tuple[Path, ...],
    delivered: tuple[Path, ...],
    delivered_maildir: tuple[Path, ...],
    delivered_mbox: tuple[Path, ...],
    kills: tuple[Path, ...],
    window_s: float,
    into: Path | None,
    as_json: bool,
) -> None:
    """Prove what became of every message: delivered, lost, altered, delivered twice and why.

    \b
    smtp-blaster ledger sent.tsv received.tsv
    smtp-blaster ledger --accepted a.tsv b.tsv --delivered c.tsv --kills kills.tsv
    """
    if files:
        if len(files) != 2 or accepted or delivered:
            raise click.UsageError(
                "two files, ACCEPTED and DELIVERED; for more: --accepted FILE... --delivered FILE..."
            )
        accepted, delivered = files[:1], files[1:]
    if not accepted or not (delivered or delivered_maildir or delivered_mbox):
        raise click.UsageError("say what was accepted, and where deliveries are (--help)")
    from rich.console import Console
    from rich.progress import Progress

    arrivals: Iterator[Row] = chain(
        *map(ledger_mailbox.maildir, delivered_maildir), *map(ledger_mailbox.mbox, delivered_mbox)
    )
    rows = sum(path.stat().st_size for path in (*accepted, *delivered)) // ENTRY_OCTETS
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("reading ledgers", total=rows)

        def show(read: int) -> None:
            bar.update(task, completed=min(read, rows))

        try:
            found = ledger.prove(
                accepted,
                delivered,
                arrivals=arrivals,
                kills=kills,
                window_s=window_s,
                progress=show,
            )
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
    if into is not None:
        _put_into(into, found)
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        _print(found)
    sys.exit(0 if found.is_clean else 1)


def _put_into(path: Path, found: ledger.Difference) -> None:
    try:
        run = result.load(path)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    run.ledger = msgspec.to_builtins(found)
    result.save(path, run)


def _print(found: ledger.Difference) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_column(style="dim")
    for name, meaning in _MEANING.items():
        count = getattr(found, name)
        style = "bold red" if count and name in _FAILURES else None
        table.add_row(f"{count:,}", name.replace("_", " "), meaning, style=style)
    console = Console(highlight=False)
    console.print(table)
    for what, names in (
        ("lost", found.lost_ids),
        ("altered", found.altered_ids),
        ("twice without a reason", found.unexplained_ids),
        ("cut short by a kill, not counted", found.torn),
    ):
        for name in names:
            console.print(f"{what}: {name}", markup=False)
    if found.is_clean:
        console.print("clean: nothing lost, nothing altered, nothing twice without a reason")
    else:
        console.print("NOT clean", style="bold red")
