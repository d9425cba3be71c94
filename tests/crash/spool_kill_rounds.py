"""Rounds of test_spool_kill.py, run with faults.c preloaded: fork, accept until killed, recover, compare.

    spool_kill_rounds.py DIRECTORY ROUNDS SEED

The next victim goes on with what was found.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from faults import WHENS, Control, open_control
from spool_victim import OUTSTANDING, Promises, contents, serial_of, victim

from gateway.spool.recover import recover_partition


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
            victim(
                root,
                lambda line: os.write(writer, line + b"\n"),
                method=method,
                serial=serial,
                seed=seed,
            )
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

    promises = Promises(model)
    promises.hear(bytes(told).splitlines())
    recovery = recover_partition(root / "0", root / "damaged")
    found = contents(recovery)
    for segment in recovery.segments:
        segment.close()
    promises.judge(found)
    promises.judge_ids(recovery.clock)
    model.clear()
    model.update(found)
    highest = max([serial, promises.serial, *(serial_of(content) for content in found.values())])
    return highest + OUTSTANDING + 1  # numbers of messages that were under way are not used again


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
        print(number, flush=True)


if __name__ == "__main__":
    main()
