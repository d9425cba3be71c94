"""Tell systemd how we are: sd_notify(3) by a plain datagram.

Errors    none: without systemd, or when it does not listen, nothing happens
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send "READY=1" and the like to $NOTIFY_SOCKET, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract name space
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1.0)
        sock.sendto(state.encode(), address)


def watchdog_s() -> float:
    """The interval in which systemd wants to hear of us (sd_watchdog_enabled(3)); 0.0: it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    value = os.environ.get("WATCHDOG_USEC", "")
    return int(value) / 1e6 if value.isdigit() else 0.0
