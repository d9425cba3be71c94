"""Saved runs as pages and tables: what they say, that they load nothing, that what servers say stays text."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hdrh.histogram import HdrHistogram
from smtp_blaster import report, result
from smtp_blaster.cli import main
from smtp_blaster.compare import compare, middle_spread, spread
from smtp_blaster.quantity import in_words
from smtp_blaster.report_data import percentile_line, rate_lines
from smtp_blaster.report_plots import POINTS_MAX, Line, draw, step_of, thin
from smtp_blaster.result import Calibration, Latency, ReplyCount, Run, Series, Totals

EVIL = '<script>alert(1)</script><img src="http://evil.test/x">'


def latency(middle_ms: float, count: int = 2000, seed: int = 1) -> Latency:
    chance = random.Random(seed)
    histogram = HdrHistogram(1, 3600 * 10**9, 3)
    for _ in range(count):
        histogram.record_value(int(chance.lognormvariate(math.log(middle_ms * 1e6), 0.5)))
    percentile = histogram.get_value_at_percentile
    return Latency(
        count=count,
        min_ms=histogram.get_min_value() / 1e6,
        mean_ms=histogram.get_mean_value() / 1e6,
        p50_ms=percentile(50) / 1e6,
        p90_ms=percentile(90) / 1e6,
        p99_ms=percentile(99) / 1e6,
        p999_ms=percentile(99.9) / 1e6,
        max_ms=histogram.get_max_value() / 1e6,
        hdr=histogram.encode().decode(),
    )


def run_of(seconds: int = 20, rate: int = 100, middle_ms: float = 5.0, seed: int = 1, **parts) -> Run:
    chance = random.Random(seed)
    accepted = [rate + chance.randint(-5, 5) for _ in range(seconds)]
    p50 = [middle_ms * chance.uniform(0.95, 1.05) for _ in range(seconds)]
    return Run(
        tool="smtp-blaster 1",
        started_at="2026-01-02T03:04:05+00:00",
        command=["smtp-blaster", "smtp", "127.0.0.1:2525", "--to", "a b"],
        plan={"protocol": "smtp", "target": "127.0.0.1:2525", "connections": 20, "rate": float(rate),
              "duration_s": float(seconds), "size_octets": 10240},
        host={"cpus": 2, "kernel": "6", "python": "3"},
        totals=Totals(accepted=sum(accepted), refused=3, broken=1, octets=10**8, seconds=float(seconds),
                      messages_per_s=sum(accepted) / seconds, cpu_us_per_message=42.0),
        latency={"message": latency(middle_ms, seed=seed), "dot": latency(middle_ms / 2), "mail": latency(0.2),
                 "connect": latency(0.05, 20), "quit": latency(0.1, 1)},
        series=Series(offered=[rate] * seconds, accepted=accepted, refused=[0] * (seconds - 1) + [3],
                      broken=[0] * seconds, in_flight=[5] * seconds, p50_ms=p50,
                      p99_ms=[ms * 3 for ms in p50], max_ms=[ms * 4 for ms in p50]),
        replies=[ReplyCount(stage="rcpt", code=450, enhanced="4.2.0", text=EVIL, count=3),
                 ReplyCount(stage="dot", code=250, enhanced="2.0.0", text="Ok", count=sum(accepted))],
        **parts,
    )  # fmt: skip


def whole_run() -> Run:
    """With everything that a run can have."""
    run = run_of(
        calibration=Calibration(
            messages_per_s=5000.0, cpu_us_per_message=30.0, floor_ms={"message": 0.5, "dot": 0.2}, ceiling_used=0.8
        ),
        ledger={"accepted": 5, "delivered": 6, "lost": 1, "altered": 0, "duplicated_unexplained": 1,
                "duplicated_explained": 0, "lost_ids": [f"{EVIL} to x"]},
        server={
            "series": {
                "memory": {"unit": "octets", "t": [0, 1, 2], "v": [1e8, 1.2e8, None]},
                "cpu": {"unit": "%", "t": [0, 1], "v": [10, 90]},
                "nothing": {"unit": "", "t": [], "v": []},
            },
            "marks": [{"t": 7.0, "text": f"killed {EVIL}"}, {"t": 3.0, "text": "load began"}],
        },
        notes=[EVIL],
    )  # fmt: skip
    run.plan["auth"] = ["alice", EVIL]
    return run


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data") and not value.startswith(("#", "data:")):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(path: Path, *runs: Run) -> Page:
    report.write(path, [(f"run-{number}", run) for number, run in enumerate(runs)])
    return Page(path.read_text())


# -- the page --------------------------------------------------------------------------------------


def test_a_page_has_all_of_a_run_and_loads_nothing(tmp_path):
    page = page_of(tmp_path / "r.html", whole_run())
    assert not page.open and not page.loads
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags and "img" not in page.tags
    assert page.text.count(EVIL) == 5  # a reply, a note, a plan's value, a mark, a lost message: all as text
    for said in ("SMTP to 127.0.0.1:2525", "not clean", "tool ceiling used", "80 %", "What happened when",
                 "4.2.0", "load began", "memory", "from 95.4 MiB to 114 MiB", "'a b'"):  # fmt: skip
        assert said in page.text, said
    text = (tmp_path / "r.html").read_text()
    assert not re.findall(r"#fe[0-9a-f]{2}7d", text), "a colour that is not the page's"
    assert "@import" not in text and "url(http" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    "run",
    [Run(), run_of(1), run_of(2), Run(totals=Totals(refused=5))],
    ids=["empty", "one second", "two seconds", "all refused"],
)
def test_a_run_with_little_in_it_has_a_page(tmp_path, run):
    page = page_of(tmp_path / "r.html", run)
    assert not page.open


def test_an_empty_histogram_is_left_out():
    histogram = HdrHistogram(1, 3600 * 10**9, 3)
    nothing = latency(1.0)
    nothing.hdr = histogram.encode().decode()
    assert percentile_line("x", "s0", nothing) is None


def test_a_bad_histogram_is_an_error(tmp_path):
    run = run_of()
    run.latency["message"].hdr = "nonsense"
    with pytest.raises(ValueError, match="HdrHistogram"):
        report.write(tmp_path / "r.html", [("r", run)])


def test_a_long_run_makes_no_large_page(tmp_path):
    report.write(tmp_path / "r.html", [("r", run_of(4 * 3600))])
    assert (tmp_path / "r.html").stat().st_size < 400_000


def test_the_percentile_line_is_the_histogram():
    given = latency(5.0)
    line = percentile_line("x", "s0", given)
    assert line is not None
    at = dict(zip((round(x, 6) for x in line.x), line.y, strict=True))
    assert line.x[0] == 1.0 and math.isclose(line.x[-1], 2000)
    assert math.isclose(at[1.0], given.min_ms, rel_tol=2e-3)
    assert math.isclose(line.y[-1], given.max_ms, rel_tol=2e-3)
    near_99 = min(line.x, key=lambda x: abs(x - 100))
    quantile = 100 * (1 - 1 / near_99)
    expected = HdrHistogram.decode(given.hdr).get_value_at_percentile(quantile) / 1e6
    assert math.isclose(line.y[line.x.index(near_99)], expected, rel_tol=0.02)
    assert all(a <= b for a, b in zip(line.y, line.y[1:], strict=False))


def test_a_last_second_that_hardly_began_is_no_drop():
    run = run_of(10)
    run.totals.seconds = 9.2
    assert [len(line.x) for line in rate_lines(run)] == [9, 9]
    run.totals.seconds = 10.0
    assert [line.name for line in rate_lines(run)] == ["offered", "accepted", "refused"]


def test_long_lines_are_thinned_by_what_they_mean():
    values: list[float | None] = [1.0] * 10_000
    values[5000] = 9.0
    values[:100] = [None] * 100
    assert step_of(10_000) * POINTS_MAX >= 10_000
    thinned = thin(values, max)
    assert len(thinned) <= POINTS_MAX and max(value for value in thinned if value == value) == 9.0
    assert math.isnan(thinned[0])


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("y", [[], [0.0], [5.0], [0.0, 0.0], [math.nan, math.nan], [1e-6, 1e9], [3.0, 3.0]])
def test_any_line_can_be_drawn(y, log):
    svg = draw([Line("x", "s0", list(range(len(y))), y)], says='a "plot"', unit="ms", log=log)
    assert svg.count("<svg") == 2 and "a &quot;plot&quot;" in svg


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.0, "ms", "0"), (0.0005, "ms", "0.500 µs"), (0.9399, "ms", "940 µs"), (0.99999, "ms", "1.00 ms"),
        (1250, "ms", "1.25 s"), (150, "s", "2.5 min"), (7200, "s", "2 h"), (3.0, "octets", "3 B"),
        (10240, "octets", "10.0 KiB"), (5 * 2**30, "octets", "5.00 GiB"), (8912.4, "/s", "8,912/s"),
        (12.345, "%", "12.3 %"), (7, "", "7.00"), (math.nan, "ms", "–"),
    ],
)  # fmt: skip
def test_quantities(value, unit, words):
    assert in_words(value, unit) == words


def test_exact_quantities_have_no_empty_zeros():
    assert [in_words(value, "s", exact=True) for value in (30.0, 1.5, 100.0)] == ["30 s", "1.5 s", "100 s"]


# -- comparison ------------------------------------------------------------------------------------


def test_ratios_and_their_noise():
    found = compare([("a", run_of(seed=1)), ("b", run_of(seed=2)), ("c", run_of(seed=3, rate=200, middle_ms=9.0))])
    rows = {row.name: row for row in found.rows}
    assert found.names == ["a", "b", "c"]
    accepted, p50 = rows["accepted"], rows["message p50"]
    assert accepted.verdicts == ["same", "better"]
    assert p50.verdicts == ["same", "worse"]
    assert p50.ratios[1] == pytest.approx(1.8, rel=0.1)
    assert p50.noise[1] is not None and 0 < p50.noise[1] < 0.1
    assert rows["dot p99"].noise == [None, None] and rows["dot p99"].verdicts == ["", ""]
    assert "tls p50" not in rows
    assert any("rate 100.0 and 200.0" in note for note in found.notes)


def test_a_stage_that_one_run_lacks():
    lacking = run_of()
    del lacking.latency["mail"]
    rows = {row.name: row for row in compare([("a", run_of()), ("b", lacking)]).rows}
    assert rows["mail p50"].values[1] is None and rows["mail p50"].ratios == [None]


def test_noise_of_the_middle_does_not_feel_outliers():
    calm = [1.0, *(1.0 + 0.01 * (n % 5) for n in range(50)), 1.0]
    wild = list(calm)
    wild[20] = 500.0
    assert middle_spread(wild) == pytest.approx(middle_spread(calm), rel=0.3)
    assert spread(wild) > 100 * spread(calm)
    assert math.isnan(spread([1.0] * 6)) and math.isnan(middle_spread([None] * 60))


def test_hosts_and_ceilings_are_noted():
    other = whole_run()
    other.host = {"cpus": 64}
    notes = "\n".join(compare([("a", run_of()), ("b", other)]).notes)
    assert "different hosts" in notes and "ceiling" in notes


def test_a_page_of_several_runs(tmp_path):
    page = page_of(tmp_path / "c.html", run_of(seed=1), run_of(seed=2, middle_ms=8.0), whole_run())
    assert not page.open and not page.loads
    assert len(page.ids) == len(set(page.ids))
    assert "run-0 against run-1 against run-2" in page.text
    assert page.tags.count("details") >= 3


# -- the commands ----------------------------------------------------------------------------------


def command(*words: object) -> tuple[int, str]:
    outcome = CliRunner().invoke(main, [*map(str, words)])
    return outcome.exit_code, outcome.output


def save(path: Path, run: Run) -> Path:
    result.save(path, run)
    return path


def test_report_command(tmp_path):
    a = save(tmp_path / "a.json", run_of())
    assert command("report", a) == (0, f"{tmp_path / 'a.html'}\n")
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    assert command("report", a, a, "-o", tmp_path / "both.html")[0] == 0
    assert command("report", a, "-o", tmp_path / "no" / "where.html")[0] == 1


def test_compare_command(tmp_path):
    a, b = save(tmp_path / "a.json", run_of()), save(tmp_path / "b.json", run_of(seed=2))
    code, output = command("compare", a, b, "-o", tmp_path / "c.html")
    assert code == 0 and "message p99" in output and "A B A B" in output
    assert (tmp_path / "c.html").exists()
    found = json.loads(command("compare", a, b, "--json")[1])
    assert found["names"] == ["a", "b"] and found["rows"][0]["name"] == "accepted"
    (tmp_path / "x").mkdir()
    same = save(tmp_path / "x" / "a.json", run_of())
    names = json.loads(command("compare", a, same, "--json")[1])["names"]
    assert names == [str(tmp_path / "a"), str(tmp_path / "x" / "a")]


@pytest.mark.parametrize("name", ["report", "compare"])
def test_what_is_no_run_is_said(tmp_path, name):
    bad = tmp_path / "bad.json"
    bad.write_text("{}x")
    assert command(name, bad)[0] == 2
    assert "not a saved run" in command(name, bad)[1]
    bad.write_bytes(msgspec.json.encode({"schema": 99}))
    assert "schema 99" in command(name, bad)[1]
    assert command(name, tmp_path / "none.json")[0] == 2


def test_compare_needs_two(tmp_path):
    code, output = command("compare", save(tmp_path / "a.json", run_of()))
    assert code == 2 and "two runs" in output


def test_the_ledger_goes_into_a_saved_run(tmp_path):
    run = save(tmp_path / "a.json", run_of())
    entries = tmp_path / "entries"
    entries.write_text("a\td\tx\n")
    assert command("ledger", entries, entries, "--into", run)[0] == 0
    assert (result.load(run).ledger or {})["accepted"] == 1
    assert command("report", run)[0] == 0
    assert "Nothing was lost" in (tmp_path / "a.html").read_text()
