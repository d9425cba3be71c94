"""A message in the spool: its envelope, the state of every recipient, and where its octets are.

Owns      Stored, Body
Limits    Body.slices() of a message that is not in memory reads all of it; chunks() never holds more than a piece
Errors    SpoolCorrupt when octets read back are not those written; SpoolError when they cannot be read
Blocking  reading a body that is not in memory waits for the disk
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from gateway.mail.envelope import Envelope, unpack

from .record import EXTENT, LENGTHS, PENDING, Update

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .segment import Segment


Extent = tuple["Segment", int, int]  # offset of the record, length of its payload


class Stored:
    """One accepted message.  Fields above the line are the scheduler's to read; it sets what update() is for."""

    __slots__ = (
        "attempts",
        "content",
        "counted",
        "details",
        "envelope",
        "extents",
        "ghosts",
        "held",
        "home",
        "kept_octets",
        "next_attempt_at",
        "number",
        "prefix",
        "priority",
        "queue_id",
        "route",
        "size_octets",
        "states",
        "touched",
        "unsettled",
        "written",
    )

    def __init__(self, number: int, queue_id: str, envelope: Envelope, size_octets: int) -> None:
        count = len(envelope.recipients)
        self.number = number
        self.queue_id = queue_id
        self.envelope = envelope
        self.size_octets = size_octets  # prefix and content
        self.states = bytearray(
            count
        )  # PENDING, DELIVERED ... of each recipient: Spool.settle() sets them
        self.unsettled = count  # how many are PENDING
        self.attempts = [0] * count  # yours; kept by Spool.update()
        self.next_attempt_at = 0  # ns UTC, 0 = at once; yours
        self.held = False  # yours
        self.priority = 0  # yours
        self.route = ""  # next hop that replaces the routes' (reroute); yours
        self.details: dict[int, bytes] = {}  # last detail given to settle(), by recipient
        # ------------------------------------------------------------------------------------------------------------
        self.home: Extent  # the MESSAGE or END record
        self.extents: tuple[Extent, ...] = ()  # CHUNK records; empty for a MESSAGE
        self.ghosts: tuple[
            Segment, ...
        ] = ()  # segments with an older copy (a crash interrupted its compaction)
        self.touched: set[Segment] = set()  # segments with state records of it
        self.prefix: bytes | None = None  # in memory, with content; else to be read from home
        self.content: list[Buffer] | None = None
        self.kept_octets = 0  # what of it counts against memory_octets
        self.counted = False  # in live and live_octets of its segments
        self.written = False  # home is on disk

    @property
    def update(self) -> Update:
        return Update(self.next_attempt_at, self.held, self.priority, self.route, self.attempts)

    def segments(self) -> set[Segment]:
        """Every segment that holds octets of it."""
        return {self.home[0], *(extent[0] for extent in self.extents)}

    def is_default(self) -> bool:
        """True when no state record is needed to restore it."""
        return not (
            self.details
            or self.held
            or self.priority
            or self.route
            or self.next_attempt_at
            or any(self.attempts)
            or self.unsettled < len(self.states)
        )

    def __repr__(self) -> str:
        return f"<Stored {self.queue_id} {self.unsettled}/{len(self.states)} pending, {self.size_octets} octets>"


class Body:
    """The octets of a message as it is sent on: our prefix, then the content."""

    __slots__ = ("_on_damage", "_stored", "size")

    def __init__(self, stored: Stored, on_damage: Callable[[Stored, Exception], None]) -> None:
        self._stored = stored
        self._on_damage = on_damage
        self.size = stored.size_octets

    @property
    def in_memory(self) -> bool:
        """True when slices() does not wait for the disk."""
        return self._stored.content is not None

    def slices(self) -> list[memoryview]:
        """All of it, without copies when it is in memory."""
        return list(self._pieces())

    def chunks(self, size: int = 256 * 1024) -> Iterator[memoryview]:
        """All of it in order, never more than size octets at once."""
        for piece in self._pieces():
            for start in range(0, len(piece), size):
                yield piece[start : start + size]

    def _pieces(self) -> Iterator[memoryview]:
        stored = self._stored
        if stored.content is not None:
            for buffer in (stored.prefix or b"", *stored.content):
                view = memoryview(buffer)
                if len(view) > 0:
                    yield view
            return
        try:
            segment, offset, length = stored.home
            _, prefix, content = split_message(segment.read_record(offset, length, stored.queue_id))
            if len(prefix):
                yield prefix
            if not stored.extents:
                if len(content):
                    yield content
                return
            # By index: compaction may move the pieces while a slow next hop takes them.
            for i in range(len(stored.extents)):
                segment, offset, length = stored.extents[i]
                yield segment.read_record(offset, length, stored.queue_id)
        except Exception as error:
            self._on_damage(stored, error)
            raise


def split_message(payload: memoryview) -> tuple[memoryview, memoryview, memoryview]:
    """envelope, prefix and the rest of the payload of a MESSAGE or END record.  ValueError when they do not fit."""
    if len(payload) < LENGTHS.size:
        raise ValueError("payload is too short")
    envelope_octets, prefix_octets = LENGTHS.unpack_from(payload)
    envelope_end = LENGTHS.size + envelope_octets
    prefix_end = envelope_end + prefix_octets
    if prefix_end > len(payload):
        raise ValueError("lengths exceed the payload")
    return (
        payload[LENGTHS.size : envelope_end],
        payload[envelope_end:prefix_end],
        payload[prefix_end:],
    )


def read_envelope(payload: memoryview) -> tuple[Envelope, int, memoryview]:
    """Envelope, octets of prefix, and the rest of the payload."""
    envelope, prefix, rest = split_message(payload)
    return unpack(envelope), len(prefix), rest


def pack_extents(extents: Sequence[Extent]) -> bytes:
    return b"".join(
        EXTENT.pack(segment.sequence, length, offset) for segment, offset, length in extents
    )


def restore(stored: Stored, results: dict[int, tuple[int, bytes]], update: Update | None) -> None:
    """Put the recorded states into a freshly read message."""
    for index, (state, detail) in results.items():
        if index < len(stored.states):
            stored.states[index] = state
            if detail:
                stored.details[index] = detail
    stored.unsettled = stored.states.count(PENDING)
    if update is not None:
        stored.next_attempt_at = update.next_attempt_at
        stored.held = update.held
        stored.priority = update.priority
        stored.route = update.route
        for index, attempts in enumerate(update.attempts[: len(stored.attempts)]):
            stored.attempts[index] = attempts
