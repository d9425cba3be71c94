"""The supervisor with real processes, sockets and signals; the workers are small."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reachable import let_others_in

from gateway.cli.init import self_signed
from gateway.config import parse
from gateway.supervisor import identity, names_of, orphans_of
from gateway.systemd import notify, watchdog_s

# A worker that tells who it is to everybody who connects, and leaves on a connection's request.
WORKER = """
import asyncio, os, sys
from gateway.config import load
from gateway.supervisor import StartError, Supervisor

def run_worker(context):
    if os.environ.get("FAIL") == str(context.index):
        raise RuntimeError("no spool")
    return asyncio.run(serve(context))

async def serve(context):
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    log = context.open_log()
    log.attach(loop)
    state = {"config": context.config, "keys": context.keys}
    servers = {}

    async def answer(reader, writer):
        default = state["keys"].default
        fields = {
            "index": context.index, "pid": os.getpid(), "uid": os.getuid(),
            "hostname": state["config"].hostname, "restarts": context.restarts,
            "expires_at": default.expires_at if default else 0, "orphans": context.orphans,
        }
        import json
        writer.write(json.dumps(fields).encode() + b"\\n")
        command = await reader.readline()
        if command == b"die\\n":
            os._exit(7)
        if command == b"sleep\\n":
            import time; time.sleep(60)
        while command == b"spin\\n":
            pass
        if command == b"log\\n":
            log.event("asked")
            log.flush()
        if command == b"keep\\n":
            while await reader.readline():
                writer.write(b"here\\n")
        writer.close()

    async def listen(sockets):
        for index, (sock,) in sockets.items():
            if sock not in servers:
                start = asyncio.start_unix_server if sock.family == 1 else asyncio.start_server
                servers[sock] = await start(answer, sock=sock)
        for sock in servers.keys() - {sock for (sock,) in sockets.values()}:
            servers.pop(sock).close()

    def on_reload(reload):
        if reload.config.hostname == "refuse.example":
            return "not this one"
        state.update(config=reload.config, keys=reload.keys)
        tasks.append(loop.create_task(listen(reload.sockets)))

    tasks = []
    context.link.attach(loop, on_reload=on_reload, on_stop=stop.set, on_reopen=log.reopen)
    await listen(context.sockets)
    context.link.report("ready")
    await stop.wait()
    if os.environ.get("HANG"):
        await asyncio.sleep(60)
    log.close()
    return 0

try:
    sys.exit(Supervisor(load(sys.argv[1]), run_worker, config_file=sys.argv[1]).run())
except StartError as error:
    sys.exit(f"refused: {error}")
"""


class Running:
    """A supervisor in a process of its own, and its log."""

    def __init__(self, directory: Path, config: str, **environment: str) -> None:
        self.directory = directory
        self.config_file = directory / "edge.toml"
        self.config_file.write_text(config)
        script = directory / "worker.py"
        script.write_text(WORKER)
        self.process = subprocess.Popen(
            [sys.executable, script, self.config_file],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.getcwd()} | environment,
        )
        self.lines: list[dict[str, Any]] = []
        self.text: list[bytes] = []  # the same and whatever else was said
        self._rest = b""

    def wait_for(self, event: str, count: int = 1, timeout_s: float = 20.0) -> list[dict[str, Any]]:
        """The lines about this event, once there are so many."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = [line for line in self.lines if line["event"] == event]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, (event, self.lines, self._rest)
            self._read(deadline - time.monotonic())

    def _read(self, timeout_s: float) -> None:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        if select.select([descriptor], [], [], max(0.0, timeout_s))[0]:
            data = os.read(descriptor, 65536)
            assert data, (self.lines, self._rest)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.text += lines
            self.lines += [json.loads(line) for line in lines if line.startswith(b"{")]

    def address(self, configured: str) -> tuple[str, int]:
        for line in self.wait_for("listening"):
            if line["configured"] == configured:
                host, _, port = line["address"].rpartition(":")
                return host, int(port)
        raise AssertionError(f"not listening on {configured}")

    def ask(self, address: tuple[str, int] | str, command: bytes = b"\n") -> dict[str, Any]:
        """What the worker that accepts says of itself."""
        with connect(address) as sock:
            answer: dict[str, Any] = json.loads(sock.makefile().readline())
            sock.sendall(command)
            with contextlib.suppress(ConnectionResetError):
                sock.recv(1)
            return answer

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        assert self.process.stdout is not None
        try:
            out, _ = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for line in (self._rest + out).split(b"\n"):
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))
        return self.process.returncode


