"""The crash campaign: kills, power losses and failing disks, for as long as one likes, and the table of it.

campaign.py [--rounds N] [--seed N] [--states N] [--report FILE.md]      (make crash ROUNDS=… SEED=… REPORT=…)

Flow      kill rounds of the whole gateway → of the spool alone → power losses → mutants → failing disks → the store →
          IMAP → tables
Errors    exit 1 when a promise was broken or a test failed, with what is known of it; no report is written then
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import click
from crash_report import Case, Evidence, render
from faults import NAMES, WHENS, Control, build, environment, make_control
from kill_campaign import KillCampaign
from power_campaign import CHAIN, PowerCampaign, in_memory, mutants
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
Tick = Callable[[int, str], None]


def spool_rounds(where: Path, rounds: int, seed: int, tick: Tick) -> dict[str, int]:
    """Rounds of the spool alone, killed at whichever call comes; deaths by point."""
    control: Control = make_control(where / "control")
    command = [sys.executable, str(HERE / "spool_kill_rounds.py"), str(where / "spool")]
    process = subprocess.Popen(
        [*command, str(rounds), str(seed)],
        env=environment(build(where), where / "control"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        tick(int(line) + 1, f"round {line.strip()}")
    _, error = process.communicate()
    assert process.returncode == 0, error[-4000:]
    return {name: sum(control.kills_of(name, when) for when in WHENS) for name in NAMES}


def disk_cases(where: Path, tick: Tick) -> list[Case]:
    """The tests of disks that are full or fail, as they are in `make test`."""
    make_control(where / "control")
    preloaded = environment(build(where), where / "control")
    cases: list[Case] = []
    for number, (name, env) in enumerate(
        (
            ("spool_fault_cases.py", preloaded),
            ("test_spool_faults.py", dict(os.environ)),
            ("test_gateway_disk.py", dict(os.environ)),
        )
    ):
        tick(number, name)
        cases += tests_of(name, env, where)
    tick(3, "done")
    return cases


def store_cases(where: Path, rounds: int, states: int) -> list[Case]:
    """The mailbox store: its own kills and power cuts, as many as the spool's are long."""
    amounts = {"STORE_KILL_ROUNDS": str(rounds), "STORE_POWER_STATES": str(states)}
    env = {**os.environ, **amounts}
    return tests_of("test_store_kill.py", env, where) + tests_of("test_store_gateway_kill.py", env, where)


def imap_cases(where: Path, rounds: int, seed: int) -> list[Case]:
    """IMAP clients at work while the whole gateway is killed."""
    amounts = {"IMAP_KILL_ROUNDS": str(rounds), "IMAP_KILL_SEED": str(seed)}
    return tests_of("test_imap_kill.py", {**os.environ, **amounts}, where)


def tests_of(name: str, env: dict[str, str], where: Path) -> list[Case]:
    """Run a file of tests; one Case for all the parameters of a test."""
    cases: dict[str, Case] = {}
    result = where / "junit.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={result}", "-k", "not injected"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / name)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    for case in ElementTree.parse(result).iter("testcase"):
        title = case.get("name", "").partition("[")[0].removeprefix("test_").replace("_", " ")
        found = cases.setdefault(title, Case(title))
        if case.find("skipped") is None:
            found.passed += 1
        else:
            found.skipped += 1
    return list(cases.values())


def run(rounds: int, seed: int, states: int, command: str, console: Console) -> Evidence:
    columns = (
        TextColumn("{task.description:22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with (
        Progress(*columns, console=console) as progress,
        tempfile.TemporaryDirectory(prefix="gateway-crash-") as name,
        in_memory(Path(name)) as memory,
    ):

        def part(title: str, total: int) -> tuple[Path, Tick]:
            task = progress.add_task(title, total=total, what="")
            directory = Path(name) / title.replace(" ", "-")
            directory.mkdir()
            return directory, lambda done, what: progress.update(task, completed=done, what=what)

        where, tick = part("kill the gateway", rounds)
        with KillCampaign(where, rounds=rounds, seed=seed) as campaign:
            campaign.run(tick)
            kills = campaign.judge()
        tick(rounds, f"{kills.messages} messages")
        where, tick = part("kill the spool", 5 * rounds)
        spool_kills = spool_rounds(where, 5 * rounds, seed, tick)
        where, tick = part("cut the power", states)
        generations = max(2 * CHAIN, states // 1500 // CHAIN * CHAIN)
        power = PowerCampaign(
            where, seed=seed, generations=generations, states_max=states, memory=memory
        ).run(tick)
        where, tick = part("leave out syncs", 1)
        found = mutants(where, seed, memory)
        assert all(found.values()), f"nobody noticed: {found}"
        tick(1, "all noticed")
        where, tick = part("fill and break disks", 3)
        disk = disk_cases(where, tick)
        where, tick = part("the mailbox store", 1)
        store = store_cases(where, rounds, states // 10)
        tick(1, "done")
        where, tick = part("kill under IMAP", 1)
        imap = imap_cases(where, rounds, seed)
        tick(1, "done")
    return Evidence(
        command=command,
        kills=kills,
        spool_rounds=5 * rounds,
        spool_kills=spool_kills,
        power=power,
        mutants=found,
        disk=disk,
        store=store,
        store_rounds=rounds,
        store_states=states // 10,
        imap=imap,
        imap_rounds=rounds,
    )


@click.command()
@click.option("--rounds", default=200, show_default=True, help="kills of the whole gateway")
@click.option("--seed", default=1, show_default=True)
@click.option("--states", default=0, help="disks to recover; 0: 200 a round")
@click.option("--report", type=click.Path(path_type=Path), help="write the tables to this file")
def main(rounds: int, seed: int, states: int, report: Path | None) -> None:
    """Kill, cut off and starve the gateway; what it promised must be there."""
    started = time.monotonic()
    logging.getLogger("gateway").setLevel(logging.CRITICAL)  # recovery tells of every torn tail
    console = Console()
    words = [f"ROUNDS={rounds}", f"SEED={seed}", *([f"STATES={states}"] if states else [])]
    command = " ".join(["make crash", *words, *([f"REPORT={report}"] if report else [])])
    try:
        evidence = run(rounds, seed, states or 200 * rounds, command, console)
    except AssertionError as error:
        console.print(f"[bold red]A promise was broken:[/] {error}", highlight=False)
        sys.exit(1)
    text = render(evidence)
    console.print(Markdown(text))
    console.print(f"{(time.monotonic() - started) / 60:.0f} minutes")
    if report is not None:
        report.write_text(text)


if __name__ == "__main__":
    main()
