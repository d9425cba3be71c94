"""IDLE."""

from __future__ import annotations

from gateway.server.imap.state import Handler

COMMANDS: dict[bytes, Handler] = {}
