"""Not a target: bugs of every kind, to see that they are found and told apart (test_engine.py)."""

from __future__ import annotations

import ctypes


def check(data: bytes) -> None:
    if data == b"exception":
        raise ValueError("planted")
    if data == b"overflow":
        ctypes.string_at(ctypes.create_string_buffer(600), 700)
    if data == b"memory":
        bytes(300 << 20)
