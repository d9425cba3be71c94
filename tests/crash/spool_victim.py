"""A spool under load until something kills it, and what must be true of it afterwards.

    spool_victim.py DIRECTORY METHOD SERIAL SEED MESSAGES [adopt] [fail]     (recorded by power_campaign.py)

Owns      victim() (accepts and settles for ever, telling what it does), Promises (what was told, against what is found)
Standards RFC 5321 §6.1

A victim tells, one line each, what it acknowledged ("A serial id"), what it is about to settle ("S id") and of what
that is on disk ("D id"); the content of a message follows from its serial.  What was acknowledged and not about to be
settled must be there, unaltered and once; what is settled on disk must not; what was never acknowledged may be there,
but whole.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import powerloss
from faults import open_control
from msgspec import structs
from spool_rig import SMALL, make_envelope

from gateway.spool.message import Body
from gateway.spool.record import RELAYED, WORKER_BITS, decode_number
from gateway.spool.recover import Recovery
from gateway.spool.spool import Spool, SpoolError, Stored

SETTINGS = structs.replace(SMALL, segment_octets=64 * 1024, compact_below=0.5)
OUTSTANDING = 6
SIZES = (0, 10, 900, 3000, 9000, 25_000)


def content_of(serial: int) -> bytes:
    chooser = random.Random(serial)
    size = chooser.choice(SIZES)
    return b"serial %d\n" % serial + chooser.randbytes(size)


def serial_of(content: bytes) -> int:
    return int(content.split(b"\n", 1)[0].split()[1])


def victim(
    root: Path,
    tell: Callable[[bytes], object],
    *,
    method: str,
    serial: int,
    seed: int,
    messages: int = 0,
    adopt: bool = False,
    at_half: Callable[[], None] = lambda: None,
) -> None:
    """Accept and settle until something kills us, or until so many messages were begun (at_half: half of them)."""
    chooser = random.Random(seed)
    spool = Spool(root, worker=0, settings=structs.replace(SETTINGS, write_method=method))
    alive = spool.recover().messages
    if adopt:
        alive = [*alive, *spool.adopt(root / "1").messages]
    loop = asyncio.new_event_loop()
    spool.attach(loop)
    forget = spool.forget

    def forgotten(stored: Stored) -> None:
        if not stored.unsettled:
            tell(b"D %s" % stored.queue_id.encode())
        forget(stored)

    spool.forget = forgotten  # type: ignore[method-assign]
    last = serial + messages
    outstanding = 0

    def settle(stored: Stored) -> None:
        tell(b"S %s" % stored.queue_id.encode())
        spool.settle(stored, 0, RELAYED)

    def begin() -> None:
        nonlocal serial, outstanding
        if messages and serial >= last:
            if not outstanding:
                loop.call_later(0.02, loop.stop)
            return
        serial += 1
        outstanding += 1
        mine = serial
        if messages and mine == last - messages // 2:
            at_half()

        def done(stored: Stored | None, error: SpoolError | None) -> None:
            nonlocal outstanding
            outstanding -= 1
            if stored is not None:
                tell(b"A %d %s" % (mine, stored.queue_id.encode()))
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
    spool.close()
    loop.close()


class Promises:
    """id → content of what must be there."""

    def __init__(self, model: dict[str, bytes] | None = None) -> None:
        self.model = dict(model or {})
        self.released: set[str] = set()  # may be gone: they are being settled
        self.gone: set[str] = set()  # settled on disk
        self.serial = 0  # highest told

    def hear(self, lines: Iterable[bytes]) -> None:
        """What a victim told."""
        for line in lines:
            kind, *fields = line.decode().split()
            if kind == "A":
                assert fields[1] not in self.model, f"{fields[1]} was given out twice"
                self.model[fields[1]] = content_of(int(fields[0]))
                self.serial = max(self.serial, int(fields[0]))
            else:
                (self.released if kind == "S" else self.gone).add(fields[0])

    def release(self, lines: Iterable[bytes]) -> None:
        """Hear only of what may be gone."""
        self.released.update(line.decode().split()[1] for line in lines if line[:1] == b"S")

    def judge(self, found: dict[str, bytes]) -> None:
        """AssertionError when something is lost, altered, half there or there twice."""
        for queue_id, content in self.model.items():
            if queue_id in found:
                assert found[queue_id] == content, f"{queue_id} was altered"
            else:
                assert queue_id in self.released, f"{queue_id} was acknowledged and is lost"
        again = self.gone & found.keys()
        assert not again, f"{again} came back though all of them were settled"
        serials = [serial_of(content) for content in found.values()]
        assert len(set(serials)) == len(serials), "a message is there twice"
        for queue_id, content in found.items():
            assert content == content_of(serial_of(content)), f"{queue_id} is there by half"

    def judge_ids(self, clock: int) -> None:
        """Ids that were promised once are never given out again, whatever the wall clock says."""
        highest = max((decode_number(i) >> WORKER_BITS for i in self.model), default=0)
        assert clock >= highest, "an id would be given out twice when the clock is set back"


def contents(recovery: Recovery, *, failed: bool = False) -> dict[str, bytes]:
    """id → content of everything recovered.  failed: after a failed write alarms may be false (Damage.acknowledged)."""
    assert failed or not any(damage.acknowledged for damage in recovery.damaged), recovery.damaged
    found: dict[str, bytes] = {}
    for message in recovery.messages:
        assert message.queue_id not in found
        found[message.queue_id] = b"".join(Body(message, _never).slices())
    return found


def main() -> None:
    root, method, serial, seed, messages, *how = sys.argv[1:]

    def fail() -> None:
        if "fail" in how:  # one sync or write; what it left on the disk nobody knows
            control = open_control(Path(os.environ["FAULT_CONTROL"]))
            name = "sync" if method == "fdatasync" else "write"
            setattr(control, f"{name}_count", 1)
            setattr(control, f"{name}_errno", errno.EIO)

    victim(
        Path(root),
        powerloss.tell,
        method=method,
        serial=int(serial),
        seed=int(seed),
        messages=int(messages),
        adopt="adopt" in how,
        at_half=fail,
    )


def _never(stored: Stored, error: Exception) -> None:
    raise AssertionError(f"{stored}: {error}")


if __name__ == "__main__":
    main()
