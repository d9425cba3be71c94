"""Twice the load that can be borne: what is taken keeps its latency, the rest is refused, and then it is over.

Owns      Settings, run(), the criteria
Flow      capacity R (closed loop) → 0.8 R → 2 R → 0.8 R again → drained → ledgers → verdicts
Files     <where>/overload.json (the verdict), one saved run a phase, overload.html
Limits    every phase lasts as long as it was told to; a site that does not drain within DRAIN_S has failed
Errors    SiteError when something did not start or end; a criterion that is not met is a verdict

R is what this machine does with this set-up and these tools, so every criterion is a ratio within one run.  The gateway
has half of the CPUs, the tools the others.  The clients are strangers (not in relay_from), who are refused first.

    relay    to a sink, by SMTP; the clock of R stops when the sink has everything
    accept   durably, then discarded: the disk and the session alone
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from smtp_blaster import ledger, result
from smtp_blaster.result import MESSAGE, Run

from benches.campaigns.criteria import Criterion, at_least, at_most
from benches.campaigns.samples import Sampler, Samples
from benches.campaigns.site import Site, SiteError, free_port

LOW = 0.8  # of R
CAPACITY_CONNECTIONS = 50
FRESH = 0.1  # of the messages come over a connection of their own
DRAIN_S = 120.0
SETTLE_S = 3.0  # until the limit is found; counted apart

# The criteria, each a ratio to what the same run measured at 0.8 R, or a bound that the configuration gives.
OFFERED_MIN = 0.9  # of what was planned: else the tools were too slow, and nothing is shown
TAKEN_MIN = 0.4  # of R: to refuse a pipelined transaction costs a fifth of relaying a message
MEDIAN_MAX = 10.0  # of that at 0.8 R …
P99_MAX = 10.0
QUEUE_S = 0.5  # limits.shed_queue_s …
LATENCY_FLOOR_MS = 1e3 * QUEUE_S  # … and a wait below that is never a failure
QUEUE_MAX_S = 8 * QUEUE_S  # what waits at the worst, in seconds of R
MEMORY_MAX_OCTETS = (
    192 << 20
)  # more than at 0.8 R: 64 MiB of bodies, connections, and what the allocator keeps
AFTER_MAX = 2.0  # median after the load to that before it
DRAINED_MAX_S = 10.0

CONFIG = """
[access]
relay_from = ["192.0.2.0/24"]

[limits]
sessions = 20000
sessions_per_client = 20000

[[listen]]
service = "smtp"
address = "127.0.0.1:{port}"

