"""The published table: what a crash campaign did, in Markdown.

Owns      Evidence (everything that the report says), Case, render()
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from kill_campaign import KillReport
from power_campaign import PowerReport

ROOT = Path(__file__).parents[2]


class Case(msgspec.Struct):
    """A test, all its parameters together."""

    name: str
    passed: int = 0
    skipped: int = 0


class Evidence(msgspec.Struct, kw_only=True):
    """Everything that the report says."""

    command: str
    kills: KillReport
    spool_rounds: int
    spool_kills: dict[str, int]  # by point
    power: PowerReport
    mutants: dict[str, str]
    disk: list[Case]
    store: list[Case]
    store_rounds: int
    store_states: int  # disks that its power cut may leave, at most
    imap: list[Case]
    imap_rounds: int


def render(evidence: Evidence) -> str:
    """The report in Markdown."""
    parts = (_head, _kills, _power, _disk, _store, _imap)
    return "\n".join(part(evidence) for part in parts)


def _head(evidence: Evidence) -> str:
    kills, power = evidence.kills, evidence.power
    outside = kills.duplicated - kills.in_window
    return f"""\
# What was killed, cut off and starved, and what was lost

Made by `{evidence.command}`. Everything below comes from that one run; nothing is entered by hand.

| | |
|---|---|
| date | {datetime.now(UTC):%Y-%m-%d %H:%M} UTC |
| commit | {_commit()} |
| machine | {_machine()} |
| seed | {kills.seed} |

| campaign | deaths or disks | lost | altered | twice outside the window |
|---|---:|---:|---:|---:|
| SIGKILL of a whole gateway under load | {kills.rounds:,} | **{kills.lost}** | **{kills.altered}** | **{outside}** |
| SIGKILL of the spool between any two calls | {evidence.spool_rounds:,} | **0** | **0** | **0** |
| power cuts of the spool, each disk recovered | {power.tried:,} | **0** | **0** | **0** |
| SIGKILL of the mailbox store, at work in two processes | {evidence.store_rounds:,} | **0** | **0** | **0** |
| power cuts of the mailbox store, each disk recovered | {evidence.store_states:,} | **0** | **0** | **0** |
| SIGKILL of a whole gateway under IMAP clients | {evidence.imap_rounds:,} | **0** | **0** | **0** |

A campaign in which one of these is not 0 ends with an error and writes no report.
"""


def _kills(evidence: Evidence) -> str:
    kills = evidence.kills
    victims = ", ".join(f"{who} {count}" for who, count in sorted(kills.kills.items()))
    rows = "\n".join(
        f"| {point.point} | {point.what} | {point.reached:,} | {point.before} | {point.after} | "
        f"{point.midway or '–'} | {evidence.spool_kills.get(point.point, 0) or '–'} |"
        for point in kills.points
    )
    return f"""\
## SIGKILL

A whole gateway with two workers, mail from `smtp-blaster`'s source before it, its sink behind it,
ledgers on both sides; the sink refuses some recipients and some content with 451, so that mail is
deferred, retried, and moved by compaction.

| | |
|---|---:|
| deaths of the gateway, by victim | {victims} |
| of these at random moments | {kills.at_random:,} |
| rounds that ended before their point came | {kills.not_reached} |
| **points where nobody died** | **{", ".join(kills.missed) or "none"}** |
| messages accepted | {kills.messages:,} |
| promised with a 250, per recipient | {kills.promised:,} |
| delivered | {kills.delivered:,} |
| **lost** | **{kills.lost}** |
| **altered** | **{kills.altered}** |
| delivered twice | {kills.duplicated:,} |
| of these in RFC 1047's window | {kills.in_window:,} |
| at most so far apart: taken by the next hop, and the kill | {kills.widest_window_ms:.0f} ms |
| taken by us, the 250 lost with the connection | {kills.unpromised:,} |
| deaths of the spool alone | {evidence.spool_rounds:,} |

