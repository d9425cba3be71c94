"""What is counted, and how it reads at /metrics.

    Flow      `metrics.x += 1` where it happens → snapshot() → (control channel) → render()
    Owns      Metrics, Histogram, Sample; the exposition names, one table: the fields below
    Limits    histograms have fixed bounds; samples of sources are bounded by their source
    Errors    none on the hot path; render() skips what a sibling of another version sent

A field's description is its HELP text; its Meta.extra names the exposition and its labels where the
name alone does not.  Gauges are fields that go down too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LONG_SECONDS = (0.001, 0.01, 0.1, 0.5, 1, 5, 30, 60, 300, 900, 3600, 14400, 86400, 432000)
OCTETS = tuple(float(1024 * 4**n) for n in range(10))  # 1 KiB … 256 MiB


class Histogram:
    """Counts by fixed bounds.  observe() is a binary search and two additions."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last one: above every bound
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, part: float) -> float:
        """The bound below which this part of the values lies; 0.0 without values."""
        return quantile(self.bounds, self.counts, part)


def quantile(bounds: Iterable[float], counts: list[int], part: float) -> float:
    """The upper bound of the bucket that holds this quantile; the highest one when above all."""
    bounds = list(bounds)
    wanted = sum(counts) * part
    seen = 0
    for index, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return bounds[min(index, len(bounds) - 1)]
    return 0.0


class Sample(NamedTuple):
    """A value that is asked for at scrape time; `kind` is "gauge" or "counter"."""

    name: str
    kind: str
    help: str
    labels: dict[str, str]
    value: float


def _counter(help_: str, name: str = "", **labels: str) -> Meta:
    return Meta(description=help_, extra={"kind": "counter", "name": name, "labels": labels})


def _gauge(help_: str) -> Meta:
    return Meta(description=help_, extra={"kind": "gauge", "name": "", "labels": {}})


def _histogram(help_: str) -> Meta:
    return Meta(description=help_, extra={"kind": "histogram", "name": "", "labels": {}})


def _seconds() -> Histogram:
    return Histogram(SECONDS)


_ACCEPTED = "Messages we took responsibility for"
_REJECTED = "Messages refused after their content was sent"
_OUTCOME = "Recipients settled or put off, by outcome"


class Metrics(msgspec.Struct):
    """A worker's counters: plain attributes, incremented in place."""

    # sessions
    sessions_total: Annotated[int, _counter("Connections accepted")] = 0
    sessions_open: Annotated[int, _gauge("Connections from clients")] = 0
    sessions_refused_total: Annotated[int, _counter("Connections answered with 421 at once")] = 0
    early_talkers_total: Annotated[int, _counter("Clients that spoke before the greeting")] = 0
    timeouts_total: Annotated[int, _counter("Sessions ended by a timeout or a slow client")] = 0
    command_errors_total: Annotated[int, _counter("Commands refused")] = 0
    received_octets_total: Annotated[int, _counter("Octets of mail data received")] = 0
    tls_handshakes_total: Annotated[int, _counter("TLS handshakes completed with clients")] = 0
    tls_failures_total: Annotated[int, _counter("TLS handshakes failed with clients")] = 0
    # messages in
    accepted_inline: Annotated[
        int, _counter(_ACCEPTED, "messages_accepted_total", durability="inline")
    ] = 0
    accepted_fsync: Annotated[
        int, _counter(_ACCEPTED, "messages_accepted_total", durability="fsync")
    ] = 0
    accepted_memory: Annotated[
        int, _counter(_ACCEPTED, "messages_accepted_total", durability="memory")
    ] = 0
    rejected_transient: Annotated[
        int, _counter(_REJECTED, "messages_rejected_total", **{"class": "transient"})
    ] = 0
    rejected_permanent: Annotated[
        int, _counter(_REJECTED, "messages_rejected_total", **{"class": "permanent"})
    ] = 0
    recipients_accepted_total: Annotated[int, _counter("RCPT commands accepted")] = 0
    recipients_rejected_total: Annotated[int, _counter("RCPT commands refused")] = 0
    accept_seconds: Annotated[Histogram, _histogram("From end of data to its reply")] = (
        msgspec.field(default_factory=_seconds)
    )
    message_octets: Annotated[Histogram, _histogram("Sizes of messages accepted")] = msgspec.field(
        default_factory=lambda: Histogram(OCTETS)
    )
    # messages read
    retrieved_total: Annotated[int, _counter("Messages fetched by POP3, POP2 and IMAP")] = 0
    retrieved_octets_total: Annotated[int, _counter("Octets of them")] = 0
    # spool
    spool_syncs_total: Annotated[int, _counter("Groups of records written and synced")] = 0
    # delivery
    delivered: Annotated[int, _counter(_OUTCOME, "recipients_total", outcome="delivered")] = 0
    relayed: Annotated[int, _counter(_OUTCOME, "recipients_total", outcome="relayed")] = 0
    deferred: Annotated[int, _counter(_OUTCOME, "recipients_total", outcome="deferred")] = 0
    bounced: Annotated[int, _counter(_OUTCOME, "recipients_total", outcome="bounced")] = 0
    expired: Annotated[int, _counter(_OUTCOME, "recipients_total", outcome="expired")] = 0
    discarded: Annotated[int, _counter(_OUTCOME, "recipients_total", outcome="discarded")] = 0
    reports_total: Annotated[int, _counter("Delivery status notifications generated")] = 0
    connections_open: Annotated[int, _gauge("Connections to next hops")] = 0
    attempt_seconds: Annotated[Histogram, _histogram("Duration of one delivery attempt")] = (
        msgspec.field(default_factory=_seconds)
    )
    delivery_seconds: Annotated[Histogram, _histogram("From our 250 to the end of a recipient")] = (
        msgspec.field(default_factory=lambda: Histogram(LONG_SECONDS))
    )
    # the worker itself
    loop_lag_seconds: Annotated[Histogram, _histogram("How late the event loop's timers ran")] = (
        msgspec.field(default_factory=_seconds)
    )
    log_lost_lines_total: Annotated[int, _counter("Log lines dropped")] = 0


