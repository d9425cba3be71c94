"""What a mailbox costs as it grows: python benches/store_growth.py [--json FILE] [MESSAGES ...]

Flow      a mailbox of each size, filled in large batches → the store's operations on it, one message each → the worker:
          login, LIST, the removal of everything over POP3 → a table, a column a size
Files     below --directory: 0.9 GB for a million messages, removed at the end
Bugs      CPU of a loaded machine varies; columns are to be compared, not trusted
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benches.peers.stores import GatewayStore, user
from gateway.config_store import StoreConfig
from gateway.store.account import AccountFile
from gateway.store.model import Delivery, ranges_of, records_of
from gateway.store.names import account_directory

SIZES = (1_000, 100_000, 1_000_000)
BATCH = 5_000
TIMES = 200  # each operation on one message
MIB = 1 << 20

Figures = dict[str, float]


def content(number: int) -> bytes:
    return (
        b"Return-Path: <a@example.org>\r\nFrom: A <a@example.org>\r\nTo: B <b@example.test>\r\n"
        b"Date: Mon, 6 Jul 2026 12:00:00 +0000\r\nSubject: message %d\r\n"
        b"Message-ID: <%d.growth@example.org>\r\n\r\nThis is number %d.\r\n"
    ) % (number, number, number)


def fill(file: AccountFile, messages: int, advance: Callable[[int], None]) -> None:
    inbox = file.mailbox("INBOX").id
    for at in range(0, messages, BATCH):
        some = range(at, min(messages, at + BATCH))
        file.add(inbox, [(content(n), (), 1_780_000_000, "", 0) for n in some])
        advance(len(some))


def cpu_us(work: Callable[[int], object], times: int = TIMES) -> float:
    """Median over single calls, user and system time of this process."""
    found = []
    for number in range(times):
        before = resource.getrusage(resource.RUSAGE_SELF)
        work(number)
        after = resource.getrusage(resource.RUSAGE_SELF)
        found.append(
            after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        )
    return 1e6 * statistics.fmean(sorted(found)[: times * 9 // 10])


class Memory:
    """The most private memory that a process has while this is open, MiB above what it had before.

    The mapped pages of its databases are not counted: they are the kernel's cache, and go when somebody needs the room.
    """

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._before = self._most = self._look()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _look(self) -> int:
        found = re.search(r"RssAnon:\s+(\d+) kB", self._status.read_text())
        return int(found[1]) * 1024 if found else 0

    def _watch(self) -> None:
        while not self._end.wait(0.01):
            self._most = max(self._most, self._look())

    @property
    def most_mib(self) -> float:
        return (max(self._most, self._look()) - self._before) / MIB

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def store_figures(file: AccountFile, messages: int) -> Figures:
    inbox = file.mailbox("INBOX").id
    figures = {
        "deliver one": cpu_us(lambda n: file.deliver([Delivery("a", [content(n)])])),
        "STATUS": cpu_us(lambda _: file.mailbox("INBOX")),
        "change one flag": cpu_us(
            lambda n: file.store(inbox, ranges_of((1 + n * (messages // TIMES),)), add=("\\Seen",))
        ),
        "expunge one": cpu_us(
            lambda n: file.expunge(
                inbox, ranges_of((1 + n * (messages // TIMES),)), deleted_only=False
            )
        ),
    }
    middle = file.records_after(inbox, messages // 2, 1)[0][0]
    key = records_of(middle)[0].message
    figures["read one"] = cpu_us(lambda _: file.read([key]))
    before = time.thread_time()
    with Memory(os.getpid()) as memory:
        snapshot = file.snapshot(inbox)
        figures["snapshot, a message"] = 1e6 * (time.thread_time() - before) / messages
        figures["snapshot, MiB at most"] = memory.most_mib
    del snapshot
    while file.reclaim():
        pass
    return figures


class Pop:
    """A client that reads what it is told to read, as fast as it can."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=600)
        self.file = self.sock.makefile("rb", buffering=1 << 18)
        self.file.readline()
        self.say(f"USER {user(0)}")
        self.say("PASS pass")
        self.messages = int(self.say("STAT").split()[1])

    def say(self, text: str) -> bytes:
        self.sock.sendall(text.encode() + b"\r\n")
        line = self.file.readline()
        if not line.startswith(b"+OK"):
            raise RuntimeError(f"{text}: {line!r}")
        return line

    def listing(self, command: str) -> int:
        self.say(command)
        lines = 0
        while self.file.readline() != b".\r\n":
            lines += 1
        return lines

    def delete_all(self, advance: Callable[[int], None]) -> None:
        for at in range(1, self.messages + 1, 1000):
            numbers = range(at, min(at + 1000, self.messages + 1))
            self.sock.sendall(b"".join(b"DELE %d\r\n" % n for n in numbers))
            for _ in numbers:
                if not self.file.readline().startswith(b"+OK"):
                    raise RuntimeError("DELE")
            advance(len(numbers))

    def quit(self) -> None:
        self.say("QUIT")
        self.sock.close()


