"""A spool with a loop of its own, for tests that read from top to bottom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from gateway.config_model import SpoolConfig
from gateway.mail.envelope import Envelope, Facts, Recipient
from gateway.spool.recover import Recovery
from gateway.spool.spool import Spool, SpoolError, Stored

SMALL = SpoolConfig(
    segment_octets=128 * 1024,
    chunk_octets=8 * 1024,
    group_octets=32 * 1024,
    message_pending_octets=32 * 1024,
    pending_octets=256 * 1024,
    memory_octets=64 * 1024,
    min_free_octets=0,
    results_delay_s=0.001,
    probe_interval_s=0.05,
)


def make_envelope(recipients: int = 1, durability: str = "fsync") -> Envelope:
    forward_paths = [Recipient(f"r{i}@example.org") for i in range(recipients)]
    return Envelope(
        "s@example.org",
        forward_paths,
        time.time_ns(),
        message_id="<1@example.org>",
        durability=durability,
        facts=Facts(5),
    )


class Rig:
    """One spool at a time on a private loop; every method runs the loop as long as it needs."""

    def __init__(self, root: Path, settings: SpoolConfig = SMALL, worker: int = 0) -> None:
        self.root = root
        self.settings = settings
        self.worker = worker
        self.loop = asyncio.new_event_loop()
        self.health: list[str | None] = []
        self.spool: Spool = None  # type: ignore[assignment]

    def open(self) -> Recovery:
        self.spool = Spool(
            self.root, worker=self.worker, settings=self.settings, on_health=self.health.append
        )
        recovery = self.spool.recover()
        self.spool.attach(self.loop)
        return recovery

    def close(self) -> None:
        if self.spool is not None:
            self.spool.close()
            self.spool = None  # type: ignore[assignment]

    def reopen(self) -> Recovery:
        self.close()
        return self.open()

    def end(self) -> None:
        self.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        """Run the loop until the condition holds; the bound only ends a test that hangs."""

        async def wait() -> None:
            end = time.monotonic() + seconds
            while not condition():
                assert time.monotonic() < end, "condition never held"
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(wait())

    def settle_down(self) -> None:
        """Run until nothing is on its way to the disk and no segment is being prepared or compacted."""
        self.until(lambda: not self.spool.busy)

    def commit(
        self,
        content: bytes | None = b"content\r\n",
        *,
        prefix: bytes = b"Received: here\r\n",
        recipients: int = 1,
        durability: str = "fsync",
        pieces: list[bytes] | None = None,
    ) -> tuple[Stored | None, SpoolError | None]:
        incoming = self.spool.begin()
        for piece in pieces or []:
            if not incoming.append(piece):
                resumed: list[bool] = []
                incoming.on_drain = lambda resumed=resumed: resumed.append(True)
                self.until(lambda resumed=resumed: resumed)
        told: list[tuple[Stored | None, SpoolError | None]] = []
        incoming.commit(
            make_envelope(recipients, durability),
            prefix,
            content,
            lambda *result: told.append(result),
        )
        assert not told, "done() is called later, never from commit()"
        self.until(lambda: told)
        self.loop.run_until_complete(asyncio.sleep(0))
        assert len(told) == 1
        return told[0]

    def store(self, content: bytes | None = b"content\r\n", **more: object) -> Stored:
        stored, error = self.commit(content, **more)  # type: ignore[arg-type]
        assert error is None and stored is not None, error
        return stored

    def read(self, stored: Stored) -> bytes:
        return b"".join(self.spool.body(stored).slices())
