"""Strings, address lists and dates as IMAP wants them, for what nearly all mail looks like.

    Flow      header field values → octets of the wire; None or -1 where the long way (gateway/mail) must be gone
    Limits    a quoted string has 1024 octets at most: a longer one is a literal
    Security  whatever octets come in, what goes out is one string and ends where it says
    Standards RFC 9051 §4.3 (string, literal), §7.5.2 (ENVELOPE), RFC 5322 §3.3, §3.4
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy

from fieldscan cimport is_wsp, lower, skip_cfws

ctypedef const unsigned char *octets_t

cdef enum:
    QUOTED_MAX = 1024

# What an octet is: 1 may stand in an atom or its dots (RFC 5322 §3.2.3), 2 must be escaped in a quoted string,
# 4 needs a literal.
cdef unsigned char KIND[256]


cdef void fill_kinds():
    cdef int i
    for i in range(256):
        KIND[i] = 0
        if i < 0x20 and i != 9:
            KIND[i] = 4 if i in (0, 10, 13) else 0
        if i >= 0x80:
            KIND[i] = 4
    for i in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-/=?^_`{|}~.":
        KIND[i] |= 1
    KIND[c'"'] = 2
    KIND[c"\\"] = 2


fill_kinds()


def imap_string(bytes value not None):
    """A quoted string, or a literal where that cannot be (8-bit octets, CR, LF; a NUL is left out)."""
    cdef octets_t p = <octets_t>PyBytes_AS_STRING(value)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value), i, escapes = 0
    cdef unsigned char kinds = 0
    cdef bytes result
    cdef unsigned char *out
    cdef char head[32]
    cdef int head_length
    for i in range(n):
        kinds |= KIND[p[i]]
        escapes += KIND[p[i]] == 2
    if kinds & 4 or n > QUOTED_MAX:
        if memchr(p, 0, n) != NULL:
            value = value.replace(b"\0", b"")  # RFC 9051 §9: CHAR8 has no NUL
            p = <octets_t>PyBytes_AS_STRING(value)
            n = PyBytes_GET_SIZE(value)
        head_length = snprintf(head, sizeof(head), "{%zd}\r\n", n)
        result = PyBytes_FromStringAndSize(NULL, head_length + n)
        out = <unsigned char *>PyBytes_AS_STRING(result)
        memcpy(out, head, head_length)
        memcpy(out + head_length, p, n)
        return result
    result = PyBytes_FromStringAndSize(NULL, n + escapes + 2)
    out = <unsigned char *>PyBytes_AS_STRING(result)
    out[0] = c'"'
    out += 1
    for i in range(n):
        if KIND[p[i]] == 2:
            out[0] = c"\\"
            out += 1
        out[0] = p[i]
        out += 1
    out[0] = c'"'
    return result


def imap_nstring(value):
    """The same; NIL for None."""
    return b"NIL" if value is None else imap_string(value)


cdef unsigned char *put(unsigned char *out, octets_t p, Py_ssize_t n) noexcept nogil:
    memcpy(out, p, n)
    return out + n


def format_mailboxes(bytes value not None):
    """(the addresses of a field as ENVELOPE has them, without the outer parentheses; name or None, local part and
    domain of the first), or None: the value has something but plain mailboxes.
    """
    cdef octets_t p = <octets_t>PyBytes_AS_STRING(value)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value), i = 0, name, name_end, local, local_end, host, host_end
    cdef unsigned char *buffer
    cdef unsigned char *out
    cdef object first = None
    cdef bint angle
    # "a@b," becomes (NIL NIL "a" "b"): no address grows by more than 18 octets
    buffer = <unsigned char *>malloc(7 * n + 32)
    if buffer == NULL:
        raise MemoryError
    out = buffer
    try:
        while True:
            while i < n and is_wsp(p[i]):
                i += 1
            name = name_end = i
            angle = False
            if i < n and p[i] == c'"':
                name = i = i + 1
                while i < n and (p[i] >= 0x20 and p[i] < 0x7F and KIND[p[i]] != 2):
                    i += 1
                if i == n or p[i] != c'"':
                    return None
                name_end = i
                i += 1
                while i < n and is_wsp(p[i]):
                    i += 1
                if i == n or p[i] != c"<":
                    return None
            else:
                while i < n and (KIND[p[i]] & 1 or is_wsp(p[i])):
                    i += 1
                name_end = i
                while name_end > name and is_wsp(p[name_end - 1]):
                    name_end -= 1
            if i < n and p[i] == c"<":
                angle = True
                i += 1
                local = i
                while i < n and KIND[p[i]] & 1:
                    i += 1
                local_end = i
            else:
                if memchr(p + name, c" ", name_end - name) != NULL or memchr(p + name, c"\t", name_end - name) != NULL:
                    return None
                local, local_end = name, name_end
            if i == n or p[i] != c"@" or local == local_end or local_end != i:
                return None
            i += 1
            host = i
            while i < n and KIND[p[i]] & 1:
                i += 1
            host_end = i
            if host == host_end:
                return None
            if angle:
                if i == n or p[i] != c">":
                    return None
                i += 1
            while i < n and is_wsp(p[i]):
                i += 1
            if i < n and p[i] != c",":
                return None
            if not angle:
                name_end = name
            if first is None:
                first = (p[name:name_end] or None, p[local:local_end], p[host:host_end])
            out = put(out, <octets_t>b'("' if name_end > name else <octets_t>b"(NIL", 2 if name_end > name else 4)
            if name_end > name:
                out = put(out, p + name, name_end - name)
                out = put(out, <octets_t>b'"', 1)
            out = put(out, <octets_t>b' NIL "', 6)
            out = put(out, p + local, local_end - local)
            out = put(out, <octets_t>b'" "', 3)
            out = put(out, p + host, host_end - host)
            out = put(out, <octets_t>b'")', 2)
            if i == n:
                return PyBytes_FromStringAndSize(<const char *>buffer, out - buffer), first
            i += 1
    finally:
        free(buffer)


cdef int number(octets_t p, Py_ssize_t *at, Py_ssize_t n, int digits_max) noexcept nogil:
    # The digits from *at on; -1 when there are none, or too many.
    cdef int value = 0
    cdef Py_ssize_t start = at[0]
    while at[0] < n and c"0" <= p[at[0]] <= c"9":
        value = value * 10 + p[at[0]] - c"0"
        at[0] += 1
        if at[0] - start > digits_max:
            return -1
    return value if at[0] > start else -1


cdef int64_t days_before(int64_t year, int month, int day) noexcept nogil:
    # Days from 1970-01-01 to that day of the Gregorian calendar, counted from March on.
    cdef int64_t y = year - (month <= 2)
    cdef int64_t era = y // 400 if y >= 0 else (y - 399) // 400
    cdef int64_t year_of_era = y - era * 400
    cdef int64_t day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


def parse_date(bytes value not None):
    """Seconds since 1970 of an RFC 5322 date-time with a numeric zone or GMT; -1 for everything else."""
    cdef octets_t p = <octets_t>PyBytes_AS_STRING(value)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value), i = 0
    cdef int day, month = -1, year, hour, minute, second = 0, zone = 0, sign
    cdef unsigned char name[3]
    i = skip_cfws(p, i, n)
    if i + 4 < n and p[i + 3] == c",":
        i = skip_cfws(p, i + 4, n)
    day = number(p, &i, n, 2)
    i = skip_cfws(p, i, n)
    if day < 1 or day > 31 or i + 3 > n:
        return -1
    name[0], name[1], name[2] = lower(p[i]), lower(p[i + 1]), lower(p[i + 2])
    for month in range(12):
        if memcmp(name, <const char *>b"janfebmaraprmayjunjulaugsepoctnovdec" + 3 * month, 3) == 0:
            break
    else:
        return -1
    i = skip_cfws(p, i + 3, n)
    year = number(p, &i, n, 4)
    if year < 1900:
        return -1
    i = skip_cfws(p, i, n)
    hour = number(p, &i, n, 2)
    if hour < 0 or hour > 23 or i == n or p[i] != c":":
        return -1
    i += 1
    minute = number(p, &i, n, 2)
    if minute < 0 or minute > 59:
        return -1
    if i < n and p[i] == c":":
        i += 1
        second = number(p, &i, n, 2)
        if second < 0 or second > 60:
            return -1
    i = skip_cfws(p, i, n)
    if i + 5 <= n and (p[i] == c"+" or p[i] == c"-"):
        sign = -1 if p[i] == c"-" else 1
        i += 1
        zone = number(p, &i, n, 4)
        if zone < 0 or zone % 100 > 59:
            return -1
        zone = sign * (zone // 100 * 3600 + zone % 100 * 60)
    elif i + 3 <= n and lower(p[i]) == c"g" and lower(p[i + 1]) == c"m" and lower(p[i + 2]) == c"t":
        i += 3
    else:
        return -1
    if skip_cfws(p, i, n) != n:
        return -1
    return days_before(year, month + 1, day) * 86400 + hour * 3600 + minute * 60 + second - zone
