"""net/egress.py: turns, families, and what happens while addresses come and go."""

import asyncio
import logging
import socket

import pytest

from gateway.net.egress import Egress, EgressPool, missing
from gateway.net.netlink import Netlink

V4, V6 = socket.AF_INET, socket.AF_INET6


def test_addresses_take_turns_by_family() -> None:
    pool = EgressPool(["192.0.2.1", "2001:DB8::0:1", "192.0.2.2"])
    assert [pool.next(V4) for _ in range(4)] == ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2"]
    assert [pool.next(V6) for _ in range(2)] == ["2001:db8::1", "2001:db8::1"]
    assert pool.next(socket.AF_UNIX) is None


def test_an_address_that_is_down_is_left_out_and_comes_back() -> None:
    pool = EgressPool(["192.0.2.1", "192.0.2.2", "2001:db8::1"])
    pool.set_up(frozenset({"192.0.2.2", "198.51.100.1"}))
    assert {pool.next(V4) for _ in range(4)} == {"192.0.2.2"}
    assert pool.next(V6) is None
    pool.set_up(frozenset())
    assert pool.next(V4) is None
    pool.set_up(frozenset(pool.addresses))
    assert {pool.next(V4) for _ in range(4)} == {"192.0.2.1", "192.0.2.2"}
    assert pool.next(V6) == "2001:db8::1"


def test_an_address_given_twice_has_twice_the_share() -> None:
    pool = EgressPool(["192.0.2.1", "192.0.2.1", "192.0.2.2"])
    turns = [pool.next(V4) for _ in range(9)]
    assert turns.count("192.0.2.1") == 6


def test_all_of_loopback_is_ours() -> None:
    pool = EgressPool(["127.0.0.2", "192.0.2.1"])
    pool.set_up(frozenset({"127.0.0.1"}))
    assert pool.next(V4) == "127.0.0.2"
    assert missing(["127.9.9.9", "192.0.2.1"], frozenset()) == ["192.0.2.1"]


def test_no_address() -> None:
    with pytest.raises(ValueError):
        EgressPool(["mx.example.org"])


def test_routes_with_the_same_addresses_share_a_pool() -> None:
    asker = Netlink()
    egress = Egress(asker)
    assert egress.pool([]) is None
    assert egress.pool(["192.0.2.1"]) is egress.pool(("192.0.2.1",))
    asker.close()


def test_changes_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    asker = Netlink()
    egress = Egress(asker)
    egress.pool(["192.0.2.1", "192.0.2.2"])
    with caplog.at_level(logging.WARNING):
        for up in ({"192.0.2.1"}, {"192.0.2.1", "::1"}, {"192.0.2.1", "192.0.2.2"}):
            egress._set_up(frozenset(up))
    assert [record.message for record in caplog.records] == [
        "source address 192.0.2.2 is not up: left out",
        "source address 192.0.2.2 is up again",
    ]
    asker.close()


def test_unwatched_addresses_are_all_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise OSError("no netlink here")

    monkeypatch.setattr(Netlink, "_addresses", broken)
    asker = Netlink()
    egress = Egress(asker)
    pool = egress.pool(["192.0.2.1"])
    assert pool is not None
    with caplog.at_level(logging.WARNING):
        asyncio.run(egress.start())
    assert pool.next(V4) == "192.0.2.1"
    assert "not watched" in caplog.text
    egress.close()
    asker.close()


def test_the_first_pool_may_come_after_the_start() -> None:
    async def main() -> None:
        asker = Netlink()
        egress = Egress(asker)
        await egress.start()
        pool = egress.pool(["127.0.0.1", "192.0.2.77"])
        assert pool is not None
        while not egress.down:
            await asyncio.sleep(0.01)
        assert egress.down == {"192.0.2.77"}
        assert {pool.next(V4) for _ in range(4)} == {"127.0.0.1"}
        egress.close()
        asker.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_what_gateway_check_lists() -> None:
    up = frozenset({"192.0.2.1", "2001:db8::1"})
    assert missing(["192.0.2.1", "2001:DB8::1", "192.0.2.9"], up) == ["192.0.2.9"]
