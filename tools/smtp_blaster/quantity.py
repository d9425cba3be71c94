"""Quantities as people say them."""

from __future__ import annotations

import math

OCTETS = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"), (1, "B"))


def in_words(value: float, unit: str, *, exact: bool = False) -> str:
    """A quantity with its unit: 1.25 s, 940 µs, 12.3 MiB, 8,900/s; exact: without zeros that say nothing."""
    if math.isnan(value):
        return "–"
    if unit in ("ms", "s"):
        s = value / 1e3 if unit == "ms" else value
        if abs(s) >= 120:
            return f"{s / 60:.3g} min" if abs(s) < 7200 else f"{s / 3600:.3g} h"
        for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(s) >= size * 0.9995 or name == "µs":
                return f"{_plain(s / size, exact)} {name}" if s else "0"
    if unit == "octets":
        size, name = octets_unit(value)
        return f"{_plain(value / size, exact or size == 1)} {name}"
    if unit == "/s":
        return f"{_plain(value, exact)}/s"
    return f"{_plain(value, exact)}{' ' if unit else ''}{unit}"


def octets_unit(value: float) -> tuple[int, str]:
    """The unit in which so many octets are said, and its size."""
    return next((unit for unit in OCTETS if abs(value) >= unit[0]), OCTETS[-1])


def _plain(value: float, exact: bool) -> str:
    if not value:
        return "0"
    # Three digits; whole numbers from 100 on.
    text = f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value) * 1.0005)))}f}"
    return text.rstrip("0").rstrip(".") if exact and "." in text else text
