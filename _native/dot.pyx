"""Mail data as DATA and BDAT carry it: decoding into chunks with the facts of one pass, and dot-stuffing.

    Owns      Chunk, DataDecoder (the only end-of-data detection of the product), DataEncoder and stuff()
    Flow      octets of the connection → DataDecoder.feed → take() → spool; slices of the spool → stuff → connection
    Limits    max_octets of content; header() and message_id see the first 64 KiB of the content, as far as they are
              in the first chunk
    Errors    MemoryError: the message is lost, and the decoder only good for reset()
    Blocking  never; O(octets).  Clean octets are copied in blocks, the others walked one by one
    Security  only <CRLF>.<CRLF> ends data, and only a "." behind CRLF is unstuffed: a bare CR or LF beside the dot is
              content, whatever other servers make of it
    Standards RFC 5321 §2.3.8, §4.1.1.4, §4.5.2; RFC 3030 §2

What ends a line.  In normalized content only CRLF is left.  Where octets are kept as found, lines, longest_line and
dot_lines are those of the content as stuff(repair=True) sends it: CRLF, a bare LF and a bare CR each end a line.  So
dot_lines is always the number of dots that stuff() adds.  Content with bare CR, bare LF or NUL must be sent with
repair=True.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.string cimport memchr, memcpy, memset

from bytescan cimport (
    BYTESCAN_BLOCK,
    bytescan_all,
    bytescan_available,
    bytescan_kernels,
    line_facts,
)

cdef enum:
    NUL = 0
    TAB = 9
    LF = 10
    CR = 13
    SP = 32
    DOT = 46
    COLON = 58

cdef enum:
    SLACK = BYTESCAN_BLOCK + 8  # octets behind a chunk's capacity that block copies may overwrite
    FIRST_OCTETS = 16384        # first allocation at most: most mail is smaller, and pipelined mail comes in one read
    HEADER_OCTETS = 65536       # kept in one piece for header()
    MESSAGE_ID_OCTETS = 998     # RFC 5322 §2.1.1

cdef const bytescan_kernels *kernel = &bytescan_all[bytescan_available() - 1]


def kernels() -> tuple:
    """Names of the instruction sets this machine can run; the last one is what is used."""
    return tuple([bytescan_all[i].name.decode() for i in range(bytescan_available())])


def use_kernel(str name not None) -> None:
    """Scan with the named instruction set from now on; for tests and benches."""
    global kernel
    for i in range(bytescan_available()):
        if bytescan_all[i].name.decode() == name:
            kernel = &bytescan_all[i]
            return
    raise ValueError(f"kernel {name!r}: expected one of {', '.join(kernels())}")


# -- chunks ----------------------------------------------------------------------------------------------------------

cdef Py_ssize_t live_chunks = 0
cdef Py_ssize_t live_octets = 0


def live_counts() -> tuple:
    """(chunks, octets of memory they hold) at this moment, over all decoders and views."""
    return live_chunks, live_octets


@cython.final
@cython.freelist(64)
cdef class Chunk:
    """Octets of one message, read-only, by the buffer protocol.  They are freed when the last view of them goes."""

    cdef uint8_t *memory
    cdef Py_ssize_t length
    cdef Py_ssize_t capacity    # SLACK more are allocated

    def __cinit__(self):
        global live_chunks
        live_chunks += 1

    def __dealloc__(self):
        global live_chunks, live_octets
        live_chunks -= 1
        if self.memory != NULL:
            live_octets -= self.capacity + SLACK
            PyMem_RawFree(self.memory)

    def __len__(self):
        return self.length

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.memory if self.memory != NULL else <uint8_t *> b"", self.length, 1, flags)

    cdef int resize(self, Py_ssize_t capacity) except -1:
        # Only while nobody else has seen the chunk.
        global live_octets
        if capacity > <Py_ssize_t> (INT64_MAX // 2):
            raise MemoryError
        cdef void *memory = PyMem_RawRealloc(self.memory, <size_t> (capacity + SLACK))
        if memory == NULL:
            raise MemoryError
        live_octets += capacity - self.capacity if self.memory != NULL else capacity + SLACK
        self.memory = <uint8_t *> memory
        self.capacity = capacity
        return 0

    cdef int append(self, const void *octets, Py_ssize_t size) except -1:
        if size > self.capacity - self.length:
            self.resize(max(self.length + size, 2 * self.capacity))
        memcpy(self.memory + self.length, octets, <size_t> size)
        self.length += size
        return 0

    cdef int shrink(self) except -1:
        # What a body in the queue holds should be its own size; a little waste is cheaper than a new place.
        if self.capacity - self.length > self.length // 8 + 512:
            self.resize(self.length)
        return 0


# -- decoding --------------------------------------------------------------------------------------------------------

cdef enum State:
    BOL         # a line begins: data start or behind CRLF
    MID         # within a line
    AFTER_LF    # a line begins behind a bare LF
    PENDING_CR  # the last octet was CR and is not written yet
    STUFFED     # "." at BOL, not written yet
    STUFFED_CR  # the same and CR: LF now ends the data
    ENDED

ctypedef struct Content:
    State state
    bint normalize
    bint chunked        # BDAT: no dot means anything
    bint has_nul
    int64_t size        # octets written so far
    int64_t dot_lines
    int64_t bare_cr
    int64_t bare_lf
    line_facts facts


cdef inline void end_line(Content *c, int64_t at, int64_t next_at) noexcept nogil:
    # The current line ends at content offset `at`, the next one begins at next_at.
    c.facts.longest = max(c.facts.longest, at - c.facts.line_start)
    c.facts.lines += 1
    c.facts.line_start = next_at


cdef inline void write_bare_cr(Content *c, uint8_t *out, int64_t at) noexcept nogil:
    # Writes the CR that turned out to be bare, at content offset `at`.
    c.bare_cr += 1
    if c.normalize:
        out[0] = SP
    else:
        out[0] = CR
        end_line(c, at, at + 1)


cdef size_t decode(Content *c, const uint8_t *p, size_t n, uint8_t *out, size_t room, size_t *written) noexcept nogil:
    # Decodes p[:n] until it is used up, room octets or one more were written, or the data ended.  Returns how many
    # octets were used.  Resumable at any octet: c carries what is not decided yet.  Borrows p and out (with SLACK
    # octets behind room) for the call only.
    cdef size_t i = 0, o = 0, copied
    cdef int walk = 1           # octets to walk before blocks are tried (they need to see the octet before them)
    cdef uint8_t octet
    cdef State state = c.state
    while i < n and o < room:
        if walk == 0:
            walk = 16
            if state == PENDING_CR and p[i] == LF and room - o > BYTESCAN_BLOCK:
                out[o] = CR
                copied = kernel.copy_clean(p + i, out + o + 1, min(n - i, room - o - 1), c.size + <int64_t> o + 1,
                                           &c.facts)
                o += 1 if copied else 0
            elif state <= AFTER_LF:
                copied = kernel.copy_clean(p + i, out + o, min(n - i, room - o), c.size + <int64_t> o, &c.facts)
            else:
                copied = 0
            if copied:
                i += copied
                o += copied
                if p[i - 1] == CR:
                    o -= 1
                    state = PENDING_CR
                else:
                    state = BOL if p[i - 1] == LF else MID
                # A single stumbling block is passed in a few octets; where there are many, walking is faster.
                if copied >= 16:
                    walk = 3
                continue
        else:
            walk -= 1

        octet = p[i]
        i += 1
        if state == BOL:
            if octet == DOT:
                if not c.chunked:
                    state = STUFFED
                    continue
                c.dot_lines += 1
        elif state == AFTER_LF:
            if octet == DOT:
                c.dot_lines += 1
        elif state != MID:
            if octet == LF and state == PENDING_CR:
                end_line(c, c.size + <int64_t> o, c.size + <int64_t> o + 2)
                out[o] = CR
                out[o + 1] = LF
                o += 2
                state = BOL
                continue
            if octet == LF and state == STUFFED_CR:
                state = ENDED  # RFC 5321 §4.1.1.4
                break
            if octet == CR and state == STUFFED:
                state = STUFFED_CR
                continue
            if state == STUFFED:  # RFC 5321 §4.5.2: the dot is dropped
                if octet == DOT:
                    c.dot_lines += 1
            else:
                write_bare_cr(c, out + o, c.size + <int64_t> o)
                o += 1
                if octet == DOT and not c.normalize:
                    c.dot_lines += 1

        state = MID
        if octet == CR:
            state = PENDING_CR
        elif octet == LF:
            c.bare_lf += 1
            if c.normalize:
                end_line(c, c.size + <int64_t> o, c.size + <int64_t> o + 2)
                out[o] = CR
                o += 1
            else:
                end_line(c, c.size + <int64_t> o, c.size + <int64_t> o + 1)
            out[o] = LF
            o += 1
            state = AFTER_LF
        else:
            if octet == NUL:
                c.has_nul = True
                if c.normalize:
                    octet = SP
            c.facts.has_8bit |= octet >> 7
            out[o] = octet
            o += 1
    c.state = state
    c.size += <int64_t> o
    written[0] = o
    return i


# -- header ----------------------------------------------------------------------------------------------------------

cdef enum HeaderState:
    LINE        # a line begins
    LINE_CR     # and its first octet was CR
    NAME        # its first octets are those of a name we look for
    NAME_WSP    # the name is complete, the colon may still come (RFC 5322 §4.5)
    REST        # nothing of interest until the LF
    BODY        # the empty line was seen

ctypedef struct Header:
    HeaderState state
    const char *name        # lower case
    uint8_t matched         # octets of it
    int64_t octets          # offset of the empty line
    int64_t received
    int64_t message_id_at   # where the first Message-ID's value begins; 0 = none seen


cdef void scan_header(Header *h, const uint8_t *p, size_t n, int64_t at) noexcept nogil:
    # Looks at the next n octets of content, which begin at offset `at`, until the empty line.  Resumable at any octet.
    cdef size_t i = 0
    cdef const void *found
    cdef uint8_t octet
    while i < n:
        if h.state == REST:
            found = memchr(p + i, LF, n - i)
            if found == NULL:
                return
            i = <size_t> (<const uint8_t *> found - p) + 1
            h.state = LINE
            continue
        octet = p[i]
        i += 1
        if h.state <= LINE_CR and octet == LF:
            h.octets = at + <int64_t> i - (1 if h.state == LINE else 2)
            h.state = BODY
            return
        if h.state == LINE:
            h.matched = 1
            if octet == CR:
                h.state = LINE_CR
            elif octet | 0x20 == c'r':
                h.name = "received"
                h.state = NAME
            elif octet | 0x20 == c'm':
                h.name = "message-id"
                h.state = NAME
            else:
                h.state = REST
        elif h.state == NAME and lower(octet) == <uint8_t> h.name[h.matched]:
            h.matched += 1
            if h.name[h.matched] == 0:
                h.state = NAME_WSP
        elif h.state == NAME_WSP and octet == COLON:
            if h.name[0] == c'r':
                h.received += 1
            elif h.message_id_at == 0:
                h.message_id_at = at + <int64_t> i
            h.state = REST
        elif h.state != NAME_WSP or (octet != SP and octet != TAB):
            h.state = LINE if octet == LF else REST


cdef inline uint8_t lower(uint8_t octet) noexcept nogil:
    return octet | 0x20 if c'A' <= octet <= c'Z' else octet


@cython.final
@cython.no_gc
cdef class DataDecoder:
    """Decodes the mail data of one message at a time into chunks.

    max_octets: of content, 0 = no limit.  normalize: a bare LF becomes CRLF, a bare CR and a NUL become SP; without
    it they are kept as found.  Either way they are counted as found.  chunk_octets: the size of all chunks of a
    message but its last.

    A decoder that has received nothing holds no memory but itself.  One that has holds the first chunk until reset(),
    even when it was taken: header() and message_id read it.
    """

    cdef Content content
    cdef Header head
    cdef Chunk current          # being written
    cdef Chunk first            # the message's first one
    cdef list full              # complete and not taken, from `taken` on; None when there was none
    cdef Py_ssize_t taken
    cdef int64_t max_octets
    cdef Py_ssize_t chunk_octets
    cdef Py_ssize_t size_hint
    cdef bint normalize
    cdef readonly bint finished
    cdef readonly bint overflow
    cdef readonly int64_t pending_octets

    def __init__(self, int64_t max_octets=0, bint normalize=True, Py_ssize_t chunk_octets=262144) -> None:
        if max_octets < 0:
            raise ValueError(f"max_octets {max_octets} is negative")
        if chunk_octets < 1:
            raise ValueError(f"chunk_octets {chunk_octets} is below 1")
        self.max_octets = max_octets
        self.normalize = normalize
        self.chunk_octets = chunk_octets
        self.reset()

    def reset(self, Py_ssize_t size_hint=0) -> None:
        """Forget the message and be ready for the next one; size_hint: what SIZE promised, to spare allocations."""
        memset(&self.content, 0, sizeof(self.content))
        memset(&self.head, 0, sizeof(self.head))
        self.content.normalize = self.normalize
        self.current = self.first = self.full = None
        self.taken = 0
        self.size_hint = size_hint
        self.finished = self.overflow = False
        self.pending_octets = 0

    def feed(self, bytes data not None, Py_ssize_t pos=0) -> int:
        """Decode data from pos on; returns where the mail data ends: len(data) unless finished.

        The octets are consumed even when the content is too large: the peer must be heard out before it is told.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if not 0 <= pos <= size:
            raise ValueError(f"position {pos} is outside 0..{size}")
        pos += self.consume(<const uint8_t *> PyBytes_AS_STRING(data) + pos, size - pos)
        if self.content.state == ENDED and not self.finished:
            self.finish()
        return pos

    def feed_chunk(self, bytes data not None, Py_ssize_t pos, Py_ssize_t size) -> int:
        """Take at most size octets of a BDAT chunk as they are; returns the new position (RFC 3030 §2).

        The facts are the same as for DATA: dot_lines counts the lines that will need stuffing when the content is
        sent by DATA later.
        """
        cdef Py_ssize_t available = PyBytes_GET_SIZE(data) - pos
        if pos < 0 or available < 0:
            raise ValueError(f"position {pos} is outside 0..{PyBytes_GET_SIZE(data)}")
        if size < 0:
            raise ValueError(f"size {size} is negative")
        if self.finished:
            return pos
        self.content.chunked = True
        self.content.normalize = False
        return pos + self.consume(<const uint8_t *> PyBytes_AS_STRING(data) + pos, min(size, available))

    def finish_chunks(self) -> None:
        """BDAT LAST was received to its end: the content is complete."""
        if self.finished:
            return
        cdef Content *c = &self.content
        if c.state == PENDING_CR:
            self.make_room(1)
            write_bare_cr(c, self.current.memory + self.current.length, c.size)
            c.size += 1
            self.keep(1)
            c.state = MID
        elif c.size > c.facts.line_start:
            end_line(c, c.size, c.size)
        self.finish()

    def take(self, bint all=False):
        """The next full chunk, or None.  all: also the last one that is not full; call until None comes."""
        cdef Chunk chunk = None
        if self.full is not None:
            chunk = self.full[self.taken]
            self.full[self.taken] = None
            self.taken += 1
            if self.taken == len(self.full):
                self.full = None
                self.taken = 0
        elif all and self.current is not None and self.current.length and not self.overflow:
            chunk = self.current
            self.current = None
            chunk.shrink()
        if chunk is not None:
            self.pending_octets -= chunk.length
        return chunk

    def facts(self) -> tuple:
        """The values of a mail.envelope.Facts, in order; final once finished."""
        cdef Content *c = &self.content
        return (
            c.size,
            self.head.octets if self.head.state == BODY else c.size,
            c.facts.lines,
            c.facts.longest,
            c.dot_lines,
            self.head.received,
            c.facts.has_8bit != 0,
            c.has_nul != 0,
            c.bare_cr,
            c.bare_lf,
            c.state == BOL or c.state == ENDED,
        )

    def header(self) -> bytes:
        """A copy of the header section's octets, without the empty line, as far as they were kept in one piece."""
        if self.first is None:
            return b""
        return PyBytes_FromStringAndSize(<char *> self.first.memory, self.kept_header())

    @property
    def message_id(self) -> str:
        """The header's Message-ID, "" when there is none; whatever stands there when it is not a msg-id."""
        cdef Py_ssize_t at = self.head.message_id_at, end = 0 if self.first is None else self.kept_header()
        if at == 0 or at >= end:
            return ""
        cdef const uint8_t *p = self.first.memory
        while at < end and (p[at] == SP or p[at] == TAB
                            or ((p[at] == CR or p[at] == LF) and folds(p, at, end))):
            at += 1
        end = min(end, at + MESSAGE_ID_OCTETS)
        cdef Py_ssize_t stop = at
        while stop < end and p[stop] != CR and p[stop] != LF:
            stop += 1
            if p[at] == c'<' and p[stop - 1] == c'>':
                break
        return (<const char *> p)[at:stop].decode("utf-8", "replace").rstrip()

    cdef Py_ssize_t kept_header(self):
        cdef int64_t octets = self.head.octets if self.head.state == BODY else self.content.size
        return <Py_ssize_t> min(octets, min(self.first.length, HEADER_OCTETS))

    cdef Py_ssize_t consume(self, const uint8_t *p, Py_ssize_t size) except -1:
        cdef Py_ssize_t used = 0
        cdef size_t written
        while used < size and self.content.state != ENDED:
            self.make_room(size - used)
            used += <Py_ssize_t> decode(
                &self.content, p + used, <size_t> (size - used), self.current.memory + self.current.length,
                <size_t> (self.current.capacity - self.current.length), &written)
            self.keep(<Py_ssize_t> written)
        return used

    cdef int make_room(self, Py_ssize_t expected) except -1:
        # Afterwards the current chunk takes at least one octet more.
        cdef Chunk chunk = self.current
        if chunk is None:
            chunk = Chunk.__new__(Chunk)
            chunk.resize(min(self.chunk_octets, max(min(expected, FIRST_OCTETS), 256)))
            self.current = chunk
            if self.first is None:
                self.first = chunk
        elif chunk.length >= chunk.capacity:
            expected = max(chunk.length + min(expected, self.chunk_octets), self.size_hint)
            chunk.resize(min(self.chunk_octets, max(expected, 2 * min(chunk.capacity, self.chunk_octets))))
        return 0

    cdef int keep(self, Py_ssize_t written) except -1:
        # Takes over what decode() wrote behind the current chunk's end.
        cdef Chunk chunk = self.current, following
        cdef Py_ssize_t excess
        if self.head.state != BODY:
            scan_header(&self.head, chunk.memory + chunk.length, <size_t> written, self.content.size - written)
        if self.overflow:
            return 0  # written where the next octets are written again
        chunk.length += written
        self.pending_octets += written
        if self.max_octets and self.content.size > self.max_octets:
            self.overflow = True
            self.full = None
            self.taken = 0
            self.pending_octets = 0
            # The header may lie in the chunk: if so, self.first keeps it.
            chunk.length = min(chunk.length, min(self.chunk_octets, self.max_octets))
            self.current = None
            return 0
        while chunk.length >= self.chunk_octets:
            excess = chunk.length - self.chunk_octets
            chunk.length = self.chunk_octets
            if self.full is None:
                self.full = []
            self.full.append(chunk)
            self.current = None
            if not excess:
                break
            self.make_room(excess)
            following = self.current
            following.append(chunk.memory + chunk.length, excess)
            chunk = following
        return 0

    cdef void finish(self) noexcept:
        self.finished = True
        if self.overflow:
            self.current = None


