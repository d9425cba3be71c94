"""Guessing is slow, and hurts nobody but the guesser."""

from __future__ import annotations

import pytest

from gateway.config_accounts import AuthConfig
from gateway.policy.auth import Throttle, client_of

CONFIG = AuthConfig(failure_delay_s=2.0, failure_delay_max_s=15.0, failures_kept_s=900.0, wait_max_s=60.0)
ALICE, BOB = "alice@example.test", "bob@example.test"
EVIL, HOME = "192.0.2.66", "198.51.100.1"


@pytest.fixture
def throttle() -> Throttle:
    return Throttle(CONFIG)


def test_delays_double_up_to_the_longest(throttle: Throttle) -> None:
    delays = [throttle.failed(EVIL, ALICE, 1000.0 + i, b"%d" % i) for i in range(6)]
    assert delays == [2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_an_address_makes_one_guess_in_each_delay(throttle: Throttle) -> None:
    assert throttle.admit(EVIL, ALICE, 1000.0) == 0.0
    throttle.failed(EVIL, ALICE, 1000.0, b"a")  # free again at 1002
    waits = [throttle.admit(EVIL, f"user{i}@example.test", 1000.0) for i in range(4)]
    assert waits == [2.0, 4.0, 6.0, 8.0], "other accounts, the same queue"


def test_more_than_wait_max_is_refused_for_the_moment(throttle: Throttle) -> None:
    for i in range(4):
        throttle.failed(EVIL, ALICE, 1000.0, b"%d" % i)
    admitted = [throttle.admit(EVIL, ALICE, 1000.0) for _ in range(10)]
    assert admitted[:4] == [15.0, 30.0, 45.0, 60.0]
    assert set(admitted[4:]) == {None}
    assert throttle.admit(EVIL, ALICE, 1080.0) is not None, "later again"


def test_nobody_locks_another_out(throttle: Throttle) -> None:
    for i in range(1000):  # from everywhere, at one account
        throttle.failed(f"10.0.{i >> 8}.{i & 255}", ALICE, 1000.0, b"%d" % i)
    assert throttle.admit(HOME, ALICE, 1001.0) == 0.0, "the right password is looked at at once"
    throttle.succeeded(HOME, ALICE, 1001.0)
    assert throttle.admit(HOME, ALICE, 1002.0) == 0.0
    # Only whoever fails from elsewhere feels it: the first failure already costs the longest delay.
    assert throttle.failed("203.0.113.5", ALICE, 1003.0, b"x") == 15.0
    assert throttle.failed("203.0.113.6", BOB, 1003.0, b"x") == 2.0


def test_an_address_that_logged_in_before_is_not_hurt_by_its_neighbours(throttle: Throttle) -> None:
    throttle.succeeded(EVIL, ALICE, 900.0)
    for i in range(20):
        throttle.failed(EVIL, BOB, 1000.0 + i, b"%d" % i)
    assert throttle.admit(EVIL, ALICE, 1020.0) == 0.0
    assert throttle.admit(EVIL, BOB, 1020.0) != 0.0


def test_its_own_failures_still_slow_it_down(throttle: Throttle) -> None:
    throttle.succeeded(HOME, ALICE, 900.0)
    assert throttle.failed(HOME, ALICE, 1000.0, b"a") == 2.0
    assert throttle.failed(HOME, ALICE, 1000.0, b"b") == 4.0
    assert throttle.admit(HOME, ALICE, 1000.0) == 4.0
    throttle.succeeded(HOME, ALICE, 1004.0)
    assert throttle.admit(HOME, ALICE, 1004.0) == 0.0


def test_the_same_wrong_password_again_is_not_counted_again(throttle: Throttle) -> None:
    delays = {throttle.failed(HOME, ALICE, 1000.0 + 60 * i, b"old") for i in range(50)}
    assert delays == {2.0}


def test_success_does_not_wash_a_guesser_clean(throttle: Throttle) -> None:
    for i in range(5):
        throttle.failed(EVIL, ALICE, 1000.0, b"%d" % i)
    throttle.succeeded(EVIL, "evil@example.test", 1000.0)
    assert throttle.admit(EVIL, ALICE, 1001.0) == 14.0


def test_failures_are_forgotten(throttle: Throttle) -> None:
    for i in range(5):
        throttle.failed(EVIL, ALICE, 1000.0, b"%d" % i)
    assert throttle.admit(EVIL, ALICE, 1901.0) == 0.0
    assert throttle.failed(EVIL, ALICE, 1901.0, b"new") == 2.0


def test_an_ipv6_client_is_its_64(throttle: Throttle) -> None:
    for i in range(3):
        throttle.failed(f"2001:db8::{i}", ALICE, 1000.0, b"%d" % i)
    assert throttle.admit("2001:db8::ffff:1", ALICE, 1000.0) == 8.0
    assert throttle.admit("2001:db8:0:1::1", ALICE, 1000.0) == 0.0
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1")
    assert client_of("fe80::1%eth0") == "fe80::/64"
    assert client_of("") == "unix"


def test_the_tables_are_bounded() -> None:
    throttle = Throttle(AuthConfig(failures_max=100))
    for i in range(5000):
        throttle.failed(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", f"u{i}@x.test", 1000.0 + i, b"a")
        throttle.succeeded(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", f"v{i}@x.test", 1000.0 + i)
    assert throttle.entries() <= 300
    assert len(throttle._known) <= 100
