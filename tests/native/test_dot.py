from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import model_data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway._native import dot as native_dot
from gateway.mail.envelope import Facts

pytestmark = pytest.mark.usefixtures("no_leaks")

END = b"\r\n.\r\n"
# Pieces that matter to the decoder, and some that fill a block of 64 octets or end just beside its border.
PIECES = [
    b"\r",
    b"\n",
    b".",
    b"\0",
    b"a",
    b"\xe4",
    b"\r\n",
    b"\r\n.",
    b"b" * 61,
    b"c" * 64,
    b"d" * 130,
]
HEADER_PIECES = [
    b"Received:",
    b"rEceived \t:",
    b"Message-ID:",
    b"MESSAGE-ID : <m@x>",
    b" ",
    b"\t",
    b"<m@x>",
    b"To: y",
]

wires = st.lists(st.sampled_from(PIECES), max_size=24).map(b"".join)
mails = st.lists(st.sampled_from(PIECES + HEADER_PIECES), max_size=24).map(b"".join)


def facts_of(decoder: Any) -> dict[str, Any]:
    return dict(zip(model_data.FACT_NAMES, decoder.facts(), strict=True))


def drain(decoder: Any) -> list[bytes]:
    return [bytes(chunk) for chunk in iter(lambda: decoder.take(True), None)]


def result_of(decoder: Any) -> tuple[object, ...]:
    header, message_id, pending = (
        bytes(decoder.header()),
        decoder.message_id,
        decoder.pending_octets,
    )
    return (
        decoder.finished,
        decoder.overflow,
        decoder.facts(),
        header,
        message_id,
        pending,
        drain(decoder),
    )


def decode(dot: ModuleType, *wires: bytes, **options: Any) -> Any:
    decoder = dot.DataDecoder(**options)
    for wire in wires:
        assert decoder.feed(wire) == len(wire)
    return decoder


def decode_chunks(dot: ModuleType, *chunks: bytes, **options: Any) -> Any:
    decoder = dot.DataDecoder(**options)
    for chunk in chunks:
        assert decoder.feed_chunk(b"x" + chunk + b"y", 1, len(chunk)) == 1 + len(chunk)
    decoder.finish_chunks()
    return decoder


# -- the end of the data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "content"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"a\r\n.\r\n", b"a\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),  # RFC 5321 §4.5.2
        (b".a\r\n.\r\n", b"a\r\n"),
        (b"a\r\n..b\r\n...\r\n.\r\n", b"a\r\n.b\r\n..\r\n"),
    ],
)
def test_data_ends_with_the_dot(dot: ModuleType, wire: bytes, content: bytes) -> None:
    decoder = dot.DataDecoder()
    assert decoder.feed(b"DATA\r\n" + wire + b"QUIT\r\n", 6) == 6 + len(wire)
    assert decoder.finished
    assert b"".join(drain(decoder)) == content
    assert facts_of(decoder)["size_octets"] == len(content)
    assert decoder.feed(b"more") == 0


@pytest.mark.parametrize(
    "before", [b"\r\n", b"\n", b"\r", b"\r\r", b"\n\r", b"\0", b"\r\0", b"\r\n\0", b"\0\n", b"x"]
)
@pytest.mark.parametrize(
    "after", [b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\0\r\n", b"\r\0\n", b" \r\n"]
)
def test_nothing_else_ends_it(dot: ModuleType, before: bytes, after: bytes) -> None:
    smuggled = b"a" + before + b"." + after + b"MAIL FROM:<x@example.com>\r\n"
    expected = before == b"\r\n" and after == b"\r\n"
    decoder = dot.DataDecoder()
    used = decoder.feed(smuggled)
    assert decoder.finished == expected
    assert used == (len(b"a\r\n.\r\n") if expected else len(smuggled))
    # What goes on to the next hop has no line end but CRLF, so it cannot be taken for the end there either.
    if not expected:
        decoder.feed(b".\r\n")
        content = b"".join(drain(decoder))
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content)
        sent = b"".join(bytes(octets) for octets in dot.stuff([content]))
        assert sent.index(b"\r\n.\r\n") == len(sent) - 5


@pytest.mark.parametrize("stage", range(1, 5))
def test_the_end_over_any_seam(dot: ModuleType, stage: int) -> None:
    decoder = decode(dot, b"a" * 100 + END[:stage])
    assert not decoder.finished
    assert decoder.feed(END[stage:] + b"QUIT\r\n") == len(END) - stage
    assert decoder.finished
    assert drain(decoder) == [b"a" * 100 + b"\r\n"]


