"""DataDecoder: content, facts and step are those of the slow model, however DATA and BDAT are cut."""

from __future__ import annotations

from gateway._native import DataDecoder, kernels, live_counts, use_kernel
from tests.fuzz.octets import cut, options
from tests.native import model_data

MAX_OCTETS = 768
RUNS = 700
WORDS = (
    b"\r\n.\r\n",
    b"\n.\n",
    b"\r\n..",
    b"Received:",
    b"Message-ID: <",
)

NORMALIZE, CHUNKED, LIMITED, STREAMED = 1, 2, 4, 8


def seeds() -> list[bytes]:
    mail = (
        b"Received: a\r\nMESSAGE-ID : <m@x>\r\n\r\nbody\r\n..dot\r\n\xe4\0\rx\ny\r\n.\r\nQUIT\r\n"
    )
    return [bytes([flags, 40, 16, how]) + mail for flags in range(16) for how in (0, 1, 200)]


def check(data: bytes) -> None:
    before = live_counts()
    run(data)
    assert live_counts() == before, "chunks are left"


def run(data: bytes) -> None:
    (flags, limit, chunk, how), data = options(data, 4)
    names = kernels()
    use_kernel(names[(flags >> 4) % len(names)])
    settings = {
        "max_octets": 8 * limit if flags & LIMITED else 0,
        "normalize": bool(flags & NORMALIZE),
        "chunk_octets": 1 + chunk,
    }
    real, model = DataDecoder(**settings), model_data.DataDecoder(**settings)
    for piece in cut(data, how):
        if flags & CHUNKED:
            used = real.feed_chunk(b"#" + piece + b"#", 1, len(piece))
            assert used == model.feed_chunk(b"#" + piece + b"#", 1, len(piece))
        else:
            used = real.feed(b"#" + piece, 1)
            assert used == model.feed(b"#" + piece, 1)
        compare(real, model, all_of_it=False)
        if flags & STREAMED:
            take(real, model, all_of_it=False)
        if real.finished:
            break
    if flags & CHUNKED:
        real.finish_chunks()
        model.finish_chunks()
    compare(real, model, all_of_it=True)
    while take(real, model, all_of_it=True):
        pass
    compare(real, model, all_of_it=True)
    real.reset()
    assert real.feed(b".\r\nNOOP") == 3 and real.finished and real.take(True) is None


def compare(real: DataDecoder, model: model_data.DataDecoder, *, all_of_it: bool) -> None:
    for name in ("finished", "overflow", "pending_octets"):
        assert getattr(real, name) == getattr(model, name), name
    if all_of_it:
        if real.finished:
            assert real.facts() == model.facts()
        assert real.header() == model.header()
        assert real.message_id == model.message_id


def take(real: DataDecoder, model: model_data.DataDecoder, *, all_of_it: bool) -> bool:
    chunk, expected = real.take(all_of_it), model.take(all_of_it)
    assert (None if chunk is None else bytes(chunk)) == expected
    return chunk is not None
