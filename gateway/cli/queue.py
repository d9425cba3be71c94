"""`gateway queue`: see and change what waits for delivery.

Flow      options → filter → every worker's control socket → one merged answer
Errors    exit 1 when nothing matches or a worker refuses; 75 when no gateway runs
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

from gateway.cli.common import (
    TEMPORARY,
    age,
    config_option,
    fail,
    json_option,
    load_or_exit,
    print_json,
    print_table,
    size,
)
from gateway.cli.trace import until
from gateway.control import Answer, ControlClient, ControlError

MASS = 10  # orders to more messages than this ask first

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Age(click.ParamType[float]):
    """ "90", "15m", "4h", "2d" → seconds."""

    name = "AGE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is no age; use 90, 15m, 4h or 2d", param, ctx)
        return float(match[1]) * _UNITS[match[2] or "s"]


def filter_options(function: F) -> F:
    """Which messages: ids, or what must be true of them."""
    for decorate in (
        click.option("--older-than", "older_than_s", type=_Age(), help="90, 15m, 4h or 2d"),
        click.option("--error", help="a part of the last answer of the next hop"),
        click.option("--held", "state", flag_value="held", help="held ones only"),
        click.option("--deferred", "state", flag_value="deferred", help="deferred ones only"),
        click.option("--next-hop", help="a part of the next hop"),
        click.option("--recipient", help="a part of a recipient that is not settled"),
        click.option("--sender", "reverse_path", help="a part of the reverse-path"),
        click.argument("queue_ids", nargs=-1),
    ):
        function = decorate(function)
    return function


def _which(options: dict[str, Any]) -> dict[str, Any]:
    """The filter, as the workers understand it."""
    which = {key: value for key, value in options.items() if value}
    if "queue_ids" in which:
        which["queue_ids"] = [queue_id.upper() for queue_id in which["queue_ids"]]
    return which


def ask(config_file: str, cmd: str, **arguments: Any) -> list[Answer]:
    """What every worker says; exits when none can."""
    config = load_or_exit(config_file)
    try:
        with ControlClient(config.control_dir) as client:
            answers = client.ask_all(cmd, **arguments)
    except ControlError as error:
        fail(str(error), TEMPORARY)
    for answer in answers:
        if answer.error:
            click.echo(f"worker {answer.worker}: {answer.error}", err=True)
    good = [answer for answer in answers if not answer.error]
    if not good:
        _refused(answers)
    return good


def _refused(answers: list[Answer]) -> NoReturn:
    fail(f"no worker could do it: {answers[0].error}")


@click.group("queue")
def command() -> None:
    """See and change what waits for delivery."""


@command.command("list")
@config_option
@filter_options
@click.option("--limit", default=100, show_default=True, help="show at most so many")
@json_option
def list_command(config_file: str, limit: int, as_json: bool, **options: Any) -> None:
    """The messages in the queue, oldest first."""
    answers = ask(config_file, "queue.list", which=_which(options), limit=limit)
    messages = [message for answer in answers for message in answer.result["messages"]]
    messages = sorted(messages, key=lambda message: int(message["received_at"]))[:limit]
    total = sum(answer.result["total"] for answer in answers)
    if as_json:
        print_json({"total": total, "messages": messages})
        return
    if not messages:
        click.echo("the queue is empty" if not _which(options) else "nothing in the queue matches")
        return
    print_table("", ("queue id", ">age", ">size", "state", "sender, recipients"), _rows(messages))
    if total > len(messages):
        click.echo(f"… {total - len(messages)} more; --limit shows them")


def _rows(messages: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for message in messages:
        state = ",".join(message["states"])
        if "deferred" in message["states"]:
            state += f" ({until(message['next_attempt_at'])})"
        rows.append(
            (
                message["queue_id"],
                age(message["age_s"]),
                size(message["size_octets"]),
                state,
                f"<{message['reverse_path']}>",
            )
        )
        for recipient in message["recipients"]:
            if recipient["state"] == "pending":
                rows.append(("", "", "", "", f"  → {recipient['forward_path']}{_last(recipient)}"))
    return rows


def _last(recipient: dict[str, Any]) -> str:
    code = f"{recipient['code']} " if recipient["code"] else ""
    if not recipient["reply"].strip():
        return ""
    peer = f"{recipient['peer'] or recipient['next_hop']}: "
    return f", attempts: {recipient['attempts']}\n    {peer}{code}{recipient['reply']}"


@command.command("show")
@config_option
@click.argument("queue_id")
@json_option
def show_command(config_file: str, queue_id: str, as_json: bool) -> None:
    """One message: envelope, recipients, what was said about them."""
    answers = ask(config_file, "queue.show", queue_id=queue_id.upper())
    message = next((answer.result for answer in answers if answer.result), None)
    if message is None:
        fail(f"{queue_id} is not in the queue; gateway trace {queue_id} tells what became of it")
    if as_json:
        print_json(message)
        return
    for key, value in (
        ("queue id", message["queue_id"]),
        ("sender", f"<{message['reverse_path']}>"),
        ("from client", f"{message['client']}, session {message['session']}"),
        ("message id", message["message_id"]),
        ("size", f"{size(message['size_octets'])} octets"),
        ("age", age(message["age_s"])),
        ("held", "yes" if message["held"] else "no"),
        ("rerouted to", message["route"] or "-"),
    ):
        click.echo(f"{key:<12} {value}")
    print_table(
        "\nrecipients",
        ("mailbox", "state", ">attempts", "next hop", "last answer"),
        [
            (
                recipient["forward_path"],
                recipient["doing"] or recipient["state"],
                recipient["attempts"],
                recipient["next_hop"],
                _last(recipient).strip(),
            )
            for recipient in message["recipients"]
        ],
    )


def _order(config_file: str, name: str, done: str, options: dict[str, Any], **more: Any) -> None:
    """Do it, having asked when it is for many."""
    sure, as_json = options.pop("yes"), options.pop("as_json")
    everything = options.pop("everything")
    which = _which(options)
    if not which and not everything:
        raise click.UsageError("give queue ids, a filter (--recipient, --next-hop …), or --all")
    if not sure and not set(which) <= {"queue_ids"}:
        answers = ask(config_file, "queue.list", which=which, limit=0)
        total = sum(answer.result["total"] for answer in answers)
        if total > MASS:
            click.confirm(f"{name} {total} messages?", abort=True, err=True)
    answers = ask(config_file, f"queue.{name}", which=which, **more)
    count = sum(answer.result for answer in answers)
    if as_json:
        print_json({"count": count})
    elif count:
        click.echo(f"{count} {'message' if count == 1 else 'messages'} {done}")
    if not count:
        fail("nothing in the queue matches; gateway queue list shows what is there")


def order_options(function: F) -> F:
    """What all orders take."""
    for decorate in (
        json_option,
        click.option("--yes", is_flag=True, help="do not ask"),
        click.option("--all", "everything", is_flag=True, help="all messages"),
        filter_options,
        config_option,
    ):
        function = decorate(function)
    return function


@command.command("hold")
@order_options
def hold_command(config_file: str, **options: Any) -> None:
    """Keep messages until they are released."""
    _order(config_file, "hold", "held", options)


@command.command("release")
@order_options
def release_command(config_file: str, **options: Any) -> None:
    """Send what is held now."""
    _order(config_file, "release", "released", options)


@command.command("retry")
@order_options
def retry_command(config_file: str, **options: Any) -> None:
    """Try what is deferred now."""
    _order(config_file, "retry", "will be tried now", options)


@command.command("expire")
@order_options
def expire_command(config_file: str, **options: Any) -> None:
    """Give up now and report to the senders."""
    _order(config_file, "expire", "given up", options)


@command.command("delete")
@order_options
def delete_command(config_file: str, **options: Any) -> None:
    """Remove messages without telling anybody."""
    _order(config_file, "delete", "deleted", options)


@command.command("reroute")
@click.option(
    "--to", "to", required=True, metavar="URL", help='a next hop; "" goes back to the routes'
)
@order_options
def reroute_command(config_file: str, to: str, **options: Any) -> None:
    """Send messages to another next hop."""
    _order(config_file, "reroute", f"rerouted to {to or 'their routes'}", options, next_hop=to)


@command.command("stats")
@config_option
@json_option
def stats_command(config_file: str, as_json: bool) -> None:
    """How much waits, by next hop and by age."""
    answers = ask(config_file, "queue.stats")
    lanes = merge_lanes(answers)
    ages = ask(config_file, "queue.ages")
    bounds = ages[0].result["bounds_s"]
    by_age: dict[str, list[int]] = {}
    for answer in ages:
        for name, row in answer.result["lanes"].items():
            known = by_age.setdefault(name, [0] * len(row))
            by_age[name] = [a + b for a, b in zip(known, row, strict=True)]
    if as_json:
        workers = [{"worker": answer.worker, **answer.result} for answer in answers]
        table = {"bounds_s": bounds, "lanes": by_age}
        print_json({"workers": workers, "lanes": lanes, "ages": table})
        return
    print_table("", LANE_COLUMNS, [lane_row(lane) for lane in lanes])
    for line in lane_errors(lanes):
        click.echo(line)
    columns = ("age of what waits", *(f">{age(bound)}" for bound in bounds), ">more", ">total")
    rows = [(name, *(n or "." for n in row), sum(row)) for name, row in sorted(by_age.items())]
    if rows:
        print_table("", columns, rows)
    for answer in answers:
        if answer.result["paused"]:
            click.echo(f"worker {answer.worker}: delivery pauses: {answer.result['paused']}")


LANE_COLUMNS = (
    "state", ">ready", ">active", ">deferred", ">held", ">conns", ">oldest", ">done", ">bounced",
    "next hop",
)  # fmt: skip

# Fields of a lane that add up over workers.
_SUMS = ("ready", "active", "deferred", "held", "done", "bounced", "deferrals")


def merge_lanes(answers: list[Answer]) -> list[dict[str, Any]]:
    """The lanes of all workers by next hop, the busiest first."""
    merged: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for lane in answer.result["lanes"]:
            known = merged.setdefault(
                lane["next_hop"],
                {
                    "next_hop": lane["next_hop"],
                    "down": False,
                    "oldest_s": 0.0,
                    "last_error": "",
                    "connections": 0,
                    **dict.fromkeys(_SUMS, 0),
                },
            )
            for key in _SUMS:
                known[key] += lane[key]
            known["connections"] += sum(hop["connections"] for hop in lane["hops"])
            known["down"] |= lane["down"]
            known["oldest_s"] = max(known["oldest_s"], lane["oldest_s"])
            known["last_error"] = known["last_error"] or lane["last_error"]
    waiting = ("ready", "active", "deferred", "held")
    return sorted(
        merged.values(), key=lambda lane: (-sum(lane[key] for key in waiting), lane["next_hop"])
    )


def lane_row(lane: dict[str, Any]) -> tuple[object, ...]:
    """One lane as a row of LANE_COLUMNS."""
    return (
        "down" if lane["down"] else "up",
        lane["ready"],
        lane["active"],
        lane["deferred"],
        lane["held"],
        lane["connections"],
        age(lane["oldest_s"]) if lane["oldest_s"] else "-",
        lane["done"],
        lane["bounced"],
        lane["next_hop"],
    )


def lane_errors(lanes: list[dict[str, Any]]) -> list[str]:
    """What the next hops that have trouble said last."""
    return [f"{lane['next_hop']}: {lane['last_error']}" for lane in lanes if lane["last_error"]]
