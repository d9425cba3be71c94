"""Fuzz all targets, or one; or show what an input does.

\b
python -m tests.fuzz [--seconds 600] [TARGET]     a campaign; exit status 1 when something was found
python -m tests.fuzz TARGET FILE ...              these inputs, one after another, in the fuzz build
python -m tests.fuzz --merge [TARGET]             make tests/fuzz/corpus the smallest set of inputs
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from tests.fuzz import build, targets
from tests.fuzz.campaign import Campaign
from tests.fuzz.engine import describe, merge, replay

console = Console()


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("target", required=False, metavar="[TARGET]", type=click.Choice(targets.names()))
@click.argument(
    "files", nargs=-1, metavar="[FILE]...", type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "--seconds", default=600.0, show_default=True, help="of the whole campaign, in all targets"
)
@click.option(
    "--jobs", default=os.cpu_count() or 1, help="workers at once  [default: one for each CPU]"
)
@click.option("--seed", default=0, help="of the mutations; 0: another one each time")
@click.option("--merge", "merging", is_flag=True, help="rewrite tests/fuzz/corpus and stop")
@click.option("--json", "as_json", is_flag=True, help="the table for machines, on standard output")
def main(
    target: str | None,
    files: tuple[Path, ...],
    seconds: float,
    jobs: int,
    seed: int,
    merging: bool,
    as_json: bool,
) -> None:
    chosen = [targets.load(name) for name in ([target] if target else targets.names())]
    try:
        with Console(stderr=True).status("fuzz build (about a minute when the kernels changed)"):
            build.make()
    except build.Unavailable as error:
        click.echo(f"fuzz: {error}", err=True)
        sys.exit(2)
    if files:
        status, output = replay(chosen[0], files)
        print(output if status else f"{len(files)} inputs: nothing is wrong with them")
        if status:
            print(f"\n{describe(output)}")
        sys.exit(1 if status else 0)
    if merging:
        for each in chosen:
            print(f"{each.name}: {merge(each, each.corpus)} inputs", flush=True)
        return
    campaign = Campaign(chosen, seconds=seconds, jobs=jobs, seed=seed)
    found = campaign.run(quiet=as_json)
    if as_json:
        click.echo(campaign.json())
    else:
        campaign.report()
    sys.exit(1 if found else 0)


main()
