"""Giving mail out by IMAP: this product beside Dovecot with each of its formats, and Cyrus.

Owns      measure(): its report; table(): that as a table with ratios and their geometric mean
Flow      the same mailbox to every server → warm-up (answers compared) → rounds, A B A B → after a restart
Errors    a command that a server refuses is left out for it, with its words in "failures"
Bugs      a server that is missing or does not start is named in "missing"
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.table import Table

from benches.peers.cyrus import Cyrus
from benches.peers.imap_client import Imap
from benches.peers.imap_commands import Client, Work, found, works
from benches.peers.imap_mail import fill, mailbox
from benches.peers.retrieval import settle
from benches.peers.servers import Missing
from benches.peers.stores import (
    USERS,
    DovecotMdbox,
    DovecotReuse,
    DovecotSdbox,
    GatewayImap,
    StoreServer,
    user,
)

Report = dict[str, Any]

IMAP_STORES: dict[str, Callable[..., StoreServer]] = {
    kind.name: kind for kind in (GatewayImap, DovecotSdbox, DovecotMdbox, DovecotReuse, Cyrus)
}
SMALL_MAILBOX = 600  # of every user but the first: what logins select
OURS = GatewayImap.name


def measure(
    where: Path, *, servers: list[str], messages: int, rounds: int, pattern: str, say: Callable[[str], None]
) -> Report:
    """{"corpus", "messages", "warm": {command: {server: figures}}, "restarted": the same, "answers", "failures"}"""
    mails, source = mailbox(messages)
    report: Report = {"corpus": source, "messages": messages, "missing": {}, "failures": {}, "answers": {}}
    wanted = [work for work in works() if pattern.lower() in work.title.lower()]
    with ExitStack() as stack:
        clients: dict[str, Client] = {}
        for name in servers:
            say(f"filling {messages:,} messages: {name}")
            try:
                server = IMAP_STORES[name](where / name)
            except Missing as missing:
                report["missing"][name] = str(missing).splitlines()[-1]
                continue
            stack.callback(server.stop)
            try:
                clients[name] = _filled(server, mails)
            except (RuntimeError, OSError) as error:
                report["missing"][name] = f"filling: {error}"
        report["warm"] = {
            work.title: _compare(work, clients, rounds, report, say) for work in wanted
        }
        report["restarted"] = _restarted([work for work in wanted if work.first is not None], clients, report, say)
    return report


def _filled(server: StoreServer, mails: list[bytes]) -> Client:
    for number in range(1, USERS):
        with_few = Imap(server.imap_port, user(number))
        fill(with_few, "INBOX", mails[:SMALL_MAILBOX])
        with_few.logout()
    imap = Imap(server.imap_port, user(0))
    fill(imap, "INBOX", mails)
    imap.command("SELECT INBOX")
    settle(server)
    return Client(server=server, imap=imap, messages=len(mails), mails=mails)


def _compare(
    work: Work, clients: dict[str, Client], rounds: int, report: Report, say: Callable[[str], None]
) -> dict[str, Any]:
    """Rounds in turn; the first is the warm-up, whose answers are compared."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
    failed: set[str] = set()
    for number in range(rounds + 1):
        for name, client in clients.items():
            if name in failed:
                continue
            say(f"{work.title}: {name}")
            try:
                figures, data = _once(work, client)
            except (RuntimeError, OSError) as error:
                failed.add(name)
                report["failures"].setdefault(work.title, {})[name] = str(error)
                _again(client)
                continue
            if number:
                taken[name].append(figures)
            elif data:
                report["answers"].setdefault(work.title, {})[name] = found(data)
    return {name: _figures(times) for name, times in taken.items() if times}


def _once(work: Work, client: Client) -> tuple[tuple[float, float], bytes | None]:
    """((CPU us, wall us) of each message or operation, what came)."""
    server = client.server
    if work.prepare is not None:
        work.prepare(client)
    settle(server)
    before, began = server.account.cpu_s(), time.perf_counter()
    data = work.run(client)
    wall_s = time.perf_counter() - began
    settle(server)
    cpu_s = server.account.cpu_s() - before
    if work.after is not None:
        work.after(client)
    count = work.count(client)
    return (1e6 * cpu_s / count, 1e6 * wall_s / count), data


