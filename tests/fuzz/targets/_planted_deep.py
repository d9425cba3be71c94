"""Not a target: a bug that only shows when the native parser has understood a command (test_engine.py)."""

from __future__ import annotations

from gateway._native import ERROR, UNKNOWN, parse_command

MAX_OCTETS = 64


def check(data: bytes) -> None:
    command = parse_command(data + b"\r\n", 0, 512)
    assert command is None or command[1] in (UNKNOWN, ERROR), "a verb was understood"
