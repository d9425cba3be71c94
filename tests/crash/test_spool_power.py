"""Power losses of the spool, a few of each kind; `make crash` tries many more."""

from __future__ import annotations

from pathlib import Path

import pytest
from power_campaign import PowerCampaign, in_memory, mutants
from powerloss import DATASYNC, OPEN, WRITE, Trace

pytestmark = pytest.mark.crash


def test_all_that_was_acknowledged_is_there(tmp_path: Path):
    with in_memory(tmp_path) as memory:
        report = PowerCampaign(
            tmp_path, seed=1, generations=12, states_max=600, messages=25, memory=memory
        ).run()
    assert report.tried > 500 and report.adoptions == 2 and report.failures == 2


def test_a_sync_that_is_left_out_is_noticed(tmp_path: Path):
    with in_memory(tmp_path) as memory:
        outcome = mutants(tmp_path, 1, memory)
    assert all(outcome.values()), outcome


def failed_group(trace: Trace) -> int:
    """Position of the failed sync of a group of records; -1: it struck a segment in the making, or nothing."""
    last: dict[int, bytes] = {}
    for at, event in enumerate(trace.events):
        if event.kind == WRITE and not event.ended:
            last[event.file] = event.data
        if event.kind == DATASYNC and event.ended and event.result < 0:
            octets = last[event.file]
            return at if any(octets[:8]) and octets[:8] != b"GWSPOOL1" else -1
    return -1


def test_after_a_failed_sync_a_file_is_never_written_again(tmp_path: Path):
    """Nobody knows what its pages hold: no later sync of it may be the reason for a 250."""
    at, seed = -1, 0
    while at < 0:
        seed += 1
        assert seed < 20
        campaign = PowerCampaign(tmp_path, seed=seed, generations=1, states_max=1)
        trace = campaign.record("fdatasync", fails=True)
        at = failed_group(trace)
    file = trace.events[at].file
    for later in trace.events[at + 1 :]:
        if later.kind == OPEN and later.file == file:
            break  # another file with the number of the removed one
        assert later.kind not in (WRITE, DATASYNC) or later.file != file
