"""Workers and their supervisor, as an operator meets them: stop, reload, death, privileges.

Every gateway here is a real one with real mail.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest
from gateway_tools import (
    UnixClient,
    change,
    one_session_each,
    reload,
    run,
    samples,
    scrape,
    set_certificate,
    worker_of,
    worker_pids,
)
from harness import Client, is_free
from interop_peers import free_port, listener, need, need_root, route, wait_for
from reachable import let_others_in
from smtp_blaster import ledger
from smtp_blaster.sink import Fault
from smtp_blaster.source import Plan, Result, Source
from test_tls_interop import make_certificate, s_client

LINE = b"x" * 70 + b"\r\n"


# -- SIGTERM ---------------------------------------------------------------------------------------


def test_sigterm_lets_a_message_finish_and_sends_idle_sessions_away(gateway_factory, sink):
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")],
        [listener(), listener("http")],
        workers=2,
        drain_s=20.0,
    )
    idle = one_session_each(gateway)
    busy = one_session_each(gateway)
    for client in busy.values():
        client.command("MAIL FROM:<a@example.test>")
        client.command("RCPT TO:<b@example.test>")
        assert client.command("DATA")[-1].startswith("354")
        client.send(b"Subject: half a message\r\n\r\n")
    gateway.process.send_signal(signal.SIGTERM)
    for client in idle.values():
        assert client.reply()[-1].startswith("421 4.3.2")
        assert client.closed()
    with pytest.raises(ConnectionRefusedError):
        Client(gateway.port)
    assert gateway.process.poll() is None
    told = '{"healthy":false,"reasons":["shutting down"]}\n'
    assert scrape(gateway.ports[1], "/healthz") == (503, told)
    for client in busy.values():
        client.send(LINE + b".\r\n")
        assert client.code() == 250
        assert client.reply()[-1].startswith("421 4.3.2")
        assert client.closed()
    assert gateway.process.wait(60) == 0
    # What was accepted while we drained is delivered now or after the next start, but it is not lost.
    gateway.start()
    sink.wait(2)
    assert not gateway.log("drain_timeout")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["systemd", "terminal"])
def test_a_signal_to_all_processes_drains_too(gateway_factory, sink, number):
    """systemd's KillMode=control-group, and Ctrl-C."""
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}")], workers=2, drain_s=20.0)
    clients = one_session_each(gateway)
    for client in clients.values():
        client.command("MAIL FROM:<a@example.test>")
        client.command("RCPT TO:<b@example.test>")
        client.command("DATA")
    os.killpg(gateway.process.pid, number)
    wait_for(lambda: len(gateway.log("draining")) == 2, "both workers to drain")
    for client in clients.values():
        client.send(LINE + b".\r\n")
        assert client.code() == 250
    assert gateway.process.wait(60) == 0
    assert not gateway.log("worker_died")
    gateway.start()
    sink.wait(2)


def test_a_message_that_waits_for_its_next_hop_is_answered(gateway_factory, sink_factory):
    """durability "inline": the reply is the next hop's, drain or not."""
    sink = sink_factory(faults=(Fault("content", delay_s=1.0),))
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")], [listener(durability="inline")], drain_s=20.0
    )
    with Client(gateway.port) as client:
        client.hello()
        for command in ("MAIL FROM:<a@example.test>", "RCPT TO:<b@example.test>", "DATA"):
            client.command(command)
        client.send(LINE + b".\r\n")
        wait_for(lambda: sink.sink.commands["DATA"] + sink.sink.commands["BDAT"], "the delivery")
        gateway.process.send_signal(signal.SIGTERM)
        assert client.code() == 250
        assert client.reply()[-1].startswith("421")
    assert gateway.process.wait(60) == 0
    assert len(sink.receipts) == 1


def test_a_session_that_never_ends_does_not_hold_the_gateway(gateway_factory):
    gateway = gateway_factory([route("discard:")], workers=1, drain_s=1.0)
    with Client(gateway.port) as client:
        client.hello()
        client.command("MAIL FROM:<a@example.test>")
        client.command("RCPT TO:<b@example.test>")
        client.command("DATA")
        client.send(LINE)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0
        assert not gateway.log("worker_killed"), "it left by itself, within drain_s"
        assert not client.reply() or client.buffer == b"", "no 250 for half a message"


