"""Mail that is large, long, deep or numerous: it arrives as it was, others are served meanwhile, memory stays bounded.

Standards RFC 5321 §4.5.3.1 (sizes), §6.3 (loops); RFC 9422; RFC 2046 §5.1
"""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from e2e.rig import (
    EVERYTHING,
    PLAIN,
    Gateway,
    Lab,
    Sender,
    dotted,
    route,
)
from e2e.web_hook import WebHook
from interop_peers import RunningGateway, listener
from interop_peers import route as table

CONTENT = b"Subject: x\r\n\r\nbody\r\n"
LINE = bytes(range(48, 120)) + b"\r\n"
MIB = 1 << 20


@pytest.fixture(scope="module")
def hundred_megabytes() -> bytes:
    return b"Subject: large\r\n\r\n" + LINE * (100 * MIB // len(LINE))


class Edge:
    """A gateway in a process of its own, whose memory can be looked at."""

    def __init__(self, directory: Path, *hops: tuple[str, str], **limits: Any) -> None:
        listeners = [listener(), listener("http")]
        self.gateway = RunningGateway(
            directory,
            {
                "limits": {"message_octets": 200 * MIB, **limits},
                "listen": listeners,
                "route": [table(url, domain, tls="off") for url, domain in hops],
            },
        )
        self.port, self.http_port = self.gateway.ports
        (self.worker,) = psutil.Process(self.gateway.process.pid).children()

    def memory(self) -> tuple[int, int]:
        """(resident now, at most so far), octets."""
        status = Path(f"/proc/{self.worker.pid}/status").read_text()
        now, most = (
            int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
            for name in ("VmRSS", "VmHWM")
        )
        return now, most

    def slow_turns(self) -> int:
        """How often the loop was more than a second late, by its own metric."""
        url = f"http://127.0.0.1:{self.http_port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as response:
            text = response.read().decode()
        found = re.findall(
            r'^gateway_loop_lag_seconds_bucket{le="([^"]+)"[^}]*} (\S+)$', text, re.MULTILINE
        )
        counts = {float(bound.replace("+Inf", "inf")): float(count) for bound, count in found}
        in_time = max(count for bound, count in counts.items() if bound <= 1.0)
        return int(counts[float("inf")] - in_time)

    def __enter__(self) -> Edge:
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.stop()
        self.gateway.kill()


@pytest.mark.parametrize("way", ["DATA", "BDAT"])
def test_a_hundred_megabytes_cost_a_bounded_buffer(
    lab: Lab, tmp_path: Path, hundred_megabytes: bytes, way: str
) -> None:
    """Received, kept and relayed piece by piece."""
    hop = lab.hop(EVERYTHING if way == "BDAT" else PLAIN)
    with Edge(tmp_path, (hop.url, "rcpt.test")) as edge:
        with Sender(edge.port) as sender:
            sender.submit(CONTENT)  # whatever the first message brings in
        hop.wait()
        before, _ = edge.memory()
        with Sender(edge.port) as sender:
            bdat = 10 * MIB if way == "BDAT" else 0
            assert sender.submit(hundred_megabytes, bdat=bdat).startswith("250")
        mail = hop.wait(2)[1]
        _, most = edge.memory()
        assert mail.bdat == (way == "BDAT")
        assert mail.body == hundred_megabytes
        print(f"{way}: {(most - before) / MIB:.1f} MiB above {before / MIB:.1f} MiB")
        assert most - before < 32 * MIB


def test_ten_large_messages_at_once_do_not_stall_others(lab: Lab, tmp_path: Path) -> None:
    """The worker's loop says how late its timers ran; a session beside them says how late NOOP was."""
    hop = lab.hop()
    content = b"Subject: large\r\n\r\n" + LINE * (20 * MIB // len(LINE))
    wire = dotted(content)
    replies: list[str] = []

    def send() -> None:
        with Sender(edge.port) as sender:
            sender.envelope("alice@sender.test", ["bob@rcpt.test"])
            sender.command("DATA")
            sender.sock.settimeout(60)
            sender.send(wire)
            replies.append(sender.reply()[-1])

    with Edge(tmp_path, (hop.url, "rcpt.test"), junk_commands=100_000) as edge:
        threads = [threading.Thread(target=send) for _ in range(10)]
        pauses = []
        with Sender(edge.port) as prober:
            for thread in threads:
                thread.start()
            while (len(hop.received) < 10 and any(t.is_alive() for t in threads)) or not pauses:
                begin = time.monotonic()
                assert prober.command("NOOP")[-1].startswith("250")
                pauses.append(time.monotonic() - begin)
                time.sleep(0.002)
            for thread in threads:
                thread.join(60)
        assert len(replies) == 10 and all(reply.startswith("250") for reply in replies)
        mails = hop.wait(10)
        assert all(mail.body == content for mail in mails)
        print(f"{len(pauses)} times NOOP, the slowest {max(pauses) * 1000:.1f} ms")
        assert edge.slow_turns() == 0


# -- many --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
def test_a_thousand_recipients(lab: Lab, lmtp: bool) -> None:
    """Each gets it once; the thousand-and-first is for the next transaction (RFC 5321 §4.5.3.1.10)."""
    hop = lab.hop(lmtp=lmtp)
    gateway = lab.gateway(route(hop.url, "rcpt.test", recipients_per_transaction=200))
    rcpts = [f"user-{number}@rcpt.test" for number in range(1000)]
    with Sender(gateway.port) as sender:
        sender.send(
            b"MAIL FROM:<alice@sender.test>\r\n"
            + b"".join(f"RCPT TO:<{rcpt}>\r\n".encode() for rcpt in [*rcpts, "late@rcpt.test"])
            + b"DATA\r\n"
        )
        codes = [sender.code() for _ in range(1003)]
        assert codes == [250] * 1001 + [452, 354]
        sender.send(CONTENT + b".\r\n")
        assert sender.code() == 250
    gateway.wait_empty()
    assert sorted(to for mail in hop.received for to in mail.to) == sorted(rcpts)
    assert max(len(mail.to) for mail in hop.received) <= 200
    event = "delivered" if lmtp else "relayed"
    assert len(gateway.events(event)) == 1000


def test_a_thousand_recipients_in_a_thousand_domains(lab: Lab) -> None:
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, ".rcpt.test"), route("discard:", "*"))
    rcpts = [f"x@{n}.rcpt.test" if n % 2 else f"x@{n}.other.test" for n in range(1000)]
    gateway.send(CONTENT, rcpts)
    gateway.wait_empty()
    assert sorted(to for mail in hop.received for to in mail.to) == sorted(rcpts[1::2])
    assert len(gateway.events("discarded")) == 500


