"""SIGKILL for a worker, for the supervisor, for everything, under load: what got a 250 comes out.

A few rounds of each kind; `make crash` runs hundreds, at every named point.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_campaign import RANDOM, KillCampaign, Order

pytestmark = pytest.mark.crash

ORDERS = (
    Order("group: message", "midway", "worker"),
    Order("completion signalled", "before", "supervisor"),
    Order("next hop's reply", "after", "worker"),
    Order(RANDOM, "", "supervisor"),
    Order("group: settled", "before", "everything"),
    Order("compaction copy", "after", "everything"),
    Order("recovery: read", "before", "worker"),
    Order("recovery: set aside", "after", "everything"),
    Order("adoption: copy", "after", "worker"),
    Order("adoption: remove", "after", "everything"),
)


def test_all_that_was_acknowledged_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with KillCampaign(tmp_path, rounds=len(ORDERS), seed=1) as campaign:
        campaign.obey(ORDERS)
        report = campaign.judge()
    with capsys.disabled():
        print(
            f"\n  {sum(report.kills.values())} kills: {report.messages} messages, {report.promised} "
            f"recipients promised, {report.duplicated} delivered twice, {report.unpromised} without "
            "a 250 that anybody saw"
        )
    assert report.messages > 0
    assert report.duplicated == report.in_window
    assert report.not_reached < len(ORDERS) / 2
