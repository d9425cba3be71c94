"""What the spool costs: CPU microseconds a message (whole process, writer thread included) and messages a second.

    python benches/bench_spool.py [DIRECTORY] [--seconds 0.5] [--settle]

Every cell keeps so many messages outstanding: when one is stored the next is committed.  The three ways to reach the
disk are measured in turn; what is printed depends on the file system of DIRECTORY (default: the current one).
The raw line is the floor: the same octets, one write and sync a group, by nothing but the writer thread.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import uvloop

from gateway._native import LogWriter
from gateway.config_model import SpoolConfig
from gateway.mail.envelope import Envelope, Recipient
from gateway.spool import segment as files
from gateway.spool.errors import SpoolError
from gateway.spool.message import Stored
from gateway.spool.record import RELAYED
from gateway.spool.spool import Spool

PREFIX = (
    b"Received: from client.example.org (client.example.org [192.0.2.1]) by mx.example.org\r\n" * 2
)
SIZES = (1024, 10240, 102400)
OUTSTANDING = (1, 10, 100)
METHODS = ("direct", "dsync", "fdatasync")


def envelope() -> Envelope:
    recipients = [Recipient("recipient@example.org")]
    return Envelope(
        "sender@example.org", recipients, time.time_ns(), client_address="192.0.2.1:4711"
    )


async def spool_cell(
    root: Path, method: str, size: int, outstanding: int, seconds: float, settle: bool
) -> str:
    settings = SpoolConfig(write_method=method, results_delay_s=0.005)
    spool = Spool(root, worker=0, settings=settings)
    spool.recover()
    loop = asyncio.get_running_loop()
    spool.attach(loop)
    content = b"0123456789abcde\n" * (size // 16)
    finished = loop.create_future()
    count = open_messages = 0
    end = 0.0

    def begin() -> None:
        nonlocal open_messages
        open_messages += 1
        spool.begin().commit(envelope(), PREFIX, content, done)

    def done(stored: Stored | None, error: SpoolError | None) -> None:
        nonlocal count, open_messages
        if stored is None:
            raise AssertionError(error)
        count += 1
        open_messages -= 1
        if settle:
            spool.settle(stored, 0, RELAYED)
        if time.perf_counter() < end:
            begin()
        elif not open_messages:
            finished.set_result(None)

    await asyncio.sleep(0.6)  # segments are being prepared
    end = time.perf_counter() + seconds
    started, cpu, writes = time.perf_counter(), time.process_time(), spool.log.writes
    for _ in range(outstanding):
        begin()
    await finished
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    groups = spool.log.writes - writes
    spool.close()
    return f"{count / elapsed:8.0f}/s {cpu / count * 1e6:6.1f} us {count / groups:5.1f}/write"


def raw_cell(root: Path, method: str, octets: int, seconds: float) -> str:
    """One record of so many octets a write, and nothing else."""
    root.mkdir()
    segment = files.Segment(root / "raw.log", 1, files.new_mark(), 64 * 1024 * 1024)
    files.create(segment, method, 0, fill=True)
    writer = LogWriter()
    payload = bytes(octets)
    count = 0
    cpu, started = time.process_time(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        if writer.room_octets < octets + 8192:
            writer.use_segment(
                segment.write_fd, 1, segment.mark, 4096, segment.limit, segment.method
            )
        writer.append(2, 1, None, payload)
        writer.drain()
        writer.completed()
        count += 1
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - started
    writer.close()
    files.remove(segment)
    return f"{count / elapsed:8.0f}/s {cpu / count * 1e6:6.1f} us"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="?", default=".")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument(
        "--settle", action="store_true", help="also record the result of every message"
    )
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="bench-spool-", dir=arguments.directory))
    try:
        for method in arguments.methods.split(","):
            for octets in (4000, 100_000):
                cell = raw_cell(base / f"raw-{method}-{octets}", method, octets, arguments.seconds)
                print(f"{method:10} raw {octets:7} octets a write      {cell}", flush=True)
            for size in SIZES:
                for outstanding in OUTSTANDING:
                    root = base / f"{method}-{size}-{outstanding}"
                    cell = uvloop.run(
                        spool_cell(
                            root, method, size, outstanding, arguments.seconds, arguments.settle
                        )
                    )
                    print(
                        f"{method:10} {size:7} octets, {outstanding:3} outstanding {cell}",
                        flush=True,
                    )
                    shutil.rmtree(root)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