def test_a_delivery_that_hangs_does_not_hold_the_gateway(gateway_factory, sink_factory):
    slow = sink_factory(faults=(Fault("content", delay_s=300.0),))
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{slow.port}")], workers=1, drain_s=1.0)
    with Client(gateway.port) as client:
        client.hello()
        assert client.message(LINE)[-1].startswith("250")
        wait_for(lambda: slow.sink.commands["DATA"] + slow.sink.commands["BDAT"], "the delivery")
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0
    assert gateway.log("drain_timeout")
    assert not gateway.log("worker_killed")


def test_a_scraper_that_stays_connected_does_not_hold_the_gateway(gateway_factory):
    gateway = gateway_factory([route("discard:")], [listener(), listener("http")], workers=1, drain_s=600.0)
    with socket.create_connection(("127.0.0.1", gateway.ports[1])) as scraper:
        scraper.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert scraper.recv(65536).startswith(b"HTTP/1.1 200")
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0


def test_clients_that_pipeline_without_end_do_not_hold_the_gateway(
    gateway_factory, sink_factory, tmp_path
):
    """They are never idle: their next MAIL is there before the reply to their last message."""
    sink = sink_factory(ledger=str(tmp_path / "delivered"))
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}")], workers=2, drain_s=20.0)
    plan = Plan(
        target=f"127.0.0.1:{gateway.port}",
        connections=8,
        size_octets=2000,
        pipelining=True,
        duration_s=30.0,
        ledger=str(tmp_path / "accepted"),
    )
    source = Source(plan)
    results: list[Result] = []
    load = threading.Thread(target=lambda: results.append(asyncio.run(source.run())))
    load.start()
    wait_for(lambda: source.accepted > 200, "the load")
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(60) == 0
    load.join(60)
    replies = dict(results[0].replies)
    replies.pop("greeting 421", None)  # one that came back while the doors were closing
    assert replies == {"mail 421": 8, "dot 250": results[0].accepted}
    gateway.start()
    wait_for(
        lambda: json.loads(gateway.command("queue", "list", "--json"))["total"] == 0, "all mail"
    )
    sink.flush()
    time.sleep(0.1)
    found = ledger.compare(ledger.read(tmp_path / "accepted"), ledger.read(tmp_path / "delivered"))
    assert (found.lost, found.altered, found.unpromised) == (0, 0, 0), found


def test_a_second_sigterm_does_not_wait(gateway_factory, sink):
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}", hold=True)], drain_s=3000.0)
    with Client(gateway.port) as client:
        client.hello()
        assert client.message(LINE)[-1].startswith("250")
        client.command("MAIL FROM:<a@example.test>")
        gateway.process.send_signal(signal.SIGTERM)
        wait_for(lambda: gateway.log("draining"), "the drain")
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0
    assert gateway.log("worker_killed")
    change(gateway, ("hold = true", "hold = false"))
    gateway.start()
    sink.wait(1)


# -- SIGHUP ----------------------------------------------------------------------------------------


def test_sighup_changes_routes_and_limits_for_new_sessions(gateway_factory, sink_factory):
    first, second = sink_factory(), sink_factory()
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{first.port}")],
        limits={"message_octets": 1_000_000},
        workers=2,
    )
    old = one_session_each(gateway)
    for client in old.values():
        assert client.message(LINE)[-1].startswith("250")
    first.wait(2)
    reload(gateway, (f":{first.port}", f":{second.port}"), ("1000000", "2000000"))
    for client in old.values():
        assert "250-SIZE 1000000" in client.command("EHLO again.example"), "as the session began"
        assert client.message(LINE)[-1].startswith("250")
    second.wait(2)
    for client in one_session_each(gateway).values():
        assert "250-SIZE 2000000" in client.command("EHLO new.example")
        assert client.message(LINE)[-1].startswith("250")
    second.wait(4)
    assert len(first.receipts) == 2


def test_sighup_moves_queued_mail_to_its_new_route(gateway_factory, sink):
    nobody = free_port()
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{nobody}")], queue={"retry_s": [3600.0]})
    with Client(gateway.port) as client:
        client.hello()
        for _ in range(3):
            assert client.message(LINE)[-1].startswith("250")
    wait_for(lambda: gateway.log("lane_down"), "the failure to connect")
    reload(gateway, (f":{nobody}", f":{sink.port}"))
    sink.wait(3)


