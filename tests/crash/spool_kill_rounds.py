"""Rounds of test_spool_kill.py, run with faults.c preloaded: fork, accept until killed, recover, compare.

    spool_kill_rounds.py DIRECTORY ROUNDS SEED

A victim tells through a pipe, one line each, what it acknowledged ("A serial id") and what it is about to settle
("S id"); the content of a message follows from its serial.  After every death what was acknowledged and not settled
must be there, unaltered and once.  The next victim goes on with what was found.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

from faults import WHENS, Control, open_control
from msgspec import structs
from spool_rig import SMALL, make_envelope

from gateway.spool.message import Body
from gateway.spool.record import RELAYED
from gateway.spool.recover import recover_partition
from gateway.spool.spool import Spool, SpoolError, Stored

SETTINGS = structs.replace(SMALL, segment_octets=64 * 1024, compact_below=0.5)
OUTSTANDING = 6


def content_of(serial: int) -> bytes:
    chooser = random.Random(serial)
    size = chooser.choice((0, 10, 900, 3000, 9000, 25_000))
    return b"serial %d\n" % serial + chooser.randbytes(size)


def victim(root: Path, tell: int, method: str, serial: int, seed: int) -> None:
    """Accept and settle until something kills us."""
    chooser = random.Random(seed)
    spool = Spool(root, worker=0, settings=structs.replace(SETTINGS, write_method=method))
    alive = spool.recover().messages
    loop = asyncio.new_event_loop()
    spool.attach(loop)

    def settle(stored: Stored) -> None:
        os.write(tell, b"S %s\n" % stored.queue_id.encode())
        spool.settle(stored, 0, RELAYED)

    def begin() -> None:
        nonlocal serial
        serial += 1
        mine = serial

        def done(stored: Stored | None, error: SpoolError | None) -> None:
            if stored is not None:
                os.write(tell, b"A %d %s\n" % (mine, stored.queue_id.encode()))
                alive.append(stored)
            while len(alive) > 12 or (alive and chooser.random() < 0.6):
                settle(alive.pop(chooser.randrange(len(alive))))
            loop.call_later(chooser.random() * 0.002, begin)

        content = content_of(mine)
        incoming = spool.begin()
        if len(content) > SETTINGS.chunk_octets:
            incoming.append(content[:9000])
            content = content[9000:]
        incoming.commit(make_envelope(), b"", content, done)

    for _ in range(OUTSTANDING):
        begin()
    loop.run_forever()


def run_round(
    root: Path, control: Control, chooser: random.Random, model: dict[str, bytes], serial: int
) -> int:
    reader, writer = os.pipe()
    method = chooser.choice(("direct", "dsync", "fdatasync"))
    control.clear()
    by_call = chooser.random() < 0.7
    if by_call:
        control.arm("any", chooser.choice(WHENS), countdown=chooser.randrange(1, 120))
    control.short_octets = chooser.choice((0, 0, 6000))
    seed = chooser.randrange(1 << 30)
    pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            victim(root, writer, method, serial, seed)
        finally:
            os._exit(1)
    os.close(writer)
    if not by_call:
        time.sleep(chooser.random() * 0.15)
        os.kill(pid, signal.SIGKILL)
    told = bytearray()
    while piece := os.read(reader, 65536):
        told += piece
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (
        f"victim ended by itself: {status}"
    )
    control.clear()

    maybe: set[str] = set()  # being settled
    for line in told.decode().splitlines():
        kind, *fields = line.split()
        if kind == "A":
            assert fields[1] not in model, f"{fields[1]} was given out twice"
            model[fields[1]] = content_of(int(fields[0]))
            serial = max(serial, int(fields[0]))
        else:
            maybe.add(fields[0])
    recovery = recover_partition(root / "0", root / "damaged")
    assert not any(d.acknowledged for d in recovery.damaged), recovery.damaged
    found: dict[str, bytes] = {}
    for message in recovery.messages:
        assert message.queue_id not in found
        found[message.queue_id] = b"".join(Body(message, _never).slices())
    for segment in recovery.segments:
        segment.close()
    for queue_id, content in model.items():
        if queue_id in found:
            assert found[queue_id] == content, f"{queue_id} was altered"
        else:
            assert queue_id in maybe, f"{queue_id} was acknowledged and is lost"
    serials = [content.split(b"\n", 1)[0] for content in found.values()]
    assert len(set(serials)) == len(serials), "a message is there twice"
    for name in serials:
        serial = max(serial, int(name.split()[1]))
    model.clear()
    model.update(found)
    return serial + OUTSTANDING + 1  # numbers of messages that were under way are not used again


def _never(stored: Stored, error: Exception) -> None:
    raise AssertionError(f"{stored}: {error}")


def main() -> None:
    root, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    control = open_control(Path(os.environ["FAULT_CONTROL"]))
    chooser = random.Random(seed)
    model: dict[str, bytes] = {}
    serial = 0
    for number in range(rounds):
        try:
            serial = run_round(root, control, chooser, model, serial)
        except Exception:
            print(f"round {number} of seed {seed}", file=sys.stderr)
            raise
    print(f"{rounds} rounds, {serial} messages")


if __name__ == "__main__":
    main()
