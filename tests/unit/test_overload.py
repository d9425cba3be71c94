"""policy/overload.py: thresholds, their hysteresis, and that "never" is never."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.mail import replies
from gateway.policy.overload import CALM, Gauges, Overload, judge

LIMITS = Gauges(accept_queue=0.8, memory=1.0, loop_lag_s=2.0)


def test_each_gauge_sheds_at_its_threshold() -> None:
    assert judge(Gauges(0.79, 0.99, 1.99), LIMITS, False) == ""
    assert judge(Gauges(accept_queue=0.8), LIMITS, False) == "accept_queue"
    assert judge(Gauges(memory=1.0), LIMITS, False) == "memory"
    assert judge(Gauges(loop_lag_s=2.0), LIMITS, False) == "loop_lag_s"


def test_shedding_goes_on_until_all_is_calm() -> None:
    gauges = Gauges()
    overload = Overload(lambda: gauges, LIMITS)
    verdicts = []
    for level in (0.7, 0.8, 0.5, 0.4, 0.39, 0.7, 0.8):
        gauges = Gauges(accept_queue=level)
        verdicts.append(overload.check() is not None)
    assert verdicts == [False, True, True, True, False, False, True]
    assert overload.shed_total == 4
    assert overload.reason == "accept_queue"


def test_another_gauge_can_prolong_it() -> None:
    gauges = Gauges(accept_queue=0.9)
    overload = Overload(lambda: gauges, LIMITS)
    assert overload.check() is replies.TOO_BUSY
    gauges = Gauges(memory=0.6)
    assert overload.check() is replies.TOO_BUSY
    gauges = Gauges(memory=0.4)
    assert overload.check() is None


def test_the_reply_closes_and_is_transient() -> None:
    assert replies.TOO_BUSY.code == 421
    assert replies.TOO_BUSY.enhanced == "4.3.2"
    assert replies.TOO_BUSY.close


levels = st.floats(0, 10, allow_nan=False)
gauges_of_any_level = st.builds(Gauges, levels, levels, levels)


@given(gauges_of_any_level, st.booleans())
def test_zero_means_never(gauges: Gauges, shedding: bool) -> None:
    assert judge(gauges, Gauges(), shedding) == ""


@given(gauges_of_any_level, gauges_of_any_level)
def test_whoever_sheds_at_first_sheds_while_shedding(gauges: Gauges, limits: Gauges) -> None:
    assert 0 < CALM < 1
    if judge(gauges, limits, False):
        assert judge(gauges, limits, True)
