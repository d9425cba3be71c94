"""Keeping mail and giving it out: LMTP into the store, POP3 out of it, side by side.

Owns      measure() and its tables: delivery, download, login
Flow      the same real mail to every server → rounds, A B A B → CPU of the server a message, and ratios
Errors    RuntimeError when a server refuses or gives back something else than it got
Bugs      without npm, where the corpus comes from, made-up mail is used, and the result says so
"""

from __future__ import annotations

import random
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benches.corpus import CorpusMissing, fetch
from benches.peers.servers import Missing
from benches.peers.stores import PASSWORD, STORES, USERS, StoreServer, user

DELIVERY_OCTETS_MAX = 24_000
IN_FLIGHT = 100  # RETR commands that are on their way

Report = dict[str, Any]


def mails() -> tuple[list[bytes], str]:
    """Messages with CRLF line ends, and where they are from."""
    try:
        found = [path.read_bytes() for path in fetch()]
        source = "SpamAssassin corpus"
    except CorpusMissing as missing:
        chance = random.Random(1)
        line = b"The quick brown fox jumps over the lazy dog, and over the next one, too.\n"
        found = [
            b"From: a@example.org\nTo: b@example.test\nSubject: made up\n\n"
            + line * chance.randint(5, 120)
            for _ in range(500)
        ]
        source = f"made up ({missing})"
    return [b"\r\n".join(mail.replace(b"\r", b"").split(b"\n")) for mail in found], source


# -- clients ---------------------------------------------------------------------------------------