def test_sighup_opens_and_closes_listeners(gateway_factory, sink):
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")], [listener(), listener("lmtp")], workers=2
    )
    smtp, lmtp = gateway.ports
    new = free_port()
    with Client(lmtp) as open_session:
        assert open_session.code() == 220
        reload(
            gateway,
            (
                f'service = "lmtp"\naddress = "127.0.0.1:{lmtp}"',
                f'service = "smtp"\naddress = "127.0.0.1:{new}"',
            ),
        )
        for client in one_session_each(gateway, new).values():
            assert client.message(LINE)[-1].startswith("250")
        sink.wait(2)
        with pytest.raises(ConnectionRefusedError):
            Client(lmtp)
        assert open_session.command("LHLO client.example")[-1].startswith("250"), "it goes on"
    with Client(smtp) as client:
        client.hello()
    # And back, on the same port.
    reload(gateway, more=f'\n[[listen]]\nservice = "lmtp"\naddress = "127.0.0.1:{lmtp}"\n')
    with Client(lmtp) as client:
        assert client.code() == 220


def test_sighup_shows_a_new_certificate(gateway_factory, sink, tmp_path):
    first = make_certificate(tmp_path, "first.example.test")
    second = make_certificate(tmp_path, "second.example.test")
    pair = (tmp_path / "used.pem", tmp_path / "used.key")
    for used, made in zip(pair, first, strict=True):
        used.write_bytes(made.read_bytes())
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")],
        [listener(tls="starttls"), listener(tls="implicit")],
        tls={"certificate": str(pair[0]), "key": str(pair[1])},
        workers=2,
    )

    def serial_of(pem: Path | str) -> str:
        text = Path(pem).read_text() if isinstance(pem, Path) else pem
        done = subprocess.run(
            [need("openssl"), "x509", "-noout", "-serial"],
            input=text, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    def shown() -> set[str]:
        """By several connections: both workers answer."""
        return {
            serial_of(s_client(port, starttls=starttls))
            for port, starttls in zip(gateway.ports * 4, (True, False) * 4, strict=True)
        }

    assert shown() == {serial_of(first[0])}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", gateway.ports[1]), timeout=60) as raw,
        context.wrap_socket(raw) as tls,
    ):
        assert tls.recv(1000).startswith(b"220")
        set_certificate(second, gateway)
        reload(gateway)
        assert shown() == {serial_of(second[0])}
        tls.sendall(b"EHLO client.example\r\n")
        assert tls.recv(1000).startswith(b"250"), "a TLS session goes on"


def test_a_broken_configuration_is_refused_and_the_old_one_stays(gateway_factory, sink):
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}")], workers=2)
    good = gateway.config.read_text()
    broken = good.replace('service = "smtp"', 'service = "smpt"')
    line = 1 + broken[: broken.index('"smpt"')].count("\n")
    for text, told in (
        (broken, f"gateway.toml:{line}: listen[0].service"),
        (good + "\n[[listen]\n", "not TOML"),
        (good.replace("[tls]", "[tls]\nmin_version = 12"), "tls.min_version"),
        (good.replace(".pem", ".missing"), "No such file"),
    ):
        gateway.config.write_text(text)
        before = len(gateway.log("reload_refused"))
        gateway.process.send_signal(signal.SIGHUP)
        wait_for(lambda before=before: len(gateway.log("reload_refused")) > before, told)
        assert told in gateway.log("reload_refused")[-1]["reason"]
    for client in one_session_each(gateway).values():
        assert client.message(LINE)[-1].startswith("250")
    sink.wait(2)
    gateway.config.write_text(good)
    reload(gateway)


