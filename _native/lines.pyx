"""Line framing: where does the line end that begins here?

    Limits    max_octets, the line end included; nothing beyond it is looked at
    Errors    ValueError on a position outside the data or a limit below 1
    Blocking  never; O(octets looked at), no copy
    Standards RFC 5321 §2.3.8, §4.5.3.1
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memchr

cdef enum:
    NEED_MORE = -1
    TOO_LONG = -2


def find_line(bytes data not None, Py_ssize_t pos, Py_ssize_t max_octets) -> int:
    """Offset just behind the LF that ends the line beginning at pos.

    -1 when the end is not in data yet, -2 when the line is longer than max_octets, its line end included.  Whether
    the LF is bare is for the caller to look at: it is the octet before it that tells.
    """
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    if not 0 <= pos <= size:
        raise ValueError(f"position {pos} is outside 0..{size}")
    if max_octets < 1:
        raise ValueError(f"line limit {max_octets} is below 1")
    cdef const char *line = PyBytes_AS_STRING(data) + pos
    cdef Py_ssize_t left = size - pos
    cdef const char *end = <const char *> memchr(line, c'\n', <size_t> min(left, max_octets))
    if end != NULL:
        return pos + (end - line) + 1
    return TOO_LONG if left >= max_octets else NEED_MORE
