"""python -m benches.campaigns overload | soak

Errors    exit 0 when every criterion is met, 1 when one is not, 2 for wrong usage, 75 when the machine could not offer
          the load or the campaign was told to stop before its time, so that too little is shown
Signals   SIGINT and SIGTERM: a soak gives its load up and comes to its verdict; a second one, and in the overload the
          first, ends everything at once
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benches.campaigns import overload, soak
from benches.campaigns.criteria import Criterion
from benches.campaigns.site import Site, SiteError

_OUT = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=None,
    help="Keep everything there: results, report, ledgers, log, spool. Default: a temporary directory.",
)  # fmt: skip
_REPORT = click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Write the page there, too.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Campaigns against a whole gateway of their own, on loopback."""


@contextmanager
def _directory(out: Path | None) -> Iterator[Path]:
    if out is not None:
        if out.exists() and any(out.iterdir()):
            raise click.UsageError(f"{out} is not empty")
        yield out
        return
    where = Path(tempfile.mkdtemp(prefix="campaign-", dir="/var/tmp"))  # on a real disk
    try:
        yield where
    finally:
        shutil.rmtree(where, ignore_errors=True)


@contextmanager
def _said(console: Console) -> Iterator[Callable[[str], None]]:
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
    else:
        yield lambda text: console.print(text, highlight=False)


@contextmanager
def _told(stop: Callable[[], None] | None = None) -> Iterator[None]:
    """SIGINT and SIGTERM call stop() once; then, or without it, they interrupt.

    Also where SIGINT comes ignored, as it does to a command that a shell started in the background.
    """
    left = [stop] if stop is not None else []

    def handle(number: int, frame: object) -> None:
        del number, frame
        if not left:
            raise KeyboardInterrupt
        left.pop()()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@main.command("overload")
@click.option(
    "--seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(3.0, 3600.0),
    help="Of the load.",
)
@click.option(
    "--set-up",
    "set_ups",
    multiple=True,
    type=click.Choice(["relay", "accept"]),
    help="Default: relay.  accept needs more CPUs for the tools.",
)
@click.option(
    "--factor",
    default=2.0,
    show_default=True,
    type=click.FloatRange(1.1, 10.0),
    help="Of the capacity.",
)
@click.option("--size", "size_octets", default=10240, show_default=True, type=click.IntRange(300))
@click.option("--connections", default=1000, show_default=True, type=click.IntRange(2, 20_000))
@_OUT
@_REPORT
def overload_command(
    seconds: float, set_ups: tuple[str, ...], factor: float, size_octets: int, connections: int,
    out: Path | None, report: Path | None,
) -> None:  # fmt: skip
    """Offer twice what can be borne; see that the rest is refused and the taken is not delayed."""
    console = Console(stderr=True)
    codes = []
    with _directory(out) as where:
        for set_up in set_ups or ("relay",):
            settings = overload.Settings(
                set_up=set_up,
                seconds=seconds,
                factor=factor,
                size_octets=size_octets,
                connections=connections,
            )
            try:
                with _told(), Site(where / set_up) as site, _said(console) as say:
                    verdict = overload.Campaign(site, settings, say).run()
            except SiteError as error:
                raise click.ClickException(str(error)) from error
            Console().print(_overload_table(verdict))
            codes.append(75 if not verdict.is_conclusive else int(not verdict.is_good))
            page = where / f"{set_up}.html"
            if overload.report(where / set_up, page) and report is not None and len(codes) == 1:
                shutil.copyfile(page, report)
    sys.exit(1 if 1 in codes else max(codes))


@main.command("soak")
@click.option(
    "--seconds", default=3600.0, show_default=True, type=click.FloatRange(10.0, 7 * 86400.0)
)
@click.option(
    "--rate",
    default=60.0,
    show_default=True,
    type=click.FloatRange(1.0, 100_000.0),
    help="Messages/s.",
)
@click.option(
    "--seed",
    default=1,
    show_default=True,
    help="Of the mail, of the trouble, and of when it comes.",
)
@_OUT
@_REPORT
def soak_command(
    seconds: float, rate: float, seed: int, out: Path | None, report: Path | None
) -> None:
    """Mixed mail for a long time, with kills, reloads and restarts: nothing grows, nothing is lost."""
    console = Console(stderr=True)
    with _directory(out) as where:
        cpus = os.sched_getaffinity(0)
        try:
            with Site(where, cpus=(cpus, cpus)) as site, _said(console) as say:
                settings = soak.Settings(seconds=seconds, rate=rate, seed=seed)
                campaign = soak.Soak(site, settings, say)
                with _told(campaign.stop):
                    verdict = campaign.run()
        except SiteError as error:
            raise click.ClickException(str(error)) from error
        if soak.report(where, where / "soak.html") and report is not None:
            shutil.copyfile(where / "soak.html", report)
    Console().print(_criteria("soak", verdict.criteria))
    click.echo(verdict.line())
    sys.exit(1 if not verdict.is_good else 75 if verdict.ended_early else 0)


def _overload_table(verdict: overload.Verdict) -> Table:
    title = (
        f"{verdict.set_up}: R = {verdict.rate:,.0f}/s; under the load {verdict.taken:.2f} R taken, "
        f"{100 * verdict.refused:.0f} % of what was offered refused"
    )
    table = _criteria(title, verdict.criteria)
    table.caption = "\n".join(verdict.replies[:4])
    if not verdict.is_conclusive:
        table.caption += "\nNot conclusive: the tools could not offer so much; give them more CPUs."
    return table


def _criteria(title: str, criteria: list[Criterion]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("criterion", "measured", "bound", ""):
        table.add_column(column, justify="left" if column == "criterion" else "right")
    for found in criteria:
        mark = "[green]ok[/]" if found.is_met else "[red]FAILED[/]"
        table.add_row(found.what, f"{found.value:,.3g} {found.unit}", f"{found.bound:,.3g}", mark)
    return table


if __name__ == "__main__":
    main()