# -- bare CR and LF, NUL ---------------------------------------------------------------------------------------------


def test_normalizing(dot: ModuleType) -> None:
    decoder = decode(dot, b"a\nb\rc\0d\r\r\ne\n.\r\n\n..\r" + END)
    assert drain(decoder) == [b"a\r\nb c d \r\ne\r\n.\r\n\r\n.. \r\n"]
    facts = facts_of(decoder)
    assert (facts["bare_cr"], facts["bare_lf"], facts["has_nul"]) == (3, 3, True)
    assert facts["dot_lines"] == 2  # behind bare LFs: kept, and stuffed on the way out


def test_kept_as_found(dot: ModuleType) -> None:
    wire = b"a\nb\rc\0d\r\r\ne\n.\r\n\n..\r"
    decoder = decode(dot, wire + END, normalize=False)
    assert drain(decoder) == [wire + b"\r\n"]
    facts = facts_of(decoder)
    assert (facts["bare_cr"], facts["bare_lf"], facts["has_nul"]) == (3, 3, True)
    assert facts["dot_lines"] == 2
    assert facts["lines"] == 9


# -- facts -----------------------------------------------------------------------------------------------------------


def test_facts(dot: ModuleType) -> None:
    header = (
        b"Received: a\r\nreceived : b\r\n\tReceived: folded\r\nX-Received: c\r\nReceived-SPF: d\r\n"
    )
    body = b"\r\nReceived: not in the header\r\n" + b"x" * 998 + b"\r\n" + b"..a\r\ngr\xfc\xdfe\r\n"
    decoder = decode(dot, header + body + b".\r\n")
    assert Facts(*decoder.facts()) == Facts(
        size_octets=len(header + body) - 1,
        header_octets=len(header),
        lines=10,
        longest_line=998,
        dot_lines=1,
        received=2,
        has_8bit=True,
        has_nul=False,
        bare_cr=0,
        bare_lf=0,
        ends_with_crlf=True,
    )
    assert bytes(decoder.header()) == header
    drain(decoder)


def test_octets_behind_the_end_are_no_facts(dot: ModuleType) -> None:
    decoder = dot.DataDecoder()
    decoder.feed(
        b"a" * 90 + END + b"MAIL FROM:<\xc3\xbc@example.com>\r\nNOOP \0\r\n.\n" + b"x" * 200
    )
    assert decoder.facts() == (92, 92, 1, 90, 0, 0, False, False, 0, 0, True)
    drain(decoder)


@pytest.mark.parametrize("gap", [*range(58, 68), *range(124, 132), 500])
def test_longest_line_wherever_it_lies(dot: ModuleType, gap: int) -> None:
    for shift in range(0, 70, 3):
        wire = (
            b"a" * shift
            + b"\r\n"
            + b"b" * gap
            + b"\r\n"
            + b"c" * 30
            + b"\r\nd\r\n"
            + b"e" * 30
            + END
        )
        decoder = decode(dot, wire)
        facts = facts_of(decoder)
        assert (facts["longest_line"], facts["lines"]) == (max(shift, gap), 5)


@pytest.mark.parametrize(
    ("field", "message_id"),
    [
        (b"Message-ID: <a@example.com>\r\n", "<a@example.com>"),
        (b"MESSAGE-ID:<a@example.com> (comment)\r\n", "<a@example.com>"),
        (b"message-id\t :\r\n \r\n\t<a@example.com>\r\n", "<a@example.com>"),
        (b"Message-ID: no angle brackets \r\n", "no angle brackets"),
        (b"Message-ID: <\xc3\xbc@example.com>\r\n", "<ü@example.com>"),
        (b"Message-ID: <\xff>\r\n", "<\ufffd>"),
        (b"Message-ID:\r\n", ""),
        (b"Message-ID: <a>\r\nMessage-ID: <b>\r\n", "<a>"),
        (b"Message-IDs: <a>\r\nX-Message-ID: <a>\r\n", ""),
        (b"\r\nMessage-ID: <a>\r\n", ""),
        (b"Message-ID: <" + b"a" * 2000 + b">\r\n", "<" + "a" * 997),
    ],
)
def test_message_id(dot: ModuleType, field: bytes, message_id: str) -> None:
    decoder = decode(dot, b"To: x\r\n" + field + b"Subject: y\r\n\r\nbody" + END)
    assert decoder.message_id == message_id
    drain(decoder)
    assert decoder.message_id == message_id  # still known when the content was taken


