"""FETCH responses of many messages at once, from packed records and columns of octets.

    Flow      FetchFormat(items) → format(records, numbers, columns) → octets of the wire, one object for a chunk
    Limits    none of its own: as many messages and octets as it is given
    Errors    ValueError for columns that do not fit the records, and for facts that are none
    Security  what a sender wrote goes out as a literal, or as it was quoted when it was received
    Standards RFC 9051 §7.5.2 (FETCH), §6.4.5 (HEADER.FIELDS), RFC 7162 (MODSEQ), RFC 8474 (EMAILID, THREADID),
              RFC 8514 (SAVEDATE), RFC 9586 (UIDFETCH)

Records: see store_index.pyx.  Facts: see gateway/mail/imap_facts.py.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memmove, memset

from fieldscan cimport same_ignoring_case
from records cimport record_t

cdef extern from "Python.h":
    PyObject *new_octets "PyBytes_FromStringAndSize"(const char *p, Py_ssize_t n) except NULL
    int resize_octets "_PyBytes_Resize"(PyObject **octets, Py_ssize_t n) except -1

# What an item's value is made of.  Of the record:
FETCH_UID, FETCH_FLAGS, FETCH_MODSEQ, FETCH_SIZE, FETCH_DATE, FETCH_SAVE_DATE, FETCH_EMAIL_ID = range(7)
# Of a column: as it is, as a literal, as a literal of two columns, as a literal8 where it has a NUL.
FETCH_OCTETS, FETCH_LITERAL, FETCH_PAIR, FETCH_BINARY = range(7, 11)
# Of a column of facts: one section, BODYSTRUCTURE without its extension data, the thread.
FETCH_SECTION, FETCH_BODY, FETCH_THREAD_ID = range(11, 14)
# Of a column of header sections.
FETCH_FIELDS = 14

cdef enum:
    UID = 0
    FLAGS = 1
    MODSEQ = 2
    SIZE = 3
    DATE = 4
    SAVE_DATE = 5
    EMAIL_ID = 6
    OCTETS = 7
    LITERAL = 8
    PAIR = 9
    BINARY = 10
    SECTION = 11
    BODY = 12
    THREAD_ID = 13
    FIELDS = 14
    FACTS_HEAD = 32  # version, octets of the header, six lengths
    FACTS_LENGTHS = 8
    STRUCTURE = 1
    THREAD = 3
    KEYWORDS = 56
    KEYWORD_BIT = 8
    FLAGS_OCTETS = 64  # "(\Answered \Flagged \Deleted \Seen \Draft \Recent)" and some
    NUMBER_OCTETS = 24
    DATE_OCTETS = 28
    DEPTH_MAX = 128  # of bodies within bodies
    NAMES_MAX = 1024

ctypedef const unsigned char *octets_t
ctypedef unsigned char *out_t

cdef struct item_t:
    octets_t label
    Py_ssize_t label_size
    int kind
    int column
    int section
    int64_t start  # of a partial; -1: the whole
    int64_t count
    octets_t prefix
    Py_ssize_t prefix_size
    PyObject *fields

cdef struct span_t:
    octets_t p
    Py_ssize_t n

cdef int64_t YEAR_0 = -62167219200  # its first second
cdef int64_t YEAR_9999 = 253402300799  # its last one
cdef const char *HEX = "0123456789abcdef"
cdef const char *MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"


# -- small pieces ------------------------------------------------------------------------------------------------------

cdef inline out_t put(out_t out, octets_t p, Py_ssize_t n) noexcept nogil:
    memcpy(out, p, n)
    return out + n


cdef inline out_t put_word(out_t out, const char *word, Py_ssize_t n) noexcept nogil:
    memcpy(out, word, n)
    return out + n


cdef inline out_t put_number(out_t out, uint64_t value) noexcept nogil:
    cdef unsigned char digits[24]
    cdef int at = 24
    while True:
        at -= 1
        digits[at] = 48 + value % 10
        value //= 10
        if value == 0:
            return put(out, digits + at, 24 - at)


cdef inline out_t put_hex(out_t out, uint64_t value, int width) noexcept nogil:
    # width: digits at least
    cdef unsigned char digits[16]
    cdef int at = 16
    while value or width > 0:
        at -= 1
        digits[at] = HEX[value & 15]
        value >>= 4
        width -= 1
    return put(out, digits + at, 16 - at)


cdef inline out_t put_two(out_t out, int value) noexcept nogil:
    out[0] = 48 + value // 10
    out[1] = 48 + value % 10
    return out + 2


cdef out_t put_date(out_t out, int64_t at) noexcept nogil:
    # RFC 9051 §9 date-time, in UTC; the proleptic Gregorian calendar from the year 0 to 9999.
    cdef int64_t days, seconds, era, year
    cdef int day_of_era, year_of_era, day_of_year, month, day, shifted
    if at < YEAR_0:
        at = YEAR_0
    if at > YEAR_9999:
        at = YEAR_9999
    days = at // 86400 if at >= 0 else -((86399 - at) // 86400)
    seconds = at - days * 86400
    days += 719468
    era = days // 146097 if days >= 0 else -((146096 - days) // 146097)
    day_of_era = <int>(days - era * 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153  # months from March on
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    out[0] = c'"'
    out[1] = c" " if day < 10 else 48 + day // 10  # date-day-fixed
    out[2] = 48 + day % 10
    out[3] = c"-"
    out = put(out + 4, <octets_t>MONTHS + 3 * (month - 1), 3)
    out[0] = c"-"
    out = put_two(put_two(out + 1, <int>(year // 100)), <int>(year % 100))
    out[0] = c" "
    out = put_two(out + 1, <int>(seconds // 3600))
    out[0] = c":"
    out = put_two(out + 1, <int>(seconds // 60 % 60))
    out[0] = c":"
    out = put_two(out + 1, <int>(seconds % 60))
    return put_word(out, b' +0000"', 7)


cdef inline out_t put_literal_head(out_t out, Py_ssize_t n) noexcept nogil:
    out[0] = c"{"
    out = put_number(out + 1, n)
    return put_word(out, b"}\r\n", 3)


cdef inline out_t without_nuls(out_t begin, out_t end) noexcept nogil:
    # A literal has no NUL (RFC 9051 §9 CHAR8): 0x80 instead, as other servers have it; BINARY gives the octets.
    cdef out_t at = begin
    while at < end:
        at = <out_t>memchr(at, 0, end - at)
        if at == NULL:
            break
        at[0] = 0x80
        at += 1
    return end


def format_date(int64_t at):
    """Seconds since 1970 as a date-time in quotes, in UTC (RFC 9051 §9)."""
    cdef unsigned char out[DATE_OCTETS]
    return PyBytes_FromStringAndSize(<char *>out, put_date(out, at) - out)


# -- facts -------------------------------------------------------------------------------------------------------------

cdef int facts_section(span_t facts, int which, span_t *found) noexcept nogil:
    # -1: no packed facts.
    cdef uint32_t lengths[6]
    cdef int64_t start = FACTS_HEAD
    cdef int i
    if facts.n < FACTS_HEAD or facts.p[0] != 1:
        return -1
    memcpy(lengths, facts.p + FACTS_LENGTHS, sizeof(lengths))
    for i in range(which):
        start += lengths[i]
    if start + lengths[which] > facts.n:
        return -1
    found.p = facts.p + start
    found.n = lengths[which]
    return 0


cdef int split_facts(bytes joined, Py_ssize_t rows, span_t *cells, Py_ssize_t width) except -1:
    # The facts of each row: they say themselves how long they are.
    cdef octets_t p = <octets_t>PyBytes_AS_STRING(joined)
    cdef octets_t end = p + PyBytes_GET_SIZE(joined)
    cdef uint32_t lengths[6]
    cdef int64_t size
    cdef Py_ssize_t i
    cdef int k
    for i in range(rows):
        size = FACTS_HEAD
        if end - p >= FACTS_HEAD:
            memcpy(lengths, p + FACTS_LENGTHS, sizeof(lengths))
            for k in range(6):
                size += lengths[k]
        if end - p < size:
            raise ValueError("facts are missing")
        cells[i * width].p = p
        cells[i * width].n = size
        p += size
    if p != end:
        raise ValueError("there are facts of more messages")
    return 0


cdef Py_ssize_t skip_value(octets_t p, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    # Behind the string, atom or list that begins at i; n when it has no end.
    cdef Py_ssize_t depth = 0, size
    while i < n:
        if p[i] == c'"':
            i += 1
            while i < n and p[i] != c'"':
                i += 2 if p[i] == c"\\" else 1
            i += 1
        elif p[i] == c"{":
            size = 0
            i += 1
            while i < n and c"0" <= p[i] <= c"9" and size < n:
                size = size * 10 + p[i] - c"0"
                i += 1
            i += 3 + size  # }CRLF
        elif p[i] == c"(":
            depth += 1
            i += 1
        elif p[i] == c")":
            depth -= 1
            i += 1
        elif p[i] == c" ":
            i += 1  # within a list
            continue
        else:
            while i < n and p[i] != c" " and p[i] != c")" and p[i] != c"(":
                i += 1
        if depth <= 0:
            break
    return i if i < n else n


cdef Py_ssize_t put_body(octets_t p, Py_ssize_t i, Py_ssize_t n, out_t *out, int depth) noexcept nogil:
    # The body that begins at i, without extension data (RFC 9051 §9 body); behind it, or -1 for what is none.
    cdef Py_ssize_t start = i, value
    cdef int fields = 7  # type, subtype, parameters, id, description, encoding, octets
    cdef bint is_text, is_message
    if i >= n or p[i] != c"(" or depth > DEPTH_MAX:
        return -1
    out[0][0] = c"("
    out[0] += 1
    i += 1
    if i < n and p[i] == c"(":  # multipart: bodies, then the subtype
        while i < n and p[i] == c"(":
            i = put_body(p, i, n, out, depth + 1)
            if i < 0:
                return -1
        value = i
        i = skip_value(p, i + 1, n)
        out[0] = put(out[0], p + value, i - value)
    else:
        is_text = n - i > 7 and same_ignoring_case(p + i, b'"text"', 6)
        is_message = n - i > 10 and same_ignoring_case(p + i, b'"message"', 9)
        value = i
        for _ in range(fields):
            i = skip_value(p, i, n) + 1
        i -= 1
        if i < n and is_text:  # lines
            i = skip_value(p, i + 1, n)
        if i + 1 < n and is_message and p[i + 1] == c"(":  # envelope, body, lines
            i = skip_value(p, i + 1, n) + 1
            if i > n:
                return -1
            out[0] = put(out[0], p + value, i - value)
            i = put_body(p, i, n, out, depth + 1)
            if i < 0:
                return -1
            value = i
            i = skip_value(p, i + 1, n)
        if i > n:
            return -1
        out[0] = put(out[0], p + value, i - value)
    # the rest is extension data
    while i < n and p[i] == c" ":
        i = skip_value(p, i + 1, n)
    if i >= n or p[i] != c")":
        return -1
    out[0][0] = c")"
    out[0] += 1
    return i + 1


def body_of(bytes structure not None):
    """BODYSTRUCTURE as BODY has it: without extension data.  Raises ValueError for what is none."""
    cdef bytes result = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(structure) + 2)
    cdef out_t begin = <out_t>PyBytes_AS_STRING(result)
    cdef out_t out = begin
    if put_body(<octets_t>PyBytes_AS_STRING(structure), 0, PyBytes_GET_SIZE(structure), &out, 0) < 0:
        raise ValueError("no BODYSTRUCTURE")
    return result[: out - begin]


cdef uint64_t thread_hash(span_t thread, uint64_t message) noexcept nogil:
    # Of the root's Message-ID: the first reference, else the message's own; of its key when it has neither.
    cdef octets_t root = thread.p
    cdef octets_t end = thread.p + thread.n
    cdef octets_t own_end = <octets_t>memchr(root, 0, thread.n) if thread.n else NULL
    cdef octets_t next_end
    cdef uint64_t h = 14695981039346656037ULL  # FNV-1a
    if own_end != NULL:
        root = own_end + 1
        next_end = <octets_t>memchr(root, 0, end - root)
        if next_end != NULL:
            end = next_end
    if root == end:
        root = <octets_t>&message
        end = root + sizeof(message)
    while root < end:
        h = (h ^ root[0]) * 1099511628211ULL
        root += 1
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ULL
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBULL
    return h ^ (h >> 31)


def thread_id(const unsigned char[::1] thread, uint64_t message):
    """THREADID of a message with that section THREAD of its facts and that key (RFC 8474 §5.2)."""
    cdef span_t text
    text.p, text.n = (&thread[0] if thread.shape[0] else NULL), thread.shape[0]
    return b"T%016x" % thread_hash(text, message)


# -- HEADER.FIELDS -----------------------------------------------------------------------------------------------------

@cython.final
cdef class HeaderFields:
    """The fields of these names (any case), or with `others` all but those, of header sections (RFC 9051 §6.4.5)."""

    cdef list names
    cdef span_t *wanted
    cdef Py_ssize_t count
    cdef unsigned char initials[256]  # what a wanted name begins with, in either case
    cdef bint others

    def __cinit__(self, names, bint others=False):
        cdef Py_ssize_t i
        memset(self.initials, 0, sizeof(self.initials))
        self.names = [bytes(name).lower() for name in names]
        self.count = len(self.names)
        if self.count > NAMES_MAX:
            raise ValueError("too many field names")
        self.others = others
        self.wanted = <span_t *>malloc(self.count * sizeof(span_t) + 1)
        if self.wanted == NULL:
            raise MemoryError
        for i in range(self.count):
            self.wanted[i].p = <octets_t>PyBytes_AS_STRING(self.names[i])
            self.wanted[i].n = PyBytes_GET_SIZE(self.names[i])
            if self.wanted[i].n:
                self.initials[self.wanted[i].p[0]] = 1
                if c"a" <= self.wanted[i].p[0] <= c"z":
                    self.initials[self.wanted[i].p[0] - 32] = 1

    def __dealloc__(self):
        free(self.wanted)

    cdef bint has(self, octets_t line, Py_ssize_t n) noexcept nogil:
        # Is the line a field with one of the names?
        cdef Py_ssize_t i, at
        for i in range(self.count):
            at = self.wanted[i].n
            if at < n and same_ignoring_case(line, <const char *>self.wanted[i].p, at):
                while at < n and (line[at] == c" " or line[at] == c"\t"):
                    at += 1
                if at < n and line[at] == c":":
                    return True
        return False

    cdef out_t put(self, span_t header, out_t out) noexcept nogil:
        # At most header.n + 2 octets.
        cdef octets_t line = header.p
        cdef octets_t end = header.p + header.n
        cdef octets_t after
        cdef octets_t run = NULL  # where octets to be copied begin
        cdef octets_t colon
        cdef bint taken = False
        while line < end:
            after = <octets_t>memchr(line, 10, end - line)
            after = end if after == NULL else after + 1
            if line[0] == 10 or (line[0] == 13 and after - line == 2):
                break  # the empty line
            if line[0] != c" " and line[0] != c"\t":
                # what is no field goes with the others
                taken = self.others
                if self.initials[line[0]] and self.has(line, after - line):
                    taken = not taken
                if taken and run == NULL:
                    run = line
                elif not taken and run != NULL:
                    out = put(out, run, line - run)
                    run = NULL
            line = after
        if run != NULL:
            out = put(out, run, line - run)
        out[0] = 13
        out[1] = 10
        return out + 2

    def cut(self, header):
        """Those fields as they are in the header section, and the empty line."""
        cdef Py_buffer view
        cdef bytes result
        cdef span_t span
        cdef out_t out
        PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
        try:
            span.p = <octets_t>view.buf
            span.n = view.len
            result = PyBytes_FromStringAndSize(NULL, view.len + 2)
            out = self.put(span, <out_t>PyBytes_AS_STRING(result))
            return result[: out - <out_t>PyBytes_AS_STRING(result)]
        finally:
            PyBuffer_Release(&view)


# -- responses ---------------------------------------------------------------------------------------------------------

@cython.final
cdef class FetchFormat:
    """How the FETCH responses of one command look.

    items: (label, kind, column, extra, start, count) of each.  kind is one of FETCH_*; column the index of its column,
    or of its first one; extra the section of the facts, the prefix of an EMAILID, or HeaderFields; start and count the
    partial of a literal, -1 and 0 without.  keywords: of the mailbox, in the order of their bits.  recent_uid: UIDs from
    there on are \\Recent; 0: none are.  uid_only: UIDFETCH responses (RFC 9586).
    """

    cdef item_t *items
    cdef Py_ssize_t count
    cdef list kept
    cdef span_t keywords[KEYWORDS]
    cdef int keyword_count
    cdef uint32_t recent_uid
    cdef bint uid_only
    cdef Py_ssize_t fixed  # octets of a response without its columns and keywords, at most
    cdef readonly int columns

    def __cinit__(self, items, keywords=(), uint32_t recent_uid=0, bint uid_only=False):
        cdef Py_ssize_t i
        cdef item_t *item
        cdef bytes octets
        self.kept = []
        self.count = len(items)
        self.recent_uid = recent_uid
        self.uid_only = uid_only
        self.items = <item_t *>malloc(self.count * sizeof(item_t) + 1)
        if self.items == NULL:
            raise MemoryError
        self.fixed = 32
        for i, (label, kind, column, extra, start, count) in enumerate(items):
            item = &self.items[i]
            if not UID <= kind <= FIELDS or column < 0:
                raise ValueError("no such kind of item")
            item.label = self.span(label).p
            item.label_size = len(label)
            item.kind = kind
            item.column = column
            item.section = 0
            item.start = start
            item.count = count
            item.prefix = NULL
            item.prefix_size = 0
            item.fields = NULL
            if kind >= OCTETS:
                self.columns = max(self.columns, column + 1 + (kind == PAIR))
            if kind == SECTION:
                if not 0 <= extra <= 5:
                    raise ValueError("facts have no such section")
                item.section = extra
            elif kind == EMAIL_ID:
                item.prefix = self.span(extra).p
                item.prefix_size = len(extra)
            elif kind == FIELDS:
                if not isinstance(extra, HeaderFields):
                    raise ValueError("HEADER.FIELDS need their names")
                self.kept.append(extra)
                item.fields = <PyObject *>extra
            self.fixed += item.label_size + item.prefix_size + 2 + (
                FLAGS_OCTETS if kind == FLAGS else DATE_OCTETS + NUMBER_OCTETS
            )
        for i, keyword in enumerate(keywords):
            if i == KEYWORDS:
                raise ValueError("too many keywords")
            self.keywords[i] = self.span(keyword)
            self.keyword_count = i + 1

    def __dealloc__(self):
        free(self.items)

    cdef span_t span(self, bytes octets):
        cdef span_t found
        self.kept.append(octets)
        found.p = <octets_t>PyBytes_AS_STRING(octets)
        found.n = PyBytes_GET_SIZE(octets)
        return found

    cdef out_t put_flags(self, out_t out, const record_t *record) noexcept nogil:
        cdef uint64_t flags = record.flags
        cdef int i
        out[0] = c"("
        out += 1
        if flags & 2:
            out = put_word(out, b"\\Answered ", 10)
        if flags & 4:
            out = put_word(out, b"\\Flagged ", 9)
        if flags & 8:
            out = put_word(out, b"\\Deleted ", 9)
        if flags & 1:
            out = put_word(out, b"\\Seen ", 6)
        if flags & 16:
            out = put_word(out, b"\\Draft ", 7)
        if self.recent_uid and record.uid >= self.recent_uid:
            out = put_word(out, b"\\Recent ", 8)
        flags >>= KEYWORD_BIT
        i = 0
        while flags and i < self.keyword_count:
            if flags & 1:
                out = put(out, self.keywords[i].p, self.keywords[i].n)
                out[0] = c" "
                out += 1
            flags >>= 1
            i += 1
        if (out - 1)[0] == c" ":
            out -= 1
        out[0] = c")"
        return out + 1

    cdef Py_ssize_t keyword_octets(self, uint64_t flags) noexcept nogil:
        cdef Py_ssize_t octets = 0
        cdef int i
        flags >>= KEYWORD_BIT
        for i in range(self.keyword_count):
            if flags >> i & 1:
                octets += self.keywords[i].n + 1
        return octets

    cdef out_t put_item(self, out_t out, const item_t *item, const record_t *record, const span_t *row) noexcept nogil:
        # NULL: the facts are none.
        cdef int kind = item.kind
        cdef span_t value
        cdef Py_ssize_t size, digits
        cdef out_t begin
        cdef int64_t start
        out = put(out, item.label, item.label_size)
        out[0] = c" "
        out += 1
        if kind == UID:
            return put_number(out, record.uid)
        if kind == FLAGS:
            return self.put_flags(out, record)
        if kind == MODSEQ:
            out[0] = c"("
            out = put_number(out + 1, record.modseq)
            out[0] = c")"
            return out + 1
        if kind == SIZE:
            return put_number(out, record.size)
        if kind == DATE:
            return put_date(out, record.internal_date)
        if kind == SAVE_DATE:
            return put_date(out, record.save_date)
        if kind == EMAIL_ID:
            out[0] = c"("
            out = put(out + 1, item.prefix, item.prefix_size)
            out = put_hex(out, record.message, 1)
            out[0] = c")"
            return out + 1
        value = row[item.column]
        if value.p == NULL:
            return put_word(out, b"NIL", 3)
        if kind == OCTETS:
            return put(out, value.p, value.n)
        if kind == SECTION or kind == BODY or kind == THREAD_ID:
            if facts_section(
                value, item.section if kind == SECTION else STRUCTURE if kind == BODY else THREAD, &value
            ) < 0:
                return NULL
            if kind == SECTION:
                return put(out, value.p, value.n)
            if kind == BODY:
                return out if put_body(value.p, 0, value.n, &out, 0) == value.n else NULL
            out = put_word(out, b"(T", 2)
            out = put_hex(out, thread_hash(value, record.message), 16)
            out[0] = c")"
            return out + 1
        if kind == PAIR:
            size = value.n + row[item.column + 1].n
            start = 0
            if item.start >= 0:
                start = min(item.start, size)
                size = min(item.count, size - start)
            begin = out = put_literal_head(out, size)
            if start < value.n:
                digits = min(size, value.n - start)
                out = put(out, value.p + start, digits)
                size -= digits
                start = value.n
            if size:
                out = put(out, row[item.column + 1].p + start - value.n, size)
            return without_nuls(begin, out)
        if kind == FIELDS:
            # The size is known afterwards: room is left for the digits, and closed.
            begin = out + NUMBER_OCTETS
            size = (<HeaderFields>item.fields).put(value, begin) - begin
            start = 0
            if item.start >= 0:
                start = min(item.start, size)
                size = min(item.count, size - start)
            out = put_literal_head(out, size)
            memmove(out, begin + start, size)
            return without_nuls(out, out + size)
        if item.start >= 0:
            start = min(item.start, value.n)
            value.p += start
            value.n = min(item.count, value.n - start)
        if kind == BINARY and memchr(value.p, 0, value.n) != NULL:
            out[0] = c"~"
            out += 1
        begin = put_literal_head(out, value.n)
        out = put(begin, value.p, value.n)
        return out if kind == BINARY else without_nuls(begin, out)

    cdef out_t put_response(
        self, out_t out, const record_t *record, uint32_t number, const span_t *row
    ) noexcept nogil:
        cdef Py_ssize_t i
        out = put_word(out, b"* ", 2)
        if self.uid_only:
            out = put_number(out, record.uid)
            out = put_word(out, b" UIDFETCH (", 11)
        else:
            out = put_number(out, number)
            out = put_word(out, b" FETCH (", 8)
        for i in range(self.count):
            if i:
                out[0] = c" "
                out += 1
            out = self.put_item(out, &self.items[i], record, row)
            if out == NULL:
                return NULL
        return put_word(out, b")\r\n", 3)

    def format(self, records, numbers, columns=()):
        """The responses for these packed records.

        numbers: the sequence number of the first, when they follow each other, or all of them as u32.  columns: lists
        of bytes (or buffers; None is NIL), in the order of the records; facts may be joined instead.
        """
        cdef Py_buffer packed, packed_numbers
        cdef const record_t *record
        cdef const uint32_t *number = NULL
        cdef uint32_t first = 0
        cdef Py_ssize_t rows, i, j, width = self.columns, bound
        cdef span_t *cells = NULL
        cdef Py_buffer *views = NULL
        cdef Py_ssize_t view_count = 0
        cdef PyObject *result = NULL
        cdef out_t out
        cdef object column, value
        PyObject_GetBuffer(records, &packed, PyBUF_SIMPLE)
        try:
            rows = packed.len // <Py_ssize_t>sizeof(record_t)
            if packed.len % sizeof(record_t):
                raise ValueError("the records are cut")
            record = <const record_t *>packed.buf
            if isinstance(numbers, int):
                first = numbers
            else:
                PyObject_GetBuffer(numbers, &packed_numbers, PyBUF_SIMPLE)
                number = <const uint32_t *>packed_numbers.buf
                if packed_numbers.len != rows * <Py_ssize_t>sizeof(uint32_t):
                    raise ValueError("not one number for each record")
            if len(columns) < width:
                raise ValueError("columns are missing")
            cells = <span_t *>malloc(rows * width * sizeof(span_t) + 1)
            if cells == NULL:
                raise MemoryError
            bound = rows * self.fixed
            for j in range(width):
                column = columns[j]
                if PyBytes_CheckExact(column):
                    split_facts(column, rows, cells + j, width)
                    continue
                if len(column) != rows:
                    raise ValueError("a column has not one value for each record")
                for i in range(rows):
                    value = column[i]
                    if PyBytes_CheckExact(value):
                        cells[i * width + j].p = <octets_t>PyBytes_AS_STRING(value)
                        cells[i * width + j].n = PyBytes_GET_SIZE(value)
                    elif value is None:
                        cells[i * width + j].p = NULL
                        cells[i * width + j].n = 0
                    else:
                        if views == NULL:
                            views = <Py_buffer *>malloc(rows * width * sizeof(Py_buffer))
                            if views == NULL:
                                raise MemoryError
                        PyObject_GetBuffer(value, &views[view_count], PyBUF_SIMPLE)
                        view_count += 1
                        cells[i * width + j].p = <octets_t>views[view_count - 1].buf
                        cells[i * width + j].n = views[view_count - 1].len
            for i in range(rows):
                if self.keyword_count:
                    bound += self.keyword_octets(record[i].flags)
                for j in range(self.count):
                    if self.items[j].kind >= OCTETS:
                        bound += cells[i * width + self.items[j].column].n + 2
                        if self.items[j].kind == PAIR:
                            bound += cells[i * width + self.items[j].column + 1].n
            result = new_octets(NULL, bound)
            out = <out_t>PyBytes_AS_STRING(<object>result)
            for i in range(rows):
                out = self.put_response(
                    out, record + i, number[i] if number != NULL else first + <uint32_t>i, cells + i * width
                )
                if out == NULL:
                    raise ValueError(f"the facts of message {record[i].message} are none")
            resize_octets(&result, out - <out_t>PyBytes_AS_STRING(<object>result))
            responses = <object>result
            return responses
        finally:
            if result != NULL:
                Py_DECREF(<object>result)
            for i in range(view_count):
                PyBuffer_Release(&views[i])
            free(views)
            free(cells)
            if number != NULL:
                PyBuffer_Release(&packed_numbers)
            PyBuffer_Release(&packed)


def newer_records(numbers, records, uint64_t modseq):
    """Those of (sequence numbers as u32, records) that were changed after that MODSEQ (RFC 7162 §3.1.4.1)."""
    cdef Py_buffer packed, packed_numbers
    cdef const record_t *source
    cdef const uint32_t *number
    cdef record_t *target
    cdef uint32_t *target_number
    cdef Py_ssize_t rows, i, found = 0
    cdef bytes new_numbers, new_records
    PyObject_GetBuffer(records, &packed, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(numbers, &packed_numbers, PyBUF_SIMPLE)
        try:
            rows = packed.len // <Py_ssize_t>sizeof(record_t)
            if packed.len % sizeof(record_t) or packed_numbers.len != rows * <Py_ssize_t>sizeof(uint32_t):
                raise ValueError("not one number for each record")
            source = <const record_t *>packed.buf
            number = <const uint32_t *>packed_numbers.buf
            new_records = PyBytes_FromStringAndSize(NULL, packed.len)
            new_numbers = PyBytes_FromStringAndSize(NULL, packed_numbers.len)
            target = <record_t *>PyBytes_AS_STRING(new_records)
            target_number = <uint32_t *>PyBytes_AS_STRING(new_numbers)
            for i in range(rows):
                if source[i].modseq > modseq:
                    target[found] = source[i]
                    target_number[found] = number[i]
                    found += 1
            return new_numbers[: found * sizeof(uint32_t)], new_records[: found * sizeof(record_t)]
        finally:
            PyBuffer_Release(&packed_numbers)
    finally:
        PyBuffer_Release(&packed)
