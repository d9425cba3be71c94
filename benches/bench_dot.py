"""DATA decoding and dot-stuffing, whole messages with all their objects.  Floor: memcpy over the same octets.

Standards RFC 5321 §4.5.2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from conftest import make_body, make_mail

from gateway._native import DataDecoder, kernels, stuff, use_kernel

END = b".\r\n"
Measure = Callable[[Callable[[], object], Sequence[bytes]], None]


@pytest.fixture(params=kernels())
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    use_kernel(request.param)
    yield request.param
    use_kernel(kernels()[-1])


def decoding(wires: Sequence[bytes], *, normalize: bool = True) -> Callable[[], None]:
    decoder = DataDecoder(normalize=normalize)

    def run() -> None:
        for wire in wires:
            decoder.reset()
            decoder.feed(wire)
            while decoder.take(True):
                pass

    return run


def test_decode(against_memcpy: Measure, mail: bytes) -> None:
    against_memcpy(decoding([mail + END]), [mail])


def test_decode_long_lines(against_memcpy: Measure) -> None:
    mail = make_mail(102400, line=990)
    against_memcpy(decoding([mail + END]), [mail])


def test_decode_a_hundred(against_memcpy: Measure) -> None:
    """Messages of 10 KiB, each another: as they come from the network, not from the first cache."""
    mails = [make_mail(10240, seed=seed) for seed in range(100)]
    against_memcpy(decoding([mail + END for mail in mails]), mails)


def test_decode_by_kernel(against_memcpy: Measure, kernel: str) -> None:
    mail = make_mail(102400)
    against_memcpy(decoding([mail + END]), [mail])


def test_decode_bare_lf(against_memcpy: Measure) -> None:
    wire = make_mail(102400).replace(b"\r\n", b"\n")
    against_memcpy(decoding([wire + b"\r\n.\r\n"]), [wire])


def test_decode_nothing_but_lf(against_memcpy: Measure) -> None:
    """The worst there is."""
    wire = b"\n" * 102400
    against_memcpy(decoding([wire + b"\r\n.\r\n"]), [wire])


def test_decode_stuffed(against_memcpy: Measure) -> None:
    """Every tenth line begins with a dot."""
    lines = make_body(102400).splitlines(keepends=True)
    wire = b"".join(b".." + line if i % 10 == 0 else line for i, line in enumerate(lines))
    against_memcpy(decoding([wire + END]), [wire])


def test_bdat(against_memcpy: Measure, mail: bytes) -> None:
    decoder = DataDecoder()

    def run() -> None:
        decoder.reset(len(mail))
        decoder.feed_chunk(mail, 0, len(mail))
        decoder.finish_chunks()
        while decoder.take(True):
            pass

    against_memcpy(run, [mail])


def test_facts(benchmark: Callable[..., object]) -> None:
    """What a session asks for at the end of each message."""
    decoder = DataDecoder()
    decoder.feed(make_mail(1024) + END)
    benchmark(lambda: (decoder.facts(), decoder.message_id))


def test_stuff_nothing(against_memcpy: Measure, body: bytes) -> None:
    against_memcpy(lambda: stuff([body]), [body])


def test_stuff_few(against_memcpy: Measure) -> None:
    """Every hundredth line."""
    lines = make_body(102400).splitlines(keepends=True)
    body = b"".join(b"." + line if i % 100 == 0 else line for i, line in enumerate(lines))
    against_memcpy(lambda: stuff([body]), [body])


def test_stuff_many(against_memcpy: Measure) -> None:
    """Every tenth line."""
    lines = make_body(102400).splitlines(keepends=True)
    body = b"".join(b"." + line if i % 10 == 0 else line for i, line in enumerate(lines))
    against_memcpy(lambda: stuff([body]), [body])


def test_repair_nothing(against_memcpy: Measure, body: bytes) -> None:
    against_memcpy(lambda: stuff([body], repair=True), [body])


def test_repair_all(against_memcpy: Measure) -> None:
    body = make_body(102400).replace(b"\r\n", b"\n")
    against_memcpy(lambda: stuff([body], repair=True), [body])
