"""A whole worker without doors, made once a process, for targets that want its parts as they are wired.

Owns      worker(), LOOP: everything is called on this loop
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from gateway.app import Worker
from gateway.config import parse

LOOP: asyncio.AbstractEventLoop = asyncio.new_event_loop()


async def wait_for(condition: Callable[[], bool]) -> None:
    """Let threads do what the condition waits for."""
    turns = 0
    while not condition():
        await asyncio.sleep(0 if turns < 8 else 0.001)
        turns += 1


TEXT = """
hostname = "mx.test"
state_dir = "state"
workers = 1
[log]
file = "log.json"
[spool]
segment_octets = 1048576
chunk_octets = 1024
min_free_octets = 0
[limits]
greeting_delay_s = 0.0
error_delay_s = 0.0
received_fields = 10
[access]
relay_from = ["192.0.2.0/25"]
[[listen]]
service = "smtp"
address = "127.0.0.1:2525"
xclient_from = ["192.0.2.0/24"]
[[listen]]
service = "lmtp"
address = "127.0.0.1:2526"
[[route]]
domains = ["d", "example.test"]
next_hop = ["discard:"]
hold = true
[[route]]
domains = ["*"]
next_hop = ["discard:"]
hold = true
"""


@functools.cache
def worker() -> Worker:
    """Its spool is empty; its listeners are not open."""
    directory = tempfile.TemporaryDirectory(prefix="gateway-")
    root = Path(directory.name)
    config = parse(TEXT, root / "edge.toml")
    made = Worker(config, {})
    kept = logging.getLogger().handlers[:]
    LOOP.run_until_complete(made.start())
    logging.getLogger().handlers[:] = kept
    atexit.register(directory.cleanup)  # not before: nobody else keeps it
    return made
