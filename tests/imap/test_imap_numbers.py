"""Sequence numbers over the wire: clients in two workers do what they like, and each keeps its own books.

The slow twin of tests/unit/test_imap_view.py: real sockets, real commands, the books kept as RFC 9051 §7.5 says.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from imap.rig import MESSAGE, ImapClient
from imap.two_workers import TwoWorkers

FLAGS = ("\\Seen", "\\Deleted", "\\Flagged", "red", "blue")
STEPS = 80


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoWorkers]:
    with TwoWorkers(tmp_path_factory.mktemp("imap")) as running:
        yield running


class Books:
    """A client that believes what it is told."""

    def __init__(self, imap: ImapClient, *, qresync: bool) -> None:
        self.imap = imap
        self.uids: list[int] = []
        self.flags: dict[int, set[str]] = {}
        self.idle_tag = b""
        if qresync:
            imap.ok("ENABLE QRESYNC")
        self.read(imap.ok("SELECT INBOX"))
        self.learn()

    def command(self, command: str, expunges: bool = True) -> None:
        untagged, tagged = self.imap.cmd(command)
        assert tagged.startswith(b"OK" if expunges else (b"OK", b"NO [EXPUNGEISSUED]")), tagged
        assert expunges or not any(b"EXPUNGE" in line or b"VANISHED" in line for line in untagged)
        self.read(untagged)
        self.learn()

    def learn(self) -> None:
        """FETCH what EXISTS announced."""
        while 0 in self.uids:
            self.read(self.imap.ok(f"FETCH {self.uids.index(0) + 1}:* (UID FLAGS)"))

    def read(self, untagged: list[bytes]) -> None:
        for line in untagged:
            if found := re.fullmatch(rb"(\d+) EXISTS", line):
                assert int(found[1]) >= len(self.uids)
                self.uids += [0] * (int(found[1]) - len(self.uids))
            elif found := re.fullmatch(rb"(\d+) EXPUNGE", line):
                del self.uids[int(found[1]) - 1]
            elif found := re.fullmatch(rb"VANISHED ([0-9,:]+)", line):
                for part in found[1].split(b","):
                    first, _, last = part.partition(b":")
                    for uid in range(int(first), int(last or first) + 1):
                        del self.uids[self.place(uid)]
            elif found := re.match(rb"(\d+) FETCH \((?:UID (\d+) )?FLAGS \(([^)]*)\)", line):
                at = int(found[1]) - 1
                if found[2]:
                    assert self.uids[at] in (0, int(found[2]))
                    self.uids[at] = int(found[2])
                self.flags[self.uids[at]] = set(found[3].decode().split()) - {"\\Recent"}

    def place(self, uid: int) -> int:
        """Where it is, also when EXISTS announced it and nobody asked for it yet: behind all lower UIDs."""
        if uid in self.uids:
            return self.uids.index(uid)
        at = max((at + 1 for at, known in enumerate(self.uids) if 0 < known < uid), default=0)
        assert self.uids[at] == 0
        return at

    def idle(self) -> None:
        if not self.idle_tag:
            self.idle_tag = self.imap.idle()

    def done(self) -> None:
        if self.idle_tag:
            tag, self.idle_tag = self.idle_tag, b""
            self.read(self.imap.done(tag))
            self.learn()

    def picture(self) -> list[tuple[int, frozenset[str]]]:
        return [(uid, frozenset(self.flags[uid])) for uid in self.uids]


def step(chance: random.Random, gateway: TwoWorkers, account: str, books: Books) -> None:
    if chance.random() < 0.2:
        books.idle()
        return
    books.done()
    what = chance.choice(("deliver", "store", "store", "uid store", "expunge", "move", "copy", "noop", "fetch"))
    count = len(books.uids)
    numbers = ",".join(str(chance.randint(1, count)) for _ in range(chance.randint(1, 5))) if count else ""
    change = f"{chance.choice('+-')}FLAGS ({' '.join(chance.sample(FLAGS, 2))})"
    if what == "deliver":
        gateway.deliver(account, *[MESSAGE] * chance.randint(1, 8))
    elif what == "noop" or not count:
        books.command("NOOP")
    elif what == "expunge":
        books.command("EXPUNGE")
    elif what == "store":
        books.command(f"STORE {numbers} {change}", expunges=False)
    elif what == "uid store":
        uids = ",".join(str(uid) for uid in chance.sample(books.uids, min(3, count)))
        books.command(f"UID STORE {uids} {change}")
    elif what == "copy":
        books.command(f"COPY {numbers} INBOX")
    elif what == "move":
        books.command(f"MOVE {numbers} Archive")
    else:
        books.command(f"FETCH {numbers} (UID FLAGS)", expunges=False)


@pytest.mark.parametrize("seed", range(4))
def test_every_client_ends_with_the_same_mailbox(gateway: TwoWorkers, seed: int) -> None:
    chance = random.Random(seed)
    account = f"numbers{seed}@example.test"
    gateway.add_account(account)
    gateway.deliver(account, *[MESSAGE] * 20)
    clients = [gateway.login_at(at % 2, account) for at in range(4)]
    all_books = [Books(imap, qresync=at == 1) for at, imap in enumerate(clients)]
    for _ in range(STEPS):
        step(chance, gateway, account, chance.choice(all_books))
    for books in all_books:
        books.done()
        books.command("NOOP")
    with gateway.login_at(0, account) as fresh:
        truth = Books(fresh, qresync=False).picture()
    for books in all_books:
        assert books.picture() == truth
        books.imap.close()
