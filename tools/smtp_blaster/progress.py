"""A run as a person sees it: a bar while it lasts, tables at its end.

Owns      Bar (a Watch), show_run()
Limits    the figures of the bar are those of the last whole second
"""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from smtp_blaster.plan import Plan
from smtp_blaster.result import MESSAGE, STAGES, Calibration, Run
from smtp_blaster.source import Interval
from smtp_blaster.summary import merge_intervals, percentile
from smtp_blaster.workers import Watch

REPLIES_MAX = 20  # lines of the table
TEXT_MAX = 60


class Bar(Watch):
    """Messages or time, whichever the plan bounds, and how it goes."""

    def __init__(self, plan: Plan, console: Console, title: str = "") -> None:
        self._plan = plan
        self._began = time.monotonic()
        self._seconds: dict[int, list[Interval]] = {}
        self._accepted = self._refused = self._broken = 0
        self._now = "connecting"
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[done]}"), TimeElapsedColumn(),
            console=console, auto_refresh=False, transient=True, expand=True,
        )  # fmt: skip
        total = plan.messages if not plan.duration_s else plan.duration_s
        self._task = self._progress.add_task(title or plan.target, total=total, done="")
        # No thread draws: that would be one more to wake up beside the load.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Bar:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def interval(self, interval: Interval) -> None:
        self._accepted += interval.accepted
        self._refused += interval.refused
        self._broken += interval.broken
        beside = self._seconds.setdefault(interval.second, [])
        beside.append(interval)
        if len(beside) < self._plan.processes:
            return
        del self._seconds[interval.second]
        (whole,) = merge_intervals([_first(each) for each in beside])
        points = percentile(whole.latency, (0.5, 0.99))
        times = "  p50 {:,.2f} ms  p99 {:,.2f} ms".format(*points) if points else ""
        self._now = f"{whole.accepted:,} messages/s{times}  in flight {whole.in_flight:,}"

    def tick(self) -> None:
        answered = self._accepted + self._refused + self._broken
        elapsed = time.monotonic() - self._began
        done = min(elapsed, self._plan.duration_s) if self._plan.duration_s else answered
        self._progress.update(self._task, completed=done, done=f"{self._accepted:,} accepted")
        wrong = []
        if self._refused:
            wrong.append(f"[yellow]{self._refused:,} refused[/]")
        if self._broken:
            wrong.append(f"[red]{self._broken:,} broken[/]")
        self._live.update(Group(self._progress, "  ".join([self._now, *wrong])), refresh=True)


def _first(interval: Interval) -> Interval:
    """The same figures, as the only second."""
    return Interval(
        second=0,
        offered=interval.offered,
        accepted=interval.accepted,
        refused=interval.refused,
        broken=interval.broken,
        in_flight=interval.in_flight,
        latency=interval.latency,
    )


def show_run(run: Run, console: Console) -> None:
    totals = run.totals
    rate = f"{totals.messages_per_s:,.0f} messages/s in {totals.seconds:,.2f} s"
    line = f"[bold]{totals.accepted:,} accepted[/], {rate}, {totals.cpu_us_per_message:,.1f} µs CPU a message here"
    console.print(line, highlight=False)
    others = {
        "refused": totals.refused, "broken": totals.broken, "never begun": totals.unsent,
        "sent again": totals.retried, "begun late": totals.late_starts,
        "connections that failed": totals.connections_failed,
    }  # fmt: skip
    seen = [f"{count:,} {name}" for name, count in others.items() if count]
    console.print(", ".join([*seen, f"{totals.connections_opened:,} connections"]), highlight=False)
    console.print(_latencies(run))
    if run.replies:
        console.print(_replies(run))
    if run.calibration is not None:
        console.print(_calibration(run, run.calibration), highlight=False)
    for note in run.notes:
        console.print(f"[yellow]note[/] {note}", highlight=False)


def _latencies(run: Run) -> Table:
    floors = run.calibration.floor_ms if run.calibration is not None else {}
    title = "milliseconds; a message counts from its intended start"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "count", "min", "mean", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    if floors:
        table.add_column("floor", justify="right")
    for stage in (*STAGES, MESSAGE):
        found = run.latency.get(stage)
        if found is None:
            continue
        times = (
            found.min_ms, found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms,
        )  # fmt: skip
        row = [stage, f"{found.count:,}", *(f"{value:,.3f}" for value in times)]
        if floors:
            row.append(f"{floors[stage]:,.3f}" if stage in floors else "")
        table.add_row(*row, style="bold" if stage == MESSAGE else None)
    return table


def _replies(run: Run) -> Table:
    table = Table(title="replies", title_justify="left", box=None, pad_edge=False)
    for column in ("to", "reply", "first seen as", "count"):
        table.add_column(column, justify="right" if column == "count" else "left")
    shown = sorted(run.replies, key=lambda reply: -reply.count)[:REPLIES_MAX]
    for reply in shown:
        text = reply.text.partition("\n")[0]
        text = text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"
        code = f"{reply.code or ''} {reply.enhanced}".strip()
        table.add_row(reply.stage, code, text, f"{reply.count:,}", style=_colour(reply.code))
    if len(run.replies) > len(shown):
        table.caption = f"and {len(run.replies) - len(shown)} other kinds"
    return table


def _colour(code: int) -> str | None:
    return {4: "yellow", 5: "red"}.get(code // 100)


def _calibration(run: Run, calibration: Calibration) -> str:
    return (
        f"against its own sink: {calibration.messages_per_s:,.0f} messages/s, "
        f"{calibration.cpu_us_per_message:,.1f} µs CPU a message; this run used {calibration.ceiling_used:.0%} of that"
    )
