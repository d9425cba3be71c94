"""Substrings in any case where all is ASCII: nearly every header, most bodies.  The rest is decoded in Python.

    Flow      header section or decoded part → ABSENT, FOUND, or UNDECIDED: something has to be decoded first
    Limits    none of their own; a copy of the longest field, or of WINDOW octets
    Standards RFC 9051 §6.4.4, RFC 5322 §2.2.3 (unfolding)

The wanted text is folded as mail/search_text.py does it: of ASCII, in lower case.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memmove

from fieldscan cimport is_wsp, next_field, same_ignoring_case, trim_value, unfold

# Python.h asks for the functions of GNU.
cdef extern from "string.h":
    void *memmem(const void *, size_t, const void *, size_t) nogil

ctypedef const unsigned char *octets_t

cdef enum:
    NO = 0
    YES = 1
    PERHAPS = -1
    WINDOW = 16384
ABSENT, FOUND, UNDECIDED = NO, YES, PERHAPS


cdef int lower_all(const unsigned char *p, Py_ssize_t n, unsigned char *out) noexcept nogil:
    # Every octet in lower case; not 0 when one is beyond ASCII.  Without a branch: the compiler takes 32 at a time.
    cdef Py_ssize_t i
    cdef unsigned char seen = 0
    for i in range(n):
        seen |= p[i]
        out[i] = p[i] | (<unsigned char>(<unsigned char>(p[i] - 65) < 26) << 5)
    return seen & 0x80


cdef int in_header(
    octets_t p, Py_ssize_t n, octets_t wanted, Py_ssize_t size, octets_t name, Py_ssize_t name_size, unsigned char *room
) noexcept nogil:
    cdef Py_ssize_t at = 0, colon = 0, end = 0, length, used
    cdef octets_t value
    cdef int result = NO
    while next_field(p, &at, n, &colon, &end):
        length = colon - at
        while length and is_wsp(p[at + length - 1]):
            length -= 1
        used = 0
        if name_size == 0:
            memcpy(room, p + at, length)
            room[length] = c":"
            room[length + 1] = c" "
            used = length + 2
        elif length != name_size or not same_ignoring_case(p + at, <const char *>name, length):
            at = end
            continue
        value = p + colon + 1
        length = end - colon - 1
        if trim_value(&value, &length):
            length = unfold(value, length, room + used)
        else:
            memcpy(room + used, value, length)
        used += length
        if lower_all(room, used, room) or memmem(room, used, b"=?", 2) != NULL:
            result = PERHAPS  # unless another field has it
        elif used >= size and memmem(room, used, wanted, size) != NULL:
            return YES
        at = end
    return result


def find_in_header(bytes header, bytes wanted, bytes name=b""):
    """Is the text in a value of the fields of that name (lower case); without one, in "name: value" of any field?"""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(header)
    cdef unsigned char *room = <unsigned char *>malloc(size + 3)
    cdef int result
    if room == NULL:
        raise MemoryError
    result = in_header(
        <octets_t>PyBytes_AS_STRING(header), size, <octets_t>PyBytes_AS_STRING(wanted), PyBytes_GET_SIZE(wanted),
        <octets_t>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), room,
    )
    free(room)
    return result


def find_in_ascii(bytes octets, Py_ssize_t start, Py_ssize_t end, bytes wanted):
    """Is the text between the offsets?  UNDECIDED: it is not in front of the first octet that is not ASCII."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(wanted), at, count, kept = 0
    cdef octets_t p = <octets_t>PyBytes_AS_STRING(octets)
    cdef octets_t needle = <octets_t>PyBytes_AS_STRING(wanted)
    cdef unsigned char *room
    cdef int result = NO
    if not 0 <= start <= end <= PyBytes_GET_SIZE(octets):
        raise ValueError("these are no offsets")
    if size == 0:
        return YES
    room = <unsigned char *>malloc(WINDOW + size)
    if room == NULL:
        raise MemoryError
    with nogil:
        at = start
        while at < end:
            count = end - at if end - at < WINDOW else WINDOW
            if lower_all(p + at, count, room + kept):
                result = PERHAPS
                break
            if kept + count >= size and memmem(room, kept + count, needle, size) != NULL:
                result = YES
                break
            at += count
            # what may be the beginning of a match goes to the front
            count += kept
            kept = size - 1 if size - 1 < count else count
            memmove(room, room + count - kept, kept)
    free(room)
    return result
