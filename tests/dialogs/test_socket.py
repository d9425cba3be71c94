"""Every dialogue over a real socket, through session, policy and spool."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Client, RunningWorker
from script import SETTINGS, Script, envelope_text, matches, scripts

from gateway.app import Worker
from gateway.policy.overload import LASTING, Load, Traffic

LIMITS = {
    "line_octets": "command_octets",
    "transactions_max": "transactions",
    "recipients_max": "recipients",
    "junk_commands_max": "junk_commands",
    "errors": "errors",
    "greeting_delay_s": "greeting_delay_s",
}


def config_of(script: Script, directory: Path) -> str:
    settings = script.settings
    listen = [
        f'service = "{"lmtp" if settings.get("lmtp") else "smtp"}"',
        'address = "127.0.0.1:PORT"',
        f'bare_newline = "{settings.get("bare", "normalize")}"',
    ]
    if settings.get("max_message_octets"):
        listen.append(f"max_message_octets = {settings['max_message_octets']}")
    if settings.get("xclient"):
        listen.append('xclient_from = ["127.0.0.1"]')
    tls = ""
    if settings.get("starttls"):
        listen.append('tls = "starttls"')
        tls = '[tls]\ncertificate = "tls.pem"\nkey = "tls.key"'
    limits = [f"{LIMITS[key]} = {value}" for key, value in settings.items() if key in LIMITS]
    relay = "" if settings.get("relay", True) else 'relay_from = ["192.0.2.0/24"]'
    return "\n".join(
        [
            "[limits]",
            *limits,
            "[access]",
            relay,
            tls,
            "[[listen]]",
            *listen,
            "[[route]]",
            'domains = ["example.test"]',
            'next_hop = ["discard:"]',
            "hold = true",
        ]
    )


def too_small_for_the_config(script: Script) -> bool:
    """Some scripts use limits below what the configuration allows: they are for the machine only."""
    settings = script.settings
    return "line_octets" in settings or settings.get("recipients_max", 1000) < 100


def be_busy(worker: Worker) -> None:
    """From now on, whatever the load: who comes now comes too early."""
    worker.load.stop()
    overload = worker.doors.overload
    overload.targets = Load(turn_s=0.02)
    for _ in range(LASTING):
        overload.update(Load(turn_s=3600.0), Traffic())
    overload.limit = 1e-9
    overload.admit_message(trusted=True)


ALL = [s for s in scripts() if not too_small_for_the_config(s)]


@pytest.mark.parametrize("script", ALL, ids=lambda s: s.path.stem)
def test_dialogue(script: Script, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    for source, name in zip(certificate, ("tls.pem", "tls.key"), strict=True):
        (tmp_path / name).write_bytes(source.read_bytes())
    assert set(script.settings) <= set(SETTINGS)
    with RunningWorker(tmp_path, config_of(script, tmp_path)) as worker, Client(worker.ports[0]) as client:
        if script.settings.get("busy"):
            assert client.code() == 220
            worker.call(be_busy, worker.worker)
            client.buffer = b"220 mx.example.test ESMTP\r\n"
        reply: list[str] = []
        accepted = 0
        content = b""
        for step in script.steps:
            where = f"{script.path.name}:{step.line}"
            if step.kind == "C":
                client.send(step.octets)
            elif step.kind == "S":
                reply = client.reply()
                assert reply, f"{where}: closed, expected {step.pattern!r}"
                assert matches(step.pattern, reply[-1]), f"{where}: {reply[-1]!r}, expected {step.pattern!r}"
            elif step.kind == "S~":
                assert any(matches(step.pattern, line[4:]) for line in reply), f"{where}: {reply}"
            elif step.kind == "S!":
                assert client.closed(), where
            elif step.kind == "M":
                line = worker.wait_for("accepted", accepted + 1)[accepted]
                accepted += 1
                assert envelope_text(line["reverse_path"], line["forward_paths"]) == step.pattern, where
                content = worker.call(stored_content, worker, line["queue_id"])
            elif step.kind == "M|":
                received, _, rest = content.partition(b"+0000\r\n")
                assert received.startswith(b"Received: "), where
                assert rest == step.octets, where
        assert len([x for x in worker.log() if x["event"] == "accepted"]) == accepted


def stored_content(worker: RunningWorker, queue_id: str) -> bytes:
    """What the spool keeps of the message (held by the route, so it is still there)."""
    scheduler = worker.worker.scheduler
    stored = scheduler.tasks[queue_id].stored
    return b"".join(bytes(part) for part in worker.worker.spool.body(stored).slices())
