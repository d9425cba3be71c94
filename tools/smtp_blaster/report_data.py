"""What the report shows, taken out of a Run: lines for the plots, texts for the cards and tables.

    Owns      percentile_line(), stage_lines(), rate_lines(), latency_lines(), server_plots(), cards()
    Errors    ValueError for a histogram that is not HdrHistogram's V2 encoding
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from hdrh.histogram import HdrHistogram

from smtp_blaster.quantity import in_words
from smtp_blaster.report_plots import SERIES, Line, Mark, step_of, thin
from smtp_blaster.result import MESSAGE, RETRIEVING, Latency, Run, Series

NS_PER_MS = 1e6
CURVE_POINTS = 160
TRANSACTION = (MESSAGE, "mail", "rcpt", "data", "dot")
CONNECTION = ("connect", "tls", "greeting", "hello", "auth", "quit")
STAGE_WORDS = {
    MESSAGE: "message", "connect": "connect", "tls": "TLS", "greeting": "greeting",
    "hello": "EHLO", "auth": "AUTH", "mail": "MAIL", "rcpt": "RCPT", "data": "DATA", "dot": "content",
    "quit": "QUIT",
    **{stage: stage.upper() for stage in RETRIEVING}, "announcement": "announcement",
}  # fmt: skip
RATES = {"offered": "s4", "accepted": "s0", "refused": "s1", "broken": "s6"}


class Card(NamedTuple):
    what: str
    figure: str
    unit: str
    more: str
    mood: str = ""  # good | bad | warn


class ServerPlot(NamedTuple):
    name: str
    unit: str
    line: Line
    says: str


# -- lines -----------------------------------------------------------------------------------------


def percentile_line(name: str, colour: str, latency: Latency, *, heavy: bool = False) -> Line | None:
    """ms over 1 / (1 - quantile), evenly on the logarithmic axis, up to the count of values."""
    values, below = _cumulated(latency)
    if not values:
        return None
    total = below[-1]
    x = [total ** (step / CURVE_POINTS) for step in range(CURVE_POINTS + 1)] if total > 1 else [1.0]
    y = [values[min(len(values) - 1, bisect_left(below, (1 - 1 / at) * total))] for at in x]
    y[-1] = values[-1]
    return Line(name, colour, x, y, heavy=heavy)


def _cumulated(latency: Latency) -> tuple[list[float], list[int]]:
    """Values in ms, and how many are not above each."""
    try:
        histogram = HdrHistogram.decode(latency.hdr)
    except Exception as error:
        raise ValueError(f"not a histogram in HdrHistogram's V2 encoding: {error}") from error
    values: list[float] = []
    below: list[int] = []
    total = 0
    # The library's own iterators cost a hundred times as much.
    for index, count in enumerate(list(histogram.counts)[: histogram.encoder.payload.counts_len]):
        if count:
            total += count
            value = histogram.get_highest_equivalent_value(histogram.get_value_from_index(index))
            values.append(value / NS_PER_MS)
            below.append(total)
    return values, below


def stage_lines(run: Run, stages: Sequence[str]) -> list[Line]:
    lines = [
        percentile_line(STAGE_WORDS[stage], SERIES[index % len(SERIES)], run.latency[stage], heavy=stage == MESSAGE)
        for index, stage in enumerate(stage for stage in stages if stage in run.latency)
    ]
    return [line for line in lines if line is not None]


def rate_lines(run: Run) -> list[Line]:
    """Messages/s; refused and broken only where there are any.  A last interval that hardly began is left out."""
    series = run.series
    whole = len(series.accepted)
    if whole > 1 and run.totals.seconds < (whole - 0.5) * series.interval_s:
        whole -= 1
    found = []
    for name, colour in RATES.items():
        counts = getattr(series, name)[:whole]
        if counts and (name in ("offered", "accepted") or any(counts)):
            rates = thin([count / series.interval_s for count in counts], fmean)
            found.append(
                Line(name, colour, _times(series, len(counts)), rates,
                     dashed=name == "offered", filled=name == "accepted", heavy=name == "accepted")
            )  # fmt: skip
    return found


def latency_lines(series: Series) -> list[Line]:
    return [
        Line(word, colour, _times(series, len(values)), thin(values, by), heavy=word == "p50")
        for word, colour, values, by in (
            ("max", "s4", series.max_ms, max), ("p99", "s1", series.p99_ms, max), ("p50", "s0", series.p50_ms, fmean),
        )
        if any(value is not None for value in values)
    ]  # fmt: skip


def in_flight_line(series: Series) -> Line | None:
    if not any(series.in_flight):
        return None
    times = _times(series, len(series.in_flight))
    return Line("in flight", "s2", times, thin(series.in_flight, max), filled=True)


def _times(series: Series, length: int) -> list[float]:
    """The middle of what each point stands for, s."""
    step = step_of(length)
    ends = (min(at + step, length) for at in range(0, length, step))
    return [(at + end) / 2 * series.interval_s for at, end in zip(range(0, length, step), ends, strict=False)]


def seconds_a_point(run: Run) -> float:
    return run.series.interval_s * step_of(len(run.series.accepted))


def marks(run: Run) -> list[tuple[Mark, str]]:
    """What happened when: numbered for the plots, with its text for the list."""
    told = sorted((run.server or {}).get("marks", []), key=lambda mark: float(mark["t"]))
    return [(Mark(float(mark["t"]), str(number)), str(mark["text"])) for number, mark in enumerate(told, 1)]


def server_plots(run: Run) -> list[ServerPlot]:
    found = []
    for index, (name, series) in enumerate((run.server or {}).get("series", {}).items()):
        times, values = series["t"], series["v"]
        if not times or len(times) != len(values):
            continue
        unit = str(series.get("unit", ""))
        unit = "octets" if unit in ("B", "bytes", "octets") else unit
        line = Line(
            name, SERIES[index % 4], thin(times, fmean), thin(values, max), filled=True, heavy=True
        )
        present = [value for value in values if value is not None]
        first, last, most = (in_words(value, unit) for value in (present[0], present[-1], max(present)))
        says = f"from {first} to {last}, at most {most}"
        found.append(ServerPlot(name, unit, line, says))
    return found


# -- words -----------------------------------------------------------------------------------------


def title(run: Run) -> str:
    plan = run.plan
    words = str(plan.get("protocol", "")).upper(), str(plan.get("target", ""))
    return " to ".join(word for word in words if word) or "A run"


def subtitle(run: Run) -> str:
    """The load in a sentence."""
    plan = run.plan
    rate = plan.get("rate")
    words = [
        f"{rate:g} messages/s by the clock" if rate else "as fast as the server goes",
        _several(plan.get("connections"), "connection"),
        f"{plan['sizes']} octets" if plan.get("sizes") else "",
        f"{in_words(plan['size_octets'], 'octets', exact=True)} each"
        if plan.get("size_octets") and not plan.get("sizes") and not plan.get("corpus") else "",
        "real messages" if plan.get("corpus") else "",
        _several(plan.get("recipients"), "recipient") if (plan.get("recipients") or 1) > 1 else "",
        _several(plan.get("per_connection"), "message") + " a connection" if plan.get("per_connection") else "",
        *(word.upper() for word in ("pipelining", "chunking") if plan.get(word)),
        {"starttls": "STARTTLS", "implicit": "TLS"}.get(str(plan.get("tls")), ""),
    ]  # fmt: skip
    return ", ".join(word for word in words if word)


def _several(number: Any, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}" if number else ""


def cards(run: Run) -> list[Card]:
    totals = run.totals
    message = run.latency.get(MESSAGE)
    tried = totals.accepted + totals.refused + totals.broken
    found = [
        Card("accepted", f"{totals.messages_per_s:,.0f}", "/s",
             f"{totals.accepted:,} messages in {in_words(totals.seconds, 's')}, {in_words(totals.octets, 'octets')}"),
    ]  # fmt: skip
    if message is not None:
        open_loop = bool(run.plan.get("rate"))
        start = "from the intended start" if open_loop else "from the send: a closed loop hides waiting"
        found += [
            _time_card("latency p50", message.p50_ms, start),
            _time_card("latency p99", message.p99_ms,
                       f"p99.9 {in_words(message.p999_ms, 'ms')}, max {in_words(message.max_ms, 'ms')}"),
        ]  # fmt: skip
    found.append(_count_card("refused", totals.refused, tried, "with a reply"))
    found.append(_count_card("broken", totals.broken, tried, "no reply: taken or not, nobody knows"))
    if totals.unsent:
        found.append(_count_card("unsent", totals.unsent, tried + totals.unsent, "due, never begun"))
    if run.ledger is not None:
        found.append(_ledger_card(run.ledger))
    if run.calibration is not None:
        used = run.calibration.ceiling_used
        found.append(
            Card("tool ceiling used", f"{100 * used:.0f}", "%",
                 f"the tool alone: {run.calibration.messages_per_s:,.0f}/s", "warn" if used > 0.7 else "")
        )  # fmt: skip
    found.append(
        Card("tool CPU", f"{totals.cpu_us_per_message:,.0f}", "µs", "of the tool itself, a message")
    )
    return found


def _time_card(what: str, ms: float, more: str) -> Card:
    figure, _, unit = in_words(ms, "ms").partition(" ")
    return Card(what, figure, unit, more)


def _count_card(what: str, number: int, of: int, more: str) -> Card:
    share = f"{_percent(number, of)}, {more}" if number else more
    return Card(what, f"{number:,}", "", share if number else "none", "warn" if number else "")


def _percent(part: int, whole: int) -> str:
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 or not percent else f"{percent:.2g} %"


def _ledger_card(ledger: dict[str, Any]) -> Card:
    clean = is_clean(ledger)
    wrong = {name: ledger.get(name, 0) for name in ("lost", "altered", "duplicated_unexplained")}
    said = ", ".join(f"{number:,} {name.replace('duplicated_unexplained', 'twice')}" for name, number in wrong.items())
    return Card("ledger", "clean" if clean else "not clean", "", said, "good" if clean else "bad")


def is_clean(ledger: dict[str, Any]) -> bool:
    return not any(ledger.get(name) for name in ("lost", "altered", "duplicated_unexplained"))

