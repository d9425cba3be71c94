"""The client's state machine: accepted is only what the server accepted, message by message."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway._native import ReplyParser, stuff
from gateway.protocol import smtp_client as client
from gateway.protocol.smtp_client import SmtpClientMachine, Transaction
from tests.fuzz.octets import cut, options

CODE = ("gateway.protocol.smtp_client",)
MAX_OCTETS = 1000
RUNS = 1_500
WORDS = (
    b"250 ok\r\n",
    b"250-x\r\n",
    b"250 PIPELINING\r\n",
    b"250-CHUNKING\r\n",
    b"250-PIPELINING\r\n250 CHUNKING\r\n",
    b"250 STARTTLS\r\n",
    b"250-LIMITS MAILMAX=2\r\n",
    b"250-XCLIENT ADDR\r\n",
    b"354 go\r\n",
    b"220 hi\r\n",
    b"421 bye\r\n",
    b"550 5.1.1 no\r\n",
    b"452 later\r\n",
    b"221 bye\r\n",
)

LMTP, CHUNKED, STREAMED, XCLIENT, DRAINED = 1, 2, 4, 8, 16
TLS_MODES = ("off", "opportunistic", "required")
TRANSACTIONS = 4
CONTENT = b"Subject: x\r\n\r\n.y\r\n"
STUFFED = b"Subject: x\r\n\r\n..y\r\n.\r\n"
COMMAND = re.compile(
    rb"(MAIL|RCPT|DATA|BDAT|RSET|QUIT|EHLO|LHLO|HELO|STARTTLS|XCLIENT)\b([^\r\n]*)\r\n"
)
MAILBOX = re.compile(rb"<[a-z](?:(\d+)\.)?(\d+)@")


def seeds() -> list[bytes]:
    opening = b"220 hi\r\n250-x\r\n%s250 DSN\r\n"
    good = b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n250 ok\r\n250 ok\r\n"
    found = []
    for offers in (b"", b"250-PIPELINING\r\n", b"250-PIPELINING\r\n250-CHUNKING\r\n"):
        for flags in (0, LMTP, CHUNKED, CHUNKED | LMTP, STREAMED, XCLIENT, DRAINED):
            found.append(bytes([flags, 0, 1]) + opening % offers + good * 4)
            found.append(bytes([flags, 2, 50]) + opening % offers + b"250 ok\r\n" * 20)
    return [*found, b"\0\1\0" + opening % b"250-STARTTLS\r\n" + b"220 go\r\n250 x\r\n" + good]


class Client:
    """Sends TRANSACTIONS messages, and writes down what crosses the wire in both directions."""

    def __init__(self, flags: int, mode: int) -> None:
        self.flags = flags
        self.machine = SmtpClientMachine(
            "me.test",
            lmtp=bool(flags & LMTP),
            tls_mode=TLS_MODES[mode % 3],
            depth=1 + mode // 3 % 4,
            blind_octets=0 if flags & DRAINED else 1000,
            transactions_max=mode // 12 % 4,
        )
        self.begun: list[Transaction] = []
        self.ended: list[Transaction] = []
        self.returned: list[Transaction] = []
        self.ready = self.failed = self.closed = False
        self.sent = b""

    def feed(self, octets: bytes) -> None:
        for event in self.machine.receive_data(octets):
            self.on_event(*event)
        self.go_on()

    def on_event(self, kind: int, value: Transaction | None) -> None:
        assert not self.closed, "an event after CLOSE"
        if kind == client.READY:
            assert not self.failed
            self.ready = True
        elif kind == client.START_TLS:
            self.collect()
            self.machine.tls_started()
        elif kind == client.CONTENT:
            assert value is not None
            self.collect()
            self.sent += b"".join(bytes(piece) for piece in content_of(value))
            self.machine.content_sent(value)
        elif kind == client.FAILED:
            assert not self.failed
            self.failed = True
        elif kind == client.CLOSE:
            self.closed = True
        elif kind in (client.DONE, client.RETURNED):
            assert value is not None and value in self.begun
            assert value not in self.ended and value not in self.returned, "two answers"
            (self.ended if kind == client.DONE else self.returned).append(value)

    def go_on(self) -> None:
        self.collect()
        machine = self.machine
        while machine.can_begin and len(self.begun) < TRANSACTIONS:
            assert self.ready and not self.closed
            transaction = self.transaction(len(self.begun))
            self.begun.append(transaction)
            machine.begin(transaction)
            self.collect()
        if self.flags & DRAINED and len(self.begun) == TRANSACTIONS and not self.closed:
            machine.drain()
            self.collect()

    def transaction(self, number: int) -> Transaction:
        bdat = bool(self.flags & CHUNKED and self.machine.capabilities.chunking)
        transaction = Transaction(
            number,
            b"MAIL FROM:<m%d@a>\r\n" % number,
            [b"RCPT TO:<r%d.%d@b>\r\n" % (index, number) for index in range(1 + number % 3)],
            None,
            len(CONTENT),
            bdat=bdat,
            xclient=b"XCLIENT ADDR=192.0.2.1\r\n" if self.flags & XCLIENT and number % 2 else b"",
        )
        if not self.flags & STREAMED:
            transaction.content = content_of(transaction)
        return transaction

    def collect(self) -> None:
        out = b"".join(bytes(piece) for piece in self.machine.data_to_send())
        assert not (out and self.closed), f"sent after CLOSE: {out!r}"
        self.sent += out


def content_of(transaction: Transaction) -> list[bytes | memoryview]:
    return [CONTENT] if transaction.bdat else stuff([CONTENT])


def check(data: bytes) -> None:
    (flags, mode, how), received = options(data, 3)
    peer = Client(flags, mode)
    for piece in cut(received, how):
        if peer.closed:
            break
        peer.feed(piece)
    for event in peer.machine.abandon("4.4.2", "connection lost"):
        peer.on_event(*event)
    assert peer.closed and peer.machine.is_closed and not peer.machine.in_flight
    assert len(peer.ended) + len(peer.returned) == len(peer.begun), "nobody answers for a message"

    said = list(verdicts(peer.sent, replies_in(received), lmtp=bool(flags & LMTP)))
    for transaction in peer.returned:
        assert not any(transaction.verdicts)
    for transaction in peer.ended:
        for index, verdict in enumerate(transaction.verdicts):
            assert verdict is not None
            kind, code, enhanced, _ = verdict
            assert kind != client.ACCEPTED or 200 <= code <= 299
            assert kind != client.PERMANENT or 500 <= code <= 599
            assert (
                enhanced[:1]
                == "245"[(client.ACCEPTED, client.TRANSIENT, client.PERMANENT).index(kind)]
            )
            accepted = (transaction.tag, index) in said
            assert (kind == client.ACCEPTED) <= accepted, f"{transaction.tag}.{index}: {verdict}"


def replies_in(received: bytes) -> list[int]:
    """The codes of all replies up to garbage; the parser has a target of its own."""
    parser = ReplyParser()
    try:
        return [code for code, _, _ in parser.feed(received)]
    except ValueError:
        return []


def verdicts(sent: bytes, codes: list[int], *, lmtp: bool) -> Iterator[tuple[int, int]]:
    """(message, recipient) for each that the server took, by counting: the nth reply is for the nth command."""
    left = iter(codes)
    next(left, 0)  # the greeting
    at, mail_accepted, number = 0, False, -1
    accepted: list[int] = []
    while at < len(sent):
        command = COMMAND.match(sent, at)
        assert command, f"no command: {sent[at : at + 60]!r}"
        at = command.end()
        verb, argument = command[1], command[2]
        if verb == b"BDAT":
            at += int(argument.split()[0])
            code, content_follows = 354, True
        else:
            code = next(left, 0)
            if code == 421:  # RFC 5321 §3.8: what it says after that is not for us
                return
            content_follows = verb == b"DATA" and 300 <= code <= 399
        if verb == b"XCLIENT" and code == 220:
            continue
        if verb in (b"MAIL", b"RCPT"):
            mailbox = MAILBOX.search(argument)
            assert mailbox
        if verb == b"MAIL":
            mail_accepted, number, accepted = 200 <= code <= 299, int(mailbox[2]), []
        elif verb == b"RCPT":
            assert int(mailbox[2]) == number, "RCPT in another transaction"
            if mail_accepted and 200 <= code <= 299:
                accepted.append(int(mailbox[1]))
        elif content_follows:
            if verb == b"DATA" and at < len(sent):
                end = at + 3 if sent.startswith(b".\r\n", at) else sent.find(b"\r\n.\r\n", at) + 5
                assert sent[at:end] in (b".\r\n", STUFFED), "not what was to be sent"
                at = end
            finals = [next(left, 0) for _ in (accepted if lmtp and accepted else [0])]
            for index, recipient in enumerate(accepted):
                if 200 <= finals[index if lmtp else 0] <= 299:
                    yield number, recipient