def test_a_header_longer_than_is_kept(dot: ModuleType) -> None:
    header = b"X: " + b"x" * 70000 + b"\r\nMessage-ID: <a>\r\nReceived: y\r\n"
    decoder = decode(dot, header + b"\r\nbody" + END)
    assert decoder.header() == header[:65536]
    assert decoder.message_id == ""
    facts = facts_of(decoder)
    assert (facts["header_octets"], facts["received"]) == (len(header), 1)
    drain(decoder)


# -- BDAT ------------------------------------------------------------------------------------------------------------


def test_chunks_are_taken_as_they_are(dot: ModuleType) -> None:
    content = b".\r\n..a\r\n\0\n.b\rc\r\n.\r\n"
    decoder = decode_chunks(dot, content[:7], content[7:])
    assert decoder.finished
    assert decoder.facts() == (len(content), len(content), 6, 3, 4, 0, False, True, 1, 1, True)
    assert drain(decoder) == [content]


@pytest.mark.parametrize("last", [b"", b"a", b"\n", b"\r", b"a\r\n"])
def test_chunks_that_end_anyhow(dot: ModuleType, last: bytes) -> None:
    decoder = decode_chunks(dot, b"a\r\n" + last)
    assert facts_of(decoder)["ends_with_crlf"] == (last in (b"", b"a\r\n"))
    assert b"".join(drain(decoder)) == b"a\r\n" + last


def test_no_chunk_at_all(dot: ModuleType) -> None:
    decoder = decode_chunks(dot)
    assert Facts(*decoder.facts()) == Facts()
    assert decoder.take(True) is None


def test_feed_chunk_takes_no_more_than_it_may(dot: ModuleType) -> None:
    decoder = dot.DataDecoder()
    assert decoder.feed_chunk(b"BDAT 3\r\nabcNOOP\r\n", 8, 3) == 11
    assert decoder.feed_chunk(b"de", 0, 3) == 2
    assert decoder.feed_chunk(b"fNOOP\r\n", 0, 1) == 1
    assert decoder.feed_chunk(b"NOOP", 0, 0) == 0
    decoder.finish_chunks()
    assert decoder.feed_chunk(b"NOOP", 0, 4) == 0
    assert drain(decoder) == [b"abcdef"]


