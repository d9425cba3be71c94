"""Many connections: what they cost while nothing happens, and how soon they hear of a delivery.

Owns      measure(): IDLE sessions, connections that are held, mailboxes of growing size
Limits    IDLE sessions on USERS accounts; HELD connections are for this product alone
Errors    a server that cannot is named with its words
"""

from __future__ import annotations

import contextlib
import select
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benches.peers.imap import IMAP_STORES, OURS
from benches.peers.imap_client import Imap
from benches.peers.imap_mail import fill, mailbox
from benches.peers.retrieval import Lmtp, settle, stuffed
from benches.peers.servers import Missing
from benches.peers.stores import USERS, StoreServer, user

INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
IDLE = 1000
DELIVERIES = 5
HELD, ACTIVE_SHARE, ACTIVE_S = 10_000, 0.01, 5.0
SIZES = (1000, 100_000, 1_000_000)
SEED = 1000  # messages that are copied until there are enough
SELECTS = 50


def measure(where: Path, *, servers: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {"idle": {}}
    for name in servers:
        say(f"{IDLE} sessions in IDLE: {name}")
        with _inotify():
            found["idle"][name] = _with(where / f"{name}-idle", name, _idle)
    if OURS in servers:
        say(f"{HELD} connections, {ACTIVE_SHARE:.0%} active")
        found["held"] = _with(where / "held", OURS, _held)
        say("SELECT of growing mailboxes")
        found["select"] = _with(where / "select", OURS, _select)
    return found


@contextlib.contextmanager
def _inotify() -> Iterator[None]:
    """Dovecot wants an instance for each of its processes, which all belong to one user here."""
    before = INOTIFY.read_text()
    with contextlib.suppress(OSError):
        INOTIFY.write_text(str(4 * IDLE))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            INOTIFY.write_text(before)


def _with(where: Path, name: str, work: Callable[[StoreServer], dict[str, Any]]) -> dict[str, Any]:
    try:
        server = IMAP_STORES[name](where)
    except Missing as missing:
        return {"failure": str(missing).splitlines()[-1]}
    try:
        return work(server)
    except (RuntimeError, OSError) as error:
        return {"failure": str(error)}
    finally:
        server.stop()


def _idle(server: StoreServer) -> dict[str, Any]:
    """PSS above the server that nobody is connected to, and the time from a delivery's 250 to the last EXISTS."""
    mails, _ = mailbox(10)
    for number in range(USERS):
        client = Imap(server.imap_port, user(number))
        client.append("INBOX", mails)
        client.logout()
    settle(server)
    before_octets, before_s = server.account.pss_octets(), server.account.cpu_s()
    crowds: list[list[Imap]] = [[] for _ in range(USERS)]
    try:
        for number in range(IDLE):
            crowd = crowds[number % USERS]
            crowd.append(_idling(server, number % USERS))
        settle(server)
        result: dict[str, Any] = {
            "base_mib": before_octets / 2**20,
            "kib_per_session": (server.account.pss_octets() - before_octets) / 1024 / IDLE,
            "above_base_mib": (server.account.pss_octets() - before_octets) / 2**20,
            "cpu_ms_per_login": 1e3 * (server.account.cpu_s() - before_s) / IDLE,
            "processes": len(server.account.pids()),
        }
        times = [_announced(server, crowds[number], number) for number in range(1, DELIVERIES + 1)]
        result["first_exists_ms"] = statistics.median(first for first, _ in times)
        result["last_exists_ms"] = statistics.median(last for _, last in times)
        return result
    finally:
        for crowd in crowds:
            for client in crowd:
                client.sock.close()


def _idling(server: StoreServer, number: int) -> Imap:
    client = Imap(server.imap_port, user(number))
    client.command("SELECT INBOX")
    client.sock.sendall(b"idle IDLE\r\n")
    while not client.line().splitlines()[-1].startswith(b"+"):
        continue
    return client


def _announced(server: StoreServer, crowd: list[Imap], number: int) -> tuple[float, float]:
    """ms from the 250 to the first and to the last session that saw EXISTS; negative: before the 250 was read."""
    lmtp = Lmtp(server.port)
    lmtp.begin(user(number))
    poll = select.poll()
    sockets = {client.sock.fileno(): client.sock for client in crowd}
    seen = dict.fromkeys(sockets, b"")
    for descriptor in sockets:
        poll.register(descriptor, select.POLLIN)
    lmtp.send(stuffed(b"From: a@example.org\r\nSubject: announced\r\n\r\nx\r\n", number))
    lmtp.end()
    began, times = time.perf_counter(), []
    while sockets:
        ready = poll.poll(60_000)
        now = time.perf_counter()
        if not ready:
            raise RuntimeError(f"{len(sockets)} of {len(crowd)} sessions heard nothing in 60 s")
        for descriptor, _ in ready:
            data = sockets[descriptor].recv(65536)
            if not data:
                raise RuntimeError("a session in IDLE was closed")
            seen[descriptor] += data
            if b" EXISTS\r\n" in seen[descriptor]:
                times.append(1e3 * (now - began))
                poll.unregister(descriptor)
                del sockets[descriptor]
    lmtp.close()
    return times[0], times[-1]


def _held(server: StoreServer) -> dict[str, Any]:
    """HELD connections logged in; of them a part asks NOOP and FETCH in turn, one command at a time each."""
    mails, _ = mailbox(10)
    for number in range(USERS):
        client = Imap(server.imap_port, user(number))
        client.append("INBOX", mails)
        client.logout()
    settle(server)
    before = server.account.pss_octets()
    clients: list[Imap] = []
    try:
        began = time.perf_counter()
        for number in range(HELD):
            clients.append(Imap(server.imap_port, user(number % USERS)))
            clients[-1].command("SELECT INBOX")
        opened_s = time.perf_counter() - began
        settle(server)
        octets = server.account.pss_octets() - before
        times = _ask(clients[:: round(1 / ACTIVE_SHARE)])
        return {
            "connections": HELD,
            "opened_per_s": HELD / opened_s,
            "kib_per_connection": octets / 1024 / HELD,
            "commands_per_s": len(times) / ACTIVE_S,
            "ms_median": statistics.median(times),
            "ms_p99": times[int(len(times) * 0.99)],
            "ms_max": times[-1],
        }
    finally:
        for client in clients:
            client.sock.close()


def _ask(active: list[Imap]) -> list[float]:
    """Sorted round trips in ms, all of them at once for ACTIVE_S."""
    poll = select.poll()
    sockets: dict[int, socket.socket] = {client.sock.fileno(): client.sock for client in active}
    asked: dict[int, float] = {}
    for descriptor, sock in sockets.items():
        poll.register(descriptor, select.POLLIN)
        asked[descriptor] = time.perf_counter()
        sock.sendall(b"a NOOP\r\n")
    times, end, number = [], time.perf_counter() + ACTIVE_S, 0
    while asked:
        for descriptor, _ in poll.poll(60_000):
            sock = sockets[descriptor]
            data = sock.recv(65536)
            now = time.perf_counter()
            if not data:
                raise RuntimeError("a connection was closed")
            if b"a OK" not in data:
                continue
            times.append(1e3 * (now - asked.pop(descriptor)))
            if now < end:
                number += 1
                asked[descriptor] = now
                sock.sendall(b"a NOOP\r\n" if number % 2 else b"a FETCH 1 (FLAGS ENVELOPE)\r\n")
    return sorted(times)


def _select(server: StoreServer) -> dict[str, Any]:
    """A fresh session's SELECT of mailboxes of growing size, filled by COPY."""
    mails, _ = mailbox(SEED)
    client = Imap(server.imap_port, user(0), timeout_s=900)
    fill(client, "INBOX", mails)
    result: dict[str, Any] = {}
    source, held = "INBOX", SEED
    for size in SIZES:
        name = f"M{size}"
        client.command(f"CREATE {name}")
        client.command(f"SELECT {source}")
        began = time.perf_counter()
        for _ in range(size // held):
            client.command(f"COPY 1:* {name}")
        copied_s = time.perf_counter() - began
        source, held = name, size
        settle(server)
        times, costs = [], []
        for _ in range(3):
            before, began = server.account.cpu_s(), time.perf_counter()
            for _ in range(SELECTS):
                fresh = Imap(server.imap_port, user(0))
                fresh.command(f"SELECT {name}")
                fresh.sock.close()
            times.append(1e6 * (time.perf_counter() - began) / SELECTS)
            settle(server)
            costs.append(1e6 * (server.account.cpu_s() - before) / SELECTS)
        result[f"{size:,}"] = {
            "login_select_wall_us": statistics.median(times),
            "login_select_cpu_us": statistics.median(costs),
            "copied_per_s": size / copied_s,
        }
    return result
