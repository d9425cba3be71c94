"""The records of the log: types, recipient states, and how each payload is packed.

    Owns      record types, recipient states, queue ids
    Files     format of a record's header: _native/logwriter.h; of a segment's header: segment.py
    Errors    unpack functions raise msgspec.DecodeError, struct.error or ValueError on what pack did not write

MESSAGE   u32 length of the envelope, u32 length of the prefix, envelope, prefix, content
CHUNK     a piece of the content of a large message; means nothing without its END
END       u32 and u32 as in MESSAGE, envelope, prefix, then (u32 sequence, u32 length, u64 offset) for every CHUNK in
          order: the message is complete
RESULT    MessagePack [[index, state, detail], ...]: what became of recipients; later ones replace earlier ones
UPDATE    MessagePack [next_attempt_at, held, priority, route, attempts]: replaces earlier ones
SETTLED   u64 numbers of messages that need nothing any more: all recipients have their final state
CUT       (u32 sequence, u32 0, u64 offset): of that segment only what lies before offset counts (a write failed there)

Records about a message are applied by number, in the order of the log, wherever its MESSAGE or END lies now.
"""

from __future__ import annotations

import struct
from array import array
from typing import Annotated

import msgspec

MESSAGE = 2
CHUNK = 3
END = 4
RESULT = 5
UPDATE = 6
SETTLED = 7
CUT = 8

# Recipient states.
PENDING = 0
DELIVERED = 1
RELAYED = 2
BOUNCED = 3
EXPIRED = 4
DISCARDED = 5

STATE_NAMES = ("pending", "delivered", "relayed", "bounced", "expired", "discarded")

ATTEMPTS_MAX = 0xFFFF  # of Stored.attempts

LENGTHS = struct.Struct("<II")
EXTENT = struct.Struct("<IIQ")

# Queue ids: 60 bits = milliseconds since 2020 (41), counter (11), worker (8).
EPOCH_MS = 1_577_836_800_000
COUNTER_BITS = 11
WORKER_BITS = 8

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32, as encode_number() writes it
_VALUES = {digit: value for value, digit in enumerate(DIGITS)}


class Update(msgspec.Struct, array_like=True):
    """Payload of UPDATE: the part of a message's state that concerns it as a whole."""

    next_attempt_at: int
    held: bool
    priority: int
    route: str
    attempts: list[Annotated[int, msgspec.Meta(ge=0, le=ATTEMPTS_MAX)]]


# Index of the recipient, its state, what was said of it.
Result = tuple[
    Annotated[int, msgspec.Meta(ge=0)],
    Annotated[int, msgspec.Meta(ge=0, lt=len(STATE_NAMES))],
    bytes,
]

_encoder = msgspec.msgpack.Encoder()
_update_decoder = msgspec.msgpack.Decoder(Update)
_result_decoder = msgspec.msgpack.Decoder(list[Result])


def pack_results(results: list[Result]) -> bytes:
    return _encoder.encode(results)


def unpack_results(payload: bytes | memoryview) -> list[Result]:
    return _result_decoder.decode(payload)


def pack_update(update: Update) -> bytes:
    return _encoder.encode(update)


def unpack_update(payload: bytes | memoryview) -> Update:
    return _update_decoder.decode(payload)


def pack_numbers(numbers: list[int]) -> bytes:
    return array("Q", numbers).tobytes()


def unpack_numbers(payload: bytes | memoryview) -> array[int]:
    numbers = array("Q")
    numbers.frombytes(payload)
    return numbers


def pack_cuts(cuts: dict[int, int]) -> bytes:
    return b"".join(EXTENT.pack(sequence, 0, offset) for sequence, offset in cuts.items())


def decode_number(queue_id: str) -> int:
    """The number that encode_number() made this id of.  ValueError for anything else."""
    number = 0
    try:
        for digit in queue_id:
            number = number << 5 | _VALUES[digit]
    except KeyError as error:
        raise ValueError(f"not a queue id: {queue_id!r}") from error
    if len(queue_id) != 12:
        raise ValueError(f"not a queue id: {queue_id!r}")
    return number


def worker_of(number: int) -> int:
    return number & ((1 << WORKER_BITS) - 1)
