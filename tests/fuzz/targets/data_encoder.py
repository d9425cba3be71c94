"""DataEncoder and stuff(): what is sent is the model's, ends data once, at its end, and decodes to the content."""

from __future__ import annotations

from gateway._native import DataDecoder, DataEncoder, stuff
from tests.fuzz.octets import cut, options
from tests.native import model_data

MAX_OCTETS = 768
RUNS = 4_000


def seeds() -> list[bytes]:
    content = b".a\r\n..b\r\n\r\n.\r\nc\nd\re\0\r\n."
    return [bytes([flags, how]) + content for flags in range(8) for how in (0, 1, 77)]


def check(data: bytes) -> None:
    (flags, how), content = options(data, 2)
    slices = list(cut(content, how))
    repair, first, end = bool(flags & 1), not flags & 2, not flags & 4
    sent = joined(stuff(slices, first=first, repair=repair, end=end))
    assert sent == joined(model_data.stuff(slices, first=first, repair=repair, end=end))

    encoder = DataEncoder(repair)
    streamed = b"".join(joined(encoder.encode([piece])) for piece in slices) + encoder.finish()
    assert streamed == joined(stuff(slices, repair=repair))
    if repair or clean(content):
        check_data(streamed, content)


def check_data(sent: bytes, content: bytes) -> None:
    """A server takes exactly this as the data of one message (RFC 5321 §4.1.1.4, §4.5.2)."""
    decoder = DataDecoder(normalize=False)
    assert decoder.feed(sent + b"QUIT\r\n") == len(sent) and decoder.finished
    received = joined(list(iter(lambda: decoder.take(True), None)))
    if clean(content):
        expected = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
        assert received == expected
    assert clean(received)


def clean(content: bytes) -> bool:
    """No line end but CRLF, and no NUL."""
    rest = content.replace(b"\r\n", b"")
    return not (b"\r" in rest or b"\n" in rest or b"\0" in rest)


def joined(buffers: list[bytes | memoryview]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)