cdef inline bint folds(const uint8_t *p, Py_ssize_t at, Py_ssize_t end) noexcept:
    # Does the line end at p[at] belong to folding white space (RFC 5322 §2.2.3)?
    if p[at] == CR and at + 1 < end and p[at + 1] == LF:
        at += 1
    return at + 1 < end and (p[at + 1] == SP or p[at + 1] == TAB)


# -- encoding --------------------------------------------------------------------------------------------------------

cdef enum:
    JOIN_OCTETS = 4096      # shorter runs are cheaper to copy than to pass on as buffers of their own


@cython.final
@cython.no_gc
cdef class DataEncoder:
    """Makes of content, slice by slice, what DATA sends: stuffed dots (RFC 5321 §4.5.2), and the end of the data.

    repair: a bare LF or CR becomes CRLF, a NUL a space.  Without it the content must not have any; a "." behind a bare
    LF is stuffed all the same, lest a careless receiver finds the end of data in it.
    """

    cdef bint repair
    cdef bint closed        # nothing was sent, or CRLF is the last of it
    cdef uint8_t last       # octet of the content; LF before the first one
    cdef Chunk joined       # pieces that wait to be passed on as one buffer
    cdef list out

    def __init__(self, bint repair=False) -> None:
        self.repair = repair
        self.closed = True
        self.last = LF

    def encode(self, slices) -> list:
        """The buffers to send for the next slices of the content; a slice without work is passed on as it is."""
        self.out = []
        for octets in slices:
            self.encode_slice(octets)
        return self.flush()

    def finish(self) -> bytes:
        """What ends the data: CRLF when the content has none, and the final dot (RFC 5321 §4.1.1.4)."""
        if self.closed:
            return b".\r\n"
        return b"\n.\r\n" if self.repair and self.last == CR else b"\r\n.\r\n"

    cdef int encode_slice(self, object octets) except -1:
        cdef Py_buffer view
        cdef const uint8_t *p
        cdef size_t i = 0, start = 0, n
        cdef uint8_t before
        cdef bint by_itself
        PyObject_GetBuffer(octets, &view, PyBUF_SIMPLE)
        try:
            p = <const uint8_t *> view.buf
            n = <size_t> view.len
            if n == 0:
                return 0
            if self.repair and memchr(p, NUL, n) is not NULL:  # not text (RFC 5322 §2.1), and some receivers drop it
                return self.encode_slice(bytes(octets).replace(b"\0", b" "))
            while i < n:
                before = p[i - 1] if i else self.last
                if before == CR and p[i] != LF and self.repair:
                    self.pass_on(octets, p, start, i)
                    self.join(b"\n.", 2 if p[i] == DOT else 1)
                    start = i
                elif p[i] == LF and before != CR and self.repair:
                    self.pass_on(octets, p, start, i)
                    self.join(b"\r", 1)
                    start = i
                elif p[i] == DOT and before == LF:
                    self.pass_on(octets, p, start, i)
                    self.join(b".", 1)
                    start = i
                i += 1
                i += (kernel.find_foul if self.repair else kernel.find_dot)(p + i, n - i)
            before = p[n - 2] if n > 1 else self.last
            self.last = p[n - 1]
            self.closed = self.last == LF and (before == CR or self.repair)
            by_itself = start == 0 and (self.joined is None or n >= JOIN_OCTETS)
            if by_itself:
                self.pass_joined()
                self.out.append(octets if isinstance(octets, (bytes, memoryview)) else memoryview(octets))
            else:
                self.pass_on(octets, p, start, n)
        finally:
            PyBuffer_Release(&view)
        return 0

    cdef int pass_on(self, object octets, const uint8_t *p, size_t start, size_t stop) except -1:
        if stop - start < JOIN_OCTETS:
            return self.join(p + start, <Py_ssize_t> (stop - start))
        self.pass_joined()
        self.out.append(memoryview(octets)[start:stop])
        return 0

    cdef int join(self, const void *octets, Py_ssize_t size) except -1:
        if size:
            if self.joined is None:
                self.joined = Chunk.__new__(Chunk)
            self.joined.append(octets, size)
        return 0

    cdef int pass_joined(self) except -1:
        if self.joined is not None:
            self.out.append(memoryview(self.joined))
            self.joined = None
        return 0

    cdef list flush(self):
        cdef list out = self.out
        self.pass_joined()
        self.out = None
        return out


def stuff(slices, *, bint first=True, bint repair=False, bint end=True) -> list:
    """The buffers that DATA sends for the slices, for writelines(): DataEncoder at one stroke.

    first=False: the slices go on in the middle of a line.  end=False: the final dot is sent by somebody else.
    """
    cdef DataEncoder encoder = DataEncoder(repair)
    cdef bytes tail
    if not first:
        encoder.closed = False
        encoder.last = NUL
    encoder.out = []
    for octets in slices:
        encoder.encode_slice(octets)
    if end:
        tail = encoder.finish()
        if encoder.joined is None:
            encoder.out.append(tail)
        else:
            encoder.join(PyBytes_AS_STRING(tail), PyBytes_GET_SIZE(tail))
    return encoder.flush()
