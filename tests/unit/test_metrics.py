"""Counters, their exposition and their sum over workers."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import FAMILIES, Histogram, Meter, Sample, quantile, render, total


def exposition(*meters: Meter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = render([meter.snapshot() for meter in meters]).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_names_follow_the_rules_of_exposition() -> None:
    for family in FAMILIES.values():
        assert family.name.startswith("gateway_")
        assert family.name.endswith("_total") == (family.kind == "counter"), family
        assert family.help


def test_each_worker_has_its_own_series() -> None:
    first, second = Meter(0), Meter(1)
    first.metrics.accepted_fsync += 3
    second.metrics.accepted_fsync += 4
    second.metrics.accepted_memory += 1
    found = exposition(first, second)
    name = "gateway_messages_accepted_total"
    assert found[key(name, worker="0", durability="fsync")] == 3
    assert found[key(name, worker="1", durability="fsync")] == 4
    assert found[key(name, worker="1", durability="memory")] == 1


def test_histogram_buckets_are_cumulative() -> None:
    meter = Meter(0)
    for value in (0.0001, 0.0005, 0.003, 99.0):
        meter.metrics.accept_seconds.observe(value)
    found = exposition(meter)
    name = "gateway_accept_seconds_bucket"
    assert found[key(name, worker="0", le="0.0005")] == 2
    assert found[key(name, worker="0", le="0.005")] == 3
    assert found[key(name, worker="0", le="+Inf")] == 4
    assert found[key("gateway_accept_seconds_count", worker="0")] == 4


def test_sources_are_asked_at_each_snapshot() -> None:
    meter = Meter(0)
    values = iter([1.0, 2.0])
    meter.add_source(
        lambda: [Sample("gateway_lane_connections", "gauge", "x", {"lane": "a"}, next(values))]
    )
    name = key("gateway_lane_connections", worker="0", lane="a")
    assert exposition(meter)[name] == 1
    assert exposition(meter)[name] == 2


def test_total_adds_up() -> None:
    first, second = Meter(0), Meter(1)
    first.metrics.sessions_open = 2
    second.metrics.sessions_open = 5
    first.metrics.message_octets.observe(2000)
    second.metrics.message_octets.observe(2000)
    summed = total([first.snapshot(), second.snapshot()])
    assert summed["fields"]["sessions_open"] == 7
    assert sum(summed["histograms"]["message_octets"]["counts"]) == 2
    assert summed["histograms"]["message_octets"]["sum"] == 4000


def test_quantile_is_the_bound_of_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    assert histogram.quantile(0.5) == 0.0
    for value in (0.5, 1.5, 1.5, 3.0):
        histogram.observe(value)
    assert histogram.quantile(0.25) == 1.0
    assert histogram.quantile(0.5) == 2.0
    assert histogram.quantile(1.0) == 4.0
    histogram.observe(100.0)
    assert quantile(histogram.bounds, histogram.counts, 1.0) == 4.0  # above all: the highest bound
