"""One self-contained page about one run, or about several laid over each other.

    Owns      write()
    Flow      Runs → report_data, compare → report_plots → report.html with report.css → one file
    Files     the page: no script, nothing from a network, light and dark as its reader likes
    Limits    about 0.2 MB a run
    Errors    ValueError for a histogram that cannot be read; OSError of the file
    Security  what servers said is escaped by the template; the page's policy forbids to load anything
    Blocking  about a second a run
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from smtp_blaster import report_data as data
from smtp_blaster.compare import Row, compare, figure_says, noise_says, ratio_says
from smtp_blaster.quantity import in_words
from smtp_blaster.report_plots import SERIES, Line, Mark, draw
from smtp_blaster.result import MESSAGE, STAGES, Run

LOG_FROM = 8.0  # of greatest to least: from there on a logarithmic axis tells more
LEDGER_MEANING = {
    "accepted": "message and recipient, with a 250",
    "delivered": "copies that arrived",
    "lost": "accepted, never delivered",
    "altered": "delivered with other octets",
    "duplicated_unexplained": "copies again, without a reason",
    "duplicated_explained": "copies again behind a lost reply or a kill (RFC 1047)",
    "unpromised": "delivered without having been accepted",
    "refused": "with a negative reply, nor accepted later",
    "unknown": "no reply to the content, nor accepted later",
    "kills": "of servers, sinks or sources in between",
}
LEDGER_NAMES = {
    "lost_ids": "Lost", "altered_ids": "Altered", "unexplained_ids": "Twice without a reason",
    "torn": "Lines cut short by a kill, not counted",
}  # fmt: skip


def write(path: Path, runs: Sequence[tuple[str, Run]]) -> None:
    """The page about one run, or about several beside each other; names are what they are called in it."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    resources = files("smtp_blaster")
    template = environment.from_string(resources.joinpath("report.html").read_text(encoding="utf-8"))
    css = resources.joinpath("report.css").read_text(encoding="utf-8")
    views = [_run(name, run, SERIES[index % len(SERIES)]) for index, (name, run) in enumerate(runs)]
    first = runs[0][1]
    compared = _compared(runs) if len(runs) > 1 else None
    page = {
        "title": " against ".join(name for name, _ in runs) if compared else data.title(first),
        "kicker": " · ".join(word for word in ("smtp-blaster", _when(first.started_at)) if word),
        "lead": f"{runs[0][0]}: {data.title(first)}, {data.subtitle(first)}" if compared else data.subtitle(first),
        "foot": f"Written by {first.tool or 'smtp-blaster'}. Percentiles are those of HdrHistogram with three "
        "digits; the page loads nothing and can be kept or sent as it is.",
    }
    path.write_text(
        template.render(page=page, runs=views, compared=compared, css=Markup(css)), encoding="utf-8"
    )


# -- one run ---------------------------------------------------------------------------------------


def _run(name: str, run: Run, colour: str) -> dict[str, Any]:
    numbered = data.marks(run)
    signs = [mark for mark, _ in numbered]
    return {
        "name": name,
        "colour": colour,
        "title": data.title(run),
        "lead": data.subtitle(run),
        "cards": data.cards(run),
        "notes": run.notes,
        "percentiles": _percentile_plots(run),
        "stages": _stage_rows(run),
        "has_floor": run.calibration is not None,
        "over_time": _time_plots(run, signs),
        "server": [
            _plot(_words(plot.name), [plot.line], plot.says, unit=plot.unit, marks=signs)
            for plot in data.server_plots(run)
        ],
        "marks": [
            {"sign": mark.sign, "at": in_words(mark.at_s, "s", exact=True), "text": text} for mark, text in numbered
        ],
        "replies": _replies(run),
        "ledger": _ledger(run.ledger) if run.ledger is not None else None,
        "calibration": _calibration(run),
        "plan": [
            (_words(key), _value(key, value))
            for key, value in run.plan.items()
            if value not in ("", None, False, 0, 0.0, [])
        ],
        "command": shlex.join(run.command),
        "host": [
            *((_words(key), value) for key, value in run.host.items()),
            ("started", _when(run.started_at)),
            ("tool", run.tool),
        ],
    }


