"""An account under load until something kills it, and what must be true of it afterwards.

    store_victim.py DIRECTORY SEED STEPS        (0 steps: for ever)

Owns      victim() (works and tells), Promises (what was told, against what is found)

A victim tells, one line each, what is durable ("A mailbox uid serial": added; "X mailbox uid": gone; "M mailbox uidnext
modseq"; "N name id", "N name -": a mailbox is there, or not; "T id text": what is granted and noted on it) and what it
is about to do ("E mailbox uid": remove; "n name id", "t id text").  Flags it tells as they come ("F mailbox uid word 0"
or 1, "f" before), and when the disk has them ("S"): until then only a power cut may take them back.  The content of a
message follows from its serial.
"""

from __future__ import annotations

import os
import random
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gateway.config_store import StoreConfig
from gateway.server.imap.view import Index
from gateway.server.imap.watch import Watch
from gateway.store import account_sharing, acl, annotation, content, database, index, upload
from gateway.store.account import AccountFile
from gateway.store.check import check_account
from gateway.store.errors import NotNow
from gateway.store.model import (
    KEYWORD_BIT,
    NEVER,
    Content,
    Delivered,
    Delivery,
    Record,
    Stored,
    ranges_of,
    records_of,
)
from gateway.store.shares import Shares
from gateway.store.upload import NewMessage, PartFile

SETTINGS = StoreConfig()
BOXES = ("INBOX", "Archive")
LARGE_OCTETS = 8192
SIZES = (10, 300, 2000, 20_000)


def small_limits() -> None:
    """So that everything happens often: full chunks, large bodies."""
    index.TAIL_RECORDS, index.CHUNK_RECORDS, index.MERGE_RECORDS = 4, 12, 5
    index.FLAG_LOG_CHANGES = 20
    content.LARGE_OCTETS = LARGE_OCTETS
    content.RECLAIM_MESSAGES = 5
    upload.LARGE_OCTETS = LARGE_OCTETS


def content_of(serial: int) -> bytes:
    chooser = random.Random(serial)
    return b"Subject: %d\r\n\r\n%b" % (
        serial,
        chooser.randbytes(chooser.choice(SIZES)).hex().encode(),
    )


def serial_of(octets: bytes) -> int:
    return int(octets.split(b"\r\n", 1)[0].removeprefix(b"Subject: "))


Tell = Callable[[str], object]


