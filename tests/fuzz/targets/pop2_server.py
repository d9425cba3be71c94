"""POP2's state machine: octets as many as announced, the first error is the last word, however it is cut."""

from __future__ import annotations

import re

from gateway.protocol import pop2
from tests.fuzz.octets import WHOLE, cut, options

MAX_OCTETS = 600
RUNS = 2000
WORDS = (
    b"HELO a b\r\n",
    b"FOLD x\r\n",
    b"READ 2\r\n",
    b"RETR\r\n",
    b"ACKS\r\n",
    b"ACKD\r\n",
    b"NACK\r\n",
    b"QUIT\r\n",
)
LINE = re.compile(rb"(\+|-|#\d+|=\d+) [^\r\n]*\r\n")
MESSAGES = (b"+ not an answer\r\n", b"", b"=5\r\n- x\r\n")


def seeds() -> list[bytes]:
    return [
        bytes([how])
        + b"HELO a b\r\nREAD\r\nRETR\r\nACKD\r\nREAD 3\r\nRETR\r\nNACK\r\nFOLD x\r\nREAD\r\nQUIT\r\n"
        for how in (0, 1, 7)
    ]


class Server:
    def __init__(self) -> None:
        self.machine = pop2.Pop2ServerMachine("pop.test")
        self.deleted: list[list[int]] = []
        self.pieces: list[bytes] = []
        self.contents: set[int] = set()  # which of them are messages
        self.machine.greet()
        self.collect()

    def collect(self) -> None:
        self.pieces += map(bytes, self.machine.data_to_send())

    def feed(self, octets: bytes) -> None:
        machine = self.machine
        machine.receive_data(octets)
        while not machine.closing and (event := machine.next_event()) is not None:
            kind, a, _ = event
            if kind == pop2.RETRIEVE:
                assert machine.authenticated
                self.collect()
                self.contents.add(len(self.pieces))
                machine.content([MESSAGES[int(a)]])  # type: ignore[call-overload]
                machine.end_content()
            elif kind in (pop2.LOGIN, pop2.FOLD):
                self.deleted.append(sorted(machine.deleted))
                machine.opened([len(m) for m in MESSAGES])
            elif kind == pop2.LEAVE:
                self.deleted.append(sorted(machine.deleted))
                machine.left()
        self.collect()
        assert machine.closing or machine.unread_octets <= machine.line_octets


def check(data: bytes) -> None:
    (how,), sent = options(data, 1)
    server = Server()
    for piece in cut(sent, how):
        server.feed(piece)
    size = -1
    for index, piece in enumerate(server.pieces):
        if index in server.contents:  # RFC 937: it comes behind the count of its octets
            assert len(piece) == size > 0
            continue
        assert LINE.fullmatch(piece), piece
        size = int(piece[1:].split()[0]) if piece.startswith(b"=") else -1
        assert not piece.startswith(b"- ") or index == len(server.pieces) - 1
    if how != WHOLE:
        whole = Server()
        whole.feed(sent)
        assert (whole.pieces, whole.deleted) == (server.pieces, server.deleted)