def test_reloads_under_load_disturb_nobody(gateway_factory, sink_factory, certificate, tmp_path):
    sinks = [sink_factory(ledger=str(tmp_path / f"delivered-{n}")) for n in range(2)]
    pair = tuple(shutil.copy(path, tmp_path) for path in certificate)
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sinks[0].port}")],
        [listener(tls="starttls")],
        tls=dict(zip(("certificate", "key"), pair, strict=True)),
        workers=2,
    )
    plan = Plan(
        target=f"127.0.0.1:{gateway.port}",
        connections=8,
        size_octets=4000,
        pipelining=True,
        tls="starttls",
        per_connection=30,
        duration_s=4.0,
        ledger=str(tmp_path / "accepted"),
    )
    results: list[Result] = []
    load = threading.Thread(target=lambda: results.append(asyncio.run(Source(plan).run())))
    load.start()
    for number in range(6):
        old, new = sinks[number % 2].port, sinks[(number + 1) % 2].port
        set_certificate(make_certificate(tmp_path, f"host{number}.example.test"), gateway)
        reload(gateway, (f":{old}", f":{new}"))
    load.join(60)
    assert (results[0].refused, results[0].broken) == (0, 0), results[0].replies
    assert results[0].accepted > 0

    def difference() -> ledger.Difference:
        delivered: list[ledger.Entry] = []
        for sink in sinks:
            sink.flush()
        time.sleep(0.1)
        for number in range(2):
            delivered += ledger.read(tmp_path / f"delivered-{number}")
        return ledger.compare(ledger.read(tmp_path / "accepted"), delivered)

    wait_for(
        lambda: json.loads(gateway.command("queue", "list", "--json"))["total"] == 0, "all mail"
    )
    found = difference()
    assert (found.lost, found.altered, found.duplicated) == (0, 0, 0), found


# -- SIGUSR1 ---------------------------------------------------------------------------------------


def test_sigusr1_opens_the_log_again_in_all_workers(gateway_factory, sink):
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}")], workers=2)
    clients = one_session_each(gateway)
    old = gateway.log_file.with_suffix(".1")
    gateway.log_file.rename(old)
    gateway.process.send_signal(signal.SIGUSR1)
    wait_for(gateway.log_file.exists, "the new log")

    def all_there() -> bool:
        for client in clients.values():
            assert client.message(LINE)[-1].startswith("250")
        return {line["worker"] for line in gateway.log("accepted")} == {0, 1}

    wait_for(all_there, "lines of both workers in the new log")
    size = old.stat().st_size
    for client in clients.values():
        client.message(LINE)
    time.sleep(0.1)
    assert old.stat().st_size == size


# -- deaths ----------------------------------------------------------------------------------------


def test_a_worker_that_dies_comes_back_and_the_others_serve_on(gateway_factory, sink):
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")], [listener(), listener("http")], workers=2
    )
    sessions = one_session_each(gateway)
    pids = worker_pids(gateway)
    for count in (1, 2):  # the second time it waits longer
        os.kill(worker_pids(gateway)[0], signal.SIGKILL)
        wait_for(lambda count=count: len(gateway.log("worker_died")) == count, "its death")
        # Whoever connects until it is started again is served by the one that is left, at once:
        # nobody waits in the queue of a dead one.
        for _ in range(20):
            with Client(gateway.port) as client:
                client.hello()
                served_by = worker_of(client, gateway)
            if len(gateway.log("worker_started")) > 1 + count:
                break
            assert served_by == 1
        assert sessions[1].message(LINE)[-1].startswith("250")
        wait_for(lambda count=count: len(gateway.log("worker_up")) == 2 + count, "its restart")
    died = gateway.log("worker_died")
    assert [line["restart_in_s"] for line in died] == [1.0, 2.0]
    assert [line["reason"] for line in died] == ["SIGKILL", "SIGKILL"]
    again = one_session_each(gateway)
    assert again[0].message(LINE)[-1].startswith("250")
    assert worker_pids(gateway)[1] == pids[1]
    found = samples(scrape(gateway.ports[1])[1])
    restarts = {key: value for key, value in found.items() if "worker_restarts_total" in key}
    assert sorted(restarts.values()) == [0, 2], restarts
    sink.wait(3)


def test_a_listener_that_comes_while_a_worker_is_dead_is_served_by_it_too(gateway_factory):
    gateway = gateway_factory([route("discard:")], workers=2)
    new = free_port()
    change(gateway, more=f'\n[[listen]]\nservice = "smtp"\naddress = "127.0.0.1:{new}"\n')
    os.kill(worker_pids(gateway)[0], signal.SIGKILL)
    gateway.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(gateway.log("worker_up")) == 3, "the restart")
    for client in one_session_each(gateway, new).values():
        assert client.message(LINE)[-1].startswith("250")
    assert not gateway.log("worker_hangs")


def test_the_only_worker_comes_back_for_those_who_wait(gateway_factory):
    gateway = gateway_factory([route("discard:")], workers=1)
    os.kill(worker_pids(gateway)[0], signal.SIGKILL)
    wait_for(lambda: gateway.log("worker_died"), "its death")
    with Client(gateway.port) as client:
        client.hello()
        assert client.message(LINE)[-1].startswith("250")


