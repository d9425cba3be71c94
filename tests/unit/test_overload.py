"""policy/overload.py and policy/backlog.py: how the limit follows the load, who is refused and who waits."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail import replies
from gateway.mail.reply import Reply
from gateway.policy.backlog import Backlog
from gateway.policy.overload import (
    BURST_S,
    DRAIN,
    LASTING,
    LIMIT_MIN,
    QUIET,
    TURN_WAIT_S,
    WORDS,
    Load,
    Overload,
    Traffic,
)

TARGETS = Load(accept_queue=0.75, memory=1.0, turn_s=0.05, commit_s=1.0, queue_s=0.5)
CALM_LOAD = Load()
SLOW = Load(turn_s=0.1)
BUSY_TRAFFIC = Traffic(taken=1000.0, sent=1000.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def overloaded(load: Load = SLOW) -> tuple[Overload, Clock]:
    clock = Clock()
    overload = Overload(TARGETS, clock)
    for _ in range(LASTING):
        overload.update(load, BUSY_TRAFFIC)
    assert overload.limited
    return overload, clock


# -- the limit ------------------------------------------------------------------------------------


def test_there_is_no_limit_while_all_is_well() -> None:
    overload = Overload(TARGETS)
    for _ in range(100):
        overload.update(Load(0.7, 0.9, 0.049, 0.9, 0.4), BUSY_TRAFFIC)
    assert not overload.limited
    assert overload.check_connection(trusted=False) is None


def test_the_first_message_after_a_quiet_while_has_somebody_look() -> None:
    overload, woken = Overload(TARGETS), []
    assert not overload.asks
    overload.wake_with(lambda: woken.append(1))
    overload.update(Load(), BUSY_TRAFFIC)
    assert overload.asks and not overload.limited
    assert overload.check_connection(trusted=False) is None and not woken
    assert overload.admit_message(trusted=False) == 0.0
    assert woken == [1] and not overload.asks
    limited, _ = overloaded()
    limited.wake_with(lambda: woken.append(2))
    limited.admit_message(trusted=False)
    assert woken == [1, 2] and limited.asks


def test_a_burst_is_no_overload() -> None:
    overload = Overload(TARGETS)
    for _ in range(10):
        for _ in range(LASTING - 1):
            overload.update(Load(turn_s=10.0), BUSY_TRAFFIC)
        overload.update(CALM_LOAD, BUSY_TRAFFIC)
    assert not overload.limited


@pytest.mark.parametrize("gauge", Load._fields)
def test_each_gauge_that_stays_high_cuts_the_limit_and_is_named(gauge: str) -> None:
    high = Load(**{gauge: 2 * getattr(TARGETS, gauge)})
    overload, _ = overloaded(high)
    assert overload.reason == gauge
    assert overload.limit < BUSY_TRAFFIC.taken
    before = overload.limit
    overload.update(high, BUSY_TRAFFIC)
    assert overload.limit <= before
    refusal = overload._refuse("mail")
    assert WORDS[gauge] in refusal.text


def test_zero_means_never() -> None:
    overload = Overload(Load())
    for _ in range(10):
        overload.update(Load(1.0, 9.0, 9.0, 9.0, 9.0), BUSY_TRAFFIC)
    assert not overload.limited


def test_half_of_what_goes_out_may_always_come_in() -> None:
    overload, _ = overloaded(Load(queue_s=100.0))
    for _ in range(100):
        overload.update(Load(queue_s=100.0), Traffic(taken=overload.limit, sent=1000.0))
    assert overload.limit == 1000.0 * DRAIN


def test_refusals_that_take_the_time_are_not_fought_with_refusals() -> None:
    overload, _ = overloaded()
    limit = overload.limit
    for _ in range(50):
        overload.update(Load(turn_s=1.0), Traffic(taken=limit, refused=5 * limit, sent=0.0))
    assert overload.limit == limit


def test_the_limit_goes_when_nobody_was_refused_for_a_second() -> None:
    overload, _ = overloaded()
    for _ in range(QUIET):
        assert overload.limited
        overload.update(CALM_LOAD, BUSY_TRAFFIC)
    assert not overload.limited


def test_the_limit_stays_while_somebody_is_refused() -> None:
    overload, _ = overloaded()
    limits = []
    for _ in range(5 * QUIET):
        while not isinstance(overload.admit_message(trusted=False), Reply):
            pass
        overload.update(CALM_LOAD, BUSY_TRAFFIC)
        limits.append(overload.limit)
    assert overload.limited
    assert limits == sorted(limits)  # it grows, though


@given(st.lists(st.tuples(*[st.floats(0, 100) for _ in range(9)]), max_size=50))
def test_whatever_is_measured_the_limit_is_one_that_lets_mail_in(
    looks: list[tuple[float, ...]],
) -> None:
    overload = Overload(TARGETS, Clock())
    for look in looks:
        before = overload.limit
        overload.update(Load(*look[:5]), Traffic(*look[5:]))
        assert overload.limit >= min(LIMIT_MIN, before)
        assert overload.limited == (overload.limit < float("inf"))


@dataclass
class Machine:
    """Takes and sends mail with one CPU: taking comes first, as it does in an event loop that is full."""

    capacity: float = 8000.0  # messages/s taken and sent
    queue: float = 0.0
    taken: list[float] = field(default_factory=list)
    queues: list[float] = field(default_factory=list)

    def run(self, overload: Overload, offered: float, looks: int) -> None:
        for _ in range(looks):
            cpu = 0.1  # seconds in a look; half of a message's cost is taking it, refusing costs a sixth of all
            take = min(offered, overload.limit) * 0.1
            refuse = offered * 0.1 - take
            cpu -= refuse / self.capacity / 6 + take / self.capacity / 2
            sent = min(self.queue + take, max(cpu, 0.01) * 2 * self.capacity)
            self.queue += take - sent
            self.taken.append(take / 0.1)
            self.queues.append(self.queue)
            wait_s = self.queue / max(sent / 0.1, 1.0)
            used = (take / 2 + sent / 2 + refuse / 6) / self.capacity / 0.1
            traffic = Traffic(take / 0.1, refuse / 0.1, sent / 0.1, used)
            overload._touched = refuse > 0.0
            overload.update(Load(queue_s=wait_s), traffic)


def test_at_twice_the_load_most_of_what_can_be_sent_is_taken_and_the_queue_stays_short() -> None:
    overload, machine = Overload(TARGETS, Clock()), Machine()
    machine.run(overload, offered=16_000.0, looks=600)
    settled = machine.taken[100:]
    assert sum(settled) / len(settled) > 0.6 * machine.capacity
    assert max(machine.queues[100:]) < machine.capacity  # a second's worth
    assert max(machine.queues) < 2 * machine.capacity


def test_it_recovers_at_once_when_the_load_ends() -> None:
    overload, machine = Overload(TARGETS, Clock()), Machine()
    machine.run(overload, offered=16_000.0, looks=300)
    machine.run(overload, offered=0.8 * machine.capacity, looks=30)
    assert machine.taken[310:] == [0.8 * machine.capacity] * 20  # a second later nobody is refused
    assert not overload.limited
    assert machine.queue == 0.0


# -- who ------------------------------------------------------------------------------------------


def test_strangers_get_what_the_limit_allows_and_451() -> None:
    overload, clock = overloaded()
    overload.limit = 100.0
    admitted = 0
    for _ in range(1000):
        clock.now += 0.001
        verdict = overload.admit_message(trusted=False)
        if isinstance(verdict, Reply):
            assert (verdict.code, verdict.enhanced, verdict.close) == (451, "4.4.5", False)
        else:
            assert verdict == 0.0
            admitted += 1
    assert 100 <= admitted <= 100 * (1 + BURST_S) + 1
    assert overload.shed["mail", "turn_s"] == 1000 - admitted


def test_clients_that_may_relay_wait_their_turn_and_go_first() -> None:
    overload, clock = overloaded()
    overload.limit = 10.0
    waits = [overload.admit_message(trusted=True) for _ in range(20)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(19 / 10.0 - BURST_S)
    assert isinstance(overload.admit_message(trusted=False), Reply)
    refusal = overload.check_connection(trusted=False)
    assert refusal is not None
    assert (refusal.code, refusal.enhanced, refusal.close) == (421, "4.3.2", True)
    assert overload.check_connection(trusted=True) is None
    clock.now += 3.0
    assert overload.check_connection(trusted=False) is None
    assert overload.admit_message(trusted=False) == 0.0


def test_nobody_waits_for_ever() -> None:
    overload, _ = overloaded()
    overload.limit = 10.0
    verdicts = [overload.admit_message(trusted=True) for _ in range(200)]
    waits = [verdict for verdict in verdicts if not isinstance(verdict, Reply)]
    assert max(waits) <= TURN_WAIT_S
    assert len(waits) < 200


# -- routes that are backed up --------------------------------------------------------------------


def test_backlog_has_hysteresis_and_knows_its_routes() -> None:
    backlog = Backlog(lambda mailbox: mailbox.rpartition("@")[2], 100.0)
    verdicts = []
    for wait_s in (99.0, 101.0, 60.0, 51.0, 49.0, 99.0, 101.0):
        backlog.update({"slow.test": wait_s, "other.test": 1.0})
        verdicts.append(backlog.check("a@slow.test") if backlog.full else None)
    full = replies.BACKED_UP
    assert verdicts == [None, full, full, full, None, None, full]
    assert (full.code, full.enhanced) == (450, "4.4.5")
    assert backlog.check("a@other.test") is None
    assert backlog.refused == 4
    backlog.update({})
    assert not backlog.full


def test_backlog_without_a_limit() -> None:
    backlog = Backlog(lambda mailbox: mailbox, 0.0)
    backlog.update({"a": 1e9})
    assert not backlog.full
