"""What a run is asked to do.

Owns      Plan, and the small languages in it: sizes, mailbox templates
Limits    every run ends: MESSAGES_MAX and DURATION_MAX_S stand where the plan has no limit of its own
Errors    ValueError says what is wrong with a plan and what to write instead
"""

from __future__ import annotations

import math
import re
from itertools import product

import msgspec

REVERSE_PATH = "source@example.test"
FORWARD_PATH = "sink@example.test"
PROTOCOLS = ("smtp", "lmtp", "submission", "pop3", "imap")
# Of a protocol that retrieves: what a task of each mix is.
MIXES = {
    "pop3": {
        "login": "a connection: USER, PASS, STAT, QUIT",
        "fetch": "a connection: STAT, UIDL, RETR of the newest --newest messages, QUIT",
        "download": "a connection: STAT, RETR of every message, QUIT",
    },
    "imap": {
        "login": "a connection: LOGIN, SELECT, LOGOUT",
        "fetch": "NOOP, then of the newest --newest messages UID, FLAGS and size, and their bodies one by one",
        "search": "one search: by subject, sender, flag, text or date in turn",
        "phone": "SELECT, envelopes of the newest 50, the beginning of the newest 5, one \\Seen",
        "desktop": "LIST, STATUS of 10 mailboxes, SELECT, all flags, header fields of the newest 100, bodies of 10",
        "idle": "a delivery over --deliver; all connections are in IDLE, and those of its mailbox hear of it",
    },
}
TLS_MODES = ("off", "starttls", "implicit")
ARRIVALS = ("constant", "poisson")
MECHANISMS = ("SCRAM-SHA-256", "PLAIN", "LOGIN", "XOAUTH2")  # in the order of preference

MESSAGES_MAX = 10_000_000
DURATION_MAX_S = 3600.0
MAILBOXES_MAX = 1_000_000  # that one template stands for
IDLE_MAX_S = 1500.0
OCTETS_MIN = 300  # header fields and one line
OCTETS_MAX = 1 << 30
QUANTILES = 256  # how finely a distribution of sizes is drawn

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_OCTETS = re.compile(r"(\d+(?:\.\d+)?)([kmg]?)", re.IGNORECASE)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    target: str  # HOST:PORT
    protocol: str = "smtp"
    connections: int = 1
    processes: int = 1  # that share the connections
    messages: int = 0  # 0 = MESSAGES_MAX
    duration_s: float = 0.0  # 0 = DURATION_MAX_S
    warmup_s: float = 0.0  # at the beginning; its messages are sent, and in no figure
    rate: float = 0.0  # messages/s over all connections; 0 = closed loop, as fast as it goes
    arrivals: str = "constant"  # of an open loop
    ramp_s: float = 0.0  # the rate, or the number of connections, grows to its value for so long
    size_octets: int = 10240
    sizes: str = ""  # a distribution instead: see parse_sizes()
    corpus: str = ""  # a directory or mbox of real messages instead
    recipients: int = 1
    per_connection: int = 0  # messages, then QUIT and a new connection; 0 = no limit
    pipelining: bool = False
    chunking: bool = False
    dots: bool = False  # every tenth line begins with a dot
    tls: str = "off"
    auth: tuple[str, ...] = ()  # "USER:PASSWORD"; connections take them in turn
    auth_mechanism: str = ""  # "" = the first of MECHANISMS that is offered
    reverse_path: str = REVERSE_PATH  # "user{1..1000}@example.test" stands for a thousand
    forward_path: str = FORWARD_PATH  # one mailbox and several recipients: "sink-1@…", "sink-2@…"
    retry_s: float = 0.0  # send again, so long after a transient reply or a break; 0 = never
    timeout_s: float = 60.0  # for a reply; then the connection is given up
    patience_s: float = 1.0  # the run ends when no connection became ready for so long
    mix: str = ""  # of a protocol that retrieves: one of MIXES; "message" is one task of it everywhere else
    newest: int = 10  # messages that a task of "fetch" takes
    deliver: str = ""  # "idle": where its mail goes in, lmtp://HOST:PORT or smtp://HOST:PORT
    owned: bool = False  # --i-own-this-target
    seed: int = 1
    run: str = ""  # part of every Message-ID; "" = from the clock
    ledger: str = ""  # file for what was accepted, refused, and not known


def check(plan: Plan) -> None:
    """Raises ValueError when the plan contradicts itself."""
    if not plan.messages and not plan.duration_s:
        raise ValueError("a run needs an end: messages or duration_s")
    for name, allowed in (("protocol", PROTOCOLS), ("tls", TLS_MODES), ("arrivals", ARRIVALS)):
        if getattr(plan, name) not in allowed:
            raise ValueError(f"{name} {getattr(plan, name)!r}: expected one of {', '.join(allowed)}")
    if plan.auth_mechanism and plan.auth_mechanism not in MECHANISMS:
        raise ValueError(
            f"auth_mechanism {plan.auth_mechanism!r}: expected one of {', '.join(MECHANISMS)}"
        )
    if plan.protocol == "submission" and not plan.auth:
        raise ValueError(
            "submission asks for AUTH (RFC 6409 §4.3): --auth USER:PASSWORD or --auth-file FILE; "
            "a server that wants none is loaded with `smtp-blaster smtp`"
        )
    if plan.protocol in MIXES:
        _check_mix(plan)
    if any(":" not in user for user in plan.auth):
        raise ValueError("auth: expected USER:PASSWORD")
    if plan.arrivals != "constant" and not plan.rate:
        raise ValueError("arrivals are those of an open loop: give it a rate")
    if plan.sizes and plan.corpus:
        raise ValueError("sizes and corpus exclude each other")
    if plan.processes > plan.connections:
        raise ValueError(
            f"{plan.processes} processes need at least as many connections, not {plan.connections}"
        )
    if plan.duration_s and plan.warmup_s >= plan.duration_s:
        raise ValueError(f"warmup: {plan.warmup_s} s leave nothing of {plan.duration_s} s")


