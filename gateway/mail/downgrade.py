"""Content for next hops that take less: 8-bit or binary MIME made 7-bit or 8-bit.

    Owns      to_7bit() for next hops without 8BITMIME, to_8bit() for those without BINARYMIME
    Flow      scan the structure → re-encode the leaves that need it → true labels around them;
              what a leaf decodes to stays the same, octet for octet
    Limits    those of the scanner: what it cannot see whole is not touched
    Errors    None where no conversion is correct: the next hop cannot have this message
    Blocking  never; works on the whole content in memory
    Security  nothing inside multipart/signed or multipart/encrypted is altered: it would break
              what they prove (RFC 1847 §2.1)
    Standards RFC 6152 §3, RFC 3030 §3, RFC 2045 §6, RFC 2046 §5, RFC 6533 §6.3, RFC 1428 §3
"""

from __future__ import annotations

import re
from binascii import a2b_qp

from gateway._native import (
    ENCODING_8BIT,
    ENCODING_BASE64,
    ENCODING_BINARY,
    ENCODING_OTHER,
    MimeScanner,
    Part,
    decode_base64,
    encode_base64,
    encode_quoted_printable,
    find_field,
)

LINE_MAX_OCTETS = 998  # RFC 5321 §4.5.3.1.6, without CRLF

Edit = tuple[int, int, bytes]  # (start, end, what takes the place of these octets)

_SEALED = (b"multipart/signed", b"multipart/encrypted")
# RFC 6533 §6.3 allows an encoding for these; RFC 2046 §5.2 forbids it for other messages
_ENCODABLE_MESSAGES = (
    b"message/global-headers",
    b"message/global-delivery-status",
    b"message/global-disposition-notification",
)
_NOT_IN_HEADERS = re.compile(rb"\0|\r(?!\n)")
_QUESTION_MARKS = bytes(c if 0 < c < 128 else ord("?") for c in range(256))


def has_long_line(octets: bytes) -> bool:
    """True when a line is longer than SMTP allows."""
    at, end = 0, len(octets)
    while end - at > LINE_MAX_OCTETS:
        lf = octets.rfind(b"\n", at, at + LINE_MAX_OCTETS + 2)
        if lf < 0:
            return end - at > LINE_MAX_OCTETS
        at = lf + 1
    return False


def has_bare_line_ends(octets: bytes, lf_only: bool) -> bool:
    """True when a CR or LF is not one of the content's own line ends."""
    if lf_only:
        return b"\r" in octets
    pairs = octets.count(b"\r\n")
    return octets.count(b"\n") != pairs or octets.count(b"\r") != pairs


