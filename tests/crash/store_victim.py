"""An account under load until something kills it, and what must be true of it afterwards.

    store_victim.py DIRECTORY SEED STEPS        (0 steps: for ever)

Owns      victim() (works and tells), Promises (what was told, against what is found)

A victim tells, one line each, what is durable ("A mailbox uid serial": added; "X mailbox uid": gone; "M mailbox uidnext
modseq") and what it is about to remove ("E mailbox uid").  The content of a message follows from its serial.
"""

from __future__ import annotations

import os
import random
import sys
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path

from gateway.config_store import StoreConfig
from gateway.store import content, index
from gateway.store.account import AccountFile
from gateway.store.check import check_account
from gateway.store.model import Content, Delivered, Delivery, ranges_of, records_of

SETTINGS = StoreConfig()
BOXES = ("INBOX", "Archive")
LARGE_OCTETS = 8192
SIZES = (10, 300, 2000, 20_000)


def small_limits() -> None:
    """So that everything happens often: full chunks, large bodies."""
    index.TAIL_RECORDS, index.CHUNK_RECORDS, index.MERGE_RECORDS = 4, 12, 5
    content.LARGE_OCTETS = LARGE_OCTETS
    content.RECLAIM_MESSAGES = 5


def content_of(serial: int) -> bytes:
    chooser = random.Random(serial)
    return b"Subject: %d\r\n\r\n%b" % (
        serial,
        chooser.randbytes(chooser.choice(SIZES)).hex().encode(),
    )


def serial_of(octets: bytes) -> int:
    return int(octets.split(b"\r\n", 1)[0].removeprefix(b"Subject: "))


def victim(directory: Path, tell: Callable[[str], object], seed: int, steps: int) -> None:
    chooser = random.Random(seed)
    file = AccountFile(directory, SETTINGS, create=True)
    boxes = {name: file.mailbox(name).id for name in BOXES}
    serial = seed << 20
    step = 0
    while steps == 0 or step < steps:
        step += 1
        name = chooser.choice(BOXES)
        known = [
            record for chunk in file.snapshot(boxes[name]).chunks for record in records_of(chunk)
        ]
        some = [record.uid for record in known if chooser.random() < 0.4]
        what = chooser.choice(("add", "add", "add", "flags", "expunge", "copy", "move", "reclaim"))
        if what == "add" or not some:
            batch = [content_of(serial + at) for at in range(chooser.choice((1, 1, 3)))]
            for at, result in enumerate(
                file.deliver([Delivery("x", [one], mailbox=name) for one in batch])
            ):
                assert isinstance(result, Delivered), result
                tell(f"A {name} {result.uid} {serial + at}")
            serial += len(batch)
        elif what == "flags":
            file.store(boxes[name], ranges_of(some), add=[chooser.choice(("\\Seen", "word"))])
            file.sync()  # flags alone are durable later, by store.flags_sync_s
        elif what == "expunge":
            remove(file, name, boxes[name], some, tell)
        elif what == "reclaim":
            file.reclaim()
        else:
            other = BOXES[1 - BOXES.index(name)]
            if what == "move":
                for uid in some:
                    tell(f"E {name} {uid}")
            serials = {}
            for record in known:
                if record.uid in some:
                    (found,) = file.read([record.message])
                    if isinstance(found, Content):
                        serials[record.uid] = serial_of(found.header)
            copied = file.copy(boxes[name], boxes[other], ranges_of(some), move=what == "move")
            for old, new in zip(array("I", copied.source), array("I", copied.target), strict=True):
                if what == "move":
                    tell(f"X {name} {old}")
                if old in serials:
                    tell(f"A {other} {new} {serials[old]}")
        box = file.mailbox(name)
        tell(f"M {name} {box.uidnext} {box.highestmodseq}")
    file.close()


def remove(
    file: AccountFile, name: str, box: int, some: Iterable[int], tell: Callable[[str], object]
) -> None:
    some = list(some)
    for uid in some:
        tell(f"E {name} {uid}")
    file.expunge(box, ranges_of(some), deleted_only=False)
    for uid in some:
        tell(f"X {name} {uid}")


class Promises:
    """What was told so far."""

    def __init__(self) -> None:
        self.added: dict[tuple[str, int], int] = {}  # (mailbox, UID) → serial
        self.leaving: set[tuple[str, int]] = set()
        self.gone: set[tuple[str, int]] = set()
        self.marks = dict.fromkeys(BOXES, (1, 1))

    def hear(self, line: str) -> None:
        kind, name, *numbers = line.split()
        values = [int(number) for number in numbers]
        if kind == "A":
            before = self.added.setdefault((name, values[0]), values[1])
            assert before == values[1], f"UID {values[0]} of {name} was another message before"
        elif kind == "E":
            self.leaving.add((name, values[0]))
        elif kind == "X":
            self.gone.add((name, values[0]))
        else:
            old = self.marks[name]
            self.marks[name] = (max(old[0], values[0]), max(old[1], values[1]))

    def check(self, directory: Path) -> None:
        """Everything that was told is true of the account, and the account is clean."""
        file = AccountFile(directory, SETTINGS, create=True)
        found: dict[tuple[str, int], int] = {}
        for name in BOXES:
            box = file.mailbox(name)
            assert (box.uidnext, box.highestmodseq) >= self.marks[name]
            assert box.uidnext >= self.marks[name][0] and box.highestmodseq >= self.marks[name][1]
            for chunk in file.snapshot(box.id).chunks:
                for record in records_of(chunk):
                    (one,) = file.read([record.message])
                    assert isinstance(one, Content), one
                    octets = one.header + one.body
                    serial = serial_of(octets)
                    assert octets == content_of(serial)
                    found[name, record.uid] = serial
        file.close()
        for place, serial in self.added.items():
            if place in found:
                assert found[place] == serial, f"{place} changed its message"
                assert place not in self.gone, f"{place} came back"
            else:
                assert place in self.leaving, f"{place} is lost"
        report = check_account(directory, SETTINGS)
        assert report.clean, report.findings
        self.added.update(found)


if __name__ == "__main__":
    import powerloss

    small_limits()

    def tell_all(line: str) -> None:
        os.write(1, line.encode() + b"\n")
        powerloss.tell(line.encode())

    victim(Path(sys.argv[1]), tell_all, int(sys.argv[2]), int(sys.argv[3]))