class Victim:
    """One process; `word` is a keyword that it alone sets and clears."""

    def __init__(self, directory: Path, tell: Tell, seed: int) -> None:
        self.tell = tell
        self.word = f"word{seed % 10}"
        self.chooser = random.Random(seed)
        self.serial = seed << 20
        self.file = AccountFile(directory, SETTINGS, create=True)
        self.shares = Shares(directory.parent)
        self.boxes = {name: self.file.mailbox(name).id for name in BOXES}
        self.own: list[tuple[str, int]] = []  # mailboxes: name, id

    def run(self, steps: int) -> None:
        step = 0
        while steps == 0 or step < steps:
            step += 1
            name = self.chooser.choice(BOXES)
            chunks = self.file.snapshot(self.boxes[name]).chunks
            known = [record for chunk in chunks for record in records_of(chunk)]
            some = [record for record in known if self.chooser.random() < 0.4]
            ways = (self.add, self.append, self.flag, self.flag, self.remove, self.copy, self.move)
            if self.chooser.random() < 0.2:
                self.chooser.choice((self.arrange, self.share, self.annotate))()
            elif self.chooser.random() < 0.1:
                self.chooser.choice((self.file.reclaim, self.file.sync))()
            elif some:
                self.chooser.choice(ways)(name, some)
            else:
                self.add(name, some)
            box = self.file.mailbox(name)
            self.tell(f"M {name} {box.uidnext} {box.highestmodseq}")
        self.file.close()
        self.tell("S")

    # -- messages ----------------------------------------------------------------------------------------------------

    def add(self, name: str, _: list[Record]) -> None:
        """By delivery."""
        batch = [content_of(self.serial + at) for at in range(self.chooser.choice((1, 1, 3)))]
        results = self.file.deliver([Delivery("x", [one], mailbox=name) for one in batch])
        self._added(name, results)

    def append(self, name: str, _: list[Record]) -> None:
        """As APPEND does it: what is large comes in pieces, into its file."""
        messages = []
        for at in range(self.chooser.choice((1, 3))):
            octets = content_of(self.serial + at)
            if len(octets) < LARGE_OCTETS // 2:
                messages.append(NewMessage([octets]))
                continue
            part = PartFile()
            for start in range(0, len(octets), LARGE_OCTETS):
                part.append(self.file.large_directory, octets[start : start + LARGE_OCTETS])
            messages.append(NewMessage([], part))
        self._added(name, self.file.append(self.boxes[name], messages))

    def _added(self, name: str, results: Iterable[object]) -> None:
        for result in results:
            assert isinstance(result, Delivered), result
            self.tell(f"A {name} {result.uid} {self.serial}")
            self.serial += 1
        self.tell("S")

    def flag(self, name: str, some: list[Record]) -> None:
        value = self.chooser.randrange(2)
        for record in some:
            self.tell(f"f {name} {record.uid} {self.word} {value}")
        words = [self.word]
        how = {"add": words} if value else {"remove": words}
        ranges = ranges_of([record.uid for record in some])
        done = self._log(name, ranges, value) or self.file.store(self.boxes[name], ranges, **how)
        if done.modseq:
            there = {r.uid for r in records_of(done.changed)}
            for record in some:
                if record.uid in there:
                    self.tell(f"F {name} {record.uid} {self.word} {value}")

    def _log(self, name: str, ranges: bytes, value: int) -> Stored | None:
        """As an IMAP session does it, without waiting; None: that cannot be."""
        snapshot = self.file.snapshot(self.boxes[name])
        bits = snapshot.mailbox.bits([self.word])
        if bits is None:
            return None
        watch = Watch(self.file, snapshot.mailbox)  # type: ignore[arg-type]  # it asks for log_flags() only
        watch.index = Index(snapshot.chunks)
        try:
            return watch.store(ranges, 0 if value else bits, bits if value else 0, NEVER)
        except NotNow:
            return None

    def remove(self, name: str, some: list[Record]) -> None:
        for record in some:
            self.tell(f"E {name} {record.uid}")
        uids = [record.uid for record in some]
        self.file.expunge(self.boxes[name], ranges_of(uids), deleted_only=False)
        for uid in uids:
            self.tell(f"X {name} {uid}")
        self.tell("S")

    def copy(self, name: str, some: list[Record], *, move: bool = False) -> None:
        other = BOXES[1 - BOXES.index(name)]
        serials = {}
        for record in some:
            if move:
                self.tell(f"E {name} {record.uid}")
            (found,) = self.file.read([record.message])
            if isinstance(found, Content):
                serials[record.uid] = serial_of(found.header)
        uids = ranges_of([record.uid for record in some])
        copied = self.file.copy(self.boxes[name], self.boxes[other], uids, move=move)
        for old, new in zip(array("I", copied.source), array("I", copied.target), strict=True):
            if move:
                self.tell(f"X {name} {old}")
            if old in serials:
                self.tell(f"A {other} {new} {serials[old]}")
        self.tell("S")

    def move(self, name: str, some: list[Record]) -> None:
        self.copy(name, some, move=True)

    # -- mailboxes, and what is granted and noted on them --------------------------------------------------------------

    def arrange(self) -> None:
        self.serial += 1
        new = f"{self.word}-{self.serial}"
        if len(self.own) < 3:
            self.tell(f"n {new} +")
            self.own.append((new, self.file.create(new).id))
            self.tell(f"N {new} {self.own[-1][1]}")
        elif self.chooser.random() < 0.5:
            old, mailbox = self.own.pop(0)
            self.tell(f"n {old} -")
            self.tell(f"n {new} {mailbox}")
            self.file.rename(old, new)
            self.own.append((new, mailbox))
            self.tell(f"N {old} -")
            self.tell(f"N {new} {mailbox}")
        else:
            name, _ = self.own.pop(0)
            self.tell(f"n {name} -")
            self.file.delete(name)
            self.tell(f"N {name} -")
        self.tell("S")

    def share(self) -> None:
        rights = "".join(sorted(self.chooser.sample("lrswite", 3)))
        mailbox, entries = self.boxes["INBOX"], 1000
        self.tell(f"t acl:{self.word} {rights}")
        account_sharing.set_acl(
            self.file, "x", self.shares, mailbox, self.word, "", frozenset(rights), entries
        )
        self.tell(f"T acl:{self.word} {rights}")
        self.tell("S")

    def annotate(self) -> None:
        self.serial += 1
        entry = f"/private/{self.word}"
        self.tell(f"t {entry} {self.serial}")
        values = {entry: b"%d" % self.serial}
        account_sharing.write_annotations(self.file, self.boxes["INBOX"], "", values, 1000, 1 << 20)
        self.tell(f"T {entry} {self.serial}")
        self.tell("S")


