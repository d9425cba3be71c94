"""LIST and its kin over an account of thousands of mailboxes, beside Dovecot.

    python -m benches.imap_lists [--mailboxes 9900] [--rounds 7]

CPU of all processes of each server (control group), median of rounds taken in turn (A B A B), in microseconds a name.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benches.peers.imap_client import Imap
from benches.peers.retrieval import settle
from benches.peers.stores import DovecotMdbox, GatewayImap, StoreServer, user

COMMANDS = {
    "LIST *": 'LIST "" *',
    "LIST %": 'LIST "" %',
    "LIST of one": 'LIST "" b7/m750',
    "LIST *7*": 'LIST "" *7*',
    "LSUB *": 'LSUB "" *',
    "LIST-STATUS": 'LIST "" * RETURN (STATUS (MESSAGES UIDNEXT UNSEEN))',
}
TIMES = 20  # each in a round: a process that does nothing costs something, too
BELOW = 100  # mailboxes in one


def fill(server: StoreServer, mailboxes: int) -> Imap:
    imap = Imap(server.imap_port, user(0))
    lines = []
    for number in range(mailboxes):
        name = f"b{number // BELOW}/m{number}" if number % BELOW else f"b{number // BELOW}"
        lines.append(f"CREATE {name}")
        if number % 10 == 0:
            lines.append(f"SUBSCRIBE {name}")
    for start in range(0, len(lines), BELOW):  # together: each waits for the disk
        tags = [imap.tag() for _ in lines[start : start + BELOW]]
        parts = zip(tags, lines[start : start + BELOW], strict=True)
        imap.sock.sendall(b"".join(b"%b %b\r\n" % (tag, line.encode()) for tag, line in parts))
        imap.answer(tags[-1])
    settle(server)
    return imap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mailboxes", type=int, default=9900)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    taken: dict[str, dict[str, list[float]]] = {title: {} for title in COMMANDS}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        Path(directory).chmod(0o755)  # Dovecot has a user of its own
        clients: list[tuple[StoreServer, Imap]] = []
        for kind in (GatewayImap, DovecotMdbox):
            server = kind(Path(directory) / kind.name)
            stack.callback(server.stop)
            clients.append((server, fill(server, options.mailboxes)))
        for number in range(options.rounds + 1):
            for title, command in COMMANDS.items():
                for server, imap in clients:
                    before = server.account.cpu_s()
                    for _ in range(TIMES):
                        answer = imap.command(command)
                    settle(server)
                    us = 1e6 * (server.account.cpu_s() - before) / options.mailboxes / TIMES
                    if number:
                        taken[title].setdefault(server.name, []).append(us)
                    else:
                        print(f"{title}: {server.name}: {answer.octets:,} octets")
    for title, servers in taken.items():
        figures = {name: statistics.median(times) for name, times in servers.items()}
        ours, theirs = figures.values()
        cells = "  ".join(f"{name} {us:6.2f}" for name, us in figures.items())
        print(f"{title:14}{cells}   ours is {theirs / ours:.2f} times as fast")


if __name__ == "__main__":
    main()
