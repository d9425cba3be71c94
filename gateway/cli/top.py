"""`gateway top`: what a running gateway does, live."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gateway.cli.common import (
    TEMPORARY,
    age,
    config_option,
    fail,
    json_option,
    load_or_exit,
    make_table,
    print_json,
    size,
)
from gateway.cli.queue import LANE_COLUMNS, lane_errors, lane_row, merge_lanes
from gateway.cli.trace import duration
from gateway.control import Answer, ControlClient, ControlError
from gateway.metrics import quantile, total

if TYPE_CHECKING:
    from rich.console import RenderableType

LANES_MAX = 20
WORKERS_MAX = 8  # columns of their own; all of them are in --json

RATES = {
    "connections/s": ("sessions_total",),
    "accepted/s": ("accepted_inline", "accepted_fsync", "accepted_memory"),
    "rejected/s": ("rejected_transient", "rejected_permanent"),
    "octets in/s": ("received_octets_total",),
    "syncs/s": ("spool_syncs_total",),
    "delivered/s": ("delivered", "relayed", "discarded"),
    "deferred/s": ("deferred",),
    "bounced/s": ("bounced", "expired"),
}
LATENCIES = {
    "accept": "accept_seconds",
    "attempt": "attempt_seconds",
    "delivery": "delivery_seconds",
    "loop lag": "loop_lag_seconds",
}


@click.command("top")
@config_option
@click.option("--interval", default=1.0, show_default=True, help="seconds between looks")
@click.option("--once", is_flag=True, help="one look over one interval, then leave")
@json_option
def command(config_file: str, interval: float, once: bool, as_json: bool) -> None:
    """Rates, latencies, queue and lanes, live; Ctrl-C leaves."""
    config = load_or_exit(config_file)
    try:
        with ControlClient(config.control_dir, timeout_s=5.0) as client:
            before = look(client)
            if once or as_json:
                time.sleep(interval)
                found = compare(before, look(client))
                if as_json:
                    print_json(found)
                else:
                    from rich.console import Console

                    Console().print(screen(found))
                return
            _live(client, before, interval)
    except ControlError as error:
        fail(str(error), TEMPORARY)
    except KeyboardInterrupt:
        sys.exit(0)


def _live(client: ControlClient, before: Look, interval: float) -> None:
    from rich.live import Live

    with Live(screen(compare(before, before)), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            now = look(client)
            live.update(screen(compare(before, now)), refresh=True)
            before = now


class Look(NamedTuple):
    """Everything the workers said at one moment."""

    at: float  # time.monotonic()
    told: dict[int, dict[str, Any]]  # what each worker says of itself
    snapshots: list[dict[str, Any]]  # its metrics
    stats: list[Answer]  # its queue


def look(client: ControlClient) -> Look:
    """Ask all workers.  Raises ControlError when none runs."""
    told = {a.worker: a.result for a in client.ask_all("top") if not a.error}
    stats = [answer for answer in client.ask_all("queue.stats") if not answer.error]
    return Look(time.monotonic(), told, [one["metrics"] for one in told.values()], stats)


def compare(before: Look, now: Look) -> dict[str, Any]:
    """What happened between two looks: {"total", "workers", "lanes", "latencies"}."""
    seconds = max(now.at - before.at, 1e-9)
    older = {snapshot["worker"]: snapshot for snapshot in before.snapshots}
    workers = []
    waiting = {answer.worker: answer.result for answer in now.stats}
    for snapshot in now.snapshots:
        index = snapshot["worker"]
        workers.append(
            {
                "worker": index,
                **_row(older.get(index), snapshot, seconds),
                "messages": waiting.get(index, {}).get("messages", 0),
                "paused": waiting.get(index, {}).get("paused"),
                "unhealthy": now.told[index]["unhealthy"],
                "restarts": now.told[index]["restarts"],
                "up_s": round(now.told[index]["at"] - now.told[index]["started_at"], 1),
            }
        )
    everything = _row(total(before.snapshots), total(now.snapshots), seconds)
    return {
        "interval_s": round(seconds, 3),
        "total": everything | {"messages": sum(worker["messages"] for worker in workers)},
        "workers": workers,
        "latencies_s": _latencies(total(before.snapshots), total(now.snapshots)),
        "lanes": merge_lanes(now.stats),
    }


def _row(before: dict[str, Any] | None, now: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Rates of one worker (or of all); a worker that was started between is new: all zero."""
    fields = now["fields"]
    older = before["fields"] if before else fields
    row: dict[str, Any] = {}
    for name, counters in RATES.items():
        # A worker that died and came back counts from zero again.
        change = sum(max(0, fields[key] - older.get(key, 0)) for key in counters)
        row[name] = round(change / seconds, 1)
    row["sessions"] = fields["sessions_open"]
    row["connections out"] = fields["connections_open"]
    return row


def _latencies(before: dict[str, Any], now: dict[str, Any]) -> dict[str, dict[str, float]]:
    found = {}
    for name, field in LATENCIES.items():
        new = now["histograms"].get(field)
        if new is None:
            continue
        old = before["histograms"].get(field, {"counts": [0] * len(new["counts"])})
        counts = [max(0, b - a) for a, b in zip(old["counts"], new["counts"], strict=True)]
        found[name] = {
            "count": sum(counts),
            "p50": quantile(new["bounds"], counts, 0.5),
            "p99": quantile(new["bounds"], counts, 0.99),
        }
    return found


def screen(found: dict[str, Any]) -> RenderableType:
    """The look as tables."""
    from rich.console import Group
    from rich.text import Text

    shown = found["workers"] if len(found["workers"]) > 1 else []
    columns = [found["total"], *shown[:WORKERS_MAX]]
    names = [f">{worker['worker']}" for worker in shown[:WORKERS_MAX]]
    workers = make_table(("worker", ">all", *names, ""))
    for name in ("messages", "sessions", "connections out", *RATES):
        form = size if name.startswith("octets") else "{:g}".format
        workers.add_row(name, *(form(column[name]) for column in columns))
    workers.add_row("up", "", *(age(worker["up_s"]) for worker in shown[:WORKERS_MAX]))
    latencies = make_table(("latency", ">count", ">p50 below", ">p99 below"))
    for name, values in found["latencies_s"].items():
        if values["count"]:
            latencies.add_row(
                name,
                str(values["count"]),
                duration(values["p50"]),
                duration(values["p99"]),
            )
    lanes = make_table(LANE_COLUMNS)
    for lane in found["lanes"][:LANES_MAX]:
        lanes.add_row(*(str(cell) for cell in lane_row(lane)))
    parts: list[RenderableType] = [workers, Text(), latencies, Text(), lanes]
    parts += [Text(line, "yellow") for line in lane_errors(found["lanes"])[:LANES_MAX]]
    for worker in found["workers"]:
        trouble = list(worker["unhealthy"])
        trouble += [f"delivery pauses: {worker['paused']}"] if worker["paused"] else []
        trouble += [f"died and came back {worker['restarts']} times"] if worker["restarts"] else []
        parts += [Text(f"worker {worker['worker']}: {text}", "red") for text in trouble]
    return Group(*parts)
