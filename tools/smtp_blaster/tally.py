"""What happened, counted: cheap enough for every reply of every message.

Owns      Tally: counters, one histogram a stage, what the last interval brought, replies
Flow      Session → record(), end(), reply() → Source reads it every second and at the end
Limits    a histogram is 33,792 counts of 8 octets, whatever the number of messages; ANSWERS_MAX kinds of replies
Bugs      more than an hour counts as an hour

The buckets are HdrHistogram's for three significant digits and nanoseconds up to an hour, so that counts move
into the library's histograms as they are (summary.py).
"""

from __future__ import annotations

from array import array

from smtp_blaster import result

# What a reply answers or a time belongs to: an index of NAMES.  The first are result.SENDING.
CONNECT, TLS, GREETING, HELLO, AUTH, MAIL, RCPT, DATA, DOT, QUIT, MESSAGE, STARTTLS, RSET = range(13)
NAMES = (*result.SENDING, result.MESSAGE, "starttls", "rset", *result.RETRIEVING)
HISTOGRAMS = len(NAMES)

SIGNIFICANT_DIGITS = 3
HIGHEST_NS = 3600 * 10**9
SUB_BUCKETS = 2048  # the first power of two that resolves three digits
HALF_BITS = 10
BUCKETS = 33792  # of one histogram: index_of(HIGHEST_NS) lies in the last half
ANSWERS_MAX = 1000
ALIKE_OCTETS = 14  # of a reply line: as much as "250 2.123.123 "

ACCEPTED, REFUSED, BROKEN = range(3)  # how a message ends

# The same as C integers where this is compiled (tally.pxd).
_highest_ns, _sub_buckets, _half_bits, _buckets = HIGHEST_NS, SUB_BUCKETS, HALF_BITS, BUCKETS
_accepted, _refused, _message = ACCEPTED, REFUSED, MESSAGE


def index_of(ns: int) -> int:
    """The bucket that counts such a time."""
    ns = _highest_ns if ns > _highest_ns else max(ns, 0)
    shift = 0
    while ns >> shift >= _sub_buckets:
        shift += 1
    return (shift << _half_bits) + (ns >> shift)


def value_of(index: int) -> int:
    """The greatest nanosecond that a bucket counts."""
    if index < SUB_BUCKETS:
        return index
    shift = (index >> HALF_BITS) - 1
    return ((index - (shift << HALF_BITS) + 1) << shift) - 1


class Tally:
    """Counts from measure_from_ns on; messages that were due before are left out."""

    __slots__ = (
        "_alike", "_counts", "accepted", "answers", "broken", "in_flight", "interval", "last_ns",
        "late_starts", "measure_from_ns", "octets", "recipients_accepted", "refused", "retried",
    )  # fmt: skip

    def __init__(self) -> None:
        self.in_flight = 0  # messages begun and not answered
        self.measure_from_ns = 0
        self.clear(0)

    def clear(self, now_ns: int) -> None:
        """Begin to count now."""
        self.measure_from_ns = now_ns
        self.last_ns = 0  # the last end of a message; 0 = none yet
        self.accepted = self.refused = self.broken = self.retried = 0
        self.recipients_accepted = self.octets = self.late_starts = 0
        self._counts = array("q", bytes(8 * BUCKETS * HISTOGRAMS))
        self.interval: dict[int, int] = {}  # bucket → accepted messages since the owner emptied it
        # (stage, code, enhanced status) → [count, text of the first]
        self.answers: dict[tuple[int, int, str], list] = {}  # type: ignore[type-arg]
        self._alike: dict[bytes, list] = {}  # type: ignore[type-arg]

    def record(self, stage: int, ns: int) -> None:
        index = stage * _buckets + index_of(ns)
        self._counts[index] += 1

    def begin(self, start_ns: int, late: bool) -> None:
        self.in_flight += 1
        if late and start_ns >= self.measure_from_ns:
            self.late_starts += 1

    def end(self, how: int, start_ns: int, now_ns: int, octets: int) -> None:
        """A message is over: answered, or its connection is gone."""
        if start_ns < self.measure_from_ns:
            return
        self.last_ns = now_ns
        if how == _accepted:
            self.accepted += 1
            self.octets += octets
            self.record(_message, now_ns - start_ns)
            bucket = index_of(now_ns - start_ns)
            self.interval[bucket] = self.interval.get(bucket, 0) + 1
        elif how == _refused:
            self.refused += 1
        else:
            self.broken += 1

    def reply(self, stage: int, code: int, enhanced: str, text: str) -> None:
        key = (stage, code, enhanced)
        answer = self.answers.get(key)
        if answer is not None:
            answer[0] += 1
        elif len(self.answers) < ANSWERS_MAX:
            self.answers[key] = [1, text]

    def remember(self, code: int, enhanced: str, line: bytes) -> None:
        """Replies to content that begin like this one are such, too."""
        answer = self.answers.get((DOT, code, enhanced))
        if answer is not None and len(self._alike) < ANSWERS_MAX:
            self._alike[line[:ALIKE_OCTETS]] = answer

    def reply_again(self, line: bytes) -> bool:
        """A reply to content: counted, when one that begins like it was remembered."""
        answer = self._alike.get(line[:ALIKE_OCTETS])
        if answer is None:
            return False
        answer[0] += 1
        return True

    def counts(self, stage: int) -> dict[int, int]:
        """Bucket → count, of those that have any."""
        found = {}
        first = stage * _buckets
        for index in range(_buckets):
            count = self._counts[first + index]
            if count:
                found[index] = count
        return found
