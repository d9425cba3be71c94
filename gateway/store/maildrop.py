"""The maildrop's lock: one POP session an account, in whatever worker (RFC 1939 §4).

Owns      MaildropLock, lock_maildrop()
Files     <account>/maildrop.lock, empty; its time is that of the last session's end
Errors    StoreBusy, TooSoon
Blocking  a few system calls on a local file
Security  the kernel gives the lock back with the process, however it ends
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from gateway.store.database import errors
from gateway.store.errors import StoreBusy, TooSoon


class MaildropLock:
    """Held until release(), or until nobody knows it any more."""

    def __init__(self, path: Path, login_delay_s: float) -> None:
        with errors(path):
            existed = path.exists()
            self._file = open(path, "ab", opener=_private)  # noqa: SIM115  as long as the lock
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise StoreBusy("another session reads this maildrop") from None
        since_s = time.time() - os.fstat(self._file.fileno()).st_mtime
        if existed and 0 <= since_s < login_delay_s:  # RFC 2449 §6.5
            self._file.close()
            raise TooSoon(f"the next login may come in {login_delay_s - since_s:.0f} s")

    def release(self) -> None:
        if not self._file.closed:
            os.utime(self._file.fileno())
            self._file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
