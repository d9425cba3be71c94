"""What IMAP clients were told before the gateway was killed, and whether that is true of it afterwards.

    Owns      Ledger (of all clients), Copy, Doubt, content_of(), Found (what is there now)
    Flow      clients note what they ask and what they are told → the gateway dies → judge(account, what is there)
    Errors    AssertionError, with what was promised and is not so

A message is where it is: (account, UIDVALIDITY, UID).  Only the client that made a message changes its flags and
removes it, so that what it must look like is known whatever the others do; that it disappears may be anybody's EXPUNGE
as soon as its client began to set \\Deleted.  A command whose reply was not seen is in doubt: it happened, or not.
"""

from __future__ import annotations

import random
from collections import defaultdict
from functools import cache
from hashlib import sha256

import msgspec

Place = tuple[str, int, int]
Serial = tuple[int, int]  # (client, number): what a message is made from
UNKNOWN = 0  # the UIDVALIDITY of a mailbox that is there
SMALL, LARGE = (40, 400, 3000), (150_000, 400_000)


def content_of(serial: Serial, *, large: bool) -> bytes:
    """The message with that serial."""
    chooser = random.Random(f"{serial} {large}")
    text = chooser.randbytes(chooser.choice(LARGE if large else SMALL) // 2).hex().encode()
    head = b"From: a@example.test\r\nSubject: %d %d %d\r\n\r\n" % (*serial, large)
    return head + b"\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + b"\r\n"


@cache
def digest_of(serial: Serial, large: bool) -> str:
    return sha256(content_of(serial, large=large)).hexdigest()


def serial_of(octets: bytes) -> Serial:
    """Of a message that is as it was made; AssertionError for any other."""
    client, number, large = map(int, octets.split(b"\r\n", 2)[1].split()[1:])
    assert sha256(octets).hexdigest() == digest_of((client, number), bool(large)), "altered"
    return client, number


class Copy(msgspec.Struct):
    """A message where it is."""

    serial: Serial
    flags: frozenset[str]
    leaving: bool = False  # an EXPUNGE of anybody may remove it


class Doubt(msgspec.Struct, kw_only=True):
    """A command that was sent: what it may have done, wholly or not at all."""

    what: str
    mailbox: str = ""  # where messages come to be
    added: list[tuple[Serial, frozenset[str]]] = []  # these, there, in this order
    removed: list[Place] = []  # they go, all or none
    flags: dict[Place, frozenset[str]] = {}  # these are their flags then
    names: dict[str, str | None] = {}  # mailbox → its name then; None: it is gone
    created: list[str] = []


class Message(msgspec.Struct, frozen=True):
    """One that is there."""

    serial: Serial
    flags: frozenset[str]
    modseq: int


class Found(msgspec.Struct):
    """One account, as it is."""

    account: str
    mailboxes: dict[str, int]  # name → UIDVALIDITY
    marks: dict[int, tuple[int, int]]  # UIDVALIDITY → (UIDNEXT, HIGHESTMODSEQ)
    messages: dict[Place, Message]


class Claims:
    """What one client was told of its own."""

    def __init__(self, account: str) -> None:
        self.account = account
        self.copies: dict[Place, Copy] = {}
        self.mailboxes: dict[str, int] = {}  # name → UIDVALIDITY
        self.doubt: Doubt | None = None


class Ledger:
    """Of all clients, over all rounds; each method is one step, whichever thread calls it."""

    def __init__(self) -> None:
        self.claims: list[Claims] = []
        self.serials: dict[Place, Serial] = {}  # whatever was there at any time
        self.modseqs: dict[Place, int] = {}
        self.marks: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (1, 1))
        self.gone: set[Place] = set()
        self.may_go: set[Place] = set()

    # -- while it runs -----------------------------------------------------------------------------------------------

    def saw(self, place: Place, serial: Serial) -> None:
        """A UID is one message, for ever."""
        before = self.serials.setdefault(place, serial)
        assert before == serial, f"{place} was message {before} and is {serial}"

    def saw_modseq(self, place: Place, modseq: int) -> None:
        """Somebody was told that; older news may come later, within a run."""
        self.modseqs[place] = max(self.modseqs.get(place, 0), modseq)
        self.saw_marks(place[:2], 1, modseq)

    def saw_marks(self, mailbox: tuple[str, int], uidnext: int, modseq: int) -> None:
        before = self.marks[mailbox]
        self.marks[mailbox] = (max(before[0], uidnext), max(before[1], modseq))

    def saw_gone(self, place: Place) -> None:
        self.gone.add(place)

    # -- afterwards --------------------------------------------------------------------------------------------------

    def judge(self, found: Found) -> None:
        """Everything that was told of the account is true; what was in doubt is known afterwards."""
        for mailbox in found.mailboxes.values():
            uidnext, modseq = found.marks[mailbox]
            told = self.marks[found.account, mailbox]
            assert uidnext >= told[0], f"UIDNEXT of {mailbox} went back from {told[0]} to {uidnext}"
            assert modseq >= told[1], f"HIGHESTMODSEQ of {mailbox} went back from {told[1]}"
        for place, message in found.messages.items():
            self.saw(place, message.serial)
            assert place not in self.gone, f"{place} was told to be gone"
            assert message.modseq >= self.modseqs.get(place, 0), f"MODSEQ of {place} went back"
            uidnext, modseq = found.marks[place[1]]
            assert message.modseq <= modseq and place[2] < uidnext, f"{place} is beyond the marks"
        known: set[Place] = set()
        names: set[str] = set()
        for claims in self.claims:
            if claims.account == found.account:
                if claims.doubt is not None:
                    self._resolve(claims, claims.doubt, found)
                    claims.doubt = None
                self._judge(claims, found)
                known.update(claims.copies)
                names.update(claims.mailboxes)
        extra = set(found.messages) - known
        assert not extra, f"nobody made {sorted(extra)}"
        own = {name for name in found.mailboxes if name.startswith("client")}
        assert own == names, f"mailboxes {own ^ names} should not be, or should"
        for place in self.gone:
            if place[0] == found.account:
                assert place in self.may_go, f"{place} was removed and nobody asked for that"
        for place, message in found.messages.items():
            self.modseqs[place] = message.modseq
        for mailbox, marks in found.marks.items():
            self.saw_marks((found.account, mailbox), *marks)

    def _judge(self, claims: Claims, found: Found) -> None:
        for name, uidvalidity in claims.mailboxes.items():
            there = found.mailboxes.get(name)
            assert there, f"mailbox {name} is lost"
            assert there == uidvalidity or uidvalidity == UNKNOWN, f"mailbox {name} is another"
            claims.mailboxes[name] = there
        for place, copy in list(claims.copies.items()):
            message = found.messages.get(place)
            if message is None:
                assert copy.leaving, f"{place}, message {copy.serial}, is lost"
                del claims.copies[place]
                self.gone.add(place)
                continue
            assert message.serial == copy.serial, f"{place} changed its octets"
            assert message.flags == copy.flags, f"flags of {place} are {message.flags}, not {copy}"
            copy.leaving = "\\Deleted" in copy.flags
            if not copy.leaving:
                self.may_go.discard(place)

    def _resolve(self, claims: Claims, doubt: Doubt, found: Found) -> None:
        """Did it happen?  Wholly, or not at all."""
        done: set[bool] = set()  # what each of its traces says
        for old, new in doubt.names.items():
            uidvalidity = claims.mailboxes.pop(old)
            there = [name for name in (old, new) if found.mailboxes.get(name or "") == uidvalidity]
            assert len(there) == (1 if new or old in there else 0), f"{doubt} left {there}"
            done.add(old not in there)
            if there and there[0]:
                claims.mailboxes[there[0]] = uidvalidity
        for name in doubt.created:
            done.add(name in found.mailboxes)
            if name in found.mailboxes:
                claims.mailboxes[name] = found.mailboxes[name]
        if doubt.added:
            done.add(self._added(claims, doubt, found))
        for place in doubt.removed:
            done.add(place not in found.messages)
            claims.copies[place].leaving |= place not in found.messages
        for place, flags in doubt.flags.items():
            copy, message = claims.copies[place], found.messages.get(place)
            if message is not None and copy.flags != flags:
                assert message.flags in (copy.flags, flags), f"flags of {place}: {message.flags}"
                done.add(message.flags == flags)
                copy.flags = message.flags
        assert len(done) < 2, f"in parts: {doubt}"

    def _added(self, claims: Claims, doubt: Doubt, found: Found) -> bool:
        uidvalidity = found.mailboxes[doubt.mailbox]
        wanted = [serial for serial, _ in doubt.added]
        new = sorted(
            place
            for place, message in found.messages.items()
            if place[1] == uidvalidity and message.serial in wanted and self._is_new(place)
        )
        assert [found.messages[place].serial for place in new] in ([], wanted), f"{doubt}: {new}"
        for place, (serial, flags) in zip(new, doubt.added, strict=False):
            claims.copies[place] = Copy(serial, flags)
        return bool(new)

    def _is_new(self, place: Place) -> bool:
        return all(place not in claims.copies for claims in self.claims)
