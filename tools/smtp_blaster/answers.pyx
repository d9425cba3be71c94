"""What an IMAP server says, read as cheaply as a load tool must: literals are passed over, FETCH lines are counted.

Owns      ImapAnswers
Flow      data_received → feed() → the lines that a client acts on
Limits    LINE_MAX octets of a line are kept, literals not among them; the rest is passed over
Errors    ValueError for a literal that is larger than LITERAL_MAX, or has no length
Standards RFC 9051 §4.3 (literals), §7; RFC 3501 the same

It goes on at any octet.  A line's literals are left out of what feed() returns: their announcement "{n}" stands there.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcmp

cdef enum:
    LINE_MAX = 65536
    DIGITS_MAX = 10
    TAIL = 32  # more than the announcement of a literal has

cdef long long LITERAL_MAX = 1LL << 32


cdef class ImapAnswers:
    cdef readonly long long octets   # all that came
    cdef readonly long long fetched  # FETCH responses
    cdef bytearray _begun            # of a line whose end has not come, or that goes on behind a literal
    cdef bint _counts                # that line is a FETCH response: nothing of it is kept
    cdef bint _is_begun
    cdef long long _skip             # octets of a literal, still to come
    cdef bytes _tail                 # the end of what came of an unfinished FETCH line: enough to see its literal

    def __init__(self):
        self.octets = self.fetched = 0
        self._begun = bytearray()
        self._counts = self._is_begun = False
        self._skip = 0
        self._tail = b""

    def feed(self, bytes data not None):
        """Lines without CRLF: tagged ones, continuations, and untagged ones but for FETCH."""
        cdef const char *start = PyBytes_AS_STRING(data)
        cdef const char *end = start + PyBytes_GET_SIZE(data)
        cdef const char *at = start
        cdef const char *stop
        cdef Py_ssize_t size
        cdef long long literal
        cdef bint is_whole
        cdef list lines = []
        self.octets += end - start
        while at < end:
            if self._skip:
                size = end - at
                if self._skip < size:
                    size = <Py_ssize_t>self._skip
                at += size
                self._skip -= size
                continue
            stop = <const char *>memchr(at, 10, end - at)
            is_whole = stop != NULL
            stop = end if stop == NULL else stop + 1
            size = stop - at
            if not self._is_begun:
                self._is_begun = True
                self._counts = is_fetch(at, size)
            if self._counts:
                if is_whole:
                    literal = literal_of(at, size) if size > DIGITS_MAX + 6 or not self._tail else self._joined(at, size)
                    self._tail = b""
                    if literal < 0:
                        self.fetched += 1
                        self._is_begun = False
                    else:
                        self._skip = literal
                else:
                    self._remember(at, size)
            else:
                if is_whole and not self._begun:  # nearly all of them
                    literal = literal_of(at, size)
                    if literal < 0:
                        lines.append(PyBytes_FromStringAndSize(at, trimmed(at, size)))
                        self._is_begun = False
                    else:
                        self._begun += at[:size]
                        self._skip = literal
                else:
                    self._go_on(at, size, is_whole, lines)
            at = stop
        return lines

    cdef _go_on(self, const char *at, Py_ssize_t size, bint is_whole, list lines):
        """More of a line that is kept."""
        cdef bytes line
        cdef long long literal
        if len(self._begun) > 2 * LINE_MAX:
            raise ValueError("a line without an end")
        if len(self._begun) + size <= LINE_MAX or is_whole:
            self._begun += at[:size] if size <= LINE_MAX else at[size - 64:size]
        if not is_whole:
            return
        line = bytes(self._begun)
        self._counts = is_fetch(PyBytes_AS_STRING(line), len(line))  # its begin was too short to tell
        literal = literal_of(PyBytes_AS_STRING(line), len(line))
        if literal >= 0:
            self._skip = literal
            if self._counts:
                self._begun.clear()
            return
        self._is_begun = False
        self._begun.clear()
        if self._counts:
            self.fetched += 1
        else:
            lines.append(line[:trimmed(PyBytes_AS_STRING(line), len(line))])

    cdef _remember(self, const char *at, Py_ssize_t size):
        """The end of a piece of a line that is not kept: a literal's length may be cut in two."""
        cdef bytes both = self._tail + (at[:size] if size <= TAIL else at[size - TAIL:size])
        self._tail = both[max(0, len(both) - TAIL):]

    cdef long long _joined(self, const char *at, Py_ssize_t size) except -2:
        cdef bytes whole = self._tail + at[:size]
        return literal_of(PyBytes_AS_STRING(whole), len(whole))


cdef bint is_fetch(const char *at, Py_ssize_t size) noexcept nogil:
    """ "* 17 FETCH …" """
    cdef Py_ssize_t index = 2
    if size < 10 or at[0] != c"*" or at[1] != c" ":
        return False
    while index < size and c"0" <= at[index] <= c"9":
        index += 1
    return 2 < index and index + 7 <= size and memcmp(at + index, b" FETCH ", 7) == 0


cdef Py_ssize_t trimmed(const char *at, Py_ssize_t size) noexcept nogil:
    """Its octets without the line's end."""
    return size - 2 if size > 1 and at[size - 2] == 13 else size - 1


cdef long long literal_of(const char *at, Py_ssize_t size) except -2:
    """The octets of the literal that the line announces at its end, -1 without one."""
    cdef Py_ssize_t index = size - 4  # the last digit
    cdef long long value = 0, unit = 1
    if size < 5 or at[size - 3] != c"}" or at[size - 2] != 13:
        return -1
    while index >= 0 and c"0" <= at[index] <= c"9" and size - 4 - index < DIGITS_MAX:
        value += unit * (at[index] - c"0")
        unit *= 10
        index -= 1
    if unit == 1 or index < 0 or at[index] != c"{":
        return -1  # text that ends with a brace
    if value > LITERAL_MAX:
        raise ValueError(f"a literal of {value} octets")
    return value
