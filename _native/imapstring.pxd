# Declarations of imapstring.h.
cdef extern from "imapstring.h" nogil:
    ctypedef struct imap_string_form:
        Py_ssize_t size
        Py_ssize_t kept
        Py_ssize_t escapes
    imap_string_form imap_string_measure(const unsigned char *p, Py_ssize_t n)
    unsigned char *imap_string_put(unsigned char *out, const unsigned char *p, Py_ssize_t n, imap_string_form form)