class Lmtp:
    """One connection; a message is two round trips: MAIL, RCPT and DATA at once, then the content."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._sock.makefile("rb")
        self._expect(b"220")
        self._sock.sendall(b"LHLO client.example.test\r\n")
        self._expect(b"250")

    def _expect(self, code: bytes) -> None:
        while True:
            line = self._file.readline()
            if not line.startswith(code):
                raise RuntimeError(f"LMTP: {line!r} instead of {code.decode()}")
            if line[3:4] == b" ":
                return

    def begin(self, recipient: str) -> None:
        text = f"MAIL FROM:<sender@example.org>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n"
        self._sock.sendall(text.encode())

    def send(self, content: bytes) -> None:
        for code in (b"250", b"250", b"354"):
            self._expect(code)
        self._sock.sendall(content)

    def end(self) -> None:
        self._expect(b"250")

    def close(self) -> None:
        self._sock.sendall(b"QUIT\r\n")
        self._file.read()
        self._sock.close()


def stuffed(mail: bytes, number: int) -> bytes:
    content = b"Message-ID: <%d.bench@example.org>\r\n" % number + mail
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    return (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


def deliver(port: int, contents: list[bytes], connections: int, recipients: list[str]) -> None:
    """All of them, round robin over the connections, each waiting for its 250."""
    clients = [Lmtp(port) for _ in range(connections)]
    for start in range(0, len(contents), connections):
        batch = list(zip(clients, contents[start : start + connections], strict=False))
        for number, (client, _) in enumerate(batch, start):
            client.begin(recipients[number % len(recipients)])
        for client, content in batch:
            client.send(content)
        for client, _ in batch:
            client.end()
    for client in clients:
        client.close()


class Pop3:
    def __init__(self, port: int, name: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._line()
        self._say(f"USER {name}")
        self._say(f"PASS {PASSWORD}")
        self.messages = int(self._say("STAT").split()[1])

    def _line(self) -> bytes:
        data = b""
        while not data.endswith(b"\r\n"):
            data += self._receive()
        if not data.startswith(b"+OK"):
            raise RuntimeError(f"POP3: {data!r}")
        return data

    def _receive(self) -> bytes:
        data = self._sock.recv(1 << 20)
        if not data:
            raise RuntimeError("POP3: the server closed the connection")
        return data

    def _say(self, command: str) -> bytes:
        self._sock.sendall(command.encode() + b"\r\n")
        return self._line()

    def download(self, in_flight: int) -> int:
        """Every message; returns the octets that came."""
        asked = answered = octets = 0
        tail = b""
        end = b"\r\n.\r\n"
        while answered < self.messages:
            room = min(in_flight - (asked - answered), self.messages - asked)
            if room > in_flight // 2 or (room and asked == answered):
                commands = b"".join(b"RETR %d\r\n" % n for n in range(asked + 1, asked + room + 1))
                self._sock.sendall(commands)
                asked += room
            data = self._receive()
            octets += len(data)
            data = tail + data
            answered += data.count(end)
            tail = b"" if data.endswith(end) else data[-(len(end) - 1) :]
        return octets

    def quit(self) -> None:
        self._say("QUIT")
        self._sock.close()


# -- measurements ----------------------------------------------------------------------------------


def measure(
    where: Path, *, servers: list[str], messages: int, rounds: int, say: Callable[[str], None]
) -> Report:
    """{"corpus", "delivery": {…}, "download": {…}, "login": {…}} with medians by server."""
    corpus, source = mails()
    small = [mail for mail in corpus if len(mail) <= DELIVERY_OCTETS_MAX]
    report: Report = {"corpus": source, "messages": messages}
    with ExitStack() as stack:
        ready: dict[str, StoreServer] = {}
        for name in servers:
            try:
                ready[name] = STORES[name](where / name)
            except Missing as missing:
                report.setdefault("missing", {})[name] = str(missing).splitlines()[-1]
            else:
                stack.callback(ready[name].stop)
        recipients = [user(number) for number in range(1, USERS)]
        for connections in (1, 10):
            contents = [stuffed(small[n % len(small)], n) for n in range(2000)]

            def load(server: StoreServer) -> int:
                deliver(server.port, contents, connections, recipients)  # noqa: B023
                return len(contents)  # noqa: B023

            report[f"LMTP delivery, {connections} connections"] = _compare(
                ready, load, rounds, lambda name, c=connections: say(f"LMTP, {c} connections: {name}")
            )
        everything = [stuffed(corpus[n % len(corpus)], n) for n in range(messages)]
        for name, server in ready.items():
            say(f"filling a maildrop of {messages}: {name}")
            deliver(server.port, everything, 10, [user(0)])
            _wait_for(server, messages)
        for title, in_flight in (("one at a time", 1), (f"{IN_FLIGHT} in flight", IN_FLIGHT)):

            def download(server: StoreServer) -> int:
                client = Pop3(server.pop3_port, user(0))
                if client.messages != messages:
                    raise RuntimeError(f"{server.name}: {client.messages} messages, not {messages}")
                client.download(in_flight)  # noqa: B023
                client.quit()
                return messages

            report[f"POP3 download, {title}"] = _compare(
                ready, download, rounds, lambda name, t=title: say(f"POP3, {t}: {name}")
            )

        def login(server: StoreServer) -> int:
            for _ in range(50):
                Pop3(server.pop3_port, user(0)).quit()
            return 50

        report[f"POP3 login, STAT, QUIT; {messages} messages"] = _compare(
            ready, login, rounds, lambda name: say(f"POP3 logins: {name}")
        )
    return report


def _wait_for(server: StoreServer, messages: int) -> None:
    """Until all are in the maildrop: a queue may still hold some."""
    deadline = time.monotonic() + 120
    while True:
        client = Pop3(server.pop3_port, user(0))
        client.quit()
        if client.messages >= messages:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{server.name}: {client.messages} of {messages} messages arrived")
        time.sleep(0.2)


def _compare(
    ready: dict[str, StoreServer],
    work: Callable[[StoreServer], int],
    rounds: int,
    say: Callable[[str], None],
) -> Report:
    """Rates and CPU a message of each server, rounds in turn; the first is the warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in ready}
    costs: dict[str, list[float]] = {name: [] for name in ready}
    for number in range(rounds + 1):
        for name, server in ready.items():
            say(name)
            before = server.account.cpu_s()
            began = time.perf_counter()
            count = work(server)
            seconds = time.perf_counter() - began
            settle(server)
            if number:
                rates[name].append(count / seconds)
                costs[name].append(1e6 * (server.account.cpu_s() - before) / count)
    return {
        name: {
            "per_s": round(statistics.median(rates[name])),
            "cpu_us": round(statistics.median(costs[name]), 1),
            "cpu_us_range": [round(min(costs[name]), 1), round(max(costs[name]), 1)],
        }
        for name in ready
    }


def settle(server: StoreServer) -> None:
    """What a server puts off until after its answer is its cost, too."""
    last, still = server.account.cpu_s(), 0
    deadline = time.monotonic() + 10
    while still < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
        now = server.account.cpu_s()
        still = still + 1 if now - last < 0.002 else 0
        last = now


def rows(report: Report) -> Iterator[tuple[str, str, float, float, str]]:
    """(title, server, per second, CPU us, ratio of CPU to the cheapest Dovecot) for a table."""
    for title, servers in report.items():
        if not isinstance(servers, dict) or title == "missing":
            continue
        others = [value["cpu_us"] for name, value in servers.items() if name.startswith("dovecot")]
        for name, value in servers.items():
            ratio = f"{min(others) / value['cpu_us']:.1f}" if others and value["cpu_us"] else ""
            yield title, name, value["per_s"], value["cpu_us"], ratio
