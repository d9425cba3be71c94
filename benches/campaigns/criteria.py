"""What a campaign promises to show, as values: measured, bound, met or not."""

from __future__ import annotations

import msgspec


class Criterion(msgspec.Struct):
    what: str
    value: float
    bound: float
    is_met: bool
    unit: str = ""


def at_most(what: str, value: float, bound: float, unit: str = "") -> Criterion:
    return Criterion(what, value, bound, value <= bound, unit)


def at_least(what: str, value: float, bound: float, unit: str = "") -> Criterion:
    return Criterion(what, value, bound, value >= bound, unit)
