"""Strict and lenient receivers behind the gateway: one message in is one message out (CVE-2023-51764)."""

from __future__ import annotations

import itertools
import socket

import pytest
from interop_peers import listener, route

RULES = ("strict", "lenient-lf", "lenient-any")
BAIT = b"MAIL FROM:<evil@evil.test>\r\nRCPT TO:<smuggled@strict.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
MIXES = [
    b"".join(mix)
    for length in (1, 2)
    for mix in itertools.product([b"\r", b"\n", b"\0"], repeat=length)
]
ENDS = [
    before + b"." + after for before in MIXES for after in MIXES if before + after != b"\r\n\r\n"
]


class Dialog:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._socket.makefile("rb")
        self.reply()

    def reply(self) -> bytes:
        while (line := self._file.readline())[3:4] == b"-":
            pass
        return line

    def say(self, *commands: bytes) -> list[bytes]:
        """The replies to pipelined commands."""
        self._socket.sendall(b"".join(commands))
        return [self.reply() for _ in commands]

    def send(self, octets: bytes) -> bytes:
        self._socket.sendall(octets)
        return self.reply()


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_every_end_of_data_there_is(gateway_factory, sink_factory, verb):
    """By BDAT the octets go on as chunks, or repaired as DATA where a receiver has no CHUNKING."""
    sinks = {rule: sink_factory(eod=rule, without=("CHUNKING",)) for rule in RULES}
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sinks[rule].port}", f"{rule}.test") for rule in RULES],
        [listener()],
    )
    dialog = Dialog(gateway.port)
    dialog.send(b"EHLO client.example.test\r\n")
    for number, end in enumerate(ENDS):
        content = b"Message-ID: <%d@sender.test>\r\n\r\nfirst%b%b\r\n" % (number, end, BAIT)
        envelope = [
            b"MAIL FROM:<a@sender.test>\r\n",
            *(b"RCPT TO:<b@%b.test>\r\n" % rule.encode() for rule in RULES),
        ]
        assert all(reply.startswith(b"250") for reply in dialog.say(*envelope)), end
        if verb == "DATA":
            assert dialog.send(b"DATA\r\n").startswith(b"354")
            reply = dialog.send(content + b".\r\n")
        else:
            reply = dialog.send(b"BDAT %d LAST\r\n%b" % (len(content), content))
        assert reply.startswith(b"250"), (end, reply)
    for rule, sink in sinks.items():
        receipts = sink.wait(len(ENDS), timeout_s=60.0)
        assert len(receipts) == len(ENDS), rule
        assert {path for receipt in receipts for path in receipt.rcpts} == {f"b@{rule}.test"}
        assert all(receipt.mail.startswith("<a@sender.test>") for receipt in receipts)
        assert all(b"Subject: smuggled" in receipt.content for receipt in receipts)
        numbers = {
            receipt.content.partition(b"Message-ID: <")[2].partition(b"@")[0]
            for receipt in receipts
        }
        assert len(numbers) == len(ENDS)


def test_reject_refuses_each_of_them(gateway_factory, sink):
    """bare_newline = "reject": 5xx after the real end of data, and the dialog stays in step."""
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")],
        [listener(bare_newline="reject")],
        limits={"errors": 10000},
    )
    for end in ENDS[::7]:
        dialog = Dialog(gateway.port)
        dialog.send(b"EHLO client.example.test\r\n")
        dialog.say(b"MAIL FROM:<a@sender.test>\r\n", b"RCPT TO:<b@strict.test>\r\n", b"DATA\r\n")
        reply = dialog.send(b"\r\nfirst%b%b\r\n.\r\n" % (end, BAIT))
        assert reply.startswith(b"554 5.6.0"), (end, reply)
        assert dialog.send(b"NOOP\r\n").startswith(b"250")