def worker_figures(server: GatewayStore, advance: Callable[[int], None]) -> Figures:
    (worker,) = psutil.Process(server.process.pid).children()
    Pop(server.pop3_port).quit()  # what the first login brings in
    cpu_s = server.account.cpu_s
    figures: Figures = {}
    before = cpu_s()
    for _ in range(TIMES):
        Pop(server.pop3_port).quit()
    figures["POP3 login, STAT, QUIT"] = 1e6 * (cpu_s() - before) / TIMES
    before = cpu_s()
    with Memory(worker.pid) as memory:
        client = Pop(server.pop3_port)
        listed = client.listing("LIST"), client.listing("UIDL")
    if listed != (client.messages, client.messages):
        raise RuntimeError("not everything was listed")
    figures["POP3 LIST and UIDL, a message"] = 1e6 * (cpu_s() - before) / client.messages
    figures["POP3 LIST and UIDL, MiB at most"] = memory.most_mib
    before = cpu_s()
    with Memory(worker.pid) as memory:
        client.delete_all(advance)
        client.quit()
    figures["POP3 DELE of all and QUIT, a message"] = 1e6 * (cpu_s() - before) / client.messages
    figures["POP3 DELE of all and QUIT, MiB at most"] = memory.most_mib
    left = Pop(server.pop3_port)
    left.quit()
    if left.messages:
        raise RuntimeError(f"{left.messages} messages are left")
    return figures


class Prepared(GatewayStore):
    """A server that finds a full mailbox."""

    mailbox: Path

    def command(self) -> list[str]:
        words = super().command()
        target = account_directory(self.where / "state" / "store", user(0))
        target.parent.mkdir(parents=True)
        self.mailbox.rename(target)
        return words


def measure(where: Path, messages: int, progress: Progress) -> Figures:
    task = progress.add_task(f"{messages:,}: fill", total=messages)
    file = AccountFile(where / f"account-{messages}", StoreConfig(), create=True)
    with contextlib.closing(file):
        fill(file, messages, lambda n: progress.advance(task, n))
        progress.update(task, description=f"{messages:,}: store")
        figures = store_figures(file, messages)
    progress.update(task, description=f"{messages:,}: POP3", completed=0)
    Prepared.mailbox = where / f"account-{messages}"
    server = Prepared(where / f"server-{messages}")
    try:
        figures |= worker_figures(server, lambda n: progress.advance(task, n))
    finally:
        server.stop()
        shutil.rmtree(where / f"server-{messages}", ignore_errors=True)
    progress.update(task, description=f"{messages:,}: done")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("messages", type=int, nargs="*", default=SIZES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    if any(size < TIMES for size in options.messages):
        parser.error(f"a mailbox of {TIMES} messages is the smallest that says something")
    where = Path(tempfile.mkdtemp(prefix="store-growth-", dir=options.directory))
    found: dict[int, Figures] = {}
    try:
        with Progress(console=Console(stderr=True)) as progress:
            for size in options.messages:
                found[size] = measure(where, size, progress)
    finally:
        shutil.rmtree(where, ignore_errors=True)
    table = Table(title="CPU us, and MiB, of a mailbox of so many messages")
    table.add_column("")
    for size in found:
        table.add_column(f"{size:,}", justify="right")
    for title in next(iter(found.values())):
        table.add_row(title, *(f"{figures[title]:,.2f}" for figures in found.values()))
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