def test_workers_of_a_killed_supervisor_leave_and_a_new_one_starts_at_once(gateway_factory, sink):
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}")], workers=2)
    idle = one_session_each(gateway)
    busy = one_session_each(gateway)
    for client in busy.values():
        client.command("MAIL FROM:<a@example.test>")
        client.command("RCPT TO:<b@example.test>")
        client.command("DATA")
    gateway.process.kill()
    gateway.process.wait()
    for client in idle.values():
        assert client.reply()[-1].startswith("421 4.3.2")
    second = subprocess.Popen(gateway.process.args, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: gateway.log("waiting"), "the new one to see the old one's workers")
        for client in busy.values():
            client.send(LINE + b".\r\n")
            assert client.code() == 250
        wait_for(lambda: len(gateway.log("worker_ready")) == 4, "the new one")
        for client in one_session_each(gateway).values():
            assert client.message(LINE)[-1].startswith("250")
        sink.wait(4)
    finally:
        second.terminate()
        assert second.wait(60) == 0


def test_a_second_gateway_on_the_same_state_is_refused(gateway_factory, tmp_path):
    gateway = gateway_factory([route("discard:")], workers=1)
    other = tmp_path / "other.toml"
    other.write_text(gateway.config.read_text().replace(f":{gateway.port}", f":{free_port()}"))
    done = run(None, "serve", config=other)
    assert done.code == 1
    assert f"{gateway.state_dir} is in use by another gateway" in done.error
    assert "Traceback" not in done.error
    with Client(gateway.port) as client:
        client.hello()


def test_mail_of_a_partition_that_lost_its_worker_is_delivered(gateway_factory, sink):
    gateway = gateway_factory([route(f"smtp://127.0.0.1:{sink.port}", hold=True)], workers=2)
    for client in one_session_each(gateway).values():
        for _ in range(3):
            assert client.message(LINE)[-1].startswith("250")
    gateway.stop()
    change(gateway, ("workers = 2", "workers = 1"), ("hold = true", "hold = false"))
    gateway.expect_workers(1)
    gateway.start()
    sink.wait(6)
    spool = gateway.state_dir / "spool"
    wait_for(lambda: not (spool / "1").exists(), "the partition to be taken over")
    found = run(gateway, "queue", "list", "--json")
    wait_for(lambda: run(gateway, "queue", "list", "--json").json()["total"] == 0, found.out)
    gateway.stop()
    gateway.start()
    assert len(sink.receipts) == 6, "nothing comes twice"


# -- sockets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["smtp", "lmtp"])
def test_unix_sockets(gateway_factory, sink, tmp_path, service):
    path = tmp_path / "mail.sock"
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")],
        [listener(), {"service": service, "address": f"unix:{path}", "mode": 0o600}],
        workers=2,
    )
    assert path.stat().st_mode & 0o777 == 0o600
    for _ in range(4):
        with UnixClient(path) as client:
            assert client.code() == 220
            assert client.command("LHLO c.example" if service == "lmtp" else "EHLO c.example")
            assert client.message(LINE)[-1].startswith("250")
    assert len(sink.wait(4)) == 4
    assert {line["client"] for line in gateway.log("accepted")} == {"unix:"}
    gateway.kill()
    gateway.start()  # over what a killed one left
    with UnixClient(path) as client:
        assert client.code() == 220
    # Somebody else's socket is not taken away from him.
    other = tmp_path / "other.toml"
    text = gateway.config.read_text().replace(f":{gateway.port}", f":{free_port()}")
    other.write_text(text.replace(str(gateway.state_dir), str(tmp_path / "other")))
    done = run(None, "serve", config=other)
    assert (done.code, done.error) == (1, f"gateway: unix:{path}: Address already in use\n")
    with UnixClient(path) as client:
        assert client.code() == 220
    gateway.stop()
    assert not path.exists()


