"""Runs beside each other: what differs, by which ratio, and how much of that is noise.

    Owns      Comparison, compare()
    Errors    ValueError with fewer than two runs

The noise of a figure is known where the run has it second by second: twice the standard error of what
it is taken from, as a part of it.  A ratio within the noise of both runs together is no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median, stdev

import msgspec

from smtp_blaster.quantity import in_words
from smtp_blaster.result import MESSAGE, STAGES, Run

SECONDS_MIN = 5
LESS, MORE, NEITHER = "less", "more", ""


class Row(msgspec.Struct, kw_only=True):
    name: str
    unit: str  # ms, /s, µs, % or ""
    better: str  # less | more | ""
    values: list[float | None]  # by run; None where it has none
    ratios: list[float | None]  # to the first run, from the second on
    noise: list[float | None]  # of each ratio: 0.04 is ±4 %; None where nobody knows
    verdicts: list[str]  # better | worse | same (within the noise) | "" (no noise known, or no better)


class Comparison(msgspec.Struct, kw_only=True):
    names: list[str]
    rows: list[Row]
    notes: list[str]


def compare(runs: Sequence[tuple[str, Run]]) -> Comparison:
    """Everything in ratios to the first run."""
    if len(runs) < 2:
        raise ValueError("a comparison needs two runs")
    only = [run for _, run in runs]
    rows = [_row("accepted", "/s", MORE, only, _rate, [spread(run.series.accepted) for run in only])]
    for stage in (MESSAGE, *STAGES):
        for percentile in ("p50", "p99"):
            noise = [math.nan] * len(only)
            if stage == MESSAGE:  # the middle does not feel a few bad seconds, the tail is made of them
                of = spread if percentile == "p99" else middle_spread
                noise = [of(getattr(run.series, f"{percentile}_ms")) for run in only]
            row = _row(
                f"{stage} {percentile}", "ms", LESS, only, _latency(stage, f"{percentile}_ms"), noise
            )
            if any(value is not None for value in row.values):
                rows.append(row)
    unknown = [math.nan] * len(only)
    rows.append(_row("tool CPU", "µs", NEITHER, only, _cpu, unknown))
    rows.append(_row("refused", "%", LESS, only, _part("refused"), unknown))
    rows.append(_row("broken", "%", LESS, only, _part("broken"), unknown))
    return Comparison(names=[name for name, _ in runs], rows=rows, notes=_notes(runs))


def spread(values: Sequence[float | None]) -> float:
    """Twice the standard error of the mean, as a part of it; NaN for too few values."""
    inner = _inner(values)
    if not inner or not (mean := fmean(inner)):
        return math.nan
    return 2 * stdev(inner) / math.sqrt(len(inner)) / mean


def middle_spread(values: Sequence[float | None]) -> float:
    """The same of the median, by the median deviation from it, which a few outliers do not move."""
    inner = _inner(values)
    if not inner or not (middle := median(inner)):
        return math.nan
    deviation = 1.4826 * median(abs(value - middle) for value in inner)  # as of a normal distribution
    return 2 * 1.2533 * deviation / math.sqrt(len(inner)) / middle


def _inner(values: Sequence[float | None]) -> list[float]:
    """Without the first and the last second, which are seldom whole; nothing when too few are left."""
    inner = [value for value in values[1:-1] if value is not None]
    return inner if len(inner) >= SECONDS_MIN else []


def ratio_says(ratio: float | None, noise: float | None) -> str:
    """1.25 ±0.04"""
    if ratio is None:
        return "–"
    digits = 2 if ratio < 10 else 1 if ratio < 100 else 0
    return f"{ratio:,.{digits}f}" + (f" ±{ratio * noise:,.{digits}f}" if noise is not None else "")


def figure_says(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} µs" if unit == "µs" else in_words(value, unit)


def noise_says(found: Comparison) -> str:
    return (
        f"Ratios are to {found.names[0]}. ± is twice the standard error of what the runs did second by second; a ratio "
        "within it is no difference. Where there is none, the noise is not known. One run of each can differ by what "
        "else the machine did: run them in turn (A B A B) before believing a small difference."
    )


Figure = Callable[[Run], float | None]


def _row(
    name: str, unit: str, better: str, runs: Sequence[Run], figure: Figure, noise: list[float]
) -> Row:
    values = [figure(run) for run in runs]
    ratios: list[float | None] = []
    margins: list[float | None] = []
    verdicts: list[str] = []
    for value, its_noise in zip(values[1:], noise[1:], strict=True):
        ratio = value / values[0] if value is not None and values[0] else None
        margin = math.hypot(noise[0], its_noise)
        known = None if math.isnan(margin) else margin
        ratios.append(ratio)
        margins.append(known)
        verdicts.append(_verdict(ratio, known, better))
    return Row(
        name=name, unit=unit, better=better, values=values, ratios=ratios, noise=margins, verdicts=verdicts
    )


def _verdict(ratio: float | None, noise: float | None, better: str) -> str:
    if ratio is None or noise is None or not better:
        return ""
    if abs(ratio - 1) <= ratio * noise:
        return "same"
    return "better" if (ratio > 1) == (better == MORE) else "worse"


def _rate(run: Run) -> float | None:
    return run.totals.messages_per_s


def _cpu(run: Run) -> float | None:
    return run.totals.cpu_us_per_message


def _latency(stage: str, field: str) -> Figure:
    return lambda run: getattr(run.latency[stage], field) if stage in run.latency else None


def _part(name: str) -> Figure:
    def part(run: Run) -> float | None:
        totals = run.totals
        tried = totals.accepted + totals.refused + totals.broken
        return 100.0 * getattr(totals, name) / tried if tried else None

    return part


def _notes(runs: Sequence[tuple[str, Run]]) -> list[str]:
    """What a reader must know before believing a ratio."""
    notes = []
    names = (
        "protocol", "size_octets", "sizes", "corpus", "recipients", "connections", "processes", "per_connection",
        "pipelining", "chunking", "tls", "rate", "arrivals", "duration_s", "messages",
    )  # fmt: skip
    first, base = runs[0]
    for name, run in runs[1:]:
        differs = [
            f"{key.removesuffix('_s').replace('_', ' ')} {base.plan.get(key)!r} and {run.plan.get(key)!r}"
            for key in names
            if base.plan.get(key) != run.plan.get(key)
        ]
        if differs:
            notes.append(f"{first} and {name} had different plans: {'; '.join(differs)}")
        if base.host != run.host:
            notes.append(f"{first} and {name} ran on different hosts: no ratio tells about the server alone")
    if any(run.plan.get("rate") for _, run in runs):
        notes.append("at an offered rate, what is accepted is what was offered while all goes well: look at latency")
    for name, run in runs:
        if run.calibration is not None and run.calibration.ceiling_used > 0.7:
            notes.append(f"{name} ran near the tool's own ceiling: it may have measured the tool")
    return notes
