# Types for the compiled form of maildrop.py (setup.py, COMPILED); the Python source stays the only source.

cdef class Maildrop:
    cdef public object account, mailbox, sizes
    cdef object _unique_ids, _uids, _keys
    cdef bytes _unseen
    cdef bytearray _fetched
    cdef readonly dict _ahead
    cdef Py_ssize_t _window, _next

    cpdef ready(self, Py_ssize_t index)