# -- chunks of content -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_octets", [1, 2, 3, 63, 64, 65, 1000])
def test_chunks_are_full(dot: ModuleType, chunk_octets: int) -> None:
    decoder = decode(dot, b"ab\ncd\n" * 100 + END, chunk_octets=chunk_octets)
    content = b"ab\r\ncd\r\n" * 100 + b"\r\n"
    chunks = drain(decoder)
    assert b"".join(chunks) == content
    assert {len(chunk) for chunk in chunks[:-1]} <= {chunk_octets}
    assert len(chunks) == -(-len(content) // chunk_octets)


def test_streaming(dot: ModuleType) -> None:
    decoder = dot.DataDecoder(chunk_octets=100)
    decoder.feed(b"x" * 99)
    assert decoder.take() is None
    decoder.feed(b"x" * 151)
    assert decoder.pending_octets == 250
    assert [len(decoder.take()), len(decoder.take()), decoder.take()] == [100, 100, None]
    assert decoder.pending_octets == 50
    decoder.feed(END)
    assert len(decoder.take(all=True)) == 52
    assert decoder.take(all=True) is None
    assert decoder.pending_octets == 0


def test_overflow(dot: ModuleType) -> None:
    decoder = dot.DataDecoder(max_octets=1000, chunk_octets=300)
    decoder.feed(b"Message-ID: <a>\r\n\r\n" + b"a" * 981)
    assert not decoder.overflow
    assert decoder.pending_octets == 1000
    assert len(decoder.take()) == 300
    decoder.feed(b"b" * 100000)
    assert decoder.overflow
    assert decoder.pending_octets == 0
    assert decoder.take(True) is None
    assert decoder.feed(END + b"QUIT\r\n") == 5  # in step all the same
    assert decoder.finished
    assert facts_of(decoder)["size_octets"] == 101002
    assert decoder.message_id == "<a>"
    assert decoder.take(True) is None


def test_the_limit_itself_is_no_overflow(dot: ModuleType) -> None:
    assert not decode(dot, b"aa\n.\r\n", max_octets=7).overflow
    assert decode(dot, b"aa\r\n.\r\n", max_octets=3).overflow
    assert not decode(dot, b"aa\r\n.\r\n", max_octets=4).overflow
    assert decode_chunks(dot, b"aaaa\r", max_octets=4).overflow


def test_reset(dot: ModuleType) -> None:
    decoder = decode(
        dot, b"Received: x\r\nMessage-ID: <a>\r\n\xff\0\n\r..\r\n" + END, max_octets=50
    )
    decoder.reset(size_hint=1000)
    assert Facts(*decoder.facts()) == Facts()
    assert (decoder.finished, decoder.overflow, decoder.pending_octets) == (False, False, 0)
    assert (decoder.header(), decoder.message_id) == (b"", "")
    decoder.feed(b"b" + END)
    assert drain(decoder) == [b"b\r\n"]


# -- against the model -----------------------------------------------------------------------------------------------


def every_string(max_length: int) -> Iterator[bytes]:
    for length in range(max_length + 1):
        for octets in itertools.product(b"\r\n.a\0", repeat=length):
            yield bytes(octets)


@pytest.mark.parametrize("normalize", [True, False])
def test_every_short_string(normalize: bool) -> None:
    """Alone, and where block copying meets it; behind it a plain end, for what the string leaves open."""
    for text in every_string(5):
        wires = [text + END] if len(text) == 5 else [text + END, b"x" * 61 + text + b"y" * 64 + END]
        for wire in wires:
            model = model_data.DataDecoder(normalize=normalize)
            used = model.feed(wire)
            expected = result_of(model)
            for kernel in native_dot.kernels():
                native_dot.use_kernel(kernel)
                decoder = native_dot.DataDecoder(normalize=normalize)
                assert decoder.feed(wire) == used, (kernel, wire)
                assert result_of(decoder) == expected, (kernel, wire)


def test_every_short_string_of_six() -> None:
    """The default kernel alone; every terminator with every neighbour."""
    for octets in itertools.product(b"\r\n.a\0", repeat=6):
        wire = bytes(octets)
        end = model_data.find_end_of_data(wire)
        decoder = native_dot.DataDecoder()
        assert decoder.feed(wire) == (end if end >= 0 else 6), wire
        assert decoder.finished == (end >= 0), wire
        model = model_data.DataDecoder()
        model.feed(wire)
        assert b"".join(drain(decoder)) == model.content, wire


def test_every_short_string_as_chunk() -> None:
    for text in every_string(4):
        for content in (text, b"x" * 61 + text + b"y" * 64):
            expected = result_of(decode_chunks(model_data, content))
            for kernel in native_dot.kernels():
                native_dot.use_kernel(kernel)
                assert result_of(decode_chunks(native_dot, content)) == expected, (kernel, content)


@given(mails, st.booleans(), st.sampled_from([1, 7, 100, 262144]), st.sampled_from([0, 5, 150]))
@settings(deadline=None, max_examples=150)
def test_split_anywhere(wire: bytes, normalize: bool, chunk_octets: int, max_octets: int) -> None:
    """feed(x) == feed(x[:i]), feed(x[i:]) for all i, and both what the model says."""
    wire += END
    options = {"normalize": normalize, "chunk_octets": chunk_octets, "max_octets": max_octets}
    model = model_data.DataDecoder(**options)
    used = model.feed(wire)
    expected = result_of(model)
    for kernel in native_dot.kernels():
        native_dot.use_kernel(kernel)
        for cut in range(used):
            decoder = native_dot.DataDecoder(**options)
            assert decoder.feed(wire[:cut]) == cut
            assert cut + decoder.feed(wire[cut:]) == used
            assert result_of(decoder) == expected, (kernel, cut)


@given(mails, st.data())
@settings(deadline=None, max_examples=100)
def test_split_anywhere_as_chunks(content: bytes, draw: st.DataObject) -> None:
    expected = result_of(decode_chunks(model_data, content))
    for kernel in native_dot.kernels():
        native_dot.use_kernel(kernel)
        for cut in range(len(content) + 1):
            assert result_of(decode_chunks(native_dot, content[:cut], content[cut:])) == expected, (
                kernel,
                cut,
            )


@given(
    st.lists(st.one_of(mails, st.sampled_from([END, "take", "take all"])), max_size=12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 50, 262144]),
)
@settings(deadline=None, max_examples=200)
def test_any_order_of_calls(
    steps: list[bytes | str], chunked: bool, normalize: bool, chunk_octets: int
) -> None:
    """What can be seen between the feeds is what the model shows."""
    for kernel in native_dot.kernels():
        native_dot.use_kernel(kernel)
        model = model_data.DataDecoder(normalize=normalize, chunk_octets=chunk_octets)
        decoder = native_dot.DataDecoder(normalize=normalize, chunk_octets=chunk_octets)
        for step in steps:
            if isinstance(step, str):
                expected = model.take(step == "take all")
                chunk = decoder.take(step == "take all")
                assert (chunk if chunk is None else bytes(chunk)) == expected
            elif chunked:
                assert decoder.feed_chunk(step, 0, len(step)) == model.feed_chunk(
                    step, 0, len(step)
                )
            else:
                assert decoder.feed(step) == model.feed(step)
            assert (decoder.finished, decoder.pending_octets) == (
                model.finished,
                model.pending_octets,
            )
            assert decoder.header() == model.header()


