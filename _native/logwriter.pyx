"""Appends records to a log and makes them durable in a thread of its own, many records a sync.

    Flow      append* → submit → (thread: CRC, write, sync, eventfd) → completed
    Limits    a group holds about group_octets, more only for one record that is larger by itself
    Blocking  drain() and close() wait for the disk without the GIL; nothing else blocks
    Errors    a failed group is reported with its errno; the groups behind it in the same segment are not
              written and reported with ECANCELED; ValueError for a record that can never fit
"""
# Objects belong to one thread (the loop's); the writer thread sees only the C structures of logwriter.h.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "crc32c.h" nogil:
    void crc32c_init()
    uint32_t c_crc32c "crc32c"(uint32_t crc, const void *p, size_t n)
    uint32_t crc32c_portable(uint32_t crc, const unsigned char *p, size_t n)

cdef extern from "logwriter.h" nogil:
    enum:
        LW_HEADER
        LW_BLOCK
        LW_PAD
        LW_FDATASYNC
        LW_DIRECT
    struct lw_group:
        lw_group *next
        unsigned char *data
        size_t capacity
        size_t used
        size_t padded
        uint64_t offset
        uint32_t sequence
        uint32_t index
        int fd
        int method
        int error
    struct lw:
        int event
    size_t lw_pending(lw *w)
    uint64_t lw_syncs(lw *w)
    int lw_start(lw *w, size_t capacity)
    void lw_stop(lw *w)
    void lw_drain(lw *w)
    void lw_pad(lw_group *g, uint64_t mark)
    void lw_submit(lw *w, lw_group *g)
    lw_group *lw_new_group(lw *w, size_t need)
    lw_group *lw_withdraw(lw *w)
    lw_group *lw_reap(lw *w)
    void lw_recycle_group(lw *w, lw_group *g)
    void lw_free_group(lw_group *g)
    void lw_put_header(unsigned char *p, uint64_t mark, uint32_t length, uint32_t sequence, uint32_t index,
                       uint8_t type, uint64_t number)
    void lw_put32(unsigned char *p, uint32_t v)
    uint32_t lw_get32(const unsigned char *p)
    uint64_t lw_get64(const unsigned char *p)
    int lw_record_valid(const unsigned char *p, size_t room, uint64_t mark, uint32_t sequence)
    size_t lw_align8(size_t n)
    size_t lw_align_block(size_t n)

crc32c_init()

RECORD_HEADER_OCTETS = LW_HEADER
BLOCK_OCTETS = LW_BLOCK