def test_a_thousand_recipients_that_fail_make_one_report(lab: Lab) -> None:
    hop, back = lab.hop(replies={"RCPT": "550 5.1.1 nobody"}), lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    gateway.send(CONTENT, [f"user-{number}@rcpt.test" for number in range(1000)])
    report = back.wait()[0].content
    gateway.wait_empty()
    assert len(back.received) == 1
    assert report.count(b"Final-Recipient:") == 1000


# -- long --------------------------------------------------------------------------------------------------------------

SHAPES = {
    "short lines": CONTENT + b"a\r\n" * 100_000,
    "empty lines": CONTENT + b"\r\n" * 100_000,
    "dots": CONTENT + b".\r\n" * 100_000,
    "one line": CONTENT + b"x" * 2_000_000 + b"\r\n",
    "header of one field": b"X-Long: " + b"abc\r\n " * 170_000 + b"\r\n\r\nbody\r\n",
    "header of many fields": b"X-Field: value\r\n" * 70_000
    + b"Message-ID: <late@x>\r\n\r\nbody\r\n",
    "header of one line": b"X-Long: " + b"y" * 1_000_000 + b"\r\n\r\nbody\r\n",
    "no header end": b"just text\r\n" * 100_000,
    "no line end": b"z" * 1_000_000,
}


