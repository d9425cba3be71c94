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

# What a reply answers or a time belongs to: an index of NAMES.  The first are result.STAGES.
CONNECT, TLS, GREETING, HELLO, AUTH, MAIL, RCPT, DATA, DOT, QUIT, MESSAGE, STARTTLS, RSET = range(13)
NAMES = (*result.STAGES, result.MESSAGE, "starttls", "rset")
HISTOGRAMS = MESSAGE + 1

SIGNIFICANT_DIGITS = 3
HIGHEST_NS = 3600 * 10**9
SUB_BUCKETS = 2048  # the first power of two that resolves three digits
HALF_BITS = 10
BUCKETS = 33792  # of one histogram: index_of(HIGHEST_NS) lies in the last half
ANSWERS_MAX = 1000

ACCEPTED, REFUSED, BROKEN = range(3)  # how a message ends


def index_of(ns: int) -> int:
    """The bucket that counts such a time."""
    shift = 0
    while ns >> shift >= SUB_BUCKETS:
        shift += 1
    return (shift << HALF_BITS) + (ns >> shift)


def value_of(index: int) -> int:
    """The greatest nanosecond that a bucket counts."""
    if index < SUB_BUCKETS:
        return index
    shift = (index >> HALF_BITS) - 1
    return ((index - (shift << HALF_BITS) + 1) << shift) - 1


class Tally:
    """Counts from measure_from_ns on; messages that were due before are left out."""

    __slots__ = (
        "_counts", "accepted", "answers", "broken", "in_flight", "interval", "last_ns",
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

    def record(self, stage: int, ns: int) -> None:
        ns = min(max(ns, 0), HIGHEST_NS)
        self._counts[stage * BUCKETS + index_of(ns)] += 1

    def begin(self, start_ns: int, late: bool) -> None:
        self.in_flight += 1
        if late and start_ns >= self.measure_from_ns:
            self.late_starts += 1

    def end(self, how: int, start_ns: int, now_ns: int, octets: int) -> None:
        """A message is over: answered, or its connection is gone."""
        if start_ns < self.measure_from_ns:
            return
        self.last_ns = now_ns
        if how == ACCEPTED:
            self.accepted += 1
            self.octets += octets
            ns = min(max(now_ns - start_ns, 0), HIGHEST_NS)
            index = index_of(ns)
            self._counts[MESSAGE * BUCKETS + index] += 1
            self.interval[index] = self.interval.get(index, 0) + 1
        elif how == REFUSED:
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

    def counts(self, stage: int) -> dict[int, int]:
        """Bucket → count, of those that have any."""
        first = stage * BUCKETS
        row = self._counts[first : first + BUCKETS]
        return {index: count for index, count in enumerate(row) if count}
