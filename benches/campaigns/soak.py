"""A long time of mixed mail, with kills, reloads and restarts: memory and descriptors stay, the ledger is clean.

Owns      Settings, Soak, Verdict
Flow      start → sources, vandals, events by seed → sources end → queue empty → quiet → ledgers → verdict
          stop(), or a source that ends before its time → the same way to the verdict, from there
Files     <where>/soak.json (the verdict), kept.json (a saved run with the samples), ledgers, log
Limits    settings.seconds, DRAIN_S and QUIET_S; about `rate` messages a second
Errors    SiteError when something did not start or end; a criterion that is not met is a verdict

Worker 1 is killed again and again, worker 0 never; restarts come in the first quarter only.  So worker 0 and the
supervisor live undisturbed, but for reloads, from there to the end: the slope is that of their memory.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from smtp_blaster import ledger, result
from smtp_blaster.ledger_file import mark, read
from smtp_blaster.result import Run

from benches.campaigns.criteria import Criterion, at_most
from benches.campaigns.samples import Sampler, Samples
from benches.campaigns.site import Site, SiteError, Tool, free_port
from benches.campaigns.trend import trend
from benches.campaigns.vandals import Vandals
from gateway.cli.init import self_signed

MIB = 1 << 20
HOUR_S = 3600.0
DRAIN_S = 180.0
QUIET_S = 5.0  # before and twice after, for the descriptors; less when all of it is short

RESTARTS_UNTIL = 0.25  # of the time
JUDGED_FROM = 0.6  # a worker takes memory for the largest bursts in its first twelve minutes or so, and keeps it
JUDGED_MIN_S = 900.0  # a slope from less says nothing
# Fails when even the least slope that the measurements allow is above it: 24 MiB in a day would fill nobody's memory
# before the next release, and a leak of one object a message at ten a second is 2 MiB an hour.
SLOPE_MAX = 1 * MIB  # octets an hour
DESCRIPTORS_MORE = 8  # in the quiet at the end, to that at the start: segments that are ready
PLANNED_MIN = 200.0  # messages of a source: with fewer, chance decides
MISSING_MAX = 0.25  # a source that gave up early soaks nothing; restarts cost some
SILENCE_MAX_S = 60.0  # of a source at the end: a restart takes less, a source that hangs takes more
SAY_S = 5.0
LOOK_S = 0.25  # how often it is seen that somebody said stop, or that a source is gone
SEGMENT = 16 * MIB
SPOOL_MAX = (
    2 * 5 * SEGMENT
)  # in the quiet: for each worker the current segment, two spares, two with stragglers

CONFIG = """
workers = 2
drain_s = 10.0

[tls]
certificate = "{certificate}"
key = "{key}"

[limits]
error_delay_s = {error_delay_s}
command_s = 60.0

[spool]
segment_octets = {segment}

[queue]
retry_s = [1.0, 2.0, 5.0]
connect_retry_s = [0.5, 1.0, 2.0]

[delivery]
idle_s = 0.5

[[listen]]
service = "smtp"
address = "127.0.0.1:{smtp}"
tls = "starttls"

[[listen]]
service = "lmtp"
address = "127.0.0.1:{lmtp}"

[[listen]]
service = "http"
address = "127.0.0.1:{http}"

[[route]]
domains = ["refused.test"]
next_hop = ["smtp://127.0.0.1:{refusing}"]

[[route]]
domains = ["returns.test"]
next_hop = ["smtp://127.0.0.1:{returns}"]

