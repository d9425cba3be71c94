"""A message in the spool: its envelope, the state of every recipient, and where its octets are.

Owns      Stored, Body
Limits    Body.slices() of a message that is not in memory reads all of it; chunks() never holds more than a piece
Errors    SpoolCorrupt when octets read back are not those written; SpoolError when they cannot be read
Blocking  reading a body that is not in memory waits for the disk
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from gateway.mail.envelope import Envelope, unpack
from gateway.spool.record import EXTENT, LENGTHS, PENDING, Update

if TYPE_CHECKING:
    from gateway.spool.segment import Segment


class Octets(Protocol):
    """Something with a length that lends its octets: bytes, memoryview, a decoder's Chunk."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...


Extent = tuple["Segment", int, int]  # offset of the record, length of its payload


class Stored(msgspec.Struct, eq=False, gc=False):
    """One accepted message.  What the scheduler sets, update() records.

    There may be a million of them: the garbage collector does not look at them (gc=False).  The only cycle, through
    the sets of Segment, ends when the message leaves the spool.
    """

    number: int
    queue_id: str
    envelope: Envelope
    size_octets: int  # prefix and content
    states: bytearray  # PENDING, DELIVERED ... of each recipient: Spool.settle() sets them
    unsettled: int  # how many are PENDING
    attempts: array[int]  # of each recipient; the scheduler's
    next_attempt_at: int = 0  # ns UTC, 0 = at once; the scheduler's
    held: bool = False  # the scheduler's
    priority: int = 0  # the scheduler's
    route: str = ""  # next hop that replaces the routes' (reroute); the scheduler's
    details: dict[int, bytes] = msgspec.field(
        default_factory=dict
    )  # last detail given to settle(), by recipient

    # The spool's own: where the MESSAGE or END record is, and the CHUNK records of a large message.
    home: Segment = None  # type: ignore[assignment]
    home_offset: int = 0
    home_length: int = 0
    extents: tuple[Extent, ...] = ()
    ghosts: tuple[Segment, ...] = ()  # segments with an older copy of the MESSAGE or END record
    touched: tuple[Segment, ...] = ()  # segments with state records of it
    prefix: bytes | None = None  # in memory, with content; else to be read from home
    content: Octets | None = None
    kept_octets: int = 0  # what of it counts against memory_octets
    counted: bool = False  # in live and live_octets of its segments
    written: bool = False  # home is on disk

    @property
    def update(self) -> Update:
        return Update(
            self.next_attempt_at, self.held, self.priority, self.route, self.attempts.tolist()
        )

    def records(self) -> tuple[Extent, ...]:
        """Every record that holds octets of it."""
        return ((self.home, self.home_offset, self.home_length), *self.extents)

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


def new_stored(number: int, queue_id: str, envelope: Envelope, size_octets: int) -> Stored:
    count = len(envelope.recipients)
    return Stored(
        number,
        queue_id,
        envelope,
        size_octets,
        bytearray(count),
        count,
        array("H", bytes(2 * count)),
    )


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
            if stored.prefix:
                yield memoryview(stored.prefix)
            if len(stored.content) > 0:
                yield memoryview(stored.content)
            return
        try:
            payload = stored.home.read_record(
                stored.home_offset, stored.home_length, stored.queue_id
            )
            _, prefix, content = split_message(payload)
            if len(prefix) > 0:
                yield prefix
            if not stored.extents:
                if len(content) > 0:
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
