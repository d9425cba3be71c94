"""What the MIME scanner shall find, in obvious and slow Python: each part is a region that is split further."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

FIELD_LINE = re.compile(rb"[!-9;-~]+[ \t]*:")
TOKEN = rb"[^\x00-\x20\x7f()<>@,;:\\\"/\[\]?=]+"
KEPT = 2048


@dataclass
class ModelPart:
    media_type: bytes
    encoding: int
    parent: int
    depth: int
    header_start: int
    header_end: int
    body_start: int
    body_end: int
    fields: dict[bytes, tuple[int, int]] = field(default_factory=dict)


ENCODINGS = {
    b"": 0,
    b"7bit": 0,
    b"8bit": 1,
    b"binary": 2,
    b"quoted-printable": 3,
    b"base64": 4,
}


def strip_comments(value: bytes) -> bytes:
    """value with each (nested (comment)) outside quotes replaced by a space."""
    out, nested, quoted, i = bytearray(), 0, False, 0
    while i < len(value):
        c = value[i : i + 1]
        if c == b"\\" and (nested or quoted):
            if quoted:
                out += value[i : i + 2]
            i += 2
            continue
        if quoted:
            quoted = c != b'"'
            out += c
        elif nested:
            nested += (c == b"(") - (c == b")")
        elif c == b"(":
            nested = 1
            out += b" "
        else:
            quoted = c == b'"'
            out += c
        i += 1
    return bytes(out)


def media_type_of(value: bytes | None, default: bytes) -> bytes:
    match = re.match(rb"\s*(" + TOKEN + rb")\s*/\s*(" + TOKEN + rb")", strip_comments(value or b""))
    return (match[1] + b"/" + match[2]).lower() if match else default


def boundary_of(value: bytes) -> bytes | None:
    value = strip_comments(value)
    match = re.match(rb'[^;"]*((?:;(?:[^;"]|"(?:[^"\\]|\\.)*")*)*)', value, re.DOTALL)
    assert match
    pattern = rb';((?:[^;"]|"(?:[^"\\]|\\.)*")*)'
    for parameter in re.findall(pattern, match[1], re.DOTALL):
        found = re.match(
            rb'\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))', parameter, re.IGNORECASE | re.DOTALL
        )
        if found:
            if found[1] is not None:
                text = re.sub(rb"[\r\n]", b"", re.sub(rb"\\(.)", rb"\1", found[1], flags=re.DOTALL))
                boundary = text.rstrip(b" \t")
                return boundary if boundary and len(text) <= 70 else None
            return found[2] if 0 < len(found[2]) <= 70 else None
    return None


class Model:
    def __init__(self, content: bytes, max_depth: int = 32, max_parts: int = 1000) -> None:
        self.content = content
        self.max_depth = max_depth
        self.max_parts = max_parts
        self.parts: list[ModelPart] = []
        self.parse(0, len(content), -1, b"text/plain")

    def lines(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """(start, end without line end, end with it) of the lines of a region."""
        found, at = [], start
        while at < end:
            lf = self.content.find(b"\n", at, end)
            stop = end if lf < 0 else lf + 1
            text_end = stop
            if lf >= 0:
                text_end = lf - (lf > at and self.content[lf - 1 : lf] == b"\r")
            found.append((at, text_end, stop))
            at = stop
        return found

    def parse(self, start: int, end: int, parent: int, default: bytes) -> None:
        depth = self.parts[parent].depth + 1 if parent >= 0 else 0
        header_end = body_start = end
        fields: dict[bytes, tuple[int, int]] = {}
        current = None
        for at, text_end, stop in self.lines(start, end):
            line = self.content[at:text_end]
            if text_end == at:
                header_end, body_start = at, stop
                break
            if line[:1] in b" \t" and at > start:
                if current:
                    fields[current] = (fields[current][0], text_end)
                continue
            if not FIELD_LINE.match(line):
                if at == 0 and line.startswith(b"From "):
                    continue
                header_end = body_start = at
                break
            name, _, _ = line.partition(b":")
            current = name.rstrip(b" \t").lower()
            if current in fields:
                current = None
            else:
                fields[current] = (at + len(name) + 1, text_end)

        def value(name: bytes) -> bytes | None:
            return self.content[slice(*fields[name])] if name in fields else None

        media_type = media_type_of(value(b"content-type"), b"text/plain")
        if b"content-type" not in fields:
            media_type = default
        encoding = re.match(
            rb"\s*(" + TOKEN + rb")?", strip_comments(value(b"content-transfer-encoding") or b"")
        )
        assert encoding
        index = len(self.parts)
        part = ModelPart(
            media_type,
            ENCODINGS.get((encoding[1] or b"").lower(), 5),
            parent,
            depth,
            start,
            header_end,
            body_start,
            end,
            fields,
        )
        self.parts.append(part)
        if depth + 1 >= self.max_depth:
            return
        if media_type.startswith(b"multipart/"):
            boundary = boundary_of(value(b"content-type") or b"")
            if boundary:
                self.split(index, boundary, media_type == b"multipart/digest")
        elif (
            media_type in (b"message/rfc822", b"message/global")
            and part.encoding <= 2
            and len(self.parts) < self.max_parts
        ):
            self.parse(body_start, end, index, b"text/plain")

    def split(self, index: int, boundary: bytes, digest: bool) -> None:
        part = self.parts[index]
        starts: list[tuple[int, int]] = []  # (end of what is before, start of what is behind)
        closed = False
        line_end = part.body_start - 1  # of the line before: where its line end begins
        for at, text_end, stop in self.lines(part.body_start, part.body_end):
            line = self.content[at:text_end].rstrip(b" \t")
            if line == b"--" + boundary:
                starts.append((line_end, stop))
            elif line == b"--" + boundary + b"--":
                starts.append((line_end, stop))
                closed = True
                break
            line_end = text_end
        ends = [end for end, _ in starts[1:]]
        if closed:
            starts.pop()
        elif starts:
            ends.append(part.body_end)
        for (_, start), end in zip(starts, ends, strict=True):
            if len(self.parts) < self.max_parts:
                default = b"message/rfc822" if digest else b"text/plain"
                self.parse(min(start, end), end, index, default)


def unfold(value: bytes) -> bytes:
    return re.sub(rb"\r?\n", b"", value).strip(b" \t\r\n")


def fields_of(header: bytes) -> list[tuple[bytes, bytes]]:
    """Every (name, unfolded value) up to the empty line."""
    found: list[tuple[bytes, bytes]] = []
    for index, line in enumerate(re.findall(rb"[^\n]*\n|[^\n]+\Z", header)):
        if line[:1] in b" \t" and found:
            found[-1] = (found[-1][0], found[-1][1] + line)
        elif FIELD_LINE.match(line):
            name, _, value = line.partition(b":")
            found.append((name.rstrip(b" \t"), value))
        elif not (index == 0 and line.startswith(b"From ")):
            break
    return [(name, unfold(value)) for name, value in found]
