"""benches/campaigns/trend.py: the slope, and how sure it is."""

from __future__ import annotations

import math
import random

import pytest

from benches.campaigns.trend import trend


def test_a_line_is_found_exactly() -> None:
    found = trend([(t, 5.0 + 3.0 * t) for t in range(100)])
    assert found.slope == pytest.approx(3.0)
    assert found.margin == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.5])
def test_the_margin_holds_what_it_promises(slope: float) -> None:
    chance = random.Random(1)
    inside = 0
    for _ in range(200):
        points = [(t, slope * t + chance.gauss(0.0, 20.0)) for t in range(300)]
        found = trend(points)
        inside += abs(found.slope - slope) <= found.margin
        assert found.least == found.slope - found.margin
    assert inside >= 180  # 95 % of 200 are 190


def test_neighbours_that_are_alike_count_less() -> None:
    chance = random.Random(1)
    level, walk = 0.0, []
    for t in range(500):
        level = 0.97 * level + chance.gauss(0.0, 1.0)
        walk.append((t, level))
    shuffled = [v for _, v in walk]
    chance.shuffle(shuffled)
    assert trend(walk).margin > 3 * trend(list(enumerate(shuffled))).margin


def test_too_little_to_say() -> None:
    assert trend([]).margin == math.inf
    assert trend([(1.0, 2.0), (2.0, 3.0)]).margin == math.inf
    assert trend([(1.0, 2.0)] * 10).margin == math.inf