# -- stuffing --------------------------------------------------------------------------------------------------------


def sent(buffers: list[Any]) -> bytes:
    return b"".join(bytes(octets) for octets in buffers)


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b".\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a\r\n.b\r\n..\r\n", b"a\r\n..b\r\n...\r\n.\r\n"),
        (b"a.b\r\n", b"a.b\r\n.\r\n"),
    ],
)
def test_stuffing(dot: ModuleType, content: bytes, wire: bytes) -> None:
    assert sent(dot.stuff([content])) == wire
    assert sent(dot.stuff([bytes([octet]) for octet in content])) == wire


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"a\n.b\r.c", b"a\r\n..b\r\n..c\r\n.\r\n"),
        (b"\n", b"\r\n.\r\n"),
        (b"\r", b"\r\n.\r\n"),
        (b"\r\r\n\n\r", b"\r\n\r\n\r\n\r\n.\r\n"),
        (b"a\0\n", b"a \r\n.\r\n"),
    ],
)
def test_repair(dot: ModuleType, content: bytes, wire: bytes) -> None:
    assert sent(dot.stuff([content], repair=True)) == wire
    assert sent(dot.stuff([bytes([octet]) for octet in content], repair=True)) == wire


def test_a_line_that_goes_on(dot: ModuleType) -> None:
    assert sent(dot.stuff([b".a\r\n.b"], first=False, end=False)) == b".a\r\n..b"
    assert sent(dot.stuff([], first=False)) == b"\r\n.\r\n"


def test_slices_without_work_are_passed_on() -> None:
    small, big = b"Received: x\r\n", memoryview(b"a" * 99998 + b"\r\n")
    buffers = native_dot.stuff([small, big])
    assert [octets is given for octets, given in zip(buffers, [small, big], strict=False)] == [
        True,
        True,
    ]
    assert buffers[2] == b".\r\n"


def test_long_runs_are_not_copied() -> None:
    content = b"a" * 9998 + b"\r\n" + b".\r\n" * 5 + b"b" * 9998 + b"\r\n"
    buffers = native_dot.stuff([content])
    assert [len(octets) for octets in buffers] == [10000, 17, 10003, 3]
    assert buffers[0].obj is buffers[2].obj is content
    assert sent(buffers) == sent(model_data.stuff([content]))


def test_a_chunk_can_be_stuffed_and_outlives_its_decoder() -> None:
    decoder = decode(native_dot, b"a" * 9000 + b"\r\n..b" + END)
    buffers = native_dot.stuff([decoder.take(True)])
    del decoder
    assert sent(buffers) == b"a" * 9000 + b"\r\n..b" + END
    assert all(isinstance(octets, bytes | memoryview) for octets in buffers)


