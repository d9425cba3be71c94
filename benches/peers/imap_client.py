"""The IMAP client of the comparison: as little of one as measuring bears.

Owns      Imap (one connection), login_cycles(), Answer
Errors    RuntimeError for anything but OK
Bugs      finds the end of an answer by its tag at the beginning of the last line that came: no mail has such
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import msgspec

from benches.peers.stores import PASSWORD, user

RECEIVE_OCTETS = 1 << 20
KEPT_OCTETS = 8192  # of the end of an answer: more than a tagged line has, capabilities and all


class Answer(msgspec.Struct):
    octets: int  # all that came
    parts: list[bytes]  # empty unless they were asked for

    @property
    def data(self) -> bytes:
        return b"".join(self.parts)


class Imap:
    """One connection, logged in unless user is empty."""

    def __init__(self, port: int, user: str = "", *, timeout_s: float = 300) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._number = 0
        self.greeting = self.line()
        if user:
            self.command(f"LOGIN {user} {PASSWORD}")

    def line(self) -> bytes:
        """The next, where nothing else comes behind it."""
        data = b""
        while not data.endswith(b"\r\n"):
            more = self.sock.recv(4096)
            if not more:
                raise RuntimeError(f"IMAP: closed after {data!r}")
            data += more
        return data

    def tag(self) -> bytes:
        self._number += 1
        return b"zq%dqz" % self._number

    def command(self, text: str | bytes, *, keep: bool = False) -> Answer:
        """One command line, to its OK."""
        tag = self.tag()
        self.sock.sendall(tag + b" " + (text.encode() if isinstance(text, str) else text) + b"\r\n")
        return self.answer(tag, keep=keep)

    def answer(self, tag: bytes, *, keep: bool = False) -> Answer:
        octets, parts, tail = 0, [], b""
        receive = self.sock.recv
        while True:
            data = receive(RECEIVE_OCTETS)
            if not data:
                raise RuntimeError(f"IMAP: closed after {tail!r}")
            octets += len(data)
            if keep:
                parts.append(data)
            tail = data[-KEPT_OCTETS:] if len(data) >= KEPT_OCTETS else (tail + data)[-KEPT_OCTETS:]
            if tail.endswith(b"\r\n"):
                last = tail[tail.rfind(b"\r\n", 0, -2) + 1 :].lstrip(b"\n")
                if last.startswith(tag + b" "):
                    if not last.startswith(tag + b" OK"):
                        raise RuntimeError(f"IMAP: {last.decode(errors='replace').strip()}")
                    return Answer(octets, parts)

    def append(self, mailbox: str, messages: Sequence[bytes]) -> None:
        """One command; several messages by MULTIAPPEND (RFC 3502), literals unannounced (RFC 7888)."""
        tag = self.tag()
        parts = [tag + b" APPEND " + mailbox.encode()]
        for message in messages:
            parts += [b" {%d+}\r\n" % len(message), message]
        parts.append(b"\r\n")
        self.sock.sendall(b"".join(parts))
        self.answer(tag)

    def logout(self) -> None:
        self.command("LOGOUT")
        self.sock.close()


def login_cycles(port: int, cycles: int, at_once: int, mailbox_users: int) -> None:
    """LOGIN, SELECT INBOX, LOGOUT on a new connection each; so many connections in step."""
    for start in range(0, cycles, at_once):
        clients = [Imap(port) for _ in range(at_once)]
        for text in ("LOGIN {} " + PASSWORD, "SELECT INBOX", "LOGOUT"):
            tags = []
            for number, client in enumerate(clients, start):
                tags.append(client.tag())
                line = text.format(user(1 + number % mailbox_users))
                client.sock.sendall(tags[-1] + b" " + line.encode() + b"\r\n")
            for client, tag in zip(clients, tags, strict=True):
                client.answer(tag)
        for client in clients:
            client.sock.close()
