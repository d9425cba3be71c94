"""smtp_blaster/wire.pyx alone: a leg leaves in good order, however its socket went."""

from __future__ import annotations

import asyncio
import gc
import os
import socket

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
