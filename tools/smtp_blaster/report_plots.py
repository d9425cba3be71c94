"""Plots as SVG that lives inside the report: the page's own fonts and colours, light and dark, no script.

    Owns      Line, Mark, draw(), thin()
    Flow      lines → Matplotlib, once for a phone and once for a desk → SVG → colours become the page's
              variables, what an inline SVG does not need goes
    Limits    POINTS_MAX a line: longer ones are thinned by thin()
    Errors    none of its own
    Blocking  about 0.1 s a plot
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from itertools import count
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from smtp_blaster.quantity import in_words, octets_unit

POINTS_MAX = 400
# The page's colours: SERIES for what is compared, the rest by meaning.  report.css has the values.
SERIES = ("s0", "s1", "s2", "s3", "s5", "s4", "s6")
TOKENS = ("s0", "s1", "s2", "s3", "s4", "s5", "s6", "ink", "soft", "faint", "grid", "line", "good", "bad", "warn")
# Pixels wide and high as they are shown: a phone of 390 px, a half and the whole of a desk's column.
SIZES = {"narrow": (328, 212), "half": (484, 236), "whole": (1020, 300)}
TEXT_PX = {"narrow": 10.5, "half": 11.0, "whole": 11.5}
GLYPH_WIDTH = 0.6  # of a digit in most fonts, to its size
PERCENTILES = {2: "50 %", 10: "90 %", 100: "99 %", 1000: "99.9 %", 10**4: "99.99 %", 10**5: "99.999 %"}

Axis = Literal["time", "percentile"]


class Line(NamedTuple):
    name: str
    colour: str  # one of TOKENS
    x: Sequence[float]  # s, or 1 / (1 - quantile)
    y: Sequence[float]  # NaN where there is nothing
    dashed: bool = False
    heavy: bool = False
    filled: bool = False


class Mark(NamedTuple):
    at_s: float
    sign: str  # short: it stands in the plot


_number = count()
_SENTINELS = {token: f"#fe{index:02x}7d" for index, token in enumerate(TOKENS)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "axes.unicode_minus": False,
    "path.simplify_threshold": 0.3,
}


def draw(
    lines: Sequence[Line],
    *,
    says: str,
    x: Axis = "time",
    unit: str = "",
    log: bool = False,
    whole: bool = False,
    marks: Sequence[Mark] = (),
    limit: float | None = None,
) -> str:
    """Two SVG elements, one for a phone and one for a desk.

    says: the plot in words, for who cannot see it.  whole: as wide as the page.  limit: a dashed line
    across, in the plot's unit.
    """
    kinds = (("narrow", "narrow"), ("wide", "whole" if whole else "half"))
    return "".join(
        _svg(_figure(lines, size, x, unit, log, marks, limit), name, says) for name, size in kinds
    )


def thin(values: Sequence[float | None], by: Callable[[list[float]], float]) -> list[float]:
    """At most POINTS_MAX values; each is by(those it stands for), NaN where all are missing."""
    step = step_of(len(values))
    pieces = ([v for v in values[at : at + step] if v is not None] for at in range(0, len(values), step))
    return [by(piece) if piece else math.nan for piece in pieces]


def step_of(length: int) -> int:
    """How many values a point of a line of this length stands for."""
    return max(1, math.ceil(length / POINTS_MAX))


# -- Matplotlib ------------------------------------------------------------------------------------


def _figure(
    lines: Sequence[Line],
    size: str,
    x: Axis,
    unit: str,
    log: bool,
    marks: Sequence[Mark],
    limit: float | None,
) -> Figure:
    width, height = SIZES[size]
    text = TEXT_PX[size]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72))
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(_SENTINELS["faint"])
            spine.set_linewidth(0.8)
        axes.tick_params(
            axis="both", length=0, pad=4, labelsize=text, labelcolor=_SENTINELS["soft"]
        )
        axes.grid(axis="y", color=_SENTINELS["grid"], linewidth=1)
        axes.set_axisbelow(True)
        for line in lines:
            _plot(axes, line, 0.82 if size == "narrow" else 1.0)
        _scale_y(axes, lines, unit, log, few=size == "narrow", limit=limit)
        if x == "time":
            _time_axis(axes, lines, few=size == "narrow")
        else:
            _percentile_axis(axes, lines)
        if limit is not None:
            axes.axhline(limit, color=_SENTINELS["soft"], linewidth=1, dashes=(2, 3))
        for mark in marks:
            axes.axvline(mark.at_s, color=_SENTINELS["soft"], linewidth=1, dashes=(2, 3))
            axes.text(
                *(mark.at_s, 1.0, mark.sign),
                transform=axes.get_xaxis_transform(),
                color=_SENTINELS["ink"],
                fontsize=text,
                fontweight="bold",
                ha="center",
                va="bottom",
            )
        # Margins by what stands in them: a layout engine would draw everything twice to know it.
        low, high = axes.get_ylim()
        labels = [in_words(at, unit, exact=True) for at in axes.get_yticks() if low <= at <= high]
        left = GLYPH_WIDTH * text * max(map(len, labels), default=1) + 6
        figure.subplots_adjust(
            left=left / width,
            right=1 - 6 / width,
            bottom=(text + 8) / height,
            top=1 - (text + 4 if marks else 4) / height,
        )
        return figure


def _plot(axes: Axes, line: Line, thickness: float) -> None:
    colour = _SENTINELS[line.colour]
    present = [at for at, value in zip(line.x, line.y, strict=True) if not math.isnan(value)]
    axes.plot(
        line.x,
        line.y,
        color=colour,
        linewidth=(2.6 if line.heavy else 1.7) * thickness,
        linestyle=(0, (4, 3)) if line.dashed else "solid",
        marker="o" if len(present) == 1 else None,  # a single point has no line
        markersize=4,
        solid_capstyle="round",
        zorder=3 if line.heavy else 2,
    )
    if line.filled:
        axes.fill_between(line.x, line.y, color=colour, alpha=0.12, linewidth=0)


def _scale_y(
    axes: Axes, lines: Sequence[Line], unit: str, log: bool, *, few: bool, limit: float | None
) -> None:
    values = [value for line in lines for value in line.y if not math.isnan(value)]
    top = max([*values, *([limit] if limit is not None else [])], default=1.0)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    positive = [value for value in values if value > 0]
    if log and positive:
        bottom = min(positive)
        axes.set_yscale("log")
        axes.set_ylim(bottom / 1.25, top * 1.25)
        decades = math.log10(top * 1.56 / bottom)
        subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        bottom = min([0.0, *values])
        axes.set_ylim(bottom, (top or 1.0) * 1.06)
        steps = [1, 2, 5, 10] if unit == "" else [1, 2, 2.5, 5, 10]
        locator = MaxNLocator(4 if few else 5, steps=steps, integer=unit == "")
        size = octets_unit(top)[0] if unit == "octets" else 1
        ticks = [at * size for at in locator.tick_values(bottom / size, (top or 1.0) * 1.06 / size)]
        axes.yaxis.set_major_locator(FixedLocator([at for at in ticks if bottom <= at <= (top or 1.0) * 1.06]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_words(value, unit, exact=True)))


def _time_axis(axes: Axes, lines: Sequence[Line], *, few: bool) -> None:
    last = max((at for line in lines for at in line.x), default=1.0) or 1.0
    size, name = (1, "s") if last < 180 else (60, "min") if last < 3 * 3600 else (3600, "h")
    locator = MaxNLocator(5 if few else 9, steps=[1, 2, 3, 5, 6, 10])
    ticks = [at * size for at in locator.tick_values(0, last / size) if 0 <= at * size <= last * 1.001]
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at / size:g} {name}"))


def _percentile_axis(axes: Axes, lines: Sequence[Line]) -> None:
    last = max((at for line in lines for at in line.x), default=10.0)
    axes.set_xscale("log")
    axes.set_xlim(1, max(10.0, last))
    axes.xaxis.set_major_locator(FixedLocator([at for at in PERCENTILES if at <= max(10.0, last) * 1.001]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: PERCENTILES.get(round(at), "")))


# -- SVG -------------------------------------------------------------------------------------------

_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_NOT_HERE = re.compile(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", re.DOTALL)
_SVG = re.compile(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", re.DOTALL)
_FONT = re.compile(r"font: ((?:\d+ )?)([\d.]+)px [^;\"]*")
_ID = re.compile(r' id="([^"]*)"')
_BETWEEN = re.compile(r">\s+<")


def _svg(figure: Figure, name: str, says: str) -> str:
    written = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": str(next(_number))}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    svg = _NOT_HERE.sub("", _HEAD.sub("", written.getvalue(), count=1))
    svg = _SVG.sub(
        lambda found: f'<svg class="{name}" viewBox="{found[1]}" role="img" aria-label="{escape(says)}">',
        svg,
        count=1,
    )
    svg = _FONT.sub(_font, svg)
    used = set(re.findall(r"#([A-Za-z0-9_-]+)", svg))
    svg = _ID.sub(lambda found: found[0] if found[1] in used else "", svg)
    for token, sentinel in _SENTINELS.items():
        svg = svg.replace(sentinel, f"var(--{token})")
    return _BETWEEN.sub("><", svg).strip()


def _font(found: re.Match[str]) -> str:
    weight = f"font-weight: {found[1].strip()}; " if found[1] else ""
    return f"{weight}font-size: {found[2]}px"
