"""A campaign: slices of all targets in turn, with their progress on the terminal, and a table at the end.

Flow      rounds of slices over the targets → a finding is kept and its target goes on → table, exit status
Limits    SLICE_S a slice; FINDINGS_MAX findings end a target
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.fuzz.engine import Finding, Progress, Slice, reduce
from tests.fuzz.targets import Target

SLICE_S = 60.0
FINDINGS_MAX = 5


class Campaign:
    """Some targets, and what is known of them."""

    def __init__(
        self, chosen: Sequence[Target], *, seconds: float, jobs: int, seed: int = 0
    ) -> None:
        self.targets = chosen
        self.progress = {target.name: Progress() for target in chosen}
        self.seed = seed
        self.jobs = max(1, min(jobs, len(chosen)))
        self.seconds = seconds
        share_s = seconds * self.jobs / len(chosen)
        self.rounds = max(1, math.ceil(share_s / SLICE_S))
        self.slice_s = share_s / self.rounds
        self.console = Console()
        self._running: dict[str, Slice] = {}
        self._stopped = False
        self._started = time.monotonic()

    @property
    def findings(self) -> list[Finding]:
        return [finding for known in self.progress.values() for finding in known.findings]

    def run(self, *, quiet: bool = False) -> bool:
        """True when something was found.  Ctrl-C ends it early, and what is known stays."""
        plain = quiet or not self.console.is_terminal
        live = Live(get_renderable=self.table, console=self.console, refresh_per_second=2)
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                if not plain:
                    live.start()
                for number in range(self.rounds):
                    list(pool.map(self._slice, self.targets, [number] * len(self.targets)))
            except KeyboardInterrupt:
                self._stopped = True
                for running in list(self._running.values()):
                    running.stop()
            finally:
                if not plain:
                    live.stop()
        return bool(self.findings)

    def _slice(self, target: Target, number: int) -> None:
        progress = self.progress[target.name]
        end = time.monotonic() + self.slice_s
        while (left := end - time.monotonic()) > 1 or left == self.slice_s:
            if self._stopped or len(progress.findings) >= FINDINGS_MAX:
                return
            running = self._running[target.name] = Slice(target, progress)
            known = len(progress.findings)
            running.run(seconds=left, seed=self.seed and self.seed + number)
            for finding in progress.findings[known:]:
                reduce(target, finding)
            del self._running[target.name]

    # -- what people see -----------------------------------------------------------------------------------------------

    def table(self) -> Table:
        left_s = max(0.0, self.seconds - (time.monotonic() - self._started))
        title = f"fuzzing, {left_s / 60:.0f} minutes left" if left_s else "fuzzing"
        table = Table("target", title=title, title_justify="left")
        for column in ("inputs tried", "a second", "edges", "corpus", "new", "MiB", "findings"):
            table.add_column(column, justify="right")
        for name, known in self.progress.items():
            new = known.inputs - (known.inputs_at_first or 0)
            table.add_row(
                f"[bold]{name}[/bold]" if name in self._running else name,
                f"{known.runs:,}",
                f"{known.runs_per_s:,.0f}",
                f"{known.edges:,}",
                f"{known.inputs:,}/{known.octets}",
                f"{new:,}" if new > 0 else "",
                f"{known.memory_mb:,}",
                f"[red]{len(known.findings)}[/red]" if known.findings else "",
            )
        return table

    def report(self) -> None:
        """Nothing to add to the table when nothing was found."""
        if not self.console.is_terminal:
            self.console.print(self.table())
        for finding in self.findings:
            self.console.print(f"\n[red]{finding.target}[/red]: {finding.what}", highlight=False)
            self.console.print(f"    {finding.command}", soft_wrap=True, highlight=False)

    def json(self) -> str:
        return json.dumps(
            [
                {
                    "target": name,
                    "runs": known.runs,
                    "seconds": round(known.seconds, 1),
                    "edges": known.edges,
                    "inputs": known.inputs,
                    "memory_mb": known.memory_mb,
                    "findings": [
                        {"what": f.what, "input": str(f.path), "command": f.command}
                        for f in known.findings
                    ],
                }
                for name, known in self.progress.items()
            ],
            indent=1,
        )