cdef class LogWriter:
    """One log being written.  Owns the thread, the eventfd and the staging memory; borrows file descriptors."""

    cdef lw writer
    cdef bint running
    cdef lw_group *open_group
    cdef list open_tokens
    cdef list groups          # tokens of the groups handed over, in order
    cdef int fd
    cdef int method
    cdef uint32_t sequence
    cdef uint32_t next_index
    cdef uint64_t mark
    cdef uint64_t position    # where the next group begins
    cdef uint64_t limit       # end of the segment's records

    def __cinit__(self, size_t group_octets=1 << 20):
        cdef int error = lw_start(&self.writer, group_octets)
        if error:
            raise OSError(error, "cannot start the log writer")
        self.running = True
        self.open_group = NULL
        self.open_tokens = []
        self.groups = []
        self.fd = -1

    def __dealloc__(self):
        if self.running:
            with nogil:
                lw_stop(&self.writer)
        lw_free_group(self.open_group)

    def fileno(self):
        """The eventfd: readable when completed() has something to tell."""
        return self.writer.event

    @property
    def pending_octets(self):
        """Octets appended and not yet completed, padding included."""
        return lw_pending(&self.writer) + (self.open_group.used if self.open_group != NULL else 0)

    @property
    def writes(self):
        """Groups completed by the thread so far."""
        return lw_syncs(&self.writer)

    @property
    def room_octets(self):
        """What is left of the segment for further groups (headers and padding included)."""
        cdef uint64_t end = self.position
        if self.fd < 0:
            return 0
        if self.open_group != NULL:
            end = self.open_group.offset + lw_align_block(self.open_group.used)
        return self.limit - end

    @property
    def end_offset(self):
        """Where records of this segment end so far."""
        return self.limit - self.room_octets

    def use_segment(self, int fd, uint32_t sequence, uint64_t mark, uint64_t offset, uint64_t limit, int method):
        """What is appended from now on goes to fd, from offset (a whole block) to limit.

        The caller keeps fd open until every group for it is completed.
        """
        if offset % LW_BLOCK or limit % LW_BLOCK or offset > limit:
            raise ValueError("a segment's records begin and end on whole blocks")
        self.submit()
        self.fd = fd
        self.sequence = sequence
        self.mark = mark
        self.position = offset
        self.limit = limit
        self.method = method
        self.next_index = 0

    def leave_segment(self):
        """Nothing can be appended until the next use_segment()."""
        self.submit()
        self.fd = -1

    def append(self, int kind, uint64_t number, token, payload, second=None, third=None):
        """Copies one record into the open group; its offset in the segment, or -1 when the segment has no room.

        The payload is the three buffers joined.  token comes back from completed() with its group.
        """
        cdef Py_buffer views[3]
        cdef int held = 0, i
        cdef size_t length = 0
        cdef unsigned char *p
        cdef int64_t offset
        try:
            for part in (payload, second, third):
                if part is not None:
                    PyObject_GetBuffer(part, &views[held], PyBUF_SIMPLE)
                    length += <size_t>views[held].len
                    held += 1
            if length > 0x7FFFFFFF:
                raise ValueError("a record holds at most 2 GiB")
            offset = self._reserve(kind, number, length, &p)
            if offset >= 0:
                for i in range(held):
                    memcpy(p, views[i].buf, <size_t>views[i].len)
                    p += views[i].len
                self.open_tokens.append(token)
            return offset
        finally:
            for i in range(held):
                PyBuffer_Release(&views[i])

    cdef int64_t _reserve(self, int kind, uint64_t number, size_t length, unsigned char **payload) except -2:
        # Room for one record in the open group, header written; *payload is where its octets go.  -1: segment full.
        cdef size_t octets = lw_align8(LW_HEADER + length)
        cdef lw_group *g
        cdef unsigned char *p
        if self.fd < 0:
            return -1
        if self.open_group == NULL:
            self._reopen()
        g = self.open_group
        if g != NULL and lw_align_block(g.used + octets) > g.capacity:
            self.submit()
            g = NULL
        if g == NULL:
            if lw_align_block(octets) > self.limit - self.position:
                return -1
            g = lw_new_group(&self.writer, octets)
            if g == NULL:
                raise MemoryError
            g.fd = self.fd
            g.method = self.method
            g.sequence = self.sequence
            g.offset = self.position
            g.index = self.next_index
            self.next_index = (self.next_index + 1) & 0xFFFFFF
            self.open_group = g
        elif g.offset + lw_align_block(g.used + octets) > self.limit:
            return -1
        p = g.data + g.used
        lw_put_header(p, self.mark, <uint32_t>length, g.sequence, g.index, <uint8_t>kind, number)
        memset(p + octets - 8, 0, 8 if length else 0)  # the gap up to the multiple of 8
        payload[0] = p + LW_HEADER
        g.used += octets
        return <int64_t>(g.offset + (g.used - octets))

    cdef int _reopen(self) except -1:
        # Grow the group that waits behind the one being written, instead of beginning a third.
        cdef lw_group *g
        if not self.groups:
            return 0
        g = lw_withdraw(&self.writer)
        if g == NULL:
            return 0
        if g.sequence != self.sequence or lw_align_block(g.used) + LW_BLOCK > g.capacity:
            lw_submit(&self.writer, g)
            return 0
        self.open_group = g
        self.open_tokens = self.groups.pop()
        self.position = g.offset
        return 0

    def submit(self):
        """Hands what was appended to the thread.  True when there was something."""
        cdef lw_group *g = self.open_group
        if g == NULL:
            return False
        self.open_group = NULL
        lw_pad(g, self.mark)
        self.position = g.offset + g.padded
        self.groups.append(self.open_tokens)
        self.open_tokens = []
        lw_submit(&self.writer, g)
        return True

    @property
    def busy(self):
        """True while the thread has groups that completed() has not returned."""
        return bool(self.groups)

    def completed(self):
        """A list of (errno or 0, sequence, offset, tokens), one for each group finished since the last call, in order."""
        cdef lw_group *g = lw_reap(&self.writer)
        cdef lw_group *following
        cdef list result = []
        cdef Py_ssize_t n = 0
        while g != NULL:
            following = g.next
            result.append((g.error, g.sequence, g.offset, self.groups[n]))
            lw_recycle_group(&self.writer, g)
            n += 1
            g = following
        if n:
            del self.groups[:n]
        return result

    def drain(self):
        """Returns when everything submitted has been tried.  completed() tells how it went."""
        self.submit()
        with nogil:
            lw_drain(&self.writer)

    def close(self):
        """Writes what was submitted, then ends the thread.  The object is of no use afterwards."""
        if self.running:
            self.submit()
            self.running = False
            self.fd = -1
            with nogil:
                lw_stop(&self.writer)