class Family(NamedTuple):
    """How a field of Metrics is shown."""

    name: str
    kind: str
    help: str
    labels: dict[str, str]


def _families() -> dict[str, Family]:
    families = {}
    for field, hint in get_type_hints(Metrics, include_extras=True).items():
        meta: Meta = hint.__metadata__[0]
        extra: dict[str, Any] = meta.extra or {}
        name = "gateway_" + (extra["name"] or field)
        families[field] = Family(name, extra["kind"], meta.description or "", extra["labels"])
    return families


FAMILIES = _families()


class Meter:
    """A worker's Metrics together with the values that are asked for at scrape time."""

    __slots__ = ("_sources", "metrics", "worker")

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.metrics = Metrics()
        self._sources: list[Callable[[], Iterable[Sample]]] = []

    def add_source(self, source: Callable[[], Iterable[Sample]]) -> None:
        """Ask this function at each scrape; it must be quick and must not block."""
        self._sources.append(source)

    def snapshot(self) -> dict[str, Any]:
        """Everything as JSON values: {"worker", "fields", "histograms", "samples"}."""
        fields: dict[str, int] = {}
        histograms: dict[str, Any] = {}
        for name, family in FAMILIES.items():
            value = getattr(self.metrics, name)
            if family.kind == "histogram":
                histograms[name] = {
                    "bounds": list(value.bounds),
                    "counts": list(value.counts),
                    "sum": value.sum,
                }
            else:
                fields[name] = value
        return {
            "worker": self.worker,
            "fields": fields,
            "histograms": histograms,
            "samples": [list(sample) for source in self._sources for sample in source()],
        }


class _Collector:
    """Snapshots of all workers as prometheus_client's families, told apart by the label worker."""

    def __init__(self, snapshots: list[dict[str, Any]]) -> None:
        self._snapshots = snapshots
        self._found: dict[str, Metric] = {}

    def collect(self) -> Iterator[Metric]:
        for snapshot in self._snapshots:
            worker = {"worker": str(snapshot["worker"])}
            for field, family in FAMILIES.items():
                if family.kind == "histogram":
                    self._add_histogram(family, snapshot["histograms"].get(field), worker)
                elif field in snapshot["fields"]:
                    self._add(family, snapshot["fields"][field], worker)
            for name, kind, help_, labels, value in snapshot["samples"]:
                self._add(Family(name, kind, help_, labels), value, worker)
        yield from self._found.values()

    def _add(self, family: Family, value: float, worker: dict[str, str]) -> None:
        labels = worker | family.labels
        found = self._found.get(family.name)
        if found is None:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            found = self._found[family.name] = kind(family.name, family.help, labels=list(labels))
        if isinstance(found, CounterMetricFamily | GaugeMetricFamily):
            found.add_metric(list(labels.values()), value)

    def _add_histogram(
        self, family: Family, value: dict[str, Any] | None, worker: dict[str, str]
    ) -> None:
        if value is None:
            return
        found = self._found.get(family.name)
        if found is None:
            found = HistogramMetricFamily(family.name, family.help, labels=list(worker))
            self._found[family.name] = found
        buckets: list[tuple[str, float]] = []
        seen = 0
        for bound, count in zip([*value["bounds"], float("inf")], value["counts"], strict=True):
            seen += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", seen))
        if isinstance(found, HistogramMetricFamily):
            found.add_metric(list(worker.values()), buckets, value["sum"])


def render(snapshots: list[dict[str, Any]]) -> bytes:
    """The Prometheus text of these snapshots (text format 0.0.4)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshots))
    return generate_latest(registry)


def total(snapshots: list[dict[str, Any]]) -> dict[str, Any]:
    """One snapshot that adds up all others (histograms and fields; samples are left out)."""
    fields: dict[str, int] = {}
    histograms: dict[str, Any] = {}
    for snapshot in snapshots:
        for name, value in snapshot["fields"].items():
            fields[name] = fields.get(name, 0) + value
        for name, value in snapshot["histograms"].items():
            sum_ = histograms.setdefault(
                name, {"bounds": value["bounds"], "counts": [0] * len(value["counts"]), "sum": 0.0}
            )
            counts = zip(sum_["counts"], value["counts"], strict=True)
            sum_["counts"] = [a + b for a, b in counts]
            sum_["sum"] += value["sum"]
    return {"worker": "all", "fields": fields, "histograms": histograms, "samples": []}
