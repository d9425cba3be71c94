"""The control channel: any line gets one answer in JSON, and no request is an internal error."""

from __future__ import annotations

import orjson

from tests.fuzz.one_worker import LOOP, worker

CODE = ("gateway.control", "gateway.queue.operations")
MAX_OCTETS = 1024
RUNS = 6_000

COMMANDS = [
    "metrics",
    "top",
    "health",
    "queue.list",
    "queue.show",
    "queue.hold",
    "queue.release",
    "queue.retry",
    "queue.expire",
    "queue.delete",
    "queue.reroute",
    "queue.stats",
    "queue.ages",
]
WORDS = (
    *(b'"cmd":"%s"' % command.encode() for command in COMMANDS),
    b'"which":{',
    b'"queue_ids":[',
    b'"reverse_path":',
    b'"next_hop":"smtp://',
    b'"older_than_s":',
    b'"limit":',
    b'"queue_id":',
)


def seeds() -> list[bytes]:
    arguments: dict[str, dict[str, object]] = {
        "queue.list": {"which": {"state": "held", "older_than_s": 1.5}, "limit": 3},
        "queue.show": {"queue_id": "0123456789AB"},
        "queue.hold": {"which": {"queue_ids": ["0123456789AB"], "error": "x"}},
        "queue.reroute": {
            "which": {"recipient": "d", "next_hop": ""},
            "next_hop": "smtp://[::1]:25",
        },
    }
    return [orjson.dumps({"cmd": command, **arguments.get(command, {})}) for command in COMMANDS]


def check(data: bytes) -> None:
    made = worker()
    octets = LOOP.run_until_complete(made.control._answer(data))
    assert b"\n" not in octets
    answer = orjson.loads(octets)
    assert answer["ok"] is True or answer["error"], answer
    assert "internal error" not in str(answer.get("error", "")), f"{data!r}: see the log"
