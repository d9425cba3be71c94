"""smtp_blaster/wire.pyx alone: a leg leaves in good order, however its socket went."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from pathlib import Path

import uvloop
from smtp_blaster.ledger_file import UNKNOWN, rows
from smtp_blaster.plan import Plan
from smtp_blaster.sink import Fault, Receipt, Sink, SinkPlan
from smtp_blaster.source import Source
from smtp_blaster.tally import Tally
from smtp_blaster.wire import Wire


class Listener:
    """A session, as a leg sees it."""

    def __init__(self) -> None:
        self.taken_over: list[tuple[int, list[bytes], bytes]] = []

    def take_over(self, index: int, sent_ns: int, rest: list[bytes], data: bytes) -> None:
        self.taken_over.append((index, rest, data))


def test_a_socket_that_was_closed_first_and_that_another_process_has_for_a_moment() -> None:
    """Its events still come, and find no leg that is gone and no object that took its place."""
    loop = asyncio.new_event_loop()
    wire = Wire(loop)
    ours, theirs = socket.socketpair()
    session = Listener()
    leg = wire.join(ours.fileno(), session, Tally())
    copy = os.dup(ours.fileno())  # between fork and exec a process has all
    ours.close()
    leg.end()
    assert session.taken_over == [(-1, [], b"")]
    del leg
    gc.collect()
    replaced = [loop.create_future() for _ in range(1000)]
    theirs.send(b"421 gone\r\n")
    wire._run()
    assert len(session.taken_over) == 1 and len(replaced) == 1000
    wire.close()
    os.close(copy)
    theirs.close()
    loop.close()


def test_a_leg_that_ends_within_its_transaction_says_where_it_stood() -> None:
    loop = asyncio.new_event_loop()
    wire = Wire(loop)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    session = Listener()
    leg = wire.join(ours.fileno(), session, Tally())
    leg.begin([b"MAIL FROM:<>\r\n", b"RCPT TO:<a@b>\r\n", b"DATA\r\n"], [b"x\r\n.\r\n"], False)
    assert theirs.recv(100) == b"MAIL FROM:<>\r\n"
    theirs.send(b"250 2.1.0 ok\r\n")
    wire._run()
    assert theirs.recv(100) == b"RCPT TO:<a@b>\r\n"
    theirs.send(b"450 4.2.1 later\r\n")
    wire._run()
    assert session.taken_over == [(1, [], b"450 4.2.1 later\r\n")]
    wire.close()
    for end in (ours, theirs):
        end.close()
    loop.close()


def test_a_connection_that_goes_while_a_leg_speaks_knows_what_that_sent(tmp_path: Path) -> None:
    """RFC 1047: the content was sent and nothing came back, so nobody knows."""
    receipts: list[Receipt] = []

    async def run() -> None:
        sink = Sink(SinkPlan(faults=(Fault.parse("content=silent"),)), receipts.append)
        await sink.start()
        source = Source(
            Plan(target=f"127.0.0.1:{sink.port}", messages=1, connections=1, ledger=str(tmp_path / "sent"))
        )
        running = asyncio.create_task(source.run())
        async with asyncio.timeout(60):
            while not receipts:
                await asyncio.sleep(0.01)
        for session in list(source._sessions):
            session.connection_lost(None)
        result = await running
        assert (result.accepted, result.broken) == (0, 1)
        await sink.stop()

    uvloop.run(run())
    assert [row[0] for row in rows(tmp_path / "sent")] == [UNKNOWN]