def connect(address: tuple[str, int] | str) -> socket.socket:
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(address)
        return sock
    return socket.create_connection(address, timeout=60)


def config(more: str = "", hostname: str = "one.example", top: str = "workers = 2") -> str:
    return textwrap.dedent(
        f"""\
        hostname = "{hostname}"
        state_dir = "state"
        drain_s = 2
        {top}
        [[listen]]
        service = "smtp"
        address = "127.0.0.1:0"
        """
    ) + textwrap.dedent(more)


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Running] = []

    def start_one(text: str, directory: Path = tmp_path, **environment: str) -> Running:
        directory.mkdir(exist_ok=True)
        running.append(Running(directory, text, **environment))
        return running[-1]

    yield start_one
    for one in running:
        if one.process.poll() is None:
            one.stop()
        if one.process.stdout is not None:
            one.process.stdout.close()


def test_workers_share_a_port_and_stop_on_sigterm(start: Start) -> None:
    running = start(config())
    running.wait_for("ready")
    address = running.address("127.0.0.1:0")
    deadline = time.monotonic() + 60
    seen = set()
    while seen != {0, 1} and time.monotonic() < deadline:
        seen.add(running.ask(address)["index"])
    assert seen == {0, 1}
    assert running.stop() == 0
    assert len(running.wait_for("worker_exited", 2)) == 2
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def test_a_dead_worker_comes_back_and_the_other_serves_on(start: Start) -> None:
    running = start(config())
    running.wait_for("ready")
    address = running.address("127.0.0.1:0")
    victim = running.ask(address, b"die\n")
    died = running.wait_for("worker_died")[0]
    assert (died["pid"], died["reason"]) == (victim["pid"], "exit 7")
    ready = running.wait_for("worker_up", 3)[-1]
    assert ready["worker_index"] == victim["index"]
    os.kill(running.wait_for("worker_started", 3)[-1]["pid"], signal.SIGKILL)
    died = running.wait_for("worker_died", 2)[-1]
    assert died["reason"] == "SIGKILL"
    assert died["restart_in_s"] == 2.0  # doubled


def test_a_worker_that_cannot_start_is_logged_with_its_traceback(start: Start) -> None:
    running = start(config(), FAIL="1")
    failed = running.wait_for("worker_failed")[0]
    assert failed["worker"] == 1
    assert "no spool" in failed["traceback"]
    running.wait_for("worker_died")
    assert running.ask(running.address("127.0.0.1:0"))["index"] == 0


def test_reload_changes_everything_and_drops_no_session(start: Start, tmp_path: Path) -> None:
    def write_pair() -> None:
        pair = zip(("tls.pem", "tls.key"), self_signed("a.example"), strict=True)
        for name, data in pair:
            (tmp_path / name).write_bytes(data)

    write_pair()
    tls = '[tls]\ncertificate = "tls.pem"\nkey = "tls.key"\n'
    running = start(config(tls + '[[listen]]\nservice = "lmtp"\naddress = "unix:lmtp.sock"\n'))
    running.wait_for("ready")
    address = running.address("127.0.0.1:0")
    unix = str(tmp_path / "lmtp.sock")
    before = running.ask(unix)
    with connect(address) as session:
        lines = session.makefile()
        mine = json.loads(lines.readline())
        session.sendall(b"keep\n")
        time.sleep(1.1)  # certificates tell seconds
        write_pair()
        new = '[[listen]]\nservice = "smtp"\naddress = "127.0.0.2:0"\n'
        running.config_file.write_text(config(tls + new, "two.example"))
        running.signal(signal.SIGHUP)
        running.wait_for("worker_reloaded", 2)
        after = running.ask(address)
        assert after["hostname"] == "two.example"
        assert after["expires_at"] > before["expires_at"]
        session.sendall(b"\n")
        assert lines.readline() == "here\n"
        assert {mine["pid"], after["pid"]} <= {
            line["pid"] for line in running.wait_for("worker_started", 2)
        }
    with pytest.raises(OSError):
        connect(unix)
    assert not any(line["event"] == "worker_died" for line in running.lines)


