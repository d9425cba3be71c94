"""The operator's commands against a gateway that runs, two workers with mail in every state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_tools import Done, one_session_each, run, samples, scrape
from interop_peers import RunningGateway, RunningSink, free_port, listener, route, wait_for
from smtp_blaster.sink import SinkPlan

RETRY_LATE = {"retry_s": [3600.0], "connect_retry_s": [3600.0]}


class Yard:
    """A gateway with a next hop that takes mail, one that holds it and one that is down."""

    def __init__(self, where: Path) -> None:
        self.sink = RunningSink(SinkPlan())
        self.hop = f"smtp://127.0.0.1:{self.sink.port}"
        self.down = f"smtp://127.0.0.1:{free_port()}"
        self.gateway = RunningGateway(
            where,
            {
                "workers": 2,
                "queue": RETRY_LATE,
                "listen": [listener(), listener("http")],
                "route": [
                    route(self.hop, "ok.test", "example.org"),
                    route(self.hop, "held.test", hold=True),
                    route(self.down, "down.test"),
                ],
            },
        )

    def run(self, *words: str) -> Done:
        return run(self.gateway, *words)

    def send(self, to: str) -> list[str]:
        """One message through each worker; their queue ids, and they are where they will stay."""
        ids = []
        for client in one_session_each(self.gateway).values():
            content = f"Message-ID: <{to}>\r\nSubject: x\r\n\r\nbody\r\n".encode()
            reply = client.message(content, to=to)[-1]
            ids.append(reply.split()[5])
            client.sock.close()
        if to.endswith("down.test"):
            wait_for(lambda: len(self.listed("--error", "refused", *ids)) == 2, "the failure")
        return ids

    def listed(self, *words: str) -> list[str]:
        done = self.run("queue", "list", "--json", *words)
        assert done.code == 0, done.error
        return [message["queue_id"] for message in done.json()["messages"]]

    def arrived(self, to: str) -> int:
        return sum(to in receipt.rcpts for receipt in self.sink.receipts)


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    yard = Yard(tmp_path_factory.mktemp("yard"))
    yield yard
    yard.gateway.stop()
    yard.sink.stop()


@pytest.fixture(autouse=True)
def empty_queue(yard: Yard) -> Iterator[None]:
    yield
    yard.run("queue", "delete", "--all", "--yes")


def test_check_tells_what_is_meant_and_what_is_wrong(yard, tmp_path):
    done = yard.run("check")
    assert (done.code, done.error) == (0, "")
    assert f"127.0.0.1:{yard.gateway.port}" in done.out
    assert f"{yard.hop} (held)" in done.out
    found = yard.run("check", "--json").json()
    assert (found["ok"], found["workers"], len(found["route"])) == (True, 2, 3)
    text = yard.gateway.config.read_text()
    broken = tmp_path / "broken.toml"
    broken.write_text(text.replace("retry_s = [3600.0]", "retry_s = []") + "\nworkers = 1\n")
    done = run(None, "check", config=broken)
    assert done.code == 2
    assert "broken.toml" in done.error
    done = run(None, "check", "--json", config=broken)
    assert done.code == 2
    assert done.json()["ok"] is False
    assert done.json()["errors"][0]["line"] > 0
    assert run(None, "check", config=tmp_path / "absent.toml").code == 2


def test_queue_list_and_show(yard):
    held, down = yard.send("b@held.test"), yard.send("b@down.test")
    assert sorted(yard.listed()) == sorted(held + down)
    assert sorted(yard.listed("--held")) == sorted(held)
    assert sorted(yard.listed("--error", "refused")) == sorted(down)
    assert yard.listed("--limit", "1") == [min(held + down)]
    assert yard.listed(held[0].lower()) == [held[0]]
    assert yard.listed("--older-than", "1h") == []
    assert yard.run("queue", "list", "--older-than", "soon").code == 2
    done = yard.run("queue", "list")
    assert done.code == 0
    assert "Connection refused" in done.out
    assert "<a@example.org>" in done.out
    done = yard.run("queue", "list", "--limit", "1")
    assert "… 3 more" in done.out
    for queue_id in held + down:  # whichever worker has it
        message = yard.run("queue", "show", queue_id, "--json").json()
        assert message["queue_id"] == queue_id
        assert message["reverse_path"] == "a@example.org"
        assert message["recipients"][0]["next_hop"] == (yard.hop if queue_id in held else yard.down)
    done = yard.run("queue", "show", down[0])
    assert done.code == 0
    assert "cannot connect: Connection refused" in done.out
    done = yard.run("queue", "show", "000000000000")
    assert done.code == 1
    assert "gateway trace 000000000000" in done.error


def test_queue_stats_add_up(yard):
    yard.send("b@held.test")
    yard.send("b@down.test")
    found = yard.run("queue", "stats", "--json").json()
    lanes = {lane["next_hop"]: lane for lane in found["lanes"]}
    assert lanes[yard.hop]["held"] == 2
    assert lanes[yard.down]["ready"] + lanes[yard.down]["deferred"] == 2
    assert lanes[yard.down]["down"] is True
    assert [worker["worker"] for worker in found["workers"]] == [0, 1]
    assert sum(found["ages"]["lanes"][yard.down]) == 2
    done = yard.run("queue", "stats")
    assert done.code == 0
    assert f"{yard.down}: 4.4.1 cannot connect: Connection refused" in done.out


def test_hold_and_release(yard):
    held = yard.send("release@held.test")
    down = yard.send("kept@down.test")
    done = yard.run("queue", "hold", *down)
    assert (done.code, done.out) == (0, "2 messages held\n")
    assert sorted(yard.listed("--held")) == sorted(held + down)
    done = yard.run("queue", "release", "--recipient", "release@", "--json")
    assert (done.code, done.json()) == (0, {"count": 2})
    wait_for(lambda: yard.arrived("release@held.test") == 2, "what was released")
    assert sorted(yard.listed()) == sorted(down)
    done = yard.run("queue", "hold", "--sender", "nobody@")
    assert (done.code, done.out) == (1, "")
    assert yard.run("queue", "hold").code == 2, "everything only by --all"


def test_retry(yard):
    down = yard.send("b@down.test")
    before = len(yard.gateway.log("lane_down"))
    assert yard.run("queue", "retry", "--all").code == 0
    wait_for(lambda: len(yard.gateway.log("lane_down")) >= before + 2, "another try")
    assert sorted(yard.listed()) == sorted(down)


def test_reroute(yard):
    down = yard.send("away@down.test")
    done = yard.run("queue", "reroute", "--to", "gopher://x", "--all")
    assert done.code == 1
    assert "gopher" in done.error
    done = yard.run("queue", "reroute", "--to", yard.hop, *down)
    assert (done.code, done.out) == (0, f"2 messages rerouted to {yard.hop}\n")
    wait_for(lambda: yard.arrived("away@down.test") == 2, "what was rerouted")
    assert yard.listed() == []
    assert yard.run("queue", "list").out == "the queue is empty\n"


def test_expire_reports_to_the_sender(yard):
    down = yard.send("gone@down.test")
    before = yard.arrived("a@example.org")
    assert yard.run("queue", "expire", *down).code == 0
    wait_for(lambda: yard.arrived("a@example.org") == before + 2, "the reports")
    report = yard.sink.receipts[-1]
    assert report.mail.startswith("<>")
    assert b"Status: 4.4.7" in report.content
    assert yard.listed() == []


def test_orders_to_many_messages_ask_first(yard):
    for _ in range(6):
        yard.send("b@held.test")
    done = yard.run("queue", "delete", "--held")  # nobody answers
    assert done.code == 1
    assert "delete 12 messages?" in done.error
    assert len(yard.listed()) == 12
    assert yard.run("queue", "delete", "--held", "--yes").out == "12 messages deleted\n"
    assert yard.listed() == []


def test_trace_tells_the_life_of_a_message(yard):
    [ok, _], down = yard.send("b@ok.test"), yard.send("trace@down.test")
    wait_for(lambda: yard.arrived("b@ok.test") >= 2, "the delivery")
    wait_for(lambda: "relayed" in yard.run("trace", ok).out, "the end of the story")
    found = yard.run("trace", ok, "--json").json()
    assert [event["event"] for event in found[0]["events"]] == ["accepted", "relayed"]
    assert found[0]["events"][1]["reply"] == "Ok"
    done = yard.run("trace", "--recipient", "trace@down.test")
    assert done.code == 0
    for queue_id in down:
        assert queue_id in done.out
    assert "now          queued" in done.out
    assert yard.run("trace", "--message-id", "<b@ok.test>", "--limit", "1").code == 0
    assert yard.run("trace", "000000000000").code == 1
    assert yard.run("trace").code == 2


def test_top_takes_one_look(yard):
    yard.send("b@held.test")
    done = yard.run("top", "--once", "--json", "--interval", "0.2")
    assert done.code == 0
    found = done.json()
    assert found["total"]["messages"] == 2
    assert [worker["worker"] for worker in found["workers"]] == [0, 1]
    assert {lane["next_hop"] for lane in found["lanes"]} >= {yard.hop}
    done = yard.run("top", "--once", "--interval", "0.2")
    assert done.code == 0
    assert "accepted/s" in done.out


def test_metrics_tell_of_the_queue(yard):
    yard.send("b@held.test")
    yard.send("b@down.test")
    found = samples(scrape(yard.gateway.ports[1])[1])
    for worker in "01":
        assert found[f'gateway_queue_messages{{worker="{worker}"}}'] == 2
        assert found[f'gateway_lane_up{{next_hop="{yard.hop}",worker="{worker}"}}'] == 1
        assert found[f'gateway_lane_up{{next_hop="{yard.down}",worker="{worker}"}}'] == 0
    assert [line for line in found if "worker" not in line] == []


def test_commands_without_a_gateway_are_told_so(yard, tmp_path):
    config = tmp_path / "idle.toml"
    text = yard.gateway.config.read_text()
    state = json.dumps(str(yard.gateway.state_dir))
    config.write_text(text.replace(state, json.dumps(str(tmp_path / "state"))))
    for words in (("queue", "list"), ("queue", "release", "--all"), ("top", "--once")):
        done = run(None, *words, config=config)
        assert (done.code, done.out) == (75, ""), words
        assert "no gateway runs" in done.error
        assert "Traceback" not in done.error