*Delivered twice* is inevitable when the next hop has taken a message and the process dies before
our record of that is on disk (RFC 1047). It is not guessed from times: every result that reached
the disk is noted when it did, and a delivery behind its own record would be counted as outside the
window.

*Before* and *after* the system call that makes the point, *midway* with a part of its octets
written. The last column is the spool alone, killed at whichever call came.

| point | what it is | reached | before | after | midway | spool alone |
|---|---|---:|---:|---:|---:|---:|
{rows}
"""


def _power(evidence: Evidence) -> str:
    power = evidence.power
    noticed = "\n".join(f"| {what} | {found} |" for what, found in evidence.mutants.items())
    return f"""\
## Power cuts

Every call that changes the spool's directory, or syncs it, is recorded; then the disks that a power
cut may leave are made and recovered by the gateway's own recovery: any subset of the unsynced calls
in any order, one write torn at sectors of 512 or 4096 octets. What the disk is assumed to promise,
and what not: `tests/crash/powerloss.py`.

| | |
|---|---:|
| generations, each on a disk that a cut left or a new one | {power.generations} |
| of these taking over a partition | {power.adoptions} |
| with a write or a sync that fails | {power.failures} |
| messages acknowledged | {power.acknowledged:,} |
| calls recorded | {power.events:,} |
| stretches between two syncs | {power.stretches:,} |
| of these with every state tried | {power.exhaustive:,} |
| sectors, names and lengths undecided at once, at most | {power.widest} |
| states there are | {power.legal} |
| **states recovered and judged** | **{power.tried:,}** |
| of these lived on: one more message, and recovered again | {power.lived_on:,} |

The verdict for each: what was acknowledged is there unaltered, what was settled on disk is not,
nothing is there by half, no id comes again although the clock is set back. A simulator is worth
something only when it notices what is wrong:

| the spool, leaving out a sync | the first thing that is found |
|---|---|
{noticed}
"""


def _rows(cases: list[Case]) -> str:
    return "\n".join(f"| {case.name} | {case.passed} | {case.skipped or '–'} |" for case in cases)


def _store(evidence: Evidence) -> str:
    return f"""\
## The mailbox store

The same for the store: {evidence.store_rounds} rounds in which two processes that work on one
account are killed, up to {evidence.store_states:,} of the disks that a power cut may leave, and a
disk that is full; and a gateway with accounts, killed while mail comes: every 250
is one message in one mailbox.

| what is shown | cases passed | not run here |
|---|---:|---:|
{_rows(evidence.store)}
"""


def _imap(evidence: Evidence) -> str:
    return f"""\
## IMAP

{evidence.imap_rounds} rounds of SIGKILL of a whole gateway with two workers, while three clients
append, flag, copy, move, expunge, and make, rename and remove mailboxes, two of them in one
account. After each restart: nothing that was acknowledged is lost, nothing that was expunged is
back, no UID ever means another message, UIDNEXT and no MODSEQ goes back, what was in doubt happened
wholly or not at all, a client that comes back with QRESYNC knows what one knows that asks for
everything, `gateway mailbox check` finds nothing, and no file is left without its message. Mail
that moves between two accounts is in one of them, or in both.

| what is shown | cases passed | not run here |
|---|---:|---:|
{_rows(evidence.imap)}
"""


def _disk(evidence: Evidence) -> str:
    return f"""\
## Disks that are full or fail

By preloaded errors (ENOSPC, EDQUOT, EIO, EROFS, short writes; on writes, syncs, allocations,
renames, removals, reads), as any user; on a tmpfs and a loop-mounted ext4 that are really full, as
root.

| what is shown | cases passed | not run here |
|---|---:|---:|
{_rows(evidence.disk)}
"""


def _commit() -> str:
    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "gateway", "_native", "tests/crash/*.[cp]*")
    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return f"{commit}, with local changes" if changed else commit


def _machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    where = ["stat", "-f", "-c", "%T", tempfile.gettempdir()]
    system = subprocess.run(where, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{os.cpu_count()} × {model}, Linux {platform.release()}, {system}, "
        f"Python {platform.python_version()}"
    )