[[route]]
domains = ["example.test"]
next_hop = ["{next_hop}"]
"""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    set_up: str = "relay"  # relay | accept
    seconds: float = 60.0  # of the load; the other phases are shorter
    factor: float = 2.0
    size_octets: int = 10240
    connections: int = 1000
    rate: float = 0.0  # R, when it is known; 0: measured


class Verdict(msgspec.Struct, kw_only=True):
    set_up: str
    rate: float  # R, messages/s
    taken: float  # of R, under the load
    refused: float  # of what was offered
    criteria: list[Criterion] = []
    ledger: dict[str, Any] | None = None
    replies: list[str] = []  # what the refused heard
    phases: dict[str, dict[str, float]] = {}
    is_conclusive: bool = True  # the tools could offer the load

    @property
    def is_good(self) -> bool:
        return all(criterion.is_met for criterion in self.criteria)


class Phase(msgspec.Struct):
    """The runs of one phase: kept connections first, then a connection for each message."""

    name: str
    begin: float  # on the clock of the samples
    end: float
    runs: list[Run]

    def total(self, what: str) -> int:
        return sum(getattr(run.totals, what) for run in self.runs)

    @property
    def seconds(self) -> float:
        return max(run.totals.seconds for run in self.runs)

    @property
    def main(self) -> Run:
        return self.runs[0]

    def latency(self, what: str) -> float:
        found = self.main.latency.get(MESSAGE)
        return float(getattr(found, what)) if found is not None else math.inf


class Campaign:
    """One set-up, measured."""

    def __init__(self, site: Site, settings: Settings, say: Callable[[str], None]) -> None:
        self.site = site
        self.settings = settings
        self._say = say
        self._ledgers: list[Path] = []
        self._port, self._sink_port = free_port(), free_port()

    def run(self) -> Verdict:
        site, settings = self.site, self.settings
        relays = settings.set_up == "relay"
        hop = f"smtp://127.0.0.1:{self._sink_port}" if relays else "discard:"
        site.configure(CONFIG.format(port=self._port, next_hop=hop))
        sink = site.sink("delivered", self._sink_port) if relays else None
        site.start()
        with Sampler(site, 0.5) as sampler:
            samples = sampler.samples
            rate = settings.rate or self._capacity()
            short = max(2.0, settings.seconds / 4)
            before = self._load(samples, "0.8 R", LOW * rate, short)
            site.wait_until_empty(DRAIN_S)
            during = self._load(
                samples, f"{settings.factor:g} R", settings.factor * rate, settings.seconds
            )
            after = self._load(samples, "0.8 R again", LOW * rate, short)
            drained_s = site.wait_until_empty(DRAIN_S)
        verdict = judge(settings, rate, (before, during, after), samples, drained_s)
        verdict.criteria.append(
            at_least("log lines that tell of it", site.log_text('"event":"shedding"'), 1)
        )
        if sink is not None:
            sink.stop()
            self._prove(verdict)
        during.main.server = samples.as_server(during.begin, during.end)
        during.main.ledger = verdict.ledger
        self._save(verdict, (before, during, after))
        return verdict

    # -- phases ----------------------------------------------------------------------------------------------------

    def _capacity(self) -> float:
        """Messages/s that are taken and gone, with clients that wait for their replies."""
        seconds = max(2.0, self.settings.seconds / 4)
        self._say(f"{self.settings.set_up}: capacity")
        before = self._handled()
        run = self._source("capacity", CAPACITY_CONNECTIONS, "--duration", seconds)
        drained_s = self.site.wait_until_empty(DRAIN_S)
        handled = self._handled() - before
        if not handled:
            raise SiteError("nothing was taken: the gateway's log tells why")
        return handled / (run.totals.seconds + drained_s)

    def _handled(self) -> int:
        fields = [answer["metrics"]["fields"] for answer in self.site.ask("top")]
        return sum(field["relayed"] + field["discarded"] for field in fields)

    def _load(self, samples: Samples, name: str, rate: float, seconds: float) -> Phase:
        self._say(f"{self.settings.set_up}: {name}, {rate:,.0f}/s for {seconds:g} s")
        samples.mark(name)
        begin = samples.now()
        words = ("--duration", seconds, "--warmup", min(SETTLE_S, seconds / 3))
        slug = name.replace(" ", "-")
        fresh = self._begin(
            f"{slug}-fresh",
            self.settings.connections,
            *words,
            "--rate",
            FRESH * rate,
            "--per-connection",
            1,
        )
        main = self._source(slug, self.settings.connections, *words, "--rate", (1 - FRESH) * rate)
        return Phase(name, begin, samples.now(), [main, self._end(fresh)])

    def _source(self, name: str, connections: int, *words: object) -> Run:
        return self._end(self._begin(name, connections, *words))

    def _begin(self, name: str, connections: int, *words: object) -> str:
        ledger_file = self.site.where / f"{name}.tsv"
        self._ledgers.append(ledger_file)
        self.site.tool(
            name, "smtp", f"127.0.0.1:{self._port}", "--connections", connections, "--pipelining",
            "--size", self.settings.size_octets, "--ledger", ledger_file,
            "--save", self.site.where / f"{name}.json", "--json", *words,
        )  # fmt: skip
        return name

    def _end(self, name: str) -> Run:
        tool = next(tool for tool in self.site.tools if tool.name == name)
        tool.wait(self.settings.seconds + 120.0)
        path = self.site.where / f"{name}.json"
        if not path.exists():
            raise SiteError(f"{name} left no result:\n{tool.trouble}")
        return result.load(path)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _prove(self, verdict: Verdict) -> None:
        delivered = self.site.where / "delivered.tsv"
        difference = ledger.prove(self._ledgers, [delivered])
        verdict.ledger = msgspec.to_builtins(difference)
        verdict.criteria += [
            at_most("accepted and lost", difference.lost, 0),
            at_most("altered", difference.altered, 0),
            at_most("delivered twice without a reason", difference.duplicated_unexplained, 0),
        ]

    def _save(self, verdict: Verdict, phases: tuple[Phase, ...]) -> None:
        where = self.site.where
        encoded = msgspec.json.format(msgspec.json.encode(verdict), indent=1)
        (where / "overload.json").write_bytes(encoded + b"\n")
        for phase in phases:
            result.save(where / f"{phase.name.replace(' ', '-')}.json", phase.main)


def judge(
    settings: Settings,
    rate: float,
    phases: tuple[Phase, Phase, Phase],
    samples: Samples,
    drained_s: float,
) -> Verdict:
    """Everything but the ledger and the log."""
    before, during, after = phases
    planned = settings.factor * rate * during.seconds
    answered = during.total("accepted") + during.total("refused")
    refused = during.total("refused") + during.total("broken")
    taken = during.total("accepted") / during.seconds / rate
    verdict = Verdict(
        set_up=settings.set_up,
        rate=rate,
        taken=taken,
        refused=refused / max(1, answered + during.total("broken")),
        replies=refusals(during),
        phases={phase.name: _figures(phase) for phase in phases},
        is_conclusive=answered + during.total("broken") >= OFFERED_MIN * planned,
    )
    memory = [
        max((v for _, v in samples.between("memory", p.begin, p.end)), default=0.0) for p in phases
    ]
    queue = max((v for _, v in samples.between("queue", during.begin, during.end)), default=0.0)
    verdict.criteria = [
        at_least("taken, of R", taken, TAKEN_MIN),
        at_most("median to that at 0.8 R", *_ratio(during, before, "p50_ms", MEDIAN_MAX)),
        at_most("99 % to that at 0.8 R", *_ratio(during, before, "p99_ms", P99_MAX)),
        at_most(
            "refused otherwise than by 421, 45x and 4.x.x",
            sum(_is_odd(phase) for phase in phases),
            0,
        ),
        at_most("longest queue, seconds of R", queue / rate, QUEUE_MAX_S, "s"),
        at_most("memory more than at 0.8 R", memory[1] - memory[0], MEMORY_MAX_OCTETS, "octets"),
        at_most("median afterwards to that before", *_ratio(after, before, "p50_ms", AFTER_MAX)),
        at_most(
            "refused afterwards", after.total("refused") / max(1, after.total("accepted")), 0.001
        ),
        at_most("queue empty after the end", drained_s, DRAINED_MAX_S, "s"),
    ]
    return verdict


def refusals(phase: Phase) -> list[str]:
    """What the refused heard first; the 503 to what was pipelined behind a MAIL is left out."""
    texts: dict[str, int] = {}
    for run in phase.runs:
        for reply in _refused(run):
            text = f"{reply.code} {reply.enhanced} {reply.text}"
            texts[text] = texts.get(text, 0) + reply.count
    return [
        f"{count:,} × {text}" for text, count in sorted(texts.items(), key=lambda item: -item[1])
    ]


def _refused(run: Run) -> Iterator[result.ReplyCount]:
    for reply in run.replies:
        if reply.code >= 400 and not (reply.code == 503 and reply.stage in ("rcpt", "data")):
            yield reply


def _says_busy(reply: result.ReplyCount) -> bool:
    """The enhanced status of a 421 that came instead of the greeting is no part of the protocol (RFC 2034 §4)."""
    return (
        reply.code in (421, 450, 451, 452)
        and bool(reply.text)
        and (reply.code == 421 or reply.enhanced[:1] == "4")
    )


def _is_odd(phase: Phase) -> int:
    """Refusals that are not what overload is to be told by."""
    return sum(
        reply.count for run in phase.runs for reply in _refused(run) if not _says_busy(reply)
    )


def _ratio(phase: Phase, base: Phase, what: str, bound: float) -> tuple[float, float, str]:
    """The ratio and its bound; what is below LATENCY_FLOOR_MS counts as no more than the bound."""
    value, usual = phase.latency(what), base.latency(what)
    ratio = value / usual if usual else math.inf
    if value <= LATENCY_FLOOR_MS:
        return min(ratio, bound), bound, f"({value:.1f} ms to {usual:.1f} ms)"
    return ratio, bound, f"({value:.1f} ms to {usual:.1f} ms)"


def _figures(phase: Phase) -> dict[str, float]:
    figures: dict[str, float] = {
        name: phase.total(name) for name in ("accepted", "refused", "broken", "connections_opened")
    }
    figures["seconds"] = round(phase.seconds, 2)
    for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"):
        figures[name] = round(phase.latency(name), 2)
    return figures


def report(where: Path, page: Path) -> bool:
    """The page of the three phases, laid over each other; False when its libraries are not installed."""
    try:
        from smtp_blaster import report as pages
    except ImportError:
        return False
    names = ("0.8 R", "2 R", "0.8 R again")
    files = [(name, where / f"{name.replace(' ', '-')}.json") for name in names]
    pages.write(page, [(name, result.load(path)) for name, path in files if path.exists()])
    return True
