"""What the commands share: the configuration option, exit codes, times and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import orjson

from gateway.config import ConfigError, load
from gateway.config_model import Config

if TYPE_CHECKING:
    from rich.table import Table

DONE = 0
FAILED = 1
USAGE = 2
TEMPORARY = 75  # sysexits.h EX_TEMPFAIL

F = TypeVar("F", bound=Callable[..., Any])


def config_option(function: F) -> F:
    """--config FILE, also from the environment."""
    return click.option(
        "--config",
        "-c",
        "config_file",
        metavar="FILE",
        envvar="GATEWAY_CONFIG",
        default="edge.toml",
        show_default=True,
        help="the configuration (or GATEWAY_CONFIG in the environment)",
    )(function)


def json_option(function: F) -> F:
    """--json: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="JSON for programs")(function)


def load_or_exit(config_file: str) -> Config:
    """The configuration, or exit 2 with everything that is wrong with it."""
    try:
        return load(config_file)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(USAGE)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say what is wrong, and what to do next, and leave."""
    click.echo(f"gateway: {message}", err=True)
    sys.exit(code)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.buffer.write(
        orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    )
    sys.stdout.buffer.flush()


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people; columns that begin with ">" are numbers."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # a file or a pager folds lines itself, or need not
    table = make_table(columns)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    if title:
        console.print(title, style="bold", highlight=False, markup=False)
    console.print(table)


def make_table(columns: Sequence[str]) -> Table:
    """An empty table; only its last column is ever folded."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        number = column.startswith(">")
        last = column is columns[-1]
        table.add_column(
            column.removeprefix(">"),
            justify="right" if number else "left",
            overflow="fold" if last else "ellipsis",
            no_wrap=not last,
        )
    return table


def age(seconds: float) -> str:
    """A duration in one or two units: "42s", "3m10s", "5h", "2d4h"."""
    left = int(seconds)
    if left < 0:
        return "0s"
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
        if len(parts) == 2:
            break
    return "".join(parts)


def size(octets: float) -> str:
    """A size for people: "812", "10.0K", "3.2M"."""
    for unit in ("", "K", "M", "G"):
        if octets < 1024:
            return f"{octets:.1f}{unit}" if unit else f"{octets:.0f}"
        octets /= 1024
    return f"{octets:.1f}T"


def since(at_ns: int) -> str:
    """How long ago this instant (ns UTC) was."""
    return age(time.time() - at_ns / 1e9)