@pytest.mark.parametrize("name", SHAPES)
def test_odd_shapes_arrive_as_they_were(lab: Lab, name: str) -> None:
    content = SHAPES[name]
    hops = [lab.hop(), lab.hop(PLAIN), lab.hop(lmtp=True)]
    gateway = lab.gateway(*(route(hop.url, f"r{n}.test") for n, hop in enumerate(hops)))
    rcpts = [f"x@r{n}.test" for n in range(len(hops))]
    whole = content if content.endswith(b"\r\n") else content + b"\r\n"
    for number, bdat in enumerate((0, 65_537), 1):
        gateway.send(content, rcpts, bdat=bdat)
        for hop in hops:
            mail = hop.wait(number)[number - 1]
            assert mail.body == (content if bdat and mail.bdat else whole)
    gateway.wait_empty()


@pytest.mark.parametrize("name", ["header of one field", "header of many fields", "no header end"])
def test_reports_about_odd_shapes_are_small(lab: Lab, name: str) -> None:
    """The header comes back up to a bound; the report can be read."""
    hop, back = lab.hop(replies={"RCPT": "550 5.1.1 nobody"}), lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    gateway.send(SHAPES[name])
    report = back.wait()[0]
    assert len(report.content) < 200_000
    assert not report.message.defects
    assert report.message.get_content_type() == "multipart/report"
    assert max(map(len, report.content.split(b"\r\n"))) <= 998


# -- deep --------------------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    head = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (level, level)
        for level in range(depth)
    )
    return b"Subject: deep\r\nMIME-Version: 1.0\r\n" + head + b"\r\nthe leaf\r\n"


def enclosed(depth: int) -> bytes:
    return b"Content-Type: message/rfc822\r\n\r\n" * depth + b"\r\nthe leaf\r\n"


def wide(parts: int) -> bytes:
    return (
        b'Subject: wide\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n'
        + b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n" * parts
        + b"--b--\r\n"
    )


def words(count: int) -> bytes:
    return b"Subject: " + b"=?utf-8?q?=C3?=\r\n =?utf-8?b?vA==?=\r\n " * count + b"end\r\n\r\nx\r\n"


def charsets(count: int) -> bytes:
    parts = b"".join(
        b"--b\r\nContent-Type: text/plain; charset=made-up-%d\r\n\r\n\xff\r\n" % n
        for n in range(count)
    )
    return b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + parts + b"--b--\r\n"


def continuations(count: int) -> bytes:
    pieces = b"".join(b";\r\n filename*%d*=%%41" % n for n in range(count))
    return b"Content-Disposition: attachment" + pieces + b"\r\n\r\nx\r\n"


HARD = {
    "deep": nested(10_000),
    "deep with one boundary": nested(10_000).replace(b"b1", b"b"),
    "enclosed": enclosed(10_000),
    "wide": wide(10_000),
    "encoded words": words(10_000),
    "charsets": charsets(5_000),
    "continued parameters": continuations(5_000),
    "unclosed quotes": b'Content-Type: text/plain; a="' + b'\\"' * 100_000 + b"\r\n\r\nx\r\n",
    "semicolons": b"Content-Type: text/plain" + b"; " * 200_000 + b"\r\n\r\nx\r\n",
    "equals": b"Content-Type: text/plain; " + b"a=" * 100_000 + b"\r\n\r\nx\r\n",
    "question marks": b"Subject: " + b"=?" * 100_000 + b"\r\n\r\nx\r\n",
    "almost words": b"Subject: " + b"=?a?q?" * 50_000 + b"\r\n\r\nx\r\n",
    "blanks between words": b"Subject: =?a?q?b?=" + b" " * 300_000 + b"x\r\n\r\nx\r\n",
}


