"""python -m benches.peers: the table, and JSON for machines.

Flow      cells (A B A B …) → rows → table with ratios → --json FILE
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benches.peers import blaster, imap, imap_crowd, others, retrieval
from benches.peers.cells import Cell, Row, run_cell
from benches.peers.stores import STORES

DURABLE = ("smtp-sink", "gateway", "postfix", "exim", "haraka")
RELAY = ("gateway", "postfix", "haraka")
KIB = 1024


def cells(which: set[str]) -> list[Cell]:
    found = []
    if "durable" in which:
        found += [
            Cell(title=f"durable accept, {size} KiB, {connections} connections",
                 size_octets=size * KIB, connections=connections, servers=DURABLE)
            for connections in (20, 100) for size in (1, 10, 100)
        ]  # fmt: skip
    if "single" in which:
        found.append(
            Cell(title="durable accept, 10 KiB, 1 connection, no pipelining",
                 size_octets=10 * KIB, connections=1, servers=DURABLE)
        )  # fmt: skip
    if "relay" in which:
        found += [
            Cell(title=f"relay end to end, {size} KiB, {connections} connections",
                 size_octets=size * KIB, connections=connections, relay=True, servers=RELAY)
            for size, connections in ((1, 20), (10, 20), (10, 100), (100, 20))
        ]  # fmt: skip
    if "connect" in which:
        # Exim waits 200 ms for the client to close first; smtp-source waits for the server.
        found.append(
            Cell(title="a new connection per message, 10 KiB, 20 connections", size_octets=10 * KIB,
                 connections=20, keep=False, servers=tuple(name for name in DURABLE if name != "exim"))
        )  # fmt: skip
    if "workers" in which:
        found.append(
            Cell(title="two workers, 10 KiB, 100 connections", size_octets=10 * KIB, connections=100,
                 servers=("gateway", "gateway-2-workers"))
        )  # fmt: skip
    return found


KINDS = (
    "durable", "single", "relay", "connect", "workers", "tls", "idle", "pause", "store", "imap", "crowd", "blaster",
)  # fmt: skip


@click.command()
@click.option("--seconds", default=3.0, show_default=True, help="Length of one run.")
@click.option(
    "--rounds", default=3, show_default=True, help="Runs of each server in a cell, in turn."
)
@click.option(
    "--messages", default=10_000, show_default=True, help="In the maildrop of the store's cells."
)
@click.option("--only", multiple=True, type=click.Choice(KINDS), help="These kinds; default: all.")
@click.option("--servers", default="", help="Comma separated; default: all that are installed.")
@click.option("--title", "pattern", default="", help="Only cells whose title contains this.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there."
)
@click.option("--directory", type=click.Path(path_type=Path), default=Path("/var/tmp"), show_default=True,
              help="On a real disk: the servers' queues.")  # fmt: skip
def main(
    only: tuple[str, ...], servers: str, pattern: str, json_file: Path | None, **options: Any
) -> None:
    """Compare the gateway with other mail servers on this machine."""
    seconds, rounds, directory = options["seconds"], options["rounds"], options["directory"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers go, too
    console = Console(width=max(110, Console().width))
    which = set(only or KINDS)
    where = Path(tempfile.mkdtemp(prefix="bench-peers-", dir=directory))
    where.chmod(0o755)
    report: dict[str, Any] = {
        "began_at": time.time(),
        "seconds": seconds,
        "rounds": rounds,
        "cells": {},
    }
    try:
        with console.status("") as status:
            say = status.update
            for number, cell in enumerate(cells(which)):
                if pattern not in cell.title:
                    continue
                if servers:
                    wanted = tuple(name for name in servers.split(",") if name in cell.servers)
                    cell = msgspec.structs.replace(cell, servers=wanted)
                rows = run_cell(cell, where / str(number), seconds=seconds, rounds=rounds, say=say)
                report["cells"][cell.title] = msgspec.to_builtins(rows)
                console.print(table(cell, rows))
            if "tls" in which:
                report["tls"] = others.tls_handshakes(
                    where / "tls", seconds=seconds, rounds=rounds, say=say
                )
                console.print(figures("STARTTLS per message, 1 KiB, 10 connections", report["tls"]))
            if "idle" in which:
                report["idle"] = others.idle_connections(where / "idle", say=say)
                console.print(figures(f"{others.IDLE} idle connections (PSS)", report["idle"]))
            if "pause" in which:
                report["pause"] = others.loop_pause(where / "pause", say=say)
                console.print(figures("ten 20 MB messages at once", report["pause"]))
            if "store" in which:
                report["store"] = retrieval.measure(
                    where / "store",
                    servers=chosen(servers, STORES),
                    messages=options["messages"],
                    rounds=rounds,
                    say=say,
                )
                console.print(store_table(report["store"]))
            if "imap" in which:
                report["imap"] = imap.measure(
                    where / "imap",
                    servers=chosen(servers, imap.IMAP_STORES),
                    messages=options["messages"],
                    rounds=rounds,
                    pattern=pattern,
                    say=say,
                )
                for found in imap.tables(report["imap"]):
                    console.print(found)
                for remark in imap.remarks(report["imap"]):
                    console.print(remark, highlight=False)
            if "crowd" in which:
                report["crowd"] = imap_crowd.measure(
                    where / "crowd", servers=chosen(servers, imap.IMAP_STORES), say=say
                )
                console.print(figures("IMAP: many connections, large mailboxes", report["crowd"]))
            if "blaster" in which:
                report["blaster"] = blaster.sources(seconds=seconds, rounds=rounds, say=say)
                console.print(figures("the source: smtp-blaster beside smtp-source", report["blaster"]))
    finally:
        shutil.rmtree(where, ignore_errors=True)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def chosen(servers: str, known: Iterable[str]) -> list[str]:
    """Those of the option --servers that are known here; all of them without it."""
    names = list(known)
    return [name for name in (servers.split(",") if servers else names) if name in names]


COLUMNS = (
    "server",
    "messages/s",
    "range",
    "CPU us/msg",
    "to smtp-sink",
    "to postfix",
    "rate to best peer",
)


def table(cell: Cell, rows: list[Row]) -> Table:
    result = Table(title=cell.title, title_justify="left")
    for column in COLUMNS:
        result.add_column(column, justify="left" if column == "server" else "right")
    cpu = {row.server: row.cpu for row in rows}
    peers = [row.rate for row in rows if row.is_durable and not row.server.startswith("gateway")]
    best = max(peers, default=0.0)
    for row in rows:
        if row.failure:
            result.add_row(row.server, "-")
            continue
        result.add_row(
            row.server,
            f"{row.rate:,.0f}",
            f"{min(row.rates):,.0f}-{max(row.rates):,.0f}",
            f"{row.cpu:,.0f}",
            ratio(row.cpu, cpu.get("smtp-sink", 0.0)),
            ratio(row.cpu, cpu.get("postfix", 0.0)),
            ratio(row.rate, best),
        )
    result.caption = "\n".join(
        f"{row.server}: {row.failure.splitlines()[-1]}" for row in rows if row.failure
    )
    return result


def store_table(report: dict[str, Any]) -> Table:
    result = Table(title=f"the store ({report['corpus']})", title_justify="left")
    for column in ("", "server", "per second", "CPU us each", "cheapest Dovecot's CPU to it"):
        result.add_column(column, justify="right" if "CPU" in column or "per" in column else "left")
    before = ""
    for title, name, per_s, cpu_us, share in retrieval.rows(report):
        result.add_row(
            title if title != before else "", name, f"{per_s:,.0f}", f"{cpu_us:,.1f}", share
        )
        before = title
    missing = report.get("missing", {})
    result.caption = "\n".join(f"{name}: {reason}" for name, reason in missing.items())
    return result


def ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else ""


def figures(title: str, values: dict[str, Any]) -> Table:
    """Nested figures as two columns."""
    result = Table(title=title, title_justify="left", show_header=False)

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{prefix} {name}".strip(), inner)
        else:
            result.add_row(prefix, f"{value:,.2f}" if isinstance(value, float) else str(value))

    add("", values)
    return result


main()
