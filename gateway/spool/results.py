"""What became of recipients, on its way into the log.

Flow      settle, update → (next group, or results_delay_s) → RESULT, UPDATE, SETTLED records → on disk
Limits    one record a message and group however often it changed; SETTLED of all messages share one
Errors    what could not be written is kept and written when the disk works again
Blocking  never
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway.spool.compact import touch
from gateway.spool.errors import SpoolError
from gateway.spool.log import Log
from gateway.spool.message import Stored
from gateway.spool.record import (
    PENDING,
    RESULT,
    SETTLED,
    UPDATE,
    pack_numbers,
    pack_results,
    pack_update,
)
from gateway.spool.segment import Segment

logger = logging.getLogger(__name__)

NUMBERS_A_RECORD = 1024  # they are buried in one turn of the loop: about 3 ms


class Results:
    """Changes that are not on disk yet.  A lost one means a delivery that is tried again, never one left out."""

    def __init__(self, log: Log, on_settled: Callable[[Stored, Segment], None]) -> None:
        self._log = log
        self._on_settled = (
            on_settled  # the SETTLED record of the message is on disk, in that segment
        )
        self._dirty: dict[Stored, set[int]] = {}
        self._updated: dict[Stored, None] = {}
        self._settled: list[Stored] = []

    def __len__(self) -> int:
        return len(self._dirty) + len(self._updated) + len(self._settled)

    def settle(self, stored: Stored, index: int, state: int, detail: bytes) -> bool:
        """True when that was the last recipient.  A final state stays as it is."""
        if stored.states[index] != PENDING:
            return False
        if state != PENDING:
            stored.states[index] = state
            stored.unsettled -= 1
            if not stored.unsettled:
                if self._dirty:
                    self._dirty.pop(stored, None)
                if self._updated:
                    self._updated.pop(stored, None)
                self._settled.append(stored)
                return True
        if detail:
            stored.details[index] = detail
        self._dirty.setdefault(stored, set()).add(index)
        return False

    def update(self, stored: Stored) -> None:
        self._updated[stored] = None

    def write(self) -> None:
        """Append everything that changed since the last call to the group about to be written."""
        if self._log.trouble is not None:
            return  # called again when the disk works
        try:
            while self._settled:
                batch = self._settled[:NUMBERS_A_RECORD]
                del self._settled[:NUMBERS_A_RECORD]
                self._write_settled(batch)
            while self._dirty:
                stored, indices = self._dirty.popitem()
                self._write_results(stored, indices)
            while self._updated:
                stored, _ = self._updated.popitem()
                self._write_update(stored)
        except SpoolError as error:
            logger.error("spool: results cannot be recorded: %s", error)

    def _write_settled(self, batch: list[Stored]) -> None:
        def written(error: int) -> None:
            if error:
                self._settled.extend(batch)
                return
            for stored in batch:
                self._on_settled(stored, segment)

        payload = pack_numbers([stored.number for stored in batch])
        try:
            segment, _ = self._log.append(SETTLED, 0, written, payload, reserve=True)
        except SpoolError:
            self._settled.extend(batch)
            raise

    def _write_results(self, stored: Stored, indices: set[int]) -> None:
        def put_back() -> None:
            if stored.unsettled:
                self._dirty.setdefault(stored, set()).update(indices)

        results = [(i, stored.states[i], stored.details.get(i, b"")) for i in sorted(indices)]
        self._write(RESULT, stored, pack_results(results), put_back)

    def _write_update(self, stored: Stored) -> None:
        def put_back() -> None:
            if stored.unsettled:
                self._updated[stored] = None

        self._write(UPDATE, stored, pack_update(stored.update), put_back)

    def _write(
        self, kind: int, stored: Stored, payload: bytes, put_back: Callable[[], None]
    ) -> None:
        def written(error: int) -> None:
            if error:
                put_back()

        try:
            segment, _ = self._log.append(kind, stored.number, written, payload, reserve=True)
        except SpoolError:
            put_back()
            raise
        touch(stored, segment)