def _check_mix(plan: Plan) -> None:
    mixes = MIXES[plan.protocol]
    if plan.mix not in mixes:
        raise ValueError(f"mix {plan.mix!r}: expected one of {', '.join(mixes)}")
    if not plan.auth:
        raise ValueError("whose mail? --auth USER:PASSWORD, several times, or --auth-file FILE")
    if plan.retry_s:
        raise ValueError("retry is for mail that is sent: a task of a mix is not repeated")
    if plan.mix != "idle":
        return
    parse_delivery(plan.deliver)
    if plan.duration_s > IDLE_MAX_S:
        raise ValueError(f"idle: --duration of at most {IDLE_MAX_S:g} s (RFC 2177: IDLE may end after 30 minutes)")
    if any("@" not in user.partition(":")[0] for user in plan.auth):
        raise ValueError("idle: mail goes to the users' names, so these must be mailboxes (user@domain)")
    if plan.processes > len(plan.auth):
        raise ValueError(f"idle: {plan.processes} processes need as many users, not {len(plan.auth)}")


def parse_delivery(text: str) -> tuple[str, str]:
    """protocol and target of "lmtp://HOST:PORT".  Raises ValueError."""
    protocol, separator, target = text.partition("://")
    if protocol not in ("lmtp", "smtp") or not separator or not target:
        raise ValueError(f"deliver {text!r}: expected lmtp://HOST:PORT or smtp://HOST:PORT")
    return protocol, target


def duration_s(plan: Plan) -> float:
    return plan.duration_s or DURATION_MAX_S


def parse_octets(text: str) -> int:
    """Octets of "10240", "10k" or "1.5m".  Raises ValueError."""
    found = _OCTETS.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size: expected octets, such as 10240, 10k or 1.5m")
    octets = int(float(found[1]) * _UNITS[found[2].lower()])
    if not OCTETS_MIN <= octets <= OCTETS_MAX:
        raise ValueError(f"{text!r}: a message has between {OCTETS_MIN} octets and 1g")
    return octets


def parse_sizes(text: str) -> list[tuple[int, float]]:
    """(octets, weight) pairs of a distribution.  Raises ValueError.

    "1k:60,10k:30,100k:9,1m:1"         each size with its weight
    "lognormal:median=8k,p99=200k"     drawn at QUANTILES points of equal weight; its tail ends at the last
    """
    kind, _, rest = text.partition(":")
    if kind == "lognormal":
        return _lognormal(text, rest)
    found = []
    for entry in text.split(","):
        size, colon, weight = entry.partition(":")
        try:
            found.append((parse_octets(size), float(weight) if colon else 1.0))
        except ValueError as error:
            raise ValueError(
                f'sizes {text!r}: {error} (expected "1k:60,10k:30" or "lognormal:median=8k,p99=200k")'
            ) from error
    if not all(weight >= 0 for _, weight in found) or not sum(weight for _, weight in found):
        raise ValueError(f"sizes {text!r}: weights are positive")
    return found


def _lognormal(text: str, rest: str) -> list[tuple[int, float]]:
    settings = dict(part.partition("=")[::2] for part in rest.split(","))
    if settings.keys() != {"median", "p99"}:
        raise ValueError(f'sizes {text!r}: expected "lognormal:median=8k,p99=200k"')
    median, p99 = parse_octets(settings["median"]), parse_octets(settings["p99"])
    if p99 <= median:
        raise ValueError(f"sizes {text!r}: p99 is above the median")
    from statistics import NormalDist  # for this alone: it takes its time to load

    normal = NormalDist().inv_cdf
    sigma = math.log(p99 / median) / normal(0.99)
    points = ((number + 0.5) / QUANTILES for number in range(QUANTILES))
    drawn = (median * math.exp(sigma * normal(point)) for point in points)
    return [(min(max(int(octets), OCTETS_MIN), OCTETS_MAX), 1.0) for octets in drawn]


def mailboxes(template: str) -> list[str]:
    """All that "user{1..1000}@host{1..3}.test" stands for, in order.  Raises ValueError."""
    parts = _RANGE.split(template)
    ranges, count = [], 1
    for low, high in zip(parts[1::3], parts[2::3], strict=True):
        if int(high) < int(low):
            raise ValueError(f"{template!r}: {{{low}..{high}}} is empty")
        count *= int(high) - int(low) + 1
        if count > MAILBOXES_MAX:
            raise ValueError(f"{template!r} stands for more than {MAILBOXES_MAX:,} mailboxes")
        ranges.append([str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)])
    texts = parts[::3]
    found = ["".join(pair) for pair in _weave(texts, ranges)]
    if not all(character.isprintable() and character not in "<> " for character in found[0]):
        raise ValueError(f"{template!r} is not a mailbox")
    return found


def _weave(texts: list[str], ranges: list[list[str]]) -> list[list[str]]:
    woven = []
    for chosen in product(*ranges):
        parts = [texts[0]]
        for number, text in zip(chosen, texts[1:], strict=True):
            parts += [number, text]
        woven.append(parts)
    return woven