def _plot(title: str, lines: Sequence[Line], says: str, **how: Any) -> dict[str, Any]:
    """lines: in the order of their keys; the first is drawn on top."""
    svg = draw(list(reversed(lines)), says=f"{title}. {says}", **how)
    whole = how.get("whole", False)
    return {"title": title, "lines": lines, "says": says, "whole": whole, "svg": Markup(svg)}


def _percentile_plots(run: Run) -> list[dict[str, Any]]:
    plots = []
    for title, stages, says in (
        ("A message and its stages, by percentile", data.TRANSACTION,
         "so many of a hundred took no longer"),
        ("A connection and its stages, by percentile", data.CONNECTION, "the same, once a connection"),
    ):  # fmt: skip
        if lines := data.stage_lines(run, stages):
            how = {"x": "percentile", "unit": "ms", "log": True, "whole": True}
            plots.append(_plot(title, lines, says, **how))
    return plots


def _stage_rows(run: Run) -> list[dict[str, Any]]:
    rows = []
    floor = run.calibration.floor_ms if run.calibration is not None else None
    for stage in (MESSAGE, *STAGES):
        if (latency := run.latency.get(stage)) is None:
            continue
        times = [
            latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms, latency.mean_ms,
            latency.min_ms, *([floor.get(stage, math.nan)] if floor is not None else []),
        ]  # fmt: skip
        rows.append(
            {
                "name": data.STAGE_WORDS[stage],
                "strong": stage == MESSAGE,
                "cells": [*(in_words(ms, "ms") for ms in times), f"{latency.count:,}"],
            }
        )
    return rows


def _time_plots(run: Run, marks: Sequence[Mark]) -> list[dict[str, Any]]:
    each = f"a point stands for {in_words(data.seconds_a_point(run), 's', exact=True)}"
    plots = []
    if lines := data.rate_lines(run):
        plots.append(_plot("Messages/s", lines, each, unit="/s", whole=True, marks=marks))
    if lines := data.latency_lines(run.series):
        says = f"of the messages accepted then; {each}"
        plots.append(_plot("Latency", lines, says, unit="ms", log=_is_wide(lines), marks=marks))
    if line := data.in_flight_line(run.series):
        says = "begun and not answered, at the end of each second"
        plots.append(_plot("Messages in flight", [line], says, marks=marks))
    return plots


def _is_wide(lines: Sequence[Line]) -> bool:
    values = [value for line in lines for value in line.y if value > 0]
    return bool(values) and max(values) > LOG_FROM * min(values)


