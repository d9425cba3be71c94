"""From counts to the figures that people and machines read.

Owns      merge() (results of several processes), run_of() (a Run), percentile()
Standards HdrHistogram's V2 compressed encoding, by the library hdrhistogram
"""

from __future__ import annotations

import datetime
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
from hdrh.histogram import HdrHistogram

from smtp_blaster.plan import DURATION_MAX_S, MESSAGES_MAX, MIXES, Plan
from smtp_blaster.result import Latency, ReplyCount, Run, Series, Totals
from smtp_blaster.source import Answer, Interval, Result
from smtp_blaster.tally import HIGHEST_NS, NAMES, SIGNIFICANT_DIGITS, value_of

Counts = dict[int, int]  # tally's bucket → count

SUMS = (
    "accepted", "refused", "broken", "unsent", "retried", "recipients_accepted", "octets", "connections_opened",
    "connections_failed", "late_starts", "warmed_up", "cpu_s",
)  # fmt: skip


def merge(results: Sequence[Result]) -> Result:
    """One result of several processes' that ran beside each other."""
    if len(results) == 1 and results[0].intervals:
        return results[0]
    whole = Result(**{name: sum(getattr(result, name) for result in results) for name in SUMS})
    whole.seconds = max(result.seconds for result in results)
    whole.latency = {
        name: counts
        for name in NAMES
        if (counts := add(result.latency.get(name, {}) for result in results))
    }
    answers: dict[tuple[str, int, str], Answer] = {}
    for answer in (answer for result in results for answer in result.answers):
        key = (answer.stage, answer.code, answer.enhanced)
        if key in answers:
            answers[key].count += answer.count
        else:
            answers[key] = msgspec.structs.replace(answer)
    whole.answers = list(answers.values())
    whole.intervals = merge_intervals(interval for result in results for interval in result.intervals)
    troubles: Counter[str] = Counter()
    for result in results:
        troubles.update(result.troubles)
    whole.troubles = dict(troubles)
    return whole


def merge_intervals(intervals: Iterable[Interval]) -> list[Interval]:
    """One for each second, none left out."""
    seconds: dict[int, Interval] = {}
    for interval in intervals:
        sum_ = seconds.get(interval.second)
        if sum_ is None:
            seconds[interval.second] = msgspec.structs.replace(interval)
            continue
        for name in ("offered", "accepted", "refused", "broken", "in_flight"):
            setattr(sum_, name, getattr(sum_, name) + getattr(interval, name))
        sum_.latency = add((sum_.latency, interval.latency))
    nothing = Interval(second=0, offered=0, accepted=0, refused=0, broken=0, in_flight=0, latency={})
    return [
        seconds.get(second) or msgspec.structs.replace(nothing, second=second)
        for second in range(max(seconds, default=-1) + 1)
    ]


def add(counts: Iterable[Counts]) -> Counts:
    total: Counter[int] = Counter()
    for some in counts:
        total.update(some)
    return dict(total)


def percentile(counts: Counts, parts: Sequence[float]) -> list[float]:
    """Milliseconds at each part of 1, ascending; counted as the library does it, whose own is slow."""
    found: list[float] = []
    total = sum(counts.values())
    passed = 0
    for index in sorted(counts):
        passed += counts[index]
        while len(found) < len(parts) and passed >= max(1, int(parts[len(found)] * total + 0.5)):
            found.append(value_of(index) / 1e6)
    return found


def latency(counts: Counts) -> Latency:
    histogram = HdrHistogram(1, HIGHEST_NS, SIGNIFICANT_DIGITS)
    for index, count in counts.items():
        histogram.record_value(value_of(index), count)
    low, p50, p90, p99, p999, high = percentile(counts, (0.0, 0.5, 0.9, 0.99, 0.999, 1.0))
    total = sum(counts.values())
    return Latency(
        count=total,
        min_ms=low,
        mean_ms=sum(value_of(index) * count for index, count in counts.items()) / total / 1e6,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=high,
        hdr=histogram.encode().decode("ascii"),
    )


def series(intervals: list[Interval]) -> Series:
    whole = Series()
    for interval in intervals:
        for name in ("offered", "accepted", "refused", "broken", "in_flight"):
            getattr(whole, name).append(getattr(interval, name))
        points: list[float | None] = [*percentile(interval.latency, (0.5, 0.99, 1.0))] or [None] * 3
        whole.p50_ms.append(points[0])
        whole.p99_ms.append(points[1])
        whole.max_ms.append(points[2])
    return whole


def run_of(plan: Plan, result: Result, *, tool: str, command: list[str], seconds_ago: float) -> Run:
    """The Run that began so many seconds ago; passwords are not in it."""
    totals = Totals(
        **{name: getattr(result, name) for name in SUMS if name in Totals.__struct_fields__},
        seconds=result.seconds,
        messages_per_s=result.messages_per_s,
        cpu_us_per_message=result.cpu_us_per_message,
    )
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_ago)
    shown = msgspec.to_builtins(plan) | {"auth": [user.partition(":")[0] for user in plan.auth]}
    return Run(
        tool=tool,
        started_at=began.isoformat(timespec="milliseconds"),
        command=command,
        plan=shown,
        host={"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        totals=totals,
        latency={name: latency(counts) for name, counts in result.latency.items()},
        series=series(result.intervals),
        replies=sorted(
            (ReplyCount(**msgspec.structs.asdict(answer)) for answer in result.answers),
            key=lambda reply: (NAMES.index(reply.stage), reply.code, reply.enhanced),
        ),
        notes=notes(plan, result),
    )


def notes(plan: Plan, result: Result) -> list[str]:
    """What a reader of the figures must know."""
    found = []
    if plan.mix:
        found.append(f"a message stands for a task of the mix {plan.mix!r}: {MIXES[plan.protocol][plan.mix]}")
    if result.unsent:
        found.append(
            f"{result.unsent:,} messages were due and never begun: they are in no latency, and would raise it"
        )
    if result.broken:
        found.append(
            f"{result.broken:,} messages broke off with their connection: whether they were taken nobody knows"
        )
    if plan.rate and result.late_starts > 0.01 * max(1, result.accepted):
        found.append(
            f"{result.late_starts:,} messages began more than 1 ms late, for want of a free connection or of CPU here: "
            "their wait is in the latency of the message, not in that of a stage"
        )
    if result.warmed_up:
        found.append(f"the first {plan.warmup_s:g} s ({result.warmed_up:,} accepted messages) are in no figure")
    if not plan.duration_s and result.seconds >= DURATION_MAX_S:
        found.append(f"ended by the limit of {DURATION_MAX_S:g} s that stands where --duration gives none")
    if not plan.messages and result.accepted + result.refused + result.broken >= MESSAGES_MAX:
        found.append(f"ended by the limit of {MESSAGES_MAX:,} messages that stands where --messages gives none")
    found += [
        f"{text} ({count:,} times)" if count > 1 else text for text, count in result.troubles.items()
    ]
    return found
