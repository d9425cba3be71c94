"""What all commands of the source share: options, the run, and what comes out.

Errors    exit 0 when something was accepted, 1 when nothing was, 2 for wrong usage
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from smtp_blaster import result, workers
from smtp_blaster.plan import ARRIVALS, DURATION_MAX_S, MECHANISMS, MESSAGES_MAX, Plan, check
from smtp_blaster.summary import run_of
from smtp_blaster.target import TargetRefused, resolve

if TYPE_CHECKING:
    from rich.console import Console

DURATION_LIMIT_S = 86400.0
PATIENCE_S = 30.0
SECONDS = click.FloatRange(0, DURATION_LIMIT_S)
LIMITS = f"""Every run ends: after --messages ({MESSAGES_MAX:,} where only --duration is given), --duration
({DURATION_MAX_S:g} s where only --messages is given) or --patience; Ctrl-C ends it with the result so far."""

Option = Callable[[Callable[..., None]], Callable[..., None]]

MUCH: list[Option] = [
    click.option("--messages", default=0, type=click.IntRange(0, 10**9), help="Stop after so many."),
    click.option("--duration", "duration_s", default=0.0, type=SECONDS, help="Stop after so many seconds."),
    click.option("--rate", default=0.0, type=click.FloatRange(0, 10**6),
                 help="Messages/s by the clock, whatever the server does (open loop); 0: as fast as it goes."),
    click.option("--arrivals", default="constant", show_default=True, type=click.Choice(ARRIVALS)),
    click.option("--ramp", "ramp_s", default=0.0, type=SECONDS,
                 help="The rate, or the number of connections, grows for so long."),
    click.option("--warmup", "warmup_s", default=0.0, type=SECONDS,
                 help="So many seconds at the beginning are in no figure."),
    click.option("--connections", default=1, show_default=True, type=click.IntRange(1, 60000)),
    click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 256),
                 help="That share the connections."),
    click.option("--per-connection", default=0, type=click.IntRange(0),
                 help="Messages before QUIT and a new connection; 0: all."),
]  # fmt: skip
USERS: list[Option] = [
    click.option("--auth", "auth", multiple=True, metavar="USER:PASSWORD",
                 help="Several: connections take them in turn. For XOAUTH2 the token is the password."),
    click.option("--auth-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
                 help="A line USER:PASSWORD each; keeps them out of the list of processes."),
    click.option("--auth-mechanism", default="", type=click.Choice(["", *MECHANISMS]), metavar="NAME",
                 help=f"{', '.join(MECHANISMS)}; default: the first that is offered (IMAP: LOGIN, POP3: USER)."),
]  # fmt: skip
HOW: list[Option] = [
    click.option("--timeout", "timeout_s", default=60.0, show_default=True, type=click.FloatRange(0.1, 3600),
                 help="For a reply, in seconds."),
    click.option("--patience", "patience_s", default=PATIENCE_S, show_default=True, type=SECONDS,
                 help="End the run when no connection became ready for so many seconds."),
    click.option("--seed", default=1, show_default=True),
    click.option("--i-own-this-target", "owned", is_flag=True, help="The target is mine, though not on this host."),
    click.option("--lab", "lab", default="", metavar="delay=50ms,loss=1%,rate=10mbit",
                 help="Over a link like this, each way, in network namespaces; needs root."),
]  # fmt: skip
OUT: list[Option] = [
    click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables."),
    click.option("--save", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json",
                 help="Keep the result, for `smtp-blaster compare` and `report`."),
    click.option("--report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.html",
                 help="Write a page with plots."),
]  # fmt: skip


def with_options(command: Callable[..., None], options: list[Option]) -> Callable[..., None]:
    for option in reversed(options):
        command = option(command)
    return command


def run(make_plan: Callable[[dict[str, Any]], Plan], options: dict[str, Any]) -> None:
    """make_plan is given the options that are none of these."""
    as_json, save, page = (options.pop(name) for name in ("as_json", "save", "report"))
    wants_calibration, lab = options.pop("calibrate", False), options.pop("lab")
    write_report = _report_writer() if page else None
    plan = make_plan(options)
    console = _terminal() if not as_json else None
    began = time.monotonic()
    try:
        with _link(plan, lab) as (target, inside), _bar(plan, console) as bar:
            moved = plan if target == plan.target else msgspec.structs.replace(plan, target=target, owned=True)
            outcome = workers.run(moved, watch=bar, inside=inside)
    except (TargetRefused, ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    found = run_of(
        plan,
        outcome.result,
        tool=f"smtp-blaster {_version()}",
        command=_command(),
        seconds_ago=time.monotonic() - began,
    )
    if lab:
        found.notes.append(f"over a link with {lab}, each way")
    if wants_calibration and not outcome.was_interrupted:
        _calibrate(plan, found, console)
    if outcome.was_interrupted:
        found.notes.insert(0, "interrupted: the figures end there")
    if outcome.died:
        found.notes.insert(0, f"{outcome.died} of {plan.processes} processes died: most of their figures are missing")
    if save:
        result.save(save, found)
    if write_report is not None:
        write_report(page, [(page.stem, found)])
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        from rich.console import Console

        from smtp_blaster.progress import show_run

        show_run(found, Console())
    sys.exit(0 if found.totals.accepted else 1)


@contextlib.contextmanager
def _link(plan: Plan, lab: str) -> Iterator[tuple[str, workers.Inside]]:
    """Where the target is to be had, and from where."""
    if not lab:
        yield plan.target, contextlib.nullcontext
        return
    from smtp_blaster.conditions import parse_conditions, through  # netlink takes its time to load
    from smtp_blaster.lab import LabError

    address = resolve(plan.target, owned=plan.owned)
    try:
        with through(parse_conditions(lab), address) as found:
            yield found
    except LabError as error:
        raise click.UsageError(f"--lab: this machine cannot have one: {error}") from error


def _terminal() -> Console | None:
    """Where a person looks, if anywhere."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console  # who does not look starts sooner

    return Console(stderr=True)