def _first(work: Work, client: Client) -> tuple[float, float]:
    """As _once(), of a read that nobody asked for before."""
    server = client.server
    settle(server)
    before, began = server.account.cpu_s(), time.perf_counter()
    assert work.first is not None
    count = work.first(client)
    wall_s = time.perf_counter() - began
    settle(server)
    return 1e6 * (server.account.cpu_s() - before) / count, 1e6 * wall_s / count


def _again(client: Client) -> None:
    """A connection in place of one that may have lost step; what the failed work left behind is removed."""
    client.imap.sock.close()
    client.imap = Imap(client.server.imap_port, user(0))
    for name in ("Copies", "Work", "Appended"):
        try:
            client.imap.command(f"DELETE {name}")
        except RuntimeError:
            continue
    client.imap.command("SELECT INBOX")


def _figures(times: list[tuple[float, float]]) -> dict[str, Any]:
    cpu, wall = [cpu for cpu, _ in times], [wall for _, wall in times]
    return {
        "cpu_us": statistics.median(cpu),
        "cpu_us_range": [min(cpu), max(cpu)],
        "wall_us": statistics.median(wall),
    }


def _restarted(
    reads: list[Work], clients: dict[str, Client], report: Report, say: Callable[[str], None]
) -> dict[str, Any]:
    """Each command once, in a server that has just started and done nothing but log in: one restart for all of them."""
    result: dict[str, Any] = {work.title: {} for work in reads}
    for name, client in clients.items():
        say(f"restarting {name}")
        client.imap.sock.close()
        client.server.restart()
        client.imap = Imap(client.server.imap_port, user(0))
        client.imap.command("SELECT INBOX")
        for work in reads:
            say(f"after a restart, {work.title}: {name}")
            try:
                result[work.title][name] = _figures([_first(work, client)])
            except (RuntimeError, OSError) as error:
                report["failures"].setdefault(f"restarted, {work.title}", {})[name] = str(error)
                _again(client)
    return result


def ratios(table: dict[str, dict[str, Any]]) -> dict[str, float]:
    """By command: CPU of the cheapest Dovecot to ours; above 1 we are cheaper."""
    found = {}
    for title, servers in table.items():
        others = [figures["cpu_us"] for name, figures in servers.items() if name.startswith("dovecot")]
        if OURS in servers and others and servers[OURS]["cpu_us"] > 0:
            found[title] = min(others) / servers[OURS]["cpu_us"]
    return found


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values))) if values else 0.0


def tables(report: Report) -> Iterator[Table]:
    for part in ("warm", "restarted"):
        rows = report[part]
        names = [name for name in IMAP_STORES if any(name in servers for servers in rows.values())]
        if not names:
            continue
        caption = f"IMAP, {part}; {report['messages']:,} messages ({report['corpus']}): server's CPU us (wall us) each"
        table = Table(title=caption, title_justify="left")
        table.add_column("")
        for name in (*names, "cheapest Dovecot's CPU to ours"):
            table.add_column(name, justify="right")
        shares = ratios(rows)
        for title, servers in rows.items():
            cells = [
                f"{_short(servers[name]['cpu_us'])} ({_short(servers[name]['wall_us'])})" if name in servers else "-"
                for name in names
            ]
            share = f"{shares[title]:.2f}" if title in shares else ""
            table.add_row(title, *cells, f"[red]{share}[/]" if shares.get(title, 1.0) < 1 else share)
        if shares:
            table.add_row("geometric mean", *[""] * len(names), f"{geometric_mean([*shares.values()]):.2f}")
        yield table


def remarks(report: Report) -> Iterator[str]:
    """What a reader of the tables must know."""
    for name, reason in report["missing"].items():
        yield f"{name} is missing: {reason}"
    for title, servers in report["failures"].items():
        for name, reason in servers.items():
            yield f"{title}, {name}: {reason}"
    for title, servers in report["answers"].items():
        if len(set(servers.values())) > 1:
            yield f"{title}, answers differ: " + ", ".join(f"{name} {text}" for name, text in servers.items())


def _short(us: float) -> str:
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:,.0f}"
