# Types for the compiled form of session.py (setup.py, COMPILED); the Python source stays the only source.

from gateway.server.login cimport LoginSession


cdef class ImapSession(LoginSession):
    cdef public object account, identity, selected, command, notify, enabled, mechanisms, uploads
    cdef public bint idling, mid_response, passwords
    cdef public double idle_since
    cdef public tuple progress
    cdef public bytes limited

    cpdef on_event(self, int kind, a, b)
    cpdef double idle_s(self)
    cpdef flush(self)
    cpdef _dispatch(self, command)
    cpdef _complete(self, handler, bytes status, outcome)
    cpdef complete(self, bytes status, outcome)
