"""MIME structure in one pass: parts, their offsets, types and encodings; header fields and unfolding.

    Flow      feed()* → close() → the parts in the order they begin; scan_mime() for content in one piece
    Limits    depth, parts, header octets read for fields, boundaries of 70 octets (RFC 2046 §5.1.1),
              2 KiB of a field's line and value; beyond a limit the rest is opaque and `limited` says so
    Errors    ValueError for limits out of range, RuntimeError for feed() after close()
    Standards RFC 5322 §2.2, RFC 2045 §5 §6, RFC 2046 §5, RFC 6532 §3.7
    Bugs      a boundary given by RFC 2231 continuations is not seen: such a multipart stays one part

Line ends are CRLF or LF.  Memory does not grow with the content, but with the number of parts.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp, memcpy

from fieldscan cimport (
    field_colon, is_lwsp, is_token, is_wsp, lower, next_field, same_ignoring_case, skip_cfws, trim_value, unfold,
)
from mimescan cimport mime_count, mime_counts, mime_find_dashes, mime_have_avx2

ctypedef const unsigned char *octets_t

# Content-Transfer-Encoding as Part.encoding (RFC 2045 §6.1)
ENCODING_7BIT = 0
ENCODING_8BIT = 1
ENCODING_BINARY = 2
ENCODING_QUOTED_PRINTABLE = 3
ENCODING_BASE64 = 4
ENCODING_OTHER = 5

cdef enum:
    MODE_HEADER  # lines are header fields
    MODE_LINES  # body while boundaries are in force: lines that begin with "--" matter
    MODE_PLAIN  # body outside every multipart: nothing but counting

cdef enum:
    FIELD_NONE = -1
    FIELD_TYPE = 0
    FIELD_ENCODING = 1
    FIELD_DISPOSITION = 2
    FIELD_ID = 3

cdef enum:
    BOUNDARY_MAX = 70  # RFC 2046 §5.1.1
    LINE_KEPT = 2048  # octets kept of a line that lies over a seam
    VALUE_KEPT = 2048  # octets kept of a Content-Type or Content-Transfer-Encoding value
    TYPE_KEPT = 127  # RFC 6838 §4.2: 127 octets for the type and for the subtype
    DEPTH_MAX = 200

cdef struct part_t:
    int parent, depth, encoding
    bint digest  # multipart/digest: its parts are messages unless they say otherwise (RFC 2046 §5.1.5)
    int64_t header_start, header_end, body_start, body_end
    uint64_t header_high, body_lf, body_high  # counter values at the start while open, differences when ended
    int64_t field_start[4]
    int64_t field_end[4]
    int type_length
    char media_type[2 * TYPE_KEPT + 1]

cdef struct boundary_t:
    int part
    int length
    unsigned char octets[BOUNDARY_MAX]

cdef bint SIMD = mime_have_avx2()

cdef dict _media_types = {}  # bytes → the same bytes: one object for each common type


cdef object intern_media_type(const char *p, Py_ssize_t n):
    cdef bytes found = PyBytes_FromStringAndSize(p, n)
    known = _media_types.get(found)
    if known is not None:
        return known
    if len(_media_types) < 256:  # mail chooses these names: bounded
        _media_types[found] = found
    return found


cdef int content_field(octets_t p, Py_ssize_t colon) noexcept nogil:
    # Which of the fields we keep offsets of begins here.
    cdef Py_ssize_t n = colon
    while n > 0 and is_wsp(p[n - 1]):
        n -= 1
    if n < 10 or (p[0] | 0x20) != c"c" or not same_ignoring_case(p, "content-", 8):
        return FIELD_NONE
    if n == 12 and same_ignoring_case(p + 8, "type", 4):
        return FIELD_TYPE
    if n == 25 and same_ignoring_case(p + 8, "transfer-encoding", 17):
        return FIELD_ENCODING
    if n == 19 and same_ignoring_case(p + 8, "disposition", 11):
        return FIELD_DISPOSITION
    if n == 10 and same_ignoring_case(p + 8, "id", 2):
        return FIELD_ID
    return FIELD_NONE


cdef int encoding_of(octets_t p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = skip_cfws(p, 0, n)
    cdef Py_ssize_t start = i
    while i < n and is_token(p[i]):
        i += 1
    p += start
    n = i - start
    if n == 0 or (n == 4 and same_ignoring_case(p, "7bit", 4)):
        return 0
    if n == 4 and same_ignoring_case(p, "8bit", 4):
        return 1
    if n == 6 and same_ignoring_case(p, "binary", 6):
        return 2
    if n == 16 and same_ignoring_case(p, "quoted-printable", 16):
        return 3
    if n == 6 and same_ignoring_case(p, "base64", 6):
        return 4
    return 5


cdef class Part:
    """One part: offsets into the content, and what its header says of it.

    parent is an index into the list of parts (-1: the message itself), depth 0 the message's.  The header is
    [header_start, header_end), the body [body_start, body_end); the empty line lies between.  lines counts the LF
    of the body, eight_bit its octets above 127, header_eight_bit the header's.  Each *_field is (start, end) of the
    value, folds included, or None.
    """

    cdef readonly int parent
    cdef readonly int depth
    cdef readonly int encoding
    cdef readonly bytes media_type
    cdef readonly int64_t header_start
    cdef readonly int64_t header_end
    cdef readonly int64_t body_start
    cdef readonly int64_t body_end
    cdef readonly uint64_t lines
    cdef readonly uint64_t eight_bit
    cdef readonly uint64_t header_eight_bit
    cdef int64_t _field_start[4]
    cdef int64_t _field_end[4]

    cdef object _field(self, int which):
        if self._field_start[which] < 0:
            return None
        return (self._field_start[which], self._field_end[which])

    @property
    def type_field(self):
        """Content-Type"""
        return self._field(FIELD_TYPE)

    @property
    def encoding_field(self):
        """Content-Transfer-Encoding"""
        return self._field(FIELD_ENCODING)

    @property
    def disposition_field(self):
        """Content-Disposition"""
        return self._field(FIELD_DISPOSITION)

    @property
    def id_field(self):
        """Content-ID"""
        return self._field(FIELD_ID)

    def __repr__(self):
        return (
            f"Part({self.media_type!r}, parent={self.parent}, header={self.header_start}:{self.header_end},"
            f" body={self.body_start}:{self.body_end})"
        )


cdef class MimeScanner:
    """Finds the parts of one message, fed in slices of any size.  simd=False takes the portable path."""

    cdef part_t *_parts
    cdef int _part_count, _part_room
    cdef boundary_t *_boundaries
    cdef int _boundary_count, _boundary_room
    cdef int _max_depth, _max_parts
    cdef int64_t _max_header_octets
    cdef bint _simd, _closed, _failed
    cdef int _mode
    cdef int _current  # innermost part that is open
    cdef bint _line_start  # no octet of the current line was consumed yet, or the line is kept in _line
    cdef int _end_octets  # of the last line: 1 LF, 2 CRLF
    cdef int64_t _offset  # of the octet that comes next
    cdef mime_counts _counts  # up to _offset
    cdef int64_t _line_offset  # of the line that _line holds the beginning of
    cdef mime_counts _line_counts  # up to there
    cdef Py_ssize_t _line_length, _line_room
    cdef unsigned char _last  # octet of the line that lies over the seam
    cdef unsigned char *_line
    cdef int _field  # the field of the current header that continuation lines belong to
    cdef Py_ssize_t _type_length, _encoding_length
    cdef unsigned char _type_value[VALUE_KEPT]
    cdef unsigned char _encoding_value[VALUE_KEPT]
    cdef bint _type_cut, _encoding_cut  # not all of the value was kept
    cdef readonly bint limited

    def __cinit__(
        self, int max_depth=32, int max_parts=1000, int64_t max_header_octets=262144, bint simd=True
    ):
        if not 1 <= max_depth <= DEPTH_MAX:
            raise ValueError(f"max_depth {max_depth} is outside 1..{DEPTH_MAX}")
        if max_parts < 1 or max_header_octets < 1:
            raise ValueError("max_parts and max_header_octets must be at least 1")
        self._max_depth = max_depth
        self._max_parts = max_parts
        self._max_header_octets = max_header_octets
        self._simd = simd and SIMD
        self._line_start = True
        self._end_octets = 1
        self._field = FIELD_NONE
        self._current = -1
        if not self._open_part(-1, 0, 0):
            raise MemoryError

    def __dealloc__(self):
        free(self._parts)
        free(self._boundaries)
        free(self._line)

    # -- parts -------------------------------------------------------------------------------------------------------

    cdef bint _open_part(self, int parent, int64_t at, uint64_t high) noexcept nogil:
        # A new part whose header begins at the offset, where the counter stands so; False when memory is out.
        cdef part_t *part
        cdef int room, i
        if self._part_count == self._part_room:
            room = 4 if self._part_room == 0 else 2 * self._part_room
            part = <part_t *>realloc(self._parts, room * sizeof(part_t))
            if part == NULL:
                self._failed = True
                return False
            self._parts = part
            self._part_room = room
        part = &self._parts[self._part_count]
        part.parent = parent
        part.depth = 0 if parent < 0 else self._parts[parent].depth + 1
        part.encoding = 0
        part.digest = False
        part.header_start = at
        part.header_end = part.body_start = part.body_end = -1
        part.header_high = high
        part.type_length = 0
        for i in range(4):
            part.field_start[i] = -1
        self._current = self._part_count
        self._part_count += 1
        self._mode = MODE_HEADER
        self._field = FIELD_NONE
        self._type_length = self._encoding_length = 0
        self._type_cut = self._encoding_cut = False
        return True

    cdef void _end_header(self, int64_t header_end, int64_t body_start, mime_counts counts) noexcept nogil:
        # The current part's header is complete; counts are those at body_start.
        cdef boundary_t boundary
        self._read_header(header_end, body_start, counts, &boundary)
        self._mode = MODE_LINES if self._boundary_count else MODE_PLAIN
        if boundary.length:
            if self._parts[self._current].depth + 1 < self._max_depth:
                self._push_boundary(&boundary)
            else:
                self.limited = True
        elif self._holds_message():
            self._open_part(self._current, body_start, counts.high)

    cdef void _read_header(
        self, int64_t header_end, int64_t body_start, mime_counts counts, boundary_t *boundary
    ) noexcept nogil:
        cdef part_t *part = &self._parts[self._current]
        part.header_end = header_end
        part.body_start = body_start
        part.header_high = counts.high - part.header_high
        part.body_lf = counts.lf
        part.body_high = counts.high
        boundary.length = 0
        self._read_type(part, boundary)
        part.digest = part.type_length == 16 and memcmp(part.media_type, b"multipart/digest", 16) == 0
        if part.field_start[FIELD_ENCODING] >= 0:
            part.encoding = 5 if self._encoding_cut else encoding_of(self._encoding_value, self._encoding_length)

    cdef bint _holds_message(self) noexcept nogil:
        # True when the current part's body is a message that we go into: message/rfc822 with one of the encodings
        # that RFC 2046 §5.2.1 allows it, or message/global (RFC 6532 §3.7).
        cdef part_t *part = &self._parts[self._current]
        if part.encoding > 2 or part.type_length != 14 or (
            memcmp(part.media_type, b"message/rfc822", 14) != 0 and memcmp(part.media_type, b"message/global", 14) != 0
        ):
            return False
        if part.depth + 1 >= self._max_depth or self._part_count >= self._max_parts:
            self.limited = True
            return False
        return True

    cdef void _push_boundary(self, boundary_t *boundary) noexcept nogil:
        cdef boundary_t *grown
        cdef int room
        if self._boundary_count == self._boundary_room:
            room = 4 if self._boundary_room == 0 else 2 * self._boundary_room
            grown = <boundary_t *>realloc(self._boundaries, room * sizeof(boundary_t))
            if grown == NULL:
                self._failed = True
                return
            self._boundaries = grown
            self._boundary_room = room
        boundary.part = self._current
        self._boundaries[self._boundary_count] = boundary[0]
        self._boundary_count += 1
        self._mode = MODE_LINES

    cdef void _end_parts(self, int keep, int64_t end, int end_octets, mime_counts counts) noexcept nogil:
        # Ends the current part and those around it, up to but without `keep`.  counts are those at `end`; the
        # end_octets before `end` belong to the delimiter (RFC 2046 §5.1.1), not to the bodies.
        cdef part_t *part
        cdef boundary_t unused
        cdef int64_t trimmed = end - end_octets
        while self._current != keep and not self._failed:
            if self._parts[self._current].body_start < 0:
                # the delimiter or the end came before the empty line
                self._read_header(trimmed, trimmed, counts, &unused)
                if self._holds_message():
                    self._open_part(self._current, trimmed, counts.high)
                    continue
            part = &self._parts[self._current]
            # when nothing but the line end is left, it is the delimiter's
            part.header_start = min(part.header_start, trimmed)
            part.header_end = min(part.header_end, trimmed)
            part.body_start = min(part.body_start, trimmed)
            part.body_end = trimmed
            part.body_lf = counts.lf - part.body_lf
            if end_octets and part.body_lf:
                part.body_lf -= 1
            part.body_high = counts.high - part.body_high
            self._current = part.parent

    cdef void _read_type(self, part_t *part, boundary_t *boundary) noexcept nogil:
        # RFC 2045 §5.1: type "/" subtype *(";" attribute "=" value).  What cannot be read is text/plain (§5.2).
        cdef octets_t p = self._type_value
        cdef Py_ssize_t n = self._type_length
        cdef Py_ssize_t i = skip_cfws(p, 0, n)
        cdef int length = 0
        cdef bint message_by_default = (
            part.parent >= 0 and self._parts[part.parent].digest and part.field_start[FIELD_TYPE] < 0
        )
        while i < n and is_token(p[i]) and length < TYPE_KEPT:
            part.media_type[length] = lower(p[i])
            length += 1
            i += 1
        i = skip_cfws(p, i, n)
        if length == 0 or i >= n or p[i] != c"/":
            length = 0
        else:
            part.media_type[length] = c"/"
            length += 1
            i = skip_cfws(p, i + 1, n)
            if i >= n or not is_token(p[i]):
                length = 0
            while length and i < n and is_token(p[i]) and length < 2 * TYPE_KEPT + 1:
                part.media_type[length] = lower(p[i])
                length += 1
                i += 1
        if length == 0:
            if message_by_default:
                memcpy(part.media_type, b"message/rfc822", 14)
                part.type_length = 14
            else:
                memcpy(part.media_type, b"text/plain", 10)
                part.type_length = 10
            return
        part.type_length = length
        if length > 10 and memcmp(part.media_type, b"multipart/", 10) == 0:
            self._read_boundary(boundary, i)

    cdef void _read_boundary(self, boundary_t *boundary, Py_ssize_t i) noexcept nogil:
        cdef octets_t p = self._type_value
        cdef Py_ssize_t n = self._type_length
        cdef Py_ssize_t name, name_length, length
        cdef bint wanted
        while True:
            while i < n and p[i] != c";":  # whatever stands between the parameters
                if p[i] == c'"':
                    i += 1
                    while i < n and p[i] != c'"':
                        i += 2 if p[i] == c"\\" else 1
                    i += 1
                elif p[i] == c"(":
                    i = skip_cfws(p, i, n)
                else:
                    i += 1
            if i >= n:
                self.limited |= self._type_cut
                return
            name = i = skip_cfws(p, i + 1, n)
            while i < n and is_token(p[i]):
                i += 1
            name_length = i - name
            i = skip_cfws(p, i, n)
            if i >= n or p[i] != c"=":
                continue
            i = skip_cfws(p, i + 1, n)
            wanted = name_length == 8 and same_ignoring_case(p + name, "boundary", 8)
            if not wanted:
                continue
            length = 0
            if i < n and p[i] == c'"':
                i += 1
                while i < n and p[i] != c'"':
                    if p[i] == c"\\" and i + 1 < n:
                        i += 1
                    if p[i] != c"\r" and p[i] != c"\n":
                        if length == BOUNDARY_MAX:
                            self.limited = True
                            return
                        boundary.octets[length] = p[i]
                        length += 1
                    i += 1
                while length and is_wsp(boundary.octets[length - 1]):
                    length -= 1
            else:  # unquoted boundaries with tspecials are common: up to ";" or white space
                while i < n and p[i] != c";" and not is_lwsp(p[i]):
                    if length == BOUNDARY_MAX:
                        self.limited = True
                        return
                    boundary.octets[length] = p[i]
                    length += 1
                    i += 1
            boundary.length = <int>length
            return

    # -- lines -------------------------------------------------------------------------------------------------------

    cdef bint _on_line(
        self, octets_t p, Py_ssize_t kept, int64_t start, int64_t length, int end_octets, mime_counts counts
    ) noexcept nogil:
        # One whole line of `length` octets and end_octets of line end, its first LINE_KEPT at p; counts are those
        # at its start, self._counts those behind it.  True when it was a delimiter.
        cdef mime_counts after
        if self._boundary_count and kept >= 2 and p[0] == c"-" and p[1] == c"-":
            if self._on_dashes(p, kept, start, length, end_octets, counts):
                return True
        while self._mode == MODE_HEADER:
            if length == 0 and end_octets:
                after.lf = counts.lf + 1
                after.high = counts.high
                self._end_header(start, start + end_octets, after)
                break
            if self._on_header_line(p, kept, start, length):
                break
            # RFC 5322 §2.2 knows no such line: the header is over and this is the body's first line
            self._end_header(start, start, counts)
            if self._boundary_count and kept >= 2 and p[0] == c"-" and p[1] == c"-":
                if self._on_dashes(p, kept, start, length, end_octets, counts):
                    return True
        self._end_octets = end_octets
        return False

    cdef bint _on_header_line(self, octets_t p, Py_ssize_t kept, int64_t start, int64_t length) noexcept nogil:
        # A field, a continuation or an mbox "From " line; False for anything else.
        cdef part_t *part = &self._parts[self._current]
        cdef Py_ssize_t colon = 0
        cdef int field
        cdef bint cut = length > LINE_KEPT
        if kept > length:
            kept = <Py_ssize_t>length
        if kept and is_wsp(p[0]):
            if start == part.header_start:
                return False
            if self._field != FIELD_NONE:
                part.field_end[self._field] = start + length
                self._keep_value(p, kept, cut)
            return True
        colon = field_colon(p, kept)
        if colon < 0:
            return start == 0 and kept >= 5 and memcmp(p, b"From ", 5) == 0
        self._field = FIELD_NONE
        if start + length - part.header_start > self._max_header_octets:
            self.limited = True
            return True
        field = content_field(p, colon)
        if field != FIELD_NONE and part.field_start[field] < 0:  # the first one counts
            self._field = field
            part.field_start[field] = start + colon + 1
            part.field_end[field] = start + length
            self._keep_value(p + colon + 1, kept - colon - 1, cut)
        return True

    cdef void _keep_value(self, octets_t p, Py_ssize_t n, bint cut) noexcept nogil:
        if self._field == FIELD_TYPE:
            self._type_cut |= cut or n > VALUE_KEPT - self._type_length
            n = min(n, VALUE_KEPT - self._type_length)
            memcpy(self._type_value + self._type_length, p, n)
            self._type_length += n
        elif self._field == FIELD_ENCODING:
            self._encoding_cut |= cut or n > VALUE_KEPT - self._encoding_length
            n = min(n, VALUE_KEPT - self._encoding_length)
            memcpy(self._encoding_value + self._encoding_length, p, n)
            self._encoding_length += n

    cdef bint _on_dashes(
        self, octets_t p, Py_ssize_t kept, int64_t start, int64_t length, int end_octets, mime_counts counts
    ) noexcept nogil:
        # A line that begins with "--": True when it is a delimiter of an open multipart, the outermost first:
        # an outer one ends all inner ones, closed or not (RFC 2046 §5.1.2).
        # §5.1.1: delimiter = "--" boundary ["--"] transport-padding.
        cdef Py_ssize_t n = kept if kept < length else <Py_ssize_t>length
        cdef boundary_t *boundary
        cdef int i
        cdef bint closing
        if length > kept:  # a line of kilobytes is padding at best
            return False
        while n > 2 and is_wsp(p[n - 1]):
            n -= 1
        for i in range(self._boundary_count):
            boundary = &self._boundaries[i]
            if n < 2 + boundary.length or memcmp(p + 2, boundary.octets, boundary.length) != 0:
                continue
            closing = n == 4 + boundary.length and p[n - 1] == c"-" and p[n - 2] == c"-"
            if not closing and n != 2 + boundary.length:
                continue
            self._end_parts(boundary.part, start, self._end_octets, counts)
            self._end_octets = end_octets
            if closing:
                self._boundary_count = i
                self._mode = MODE_LINES if i else MODE_PLAIN
            else:
                self._boundary_count = i + 1
                if self._part_count < self._max_parts:
                    self._open_part(boundary.part, start + length + end_octets, self._counts.high)
                else:
                    self.limited = True
                    self._mode = MODE_LINES
            return True
        return False

    cdef bint _keep_line(self, octets_t p, Py_ssize_t n) noexcept nogil:
        # Keeps the beginning of a line whose end is not there yet; False when memory is out.
        cdef Py_ssize_t kept = min(self._line_length, LINE_KEPT)
        cdef Py_ssize_t room
        cdef unsigned char *grown
        if n <= 0:
            return True
        self._last = p[n - 1]
        self._line_length += n
        n = min(n, LINE_KEPT - kept)
        if kept + n > self._line_room:
            room = 128 if kept + n <= 128 else LINE_KEPT
            grown = <unsigned char *>realloc(self._line, room)
            if grown == NULL:
                self._failed = True
                return False
            self._line = grown
            self._line_room = room
        memcpy(self._line + kept, p, n)
        return True

    cdef void _scan(self, octets_t p, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i = 0, end, length
        cdef int end_octets
        cdef octets_t found
        cdef mime_counts counts
        while i < n and not self._failed:
            if self._mode == MODE_PLAIN and self._line_length == 0:
                mime_count(self._simd, p, i, n, &self._counts)
                self._line_start = p[n - 1] == c"\n"
                i = n
                break
            if not self._line_start:  # inside a body line: on to the next that may be a delimiter
                end = <Py_ssize_t>mime_find_dashes(self._simd, p, i, n, &self._counts)
                if end > i and p[end - 1] == c"\n":
                    self._line_start = True
                    if end - i >= 2:
                        self._end_octets = 2 if p[end - 2] == c"\r" else 1
                    else:
                        self._end_octets = 2 if self._last == c"\r" else 1
                i = end
                if i == n:
                    self._last = p[n - 1]
                continue
            if self._line_length == 0:
                self._line_offset = self._offset + i
                self._line_counts = self._counts
            if self._mode == MODE_LINES and self._line_length < 2:
                # only "--" is of interest here
                if p[i] != c"-" or (self._line_length == 0 and i + 1 < n and p[i + 1] != c"-"):
                    if self._line_length:
                        self._last = c"-"
                        self._line_length = 0
                    self._line_start = False
                    continue
            found = <octets_t>memchr(p + i, c"\n", n - i)
            if found == NULL:
                mime_count(self._simd, p, i, n, &self._counts)
                self._keep_line(p + i, n - i)
                i = n
                break
            end = found - p + 1
            mime_count(self._simd, p, i, end, &self._counts)
            if self._line_length:
                end_octets = 1
                if end - i >= 2:
                    end_octets += p[end - 2] == c"\r"
                else:
                    end_octets += self._last == c"\r"
                self._keep_line(p + i, end - i)
                length = self._line_length
                self._line_length = 0
                self._on_line(
                    self._line, min(length, LINE_KEPT), self._line_offset, length - end_octets, end_octets,
                    self._line_counts,
                )
            else:
                end_octets = 2 if end - i >= 2 and p[end - 2] == c"\r" else 1
                length = end - i - end_octets
                self._on_line(
                    p + i, min(length, LINE_KEPT), self._line_offset, length, end_octets, self._line_counts
                )
            i = end
        self._offset += n

    # -- Python ------------------------------------------------------------------------------------------------------

    def feed(self, data):
        """Scan the next slice (any buffer); nothing of it is kept but the beginning of a line that it cuts."""
        cdef Py_buffer view
        if self._closed:
            raise RuntimeError("feed() after close()")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        self._scan(<octets_t>view.buf, view.len)
        PyBuffer_Release(&view)
        if self._failed:
            raise MemoryError

    def close(self):
        """The parts, in the order they begin; the first is the message itself."""
        cdef int i, j
        cdef part_t *source
        cdef Part part
        cdef list parts = []
        if not self._closed:
            self._closed = True
            if self._line_length:  # a last line without line end
                self._on_line(
                    self._line, min(self._line_length, LINE_KEPT), self._line_offset, self._line_length, 0,
                    self._line_counts,
                )
            self._end_parts(-1, self._offset, 0, self._counts)
        if self._failed:
            raise MemoryError
        for i in range(self._part_count):
            source = &self._parts[i]
            part = Part.__new__(Part)
            part.parent = source.parent
            part.depth = source.depth
            part.encoding = source.encoding
            part.media_type = intern_media_type(source.media_type, source.type_length)
            part.header_start = source.header_start
            part.header_end = source.header_end
            part.body_start = source.body_start
            part.body_end = source.body_end
            part.lines = source.body_lf
            part.eight_bit = source.body_high
            part.header_eight_bit = source.header_high
            for j in range(4):
                part._field_start[j] = source.field_start[j]
                part._field_end[j] = source.field_end[j]
            parts.append(part)
        return parts


def scan_mime(data, int max_depth=32, int max_parts=1000):
    """The parts of content that is there in one piece."""
    cdef MimeScanner scanner = MimeScanner(max_depth, max_parts)
    scanner.feed(data)
    return scanner.close()


# -- header fields ---------------------------------------------------------------------------------------------------


cdef object unfolded(octets_t p, Py_ssize_t n):
    cdef bytes result
    if not trim_value(&p, &n):
        return PyBytes_FromStringAndSize(<const char *>p, n)
    result = PyBytes_FromStringAndSize(NULL, n)
    return result[:unfold(p, n, <unsigned char *>PyBytes_AS_STRING(result))]


def find_field(header, bytes name not None):
    """The unfolded value of the first field of that name (case does not matter), or None.

    header: a header section or a whole message; the search ends at the empty line.
    """
    cdef Py_buffer view
    cdef Py_ssize_t at = 0, colon = 0, end = 0, length
    cdef bytes wanted = name.lower()
    cdef const char *lower_case = PyBytes_AS_STRING(wanted)
    cdef Py_ssize_t wanted_length = len(wanted)
    cdef octets_t p
    PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
    try:
        p = <octets_t>view.buf
        while next_field(p, &at, view.len, &colon, &end):
            length = colon - at
            while length and is_wsp(p[at + length - 1]):
                length -= 1
            if length == wanted_length and same_ignoring_case(p + at, lower_case, length):
                return unfolded(p + colon + 1, end - colon - 1)
            at = end
        return None
    finally:
        PyBuffer_Release(&view)


def first_fields(header, names):
    """{name: unfolded value} of the first field of each of these names (lower case; 40 octets at most)."""
    cdef Py_buffer view
    cdef Py_ssize_t at = 0, colon = 0, end = 0, length, i
    cdef unsigned char small[40]
    cdef dict found = {}
    cdef octets_t p
    PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
    try:
        p = <octets_t>view.buf
        while next_field(p, &at, view.len, &colon, &end):
            length = colon - at
            while length and is_wsp(p[at + length - 1]):
                length -= 1
            if length <= 40:
                for i in range(length):
                    small[i] = lower(p[at + i])
                name = PyBytes_FromStringAndSize(<const char *>small, length)
                if name in names and name not in found:
                    found[name] = unfolded(p + colon + 1, end - colon - 1)
            at = end
        return found
    finally:
        PyBuffer_Release(&view)


def iter_fields(header):
    """All fields as [(name, unfolded value)], in their order, up to the empty line."""
    cdef Py_buffer view
    cdef Py_ssize_t at = 0, colon = 0, end = 0, length
    cdef list fields = []
    cdef octets_t p
    PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
    try:
        p = <octets_t>view.buf
        while next_field(p, &at, view.len, &colon, &end):
            length = colon - at
            while length and is_wsp(p[at + length - 1]):
                length -= 1
            fields.append(
                (PyBytes_FromStringAndSize(<const char *>p + at, length), unfolded(p + colon + 1, end - colon - 1))
            )
            at = end
        return fields
    finally:
        PyBuffer_Release(&view)
