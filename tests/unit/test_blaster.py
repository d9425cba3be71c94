"""The load tool against itself: what it counts, what its ledgers prove, which targets it takes."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
import uvloop
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from smtp_blaster import ledger, target
from smtp_blaster.cli import main
from smtp_blaster.content import Mail, identify
from smtp_blaster.sink import Fault, Receipt, Sink, SinkPlan, SinkResult
from smtp_blaster.source import Plan, Result, Source


async def _both(plan: dict, sink_plan: SinkPlan) -> tuple[Result, SinkResult, list[Receipt]]:
    receipts: list[Receipt] = []
    sink = Sink(sink_plan, receipts.append)
    await sink.start()
    result = await Source(Plan(target=f"127.0.0.1:{sink.port}", run="test", **plan)).run()
    return result, await sink.stop(), receipts


def run(sink_plan: SinkPlan | None = None, **plan):
    return uvloop.run(_both(plan, sink_plan or SinkPlan()))


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"pipelining": True},
        {"chunking": True},
        {"pipelining": True, "chunking": True},
        {"per_connection": 3},
        {"per_connection": 3, "pipelining": True},
        {"rate": 2000.0},
        {"rate": 2000.0, "pipelining": True},
    ],
    ids=lambda mode: "+".join(mode) or "plain",
)
@pytest.mark.parametrize("recipients", [1, 3])
def test_every_mode_delivers_each_message_once(protocol, mode, recipients, tmp_path):
    sent, got = tmp_path / "sent", tmp_path / "got"
    result, sink, receipts = run(
        SinkPlan(ledger=str(got)),
        protocol=protocol,
        connections=4,
        messages=40,
        size_octets=3000,
        dots=True,
        recipients=recipients,
        ledger=str(sent),
        **mode,
    )
    assert (result.accepted, result.refused, result.broken) == (40, 0, 0)
    assert result.recipients_accepted == sink.recipients == 40 * recipients
    assert all(receipt.protocol == protocol.upper() for receipt in receipts)
    assert all(receipt.bdat == ("chunking" in mode) for receipt in receipts)
    assert result.connections_opened == sink.connections
    assert ("per_connection" not in mode) or sink.connections >= 40 / 3
    difference = ledger.compare(ledger.read(sent), ledger.read(got))
    assert difference.is_clean
    assert (difference.accepted, difference.duplicated, difference.unpromised) == (
        40 * recipients,
        0,
        0,
    )


def test_content_has_exactly_the_size_asked_for():
    for size in (300, 301, 377, 378, 379, 380, 1000, 10240, 102400):
        for dots in (False, True):
            plan = Plan(target="127.0.0.1:1", messages=1, size_octets=size, dots=dots)
            mail = Mail(plan, "run")
            content = mail.content(7)
            octets = mail.head(7) + content.rest
            assert len(octets) == content.size_octets == size
            assert octets.endswith(b"\r\n") and not re.search(rb"(?<!\r)\n|\r(?!\n)", octets)
            assert identify(b"Received: by somebody\r\n" + octets) == (
                mail.message_id(7),
                content.digest,
            )


def test_duration_ends_a_run():
    result, sink, _ = run(duration_s=0.2, connections=2)
    assert result.accepted == sink.messages > 0


def test_refusals_are_counted_by_stage_and_code():
    result, sink, _ = run(SinkPlan(faults=(Fault("rcpt", code=452),)), messages=5)
    assert (result.accepted, result.refused, result.replies) == (0, 5, {"rcpt 452": 5})
    assert sink.messages == 0


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "content"])
@pytest.mark.parametrize(
    "mode", [{}, {"pipelining": True}, {"chunking": True}, {"pipelining": True, "chunking": True}]
)
@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_a_refusal_now_and_then_does_not_lose_step(stage, mode, protocol):
    result, sink, _ = run(
        SinkPlan(faults=(Fault(stage, code=451, probability=0.3),)),
        messages=60,
        recipients=2,
        connections=2,
        protocol=protocol,
        **mode,
    )
    assert result.accepted + result.refused == 60
    assert result.broken == 0
    assert result.recipients_accepted == sink.recipients


def test_a_lost_acknowledgement_shows_as_unpromised_never_as_lost(tmp_path):
    sent, got = tmp_path / "sent", tmp_path / "got"
    fault = Fault("content", drop=True, probability=0.2)
    result, _, _ = run(SinkPlan(faults=(fault,), ledger=str(got)), messages=50, ledger=str(sent))
    assert result.broken > 0
    assert result.accepted + result.broken == 50
    difference = ledger.compare(ledger.read(sent), ledger.read(got))
    assert (difference.lost, difference.altered, difference.unpromised) == (0, 0, result.broken)


def test_nobody_there_ends_the_run():
    async def refused() -> Result:
        sink = Sink(SinkPlan())
        await sink.start()
        await sink.stop()
        return await Source(Plan(target=f"127.0.0.1:{sink.port}", messages=10)).run()

    result = uvloop.run(refused())
    assert (result.accepted, result.connections_opened) == (0, 0)
    assert result.connections_failed > 0


def test_ledger_comparison_names_each_kind():
    sent = [("a", "1", "x"), ("b", "1", "x"), ("c", "1", "x")]
    got = [("a", "1", "x"), ("a", "1", "x"), ("b", "2", "x"), ("d", "1", "x")]
    found = ledger.compare(sent, got)
    assert (found.lost, found.duplicated, found.altered, found.unpromised) == (1, 1, 1, 1)
    assert found.lost_ids == ["c to x"]


def test_ledger_comparison_by_command(tmp_path):
    sent, got = tmp_path / "sent", tmp_path / "got"
    sent.write_text("a\t1\tx\n")
    got.write_text("")
    outcome = CliRunner().invoke(main, ["ledger", str(sent), str(got), "--json"])
    assert outcome.exit_code == 1
    assert json.loads(outcome.output)["lost"] == 1


@pytest.mark.parametrize("host", ["192.0.2.1:25", "[2001:db8::1]:25", "10.11.12.13:25"])
def test_foreign_targets_are_refused(host, monkeypatch):
    monkeypatch.setattr(target, "_in_own_namespace", lambda: False)
    with pytest.raises(target.TargetRefused, match="i-own-this-target"):
        target.resolve(host, owned=False)
    assert target.resolve(host, owned=True)[1] == 25


def test_a_public_address_is_refused_even_inside_a_namespace(monkeypatch):
    monkeypatch.setattr(target, "_in_own_namespace", lambda: True)
    assert target.resolve("10.11.12.13:25", owned=False) == ("10.11.12.13", 25)
    with pytest.raises(target.TargetRefused):
        target.resolve("8.8.8.8:25", owned=False)


@pytest.mark.parametrize("text", ["127.0.0.1", ":25", "127.0.0.1:x", "127.0.0.1:65536"])
def test_what_is_no_target(text):
    with pytest.raises(ValueError, match="HOST:PORT"):
        target.parse(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rcpt=452", Fault("rcpt", code=452)),
        ("content=drop@0.25", Fault("content", drop=True, probability=0.25)),
        ("mail=delay:0.5", Fault("mail", delay_s=0.5)),
    ],
)
def test_fault_grammar(text, fault):
    assert Fault.parse(text) == fault


@pytest.mark.parametrize("text", ["rcpt", "nothing=452", "rcpt=352", "rcpt=maybe"])
def test_fault_grammar_refuses(text):
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        Fault.parse(text)


# -- the three rules for the end of data ----------------------------------------------------------


async def _talk(eod: str, pieces: list[bytes]) -> list[bytes]:
    """Contents that a sink makes of octets sent behind 354, in these pieces."""
    receipts: list[Receipt] = []
    sink = Sink(SinkPlan(eod=eod), receipts.append)
    await sink.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", sink.port)
    writer.write(b"EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n")
    while not (await reader.readline()).startswith(b"354"):
        pass
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    writer.write(b"\r\n.\r\nQUIT\r\n")
    while not (await reader.readline()).startswith(b"221"):
        pass
    writer.close()
    await sink.stop()
    return [receipt.content for receipt in receipts]


SMUGGLED = b"MAIL FROM:<c@x>\r\nRCPT TO:<d@x>\r\nDATA\r\nsecond"


@pytest.mark.parametrize(
    ("end", "contents"),
    [
        (b"\r\n.\r\n", {"strict": 2, "lenient-lf": 2, "lenient-any": 2}),
        (b"\n.\n", {"strict": 1, "lenient-lf": 2, "lenient-any": 2}),
        (b"\n.\r\n", {"strict": 1, "lenient-lf": 2, "lenient-any": 2}),
        (b"\r\n.\n", {"strict": 1, "lenient-lf": 2, "lenient-any": 2}),
        (b"\r.\r", {"strict": 1, "lenient-lf": 1, "lenient-any": 2}),
        (b"\r\0.\r\n", {"strict": 1, "lenient-lf": 1, "lenient-any": 2}),
    ],
)
@pytest.mark.parametrize("eod", ["strict", "lenient-lf", "lenient-any"])
def test_end_of_data_by_each_rule(eod, end, contents):
    assert len(uvloop.run(_talk(eod, [b"first", end, SMUGGLED]))) == contents[eod]


@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(
        st.sampled_from([b"a", b".", b"\r\n", b"\r\n.", b"\r", b"\n", b".."]), max_size=12
    ),
    cut=st.integers(0, 30),
)
def test_strict_sink_takes_content_over_any_seam(text, cut):
    octets = b"".join(text)
    stuffed = (b"\r\n" + octets).replace(b"\r\n.", b"\r\n..")[2:]
    assert uvloop.run(_talk("strict", [stuffed[:cut], stuffed[cut:]])) == [octets + b"\r\n"]


def test_the_command_says_what_it_needs(tmp_path: Path):
    outcome = CliRunner().invoke(main, ["smtp", "nowhere"])
    assert outcome.exit_code == 2
    assert "HOST:PORT" in outcome.output
