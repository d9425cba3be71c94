"""MIME scan, transfer encodings, downgrade and reports, beside what else does the same.

Both sides of a ratio run in turns (A B A B …) over the same octets in one process; the best round of each counts.
The comparison for base64 and quoted-printable is the reason why gateway._native has them at all: at least three
times binascii.  Decoding quoted-printable is left to binascii: a kernel was 2.5 to 3.5 times as fast.

    Files     real mail in the cache of corpus.py
    Errors    skips what needs the corpus when it cannot be fetched
"""

from __future__ import annotations

import binascii
import time
from collections.abc import Callable, Sequence
from email import message_from_bytes
from functools import lru_cache
from typing import Any

import pytest
from corpus import CorpusMissing, fetch

from gateway._native import (
    ENCODING_BASE64,
    decode_base64,
    encode_base64,
    encode_quoted_printable,
    find_field,
    iter_fields,
    scan_mime,
)
from gateway.mail.downgrade import to_7bit
from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.header import ReceivedStamp
from gateway.mail.report import FAILURE, ReportRecipient, build_report
from gateway.mail.structure import parsed

NOW = 1_700_000_000_000_000_000

Function = Callable[[bytes], object]


@lru_cache(maxsize=1)
def corpus() -> list[bytes]:
    try:
        return [path.read_bytes() for path in fetch()]
    except CorpusMissing as reason:
        pytest.skip(str(reason))


@lru_cache(maxsize=1)
def bodies() -> dict[str, list[bytes]]:
    """The bodies of the corpus by what they are good for."""
    found: dict[str, list[bytes]] = {"base64": [], "text": []}
    for content in corpus():
        for part in scan_mime(content):
            body = content[part.body_start : part.body_end]
            if part.encoding == ENCODING_BASE64:
                found["base64"].append(body)
            elif part.media_type.startswith(b"text/"):
                found["text"].append(body)
    return found


def forgiving(function: Function) -> Function:
    """function, with the errors that damaged mail causes taken as an answer."""

    def call(octets: bytes) -> object:
        try:
            return function(octets)
        except Exception as error:
            return error

    return call


def compare(benchmark: Any, items: Sequence[bytes], ours: Function, **others: Function) -> None:
    """Benches ours over all items; extra_info has each other's time and ratio, measured in turns."""

    def all_of(function: Function) -> Callable[[], None]:
        def run() -> None:
            for item in items:
                function(item)

        return run

    octets = sum(map(len, items))
    if not benchmark.disabled:
        runs = {"ours": all_of(ours)} | {name: all_of(other) for name, other in others.items()}
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(5):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
        benchmark.extra_info["octets"] = octets
        benchmark.extra_info["octets_per_s"] = octets / best["ours"]
        for name in others:
            benchmark.extra_info[f"{name}_octets_per_s"] = octets / best[name]
            benchmark.extra_info[f"ratio_{name}"] = best[name] / best["ours"]
    benchmark.pedantic(all_of(ours), rounds=3, warmup_rounds=1)


def test_scan_real_mail(benchmark: Any) -> None:
    """Structure and offsets of every part.  The others decode bodies too: they have no other way to ask."""
    fast_mail_parser = pytest.importorskip("fast_mail_parser")
    compare(
        benchmark,
        corpus(),
        scan_mime,
        email=message_from_bytes,
        fast_mail_parser=forgiving(fast_mail_parser.parse_email),
    )


def test_fields_of_real_mail(benchmark: Any) -> None:
    compare(benchmark, corpus(), iter_fields)


def test_find_message_id_in_real_mail(benchmark: Any) -> None:
    compare(benchmark, corpus(), lambda content: find_field(content, b"Message-ID"))


def test_base64_encode(benchmark: Any) -> None:
    compare(benchmark, bodies()["text"], encode_base64, binascii=binascii.b2a_base64)


def test_base64_decode(benchmark: Any) -> None:
    items = bodies()["base64"]
    compare(benchmark, items, forgiving(decode_base64), binascii=forgiving(binascii.a2b_base64))


def test_quoted_printable_encode(benchmark: Any) -> None:
    def ours(octets: bytes) -> bytes:
        return encode_quoted_printable(octets, lf=True)  # as the corpus ends its lines

    compare(benchmark, bodies()["text"], ours, binascii=binascii.b2a_qp)


def test_parsed_for_webhooks(benchmark: Any) -> None:
    compare(benchmark, corpus()[::10], parsed)


def test_to_7bit(benchmark: Any) -> None:
    compare(benchmark, corpus()[::10], to_7bit)


def test_received_field(benchmark: Any) -> None:
    """This is made for every message."""
    stamp = ReceivedStamp(
        hostname="mx1.example.org",
        client_name="client.example",
        client_address="192.0.2.1:4711",
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
    )
    benchmark(stamp.line, "0123456789AB", "alice@example.org", NOW)


def test_report(benchmark: Any) -> None:
    header = b"From: <alice@example.org>\r\nSubject: hello\r\n"
    recipient = ReportRecipient(
        "bob@example.net", status="5.1.1", code=550, text="no such user", peer="mx.example.net:25"
    )
    envelope = Envelope("alice@example.org", [Recipient("bob@example.net")], NOW)

    def run() -> bytes:
        return build_report(
            kind=FAILURE,
            hostname="mx1.example.org",
            envelope=envelope,
            queue_id="0123456789AB",
            recipients=[recipient],
            header=header,
            content=header + b"\r\ntext\r\n",
            now=NOW,
            report_id="R1",
        )

    benchmark(run)