def test_a_refused_reload_leaves_the_old_configuration(start: Start) -> None:
    running = start(config())
    running.wait_for("ready")
    address = running.address("127.0.0.1:0")
    running.config_file.write_text(config('tls = "startls"\n', "two.example"))
    running.signal(signal.SIGHUP)
    refused = running.wait_for("reload_refused")[0]
    assert "edge.toml:8: listen[0].tls" in refused["reason"]
    # A port that is taken is as bad as a typing error: nothing of the new configuration is used.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        more = f'[[listen]]\nservice = "smtp"\naddress = "127.0.0.1:{taken.getsockname()[1]}"\n'
        running.config_file.write_text(config(more, "two.example"))
        running.signal(signal.SIGHUP)
        assert "in use" in running.wait_for("reload_refused", 2)[1]["reason"]
    assert running.ask(address)["hostname"] == "one.example"
    running.config_file.write_text(config(hostname="refuse.example"))
    running.signal(signal.SIGHUP)
    assert running.wait_for("reload_failed", 2)[0]["reason"] == "not this one"


def test_what_cannot_change_while_running_waits_for_the_next_start(start: Start) -> None:
    running = start(config())
    running.wait_for("ready")
    running.config_file.write_text(config(hostname="two.example", top="workers = 3"))
    running.signal(signal.SIGHUP)
    assert running.wait_for("reload_ignored")[0]["key"] == "workers"
    running.wait_for("worker_reloaded", 2)
    assert running.ask(running.address("127.0.0.1:0"))["hostname"] == "two.example"
    assert len(running.wait_for("worker_started", 2)) == 2


def test_the_log_is_reopened_by_all(start: Start, tmp_path: Path) -> None:
    running = start(config('[log]\nfile = "gateway.log"\n', top="workers = 1"))
    log = tmp_path / "gateway.log"

    def wait_for(path: Path, event: str) -> str:
        deadline = time.monotonic() + 60
        while not (path.exists() and event in path.read_text()):
            assert time.monotonic() < deadline, event
            time.sleep(0.01)
        return path.read_text()

    text = wait_for(log, '"event":"ready"')
    line = next(json.loads(line) for line in text.splitlines() if "listening" in line)
    host, _, port = line["address"].rpartition(":")
    log.rename(tmp_path / "gateway.log.1")
    running.signal(signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while "asked" not in log.read_text():  # the worker gets its descriptor a moment later
        assert time.monotonic() < deadline
        running.ask((host, int(port)), b"log\n")
    assert running.stop() == 0
    assert '"event":"stopped"' in log.read_text()


def test_a_worker_that_does_not_drain_is_killed(start: Start) -> None:
    running = start(config(top="workers = 1"), HANG="1")
    running.wait_for("ready")
    running.signal(signal.SIGTERM)
    running.wait_for("stopping")
    running.signal(signal.SIGINT)  # a second request does not wait
    running.wait_for("worker_killed")
    assert running.stop() == 0


@pytest.mark.parametrize("how", ["sleep", "spin"])
def test_a_worker_that_hangs_is_killed_and_started_again(start: Start, how: str) -> None:
    """A worker's event loop does not turn any more: it is blocked, or in an endless loop.

    Client   sessions of that worker end; new connections go to the others, or wait for its successor
    Queue    the worker is killed after limits.heartbeat_s (60 s) and started again a second later, with all its mail
    Shown    worker_hangs with the reason, and worker_died; where it hung, on stderr; gateway_worker_restarts_total
    Arrives  when the next worker has recovered the spool
    """
    running = start(config("[limits]\nheartbeat_s = 1.5"))
    running.wait_for("ready")
    address = running.address("127.0.0.1:0")
    with connect(address) as sock:
        victim = json.loads(sock.makefile().readline())
        sock.sendall(how.encode() + b"\n")
        hangs = running.wait_for("worker_hangs")[0]
    assert (hangs["pid"], hangs["worker_index"]) == (victim["pid"], victim["index"])
    assert "limits.heartbeat_s" in hangs["reason"]
    assert hangs["state"] == ("S" if how == "sleep" else "R")
    died = running.wait_for("worker_died")[0]
    assert (died["pid"], died["reason"]) == (victim["pid"], "SIGABRT")
    assert any(b"Current thread" in line for line in running.text)
    up = running.wait_for("worker_up", 3)[-1]
    assert up["worker_index"] == victim["index"]
    assert len(running.wait_for("worker_died")) == 1
    assert running.stop() == 0


@pytest.mark.parametrize("who", ["worker", "supervisor", "all"])
def test_what_is_stopped_does_not_hang(start: Start, who: str) -> None:
    """A worker, the supervisor or the whole machine is stopped for longer than limits.heartbeat_s, and goes on.

    Client   waits
    Queue    goes on where it was: nobody is killed for being stopped (SIGSTOP, a debugger, a suspended host)
    Shown    nothing
    Arrives  when it goes on
    """
    running = start(config("[limits]\nheartbeat_s = 1.5"))
    running.wait_for("ready")
    workers = [line["pid"] for line in running.wait_for("worker_started", 2)]
    stopped = {
        "worker": workers[:1],
        "supervisor": [running.process.pid],
        "all": [running.process.pid, *workers],
    }[who]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2.5)
    for pid in reversed(stopped):  # the workers last: the supervisor finds them without a beat
        os.kill(pid, signal.SIGCONT)
    time.sleep(0.7)
    assert running.ask(running.address("127.0.0.1:0"))["pid"] in workers
    assert running.stop() == 0
    assert not [line for line in running.lines if line["event"] in ("worker_hangs", "worker_died")]


