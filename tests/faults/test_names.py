"""Name servers that are silent, slow or broken; next hops that are names.

Standards RFC 1035 §4.1.1 (RCODE), RFC 8767; RFC 5321 §5.1
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.rig import Sender
from fault_world import CONTENT, World
from interop_peers import RunningGateway, RunningSink, listener, need, need_root, route, wait_for

SERVFAIL, NXDOMAIN = 2, 3  # RFC 1035 §4.1.1
A = 1


class NameServer:
    """Says that every name is 127.0.0.1, unless `how` knows better: "silent", an RCODE, or what it waits for."""

    def __init__(self) -> None:
        self.how: dict[str, str | int | threading.Event] = {}  # by first label
        self.asked: list[str] = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.address = f"127.77.{random.randrange(256)}.{random.randrange(1, 255)}"
        self.socket.bind((self.address, 53))
        self.socket.settimeout(0.1)
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self.socket.close()

    def _serve(self) -> None:
        while not self._over:
            try:
                query, client = self.socket.recvfrom(512)
            except TimeoutError:
                continue
            labels, at = [], 12
            while length := query[at]:
                labels.append(query[at + 1 : at + 1 + length].decode())
                at += 1 + length
            self.asked.append(".".join(labels))
            how = self.how.get(labels[0], 0)
            if how != "silent":
                answer = self._answer(query, at, how if isinstance(how, int) else 0)
                threading.Thread(target=self._send, args=(answer, client, how), daemon=True).start()

    def _send(self, answer: bytes, client: tuple[str, int], how: str | int | threading.Event) -> None:
        if isinstance(how, threading.Event):
            how.wait()
        with contextlib.suppress(OSError):  # closed meanwhile
            self.socket.sendto(answer, client)

    @staticmethod
    def _answer(query: bytes, end_of_name: int, rcode: int) -> bytes:
        (kind,) = struct.unpack_from("!H", query, end_of_name + 1)
        found = rcode == 0 and kind == A
        header = query[:2] + struct.pack("!HHHHH", 0x8180 | rcode, 1, found, 0, 0)
        record = struct.pack("!HHHIH4s", 0xC00C, A, 1, 0, 4, b"\x7f\0\0\x01") if found else b""
        return header + query[12 : end_of_name + 5] + record


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """The only name server of gateways that are started from now on."""
    need_root()
    server = NameServer()
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {server.address}\n")
    python = tmp_path / "python"
    inner = f"mount --bind {shlex.quote(str(resolv))} /etc/resolv.conf && exec {sys.executable} \"$@\""
    python.write_text(f"#!/bin/sh\nexec {need('unshare')} -m sh -c {shlex.quote(inner)} python \"$@\"\n")
    python.chmod(0o755)
    if os.system(f"{need('unshare')} -m true") != 0:
        pytest.skip("no mount namespaces here")
    monkeypatch.setattr(sys, "executable", str(python))
    yield server
    server.close()


@pytest.fixture
def serve(names: NameServer, world: World, tmp_path: Path) -> Iterator[tuple[RunningGateway, RunningSink]]:
    """Mail for NAME.rcpt.test goes to the host NAME.hop.test, for seven names; all are one sink."""
    sink = world.sink()
    config = {
        "listen": [listener()],
        "route": [
            route(f"smtp://{name}.hop.test:{sink.port}", f"{name}.rcpt.test")
            for name in ("good", "other", "bad0", "bad1", "bad2", "bad3", "bad4")
        ],
        "queue": {"retry_s": [1.0], "connect_retry_s": [0.5]},
        "dns": {"timeout_s": 1.0},
    }
    gateway = RunningGateway(tmp_path, config)
    yield gateway, sink
    gateway.kill()


BAD = [f"bad{number}" for number in range(5)]


@pytest.mark.parametrize("how", ["silent", SERVFAIL, NXDOMAIN], ids=["silent", "SERVFAIL", "NXDOMAIN"])
def test_names_fail(
    names: NameServer, serve: tuple[RunningGateway, RunningSink], how: str | int
) -> None:
    """The name server says nothing, SERVFAIL or NXDOMAIN about the names of some next hops.

    Client   250, the mail is ours
    Queue    these lanes are down (after dns.timeout_s, 5 s, if it is silent) and ask again by queue.connect_retry_s;
             a name that does not exist is the operator's mistake, so the mail waits, too; other names do not wait
    Shown    lane_down with the resolver's words; gateway_lane_up 0; queue list
    Arrives  when the name has an address; other mail at once.  A name that had one before keeps it for dns.stale_s
    """
    gateway, sink = serve
    names.how = dict.fromkeys(BAD, how)
    with Sender(gateway.port) as sender:
        for name in BAD:
            sender.submit(CONTENT, f"bob@{name}.rcpt.test")
        wait_for(lambda: len(names.asked) >= 5, "the questions")
        for name in ("good", "other"):
            sender.submit(CONTENT, f"bob@{name}.rcpt.test")
    sink.wait(2)
    assert {receipt.rcpts[0] for receipt in sink.receipts} == {"bob@good.rcpt.test", "bob@other.rcpt.test"}
    wait_for(lambda: len({line["lane"] for line in gateway.log("lane_down")}) == 5, "five lanes to be down")
    words = {"silent": "no answer in 1 s", SERVFAIL: "name resolution", NXDOMAIN: "not known"}[how]
    assert words in gateway.log("lane_down")[0]["reply"]
    names.how = {}
    sink.wait(7)
    assert not gateway.log("bounced")


def test_slow_name_server(names: NameServer, serve: tuple[RunningGateway, RunningSink]) -> None:
    """The name server takes longer for an answer than we wait for it.

    Client   250, the mail is ours
    Queue    the lane is down; the late answer is kept, and used by the next attempt
    Shown    lane_down "no answer in"
    Arrives  by queue.connect_retry_s after the answer
    """
    gateway, sink = serve
    names.how = {"good": (late := threading.Event())}
    with Sender(gateway.port) as sender:
        sender.submit(CONTENT, "bob@good.rcpt.test")
    wait_for(lambda: gateway.log("lane_down"), "the lane to be down")
    assert "no answer in 1 s" in gateway.log("lane_down")[0]["reply"]
    assert not sink.receipts
    late.set()
    sink.wait()
