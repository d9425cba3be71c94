"""A gateway with accounts, in processes of its own, that is started and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from gateway.accounts.build import hasher_of
from gateway.accounts.database import Database
from gateway.accounts.embedded import make_record
from gateway.accounts.model import Account
from gateway.config import load


class KilledHouse:
    """port: where the one listener of the configuration is; what is kept survives the kills."""

    def __init__(self, where: Path, text: str, accounts: Iterable[str], password: str) -> None:
        """text: the configuration, with {state} and {port}."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (where / "state").mkdir()
        self.file = where / "gateway.toml"
        self.file.write_text(text.format(state=where / "state", port=self.port))
        self.config = load(str(self.file))
        with contextlib.closing(Database(self.config.accounts_file)) as database:
            for name in accounts:
                database.add(make_record(Account(name), password, hasher_of(self.config.auth)))

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "-c", str(self.file)], start_new_session=True
        )
        end = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return process
            except OSError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        workers = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        psutil.wait_procs(workers, 60)  # one that waits for the disk still has its sockets
