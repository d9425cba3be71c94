"""The obvious slow way to do what gateway._native.lines and gateway._native.dot do: regular expressions over all of it.

A message's wire octets are kept whole and looked at anew after each feed; nothing is carried but them.

    Standards RFC 5321 §4.1.1.4, §4.5.2; RFC 3030 §2
"""

from __future__ import annotations

import re

from gateway.mail.envelope import Facts

LINE = re.compile(rb"([^\r\n]*)(\r\n|\r|\n|\Z)")
LINE_END = re.compile(rb"\r\n|\r|\n")
UNDECIDED = re.compile(rb"((\A|(?<=\r\n))\.\r?|\r)\Z")
HEADER_OCTETS = 65536


def find_line(data: bytes, pos: int, max_octets: int) -> int:
    line = data[pos : pos + max_octets]
    if b"\n" in line:
        return pos + line.index(b"\n") + 1
    return -2 if len(line) == max_octets else -1


def find_end_of_data(wire: bytes) -> int:
    """Offset behind the final dot's CRLF, or -1."""
    if wire.startswith(b".\r\n"):
        return 3
    at = wire.find(b"\r\n.\r\n")
    return -1 if at < 0 else at + 5


def unstuff(wire: bytes) -> bytes:
    return re.sub(rb"(\A|(?<=\r\n))\.", b"", wire)


def normalize(content: bytes) -> bytes:
    content = re.sub(rb"(?<!\r)\n", b"\r\n", content)
    return re.sub(rb"\r(?!\n)", b" ", content).replace(b"\0", b" ")


def lines_of(content: bytes) -> list[bytes]:
    lines = LINE_END.split(content)
    return lines if lines[-1] else lines[:-1]


def stuff(
    slices: list[bytes], *, first: bool = True, repair: bool = False, end: bool = True
) -> list[bytes]:
    content = b"".join(slices)
    if repair:
        content = LINE_END.sub(b"\r\n", content) if end else repair_but_last(content)
        content = content.replace(b"\0", b" ")
    before = b"" if first else b"x"
    sent = re.sub(rb"(?m)^\.", b"..", before + content)[len(before) :]
    if end:
        if not (before + content).endswith(b"\r\n") and before + content:
            sent += b"\r\n"
        sent += b".\r\n"
    return [sent]


def repair_but_last(content: bytes) -> bytes:
    """A CR at the end may be half of a CRLF."""
    return re.sub(rb"\r\n|\r(?!\Z)|\n", b"\r\n", content)


class DataDecoder:
    def __init__(
        self, max_octets: int = 0, normalize: bool = True, chunk_octets: int = 262144
    ) -> None:
        self.max_octets = max_octets
        self.normalize = normalize
        self.chunk_octets = chunk_octets
        self.reset()

    def reset(self, size_hint: int = 0) -> None:
        self.wire = b""
        self.chunked = False
        self.finished = False
        self.overflow = False
        self.taken_octets = 0
        self.first_octets: int | None = None  # of a first chunk that was taken before it was full

    def feed(self, data: bytes, pos: int = 0) -> int:
        if self.finished:
            return pos
        wire = self.wire + data[pos:]
        end = find_end_of_data(wire)
        self.finished = end >= 0
        used = (end if self.finished else len(wire)) - len(self.wire)
        self.wire = wire[: len(self.wire) + used]
        self.look()
        return pos + used

    def feed_chunk(self, data: bytes, pos: int, size: int) -> int:
        if self.finished:
            return pos
        self.chunked = True
        self.wire += data[pos : pos + size]
        self.look()
        return min(len(data), pos + size)

    def finish_chunks(self) -> None:
        self.finished = True
        self.look()

    def look(self) -> None:
        self.overflow = 0 < self.max_octets < len(self.content)

    @property
    def decided(self) -> bytes:
        """The wire octets whose meaning no later octet can change; without the final dot."""
        if not self.finished:
            return (
                re.sub(rb"\r\Z", b"", self.wire) if self.chunked else UNDECIDED.sub(b"", self.wire)
            )
        return self.wire if self.chunked else self.wire[:-3]

    @property
    def content(self) -> bytes:
        if self.chunked:
            return self.decided
        content = unstuff(self.decided)
        return normalize(content) if self.normalize else content

    @property
    def pending_octets(self) -> int:
        return 0 if self.overflow else len(self.content) - self.taken_octets

    def take(self, all: bool = False) -> bytes | None:
        if not self.pending_octets:
            return None
        size = min(self.pending_octets, self.chunk_octets)
        if size < self.chunk_octets and not all:
            return None
        if self.first_octets is None:
            self.first_octets = size
        self.taken_octets += size
        return self.content[self.taken_octets - size : self.taken_octets]

    def header_section(self) -> bytes:
        empty_line = re.search(rb"(?:\A|\n)(\r?\n)", self.content)
        return self.content[: empty_line.start(1)] if empty_line else self.content

    def header(self) -> bytes:
        kept = self.chunk_octets if self.first_octets is None else self.first_octets
        if self.overflow:
            kept = min(kept, self.max_octets)
        return self.header_section()[: min(kept, HEADER_OCTETS)]

    @property
    def message_id(self) -> str:
        field = re.search(
            rb"(?im)^message-id[ \t]*:((?:[ \t]|\r?\n[ \t]|\r[ \t])*)([^\r\n]*)", self.header()
        )
        if field is None:
            return ""
        value = field[2][:998]
        if value.startswith(b"<") and b">" in value:
            value = value[: value.index(b">") + 1]
        return value.decode("utf-8", "replace").rstrip()

    def facts(self) -> tuple[object, ...]:
        content, wire = self.content, self.decided
        lines = lines_of(content)
        return (
            len(content),
            len(self.header_section()),
            len(lines),
            max(map(len, lines), default=0),
            sum(line.startswith(b".") for line in lines),
            len(re.findall(rb"(?im)^received[ \t]*:", self.header_section())),
            max(content, default=0) > 127,
            b"\0" in wire,
            len(re.findall(rb"\r(?!\n)", wire)),
            len(re.findall(rb"(?<!\r)\n", wire)),
            content.endswith(b"\r\n") or not content,
        )


class DataEncoder:
    def __init__(self, repair: bool = False) -> None:
        self.repair = repair
        self.content = b""
        self.sent = b""

    def encode(self, slices: list[bytes]) -> list[bytes]:
        self.content += b"".join(slices)
        before = self.sent
        [self.sent] = stuff([self.content], repair=self.repair, end=False)
        return [self.sent[len(before) :]]

    def finish(self) -> bytes:
        [sent] = stuff([self.content], repair=self.repair)
        return sent[len(self.sent) :]


FACT_NAMES = Facts.__struct_fields__
