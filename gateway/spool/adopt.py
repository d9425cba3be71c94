"""Partitions that no worker owns any more: their mail moves into the log of one that does.

Flow      lock → recover → (copy a batch, on disk → settle it in the old log, on disk)* → remove the old log
Limits    BATCH_OCTETS copied before they are made durable
Errors    SpoolLocked when a process still owns it; SpoolFull, SpoolError: what was not moved stays where it is
Blocking  yes; before serving
Bugs      a crash between the two syncs of a batch leaves its messages in both logs: the next adoption passes over
          those that the new log has
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from gateway.config_model import SpoolConfig
from gateway.spool.compact import Compactor
from gateway.spool.errors import SpoolCorrupt, SpoolError
from gateway.spool.log import Log
from gateway.spool.message import Stored
from gateway.spool.record import SETTLED, pack_numbers
from gateway.spool.recover import Recovery, recover_partition
from gateway.spool.segment import Segment, sync_directory

logger = logging.getLogger(__name__)

BATCH_OCTETS = 8 * 1024 * 1024


def orphan_partitions(root: Path, workers: int) -> list[Path]:
    """Partitions below root of workers that are not started any more."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.name.isdecimal() and int(path.name) >= workers]
    return sorted(path for path in found if path.is_dir())


def take_over(
    directory: Path,
    damaged: Path,
    settings: SpoolConfig,
    into: tuple[Log, Compactor],
    known: Callable[[int], bool],
) -> Recovery:
    """Move everything in directory (already locked) to the end of `into`; its messages are then stored there."""
    recovery = recover_partition(directory, damaged)
    order = {segment.path: segment.sequence for segment in recovery.segments}
    old = Log(directory, settings, lambda: recovery.clock)
    try:
        if recovery.messages:
            old.open(recovery.segments)
            _move(recovery, old, into, known)
        else:
            for segment in recovery.segments:
                segment.close()
    finally:
        old.close()
    order |= {segment.path: segment.sequence for segment in old.segments.values()}
    _remove_all(directory, order)
    return recovery


def _remove_all(directory: Path, order: dict[Path, int]) -> None:
    """Oldest first, each on disk before the next: what is left still says of all its messages that they are settled."""
    for path in sorted(directory.glob("*.log"), key=lambda path: order.get(path, 0)):
        path.unlink()
        sync_directory(directory)


def _move(
    recovery: Recovery, old: Log, into: tuple[Log, Compactor], known: Callable[[int], bool]
) -> None:
    log, compactor = into
    leaving = set(recovery.segments)
    moved: list[Stored] = []
    batch: list[Stored] = []
    octets = 0
    for stored in recovery.messages:
        if not known(stored.number):
            forget_states(stored, leaving)
            try:
                octets += sum(compactor.copy(stored, leaving))
            except SpoolCorrupt as error:
                raise SpoolError(f"{old.directory}: {error}") from error
            moved.append(stored)
        batch.append(stored)
        if octets >= BATCH_OCTETS:
            _make_durable(log, moved, leaving)
            _settle(batch, old)
            batch, octets = [], 0
    _make_durable(log, moved, leaving)
    _settle(batch, old)
    recovery.messages = moved
    recovery.segments = []


def forget_states(stored: Stored, leaving: set[Segment]) -> None:
    """Its state records stay behind: copy() writes them again."""
    stored.touched = ()
    for segment in leaving:
        segment.touched.discard(stored)


def _make_durable(log: Log, moved: list[Stored], leaving: set[Segment]) -> None:
    """What was moved so far is on disk in the new log.  SpoolError when one is not."""
    log.flush()
    log.drain()
    if log.trouble is not None:
        raise SpoolError(log.trouble)
    if any(stored.home in leaving for stored in moved):
        raise SpoolError(f"{log.directory}: a write failed")


def _settle(batch: list[Stored], old: Log) -> None:
    """The old log says that it is done with the batch."""
    failed: list[int] = []

    def written(error: int) -> None:
        if error:
            failed.append(error)

    old.append(SETTLED, 0, written, pack_numbers([stored.number for stored in batch]), reserve=True)
    old.flush()
    old.drain()
    if failed:
        raise SpoolError(f"{old.directory}: {os.strerror(failed[0])}")
