"""What the tests of faults share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_world import PassingClock, World

from gateway.net.connection import DeadlineSweep


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are looked at more often than once a second."""
    monkeypatch.setattr(DeadlineSweep, "INTERVAL_S", 0.05)


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways that are started in this process live in a time that world.pass_s() moves on."""
    monkeypatch.setattr("gateway.app.LoopClock", PassingClock)
