"""The load: Postfix's smtp-source, and the sink behind relays.

Owns      drive() (one run of smtp-source), CountingSink (smtp-sink that tells how many messages
came)
Errors    RuntimeError when a message was refused or did not arrive
Bugs      smtp-source never pipelines, waits for the server's close and costs 40-150 us a message
itself;
          beside a server below about 45 us a message it is the limit: compare the CPU, not the rate
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from benches.peers.servers import find, free_port

ARRIVE_S = 120.0


def drive(
    port: int, *, connections: int, messages: int, size_octets: int, keep: bool = True
) -> None:
    """So many messages, each acknowledged when this returns."""
    done = subprocess.run(
        [
            find("smtp-source"), "-s", str(min(connections, messages)), "-m", str(messages),
            "-l", str(size_octets), *(["-d"] if keep else []), "-M", "client.example.test",
            "-f", "alice@example.test", "-t", "bob@example.test", f"127.0.0.1:{port}",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"smtp-source: {done.stderr.strip()[-300:]}")


class CountingSink:
    """smtp-sink -c, read while it runs."""

    def __init__(self) -> None:
        self.port = free_port()
        user = ["-u", "postfix"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [find("smtp-sink"), *user, "-c", "-m", "2000", f"127.0.0.1:{self.port}", "1024"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path("/"),
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._out, False)
        self._count = 0

    def count(self) -> int:
        """Messages since it was started."""
        try:
            while text := os.read(self._out, 65536):
                if found := re.findall(rb"mesg=\s*(\d+)", text):
                    self._count = int(found[-1])
        except BlockingIOError:
            pass
        return self._count

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + ARRIVE_S
        while self.count() < count:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{count - self._count} of {count} messages did not arrive in {ARRIVE_S} s"
                )
            time.sleep(0.002)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
