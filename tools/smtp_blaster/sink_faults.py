"""What goes wrong at the sink, when, and how often: the grammar of --fault, and who is struck.

    Owns      Fault (one thing that goes wrong), Faults (which one strikes now), Occasion
    Flow      Fault.parse → Faults.strike(stage, occasion) → the session or the sink acts
    Limits    the attempts of ATTEMPTS_MAX messages are remembered for "first", the oldest go
    Errors    ValueError says what the grammar allows

    STAGE=ACTION[@CONDITION]...

By one seed, connection number n of a process is struck in the same way in every run that does the
same on it: chance is drawn for each connection, not from what happens to come next.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from typing import NamedTuple

import msgspec

STAGES = (
    "greeting", "hello", "starttls", "auth", "mail", "rcpt", "data", "transfer", "content", "rset", "noop", "quit",
)  # fmt: skip
EVERY_STAGE = "all"
OLD_WORDS = {"connect": "greeting"}

# Word → what it does.  Those with ":T" take a time.
ACTIONS = {
    "drop": "close the connection without an answer",
    "reset": "the same with RST",
    "half-close": "end our side without an answer, and read on",
    "silent": "never answer",
    "garbage": "answer with random octets",
    "endless": "answer with a reply of endless lines",
    "overlong": "answer with a line of a mebibyte",
    "wrong": "answer with a code that does not belong here, or is none",
    "twice": "answer twice, the second time before any command",
    "unended": "answer without an end of line",
    "bare-lf": "answer with LF instead of CRLF",
}
TIMED = {
    "delay": "answer T late",
    "drip": "answer octet by octet, T between them",
    "sip": "from here on, pause for T after every read",
    "pause": "the whole sink neither answers nor accepts for T",
    "down": "the whole sink is gone for T: connections reset, port closed",
}
BY_CLOCK = ("pause", "down", "drop", "reset")  # what may happen to the whole sink at a time

ATTEMPTS_MAX = 1_000_000

GRAMMAR = f"""STAGE=ACTION[@CONDITION]...
STAGE      {", ".join(STAGES)}, or {EVERY_STAGE}; content is behind the final dot, transfer within the content
ACTION     a reply code, CODE:TEXT, {", ".join(ACTIONS)},
           {", ".join(f"{word}:T" for word in TIMED)}
