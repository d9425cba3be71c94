"""Strings as IMAP wants them.

    Flow      octets → octets of the wire
    Limits    a quoted string has 1024 octets at most: a longer one is a literal
    Security  whatever octets come in, what goes out is one string and ends where it says
    Standards RFC 9051 §4.3 (string, literal)
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from imapstring cimport imap_string_form, imap_string_measure, imap_string_put

ctypedef const unsigned char *octets_t


def imap_string(bytes value not None):
    """A quoted string, or a literal where that cannot be (8-bit octets, CR, LF; a NUL is left out)."""
    cdef octets_t p = <octets_t>PyBytes_AS_STRING(value)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
    cdef imap_string_form form = imap_string_measure(p, n)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, form.size)
    imap_string_put(<unsigned char *>PyBytes_AS_STRING(result), p, n, form)
    return result


def imap_nstring(value):
    """The same; NIL for None."""
    return b"NIL" if value is None else imap_string(value)
