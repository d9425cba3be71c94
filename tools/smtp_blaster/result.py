"""What a run was and what came of it: the JSON of --json, of saved runs, of the report and of compare.

Owns      Run and its parts: values only
Files     save() and load(): one JSON object a file
Errors    ValueError names the file that is not a run, and why
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

SCHEMA = 1

# The stages of a message, in the order in which a connection lives them.
SENDING = ("connect", "tls", "greeting", "hello", "auth", "mail", "rcpt", "data", "dot", "quit")
# Those of POP3 and IMAP: what they share with sending has the same name.
RETRIEVING = (
    "capability", "list", "status", "select", "fetch", "search", "store", "noop", "announcement",
    "stat", "uidl", "retr", "logout",
)  # fmt: skip
STAGES = (*SENDING[:-1], *RETRIEVING, SENDING[-1])
MESSAGE = "message"  # the whole of it, from its intended start


class Totals(msgspec.Struct, kw_only=True):
    """Counts of messages unless the name says otherwise."""

    accepted: int = 0  # at least one recipient taken
    refused: int = 0  # answered, with no recipient taken
    broken: int = 0  # the connection went before the last reply: delivered or not, nobody knows
    unsent: int = 0  # due within the run, never begun
    retried: int = 0  # transactions begun again under the same Message-ID
    recipients_accepted: int = 0
    connections_opened: int = 0
    connections_failed: int = 0
    octets: int = 0  # of the content of accepted messages
    seconds: float = 0.0  # from the first connection to the last reply
    messages_per_s: float = 0.0  # accepted
    cpu_us_per_message: float = 0.0  # of all processes of the source; per accepted message
    late_starts: int = 0  # open loop: begun more than a millisecond after the intended start


class Latency(msgspec.Struct, kw_only=True):
    """One histogram, milliseconds; hdr has all of it."""

    count: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    hdr: str  # base64 of HdrHistogram's V2 compressed encoding; values are nanoseconds


class Series(msgspec.Struct, kw_only=True):
    """The run over time; every list has one entry for each interval, the first begins with the run."""

    interval_s: float = 1.0
    offered: list[int] = []  # messages whose intended start lies in the interval
    accepted: list[int] = []  # by the time of their last reply, as the two that follow
    refused: list[int] = []
    broken: list[int] = []
    in_flight: list[int] = []  # begun and not answered, at the end of the interval
    p50_ms: list[float | None] = []  # of the messages accepted in the interval; None without any
    p99_ms: list[float | None] = []
    max_ms: list[float | None] = []


class ReplyCount(msgspec.Struct, kw_only=True):
    stage: str
    code: int
    enhanced: str  # "4.3.1"; "" where the reply has none
    text: str  # of the first such reply
    count: int


class Calibration(msgspec.Struct, kw_only=True):
    """The same plan against the tool's own sink: what the tool itself costs."""

    messages_per_s: float  # closed loop, as fast as the source goes
    cpu_us_per_message: float
    floor_ms: dict[str, float]  # median of each stage with one connection that has nothing to wait for
    ceiling_used: float  # the run's rate as a part of messages_per_s


class Run(msgspec.Struct, kw_only=True):
    schema: int = SCHEMA
    tool: str = ""  # name and version
    started_at: str = ""  # ISO 8601, UTC
    command: list[str] = []
    plan: dict[str, Any] = {}
    host: dict[str, Any] = {}  # cpus, kernel, python
    totals: Totals = msgspec.field(default_factory=Totals)
    latency: dict[str, Latency] = {}  # by stage and MESSAGE; stages that did not happen are absent
    series: Series = msgspec.field(default_factory=Series)
    replies: list[ReplyCount] = []
    calibration: Calibration | None = None
    ledger: dict[str, Any] | None = None  # the verdict, where both ledgers were compared
    server: dict[str, Any] | None = None  # samples of the server under test
    notes: list[str] = []  # what a reader of the figures must know


def save(path: Path, run: Run) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def load(path: Path) -> Run:
    try:
        run = msgspec.json.decode(path.read_bytes(), type=Run)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not a saved run: {error}") from error
    if run.schema != SCHEMA:
        raise ValueError(f"{path} has schema {run.schema}; this smtp-blaster reads {SCHEMA}")
    return run
