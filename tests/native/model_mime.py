"""What the MIME scanner shall find, in obvious and slow Python: each part is a region that is split further."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

FIELD_LINE = re.compile(rb"[!-9;-~]+[ \t]*:")
LWSP = rb"[ \t\r\n]*"
TOKEN = rb"[^\x00-\x20\x7f()<>@,;:\\\"/\[\]?=]+"
CLOSED = rb'"(?:[^"\\]|\\.)*"'
QUOTED = rb'(?:"(?:[^"\\]|\\.|\\\Z)*(?:"|\Z))'
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


# An unquoted one goes on to the next ";" or white space, whatever is in it.
IN_BOUNDARY = re.compile(
    b";" + LWSP + b"boundary" + LWSP + b"=" + LWSP + rb"[^; \t\r\n\"][^; \t\r\n]*\Z", re.IGNORECASE
)


def strip_comments(value: bytes) -> bytes:
    """value with each (nested (comment)) outside quotes and boundaries replaced by a space."""
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
        elif c == b"(" and not IN_BOUNDARY.search(out):
            nested = 1
            out += b" "
        else:
            quoted = c == b'"'
            out += c
        i += 1
    return bytes(out)


def media_type_of(value: bytes | None, default: bytes) -> bytes:
    match = re.match(
        LWSP + b"(" + TOKEN + b")" + LWSP + b"/" + LWSP + b"(" + TOKEN + b")", strip_comments(value or b"")
    )
    if not match or len(match[1]) > 127:  # RFC 6838 §4.2
        return default
    return (match[1] + b"/" + match[2]).lower()[:255]


def parameters_of(value: bytes) -> list[bytes]:
    """What stands behind each ";" outside quotes; a quote that is never closed goes on to the end."""
    parameters = [b""]
    for piece in re.findall(QUOTED + rb'|;|[^;"]+', strip_comments(value), re.DOTALL):
        if piece == b";":
            parameters.append(b"")
        else:
            parameters[-1] += piece
    return parameters[1:]


def boundary_of(value: bytes) -> bytes | None:
    for parameter in parameters_of(value):
        found = re.match(
            LWSP + b"boundary" + LWSP + b"=" + LWSP + b"(?:(" + QUOTED + rb")|([^; \t\r\n]*))",
            parameter,
            re.IGNORECASE | re.DOTALL,
        )
        if found and found[1]:
            inner = found[1][1:-1] if re.fullmatch(CLOSED, found[1], re.DOTALL) else found[1][1:]
            text = re.sub(rb"[\r\n]", b"", re.sub(rb"\\(.)", rb"\1", inner, flags=re.DOTALL))
            boundary = text.rstrip(b" \t")
            return boundary if boundary and len(text) <= 70 else None
        if found:
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
        values: dict[bytes, bytes] = {}  # what is kept of them, unfolded
        incomplete: set[bytes] = set()
        current = None

        def keep(name: bytes, octets: bytes, cut: bool) -> None:
            values[name] = values.get(name, b"") + octets
            if cut or len(values[name]) > KEPT:
                incomplete.add(name)
            values[name] = values[name][:KEPT]

        for at, text_end, stop in self.lines(start, end):
            line = self.content[at : min(text_end, at + KEPT)]
            cut = text_end > at + KEPT
            if text_end == at:
                header_end, body_start = at, stop
                break
            if line[:1] in b" \t" and at > start:
                if current:
                    fields[current] = (fields[current][0], text_end)
                    keep(current, line, cut)
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
                keep(current, line[len(name) + 1 :], cut)

        media_type = media_type_of(values.get(b"content-type"), b"text/plain")
        if b"content-type" not in fields:
            media_type = default
        field = values.get(b"content-transfer-encoding", b"")
        encoding = re.match(LWSP + b"(" + TOKEN + b")?", strip_comments(field))
        assert encoding
        known = b"content-transfer-encoding" not in incomplete
        index = len(self.parts)
        part = ModelPart(
            media_type,
            ENCODINGS.get((encoding[1] or b"").lower(), 5) if known else 5,
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
            boundary = boundary_of(values.get(b"content-type", b""))
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
