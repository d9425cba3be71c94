"""The operator's commands against a worker that runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from click.testing import CliRunner, Result
from harness import Client, RunningWorker, free_port

import gateway
from gateway.cli import main
from gateway.cli.common import age, size
from gateway.cli.queue import merge_lanes
from gateway.cli.top import Look, compare
from gateway.cli.trace import duration
from gateway.control import Answer
from gateway.metrics import Meter

TOML = """
[[listen]]
service = "smtp"
address = "127.0.0.1:PORT"
[[route]]
domains = ["example.test"]
next_hop = ["smtp://127.0.0.1:NEXT_HOP"]
[[route]]
domains = ["gone.test"]
next_hop = ["discard:"]
"""


class _Busy:
    """A next hop that puts every recipient off."""

    async def handle_RCPT(self, *_: object) -> str:
        return "451 4.2.1 mailbox is busy"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[RunningWorker]:
    busy = Controller(_Busy(), hostname="127.0.0.1", port=free_port())
    busy.start()
    try:
        with RunningWorker(tmp_path, TOML.replace("NEXT_HOP", str(busy.port))) as running:
            yield running
    finally:
        busy.stop()


def gateway_command(directory: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, list(arguments), env={"GATEWAY_CONFIG": str(directory / "edge.toml")}
    )


def as_json(directory: Path, *arguments: str) -> Any:
    result = gateway_command(directory, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def send(worker: RunningWorker, *recipients: str) -> list[str]:
    """One message to each; their queue ids."""
    ids = []
    with Client(worker.ports[0]) as client:
        client.hello()
        for recipient in recipients:
            content = b"Message-ID: <one@client.example>\r\nSubject: x\r\n\r\nHello.\r\n"
            reply = client.message(content, to=recipient)[-1]
            assert "queued as" in reply, reply
            ids.append(reply.split("queued as ")[1].split()[0])
    return ids


def wait_until_deferred(directory: Path, count: int = 1) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    while True:
        messages: list[dict[str, Any]] = as_json(directory, "queue", "list")["messages"]
        tried = [m for m in messages if m["recipients"][0]["reply"].strip()]
        if len(tried) >= count:
            return tried
        assert time.monotonic() < deadline, messages
        time.sleep(0.02)


def test_the_queue_can_be_seen(worker: RunningWorker, tmp_path: Path) -> None:
    assert "the queue is empty" in gateway_command(tmp_path, "queue", "list").output
    first, second = send(worker, "bob@example.test", "carol@example.test")
    wait_until_deferred(tmp_path, 2)
    listed = gateway_command(tmp_path, "queue", "list")
    assert first in listed.output and second in listed.output
    assert "→ bob@example.test" in listed.output
    one = as_json(tmp_path, "queue", "list", "--recipient", "CAROL@")
    assert [message["queue_id"] for message in one["messages"]] == [second]
    assert as_json(tmp_path, "queue", "list", "--older-than", "2h")["total"] == 0
    assert as_json(tmp_path, "queue", "list", "--limit", "1")["total"] == 2
    shown = gateway_command(tmp_path, "queue", "show", first.lower())
    assert "bob@example.test" in shown.output and "mailbox is busy" in shown.output
    stats = as_json(tmp_path, "queue", "stats")
    assert stats["workers"][0]["messages"] == 2
    assert "127.0.0.1" in gateway_command(tmp_path, "queue", "stats").output


def test_the_queue_can_be_changed(worker: RunningWorker, tmp_path: Path) -> None:
    first, second = send(worker, "bob@example.test", "carol@example.test")
    wait_until_deferred(tmp_path, 2)
    held = gateway_command(tmp_path, "queue", "hold", first)
    assert held.output == "1 message held\n"
    assert as_json(tmp_path, "queue", "show", first)["held"]
    assert as_json(tmp_path, "queue", "list", "--held")["total"] == 1
    assert gateway_command(tmp_path, "queue", "retry", "--all", "--yes").exit_code == 0
    rerouted = gateway_command(tmp_path, "queue", "reroute", "--to", "discard:", second)
    assert rerouted.exit_code == 0, rerouted.output
    worker.wait_for("discarded")
    released = gateway_command(tmp_path, "queue", "release", "--held")
    assert released.output == "1 message released\n"
    assert as_json(tmp_path, "queue", "delete", "--recipient", "bob@")["count"] == 1
    deadline = time.monotonic() + 60
    while as_json(tmp_path, "queue", "list")["total"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_cannot_be_done_says_why(worker: RunningWorker, tmp_path: Path) -> None:
    absent = gateway_command(tmp_path, "queue", "show", "0123456789AB")
    assert absent.exit_code == 1
    assert "gateway trace 0123456789AB" in absent.output
    nothing = gateway_command(tmp_path, "queue", "hold", "0123456789AB")
    assert nothing.exit_code == 1
    assert "gateway queue list" in nothing.output
    everything = gateway_command(tmp_path, "queue", "delete")
    assert everything.exit_code == 2
    assert "--all" in everything.output
    hop = gateway_command(tmp_path, "queue", "reroute", "--to", "smtpx://a", "--all", "--yes")
    assert hop.exit_code == 1
    assert "smtpx" in hop.output
    assert gateway_command(tmp_path, "queue", "list", "--older-than", "soon").exit_code == 2
    assert gateway_command(tmp_path, "trace").exit_code == 2
    assert gateway_command(tmp_path, "trace", "0123456789AB").exit_code == 1


def test_orders_to_many_ask_first(worker: RunningWorker, tmp_path: Path) -> None:
    send(worker, *(f"user{number}@example.test" for number in range(12)))
    wait_until_deferred(tmp_path, 12)
    asked = gateway_command(tmp_path, "queue", "delete", "--recipient", "example.test")
    assert asked.exit_code == 1  # CliRunner answers nothing
    assert "delete 12 messages?" in asked.output
    assert as_json(tmp_path, "queue", "list")["total"] == 12
    sure = gateway_command(tmp_path, "queue", "delete", "--recipient", "example.test", "--yes")
    assert sure.output == "12 messages deleted\n"


def test_trace_tells_the_life_of_a_message(worker: RunningWorker, tmp_path: Path) -> None:
    deferred, gone = send(worker, "bob@example.test", "x@gone.test")
    wait_until_deferred(tmp_path)
    worker.wait_for("discarded")
    told = gateway_command(tmp_path, "trace", deferred)
    assert told.exit_code == 0, told.output
    for word in (
        "accepted",
        "deferred",
        "bob@example.test",
        "mailbox is busy",
        "now",
        "next attempt",
    ):
        assert word in told.output.lower(), (word, told.output)
    (life,) = as_json(tmp_path, "trace", gone)
    assert [event["event"] for event in life["events"]] == ["accepted", "discarded"]
    assert life["queued"] is None
    by_id = as_json(tmp_path, "trace", "--message-id", "one@client.example")
    assert [life["queue_id"] for life in by_id] == [deferred, gone]
    by_recipient = as_json(tmp_path, "trace", "--recipient", "X@GONE.test")
    assert [life["queue_id"] for life in by_recipient] == [gone]
    by_sender = as_json(tmp_path, "trace", "--sender", "a@example.org", "--limit", "1")
    assert [life["queue_id"] for life in by_sender] == [gone]


def test_trace_works_when_nothing_runs(tmp_path: Path) -> None:
    with RunningWorker(tmp_path, TOML.replace("NEXT_HOP", str(free_port()))) as worker:
        (gone,) = send(worker, "x@gone.test")
        worker.wait_for("discarded")
    told = gateway_command(tmp_path, "trace", gone)
    assert "discarded" in told.output
    assert gateway_command(tmp_path, "queue", "list").exit_code == 75
    assert "gateway serve" in gateway_command(tmp_path, "top", "--once").output


def test_top_shows_rates_and_lanes(worker: RunningWorker, tmp_path: Path) -> None:
    send(worker, "bob@example.test")
    wait_until_deferred(tmp_path)
    found = as_json(tmp_path, "top", "--interval", "0.1")
    assert found["total"]["messages"] == 1
    assert found["workers"][0]["unhealthy"] == []
    assert found["lanes"][0]["next_hop"].startswith("smtp://127.0.0.1")
    shown = gateway_command(tmp_path, "top", "--once", "--interval", "0.1")
    assert "accepted/s" in shown.output and "smtp://127" in shown.output


def test_rates_are_differences_and_a_restart_is_no_negative_rate() -> None:
    def look(at: float, accepted: int) -> Look:
        meter = Meter(0)
        meter.metrics.accepted_fsync = accepted
        meter.metrics.accept_seconds.observe(0.002)
        told = {"unhealthy": [], "restarts": 0, "at": at, "started_at": 0.0}
        return Look(at, {0: told}, [meter.snapshot()], [])

    assert compare(look(10.0, 100), look(12.0, 300))["total"]["accepted/s"] == 100.0
    assert compare(look(10.0, 100), look(12.0, 3))["total"]["accepted/s"] == 0.0


def test_lanes_of_all_workers_are_one() -> None:
    def answer(worker: int, ready: int, down: bool) -> Answer:
        lane = {
            "next_hop": "smtp://a:25", "down": down, "oldest_s": float(worker), "last_error": "",
            "active": 1, "deferred": 0, "held": 0, "done": 5, "bounced": 0, "deferrals": 0,
            "ready": ready, "hops": [{"connections": 2}, {"connections": 1}],
        }  # fmt: skip
        return Answer(worker, {"lanes": [lane]})

    (lane,) = merge_lanes([answer(0, 2, False), answer(1, 3, True)])
    assert (lane["ready"], lane["connections"], lane["down"], lane["oldest_s"]) == (5, 6, True, 1.0)


def test_amounts_for_people() -> None:
    assert [age(s) for s in (0, 59, 61, 3600, 90061, -5)] == [
        "0s",
        "59s",
        "1m1s",
        "1h",
        "1d1h",
        "0s",
    ]
    assert [size(n) for n in (0, 1023, 10240, 5e6)] == ["0", "1023", "10.0K", "4.8M"]
    assert [duration(s) for s in (0.0012, 75)] == ["1.2 ms", "1m15s"]


def test_version_and_help() -> None:
    assert CliRunner().invoke(main, ["version"]).output.strip() == gateway.__version__
    helped = CliRunner().invoke(main, ["--help"])
    for command in ("serve", "init", "check", "queue", "trace", "top"):
        assert command in helped.output
    assert CliRunner().invoke(main, ["absent"]).exit_code == 2
    assert CliRunner().invoke(main, ["queue", "--help"]).exit_code == 0
