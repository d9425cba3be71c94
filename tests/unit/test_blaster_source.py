"""The source alone: what it sends, when, what it counts, and what becomes of it when the server goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from click.testing import CliRunner
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st
from smtp_blaster import ledger, result, summary, tally
from smtp_blaster.cli import main
from smtp_blaster.conditions import Conditions, parse_conditions
from smtp_blaster.content import Mail, identify, restamped
from smtp_blaster.ledger_file import rows
from smtp_blaster.plan import Plan, check, mailboxes, parse_octets, parse_sizes
from smtp_blaster.sink import Fault, Receipt, Sink, SinkPlan
from smtp_blaster.source import Result, Source
from smtp_blaster.supply import Supply, schedule

from gateway.cli.init import self_signed

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def load(sink_plan: SinkPlan | None = None, *, loop: str = "uvloop", **plan) -> tuple[Result, list[Receipt]]:
    """One source against one sink."""

    async def both() -> tuple[Result, list[Receipt]]:
        receipts: list[Receipt] = []
        sink = Sink(sink_plan or SinkPlan(), receipts.append)
        await sink.start()
        found = await Source(Plan(target=f"127.0.0.1:{sink.port}", run="test", **plan)).run()
        await sink.stop()
        return found, receipts

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(both())


def ids(receipts: list[Receipt]) -> list[str]:
    return [identify(receipt.content)[0] for receipt in receipts]


# -- time -------------------------------------------------------------------------------------------


def test_a_server_that_stalls_cannot_hide_it():
    """A hundred messages a second while one reply takes half a second: all that waited for it say so."""
    stall = Fault.parse("content=delay:500ms@nth:60")
    found, _ = load(SinkPlan(faults=(stall,)), rate=100.0, messages=100, connections=1, size_octets=1000)
    assert found.accepted == 100
    slow_replies = sum(count for index, count in found.latency["dot"].items() if tally.value_of(index) > 450e6)
    waited = sum(count for index, count in found.latency["message"].items() if tally.value_of(index) > 100e6)
    # The stage says that one reply was slow; the messages, that the forty due in its first 0.4 s waited, too.
    assert slow_replies >= 1
    assert waited >= 35
    assert found.late_starts >= 35


def test_messages_that_are_due_and_never_begun_are_told():
    slow = SinkPlan(faults=(Fault("content", delay_s=0.3),))
    found, _ = load(slow, rate=100.0, duration_s=1.0, connections=1, size_octets=1000)
    assert found.accepted + found.unsent == 100
    assert found.unsent > 90
    assert sum(interval.offered for interval in found.intervals) == 100


def test_parts_of_an_open_loop_are_the_whole():
    def first(plan: Plan, part: int, count: int) -> list[int]:
        starts = schedule(plan, part)
        return [next(starts) for _ in range(count)]

    whole = Plan(target="x", rate=1000.0, messages=1)
    three = Plan(target="x", rate=1000.0, messages=1, processes=3)
    assert sorted(first(three, 0, 10) + first(three, 1, 10) + first(three, 2, 10)) == first(whole, 0, 30)


def test_poisson_arrivals_have_the_rate_and_do_not_repeat_in_another_part():
    plan = Plan(target="x", rate=1000.0, messages=1, processes=2, arrivals="poisson")
    for part in (0, 1):
        starts = schedule(plan, part)
        times = [next(starts) for _ in range(4000)]
        assert times == sorted(times)
        assert 7.4e9 < times[-1] < 8.6e9  # 4000 at 500/s: 8 s, give or take five standard deviations
    assert next(schedule(plan, 0)) != next(schedule(plan, 1))


def test_a_ramp_begins_slowly_and_ends_at_the_rate():
    starts = schedule(Plan(target="x", rate=100.0, ramp_s=2.0, messages=1), 0)
    times = [next(starts) for _ in range(300)]
    assert sum(start < 1e9 for start in times) == pytest.approx(25, abs=1)
    assert sum(start < 2e9 for start in times) == pytest.approx(100, abs=1)
    assert sum(2e9 <= start < 3e9 for start in times) == pytest.approx(100, abs=1)


def test_a_warm_up_is_in_no_figure():
    found, receipts = load(rate=200.0, duration_s=0.6, warmup_s=0.3, size_octets=1000)
    assert found.warmed_up + found.accepted <= len(receipts) <= 120
    assert 0 < found.accepted <= 61 and found.warmed_up > 0
    assert sum(found.latency["message"].values()) == found.accepted
    assert "connect" not in found.latency


# -- figures ----------------------------------------------------------------------------------------


@given(st.integers(0, 2 * tally.HIGHEST_NS))
def test_buckets_are_those_of_hdr_histogram(ns):
    histogram = HdrHistogram(1, tally.HIGHEST_NS, tally.SIGNIFICANT_DIGITS)
    ns = min(ns, tally.HIGHEST_NS)
    index = tally.index_of(ns)
    histogram.record_value(tally.value_of(index), 1)
    assert index == histogram._counts_index_for(ns)
    assert tally.value_of(index) == histogram.get_highest_equivalent_value(ns)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 10**11), min_size=1, max_size=50))
def test_percentiles_are_those_of_hdr_histogram(times):
    histogram = HdrHistogram(1, tally.HIGHEST_NS, tally.SIGNIFICANT_DIGITS)
    counts: dict[int, int] = {}
    for ns in times:
        histogram.record_value(ns)
        counts[tally.index_of(ns)] = counts.get(tally.index_of(ns), 0) + 1
    found = summary.latency(counts)
    for part, value in ((50, found.p50_ms), (90, found.p90_ms), (99, found.p99_ms), (100, found.max_ms)):
        assert value == histogram.get_value_at_percentile(part) / 1e6
    assert HdrHistogram.decode(found.hdr).get_total_count() == len(times) == found.count


def test_results_of_processes_add_up():
    one, receipts = load(messages=30, connections=3, size_octets=1000)
    two, _ = load(SinkPlan(faults=(Fault("rcpt", code=452),)), messages=5, size_octets=1000)
    whole = summary.merge([one, two])
    assert (whole.accepted, whole.refused) == (30, 5)
    assert whole.replies == {"dot 250": 30, "rcpt 452": 5}
    assert sum(whole.latency["mail"].values()) == 35
    assert [interval.accepted for interval in whole.intervals] == [30]
    assert len(receipts) == 30


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("mode", [{}, {"pipelining": True}, {"chunking": True}])
def test_every_stage_has_its_histogram(mode, loop):
    found, _ = load(loop=loop, messages=20, connections=2, recipients=3, size_octets=1000, **mode)
    counts = {stage: sum(buckets.values()) for stage, buckets in found.latency.items()}
    data = {} if "chunking" in mode else {"data": 20}
    assert counts == {
        "connect": 2, "greeting": 2, "hello": 2, "mail": 20, "rcpt": 60, **data, "dot": 20, "quit": 2, "message": 20,
    }  # fmt: skip


# -- content ----------------------------------------------------------------------------------------


def test_large_contents_arrive_whole_where_the_socket_takes_them_in_parts(tmp_path):
    """The kernel sends them piece by piece, and goes on where it stopped."""
    sink = SinkPlan(ledger=str(tmp_path / "got"), receive_buffer_octets=4096)
    found, _ = load(sink, messages=6, connections=2, size_octets=3_000_000, dots=True, ledger=str(tmp_path / "sent"))
    assert found.accepted == 6
    difference = ledger.prove([tmp_path / "sent"], [tmp_path / "got"])
    assert (difference.accepted, difference.delivered, difference.is_clean) == (6, 6, True)


def test_sizes_are_drawn_as_told():
    found, receipts = load(messages=400, connections=4, sizes="1k:60,4k:30,20k:10")
    sizes = [len(receipt.content) for receipt in receipts]
    assert set(sizes) == {1024, 4096, 20480}
    assert 200 <= sizes.count(1024) <= 280 and 20 <= sizes.count(20480) <= 60
    assert found.octets == sum(sizes)


def test_a_lognormal_mix_has_its_median_and_its_tail():
    sizes = sorted(octets for octets, _ in parse_sizes("lognormal:median=8k,p99=200k"))
    assert sizes[len(sizes) // 2] == pytest.approx(8192, rel=0.05)
    assert sizes[int(len(sizes) * 0.99)] == pytest.approx(204800, rel=0.1)


@pytest.mark.parametrize(
    ("text", "octets"), [("300", 300), ("10k", 10240), ("1.5m", 1572864), ("1K", 1024)]
)
def test_sizes_of_messages(text, octets):
    assert parse_octets(text) == octets


@pytest.mark.parametrize("text", ["", "x", "10kb", "10", "2g", "-1k"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"size|between"):
        parse_octets(text)


@pytest.mark.parametrize("text", ["1k:x", "1k:-1", "1k:0", "lognormal:median=8k", "lognormal:median=8k,p99=4k"])
def test_what_is_no_mix_of_sizes(text):
    with pytest.raises(ValueError, match="sizes"):
        parse_sizes(text)


def test_mailbox_templates():
    assert mailboxes("a@x") == ["a@x"]
    assert mailboxes("u{08..10}@h{1..2}.x") == [f"u{n}@h{h}.x" for n in ("08", "09", "10") for h in (1, 2)]
    with pytest.raises(ValueError, match="empty"):
        mailboxes("u{2..1}@x")
    with pytest.raises(ValueError, match="more than"):
        mailboxes("u{1..2000}@h{1..2000}")


def test_messages_go_to_all_mailboxes_of_a_template_in_turn():
    _, receipts = load(
        messages=10, size_octets=1000, recipients=2,
        forward_path="user{1..5}@example.test", reverse_path="from{1..2}@example.test",
    )  # fmt: skip
    assert [receipt.rcpts for receipt in receipts[:3]] == [
        ["user1@example.test", "user2@example.test"],
        ["user3@example.test", "user4@example.test"],
        ["user5@example.test", "user1@example.test"],
    ]
    assert [receipt.mail for receipt in receipts[:2]] == ["<from1@example.test>", "<from2@example.test>"]


REAL = (
    b"Return-Path: <x@y>\nmessage-id:\n <old@id>\nSubject: umlaut\nDate: Thu, 1 Jan 1970 00:00:00 +0000\n"
    b"To: someone\n\n.a line with a dot\nand \xfcmlaut\n\nMessage-ID: <in.the@body>\n"
)


def test_real_messages_are_stamped_anew():
    text = restamped(REAL)
    assert b"old@id" not in text and b"1970" not in text
    assert text.startswith(b"Return-Path: <x@y>\r\nSubject: umlaut\r\nTo: someone\r\n\r\n.a line")
    assert text.endswith(b"Message-ID: <in.the@body>\r\n")


@pytest.mark.parametrize("kind", ["eml", "maildir", "mbox"])
def test_a_corpus_is_sent_and_recognised(kind, tmp_path):
    if kind == "mbox":
        corpus = tmp_path / "mbox"
        corpus.write_bytes(b"".join(b"From x Thu Jan  1 00:00:00 1970\n" + REAL + b"\n" for _ in range(3)))
    else:
        corpus = tmp_path / "corpus"
        folder = corpus / "cur" if kind == "maildir" else corpus / "a" / "b"
        for each in (folder, corpus / "new"):
            each.mkdir(parents=True, exist_ok=True)
        for number in range(3):
            (folder / f"{number}.eml").write_bytes(REAL)
    sent, got = tmp_path / "sent", tmp_path / "got"
    found, receipts = load(SinkPlan(ledger=str(got)), messages=9, corpus=str(corpus), ledger=str(sent))
    assert found.accepted == 9
    assert all(receipt.mail.endswith("BODY=8BITMIME") for receipt in receipts)
    assert all(b"\r\n.a line with a dot\r\n" in receipt.content for receipt in receipts)
    assert len(set(ids(receipts))) == 9
    assert ledger.prove([sent], [got]).is_clean


def test_an_empty_corpus_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no messages"):
        Source(Plan(target="127.0.0.1:1", messages=1, corpus=str(tmp_path)))


# -- who it is --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    where = tmp_path_factory.mktemp("keys")
    for name, octets in zip(("certificate", "key"), self_signed("sink.example.test"), strict=True):
        (where / name).write_bytes(octets)
    return str(where / "certificate"), str(where / "key")


@pytest.mark.parametrize("tls", ["off", "starttls", "implicit"])
@pytest.mark.parametrize("mechanism", ["", "PLAIN", "LOGIN", "SCRAM-SHA-256"])
def test_submission_with_every_mechanism(mechanism, tls, key_pair):
    users = ("alice:secret one", "bob:zwölf")
    settings = {} if tls == "off" else {"certificate": key_pair[0], "key": key_pair[1], "tls": tls}
    found, receipts = load(
        SinkPlan(auth=users, require_auth=True, **settings),
        protocol="submission", messages=8, connections=4, auth=users, auth_mechanism=mechanism, tls=tls,
    )  # fmt: skip
    assert (found.accepted, found.troubles) == (8, {})
    assert sum(found.latency["auth"].values()) == 4
    assert ("tls" in found.latency) == (tls != "off")
    assert len(receipts) == 8


def test_a_password_that_is_wrong_ends_the_run_with_the_reason():
    found, _ = load(
        SinkPlan(auth=("alice:right",), require_auth=True),
        protocol="submission", messages=5, connections=2, auth=("alice:wrong",), patience_s=0.3,
    )  # fmt: skip
    assert (found.accepted, found.unsent) == (0, 5)
    assert any(text.startswith("auth: 535") for text in found.troubles)


def test_submission_wants_auth():
    with pytest.raises(ValueError, match="--auth"):
        check(Plan(target="x", protocol="submission", messages=1))


# -- a server that goes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "patience_s"), [(20, 20.0), (80, 0.6)])
def test_a_server_that_comes_back_gets_the_rest(tmp_path, first, patience_s):
    """Broken transactions are unknown, not accepted; the others wait and are sent.

    Patience begins with the break, not with the connection (80 messages take a second).
    """
    sent, got = tmp_path / "sent", tmp_path / "got"

    async def scenario() -> Result:
        sink = Sink(SinkPlan(ledger=str(got), faults=(Fault("content", delay_s=0.05),)))
        await sink.start()
        address = f"127.0.0.1:{sink.port}"
        plan = Plan(
            target=address, messages=first + 40, connections=4, size_octets=1000, ledger=str(sent),
            patience_s=patience_s,
        )  # fmt: skip
        source = Source(plan)
        run = asyncio.create_task(source.run())
        while source.accepted < first:
            await asyncio.sleep(0.01)
        await sink.stop()
        await asyncio.sleep(0.3)
        sink = Sink(SinkPlan(address=address, ledger=str(got), append=True))
        await sink.start()
        found = await run
        await sink.stop()
        return found

    found = uvloop.run(scenario())
    assert found.accepted + found.broken == first + 40
    assert 1 <= found.broken <= 4
    assert found.connections_failed > 0 and found.unsent == 0
    unknown = [row for row in rows(sent) if row[0] == "unknown"]
    assert len(unknown) <= found.broken
    difference = ledger.prove([sent], [got])
    assert (difference.lost, difference.altered, difference.accepted) == (0, 0, found.accepted)


def test_what_was_not_accepted_is_sent_again_under_the_same_id(tmp_path):
    sent, got = tmp_path / "sent", tmp_path / "got"
    faults = tuple(
        Fault(stage, probability=0.15, **how)
        for stage in ("mail", "rcpt", "data", "content")
        for how in ({"code": 451}, {"drop": True})
    )
    found, receipts = load(
        SinkPlan(ledger=str(got), faults=faults),
        messages=80, connections=4, recipients=2, retry_s=0.02, size_octets=1000, patience_s=20.0, ledger=str(sent),
    )  # fmt: skip
    assert (found.accepted, found.refused, found.broken) == (80, 0, 0)
    assert found.retried > 0
    assert len(set(ids(receipts))) == 80
    difference = ledger.prove([sent], [got])
    assert (difference.accepted, difference.lost, difference.altered) == (160, 0, 0)
    assert difference.duplicated_unexplained == 0


def test_a_message_sent_again_by_its_source_explains_one_more_copy(tmp_path):
    """The relay took both tries, and the sink confirmed both: only the source knows why."""
    source, sink = ledger.Ledger(tmp_path / "sent"), ledger.Ledger(tmp_path / "got")
    source.unknown("a", ["x"])
    for name in ("a", "b"):
        source.add(name, "1", ["x"])
        for _ in range(2):
            sink.add(name, "1", ["x"])
    source.close()
    sink.close()
    difference = ledger.prove([tmp_path / "sent"], [tmp_path / "got"])
    assert (difference.duplicated_explained, difference.duplicated_unexplained) == (1, 1)
    assert difference.unexplained_ids == ["b to x"]


def test_permanent_refusals_are_not_sent_again():
    found, _ = load(SinkPlan(faults=(Fault("rcpt", code=550),)), messages=5, retry_s=0.01)
    assert (found.refused, found.retried) == (5, 0)


def test_nothing_answers_forever():
    async def scenario() -> Result:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        plan = Plan(target=f"127.0.0.1:{port}", messages=3, timeout_s=0.5, patience_s=0.5)
        found = await Source(plan).run()
        server.close()
        return found

    found = uvloop.run(scenario())
    assert (found.accepted, found.unsent) == (0, 3)
    assert any("no answer" in text for text in found.troubles)


def test_421_is_a_refusal_that_is_known():
    found, _ = load(SinkPlan(faults=(Fault("content", code=421, probability=0.3),)), messages=30, connections=2)
    assert found.accepted + found.refused == 30
    assert found.broken == 0 and found.refused > 0


# -- the command ------------------------------------------------------------------------------------


@contextlib.contextmanager
def sink_process(*words: str) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-m", "smtp_blaster", "sink", "127.0.0.1:0", "--json", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            yield int(process.stderr.readline().rsplit(maxsplit=1)[-1])
        finally:
            process.terminate()


def environment() -> dict[str, str]:
    root = Path(__file__).parent.parent.parent
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'tools'}"}


def blaster(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smtp_blaster", *words],
        capture_output=True, text=True, timeout=60, check=False, env=environment(),
    )  # fmt: skip


def test_several_processes_are_one_run(tmp_path):
    saved, sent, got = tmp_path / "run.json", tmp_path / "sent", tmp_path / "got"
    with sink_process() as port:
        done = blaster(
            "smtp", f"127.0.0.1:{port}", "--processes", "2", "--connections", "4", "--messages", "101", "--size", "1k",
            "--auth", "alice:secret", "--patience", "0.3", "--save", str(saved), "--json",
        )  # fmt: skip
    # The sink offers no AUTH: that is said, and no password anywhere.
    assert done.returncode == 1
    assert "secret" not in done.stdout + saved.read_text()
    assert any("does not offer AUTH" in note for note in json.loads(done.stdout)["notes"])
    with sink_process("--ledger", str(got)) as port:
        done = blaster(
            "smtp", f"127.0.0.1:{port}", "--processes", "2", "--connections", "4", "--messages", "101", "--size", "1k",
            "--ledger", str(sent), "--save", str(saved), "--json",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = result.load(saved)
    assert json.loads(done.stdout)["totals"]["accepted"] == run.totals.accepted == 101
    assert run.totals.connections_opened == 4
    assert sum(run.series.accepted) == run.latency["message"].count == 101
    assert ledger.prove([sent], [got]).is_clean


def test_an_interrupted_run_tells_what_it_saw(tmp_path):
    with sink_process() as port:
        process = subprocess.Popen(
            [sys.executable, "-m", "smtp_blaster", "smtp", f"127.0.0.1:{port}", "--duration", "60", "--rate", "200",
             "--ledger", str(tmp_path / "sent"), "--json"],
            stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (tmp_path / "sent").exists() or len(list(ledger.read(tmp_path / "sent"))) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    run = json.loads(out)
    assert run["notes"][0].startswith("interrupted")
    assert run["totals"]["accepted"] == len(list(ledger.read(tmp_path / "sent"))) >= 20


def test_a_ledger_survives_the_death_of_its_source(tmp_path):
    with sink_process("--ledger", str(tmp_path / "got")) as port:
        process = subprocess.Popen(
            [sys.executable, "-m", "smtp_blaster", "smtp", f"127.0.0.1:{port}", "--duration", "60",
             "--connections", "4", "--ledger", str(tmp_path / "sent")],
            stdout=subprocess.DEVNULL, env=environment(), start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (tmp_path / "sent").exists() or len(list(ledger.read(tmp_path / "sent"))) < 500:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
    difference = ledger.prove([tmp_path / "sent"], [tmp_path / "got"])
    assert difference.accepted >= 500
    assert (difference.lost, difference.altered) == (0, 0)


def test_calibration_stands_beside_the_result():
    with sink_process() as port:
        done = blaster("smtp", f"127.0.0.1:{port}", "--rate", "50", "--duration", "1", "--calibrate", "--json")
    calibration = json.loads(done.stdout)["calibration"]
    assert calibration["messages_per_s"] > 50 and calibration["cpu_us_per_message"] > 0
    assert {"mail", "rcpt", "data", "dot", "message"} <= calibration["floor_ms"].keys()
    assert 0 < calibration["ceiling_used"] < 1


def test_tables_for_people():
    with sink_process("--fault", "rcpt=452@0.5") as port:
        done = blaster("smtp", f"127.0.0.1:{port}", "--messages", "40", "--connections", "2")
    assert done.returncode == 0
    for word in ("accepted", "refused", "p99.9", "message", "452"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["smtp", "nowhere"], "HOST:PORT"),
        (["smtp", "192.0.2.1:25"], "--i-own-this-target"),
        (["submission", "127.0.0.1:1"], "--auth"),
        (["smtp", "127.0.0.1:1", "--size", "1"], "between"),
        (["smtp", "127.0.0.1:1", "--sizes", "1k:x"], "sizes"),
        (["smtp", "127.0.0.1:1", "--arrivals", "poisson"], "open loop"),
        (["smtp", "127.0.0.1:1", "--processes", "2"], "connections"),
        (["smtp", "127.0.0.1:1", "--lab", "delay=5"], "delay=50ms"),
        (["smtp", "127.0.0.1:1", "--duration", "1", "--warmup", "2"], "warmup"),
    ],
)
def test_wrong_usage_is_told(words, said, monkeypatch):
    from smtp_blaster import target

    monkeypatch.setattr(target, "_in_own_namespace", lambda: False)
    outcome = CliRunner().invoke(main, words)
    assert outcome.exit_code == 2
    assert said in outcome.output.replace("\n", " ")


def test_conditions_of_a_link():
    assert parse_conditions("delay=50ms,loss=1%,rate=10mbit") == Conditions(
        delay_s=0.05, loss=0.01, rate_bits_s=10e6
    )
    for text in ("", "delay=50", "loss=100%", "jitter=1ms", "rate=5ms"):
        with pytest.raises(ValueError, match=r"expected|arrive"):
            parse_conditions(text)


def test_a_supply_ends():
    plan = Plan(target="127.0.0.1:1", messages=2)
    supply = Supply(plan, Mail(plan, "run"))
    supply.start(time.monotonic_ns(), 60.0)
    one, two = supply.take(), supply.take()
    assert one is not None and two is not None and supply.take() is None
    assert supply.is_over(0)
    supply.put_back(two)
    assert not supply.is_over(0)
    assert supply.take() is two
