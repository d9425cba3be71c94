"""What is asked of a mailbox, command by command.

Owns      Work (one row of the table), works()
Flow      prepare (not counted) → run (counted) → settle
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from benches.peers.imap_client import Imap, login_cycles
from benches.peers.stores import USERS, StoreServer, user

FIELDS = "FROM TO SUBJECT DATE MESSAGE-ID"
COPIED = 1000
APPENDED, BATCHES, BATCH = 200, 10, 100
EXPUNGED = 1000
SMALL = 500  # one-message commands of a run
CYCLES = 100
FRESH = 50
COUNTED = re.compile(rb"\* (?:SEARCH|SORT|ESEARCH)([ 0-9]*)\r\n")


class Client(msgspec.Struct):
    """One server in its turn."""

    server: StoreServer
    imap: Imap  # INBOX is selected, with all messages of it
    messages: int
    mails: list[bytes]


class Work(msgspec.Struct):
    title: str
    run: Callable[[Client], bytes | None]  # what came, where it is to be compared
    count: Callable[[Client], int]  # how many messages or operations a run has
    prepare: Callable[[Client], object] | None = None
    after: Callable[[Client], object] | None = None
    first: Callable[[Client], int] | None = None  # the same once, for after a restart; returns what count() counts


def works() -> list[Work]:
    return [
        Work("SELECT INBOX, the same session", _select, _fixed(SMALL)),
        Work("SELECT INBOX, fresh login", _fresh_select, _fixed(FRESH)),
        _many("FETCH 1:* (FLAGS)", "FETCH 1:* (FLAGS)", 10),
        _many("FETCH 1:* (UID RFC822.SIZE INTERNALDATE FLAGS)", "FETCH 1:* (UID RFC822.SIZE INTERNALDATE FLAGS)", 3),
        _many("FETCH 1:* (ENVELOPE)", "FETCH 1:* (ENVELOPE)", 2),
        _many("FETCH 1:* (BODYSTRUCTURE)", "FETCH 1:* (BODYSTRUCTURE)", 3),
        _many("BODY.PEEK[HEADER.FIELDS (5 names)]", f"FETCH 1:* (BODY.PEEK[HEADER.FIELDS ({FIELDS})])", 2),
        _many("BODY.PEEK[HEADER]", "FETCH 1:* (BODY.PEEK[HEADER])", 2),
        _many("BODY.PEEK[]", "FETCH 1:* (BODY.PEEK[])", 1),
        _many("UID SEARCH SUBJECT linux", "UID SEARCH SUBJECT linux", 3),
        _many("UID SEARCH BODY penguin", "UID SEARCH BODY penguin", 1),
        _many("UID SEARCH TEXT penguin", "UID SEARCH TEXT penguin", 1),
        _many("SEARCH UNSEEN", "SEARCH UNSEEN", 20),
        _many("SORT (DATE)", "SORT (DATE) UTF-8 ALL", 5),
        _many("SORT (SUBJECT)", "SORT (SUBJECT) UTF-8 ALL", 3),
        _many("THREAD REFERENCES", "THREAD REFERENCES UTF-8 ALL", 2),
        Work("STORE 1:* ±FLAGS.SILENT (\\Seen)", _store_all, lambda client: 20 * client.messages),
        Work("COPY 1:1000", _copy, _fixed(COPIED), prepare=_make("Copies"), after=_drop("Copies")),
        Work("EXPUNGE 1,000 scattered", _expunge, _fixed(EXPUNGED), prepare=_prepare_expunge, after=_after_expunge),
        Work("APPEND, one at a time", _append, _fixed(APPENDED), prepare=_make("Appended"), after=_drop("Appended")),
        Work("MULTIAPPEND, 100 a command", _multiappend, _fixed(BATCHES * BATCH),
             prepare=_make("Appended"), after=_drop("Appended")),
        _each("NOOP", "NOOP"),
        _each("FETCH n (FLAGS)", "FETCH {} (FLAGS)"),
        _each("FETCH n (BODY.PEEK[])", "FETCH {} (BODY.PEEK[])"),
        Work("STORE n +FLAGS (\\Flagged)", _store_one, _fixed(SMALL), after=_unflag),
        Work("LOGIN SELECT LOGOUT, 1 connection", _cycles(1), _fixed(CYCLES)),
        Work("LOGIN SELECT LOGOUT, 10 connections", _cycles(10), _fixed(CYCLES)),
    ]  # fmt: skip


def found(data: bytes) -> str:
    """What an answer says, in short, to be compared between servers: they differ in form."""
    searched = COUNTED.search(data)
    if searched:
        return f"{len(searched[1].split())} found"
    threads = re.search(rb"\* THREAD (.*)\r\n", data)
    if threads:
        return f"{len(re.findall(rb'[0-9]+', threads[1]))} in threads"
    return f"{len(re.findall(rb'(?m)^[*] [0-9]+ FETCH [(]', data))} fetched"


def _fixed(count: int) -> Callable[[Client], int]:
    return lambda client: count


def _many(title: str, text: str, repeated: int) -> Work:
    def run(client: Client) -> bytes | None:
        for _ in range(repeated - 1):
            client.imap.command(text)
        return client.imap.command(text, keep=True).data

    def first(client: Client) -> int:
        client.imap.command(text)
        return client.messages

    return Work(title, run, lambda client: repeated * client.messages, first=first)


def _each(title: str, text: str) -> Work:
    def run(client: Client) -> None:
        for number in range(SMALL):
            client.imap.command(text.format(1 + number * 7 % client.messages))

    return Work(title, run, _fixed(SMALL))


def _select(client: Client) -> None:
    for _ in range(SMALL):
        client.imap.command("SELECT INBOX")


def _fresh_select(client: Client) -> None:
    for _ in range(FRESH):
        imap = Imap(client.server.imap_port, user(0))
        imap.command("SELECT INBOX")
        imap.logout()


def _store_all(client: Client) -> None:
    for _ in range(10):
        client.imap.command("STORE 1:* +FLAGS.SILENT (\\Seen)")
        client.imap.command("STORE 1:* -FLAGS.SILENT (\\Seen)")


def _store_one(client: Client) -> None:
    for number in range(SMALL):
        client.imap.command(f"STORE {1 + number * 7 % client.messages} +FLAGS (\\Flagged)")


def _unflag(client: Client) -> None:
    client.imap.command("STORE 1:* -FLAGS.SILENT (\\Flagged)")


def _make(name: str) -> Callable[[Client], object]:
    return lambda client: client.imap.command(f"CREATE {name}")


def _drop(name: str) -> Callable[[Client], object]:
    return lambda client: client.imap.command(f"DELETE {name}")


def _copy(client: Client) -> None:
    client.imap.command(f"COPY 1:{COPIED} Copies")


def _prepare_expunge(client: Client) -> None:
    client.imap.command("CREATE Work")
    client.imap.command("COPY 1:* Work")
    client.imap.command("SELECT Work")
    step = max(1, client.messages // EXPUNGED)
    numbers = [str(number) for number in range(1, client.messages + 1, step)][:EXPUNGED]
    client.imap.command(f"STORE {','.join(numbers)} +FLAGS.SILENT (\\Deleted)")


def _expunge(client: Client) -> None:
    client.imap.command("EXPUNGE")


def _after_expunge(client: Client) -> None:
    client.imap.command("SELECT INBOX")
    client.imap.command("DELETE Work")


def _append(client: Client) -> None:
    for number in range(APPENDED):
        client.imap.append("Appended", [client.mails[number % len(client.mails)]])


def _multiappend(client: Client) -> None:
    for start in range(0, BATCHES * BATCH, BATCH):
        batch = [client.mails[number % len(client.mails)] for number in range(start, start + BATCH)]
        client.imap.append("Appended", batch)


def _cycles(at_once: int) -> Callable[[Client], None]:
    return lambda client: login_cycles(client.server.imap_port, CYCLES, at_once, USERS - 1)
