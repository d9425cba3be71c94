"""Overload: how many messages a second are let in, so that what is taken keeps its latency.

Owns      Load, Traffic, Overload
Flow      LoadMeter → update() → limit; Gate.enter → check_connection(); MAIL → admit_message()
Limits    `limit` messages a second, without end while all is well; strangers who come too early are refused, clients
          that may relay wait for their turn, up to TURN_WAIT_S, and have it before strangers
Errors    none: None or the Reply that refuses
Standards RFC 5321 §3.1 (421 instead of the greeting), §4.2.2; RFC 3463 §3.4, §3.5 (4.3.2, 4.4.5)

A gauge that lasts above its target shrinks the limit, with all gauges well below theirs it grows again, until nobody
has been refused for a while.  The queue is one of them because receiving is the cheaper half of the work and is done
for whoever asks: without a limit sending starves when the CPU is short.

A client with few connections that waits for its replies is slowed down by them, and nothing is refused.  A sick spool
is no overload: sessions are let in, and MAIL is answered with the spool's own reply (452 4.3.1 or 451 4.3.0), so that
listeners that need no spool go on.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from gateway.mail.reply import Reply

NO_LIMIT = float("inf")
LIMIT_MIN = 10.0  # messages/s: whatever a gauge says, it must be able to see that things are better

LASTING = 2  # updates: a shorter delay is a burst or a pause of the machine, no queue
WORST_MAX = 3.0  # what is ten times too slow needs no faster answer than what is three times too slow
FIRST_CUT = 0.5  # of what is taken, when there was no limit
CUT = 0.1  # of the limit, for each update and each multiple of the target above it
CALM = 0.5  # of every target: below that the limit grows, for each update, …
BUSY = 0.85  # … while the event loop is busy for less than this part of the time …
GROW_IDLE = 1.15  # … by so much: it doubles in half a second; …
FULL = 0.95  # … below this …
GROW = 1.05  # … by so much …
NEAR = 0.9  # … and from here on, to the limit that was too high the last time, …
GROW_NEAR = 1.02  # … it feels its way; …
GROW_FULL = 1.01  # … and without time to spare slowly, while nothing has to wait: what is taken more might
QUIET = 10  # updates in which nobody had to be refused or to wait: there is no overload any more

# To refuse costs a quarter of taking and sending on: with more refusals than this for each message that is taken it
# is they that take the time, and to refuse more would not save any.
REFUSAL_COST = 4.0

DRAIN = 0.5  # let in at least this part of what goes out: a long queue after an outage is no reason to shut the door
BURST_S = 0.1  # of the limit: what was not used remains for so long
# A client waits five minutes for the reply to MAIL (RFC 5321 §4.5.3.2.2); what takes longer than this is no pause.
TURN_WAIT_S = 10.0

WORDS = {
    "accept_queue": "too many connections wait",
    "memory": "too much mail is arriving",
    "turn_s": "commands wait too long",
    "commit_s": "the disk is behind",
    "queue_s": "more mail comes in than can be sent on",
}


class Load(NamedTuple):
    """How loaded we are; also the form of the targets, where 0.0 means "never"."""

    accept_queue: float = 0.0  # part of the backlog that waits in the kernel; 1.0 = it drops
    memory: float = 0.0  # part of limits.memory_octets that mail data uses
    turn_s: float = 0.0  # one turn of the event loop: so long a command waits before it is read
    commit_s: float = 0.0  # from the end of a message to its 250
    queue_s: float = 0.0  # until what comes now is sent, when it is our CPU that it waits for


class Traffic(NamedTuple):
    """Messages a second over the last half second or so, and how much of our time that took."""

    taken: float = 0.0
    refused: float = 0.0
    sent: float = 0.0
    busy: float = 1.0  # part of the time in which the event loop ran, or wanted to


class Overload:
    """One worker's limit; asked for each connection while `limited`, and for each MAIL while it `asks`."""

    def __init__(self, targets: Load, clock: Callable[[], float] = time.monotonic) -> None:
        self.targets = targets
        self.limit = NO_LIMIT
        self.limited = False
        self.asks = False  # there is a limit, or nobody looks at the load before the next MAIL
        self.reason = ""  # what the limit was last cut for: a field of Load
        self.shed: Counter[tuple[str, str]] = Counter()  # ("connect" | "mail", reason)
        self.waits = 0  # messages of trusted clients that had to wait for their turn
        self._clock = clock
        self._recent = deque([0.0] * LASTING, LASTING)
        self._crest = 0.0  # the limit that was too high
        self._growing = False
        self._quiet = 0
        self._touched = False  # somebody was refused, or had to wait
        self._next = 0.0  # when the next message is due
        self._replies: dict[tuple[str, str], Reply] = {}
        self._wake: Callable[[], None] | None = None

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Nothing happens now: the next MAIL calls that, once, for somebody to look again."""
        self._wake = wake
        self.asks = True

    def update(self, load: Load, traffic: Traffic) -> None:
        """Look at the load, ten times a second while mail comes in."""
        self._quiet = 0 if self._touched else self._quiet + 1
        self._touched = False
        worst, reason = 0.0, ""
        for name, value, target in zip(Load._fields, load, self.targets, strict=True):
            if target and value / target > worst:
                worst, reason = value / target, name
        self._recent.append(min(worst, WORST_MAX))
        lasting = min(self._recent)
        if lasting > 1.0:
            self._cut(lasting, reason, traffic)
        elif worst < CALM and self.limited:
            self._grow(traffic, worst)
        self.asks = self.limited or self._wake is not None

    def _cut(self, excess: float, reason: str, traffic: Traffic) -> None:
        limit = self.limit
        if not self.limited:
            self._quiet = 0
            self._crest = traffic.taken
            limit = traffic.taken * FIRST_CUT
        elif traffic.refused < traffic.taken * REFUSAL_COST:
            if self._growing:
                self._crest = limit
            limit = min(limit, traffic.taken) * (1.0 - CUT * (excess - 1.0))
        self._growing = False
        self.limit = min(max(limit, traffic.sent * DRAIN, LIMIT_MIN), self.limit)
        self.limited = True
        self.reason = reason

    def _grow(self, traffic: Traffic, worst: float) -> None:
        self._growing = True
        if traffic.busy < BUSY:
            self.limit *= GROW_IDLE
        elif traffic.busy < FULL:
            self.limit *= GROW if self.limit < self._crest * NEAR else GROW_NEAR
        elif worst < CALM / 2:
            self.limit *= GROW_FULL
        if self._quiet >= QUIET:
            self.limit = NO_LIMIT
            self.limited = False

    def check_connection(self, trusted: bool) -> Reply | None:
        """The 421 for a new connection, or None.  trusted: the client may relay."""
        if not self.limited or trusted or self._next <= self._clock():
            return None
        return self._refuse("connect")

    def admit_message(self, trusted: bool) -> Reply | float:
        """The 451 for this MAIL, or how many seconds its answer has to wait.  Only while it `asks`."""
        if self._wake is not None:
            wake, self._wake = self._wake, None
            self.asks = self.limited
            wake()
        if not self.limited:
            return 0.0
        now = self._clock()
        due = max(self._next, now - BURST_S)
        wait_s = max(0.0, due - now)
        if wait_s > (TURN_WAIT_S if trusted else 0.0):
            return self._refuse("mail")
        self._next = due + 1.0 / self.limit
        if wait_s:
            self.waits += 1
            self._touched = True
        return wait_s

    def _refuse(self, stage: str) -> Reply:
        self._touched = True
        self.shed[stage, self.reason] += 1
        reply = self._replies.get((stage, self.reason))
        if reply is None:
            text = f"Too busy: {WORDS[self.reason]}; try again later"
            if stage == "connect":
                reply = Reply(421, "4.3.2", text, close=True)
            else:
                reply = Reply(451, "4.4.5", text)
            self._replies[stage, self.reason] = reply
        return reply
