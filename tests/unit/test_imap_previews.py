"""Previews that are kept in memory: the right ones, and not too many."""

from __future__ import annotations

from array import array

from gateway.server.imap.previews import OVERHEAD_OCTETS, Previews

HERE, THERE = ("alice", 1), ("alice", 2)


def test_all_or_nothing_is_found() -> None:
    previews = Previews()
    previews.keep(HERE, array("Q", [1, 2]), [b'"one"', b'"two"'])
    assert previews.find(HERE, [2, 1]) == [b'"two"', b'"one"']
    assert previews.find(HERE, [1, 3]) is None
    assert previews.find(THERE, [1]) is None  # the account was made again
    assert previews.find(HERE, []) == []


def test_the_ones_longest_unused_are_forgotten() -> None:
    previews = Previews(3 * (OVERHEAD_OCTETS + 5))
    for key in (1, 2, 3):
        previews.keep(HERE, array("Q", [key]), [b'"abc"'])
    assert previews.find(HERE, [1]) is not None
    previews.keep(HERE, array("Q", [4, 4]), [b'"abc"', b'"abc"'])
    assert [previews.find(HERE, [key]) is not None for key in (1, 2, 3, 4)] == [True, False, True, True]
    previews.keep(HERE, array("Q", [5]), [bytes(4 * OVERHEAD_OCTETS)])  # larger than all there may be
    assert [previews.find(HERE, [key]) for key in (1, 3, 4, 5)] == [None] * 4
