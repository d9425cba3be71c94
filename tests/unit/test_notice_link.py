"""Change notices go from worker to worker, and from a command to all of them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from gateway.notice_link import NoticeLink, send_notices
from gateway.store.model import NEVER, Notice
from gateway.store.notices import Notices, encode_notices


def test_every_other_worker_hears_of_a_change(tmp_path: Path) -> None:
    async def run() -> None:
        links = [NoticeLink(tmp_path / "control", worker, 3) for worker in range(3)]
        notices = [Notices(link.send) for link in links]
        told: list[list[Notice]] = [[], [], []]
        for link, ours, heard in zip(links, notices, told, strict=True):
            link.open(ours.receive)
            ours.subscribe("a@x", heard.append)
        notices[0].publish([Notice("a@x", 1, 5), Notice("b@x", 1, 5)])
        await asyncio.sleep(0.05)
        assert told == [[Notice("a@x", 1, 5)]] * 3
        links[2].close()  # a worker that died: nobody waits for it
        notices[0].publish([Notice("a@x", 2, 6)])
        send_notices(tmp_path / "control", encode_notices([Notice("a@x", 0, 0)]))
        await asyncio.sleep(0.05)
        assert told[1][1:] == [Notice("a@x", 2, 6), Notice("a@x", 0, 0)]
        assert len(told[2]) == 1
        links[2].open(notices[2].receive)  # and came back
        notices[1].publish([Notice("a@x", 3, 7)])
        await asyncio.sleep(0.05)
        assert told[2][-1] == Notice("a@x", 3, 7)
        for link in links:
            link.close()

    asyncio.run(run())


def test_a_worker_that_does_not_read_delays_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        reader = NoticeLink(tmp_path, 1, 2)
        reader.open(lambda _: None)
        sender = NoticeLink(tmp_path, 0, 2)
        sender.open(lambda _: None)
        for _ in range(5000):  # the loop does not turn meanwhile: nobody reads
            sender.send(b"x" * 1000)
        reader.close()
        sender.close()

    asyncio.run(run())


def test_who_missed_something_is_told_so(tmp_path: Path) -> None:
    async def run() -> None:
        sender, reader = (NoticeLink(tmp_path, worker, 2) for worker in range(2))
        heard: list[Notice] = []
        notices = Notices()
        notices.subscribe("a@x", heard.append)
        reader.open(notices.receive)
        sender.open(lambda _: None)
        (payload,) = encode_notices([Notice("b@x", 1, 1)])
        for _ in range(5000):  # more than the socket takes
            sender.send(payload)
        end = time.monotonic() + 60
        while not heard:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        assert heard == [Notice("a@x", 0, NEVER)]
        reader.close()
        sender.close()

    asyncio.run(run())