def scan_records(const unsigned char[::1] segment, uint64_t mark, uint32_t sequence, size_t start, size_t end):
    """All whole records between start and end: (records, broken, tail).

    records   list of (type, group, number, offset, length of the payload), PAD left out
    broken    list of (offset, end offset): octets that are not records though records follow
    tail      offset behind the last whole record
    """
    cdef list records = [], broken = []
    cdef const unsigned char *base = &segment[0] if segment.shape[0] else NULL
    cdef size_t p = start, q
    cdef uint32_t word, length
    if end > <size_t>segment.shape[0]:
        end = segment.shape[0]
    while p + LW_HEADER <= end:
        if not lw_record_valid(base + p, end - p, mark, sequence):
            q = p
            with nogil:
                if q % LW_BLOCK > LW_BLOCK - LW_HEADER:  # zeros where no PAD record fitted
                    q = lw_align_block(q)
                    if q + LW_HEADER > end or not lw_record_valid(base + q, end - q, mark, sequence):
                        q = p
                if q == p:
                    q += 8
                    while q + LW_HEADER <= end and not (
                        lw_get64(base + q) == mark and lw_record_valid(base + q, end - q, mark, sequence)
                    ):
                        q += 8
                    if q + LW_HEADER > end:
                        q = end + 1
            if q > end:
                break
            if not _is_gap(base, p, q):
                broken.append((p, q))
            p = q
        length = lw_get32(base + p + 12)
        word = lw_get32(base + p + 20)
        if word & 0xFF != LW_PAD:
            records.append((word & 0xFF, word >> 8, lw_get64(base + p + 24), p, length))
        p += lw_align8(LW_HEADER + <size_t>length)
    return records, broken, min(p, end)


cdef bint _is_gap(const unsigned char *base, size_t p, size_t q) noexcept nogil:
    # True for the zeros at the end of a block that were too few for a PAD record.
    if q - p >= LW_HEADER or q % LW_BLOCK:
        return False
    while p < q:
        if base[p]:
            return False
        p += 1
    return True


def find_headers(const unsigned char[::1] segment, uint64_t mark, size_t start, size_t end):
    """Offsets (multiples of 8) between start and end where something that carries the mark begins, whole or not."""
    cdef list found = []
    cdef const unsigned char *base = &segment[0] if segment.shape[0] else NULL
    cdef size_t p = start
    if end > <size_t>segment.shape[0]:
        end = segment.shape[0]
    while p + LW_HEADER <= end:
        if lw_get64(base + p) == mark:
            found.append(p)
        p += 8
    return found


def record_is_whole(const unsigned char[::1] record, uint64_t mark, uint32_t sequence):
    """True when the octets begin with an undamaged record of that segment."""
    return record.shape[0] > 0 and lw_record_valid(&record[0], record.shape[0], mark, sequence) != 0


def crc32c(const unsigned char[::1] data, uint32_t crc=0, bint portable=False):
    """CRC-32C of data, continued from crc.  portable=True leaves the processor's instruction unused (for tests)."""
    cdef const unsigned char *p = &data[0] if data.shape[0] else NULL
    if p == NULL:
        return crc
    if portable:
        return crc32c_portable(crc, p, data.shape[0])
    return c_crc32c(crc, p, data.shape[0])


cdef const char *DIGITS = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U


def encode_number(uint64_t number):
    """Twelve base-32 digits of a 60-bit number; they sort like the numbers."""
    cdef char text[12]
    cdef int i
    for i in range(11, -1, -1):
        text[i] = DIGITS[number & 31]
        number >>= 5
    return text[:12].decode("ascii")