T          0.5, 500ms, 5s, 2m; 1s-3s: between the two; ~2s: exponential around 2 s
CONDITION  0.1 (probability), first:N (attempts of the same message: greylisting), nth:N (every Nth time),
           from:T, until:T (since the start), every:T (again and again, of {EVERY_STAGE}),
           sender:REGEX, recipient:REGEX"""

_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)?")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_CONDITION = re.compile(
    r"@(?=(?:first|nth|from|until|every|sender|recipient):|(?:\d+(?:\.\d*)?|\.\d+)(?:@|$))"
)
_REPLY = re.compile(r"([2-5]\d\d)(?::(.*))?", re.DOTALL)


class Span(msgspec.Struct, frozen=True):
    """A time in seconds: `least_s` itself, evenly up to `most_s`, or exponential around `least_s`."""

    least_s: float = 0.0
    most_s: float = 0.0
    exponential: bool = False

    @classmethod
    def parse(cls, text: str) -> Span:
        if text.startswith("~"):
            return cls(_seconds(text[1:]), exponential=True)
        least, dash, most = text.partition("-")
        span = cls(_seconds(least), _seconds(most) if dash else 0.0)
        if dash and span.most_s < span.least_s:
            raise ValueError(f"{text!r}: the second time is shorter than the first")
        return span

    def draw_s(self, chance: random.Random) -> float:
        if self.exponential:
            return chance.expovariate(1.0 / self.least_s) if self.least_s else 0.0
        return chance.uniform(self.least_s, self.most_s) if self.most_s else self.least_s

    def __str__(self) -> str:
        if self.exponential:
            return f"~{self.least_s:g}s"
        return f"{self.least_s:g}s" + (f"-{self.most_s:g}s" if self.most_s else "")


class Fault(msgspec.Struct, frozen=True):
    """What happens at `stage` when all conditions hold: a reply with `code`, or `drop`, or `delay_s`, or `action`."""

    stage: str
    code: int = 0  # 0 = no reply of its own
    drop: bool = False  # at "content", after all of it came: the client must not know
    delay_s: float | Span = 0.0  # of a delay, and of every other action that takes a time
    probability: float = 1.0
    action: str = ""  # one of ACTIONS and TIMED; "" = what the three above say
    text: str = ""  # of the reply
    first: int = 0  # strikes the first so many attempts of the same message
    nth: int = 0  # strikes every nth time
    from_s: float = 0.0  # since the sink's start
    until_s: float = 0.0  # 0 = to the end
    every_s: float = 0.0  # by the clock, not at a reply
    sender: str = ""  # searched for in the reverse-path
    recipient: str = ""  # searched for in the forward-path, or in each one of the message

    @property
    def does(self) -> str:
        """reply, drop, delay or one of the other words of ACTIONS and TIMED."""
        return self.action or ("drop" if self.drop else "reply" if self.code else "delay")

    @property
    def by_clock(self) -> bool:
        """Strikes the whole sink at its time."""
        return bool(self.every_s) or (self.stage == EVERY_STAGE and self.does in ("pause", "down"))

    def draw_s(self, chance: random.Random) -> float:
        return self.delay_s.draw_s(chance) if isinstance(self.delay_s, Span) else self.delay_s

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Raises ValueError with the grammar."""
        stage, equals, rest = text.partition("=")
        stage = OLD_WORDS.get(stage, stage)
        if not equals or stage not in (*STAGES, EVERY_STAGE):
            raise ValueError(f"{text!r}: expected {GRAMMAR}")
        action, *conditions = _CONDITION.split(rest)
        try:
            fields = {**_action(action), **_conditions(conditions)}
            fault = cls(stage, **fields)  # type: ignore[arg-type]
            fault.check()
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}\n{GRAMMAR}") from None
        return fault

    def check(self) -> None:
        """Raises ValueError for what cannot be meant."""
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError("a probability is between 0 and 1")
        if self.every_s and (self.stage != EVERY_STAGE or self.does not in BY_CLOCK):
            raise ValueError(f"every: is for {EVERY_STAGE} and {', '.join(BY_CLOCK)}")
        if self.by_clock and not (self.every_s or self.from_s):
            raise ValueError("say when: every:T or from:T")
        if self.stage == "transfer" and self.does in ("delay", "drip", *_MISANSWERS):
            raise ValueError("nothing is answered within the content")

    def __str__(self) -> str:
        action = f"{self.code}" + (f":{self.text}" if self.text else "")
        if self.does != "reply":
            action = f"{self.does}:{_spoken(self.delay_s)}" if self.does in TIMED else self.does
        conditions = [f"{self.probability:g}"] if self.probability < 1.0 else []
        conditions += [
            f"{word}:{value:g}s" if word in ("from", "until", "every") else f"{word}:{value}"
            for word, value in (
                ("first", self.first), ("nth", self.nth), ("from", self.from_s), ("until", self.until_s),
                ("every", self.every_s), ("sender", self.sender), ("recipient", self.recipient),
            )
            if value
        ]  # fmt: skip
        return "@".join([f"{self.stage}={action}", *conditions])


_MISANSWERS = ("garbage", "endless", "overlong", "wrong", "twice", "unended", "bare-lf")


class Occasion(NamedTuple):
    """What a condition may look at."""

    reverse_path: str
    forward_paths: list[str]
    message: str  # what "first" counts the attempts of