@contextlib.contextmanager
def _bar(plan: Plan, console: Console | None, title: str = "") -> Iterator[workers.Watch]:
    if console is None:
        yield workers.Watch()
        return
    from smtp_blaster.progress import Bar

    with Bar(plan, console, title) as bar:
        yield bar


def _calibrate(plan: Plan, run: result.Run, console: Console | None) -> None:
    from smtp_blaster.calibrate import calibrate, warn  # brings the sink

    with console.status("calibrating against its own sink") if console else contextlib.nullcontext():
        try:
            run.calibration = calibrate(plan, run.totals.messages_per_s)
        except RuntimeError as error:
            run.notes.append(f"not calibrated: {error}")
    warn(run)


def users_of(options: dict[str, Any]) -> tuple[str, ...]:
    """Those of --auth and --auth-file, which leave the options."""
    file: Path | None = options.pop("auth_file")
    users = [*options.pop("auth")]
    if file is not None:
        users += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return tuple(users)


def checked(plan: Plan) -> Plan:
    """Raises click.UsageError."""
    try:
        check(plan)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return plan


def _report_writer() -> Callable[[Path, list[tuple[str, result.Run]]], None]:
    """report.write(), looked for before the run so that a missing library does not cost one."""
    try:
        report = import_module("smtp_blaster.report")
    except ImportError as error:
        raise click.UsageError(
            f"--report needs the libraries of the report extra ({error}): pip install 'mail-gateway[report]'"
        ) from error
    return report.write  # type: ignore[no-any-return]


def _command() -> list[str]:
    """As it was given, without passwords."""
    words = ["smtp-blaster", *sys.argv[1:]]
    for index, word in enumerate(words):
        if word.startswith("--auth=") or words[index - 1] == "--auth":
            words[index] = word.partition(":")[0] + ":…"
    return words


def _version() -> str:
    try:
        return version("mail-gateway")
    except PackageNotFoundError:
        return ""