class _Converter:
    """One conversion: collects edits part by part; `possible` falls where none is correct."""

    def __init__(self, content: bytes, allow_8bit: bool) -> None:
        self.content = content
        self.allow_8bit = allow_8bit
        self.edits: list[Edit] = []
        first_lf = content.find(b"\n")
        self.lf_only = first_lf >= 0 and content[first_lf - 1 : first_lf] != b"\r"
        self.newline = b"\n" if self.lf_only else b"\r\n"
        scanner = MimeScanner()
        scanner.feed(content)
        self.parts: list[Part] = scanner.close()
        self.possible = not scanner.limited

    def run(self) -> bytes | None:
        children: list[list[Part]] = [[] for _ in self.parts]
        sealed: list[bool] = []  # by index: inside something that must not change
        for part in self.parts:
            parent = part.parent
            if parent >= 0:
                children[parent].append(part)
            sealed.append(
                parent >= 0 and (sealed[parent] or self.parts[parent].media_type in _SEALED)
            )
        for part, inner, is_sealed in zip(self.parts, children, sealed, strict=True):
            # RFC 6152 is about bodies: a header in UTF-8 needs SMTPUTF8 and has no 7-bit form here
            if part.header_eight_bit and not self.allow_8bit:
                self.possible = False
            # ... nor can there be a NUL or bare CR in one; without it the header might mean something else
            if _NOT_IN_HEADERS.search(self.content, part.header_start, part.header_end):
                self.possible = False
            if not self.possible:
                return None
            if is_sealed:
                self.possible = self.fits(self.content[part.body_start : part.body_end])
            elif inner:
                self.convert_container(part, inner)
            else:
                self.convert_leaf(part)
        return self.edited() if self.possible else None

    def edited(self) -> bytes:
        if not self.edits:
            return self.content
        pieces: list[bytes | memoryview] = []
        view = memoryview(self.content)
        at = 0
        for start, end, octets in sorted(self.edits):
            pieces += [view[at:start], octets]
            at = end
        pieces.append(view[at:])
        return b"".join(pieces)

    def fits(self, octets: bytes) -> bool:
        """True when these octets may travel as they are."""
        return (
            (self.allow_8bit or octets.isascii())
            and b"\0" not in octets
            and not has_bare_line_ends(octets, self.lf_only)
            and not has_long_line(octets)
        )

    def convert_container(self, part: Part, inner: list[Part]) -> None:
        """A multipart or an enclosed message: its label, and what stands between its parts."""
        self.relabel(part)
        starts = [*(child.header_start for child in inner), part.body_end]
        ends = [part.body_start, *(child.body_end for child in inner)]
        for at, end in zip(ends, starts, strict=True):
            between = self.content[at:end]  # delimiters, preamble, epilogue
            if self.fits(between):
                continue
            # nobody reads a preamble or epilogue (RFC 2046 §5.1.1), but a delimiter must stay
            readable = between.translate(_QUESTION_MARKS)
            lines = zip(between.split(b"\n"), readable.split(b"\n"), strict=True)
            if not self.fits(readable) or any(
                line[:2] == b"--" and line != plain for line, plain in lines
            ):
                self.possible = False
                return
            if at == part.header_end:  # the empty line was missing: readable might pass for a field
                readable = self.newline + readable
            self.edits.append((at, end, readable))

    def relabel(self, part: Part) -> None:
        """RFC 2045 §6.4: the label tells the domain of the data, which is smaller now."""
        field = part.encoding_field
        too_large = (ENCODING_BINARY,) if self.allow_8bit else (ENCODING_8BIT, ENCODING_BINARY)
        if field is not None and part.encoding in too_large:
            self.edits.append((*field, b" 8bit" if self.allow_8bit else b" 7bit"))

    def convert_leaf(self, part: Part) -> None:
        body = self.content[part.body_start : part.body_end]
        if self.fits(body):
            self.relabel(part)
            return
        is_message = part.media_type.startswith(b"message/")
        if (
            # its parts cannot be told: only the identity encodings are allowed (RFC 2045 §6.4)
            part.media_type.startswith(b"multipart/")
            or (is_message and part.media_type not in _ENCODABLE_MESSAGES)
            or part.encoding == ENCODING_OTHER
        ):
            self.possible = False
            return
        encoded_before = part.encoding > ENCODING_BINARY
        if encoded_before:  # with octets in it that the encoding does not have: decode as any reader
            as_base64 = part.encoding == ENCODING_BASE64
            try:
                body = decode_base64(body) if as_base64 else a2b_qp(body)
            except ValueError:
                self.possible = False
                return
        else:
            as_base64 = not (is_message or part.media_type.startswith(b"text/"))
        if as_base64:
            # the line end before a delimiter is the delimiter's
            at_end = part.body_end == len(self.content)
            octets = encode_base64(body, lf=self.lf_only, end=at_end)
        else:
            octets = encode_quoted_printable(body, lf=self.lf_only)
        self.edits.append((part.body_start, part.body_end, octets))
        if not encoded_before:
            self.label(part, b"base64" if as_base64 else b"quoted-printable")

    def label(self, part: Part, encoding: bytes) -> None:
        """Says in the part's header how it is encoded now, and that this is MIME at all."""
        added = []
        if part.encoding_field is None:
            added.append(b"Content-Transfer-Encoding: " + encoding)
        else:
            self.edits.append((*part.encoding_field, b" " + encoding))
        if part.type_field is None:
            # RFC 1428 §3: 8-bit text of which nobody said what it is
            added.append(b"Content-Type: text/plain; charset=unknown-8bit")
        header = self.content[part.header_start : part.header_end]
        above = self.parts[part.parent] if part.parent >= 0 else None
        is_root = above is None or above.media_type.startswith(b"message/")
        if is_root and find_field(header, b"MIME-Version") is None:
            added.append(b"MIME-Version: 1.0")
        if part.header_end == part.body_start:  # the empty line was missing
            added.append(b"")
        if above is not None and above.body_start == above.header_end == part.header_end:
            added.insert(0, b"")  # ... and so it was above: these would be fields of that header
        if added:
            octets = b"".join(line + self.newline for line in added)
            self.edits.append((part.header_end, part.header_end, octets))


def to_7bit(content: bytes) -> bytes | None:
    """content in lines of ASCII (RFC 6152 §3), the same object when it is that already; None: impossible.

    Impossible are 8-bit headers, headers with NUL or bare CR, 8-bit octets in what is signed or
    encrypted, in message/partial and its like, and structures beyond the scanner's limits.
    """
    return _Converter(content, allow_8bit=False).run()


def to_8bit(content: bytes) -> bytes | None:
    """content without what only BINARYMIME may carry (RFC 3030 §3): NUL, bare CR or LF, long lines.

    Only bodies are converted: a header with NUL or bare CR makes it impossible (None).
    """
    return _Converter(content, allow_8bit=True).run()


def quoted_printable(octets: bytes) -> bytes:
    """octets as quoted-printable text with CRLF line ends."""
    encoded: bytes = encode_quoted_printable(octets)
    return encoded