class Promises:
    """What was told so far."""

    def __init__(self, *, power: bool = False) -> None:
        """power: it was cut, and may have taken flags back that were not on the disk."""
        self.added: dict[tuple[str, int], int] = {}  # (mailbox, UID) → serial
        self.leaving: set[tuple[str, int]] = set()
        self.gone: set[tuple[str, int]] = set()
        self.marks = dict.fromkeys(BOXES, (1, 1))
        self.texts: dict[str, list[str]] = {}  # mailbox or entry → what may be there
        self.flags: dict[tuple[str, int, str], list[bool]] = {}  # the last one is the newest
        self._power = power
        self._unsynced: dict[str, int] = {}  # mailbox → HIGHESTMODSEQ

    def hear(self, line: str) -> None:
        kind, *words = line.split()
        if kind == "S":
            if self._power:  # one process told everything
                self._hear_of_sync()
        elif kind in "nt":
            self.texts.setdefault(words[0], ["-"]).append(words[1])
        elif kind in "NT":
            self.texts[words[0]] = [words[1]]
        elif kind in "fF":
            place, value = (words[0], int(words[1]), words[2]), words[3] == "1"
            values = self.flags.setdefault(place, [not value])
            values.append(value)
            if kind == "F" and not self._power:
                del values[:-1]
        else:
            self._hear_of_message(kind, words[0], [int(number) for number in words[1:]])

    def _hear_of_sync(self) -> None:
        for name, modseq in self._unsynced.items():
            self.marks[name] = (self.marks[name][0], max(self.marks[name][1], modseq))
        self._unsynced.clear()
        for values in self.flags.values():
            del values[:-1]

    def _hear_of_message(self, kind: str, name: str, values: list[int]) -> None:
        if kind == "A":
            before = self.added.setdefault((name, values[0]), values[1])
            assert before == values[1], f"UID {values[0]} of {name} was another message before"
        elif kind == "E":
            self.leaving.add((name, values[0]))
        elif kind == "X":
            self.gone.add((name, values[0]))
        else:
            uidnext, modseq = self.marks[name]
            if self._power:
                self._unsynced[name] = max(values[1], self._unsynced.get(name, 0))
            else:
                modseq = max(modseq, values[1])
            self.marks[name] = (max(uidnext, values[0]), modseq)

    def check(self, directory: Path) -> None:
        """Everything that was told is true of the account, and the account is clean."""
        file = AccountFile(directory, SETTINGS, create=True)
        found: dict[tuple[str, int], int] = {}
        for name in BOXES:
            box = file.mailbox(name)
            assert box.uidnext >= self.marks[name][0] and box.highestmodseq >= self.marks[name][1]
            for chunk in file.snapshot(box.id).chunks:
                for record in records_of(chunk):
                    (one,) = file.read([record.message])
                    assert isinstance(one, Content), one
                    octets = one.header + one.body
                    serial = serial_of(octets)
                    assert octets == content_of(serial)
                    found[name, record.uid] = serial
                    assert record.uid < box.uidnext and record.modseq <= box.highestmodseq
                    self._check_flags(name, record, box.keywords)
        self._check_texts(file)
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

    def check_modseqs(self, directory: Path) -> bool:
        """The next change has a MODSEQ that nobody ever heard of; True: some that were told are lost."""
        lost = False
        file = AccountFile(directory, SETTINGS)
        for name, told in self._unsynced.items():
            box = file.mailbox(name)
            lost |= box.highestmodseq % database.MODSEQS_LOST < told
            chunks = file.snapshot(box.id).chunks
            uids = [record.uid for chunk in chunks for record in records_of(chunk)]
            if uids:
                assert file.store(box.id, ranges_of(uids), replace=["new"]).modseq > told
        file.close()
        return lost

    def _check_flags(self, name: str, record: Record, keywords: Sequence[str]) -> None:
        for at, word in enumerate(keywords):
            values = self.flags.get((name, record.uid, word))
            value = bool(record.flags >> KEYWORD_BIT + at & 1)
            if values is not None:
                assert value in values, f"{word} of {name} {record.uid} is {value}"

    def _check_texts(self, file: AccountFile) -> None:
        inbox = file.mailbox("INBOX").id
        lists = acl.entries(file.database, inbox)
        found = {f"acl:{who}": "".join(sorted(rights)) for who, rights in lists.items()}
        for note in annotation.read(file.database, inbox, ""):
            found[note.entry] = note.value.decode()
        found.update((box.name, str(box.id)) for box in file.mailboxes() if box.name not in BOXES)
        for key, wanted in self.texts.items():
            there = found.get(key, "-")
            assert there in wanted or ("+" in wanted and there != "-"), f"{key}: {there}, not {wanted}"
            self.texts[key] = [there]


if __name__ == "__main__":
    import powerloss

    small_limits()

    def tell_all(line: str) -> None:
        os.write(1, line.encode() + b"\n")
        powerloss.tell(line.encode())

    Victim(Path(sys.argv[1]), tell_all, int(sys.argv[2])).run(int(sys.argv[3]))