[[route]]
domains = ["*"]
next_hop = ["smtp://127.0.0.1:{delivered}"]
"""

# What the next hop does: mail waits, comes again, breaks off behind the final dot; now and then nobody is there.
FAULTS = (
    "greeting=421@0.01", "rcpt=451@0.02", "content=451@0.01", "content=drop@0.003", "data=delay:50ms@0.05",
    "all=pause:2s@every:60s", "all=down:3s@every:200s",
)  # fmt: skip

# name: part of the rate, protocol, options
SOURCES: dict[str, tuple[float, str, tuple[object, ...]]] = {
    "kept": (0.45, "smtp", ("--connections", 5, "--pipelining", "--sizes", "1k:50,10k:35,100k:14,1m:1")),
    "tls": (0.2, "smtp", ("--connections", 4, "--per-connection", 3, "--chunking", "--tls", "starttls",
                          "--size", "4k")),
    "lmtp": (0.15, "lmtp", ("--connections", 3, "--recipients", 3, "--pipelining", "--dots")),
    "single": (0.15, "smtp", ("--connections", 3, "--per-connection", 1)),
    "bounced": (0.05, "smtp", ("--connections", 1, "--size", "2k", "--from", "sender@returns.test",
                               "--to", "nobody{1..9}@refused.test")),
}  # fmt: skip


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    seconds: float = 3600.0
    rate: float = 60.0  # messages/s of all sources
    seed: int = 1


class Verdict(msgspec.Struct, kw_only=True):
    seconds: float
    accepted: int
    ended_early: str = ""  # why, when it did
    gone: list[str] = []  # sources that ended before their time
    slopes: dict[
        str, dict[str, float]
    ] = {}  # octets an hour, by process: slope, margin (95 %), count
    events: dict[str, int] = {}
    vandals: dict[str, int] = {}
    ledger: dict[str, Any] = {}
    cpu: float = 0.0  # of one CPU, by the gateway
    criteria: list[Criterion] = []

    @property
    def is_good(self) -> bool:
        return all(criterion.is_met for criterion in self.criteria)

    def line(self) -> str:
        """All of it in one line."""
        slope = self.slopes.get("worker 0")
        memory = (
            f"{slope['slope'] / MIB:+.2f} ± {slope['margin'] / MIB:.2f} MiB/h"
            if slope
            else "too short to judge its memory"
        )
        failed = [criterion.what for criterion in self.criteria if not criterion.is_met]
        early = f" (ended early: {self.ended_early})" if self.ended_early else ""
        return (
            f"soak: {'FAILED (' + '; '.join(failed) + ')' if failed else 'ok'}: {self.seconds:.0f} s{early}, "
            f"{self.accepted:,} messages, worker 0 {memory}, lost {self.ledger.get('lost')}, "
            f"altered {self.ledger.get('altered')}, twice {self.ledger.get('duplicated')} "
            f"(without a reason {self.ledger.get('duplicated_unexplained')}), "
            + ", ".join(f"{count} {name}s" for name, count in self.events.items())
        )


class Soak:
    """One soak."""

    def __init__(self, site: Site, settings: Settings, say: Callable[[str], None]) -> None:
        self.site = site
        self.settings = settings
        self._say = say
        self._ports = {
            name: free_port()
            for name in ("smtp", "lmtp", "http", "refusing", "returns", "delivered")
        }
        self._quiet_s = min(QUIET_S, settings.seconds / 10)
        self._kills = site.where / "kills.tsv"
        self._events = {"kill": 0, "reload": 0, "restart": 0}
        self._sources: list[Tool] = []
        self._ended_early = ""
        self._gone: list[str] = []

    def stop(self) -> None:
        """No more load: run() goes on to the verdict.  May be called by a signal handler."""
        self._ended_early = self._ended_early or "told to stop"

    def run(self) -> Verdict:
        site, settings = self.site, self.settings
        self._kills.touch()
        self._configure(error_delay_s=0.1)
        site.sink(
            "delivered",
            self._ports["delivered"],
            *(word for f in FAULTS for word in ("--fault", f)),
        )
        site.sink("refusing", self._ports["refusing"], "--fault", "rcpt=550:no such user")
        site.sink("returns", self._ports["returns"])
        site.start()
        with Sampler(site, min(3.0, max(0.5, settings.seconds / 1200))) as sampler:
            samples = sampler.samples
            time.sleep(self._quiet_s)
            began = samples.now()
            vandals = Vandals(
                self._ports["smtp"], seed=settings.seed, per_s=max(0.5, settings.rate / 60)
            )
            self._start_sources()
            self._live(samples, began)
            runs = self._end_sources()
            ended = samples.now()
            vandals.stop()
            self._say("soak: waiting for the queue to empty")
            site.wait_until_empty(DRAIN_S)
            samples.mark("queue empty")
            quiet = samples.now()
            time.sleep(2 * self._quiet_s)
        for tool in site.tools:
            tool.stop()
        verdict = self._judge(samples, runs, (began, ended, quiet))
        verdict.vandals = dict(vandals.came)
        self._save(verdict, samples, runs)
        return verdict

    # -- what happens --------------------------------------------------------------------------------------------------

    def _configure(self, *, error_delay_s: float) -> None:
        certificate, key = _certificate(self.site.where)
        text = CONFIG.format(
            certificate=certificate,
            key=key,
            segment=SEGMENT,
            error_delay_s=error_delay_s,
            **self._ports,
        )
        self.site.configure(text)

    def _start_sources(self) -> None:
        settings, where = self.settings, self.site.where
        for number, (name, (part, protocol, options)) in enumerate(SOURCES.items()):
            port = self._ports["lmtp" if protocol == "lmtp" else "smtp"]
            tool = self.site.tool(
                name, protocol, f"127.0.0.1:{port}", "--duration", settings.seconds, "--rate", settings.rate * part,
                "--arrivals", "poisson", "--patience", 120, "--seed", settings.seed + number,
                "--ledger", where / f"{name}.tsv", "--save", where / f"{name}.json", "--json", *options,
            )  # fmt: skip
            self._sources.append(tool)

    def _live(self, samples: Samples, began: float) -> None:
        """Until the time is over, stop() was called, or a source is gone."""
        settings = self.settings
        events = sorted(schedule(settings.seconds, settings.seed))
        for at, event in [*events, (settings.seconds, "end")]:
            said_at = -SAY_S
            while (left := began + at - samples.now()) > 0:
                # A source begins later than this clock and takes as long: it must outlive the last look.
                self._gone = [tool.name for tool in self._sources if not tool.is_running]
                if self._gone:
                    self._ended_early = f"{', '.join(self._gone)} ended by itself"
                if self._ended_early:
                    return
                if samples.now() - said_at >= SAY_S:
                    said_at = samples.now()
                    done = f"{said_at - began:,.0f} of {settings.seconds:,.0f} s"
                    self._say(f"soak: {done}, next: {event}")
                time.sleep(min(left, LOOK_S))
            if event != "end":
                self._events[event] += 1
                samples.mark(event)
                getattr(self, f"_{event}")()

    def _kill(self) -> None:
        """The last worker; the supervisor starts another."""
        workers = self.site.workers()
        if len(workers) > 1:
            mark(self._kills, "worker 1")
            os.kill(workers[-1], signal.SIGKILL)

    def _reload(self) -> None:
        """With a changed configuration."""
        self._configure(error_delay_s=0.1 + 0.01 * self._events["reload"])
        self.site.reload()

    def _restart(self) -> None:
        self.site.stop()
        self.site.start()

    def _end_sources(self) -> dict[str, Run]:
        runs = {}
        if self._ended_early:
            self._say(f"soak: {self._ended_early}; on to the verdict")
            for tool in self._sources:
                tool.tell()
        for tool in self._sources:
            tool.wait(180.0)
            path = self.site.where / f"{tool.name}.json"
            if path.exists():
                runs[tool.name] = result.load(path)
            elif self._ended_early:  # it died, or was not yet there to be told
                runs[tool.name] = Run()
            else:
                raise SiteError(f"{tool.name} left no result:\n{tool.trouble}")
        return runs

    # -- what came of it -----------------------------------------------------------------------------------------------

    def _judge(
        self, samples: Samples, runs: dict[str, Run], times: tuple[float, float, float]
    ) -> Verdict:
        began, ended, quiet = times
        where = self.site.where
        accepted = [where / f"{name}.tsv" for name in SOURCES if name != "bounced"]
        accepted = [path for path in accepted if path.exists()]
        difference = ledger.prove(accepted, [where / "delivered.tsv"], kills=[self._kills])
        reports = {message_id for message_id, _, _ in read(where / "returns.tsv")}
        verdict = Verdict(
            seconds=ended - began,
            accepted=sum(run.totals.accepted for run in runs.values()),
            ended_early=self._ended_early,
            gone=self._gone,
            events=self._events,
            ledger=msgspec.to_builtins(difference),
        )
        cpu = [value for _, value in samples.between("cpu", began, ended)]
        verdict.cpu = sum(cpu) / len(cpu) if cpu else 0.0
        judged = began + JUDGED_FROM * self.settings.seconds  # restarts come before, also when it ended early
        for process in ("worker 0", "supervisor"):
            found = trend(samples.between(f"memory of {process}", judged, ended))
            if math.isfinite(found.margin):
                verdict.slopes[process] = {
                    "slope": HOUR_S * found.slope, "margin": HOUR_S * found.margin, "points": found.points
                }  # fmt: skip
            if ended - judged >= JUDGED_MIN_S:
                what = f"memory of {process}: the least slope in an hour"
                verdict.criteria.append(at_most(what, HOUR_S * found.least, SLOPE_MAX, "octets"))
        for process in ("worker 0", "supervisor"):
            name = f"descriptors of {process}"
            first = [value for _, value in samples.between(name, 0.0, began)]
            last = [
                value for _, value in samples.between(name, quiet + self._quiet_s, samples.now())
            ]
            more = min(last, default=0.0) - max(first, default=0.0)
            verdict.criteria.append(
                at_most(f"{name}: more than at the start", more, DESCRIPTORS_MORE)
            )
        spool = [
            value for _, value in samples.between("spool", quiet + self._quiet_s, samples.now())
        ]
        told = runs["bounced"].totals.accepted - len(reports)
        seconds = min(ended - began, self.settings.seconds)
        missing = max(_missing(run, self.settings.rate * SOURCES[name][0] * seconds) for name, run in runs.items())
        silence = max(_silence_s(run, seconds) for run in runs.values())
        verdict.criteria += [
            at_most("spool when all is sent", min(spool, default=0.0), SPOOL_MAX, "octets"),
            at_most("sources that ended before their time", len(self._gone), 0),
            at_most("a source's silence at the end", silence, SILENCE_MAX_S, "s"),
            at_most("part of a source's mail that never came", missing, MISSING_MAX),
            at_most("accepted and lost", difference.lost, 0),
            at_most("altered", difference.altered, 0),
            at_most("delivered twice without a reason", difference.duplicated_unexplained, 0),
            at_most("refused by the next hop, and the sender not told", told, 0),
            at_most("tracebacks in the log", self.site.log_text("Traceback"), 0),
        ]
        return verdict

    def _save(self, verdict: Verdict, samples: Samples, runs: dict[str, Run]) -> None:
        where = self.site.where
        encoded = msgspec.json.format(msgspec.json.encode(verdict), indent=1)
        (where / "soak.json").write_bytes(encoded + b"\n")
        run = runs["kept"]
        run.server = samples.as_server()
        run.ledger = verdict.ledger
        run.notes.append(verdict.line())
        result.save(where / "kept.json", run)


def schedule(seconds: float, seed: int) -> Iterator[tuple[float, str]]:
    """(second, event) in no order: kills and reloads all the time, restarts at first."""
    chance = random.Random(seed)
    for event, usual_s, until in (
        ("kill", 60.0, 1.0),
        ("reload", 90.0, 1.0),
        ("restart", 200.0, RESTARTS_UNTIL),
    ):
        mean_s = min(usual_s, seconds * until / 3)
        at = chance.expovariate(1.0 / mean_s)
        while at < seconds * until:
            yield at, event
            at += chance.expovariate(1.0 / mean_s)


def _missing(run: Run, planned: float) -> float:
    """The part of a source's mail that was not even tried; 0.0 when it had too little to judge by."""
    totals = run.totals
    tried = totals.accepted + totals.refused + totals.broken
    return max(0.0, 1.0 - tried / planned) if planned >= PLANNED_MIN else 0.0


def _silence_s(run: Run, seconds: float) -> float:
    """From the last second in which a message was taken to the end."""
    taken = [second for second, count in enumerate(run.series.accepted, 1) if count]
    return max(0.0, seconds - max(taken, default=0) * run.series.interval_s)


def _certificate(where: Path) -> tuple[Path, Path]:
    """A self-signed one, made when it is first asked for."""
    certificate, key = where / "tls.pem", where / "tls.key"
    if not key.exists():
        for path, octets in zip((certificate, key), self_signed("mx.example.test"), strict=True):
            path.write_bytes(octets)
    return certificate, key


def report(where: Path, page: Path) -> bool:
    """The page; False when its libraries are not installed."""
    try:
        from smtp_blaster import report as pages
    except ImportError:
        return False
    pages.write(page, [("soak", result.load(where / "kept.json"))])
    return True
