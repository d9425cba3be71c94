# Types for the compiled form of pop3.py (setup.py, COMPILED); the Python source stays the only source.

from gateway.server.login cimport LoginSession
from gateway.server.maildrop cimport Maildrop


cdef class PopSession(LoginSession):
    cdef public object _lock
    cdef public Maildrop _maildrop
    cdef public Py_ssize_t retrieved

    cpdef double idle_s(self)
    cpdef count(self, Py_ssize_t octets)


cdef class Pop3Session(PopSession):
    cpdef on_event(self, int kind, a, b)
    cpdef _send(self, Py_ssize_t index, content)
    cpdef _begin(self, Py_ssize_t index, bytes header, bytes body)