@pytest.mark.parametrize("name", HARD)
def test_hard_mime_becomes_json_all_the_same(lab: Lab, hook: WebHook, name: str) -> None:
    """In time and memory that grow with its size, and beside others (CPU seconds of the parser are no wall clock)."""
    gateway = lab.gateway(
        route(hook.url, "rcpt.test", http_format="json"), route("discard:", "free.test")
    )
    before = psutil.Process().cpu_times().user
    gateway.send(HARD[name])
    gateway.send(CONTENT, "x@free.test")
    gateway.wait_for("discarded")
    gateway.wait_for("delivered")
    spent = psutil.Process().cpu_times().user - before
    print(f"{name}: {spent:.2f} s of CPU")
    assert spent < 5.0
    _, body = hook.wait()[0]
    assert len(body) < 20 * len(HARD[name]) + 10_000
    gateway.wait_empty()


@pytest.mark.parametrize("name", ["deep", "enclosed", "wide", "charsets"])
def test_hard_mime_is_converted_or_bounced(lab: Lab, name: str) -> None:
    """8 → 7 bit: what the scanner cannot see whole is not touched."""
    hop, back = lab.hop(PLAIN), lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    gateway.send(HARD[name].replace(b"leaf", b"l\xe9af").replace(b"\r\nx\r\n", b"\r\n\xe9\r\n"))
    gateway.wait_empty()
    assert len(hop.received) + len(gateway.events("bounced")) == 1
    for mail in hop.received:
        assert mail.content.isascii()


# -- loops -------------------------------------------------------------------------------------------------------------


def test_too_many_received_fields_are_a_loop(lab: Lab) -> None:
    """RFC 5321 §6.3: at least 100 are let through."""
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    trace = b"Received: from a by b; Sat, 21 Nov 2026 12:00:00 +0000\r\n"
    folded = b"received:\r\n\tfrom a by b;\r\n\tSat, 21 Nov 2026 12:00:00 +0000\r\n"
    with Sender(gateway.port) as sender:
        for field in (trace, folded):
            assert sender.submit(field * 100 + CONTENT).startswith("250")
            assert sender.submit(field * 101 + CONTENT).startswith("554 5.4.6")
            assert sender.submit(field * 101 + CONTENT, bdat=1000).startswith("554 5.4.6")
        assert sender.submit(CONTENT + trace * 200).startswith("250")  # in the body they are text
    hop.wait(3)
    gateway.wait_empty()


def test_a_real_loop_ends(lab: Lab) -> None:
    """A gateway that routes to itself: a hundred rounds, then one report to the sender."""
    back = lab.hop()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gateway: Gateway = lab.gateway(
        route(f"smtp://127.0.0.1:{port}", "rcpt.test"),
        route(back.url, "sender.test"),
        listen=f'[[listen]]\nservice = "smtp"\naddress = "127.0.0.1:{port}"\n',
    )
    with Sender(port) as sender:
        assert sender.submit(CONTENT).startswith("250")
    report = back.wait()[0]
    assert b"Status: 5.4.6" in report.content
    gateway.wait_empty()
    assert len(back.received) == 1
    assert len(gateway.events("relayed")) in range(100, 103)


def test_a_next_hop_that_takes_its_time(lab: Lab) -> None:
    """Its own lane waits; mail beside it does not."""
    stop = threading.Event()
    slow = lab.hop(replies={"RCPT": lambda session, argument: stop.wait(20) and None})
    quick = lab.hop()
    gateway = lab.gateway(
        route(slow.url, "slow.test", max_connections=1), route(quick.url, "quick.test")
    )
    gateway.send(CONTENT + LINE * 50_000, "x@slow.test")
    for number in range(1, 21):
        gateway.send(CONTENT, "x@quick.test")
        quick.wait(number)
    assert not slow.received
    stop.set()
    assert slow.wait()[0].body == CONTENT + LINE * 50_000
    gateway.wait_empty()