@given(st.lists(wires, max_size=5), st.booleans(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=300)
def test_stuffing_as_the_model(slices: list[bytes], first: bool, repair: bool, end: bool) -> None:
    options = {"first": first, "repair": repair, "end": end}
    expected = sent(model_data.stuff(slices, **options))
    for kernel in native_dot.kernels():
        native_dot.use_kernel(kernel)
        assert sent(native_dot.stuff(slices, **options)) == expected, kernel
        if first:
            encoder = native_dot.DataEncoder(repair)
            streamed = b"".join(sent(encoder.encode([octets])) for octets in slices)
            assert streamed + (encoder.finish() if end else b"") == expected, kernel


@given(wires, st.booleans())
@settings(deadline=None, max_examples=200)
def test_what_was_stuffed_decodes_to_the_same(text: bytes, repair: bool) -> None:
    """dot_lines is the number of dots that are added, in both ways of keeping the content."""
    decoder = native_dot.DataDecoder(normalize=not repair)
    decoder.feed(text + END)
    facts = facts_of(decoder)
    content = b"".join(drain(decoder))
    wire = sent(native_dot.stuff([content], repair=repair))
    again = decode(native_dot, wire)
    assert again.finished
    repaired = model_data.LINE_END.sub(b"\r\n", content)
    assert b"".join(drain(again)) == repaired.replace(b"\0", b" ")
    assert len(wire) == len(repaired) + facts["dot_lines"] + 3


# -- memory and limits -----------------------------------------------------------------------------------------------


def test_an_idle_decoder_is_tiny() -> None:
    before = native_dot.live_counts()
    decoder = native_dot.DataDecoder()
    assert sys.getsizeof(decoder) < 400
    assert native_dot.live_counts() == before


def test_a_view_keeps_the_octets(native: ModuleType) -> None:
    before = native.live_counts()
    decoder = decode(native, b"a" * 5000 + END)
    view = memoryview(decoder.take(True))[10:20]
    decoder.reset()
    assert view == b"a" * 10
    assert view.readonly
    assert native.live_counts()[0] == before[0] + 1
    del view
    assert native.live_counts() == before


def test_memory_follows_the_content(native: ModuleType) -> None:
    before = native.live_counts()[1]
    decoder = decode(native, b"a" * 5000 + END + b"")
    decoder.feed(b"pipelined" * 10000)
    chunk = decoder.take(True)
    assert native.live_counts()[1] - before < len(chunk) * 9 // 8 + 1024
    decoder.reset(size_hint=2**62)
    decoder.feed(b"a")
    del chunk
    assert native.live_counts()[1] - before < 1024


def test_overflow_frees_what_was_kept(native: ModuleType) -> None:
    before = native.live_counts()[1]
    decoder = native.DataDecoder(max_octets=1000000, chunk_octets=50000)
    for _ in range(30):
        decoder.feed(b"a" * 50000)
    assert decoder.overflow
    assert (
        native.live_counts()[1] - before < 100000
    )  # the chunk that has the header, and one to write into
    decoder.reset()


@pytest.mark.parametrize("octets", [2**61, 2**62, 2**63 - 1])
def test_no_memory(octets: int) -> None:
    if "libasan" in os.environ.get("LD_PRELOAD", "") and octets < 2**62:
        pytest.skip("the sanitizer ends the process instead of refusing memory")
    decoder = native_dot.DataDecoder(chunk_octets=octets)
    decoder.reset(size_hint=octets)
    with pytest.raises(MemoryError):
        decoder.feed(b"a" * 100000)
    decoder.reset()
    decoder.feed(b"a" + END)
    assert drain(decoder) == [b"a\r\n"]


def test_arguments_outside_their_range() -> None:
    with pytest.raises(ValueError, match="negative"):
        native_dot.DataDecoder(-1)
    with pytest.raises(ValueError, match="below 1"):
        native_dot.DataDecoder(chunk_octets=0)
    decoder = native_dot.DataDecoder(2**63 - 1, True, 2**63 - 1)
    for pos in (-1, 5, 2**62):
        with pytest.raises(ValueError, match="outside"):
            decoder.feed(b"abcd", pos)
        with pytest.raises(ValueError, match="outside"):
            decoder.feed_chunk(b"abcd", pos, 1)
    with pytest.raises(ValueError, match="negative"):
        decoder.feed_chunk(b"abcd", 0, -1)
    assert decoder.feed_chunk(b"abcd", 1, 2**63 - 1) == 4
    for wrong in ("text", None, bytearray(b"x")):
        with pytest.raises(TypeError):
            decoder.feed(wrong)
    with pytest.raises(ValueError, match="expected one of"):
        native_dot.use_kernel("abacus")
    with pytest.raises(TypeError):
        native_dot.stuff(["text"])
