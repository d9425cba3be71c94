"""A part's BODYSTRUCTURE is found wherever its octets are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.imap_facts import BODYSTRUCTURE, message_facts, part_places, section
from gateway.mail.part_structure import decoded_structure, part_structure
from gateway.mail.sections import find_part

REGRESSIONS = Path(__file__).parent.parent / "fuzz" / "regressions"


def multipart(parts: list[bytes], number: int) -> bytes:
    boundary = b"b%d" % number
    body = b"".join(b"--%b\r\n%b\r\n" % (boundary, part) for part in parts)
    return b"Content-Type: multipart/mixed; boundary=%b\r\n\r\n%b--%b--\r\n" % (boundary, body, boundary)


leaves = st.sampled_from([
    b"\r\nplain\r\n",
    b'Content-Type: text/html; name="a \\"b\\" (c"\r\nContent-ID: <(\\)>\r\n\r\n<p>\r\n',
    b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\nContent-Description: \xe4 {5}\r\n\r\nAAAA\r\n",
    b"Content-Type: multipart/mixed; boundary=none\r\n\r\nnothing\r\n",
])  # fmt: skip
messages = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(lambda one: b"Content-Type: message/rfc822\r\n\r\nSubject: in\r\n" + one),
        st.builds(multipart, st.lists(inner, min_size=1, max_size=3), st.integers(0, 999)),
    ),
    max_leaves=8,
)


def paths(content: bytes) -> Iterator[tuple[bytes, tuple[int, ...], bool]]:
    """(the structure, a path, whether there is such a part) of all parts, and of some beside them."""
    packed = message_facts(content).packed
    structure, places = section(packed, BODYSTRUCTURE), part_places(packed)
    todo: list[tuple[int, ...]] = [()]
    while todo:
        above = todo.pop()
        for number in range(1, 5):
            path = (*above, number)
            there = find_part(places, path) is not None
            yield structure, path, there
            if there and len(path) < 6:
                todo.append(path)


@settings(max_examples=60)
@given(messages)
def test_every_part_has_its_structure(content: bytes) -> None:
    for structure, path, there in paths(b"Subject: out\r\n" + content):
        found = part_structure(structure, path)
        assert found is not None or not there, path
        if found is not None:  # an empty multipart is told with a part that is not there
            assert found in structure and found.startswith(b"(") and found.endswith(b")")


def test_what_fuzzing_found_has_its_structures_too() -> None:
    for file in sorted(REGRESSIONS.glob("*/*")):
        for structure, path, there in paths(file.read_bytes()):
            assert part_structure(structure, path) is not None or not there, (file, path)


def test_a_decoded_part_says_so() -> None:
    [structure] = {one for one, _, _ in paths(b"Content-Transfer-Encoding: base64\r\n\r\nYQo=\r\n")}
    told = decoded_structure(structure, 2, 1)
    assert told.startswith(b'("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "BINARY" 2 1 ')
    both = b'((%b) "MIXED")' % structure
    assert decoded_structure(both, 2, 1) == both
