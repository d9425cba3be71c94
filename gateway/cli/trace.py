"""`gateway trace`: the life of a message, from the history files and the running workers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from gateway import history
from gateway.cli.common import (
    age,
    config_option,
    fail,
    json_option,
    load_or_exit,
    print_json,
    size,
)
from gateway.config_model import Config
from gateway.control import ControlClient, ControlError
from gateway.spool.record import COUNTER_BITS, EPOCH_MS, WORKER_BITS, decode_number

SLACK_S = 5.0  # a line is written a little later than its message's id was made

# What a line says in words of its own; all other fields follow as key=value.
TOLD = {
    "time", "level", "event", "worker", "queue_id", "session", "forward_path", "forward_paths",
    "reverse_path", "reply", "code", "enhanced", "next_hop", "peer", "tls", "client", "helo",
    "protocol", "size_octets", "durability", "attempt", "delay_s", "message_id", "report",
    "report_of",
}  # fmt: skip

# Where the options look.
FIELDS = {
    "message_id": ["message_id"],
    "sender": ["reverse_path"],
    "recipient": ["forward_path", "forward_paths"],
}

COLOURS = {
    "accepted": "cyan",
    "delivered": "green",
    "relayed": "green",
    "deferred": "yellow",
    "held": "yellow",
    "bounced": "red",
    "expired": "red",
    "discarded": "red",
}


@click.command("trace")
@config_option
@click.argument("queue_id", required=False)
@click.option("--message-id", help="by the header field Message-ID, or a part of it")
@click.option("--sender", help="by the reverse-path (MAIL FROM), or a part of it")
@click.option("--recipient", help="by a forward-path (RCPT TO), or a part of it")
@click.option("--limit", default=10, show_default=True, help="tell at most so many messages")
@json_option
def command(
    config_file: str, queue_id: str | None, limit: int, as_json: bool, **options: str | None
) -> None:
    """Tell the life of message QUEUE_ID, or of the latest messages that match an option."""
    config = load_or_exit(config_file)
    asked = {key: value for key, value in options.items() if value}
    if len(asked) + bool(queue_id) != 1:
        raise click.UsageError("give QUEUE_ID, --message-id, --sender or --recipient")
    directory = config.history_dir
    ids = [queue_id.upper()] if queue_id else []
    for option, text in asked.items():
        ids = history.queue_ids(directory, text, FIELDS[option], limit)
    lives = [life(config, found) for found in ids]
    lives = [one for one in lives if one["events"] or one["queued"]]
    if as_json:
        print_json(lives)
    else:
        for one in lives:
            _print(one)
    if not lives:
        fail(_nothing(config, directory))
    sys.exit(0)


def _nothing(config: Config, directory: Path) -> str:
    if not config.trace.enabled:
        return "nothing found: trace.enabled is false, no history is kept"
    kept = age(config.trace.keep_s)
    return f"nothing found in {directory}, which goes back {kept} at most (trace.keep_s)"


def life(config: Config, queue_id: str) -> dict[str, Any]:
    """Everything known of one message: {"queue_id", "events", "queued"}."""
    queued = None
    try:
        with ControlClient(config.control_dir, timeout_s=5.0) as client:
            for answer in client.ask_all("queue.show", queue_id=queue_id):
                queued = queued or answer.result
    except ControlError:
        pass  # nothing runs, or we may not ask: the history is what there is
    try:  # the id tells when it was made: older files need not be read
        made_ms = (decode_number(queue_id) >> COUNTER_BITS + WORKER_BITS) + EPOCH_MS
    except ValueError:
        made_ms = 0
    after = made_ms / 1000 - SLACK_S
    events = history.lines_about(config.history_dir, queue_id, after=after)
    if not events:  # the clock was set back since
        events = history.lines_about(config.history_dir, queue_id)
    return {"queue_id": queue_id, "events": events, "queued": queued}


def _print(one: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(_title(one), style="bold"))
    day = ""
    for event in one["events"]:
        date, _, clock = str(event.get("time", "")).partition("T")
        if date != day:
            day = date
            console.print(Text(f"  {day} (UTC)", style="dim"))
        name = str(event.get("event", ""))
        text = Text(f"  {clock.removesuffix('Z'):<13}")
        text.append(f"{name:<11}", style=COLOURS.get(name, ""))
        text.append(" ".join(_words(event, one["queue_id"])))
        console.print(text)
    queued = one["queued"]
    if queued:
        console.print(Text("  now          queued     " + "; ".join(_queued(queued)), style="bold"))


def _title(one: dict[str, Any]) -> str:
    for event in one["events"]:
        if event.get("event") == "accepted" and event.get("queue_id") == one["queue_id"]:
            to = event.get("forward_paths", [])
            more = f" and {len(to) - 3} more" if len(to) > 3 else ""
            return (
                f"{one['queue_id']}  <{event.get('reverse_path', '')}> → {', '.join(to[:3])}{more}"
            )
    return str(one["queue_id"])


def _words(event: dict[str, Any], queue_id: str) -> Iterator[str]:
    """One event as a sentence."""
    name = event.get("event")
    if event.get("report_of") == queue_id:
        yield f"as {event.get('queue_id')}, the report on this message"
    if name == "accepted":
        yield from _accepted_words(event)
    else:
        if event.get("forward_path"):
            yield str(event["forward_path"])
        if event.get("peer") or event.get("next_hop"):
            yield f"→ {event.get('peer') or event.get('next_hop')}"
        if event.get("tls"):
            yield f"({event['tls']})"
        reply = [str(event[key]) for key in ("code", "enhanced", "reply") if event.get(key)]
        if reply:
            yield "— " + " ".join(reply)
        if event.get("report"):
            yield f"report {event['report']} to <{event.get('reverse_path', '')}>"
        if event.get("attempt", 1) != 1:
            yield f"[attempt {event['attempt']}]"
        if event.get("delay_s") is not None and name != "deferred":
            yield f"after {duration(float(event['delay_s']))}"
    for key, value in event.items():
        if key not in TOLD and value not in ("", None):
            yield f"{key}={value}"


def _accepted_words(event: dict[str, Any]) -> Iterator[str]:
    if event.get("client"):
        yield f"from {event['client']}"
    if event.get("helo"):
        yield f"({event['helo']})"
    if event.get("protocol"):
        yield f"by {event['protocol']}"
    if event.get("tls"):
        yield f"with {event['tls']}"
    if event.get("size_octets") is not None:
        yield f"{size(float(event['size_octets']))} octets"
    if event.get("durability"):
        yield f"durability {event['durability']}"
    if event.get("message_id"):
        yield str(event["message_id"])
    if event.get("session"):
        yield f"session {event['session']}"


def duration(seconds: float) -> str:
    """Short ones in milliseconds, long ones in minutes and days."""
    return f"{seconds * 1000:.1f} ms" if seconds < 10 else age(seconds)


def _queued(message: dict[str, Any]) -> Iterator[str]:
    for recipient in message.get("recipients", []):
        if recipient.get("state") not in (None, "pending", "queued", "deferred", "held", "active"):
            continue
        text = f"{recipient.get('forward_path')}: {recipient.get('state')}"
        if recipient.get("reply"):
            text += f", last answer {recipient['reply']}"
        yield text
    if message.get("held"):
        yield "held, see gateway queue release"
    elif message.get("next_attempt_at"):
        yield f"next attempt {until(int(message['next_attempt_at']))}"


def until(at_ns: int) -> str:
    """How far away this instant (ns UTC) is."""
    seconds = at_ns / 1e9 - time.time()
    return f"in {age(seconds)}" if seconds >= 1 else "now"