def test_both_workers_get_connections_and_one_metrics_page_tells_of_both(gateway_factory, sink):
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")], [listener(), listener("http")], workers=2
    )
    for _ in range(40):
        with Client(gateway.port) as client:
            client.hello()
            assert client.message(LINE)[-1].startswith("250")
            client.command("QUIT")
    sink.wait(40)
    per_worker = [0, 0]
    for line in gateway.log("accepted"):
        per_worker[line["worker"]] += 1
    assert min(per_worker) > 0, "SO_REUSEPORT shares connections out"
    for _ in range(4):  # whichever worker answers
        status, text = scrape(gateway.ports[1])
        assert status == 200
        found = samples(text)
        assert total(found, "gateway_messages_accepted_total") == 40
        assert total(found, "gateway_sessions_total") == 40
        assert scrape(gateway.ports[1], "/healthz") == (200, '{"healthy":true,"reasons":[]}\n')
    wait_for(
        lambda: total(samples(scrape(gateway.ports[1])[1]), "gateway_recipients_total") == 40,
        "all outcomes in the metrics",
    )
    assert scrape(gateway.ports[1], "/elsewhere")[0] == 404


def total(found: dict[str, float], name: str) -> float:
    return sum(value for key, value in found.items() if key.partition("{")[0] == name)


# -- privileges ------------------------------------------------------------------------------------


def low_port() -> int:
    for port in range(600, 1000):
        if is_free(port):
            return port
    pytest.skip("no port below 1024 is free")


@pytest.fixture
def open_tmp_path(tmp_path: Path) -> Path:
    """tmp_path, and everybody may enter it."""
    let_others_in(tmp_path)
    return tmp_path


def test_workers_give_root_up_for_good(gateway_factory, sink, open_tmp_path, certificate):
    need_root()
    port = low_port()
    key = open_tmp_path / "root.key"
    key.write_bytes(certificate[1].read_bytes())
    key.chmod(0o600)
    maildirs = open_tmp_path / "maildirs"
    maildirs.mkdir()
    maildirs.chmod(0o777)
    gateway = gateway_factory(
        [
            route(f"smtp://127.0.0.1:{sink.port}", "relay.test"),
            route(f"maildir:{maildirs}/{{local_part}}", "local.test", recipients=["b@local.test"]),
        ],
        [
            {"service": "smtp", "address": f"127.0.0.1:{port}", "tls": "starttls"},
            {"service": "lmtp", "address": f"unix:{open_tmp_path / 'lmtp.sock'}"},
            listener("http"),
        ],
        tls={"certificate": str(certificate[0]), "key": str(key)},
        user="nobody",
        workers=2,
    )
    import pwd

    uid = pwd.getpwnam("nobody").pw_uid
    for pid in worker_pids(gateway).values():
        status = dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.M))
        assert {*status["Uid"].split()} == {str(uid)}, "saved and file system ids too"
        assert "0" not in {*status["Gid"].split(), *status["Groups"].split()}
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff")} == {0}

    def deliver() -> None:
        for client in one_session_each(gateway, port).values():
            assert client.message(LINE, to="a@relay.test")[-1].startswith("250")
            assert client.message(LINE, to="b@local.test")[-1].startswith("250")

    deliver()
    sink.wait(2)
    mailbox = maildirs / "b" / "new"
    wait_for(lambda: mailbox.is_dir() and len(list(mailbox.iterdir())) == 2, "the mailbox")
    for path in (*gateway.state_dir.rglob("*"), *maildirs.rglob("*")):
        if path.name != "lock" or path.parent != gateway.state_dir:
            assert path.stat().st_uid == uid, path
    assert scrape(gateway.ports[1])[0] == 200
    # The supervisor is root still: what needs it works after the start, too.
    other = low_port()
    reload(gateway, more=f'\n[[listen]]\nservice = "smtp"\naddress = "127.0.0.1:{other}"\n')
    for client in one_session_each(gateway, other).values():
        assert client.command("NOOP")[-1].startswith("250")
    os.kill(worker_pids(gateway)[0], signal.SIGKILL)
    wait_for(lambda: len(gateway.log("worker_up")) == 3, "the restart")
    assert f"Uid:\t{uid}\t" in Path(f"/proc/{worker_pids(gateway)[0]}/status").read_text()
    deliver()
    sink.wait(4)
    assert "STARTTLS" in s_client(port) or "BEGIN CERTIFICATE" in s_client(port)
    gateway.stop()
    assert gateway.process.returncode == 0


def test_a_state_directory_that_workers_cannot_enter_is_told(gateway_factory, open_tmp_path):
    need_root()
    gateway = gateway_factory([route("discard:")])
    gateway.stop()
    change(gateway, ("workers = 1", 'workers = 1\nuser = "nobody"'))
    done = run(gateway, "serve")
    assert done.code == 1
    assert f"{gateway.state_dir} is closed to the account in `user`" in done.error