def test_workers_leave_when_the_supervisor_is_killed(start: Start, tmp_path: Path) -> None:
    running = start(config())
    running.wait_for("ready")
    address = running.address("127.0.0.1:0")
    pids = [line["pid"] for line in running.wait_for("worker_started", 2)]
    running.process.kill()
    running.process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def test_one_state_directory_has_one_gateway(start: Start, tmp_path: Path) -> None:
    first = start(config())
    first.wait_for("ready")
    second = start(config(), tmp_path)
    assert second.process.wait(60) == 1
    assert second.process.stdout is not None
    assert b"in use by another gateway" in second.process.stdout.read()


def test_a_taken_port_is_told(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        running = start(config(f'[[listen]]\nservice = "smtp"\naddress = "{address}"\n'))
        assert running.process.wait(60) == 1
        assert running.process.stdout is not None
        assert f"{address}: Address already in use".encode() in running.process.stdout.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_workers_run_as_the_configured_user(start: Start, tmp_path: Path) -> None:
    let_others_in(tmp_path)
    running = start(config(top='workers = 1\nuser = "nobody"'))
    running.wait_for("ready")
    answer = running.ask(running.address("127.0.0.1:0"))
    uid = identity(parse(config(top='user = "nobody"')))[0]
    assert answer["uid"] == uid != 0
    assert Path(f"/proc/{answer['pid']}/comm").read_text() == "gateway-0\n"
    assert (tmp_path / "state" / "spool").stat().st_uid == uid


def test_partitions_without_a_worker_go_to_worker_0(start: Start, tmp_path: Path) -> None:
    for name in ("0", "1", "5", "damaged"):
        (tmp_path / "state" / "spool" / name).mkdir(parents=True)
    running = start(config())
    running.wait_for("ready")
    assert orphans_of(parse(config(), tmp_path / "edge.toml")) == [5]
    address = running.address("127.0.0.1:0")
    answers: dict[int, list[int]] = {}
    deadline = time.monotonic() + 60
    while answers.keys() != {0, 1} and time.monotonic() < deadline:
        answer = running.ask(address)
        answers[answer["index"]] = answer["orphans"]
    assert answers == {0: [5], 1: []}


def test_systemd_is_told(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        running = start(config(), NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="100000")
        told = set()
        while not {"READY=1", "WATCHDOG=1"} <= told:
            told.add(systemd.recv(100).decode())
        running.signal(signal.SIGTERM)
        while "STOPPING=1" not in told:
            told.add(systemd.recv(100).decode())
    monkeypatch.setenv("NOTIFY_SOCKET", "@absent")
    notify("READY=1")  # nobody listens: no error
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_s() == 0.0


def test_listeners_keep_their_names_over_reloads() -> None:
    twice = config('[[listen]]\nservice = "smtp"\naddress = "127.0.0.1:0"\n')
    assert names_of(parse(twice)) == ["127.0.0.1:0", "127.0.0.1:0#2"]
