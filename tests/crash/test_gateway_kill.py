"""SIGKILL for a worker, for the supervisor, for everything, under load: what got a 250 comes out.

A short campaign; `make crash` runs the same for long.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_campaign import KillCampaign

pytestmark = pytest.mark.crash

ROUNDS = 12
SEED = 1


def test_all_that_was_acknowledged_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with KillCampaign(tmp_path, rounds=ROUNDS, seed=SEED) as campaign:
        campaign.run()
        report = campaign.judge()
    with capsys.disabled():
        print(
            f"\n  {sum(report.kills.values())} kills, seed {SEED}: {report.messages} messages, "
            f"{report.promised} recipients promised, {report.duplicated} delivered twice, "
            f"{report.unpromised} without a 250 that anybody saw"
        )
    assert report.messages > 0
    assert report.duplicated == report.in_window
