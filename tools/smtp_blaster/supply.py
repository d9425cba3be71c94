"""Which message is due next, and when it was meant to begin.

Owns      Message (one transaction to be), Supply (all of a process's)
Flow      schedule() → take() → Session → again() (what is to be sent once more) → take()
Limits    plan.messages, the deadline; AGAIN_MAX messages wait to be sent again
Bugs      none known

An open loop's schedule knows nothing of the server: a message that finds no free connection stays due, and
its latency runs from the start that was intended.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from time import monotonic_ns

from smtp_blaster.content import Content, Mail
from smtp_blaster.plan import MESSAGES_MAX, Plan

NEVER_NS = 1 << 62
AGAIN_MAX = 100_000
LATE_NS = 1_000_000


class Message:
    """One message and the recipients that it still has to reach."""

    __slots__ = ("content", "how", "is_again", "is_counted", "mail", "number", "paths", "rcpts", "start_ns")

    def __init__(
        self, number: int, start_ns: int, content: Content, mail: bytes, rcpts: list[bytes], paths: list[str]
    ) -> None:  # fmt: skip
        self.number = number
        self.start_ns = start_ns  # intended, time.monotonic_ns()
        self.content = content
        self.mail = mail  # the command lines
        self.rcpts = rcpts
        self.paths = paths  # forward-paths, beside rcpts
        self.how = 0  # the last try ended: tally.ACCEPTED, REFUSED or BROKEN
        self.is_again = False  # sent before
        self.is_counted = False  # some recipients were accepted before


class Supply:
    """The messages of process `part` of plan.processes: every plan.processes-th of the run's."""

    __slots__ = (
        "_again", "_content", "_deadline_ns", "_forward", "_mail", "_mails", "_next_ns",
        "_next_offered_ns", "_order", "_part", "_parts", "_rcpts", "_recipients", "_schedule",
        "_schedule_offered", "is_open", "limit", "offered", "retry_ns", "stopped", "taken",
    )  # fmt: skip

    def __init__(self, plan: Plan, mail: Mail, part: int = 0) -> None:
        self._mail = mail
        self._part = part
        self._parts = plan.processes
        limit = plan.messages or MESSAGES_MAX
        self.limit = (limit - part + plan.processes - 1) // plan.processes
        self.taken = 0  # first tries
        self.offered = 0  # due so far
        self.stopped = False
        self.is_open = plan.rate > 0
        self.retry_ns = int(plan.retry_s * 1e9)  # 0 = never
        self._deadline_ns = NEVER_NS
        self._again: list[tuple[int, int, Message]] = []  # a heap: (due, order, message)
        self._order = 0
        self._mails = [f"MAIL FROM:<{path}>\r\n".encode() for path in mail.reverse_paths]
        self._rcpts = [f"RCPT TO:<{path}>\r\n".encode() for path in mail.forward_paths]
        self._forward = mail.forward_paths
        self._recipients = mail.recipients
        self._content: Content | None = mail.content(0) if len(mail.contents) == 1 else None
        # Two that run alike: one is asked when a connection is free, the other by the clock.
        self._schedule = schedule(plan, part)
        self._schedule_offered = schedule(plan, part)
        self._next_ns = self._next_offered_ns = NEVER_NS

    def start(self, start_ns: int, duration_s: float) -> None:
        """Times count from start_ns."""
        self._deadline_ns = start_ns + int(duration_s * 1e9)
        if self.is_open:
            self._schedule = _behind(start_ns, self._schedule)
            self._schedule_offered = _behind(start_ns, self._schedule_offered)
            self._next_ns = next(self._schedule)
            self._next_offered_ns = next(self._schedule_offered)

    def stop(self) -> None:
        """Nothing more begins."""
        self.stopped = True

    def is_ended(self) -> bool:
        """True when nothing may begin any more."""
        return self.stopped or monotonic_ns() >= self._deadline_ns

    def is_over(self, in_flight: int) -> bool:
        """True when take() will never give anything again; in_flight may still come back by again()."""
        if self.is_ended():
            return True
        return self.taken >= self.limit and not self._again and not (self.retry_ns and in_flight)

    def take(self) -> Message | None:
        """The next message that is due, None when there is none now."""
        now = monotonic_ns()
        if self.stopped or now >= self._deadline_ns:
            return None
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        if self.taken >= self.limit:
            return None
        start = now
        if self.is_open:
            start = self._next_ns
            if start > now:
                return None
            self._next_ns = next(self._schedule)
        else:
            self.offered += 1
        number = self.taken * self._parts + self._part
        self.taken += 1
        return self._message(number, start)

    def _message(self, number: int, start_ns: int) -> Message:
        content = self._content
        if content is None:
            content = self._mail.content(number)
        rcpts, paths = self._rcpts, self._forward
        if len(rcpts) != self._recipients:
            first = number * self._recipients % len(rcpts)
            chosen = [(first + index) % len(rcpts) for index in range(self._recipients)]
            rcpts = [rcpts[index] for index in chosen]
            paths = [paths[index] for index in chosen]
        mails = self._mails
        return Message(number, start_ns, content, mails[number % len(mails)], rcpts, paths)

    def put_back(self, message: Message) -> None:
        """It was taken and not begun: whoever is free takes it next."""
        self._order += 1
        heapq.heappush(self._again, (0, self._order, message))

    def again(self, message: Message, left: list[int]) -> bool:
        """Send it once more after a pause, to the recipients left; False when there is no room or time for that."""
        due = monotonic_ns() + self.retry_ns
        if not self.retry_ns or self.stopped or due >= self._deadline_ns or len(self._again) >= AGAIN_MAX:
            return False
        message.rcpts = [message.rcpts[index] for index in left]
        message.paths = [message.paths[index] for index in left]
        message.is_again = True
        self._order += 1
        heapq.heappush(self._again, (due, self._order, message))
        return True

    def left(self) -> list[Message]:
        """Those that were taken, and that the end of the run overtook; they are forgotten here."""
        left, self._again = [message for _, _, message in self._again], []
        return left

    def next_due_ns(self) -> int:
        """When take() has something next, in the past when it has; NEVER_NS for nothing ever."""
        if self.stopped:
            return NEVER_NS
        due = self._again[0][0] if self._again else NEVER_NS
        if self.taken < self.limit:
            due = min(due, self._next_ns if self.is_open else 0)
        return due if due < self._deadline_ns else NEVER_NS

    def count_offered(self, now_ns: int) -> int:
        """How many messages were due until now."""
        until = min(now_ns, self._deadline_ns)
        while self._next_offered_ns < until and self.offered < self.limit:
            self.offered += 1
            self._next_offered_ns = next(self._schedule_offered)
        return self.offered


def schedule(plan: Plan, part: int) -> Iterator[int]:
    """Intended starts of a process's messages in ns from the run's; endless.  A closed loop has none.

    Constant arrivals of all processes together are those of one; Poisson arrivals add up to Poisson arrivals.
    """
    if not plan.rate:
        return
    chance = random.Random(f"{plan.seed}/{part}")
    count = float(part)  # messages of the whole run that are due before this one
    if plan.arrivals == "poisson":
        count = chance.expovariate(1.0) * plan.processes
    climbed = plan.rate * plan.ramp_s / 2  # messages of the ramp
    while True:
        if count < climbed:
            yield int(1e9 * math.sqrt(2 * count * plan.ramp_s / plan.rate))
        else:
            yield int(1e9 * ((count - climbed) / plan.rate + plan.ramp_s))
        step = chance.expovariate(1.0) if plan.arrivals == "poisson" else 1.0
        count += step * plan.processes


def _behind(start_ns: int, offsets: Iterator[int]) -> Iterator[int]:
    return (start_ns + offset for offset in offsets)