def _replies(run: Run) -> list[dict[str, Any]]:
    most = max((reply.count for reply in run.replies), default=1)
    return [
        {
            "stage": data.STAGE_WORDS.get(reply.stage, reply.stage),
            "code": reply.code or reply.enhanced,
            "text": f"{reply.enhanced} {reply.text}".strip(),
            "count": f"{reply.count:,}",
            "share": f"{100 * reply.count / most:.1f}",
            "colour": {4: "s1", 5: "s6"}.get(reply.code // 100, "s2"),
        }
        for reply in sorted(run.replies, key=lambda reply: (reply.code < 400, -reply.count))
    ]


def _ledger(ledger: dict[str, Any]) -> dict[str, Any]:
    clean = data.is_clean(ledger)
    failures = ("lost", "altered", "duplicated_unexplained")
    return {
        "clean": clean,
        "says": "Nothing was lost, nothing altered, nothing came twice without a reason."
        if clean
        else "Mail was lost, altered or came twice without a reason.",
        "rows": [
            {
                "name": _words(name),
                "meaning": meaning,
                "count": f"{ledger[name]:,}",
                "mood": "zero" if not ledger[name] else "bad" if name in failures else "",
            }
            for name, meaning in LEDGER_MEANING.items()
            if name in ledger
        ],
        "names": [(what, ledger[name]) for name, what in LEDGER_NAMES.items() if ledger.get(name)],
    }


def _calibration(run: Run) -> dict[str, Any] | None:
    if run.calibration is None:
        return None
    used = run.calibration.ceiling_used
    return {
        "says": "The same plan against the tool's own sink, as fast as it goes: what the tool itself costs here."
        + (" The run came near it: it may have measured the tool." if used > 0.7 else ""),
        "rows": [
            ("its ceiling", f"{run.calibration.messages_per_s:,.0f} messages/s"),
            ("used by the run", f"{100 * used:.0f} %"),
            ("its own CPU", f"{run.calibration.cpu_us_per_message:,.0f} µs a message"),
        ],
    }


# -- several runs ----------------------------------------------------------------------------------


def _compared(runs: Sequence[tuple[str, Run]]) -> dict[str, Any]:
    found = compare(runs)
    colours = [SERIES[index % len(SERIES)] for index in range(len(runs))]
    return {
        "names": [{"name": name, "colour": colour} for name, colour in zip(found.names, colours, strict=True)],
        "notes": found.notes,
        "rows": [_row(row, index) for index, row in enumerate(found.rows)],
        "says": noise_says(found),
        "plots": _laid_over(runs, colours),
    }


def _row(row: Row, index: int) -> dict[str, Any]:
    name, _, percentile = row.name.partition(" p")
    cells = [{"text": figure_says(row.values[0], row.unit), "mood": ""}]
    for value, ratio, noise, verdict in zip(
        row.values[1:], row.ratios, row.noise, row.verdicts, strict=True
    ):
        mood = {"better": "good", "worse": "bad", "same": "faint"}.get(verdict, "")
        cells.append({"text": ratio_says(ratio, noise), "mood": mood})
        cells.append({"text": figure_says(value, row.unit), "mood": ""})
    stage = data.STAGE_WORDS.get(name, name)
    words = f"{stage} p{percentile}" if percentile.isdecimal() else row.name
    return {"name": words, "strong": index == 0 or row.name.startswith(MESSAGE), "cells": cells}


def _laid_over(runs: Sequence[tuple[str, Run]], colours: Sequence[str]) -> list[dict[str, Any]]:
    plots = []
    lines = [
        data.percentile_line(name, colour, run.latency[MESSAGE], heavy=True)
        for (name, run), colour in zip(runs, colours, strict=True)
        if MESSAGE in run.latency
    ]
    if present := [line for line in lines if line is not None]:
        says = "so many of a hundred took no longer"
        how = {"x": "percentile", "unit": "ms", "log": True, "whole": True}
        plots.append(_plot("Latency of a message, by percentile", present, says, **how))
    over_time: tuple[tuple[str, Callable[[Run], list[Line]], str, str], ...] = (
        ("Accepted messages/s", data.rate_lines, "accepted", "/s"),
        ("Latency p99", lambda run: data.latency_lines(run.series), "p99", "ms"),
        ("Latency p50", lambda run: data.latency_lines(run.series), "p50", "ms"),
    )
    for title, lines_of, which, unit in over_time:
        laid = [
            line._replace(name=name, colour=colour, filled=False, heavy=False)
            for (name, run), colour in zip(runs, colours, strict=True)
            for line in lines_of(run)
            if line.name == which
        ]
        if laid:
            log = unit == "ms" and _is_wide(laid)
            plots.append(_plot(title, laid, "", unit=unit, log=log, whole=unit == "/s"))
    return plots


# -- words -----------------------------------------------------------------------------------------


def _words(name: str) -> str:
    return name.removesuffix("_s").removesuffix("_octets").replace("_", " ")


def _value(key: str, value: Any) -> str:
    if value is True:
        return "yes"
    if key.endswith("_octets"):
        return in_words(float(value), "octets", exact=True)
    if key.endswith("_s"):
        return in_words(float(value), "s", exact=True)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _when(started_at: str) -> str:
    """ISO 8601 for people, still UTC."""
    return started_at[:16].replace("T", " ") + " UTC" if started_at else ""
