"""A line through measurements, and how sure its slope is.

Owns      Trend, trend()
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

Z_95 = (
    1.96  # of the normal distribution: there are hundreds of measurements, or nothing is concluded
)


class Trend(NamedTuple):
    slope: float  # of the value for each second
    margin: float  # 95 % confidence: slope ± margin; infinite with too few measurements
    points: int

    @property
    def least(self) -> float:
        return self.slope - self.margin


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """Least squares through (seconds, value).

    Neighbours are alike (memory that was taken stays for a while): the margin is that of so many fewer measurements
    as the correlation of neighbouring residuals says.
    """
    count = len(points)
    if count < 3:
        return Trend(0.0, math.inf, count)
    mean_t = sum(t for t, _ in points) / count
    mean_v = sum(v for _, v in points) / count
    spread = sum((t - mean_t) ** 2 for t, _ in points)
    if not spread:
        return Trend(0.0, math.inf, count)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in points) / spread
    rest = [v - mean_v - slope * (t - mean_t) for t, v in points]
    squares = sum(r * r for r in rest)
    alike = sum(a * b for a, b in pairwise(rest)) / squares if squares else 0.0
    alike = min(max(alike, 0.0), 0.999)
    variance = squares / (count - 2) / spread * (1.0 + alike) / (1.0 - alike)
    return Trend(slope, Z_95 * math.sqrt(variance), count)
