from libc.stdint cimport uint32_t

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data

from smtp_blaster.tally cimport Tally


cdef class Wire:
    cdef int _epoll
    cdef set _legs
    cdef object _loop


cdef class Leg:
    cdef int _fd
    cdef Wire _wire
    cdef Tally _tally
    cdef object _session
    cdef list _commands, _out
    cdef Py_ssize_t _index, _count, _offset
    cdef bint _is_in, _wants_write, _chunking
    cdef readonly long long sent_ns

    cpdef begin(self, list commands, list content, bint chunking)
    cpdef end(self)
    cdef Py_ssize_t _due(self)
    cdef _on_event(self, unsigned int events)
    cdef _on_readable(self)
    cdef bint _is_taken(self, const unsigned char *line, Py_ssize_t octets)
    cdef bint _command(self)
    cdef bint _flush(self)
    cdef bint _watch(self, bint wants_write)
    cdef _hand_back(self, bytes data)
