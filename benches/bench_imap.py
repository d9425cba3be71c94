"""Reading IMAP commands.  Floor: the obvious tokenizer in Python (regular expressions), beside it in the same run.

    Standards RFC 9051 §9
"""

from __future__ import annotations

import random
import re
import struct
import timeit
from collections.abc import Callable
from typing import Any

import pytest

from gateway._native import COMMAND, ImapCommand, ImapReader, format_set, resolve_set
from gateway.protocol.imap.machine import ImapServerMachine, Settings

TOKEN = re.compile(rb'"(?:[^"\\\r\n]|\\.)*"|[()\[\]]|[^ ()\[\]"\r\n]+')
COMMANDS = {
    "noop": b"a1 NOOP\r\n",
    "fetch-flags": b"a1 FETCH 1:* FLAGS\r\n",
    "fetch-header": b"a1 UID FETCH 17 (FLAGS BODY.PEEK[HEADER.FIELDS (From To Subject Date)])\r\n",
    "store": b"a1 UID STORE 17,19:20 +FLAGS.SILENT (\\Seen)\r\n",
    "login": b'a1 LOGIN "alice" "secret word"\r\n',
}


def ratio(benchmark: Any, function: Callable[[], object], floor: Callable[[], object]) -> None:
    """Benches function; notes how many times faster it is than floor, measured alternately."""
    benchmark(function)
    if benchmark.disabled:
        return
    number = max(1, int(0.005 / max(timeit.timeit(floor, number=3) / 3, 1e-7)))
    pairs = [(timeit.timeit(function, number=number), timeit.timeit(floor, number=number)) for _ in range(15)]
    benchmark.extra_info["times_faster"] = min(f for _, f in pairs) / min(n for n, _ in pairs)


def pass_arguments(command: ImapCommand) -> None:
    """Every argument by the rule that reads it."""
    while not command.at_end():
        octet = command.peek()
        if octet == 32:
            command.space()
        elif octet in b"()[]":
            command.expect(bytes((octet,)))
        elif octet == 34:
            command.string()
        elif octet in b"0123456789":
            command.sequence_set()
        elif octet == 92:
            command.flag()
        else:
            command.word()


@pytest.mark.parametrize("name", COMMANDS)
def test_command(benchmark: Any, name: str) -> None:
    """Framing, tag, name, and every argument passed by the cursor."""
    line = COMMANDS[name]
    reader = ImapReader(65_536)

    def read() -> None:
        reader.feed(line)
        assert reader.read() == COMMAND
        pass_arguments(reader.command)

    def floor() -> list[bytes]:
        end = line.find(b"\r\n")
        tag, word, *rest = TOKEN.findall(line[:end])
        return [tag, word.upper(), *rest]

    ratio(benchmark, read, floor)


def test_machine(benchmark: Any) -> None:
    """A NOOP from octets to octets."""
    machine = ImapServerMachine(Settings())
    machine.authenticated = True

    def run() -> None:
        machine.receive_data(b"a1 NOOP\r\n")
        assert machine.next_event() is not None
        machine.complete(b"OK", "Completed")
        assert machine.data_to_send() and machine.next_event() is None

    benchmark(run)


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_ten_thousand_ranges(benchmark: Any, order: str) -> None:
    """A sequence set from the wire to ranges of the store, and back."""
    ranges = [(n, n + 2) for n in range(1, 50_000, 5)]
    if order == "shuffled":
        random.Random(1).shuffle(ranges)
    line = b"a1 UID FETCH " + ",".join(f"{a}:{b}" for a, b in ranges).encode() + b" FLAGS\r\n"
    reader = ImapReader(1 << 20)

    def read() -> bytes:
        reader.feed(line)
        reader.read()
        reader.command.space()
        pairs = reader.command.sequence_set()
        assert pairs is not None
        return resolve_set(pairs, 60_000)

    def floor() -> list[list[int]]:
        text = line[13 : line.index(b" FLAGS")]
        pairs = sorted(tuple(map(int, part.split(b":"))) for part in text.split(b","))
        merged: list[list[int]] = []
        for first, last in pairs:
            if merged and first <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        return merged

    assert list(map(list, struct.iter_unpack("<II", read()))) == floor()
    ratio(benchmark, read, floor)


def test_format_set(benchmark: Any) -> None:
    numbers = [n for n in range(1, 30_000) if n % 4]
    packed = struct.pack(f"<{len(numbers)}I", *numbers)

    def floor() -> str:
        out: list[str] = []
        at = 0
        while at < len(numbers):
            first = at
            while at + 1 < len(numbers) and numbers[at + 1] == numbers[at] + 1:
                at += 1
            out.append(str(numbers[first]) if first == at else f"{numbers[first]}:{numbers[at]}")
            at += 1
        return ",".join(out)

    assert format_set(packed) == floor().encode()
    ratio(benchmark, lambda: format_set(packed), floor)
