"""Sets of numbers: from the wire to ranges, and back.

    Flow      ImapCommand.sequence_set() → resolve_set() → ranges as the store takes them; numbers → the wire
    Limits    none of their own: a set has as many ranges as its command has room for, and all is linear in them
    Errors    ValueError for octets that are no whole number of items
    Standards RFC 9051 §9 (sequence-set, seq-range)

Numbers are u32.  Ranges are pairs of them, (first, last) inclusive, ascending and apart.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from records cimport range_t


include "octets.pxi"


cdef int sort_ranges(range_t *ranges, Py_ssize_t count) except -1:
    # By their first numbers, eleven bits at a time: linear, whatever a client thinks up.
    cdef range_t *other = <range_t *>malloc(count * sizeof(range_t))
    cdef range_t *source = ranges
    cdef range_t *sink = other
    cdef range_t *swap
    cdef Py_ssize_t starts[2048]
    cdef Py_ssize_t i, at, sum
    cdef int digit
    if other == NULL:
        raise MemoryError
    for digit in range(0, 33, 11):
        for i in range(2048):
            starts[i] = 0
        for i in range(count):
            starts[(source[i].first >> digit) & 2047] += 1
        sum = 0
        for i in range(2048):
            at = starts[i]
            starts[i] = sum
            sum += at
        for i in range(count):
            at = (source[i].first >> digit) & 2047
            sink[starts[at]] = source[i]
            starts[at] += 1
        swap = source
        source = sink
        sink = swap
    memcpy(ranges, source, count * sizeof(range_t))  # three passes end in `other`
    free(other)
    return 0


def resolve_set(pairs, uint32_t highest) -> bytes:
    """A sequence set as ranges: ascending, apart, none above highest."""
    cdef _Octets octets = _Octets(pairs, sizeof(range_t))
    cdef const range_t *source = <const range_t *>octets.view.buf
    cdef Py_ssize_t count = octets.count, i, kept = 0
    cdef bint ascending = True
    cdef range_t *out
    cdef uint32_t first, last, end
    if highest == 0 or count == 0:
        return b""
    out = <range_t *>malloc(octets.view.len)
    if out == NULL:
        raise MemoryError
    try:
        end = 0
        for i in range(count):
            first = source[i].first if source[i].first else highest
            last = source[i].last if source[i].last else highest
            if first > last:
                first, last = last, first  # RFC 9051 §9, seq-range: in either order
            if first > highest:
                continue
            ascending &= first >= end
            end = first
            out[kept].first = first
            out[kept].last = min(last, highest)
            kept += 1
        if not ascending:
            sort_ranges(out, kept)
        if kept:
            count = 1
            for i in range(1, kept):
                if <uint64_t>out[i].first <= <uint64_t>out[count - 1].last + 1:
                    out[count - 1].last = max(out[count - 1].last, out[i].last)
                else:
                    out[count] = out[i]
                    count += 1
            kept = count
        return PyBytes_FromStringAndSize(<const char *>out, kept * sizeof(range_t))
    finally:
        free(out)


def set_maximum(pairs) -> int:
    """The largest number in a sequence set, "*" not counted."""
    cdef _Octets octets = _Octets(pairs, sizeof(uint32_t))
    cdef const uint32_t *numbers = <const uint32_t *>octets.view.buf
    cdef uint32_t largest = 0
    cdef Py_ssize_t i
    for i in range(octets.count):
        largest = max(largest, numbers[i])
    return largest


cdef inline unsigned char *put_number(unsigned char *out, uint32_t value) noexcept nogil:
    cdef unsigned char digits[10]
    cdef int n = 0
    while True:
        digits[n] = <unsigned char>(c"0" + value % 10)
        n += 1
        value //= 10
        if value == 0:
            break
    while n:
        n -= 1
        out[0] = digits[n]
        out += 1
    return out


cdef inline unsigned char *put_range(unsigned char *out, uint32_t first, uint32_t last) noexcept nogil:
    out = put_number(out, first)
    if last != first:
        out[0] = c":"
        out = put_number(out + 1, last)
    out[0] = c","
    return out + 1


cdef bytes freed(unsigned char *buffer, Py_ssize_t n):
    # The octets; the buffer they were put together in is no more.
    try:
        return PyBytes_FromStringAndSize(<const char *>buffer, n)
    finally:
        free(buffer)


def format_set(numbers) -> bytes:
    """Numbers (u32, in their order) as a sequence set: runs that ascend by one become ranges."""
    cdef _Octets octets = _Octets(numbers, sizeof(uint32_t))
    cdef const uint32_t *source = <const uint32_t *>octets.view.buf
    cdef Py_ssize_t count = octets.count, i = 0, start
    cdef unsigned char *buffer
    cdef unsigned char *out
    if count == 0:
        return b""
    buffer = out = <unsigned char *>malloc(count * 11)
    if buffer == NULL:
        raise MemoryError
    while i < count:
        start = i
        i += 1
        while i < count and source[i - 1] != <uint32_t>-1 and source[i] == source[i - 1] + 1:
            i += 1
        out = put_range(out, source[start], source[i - 1])
    return freed(buffer, out - buffer - 1)


def format_ranges(ranges) -> bytes:
    """Ranges as a sequence set."""
    cdef _Octets octets = _Octets(ranges, sizeof(range_t))
    cdef const range_t *source = <const range_t *>octets.view.buf
    cdef Py_ssize_t count = octets.count, i
    cdef unsigned char *buffer
    cdef unsigned char *out
    if count == 0:
        return b""
    buffer = out = <unsigned char *>malloc(count * 22)
    if buffer == NULL:
        raise MemoryError
    for i in range(count):
        out = put_range(out, source[i].first, source[i].last)
    return freed(buffer, out - buffer - 1)


def format_numbers(numbers) -> bytes:
    """Numbers (u32) with a space in front of each: " 2 5 7", as SEARCH and SORT answer."""
    cdef _Octets octets = _Octets(numbers, sizeof(uint32_t))
    cdef const uint32_t *source = <const uint32_t *>octets.view.buf
    cdef Py_ssize_t count = octets.count, i
    cdef unsigned char *buffer
    cdef unsigned char *out
    if count == 0:
        return b""
    buffer = out = <unsigned char *>malloc(count * 11)
    if buffer == NULL:
        raise MemoryError
    for i in range(count):
        out[0] = c" "
        out = put_number(out + 1, source[i])
    return freed(buffer, out - buffer)


def format_expunges(numbers) -> bytes:
    """An EXPUNGE response for each number (u32, ascending), from the last one: each is what it was before."""
    cdef _Octets octets = _Octets(numbers, sizeof(uint32_t))
    cdef const uint32_t *source = <const uint32_t *>octets.view.buf
    cdef Py_ssize_t i
    cdef unsigned char *buffer
    cdef unsigned char *out
    buffer = out = <unsigned char *>malloc(octets.count * 22 + 1)
    if buffer == NULL:
        raise MemoryError
    for i in range(octets.count - 1, -1, -1):
        memcpy(out, b"* ", 2)
        out = put_number(out + 2, source[i])
        memcpy(out, b" EXPUNGE\r\n", 10)
        out += 10
    return freed(buffer, out - buffer)
