"""smtp-blaster pop3 and imap against Dovecot, and against this gateway."""

from __future__ import annotations

import json
import poplib
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dovecot_server import DovecotServer, dovecot_server
from interop_peers import listener, route, wait_for

USERS = ("alice@example.test:one word", "bob@example.test:another")
MESSAGES = 20


def fill(lmtp_port: int) -> None:
    with smtplib.LMTP("127.0.0.1", lmtp_port) as lmtp:
        for number in range(MESSAGES):
            for user in USERS:
                text = f"Subject: report {number}\r\n\r\n.x\r\n"
                lmtp.sendmail("", [user.partition(":")[0]], text * 2)


@pytest.fixture(scope="module")
def target() -> Iterator[DovecotServer]:
    with dovecot_server("imap", "pop3", "lmtp", users=USERS) as server:
        fill(server.ports["lmtp"])
        yield server


def blaster(protocol: str, port: int, *words: str) -> dict:
    users = [word for user in USERS for word in ("--auth", user)]
    done = subprocess.run(
        [sys.executable, "-m", "smtp_blaster", protocol, f"127.0.0.1:{port}", *users, "--json", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def stages(run: dict) -> dict[str, int]:
    return {name: found["count"] for name, found in run["latency"].items()}


@pytest.mark.parametrize(
    ("mix", "words", "expected"),
    [
        ("login", [], {"select": 6, "auth": 6, "logout": 6, "message": 6}),
        ("fetch", ["--newest", "3"], {"noop": 6, "fetch": 6 * 4, "message": 6}),
        ("search", [], {"search": 6, "message": 6}),
        ("phone", [], {"select": 6, "fetch": 6 * 6, "store": 6, "message": 6}),
        ("desktop", [], {"list": 6, "status": 6, "select": 6, "fetch": 6 * 12, "message": 6}),
    ],
)
def test_imap_mixes(target: DovecotServer, mix: str, words: list[str], expected: dict[str, int]) -> None:
    run = blaster("imap", target.ports["imap"], "--mix", mix, "--messages", "6", "--connections", "2", *words)
    assert (run["totals"]["accepted"], run["totals"]["refused"], run["replies"]) == (6, 0, [])
    found = stages(run)
    assert {name: found.get(name) for name in expected} == expected
    assert run["plan"]["mix"] == mix


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ("login", {"stat": 4, "message": 4, "quit": 4}),
        ("fetch", {"stat": 4, "uidl": 4, "retr": 4 * 10}),
        ("download", {"stat": 4, "retr": 4 * MESSAGES}),
    ],
)
def test_pop3_mixes(target: DovecotServer, mix: str, expected: dict[str, int]) -> None:
    run = blaster("pop3", target.ports["pop3"], "--mix", mix, "--messages", "4")
    assert (run["totals"]["accepted"], run["totals"]["refused"], run["totals"]["broken"]) == (4, 0, 0)
    found = stages(run)
    assert {name: found.get(name) for name in expected} == expected
    if mix == "download":
        alone = poplib.POP3("127.0.0.1", target.ports["pop3"])
        alone.user("alice@example.test")
        alone.pass_("one word")
        octets = alone.stat()[1]
        alone.quit()
        assert run["totals"]["octets"] >= 4 * octets


@pytest.mark.parametrize("mechanism", ["", "PLAIN", "LOGIN", "SCRAM-SHA-256"])
@pytest.mark.parametrize("tls", ["off", "starttls", "implicit"])
@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_tls_and_mechanisms(target: DovecotServer, protocol: str, tls: str, mechanism: str) -> None:
    port = target.ports[protocol + ("s" if tls == "implicit" else "")]
    run = blaster(protocol, port, "--mix", "login", "--messages", "2", "--tls", tls, "--auth-mechanism", mechanism)
    assert run["totals"]["accepted"] == 2, run["notes"]
    assert ("tls" in stages(run)) == (tls != "off")


def test_a_wrong_password_is_told(target: DovecotServer) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "smtp_blaster", "imap", f"127.0.0.1:{target.ports['imap']}", "--auth", "alice:no",
         "--json", "--patience", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert any("auth: NO" in note for note in json.loads(done.stdout)["notes"])


def test_an_open_loop_over_two_processes(target: DovecotServer) -> None:
    run = blaster(
        "imap", target.ports["imap"], "--mix", "search", "--rate", "50", "--duration", "1", "--connections", "4",
        "--processes", "2",
    )  # fmt: skip
    assert run["totals"]["accepted"] + run["totals"]["unsent"] == 50
    assert sum(run["series"]["offered"]) == 50


def test_an_idle_crowd_hears_of_deliveries(target: DovecotServer) -> None:
    run = blaster(
        "imap", target.ports["imap"], "--mix", "idle", "--deliver", f"lmtp://127.0.0.1:{target.ports['lmtp']}",
        "--connections", "6", "--processes", "2", "--rate", "4", "--messages", "4",
    )  # fmt: skip
    assert run["totals"]["accepted"] == 4, run["notes"]
    # Three connections to each mailbox; each delivery goes to one of the two.
    assert stages(run)["announcement"] == 4 * 3, run["notes"]
    assert run["totals"]["connections_opened"] == 6 + 2


def test_its_report_and_comparison(target: DovecotServer, tmp_path: Path) -> None:
    saved = [tmp_path / name for name in ("before.json", "after.json")]
    for file in saved:
        blaster("imap", target.ports["imap"], "--mix", "phone", "--messages", "3", "--save", str(file))
    page = tmp_path / "page.html"
    for words in (["report", str(saved[0]), "-o", str(page)], ["compare", *map(str, saved), "-o", str(page)]):
        command = [sys.executable, "-m", "smtp_blaster", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SELECT" in page.read_text()


def test_this_gateway(gateway_factory) -> None:
    """Every mix, with deliveries by LMTP."""
    gateway = gateway_factory(
        [route("store:", "example.test")],
        [listener("lmtp"), listener("pop3", tls="starttls"), listener("imap", tls="starttls")],
    )
    for user in USERS:
        name, _, password = user.partition(":")
        words = [*gateway.words("user", "add", name), "--password-stdin"]
        subprocess.run(words, input=password.encode(), check=True, capture_output=True)
    lmtp, pop3, imap = gateway.ports[:3]
    fill(lmtp)
    wait_for(lambda: len(gateway.log("delivered")) == MESSAGES * len(USERS), "the deliveries")
    for protocol, port, mixes in (
        ("pop3", pop3, ("login", "fetch", "download")),
        ("imap", imap, ("login", "fetch", "search", "phone", "desktop")),
    ):
        for mix in mixes:
            run = blaster(protocol, port, "--mix", mix, "--messages", "4", "--connections", "2", "--tls", "starttls")
            assert (run["totals"]["accepted"], run["replies"]) == (4, []), (mix, run["notes"])
    run = blaster(
        "imap", imap, "--mix", "idle", "--tls", "starttls", "--deliver", f"lmtp://127.0.0.1:{lmtp}",
        "--connections", "6", "--messages", "4",
    )  # fmt: skip
    assert stages(run)["announcement"] == 4 * 3, run["notes"]
