"""IMAP clients that never rest, and write down what they are told; and one that looks at everything.

    Owns      Worker (one connection after the other, until the gateway is gone), look() → Found, Mirror
    Flow      a command's doubt is noted → it is sent → replies are noted → the tagged OK ends the doubt
    Errors    AssertionError for any NO or BAD: nothing here may be refused
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator

import msgspec
from imap.rig import PASSWORD, ImapClient
from imap_ledger import (
    UNKNOWN,
    Claims,
    Copy,
    Doubt,
    Found,
    Ledger,
    Message,
    Place,
    Serial,
    content_of,
    serial_of,
)

SHARED = ("INBOX", "Archive")
FLAGS = ("\\Seen", "\\Flagged", "\\Answered", "$Forwarded", "work", "later")
COPIES_MAX = 40  # a client tidies up then
PIECE_OCTETS = 16_384
_FETCH = re.compile(rb"\d+ FETCH \((.*)\)\Z", re.DOTALL)


def uids_of(text: bytes) -> Iterator[int]:
    """The numbers of a set, in its order."""
    for part in text.split(b","):
        first, _, last = part.partition(b":")
        yield from range(int(first), int(last or first) + 1)


def set_of(places: list[Place]) -> str:
    return ",".join(str(uid) for _, _, uid in places)


def number(word: bytes, lines: list[bytes]) -> int:
    """The n of "WORD n" in one of the responses."""
    return next(int(found[1]) for line in lines if (found := re.search(word + rb" (\d+)", line)))


class Fetched(msgspec.Struct):
    """A FETCH response: what of it there was."""

    uid: int
    flags: frozenset[str] | None
    modseq: int
    body: bytes | None


def fetched(line: bytes) -> Fetched | None:
    found = _FETCH.match(line)
    if found is None:
        return None
    head, brace, rest = found[1].partition(b"BODY[] {")
    body = rest[rest.index(b"\r\n") + 2 :] if brace else None
    flags = re.search(rb"FLAGS \(([^)]*)\)", head)
    modseq = re.search(rb"MODSEQ \((\d+)\)", head)
    uid = re.search(rb"UID (\d+)", head)
    assert uid is not None, line
    words = None if flags is None else frozenset(flags[1].decode().split()) - {"\\Recent"}
    return Fetched(int(uid[1]), words, int(modseq[1]) if modseq else 0, body)


class Worker:
    """A client, and what it knows of its own messages."""

    def __init__(self, ledger: Ledger, account: str, name: int) -> None:
        self.claims = Claims(account)
        ledger.claims.append(self.claims)
        self.acknowledged = 0
        self._ledger = ledger
        self._account = account
        self._name = name
        self._numbers = 0
        self._imap: ImapClient
        self._mailbox = ""  # that is selected
        self._uidvalidity = 0
        self._chooser = random.Random()

    def run(self, port: int, seed: int) -> None:
        """Until the gateway is gone."""
        self._chooser = random.Random(seed)
        with contextlib.suppress(EOFError, OSError), ImapClient(port) as self._imap:
            self._imap.ok(f'LOGIN {self._account} "{PASSWORD}"')
            self._imap.ok("ENABLE QRESYNC")
            while True:
                self._select(self._chooser.choice([*SHARED, *self.claims.mailboxes]))
                for _ in range(4):
                    self._step()

    # -- one command -------------------------------------------------------------------------------------------------

    def _command(self, command: str | bytes, doubt: Doubt, *, pieces: bool = False) -> bytes:
        """The tagged response; what was untagged is noted."""
        for place in doubt.removed:
            self._ledger.may_go.add(place)
        self.claims.doubt = doubt
        if pieces:
            tag = b"large%d" % self._numbers
            octets = tag + b" " + (command if isinstance(command, bytes) else command.encode())
            for at in range(0, len(octets) + 2, PIECE_OCTETS):
                self._imap.write((octets + b"\r\n")[at : at + PIECE_OCTETS])
        else:
            tag = self._imap.begin(command)
        untagged, tagged = self._imap.finish(tag)
        assert tagged.startswith(b"OK"), (command[:200], tagged)
        self._note(untagged)
        self.claims.doubt = None
        self.acknowledged += 1
        code = next((line for line in untagged if b"COPYUID" in line), tagged)
        if found := re.search(rb"HIGHESTMODSEQ (\d+)", tagged):
            self._ledger.saw_marks((self._account, self._uidvalidity), 1, int(found[1]))
        return code

    def _note(self, untagged: list[bytes]) -> None:
        for line in untagged:
            if line.startswith(b"VANISHED "):
                for uid in uids_of(line.rpartition(b" ")[2]):
                    self._went(self._place(uid))
            elif one := fetched(line):
                self._ledger.saw_modseq(self._place(one.uid), one.modseq)

    def _went(self, place: Place) -> None:
        self._ledger.saw_gone(place)
        copy = self.claims.copies.pop(place, None)
        doubt = self.claims.doubt
        assert copy is None or copy.leaving or (doubt and place in doubt.removed), f"{place} vanished"

    def _place(self, uid: int) -> Place:
        return (self._account, self._uidvalidity, uid)

    def _select(self, name: str) -> None:
        self._uidvalidity = 0
        untagged = [line for line in self._imap.ok(f"SELECT {name}") if b"CLOSED" not in line]
        untagged = [line for line in untagged if not line.startswith(b"VANISHED")]
        self._mailbox, self._uidvalidity = name, number(b"UIDVALIDITY", untagged)
        uidnext, modseq = number(b"UIDNEXT", untagged), number(b"HIGHESTMODSEQ", untagged)
        self._ledger.saw_marks((self._account, self._uidvalidity), uidnext, modseq)

    def _uidvalidity_of(self, name: str) -> int:
        (line,) = [line for line in self._imap.ok(f"STATUS {name} (UIDVALIDITY)") if b"(" in line]
        return number(b"UIDVALIDITY", [line])

    # -- what to do --------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        steady = [place for place, copy in self._here() if not copy.leaving]
        some = sorted(place for place in steady if self._chooser.random() < 0.5)
        full = len(self.claims.copies) > COPIES_MAX
        ways: list[Callable[[list[Place]], None]] = [self._flag, self._move, self._delete]
        if not full:
            ways += [self._append, self._append, self._copy]
        if self._chooser.random() < 0.2:
            self._arrange()
        elif some:
            self._chooser.choice(ways)(some)
        elif not full:
            self._append([])
        else:
            self._expunge()

    def _here(self) -> list[tuple[Place, Copy]]:
        copies = self.claims.copies.items()
        return [(place, copy) for place, copy in copies if place[1] == self._uidvalidity]

    def _some_flags(self) -> frozenset[str]:
        return frozenset(self._chooser.sample(FLAGS, self._chooser.randrange(3)))

    def _append(self, _: list[Place]) -> None:
        """Small or large, one or several."""
        large = self._chooser.random() < 0.15
        count = 1 if large else self._chooser.choice((1, 1, 4))
        command = f"APPEND {self._mailbox}".encode()
        added: list[tuple[Serial, frozenset[str]]] = []
        for at in range(count):
            self._numbers += 1
            serial, flags = (self._name, self._numbers), self._some_flags()
            octets = content_of(serial, large=large or (count > 1 and at == 1))
            command += b" (%b) {%d+}\r\n%b" % (" ".join(flags).encode(), len(octets), octets)
            added.append((serial, flags))
        doubt = Doubt(what="APPEND", mailbox=self._mailbox, added=added)
        self._added(self._command(command, doubt, pieces=large), added)

    def _added(self, code: bytes, added: list[tuple[Serial, frozenset[str]]]) -> None:
        found = re.search(rb"(?:APPENDUID|COPYUID) (\d+) (?:\S+ )?([\d:,]+)\]", code)
        assert found is not None, code
        uids = list(uids_of(found[2]))
        for uid, (serial, flags) in zip(uids, added, strict=True):
            place = (self._account, int(found[1]), uid)
            self._ledger.saw(place, serial)
            self.claims.copies[place] = Copy(serial, flags)

    def _flag(self, some: list[Place], *, deleted: bool = False) -> None:
        sign = "+" if deleted else self._chooser.choice(("", "+", "-"))
        words = frozenset(("\\Deleted",)) if deleted else self._some_flags()
        copies = self.claims.copies
        after = {
            place: words if not sign else before | words if sign == "+" else before - words
            for place in some
            for before in (copies[place].flags,)
        }
        for place in some if deleted else ():
            self._ledger.may_go.add(place)
            copies[place].leaving = True
        command = f"UID STORE {set_of(some)} {sign}FLAGS ({' '.join(words)})"
        self._command(command, Doubt(what=command, flags=after))
        for place, flags in after.items():
            if place in copies:
                copies[place].flags = flags

    def _delete(self, some: list[Place]) -> None:
        self._flag(some, deleted=True)
        self._expunge()

    def _expunge(self) -> None:
        leaving = sorted(place for place, copy in self._here() if copy.leaving)
        alone = self._mailbox not in SHARED  # elsewhere others expunge the part that they know of
        doubt = Doubt(what="EXPUNGE", removed=leaving if alone else [])
        if leaving and self._chooser.random() < 0.5:
            self._command(f"UID EXPUNGE {set_of(leaving)}", doubt)
        else:
            self._command("EXPUNGE", doubt)
        left = [place for place in leaving if place in self.claims.copies]
        assert not left or not alone, f"{left} are expunged, and the client was not told"
        for place in left:  # another worker's session was faster, and its news is on the way
            self._went(place)

    def _copy(self, some: list[Place]) -> None:
        target, added = self._other(), self._contents(some)
        doubt = Doubt(what=f"COPY to {target}", mailbox=target, added=added)
        self._added(self._command(f"UID COPY {set_of(some)} {target}", doubt), added)

    def _move(self, some: list[Place]) -> None:
        target, added = self._other(), self._contents(some)
        doubt = Doubt(what=f"MOVE to {target}", mailbox=target, added=added, removed=some)
        self._added(self._command(f"UID MOVE {set_of(some)} {target}", doubt), added)
        left = [place for place in some if place in self.claims.copies]
        assert not left, f"{left} were moved, and the client was not told"

    def _contents(self, some: list[Place]) -> list[tuple[Serial, frozenset[str]]]:
        return [(copy.serial, copy.flags) for copy in map(self.claims.copies.__getitem__, some)]

    def _other(self) -> str:
        names = {*SHARED, *self.claims.mailboxes} - {self._mailbox}
        return self._chooser.choice(sorted(names))

    def _arrange(self) -> None:
        """CREATE, RENAME, DELETE."""
        self._imap.ok("UNSELECT")
        own = self.claims.mailboxes
        tops = sorted(name for name in own if "/" not in name)
        if len(own) < 4 or not tops:
            self._numbers += 1
            above = self._chooser.choice(["", *(f"{name}/" for name in tops)])
            name = f"{above}client{self._name}-{self._numbers}"
            self._command(f"CREATE {name}", Doubt(what=f"CREATE {name}", created=[name]))
            own[name] = UNKNOWN
            own[name] = self._uidvalidity_of(name)
        elif self._chooser.random() < 0.5:
            old = self._chooser.choice(tops)
            self._numbers += 1
            new = f"client{self._name}-{self._numbers}"
            names: dict[str, str | None] = {
                name: new + name[len(old) :] for name in own if f"{name}/".startswith(f"{old}/")
            }
            self._command(f"RENAME {old} {new}", Doubt(what=f"RENAME {old}", names=names))
            for name, now in names.items():
                own[now or ""] = own.pop(name)
        else:
            leaves = [name for name in own if not any(n.startswith(f"{name}/") for n in own)]
            self._remove(self._chooser.choice(sorted(leaves)))
        self._select(self._chooser.choice([*SHARED, *own]))

    def _remove(self, name: str) -> None:
        uidvalidity = self.claims.mailboxes[name]
        inside = [place for place in self.claims.copies if place[1] == uidvalidity]
        for place in inside:
            self.claims.copies[place].leaving = True
        self._command(
            f"DELETE {name}", Doubt(what=f"DELETE {name}", names={name: None}, removed=inside)
        )
        del self.claims.mailboxes[name]
        for place in inside:
            self._went(place)


# -- afterwards ------------------------------------------------------------------------------------------------------


class Mirror:
    """A client with QRESYNC that comes back after each crash and asks only for what it missed."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, dict[int, frozenset[str]]]] = {}

    def catch_up(self, imap: ImapClient, name: str, found: Found) -> None:
        """It knows the same as a client that asks for everything."""
        uidvalidity = found.mailboxes[name]
        _, modseq = found.marks[uidvalidity]
        before, flags = self._known.get(uidvalidity, (1, {}))
        for line in imap.ok(f"EXAMINE {name} (QRESYNC ({uidvalidity} {before}))"):
            if line.startswith(b"VANISHED (EARLIER) "):
                for uid in uids_of(line.rpartition(b" ")[2]):
                    flags.pop(uid, None)
            elif one := fetched(line):
                assert one.flags is not None
                flags[one.uid] = one.flags
        now = {
            uid: message.flags
            for (_, where, uid), message in found.messages.items()
            if where == uidvalidity
        }
        assert flags == now, f"{name}: a client that comes back knows {flags}, there is {now}"
        self._known[uidvalidity] = (modseq, flags)


def look(port: int, account: str, mirror: Mirror) -> Found:
    """Everything that the account has, as a client is told."""
    found = Found(account, {}, {}, {})
    with ImapClient(port) as imap:
        imap.ok(f'LOGIN {account} "{PASSWORD}"')
        imap.ok("ENABLE QRESYNC")
        for line in imap.ok('LIST "" "*"'):
            if b"\\Noselect" in line or b"\\NonExistent" in line or b'"Other Users' in line:
                continue
            name = line.rpartition(b" ")[2].decode().strip('"')
            untagged = imap.ok(f"EXAMINE {name}")
            uidvalidity = number(b"UIDVALIDITY", untagged)
            found.mailboxes[name] = uidvalidity
            found.marks[uidvalidity] = (
                number(b"UIDNEXT", untagged),
                number(b"HIGHESTMODSEQ", untagged),
            )
            for response in imap.ok("UID FETCH 1:* (UID FLAGS MODSEQ BODY.PEEK[])"):
                one = fetched(response)
                if one is None:
                    continue
                assert one.flags is not None and one.body is not None
                place = (account, uidvalidity, one.uid)
                found.messages[place] = Message(serial_of(one.body), one.flags, one.modseq)
            mirror.catch_up(imap, name, found)
    return found