class Faults:
    """Decides which fault strikes, and counts them."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        for fault in faults:
            fault.check()
        self.by_clock = [fault for fault in faults if fault.by_clock]
        self.counts: Counter[str] = Counter({str(fault): 0 for fault in faults})
        self.counts_content = any(f.first and f.stage == "content" for f in faults)
        self._by_stage = {
            stage: [
                _Armed(fault)
                for fault in faults
                if OLD_WORDS.get(fault.stage, fault.stage) in (stage, EVERY_STAGE)
                and not fault.by_clock
                and not (fault.stage == EVERY_STAGE and stage == "transfer")
            ]
            for stage in STAGES
        }
        self._started = time.monotonic()

    def start(self) -> None:
        """from: and until: count from here."""
        self._started = time.monotonic()

    def any_at(self, stage: str) -> bool:
        return bool(self._by_stage[stage])

    def strike(self, stage: str, occasion: Occasion, chance: random.Random) -> Fault | None:
        """The first fault at this stage all of whose conditions hold."""
        since_s = time.monotonic() - self._started
        for armed in self._by_stage[stage]:
            if armed.strikes(occasion, chance, since_s):
                self.counts[armed.name] += 1
                return armed.fault
        return None


class _Armed:
    """A fault with what it must remember."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.name = str(fault)
        self._sender = re.compile(fault.sender) if fault.sender else None
        self._recipient = re.compile(fault.recipient) if fault.recipient else None
        self._times = 0
        self._attempts: dict[str, int] = {}

    def strikes(self, occasion: Occasion, chance: random.Random, since_s: float) -> bool:
        fault = self.fault
        if since_s < fault.from_s or (fault.until_s and since_s >= fault.until_s):
            return False
        if self._sender is not None and not self._sender.search(occasion.reverse_path):
            return False
        if self._recipient is not None and not any(map(self._recipient.search, occasion.forward_paths)):
            return False
        if fault.nth:
            self._times += 1
            if self._times % fault.nth:
                return False
        if fault.first and not self._is_early(occasion.message):
            return False
        return fault.probability >= 1.0 or chance.random() < fault.probability

    def _is_early(self, message: str) -> bool:
        attempt = self._attempts.pop(message, 0) + 1
        if attempt <= self.fault.first:
            self._attempts[message] = attempt
            if len(self._attempts) > ATTEMPTS_MAX:
                del self._attempts[next(iter(self._attempts))]
            return True
        self._attempts[message] = attempt
        return False


def _action(text: str) -> dict[str, object]:
    if reply := _REPLY.fullmatch(text):
        if reply[1][0] == "3":
            raise ValueError("a reply code of a fault is 2yz, 4yz or 5yz (wrong gives others)")
        return {"code": int(reply[1]), "text": reply[2] or ""}
    word, colon, span = text.partition(":")
    if word == "drop" and not colon:
        return {"drop": True}
    if word in TIMED and colon:
        drawn = Span.parse(span)
        is_plain = drawn == Span(drawn.least_s)
        return {
            "action": "" if word == "delay" else word,
            "delay_s": drawn.least_s if is_plain else drawn,
        }
    if word in ACTIONS and not colon:
        return {"action": word}
    raise ValueError(f"{text!r} is no ACTION")


def _conditions(texts: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for text in texts:
        word, colon, value = text.partition(":")
        if not colon:
            found["probability"] = float(text)
        elif word in ("first", "nth"):
            if not value.isdecimal() or not int(value):
                raise ValueError(f"{text!r}: a whole number above 0 is expected")
            found[word] = int(value)
        elif word in ("from", "until", "every"):
            found[f"{word}_s"] = _seconds(value)
        else:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{text!r}: {error}") from None
            found[word] = value
    return found


def _seconds(text: str) -> float:
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a time: 0.5, 500ms, 5s, 2m, 1h")
    return float(found[1]) * _UNITS[found[2]]


def _spoken(delay_s: float | Span) -> str:
    return str(delay_s) if isinstance(delay_s, Span) else f"{delay_s:g}s"
